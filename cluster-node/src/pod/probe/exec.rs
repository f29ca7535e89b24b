//! Commands in a container, for probes and hooks: with a time limit, their output cut.

use std::{future::Future, pin::Pin, time::Duration};

use container_engine::{
    container::{ContainerError, ContainerId, ExecSpec},
    engine::Engine,
    shim::{Output, ShimError},
};

use super::MAX_OUTPUT;

/// What came of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// As a shell tells it.
    pub code: i32,
    /// Both streams as they came, up to [`MAX_OUTPUT`].
    pub output: String,
}

/// Why a command has no exit code.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// It was ended.
    #[error("command timed out: {command:?} timed out after {after:?}")]
    Timeout {
        /// The program, without its arguments.
        command: String,
        /// The limit.
        after: Duration,
    },
    /// No container of that id.
    #[error("{0:?} is no container of the engine")]
    NoContainer(String),
    /// The engine could not start it.
    #[error("failed to exec in container")]
    Engine(#[from] ContainerError),
    /// The shim went away.
    #[error("the container's shim went away while the command ran")]
    Shim(#[from] ShimError),
}

impl ExecError {
    /// With its causes, for events.
    pub fn text(&self) -> String {
        board::tasks::chain(self)
    }
}

/// The answer of [`Exec::exec`].
pub type Answer<'a> = Pin<Box<dyn Future<Output = Result<Outcome, ExecError>> + Send + 'a>>;

/// Who can run a command in a container: the engine.
pub trait Exec: Send + Sync + 'static {
    /// Runs it to its end, or kills it after `limit`.
    fn exec<'a>(&'a self, container: &'a str, command: &'a [String], limit: Option<Duration>) -> Answer<'a>;
}

impl Exec for Engine {
    fn exec<'a>(&'a self, container: &'a str, command: &'a [String], limit: Option<Duration>) -> Answer<'a> {
        Box::pin(in_container(self, container, command, limit))
    }
}

async fn in_container(
    engine: &Engine,
    container: &str,
    command: &[String],
    limit: Option<Duration>,
) -> Result<Outcome, ExecError> {
    let no = |_| ExecError::NoContainer(container.chars().take(64).collect());
    let id: ContainerId = container.parse().map_err(no)?;
    let spec = ExecSpec { command: command.to_vec(), ..ExecSpec::default() };
    let containers = engine.containers();
    let info = containers.exec_create(&id, spec)?;
    let run = async {
        let session = match containers.exec_start(&info.id, None).await {
            Ok(session) => session,
            // A program that is not there is an exit code, as for a shell.
            Err(error @ (ContainerError::CommandNotFound(_) | ContainerError::CommandNotExecutable(_))) => {
                return Ok(Outcome { code: error.exit_code(), output: error.to_string() });
            }
            Err(error) => return Err(error.into()),
        };
        let (_, mut output) = session.split();
        let (mut bytes, mut code) = (Vec::new(), 0);
        while let Some(piece) = output.next().await? {
            match piece {
                Output::Stdout(piece) | Output::Stderr(piece) => {
                    let room = MAX_OUTPUT.saturating_sub(bytes.len()).min(piece.len());
                    bytes.extend_from_slice(&piece[..room]);
                }
                Output::Exit(exit) => code = exit.code,
            }
        }
        Ok(Outcome { code, output: String::from_utf8_lossy(&bytes).into_owned() })
    };
    let Some(limit) = limit else { return run.await };
    if let Ok(done) = tokio::time::timeout(limit, run).await {
        return done;
    }
    if let Err(error) = containers.exec_kill(&info.id, "KILL").await {
        tracing::debug!(%error, container, "a command that took too long had ended by itself");
    }
    let command = command.first().cloned().unwrap_or_default();
    Err(ExecError::Timeout { command, after: limit })
}
