//! `container commit`.

use std::process::ExitCode;

use clap::{ArgAction, Args};
use container_engine::commit::CommitRequest;

use crate::{
    cli::{engine::Output, out},
    engine_api::wire::Committed,
};

#[derive(Debug, Args)]
pub struct Commit {
    /// Who made it
    #[arg(long, short, default_value = "", hide_default_value = true)]
    author: String,
    /// What for
    #[arg(long, short, default_value = "", hide_default_value = true)]
    message: String,
    /// A line of a Dockerfile: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME, WORKDIR
    #[arg(long, short, value_name = "LINE")]
    change: Vec<String>,
    /// Whether its processes stand still meanwhile
    #[arg(long, short, action = ArgAction::Set, num_args = 0..=1, require_equals = true,
        default_value_t = true, default_missing_value = "true", value_name = "BOOL")]
    pause: bool,
    /// Name or id
    #[arg(value_name = "CONTAINER")]
    container: String,
    /// Name of the image
    #[arg(value_name = "IMAGE")]
    image: Option<String>,
}

impl Commit {
    pub async fn run(self, to: &Output<'_>) -> anyhow::Result<ExitCode> {
        let request = CommitRequest {
            image: self.image,
            author: self.author,
            message: self.message,
            changes: self.change,
            pause: self.pause,
        };
        let url = to.container(&self.container, "/commit", &[]);
        let made: Committed = to.engine.post_value(&url, &request).await?;
        out(if to.json { serde_json::to_string(&made)? } else { made.id });
        Ok(ExitCode::SUCCESS)
    }
}
