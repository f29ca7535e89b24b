//! One supervisor: services are named, restarted with back-off, stopped in order, and report a health.
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// How a service is, in words for `status`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum State {
    /// Not yet at work.
    Starting,
    /// At work; `detail` says what on.
    Healthy { /// One line.
        detail: String },
    /// Works less than it should: what is wrong and what to do, in one line each.
    Degraded { /// What is wrong.
        problem: String, /// What to do.
        remedy: String },
    /// Ended and waits to be restarted.
    Failed { /// The error.
        problem: String },
}

/// What a service is given: its stop signal and the means to say how it is. Cheap to clone.
#[derive(Clone)]
pub struct Context { /// Cancelled when the service must stop between two pieces of work.
    pub stop: CancellationToken, health: Arc<()> }
impl Context {
    /// Records the state shown by `status`.
    pub fn report(&self, _state: State) { todo!() }
    /// A context with no supervisor, for tests and one-shot commands.
    pub fn detached() -> Self { todo!() }
}
