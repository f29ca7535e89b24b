//! What one probe of one container does next: decided here, done in `prober`.
//!
//! Moments are spans since the agent began. Differs from the kubelet in two ways, both for sooner statuses: a new container
//! is probed at once when its initial delay is over or its startup probe succeeds, not at the next tick of a ticker; and
//! only containers that ran before the agent began get a random part of a period as a delay, for they are what would all
//! be probed in the same moment.

use std::time::Duration;

use k8s_openapi::api::core::v1::Probe;

use super::{Before, Kind, Life, Verdict};

/// Least span between two runs.
const MIN_PERIOD: Duration = Duration::from_secs(1);

/// What the pod asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spec {
    /// What it is for.
    pub kind: Kind,
    /// From the container's start to the first run.
    pub delay: Duration,
    /// From run to run.
    pub period: Duration,
    /// For one run.
    pub timeout: Duration,
    /// Failures in a row that count.
    pub failures: u32,
    /// Successes in a row that count.
    pub successes: u32,
}

impl Spec {
    /// With the defaults of the API, for static pods have not been through it.
    pub fn of(kind: Kind, probe: &Probe) -> Self {
        let number = |value: Option<i32>, default: u32| {
            value.and_then(|value| u32::try_from(value).ok()).filter(|value| *value > 0).unwrap_or(default)
        };
        let seconds = |value, default| Duration::from_secs(u64::from(number(value, default)));
        Self {
            kind,
            delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, 10).max(MIN_PERIOD),
            timeout: seconds(probe.timeout_seconds, 1),
            failures: number(probe.failure_threshold, 3),
            // More than one success is asked of readiness only; the API refuses it of the others.
            successes: if kind == Kind::Readiness { number(probe.success_threshold, 1) } else { 1 },
        }
    }
}

/// What the worker knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worker {
    spec: Spec,
    /// The container; empty: none yet.
    id: String,
    /// Nothing to do until there is another container.
    on_hold: bool,
    last: Option<bool>,
    in_a_row: u32,
    /// Not before.
    next: Duration,
}

/// What is there now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sight<'a> {
    /// The container; empty: none yet.
    pub id: &'a str,
    /// Where it is in its life.
    pub life: Life,
    /// What was known of it before the agent began.
    pub before: Option<Before>,
    /// The pod is being ended.
    pub deleting: bool,
    /// Its startup probe succeeded, or it has none.
    pub started: bool,
    /// How long it has run, where that can be told.
    pub age: Duration,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Run the probe, and tell [`Worker::outcome`].
    Run,
    /// Look again then, or when something changes.
    At(Duration),
    /// Look again when something changes.
    Idle,
    /// Never look again.
    End,
}

/// What came of a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// To be published of the container in sight.
    pub verdict: Option<Verdict>,
    /// What to do.
    pub next: Next,
}

impl Worker {
    /// One that has seen nothing.
    pub fn new(spec: Spec) -> Self {
        Self { spec, id: String::new(), on_hold: false, last: None, in_a_row: 0, next: Duration::ZERO }
    }

    /// What it was made for.
    pub fn spec(&self) -> Spec {
        self.spec
    }

    /// Looks. `random` is in 0..1.
    pub fn step(&mut self, sight: &Sight<'_>, now: Duration, random: f64) -> Step {
        let kind = self.spec.kind;
        if sight.id.is_empty() {
            return Step { verdict: None, next: Next::Idle };
        }
        let verdict = self.meet(sight, now, random);
        let next = |next| Step { verdict, next };
        if self.on_hold {
            return next(Next::Idle);
        }
        if !matches!(sight.life, Life::Running { .. }) {
            // Of liveness nothing is said: it would end a container that has ended by itself.
            let verdict = (kind != Kind::Liveness && sight.life == Life::Ended).then_some(Verdict::Failure);
            return Step { verdict, next: Next::Idle };
        }
        if sight.deleting && kind != Kind::Readiness {
            // A last word for a quiet end.
            return Step { verdict: Some(Verdict::Success), next: Next::End };
        }
        if sight.started == (kind == Kind::Startup) {
            return next(Next::Idle);
        }
        if now < self.next {
            return next(Next::At(self.next));
        }
        self.next = now + self.spec.period;
        next(Next::Run)
    }

    /// Another container than before: what is said of it, and when it is probed first.
    fn meet(&mut self, sight: &Sight<'_>, now: Duration, random: f64) -> Option<Verdict> {
        if self.id == sight.id {
            return None;
        }
        sight.id.clone_into(&mut self.id);
        (self.on_hold, self.last, self.in_a_row) = (false, None, 0);
        self.next = now;
        if sight.before.is_none() {
            // Seen as soon as it was there: the wall clock, which may jump, is not asked.
            self.next += self.spec.delay;
            return Some(match self.spec.kind {
                Kind::Liveness => Verdict::Success,
                Kind::Readiness => Verdict::Failure,
                Kind::Startup => Verdict::Unknown,
            });
        }
        let spread = self.spec.period.mul_f64(random.clamp(0.0, 1.0));
        self.next += self.spec.delay.saturating_sub(sight.age).max(spread);
        None
    }

    /// What a run came to; nothing where it could not be made. Returns what is to be published.
    pub fn outcome(&mut self, success: Option<bool>) -> Option<Verdict> {
        let success = success?;
        self.in_a_row = if self.last.replace(success) == Some(success) { self.in_a_row.saturating_add(1) } else { 1 };
        if self.in_a_row < if success { self.spec.successes } else { self.spec.failures } {
            return None;
        }
        let kind = self.spec.kind;
        if kind == Kind::Startup || (kind == Kind::Liveness && !success) {
            // The container will be ended, or has started for good: either way there is no more to ask it.
            (self.on_hold, self.in_a_row) = (true, 0);
        }
        Some(if success { Verdict::Success } else { Verdict::Failure })
    }
}

#[cfg(test)]
mod tests;
