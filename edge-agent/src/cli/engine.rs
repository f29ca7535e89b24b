//! What the commands of the engine share: the way to it, whose things are meant, how results are printed.

use std::process::ExitCode;

use container_engine::owner::Owner;

use serde_json::Value;

use super::{format::Template, out, print_error};
use crate::{
    config::Config,
    control::{Engine, EngineError, encode},
    engine_api::OneShot,
};

/// The way to the engine.
pub struct Connection;

impl Connection {
    /// Runs `work` with the agent's engine, or, where no agent runs, with one that this command opens for itself.
    pub async fn within<T>(config: &Config, work: impl AsyncFnOnce(&Engine) -> anyhow::Result<T>) -> anyhow::Result<T> {
        match Engine::connect(config.socket()).await {
            Ok(engine) => work(&engine).await,
            Err(EngineError::NotRunning { .. }) => match OneShot::open(config).await? {
                OneShot::Agent(engine) => work(&engine).await,
                OneShot::Here(open) => {
                    let engine = Engine::here(open.routes());
                    let done = work(&engine).await;
                    // Requests end first: the engine they use is closed after them.
                    drop(engine);
                    open.close().await;
                    done
                }
            },
            Err(error) => Err(error.into()),
        }
    }
}

/// What a command needs besides its own flags.
pub struct Output<'a> {
    /// The engine.
    pub engine: &'a Engine,
    /// Whose things.
    pub owner: Owner,
    /// One JSON object a line.
    pub json: bool,
}

impl Output<'_> {
    /// The URL of `path` with the owner and further pairs.
    pub fn url(&self, path: &str, pairs: &[(&str, Option<String>)]) -> String {
        let mut all = vec![("owner", Some(self.owner.to_string()))];
        all.extend(pairs.iter().cloned());
        format!("{path}{}", crate::control::query(&all))
    }

    /// The URL of something of one container.
    pub fn container(&self, name: &str, action: &str, pairs: &[(&str, Option<String>)]) -> String {
        self.url(&format!("/v1/containers/{}{action}", encode(name)), pairs)
    }

    /// Does the same for each name; a failure is told and does not keep the others from it. Exit 1 where one failed.
    pub async fn each(&self, names: &[String], one: impl AsyncFn(&str) -> anyhow::Result<()>) -> ExitCode {
        let mut code = ExitCode::SUCCESS;
        for name in names {
            if let Err(error) = one(name).await {
                print_error(&error);
                code = ExitCode::FAILURE;
            }
        }
        code
    }
}

/// A flag's value as a URL has it.
pub fn flag(value: bool) -> Option<String> {
    value.then(|| "true".to_owned())
}

/// Asks on the terminal; without one, or with `force`, yes.
pub fn confirm(warning: &str, force: bool) -> anyhow::Result<bool> {
    use std::io::{IsTerminal, Write};
    if force || !std::io::stdin().is_terminal() {
        return Ok(true);
    }
    write!(std::io::stderr(), "WARNING! {warning}\nAre you sure you want to continue? [y/N] ")?;
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    Ok(matches!(line.trim(), "y" | "Y" | "yes"))
}

/// Prints things in full: a JSON array, one object a line with `--json`, or a template for each. What is not there is told,
/// the rest printed all the same; exit 1 then.
pub async fn inspect(
    to: &Output<'_>,
    names: &[String],
    format: Option<&str>,
    one: impl AsyncFn(&str) -> anyhow::Result<Value>,
) -> anyhow::Result<ExitCode> {
    let template = match format {
        None | Some("json") => None,
        Some(text) => Some(Template::parse(text)?),
    };
    let (mut found, mut code) = (Vec::new(), ExitCode::SUCCESS);
    for name in names {
        match one(name).await {
            Ok(value) => found.push(value),
            Err(error) => {
                print_error(&error);
                code = ExitCode::FAILURE;
            }
        }
    }
    match template {
        Some(template) => {
            for value in &found {
                out(template.render(value)?);
            }
        }
        None if to.json || format == Some("json") => found.iter().for_each(out),
        None => out(serde_json::to_string_pretty(&found)?),
    }
    Ok(code)
}
