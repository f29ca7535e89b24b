//! `container inspect`.

use std::process::ExitCode;

use clap::Args;

use super::shape;
use crate::cli::engine::{self, Output};

#[derive(Debug, Args)]
pub struct Inspect {
    /// json, or a Go template
    #[arg(long, short, value_name = "TEMPLATE")]
    format: Option<String>,
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Inspect {
    pub async fn run(&self, to: &Output<'_>) -> anyhow::Result<ExitCode> {
        engine::inspect(to, &self.containers, self.format.as_deref(), async |name: &str| {
            Ok(shape::inspect(&to.engine.get(&to.container(name, "", &[])).await?))
        })
        .await
    }
}
