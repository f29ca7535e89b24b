//! One supervisor: services are named, restarted with back-off, stopped in order, and report a health.
//!
//! Always true: an error, an early return and a panic of a service all mean "start again, later", and none of them
//! reaches another service. A service that fails again and again stays `Failed` between its tries and is tried for ever,
//! at most every five minutes: a board in a field has nobody who would start it.

#[cfg(panic = "abort")]
compile_error!("a panic must stay inside its service: build with panic = \"unwind\"");

mod parts;

use std::{
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use parts::{PartEnded, Parts};

/// How a service is, in words for `status`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum State {
    /// Not yet at work.
    Starting,
    /// At work.
    Healthy {
        /// One line: on what.
        detail: String,
    },
    /// Works less than it should.
    Degraded {
        /// What is wrong, in one line.
        problem: String,
        /// What to do, in one line.
        remedy: String,
    },
    /// Ended and waits to be restarted.
    Failed {
        /// The error.
        problem: String,
    },
}

impl State {
    /// Whether nothing needs anybody.
    pub fn is_healthy(&self) -> bool {
        matches!(self, Self::Starting | Self::Healthy { .. })
    }
}

/// One service as `status` shows it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ServiceHealth {
    /// Its name.
    pub name: String,
    /// How it is.
    #[serde(flatten)]
    pub state: State,
    /// Times it was started again.
    pub restarts: u64,
}

#[derive(Default)]
struct Entries {
    services: BTreeMap<&'static str, (State, u64)>,
}

/// All services' health. Cheap to clone.
#[derive(Clone, Default)]
pub struct Health(Arc<Mutex<Entries>>);

impl Health {
    /// Every service, by name.
    pub fn snapshot(&self) -> Vec<ServiceHealth> {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let service = |(name, (state, restarts)): (&&'static str, &(State, u64))| ServiceHealth {
            name: (*name).to_owned(),
            state: state.clone(),
            restarts: *restarts,
        };
        entries.services.iter().map(service).collect()
    }

    /// Sets the state of a service; logs what changed between well and unwell.
    pub fn set(&self, name: &'static str, state: State) {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = entries.services.entry(name).or_insert((State::Starting, 0));
        if entry.0 == state {
            return;
        }
        match &state {
            State::Degraded { problem, remedy } => tracing::warn!(service = name, problem, remedy, "service degraded"),
            State::Healthy { detail } if !entry.0.is_healthy() => {
                tracing::info!(service = name, detail, "service recovered");
            }
            _ => {}
        }
        entry.0 = state;
    }

    /// The service is no more.
    fn forget(&self, name: &'static str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).services.remove(name);
    }

    fn restarted(&self, name: &'static str) {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.services.entry(name).or_insert((State::Starting, 0)).1 += 1;
    }
}

/// What a service is given: its stop signal and the means to say how it is. Cheap to clone.
#[derive(Clone)]
pub struct Context {
    /// Cancelled when the service must stop between two pieces of work.
    pub stop: CancellationToken,
    name: &'static str,
    health: Health,
}

impl Context {
    /// Records the state shown by `status`.
    pub fn report(&self, state: State) {
        self.health.set(self.name, state);
    }

    /// Records that the service is at work.
    pub fn healthy(&self, detail: impl Into<String>) {
        self.report(State::Healthy { detail: detail.into() });
    }

    /// Records what is wrong and what to do.
    pub fn degraded(&self, problem: impl Into<String>, remedy: impl Into<String>) {
        self.report(State::Degraded { problem: problem.into(), remedy: remedy.into() });
    }

    /// The name the service was registered under.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// A context with no supervisor, for tests and one-shot commands.
    pub fn detached() -> Self {
        Self { stop: CancellationToken::new(), name: "detached", health: Health::default() }
    }
}

/// What a service's run ends with.
pub type ServiceResult = Result<(), Box<dyn std::error::Error + Send + Sync>>;
type Factory = Box<dyn FnMut(Context) -> Pin<Box<dyn Future<Output = ServiceResult> + Send>> + Send>;

/// Services in order of registration; they stop in reverse order.
#[derive(Default)]
pub struct Supervisor {
    services: Vec<(&'static str, Factory)>,
    health: Health,
}

impl Supervisor {
    /// No services yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The health of the services, for `status`.
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// Adds a service; `start` is called for every try.
    pub fn service<F, Fut, E>(&mut self, name: &'static str, mut start: F)
    where
        F: FnMut(Context) -> Fut + Send + 'static,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.health.set(name, State::Starting);
        let factory = move |context| {
            let run = start(context);
            Box::pin(async move { run.await.map_err(Into::into) }) as Pin<Box<dyn Future<Output = _> + Send>>
        };
        self.services.push((name, Box::new(factory)));
    }

    /// Runs until `stop` is cancelled, then stops the services one after the other, the last registered first, all
    /// within `grace`; what is still busy then is aborted.
    pub async fn run(self, stop: CancellationToken, grace: Duration) {
        let mut running = Vec::new();
        for (name, factory) in self.services {
            let token = CancellationToken::new();
            let context = Context { stop: token.clone(), name, health: self.health.clone() };
            let mut task = JoinSet::new();
            task.spawn(keep(context, factory));
            running.push((name, token, task));
        }
        stop.cancelled().await;
        let deadline = tokio::time::Instant::now() + grace;
        while let Some((name, token, mut task)) = running.pop() {
            token.cancel();
            if tokio::time::timeout_at(deadline, task.join_next()).await.is_err() {
                tracing::warn!(service = name, ?grace, "service still busy at the end of the grace time; aborted");
                task.shutdown().await;
            }
        }
    }
}

/// Keeps one service alive until it is told to stop.
async fn keep(context: Context, mut start: Factory) {
    let mut tries = 0u32;
    loop {
        let begun = Instant::now();
        let mut task = JoinSet::new(); // Aborts its task when dropped: nothing outlives its supervisor.
        task.spawn(start(context.clone()));
        let end = task.join_next().await;
        if context.stop.is_cancelled() {
            return;
        }
        let problem = match end {
            Some(Ok(Ok(()))) | None => "it ended by itself".to_owned(),
            Some(Ok(Err(error))) => chain(error.as_ref()),
            Some(Err(error)) => error.to_string(),
        };
        tries = if begun.elapsed() > Duration::from_secs(600) { 1 } else { tries.saturating_add(1) };
        let wait = backoff(tries, Duration::from_secs(1), Duration::from_secs(300));
        let service = context.name;
        tracing::error!(service, problem, tries, retry_in = ?wait, "service ended and will be started again");
        context.report(State::Failed { problem });
        context.health.restarted(service);
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = context.stop.cancelled() => return,
        }
    }
}

/// An error and its causes on one line.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// The wait before try number `tries` (from 1): doubling from `first` to `most`, of which a random half is taken off so
/// that many boards do not return at the same moment.
pub fn backoff(tries: u32, first: Duration, most: Duration) -> Duration {
    let full = first.saturating_mul(1u32.checked_shl(tries.saturating_sub(1).min(20)).unwrap_or(u32::MAX)).min(most);
    let mut random = [0; 4];
    // Without random bytes the jitter is missing, nothing else.
    let _ = ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut random);
    full / 2 + full.mul_f64(f64::from(u32::from_le_bytes(random)) / f64::from(u32::MAX) / 2.0)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn backoff_grows_and_is_bounded() {
        let second = Duration::from_secs(1);
        for tries in 1..100 {
            let wait = backoff(tries, second, 60 * second);
            let full = second.saturating_mul(1 << (tries - 1).min(20)).min(60 * second);
            assert!(wait >= full / 2 && wait <= full, "try {tries}: {wait:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_stays_inside_and_the_service_starts_again() {
        let tries = Arc::new(AtomicU32::new(0));
        let mut supervisor = Supervisor::new();
        let counted = tries.clone();
        supervisor.service("shaky", move |context: Context| {
            let tries = counted.clone();
            async move {
                assert!(tries.fetch_add(1, Ordering::SeqCst) >= 2, "not yet");
                context.healthy("at last");
                context.stop.cancelled().await;
                Ok::<_, std::io::Error>(())
            }
        });
        let health = supervisor.health();
        let stop = CancellationToken::new();
        let mut task = JoinSet::new();
        task.spawn(supervisor.run(stop.clone(), Duration::from_secs(1)));
        while health.snapshot()[0].state != (State::Healthy { detail: "at last".into() }) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(health.snapshot()[0].restarts, 2);
        stop.cancel();
        task.join_next().await.unwrap().unwrap();
    }
}
