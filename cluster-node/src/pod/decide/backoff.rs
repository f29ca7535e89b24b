//! How long a container that ended waits before it is started again: 10 s, doubled up to a limit.
//!
//! Measured from its end; forgotten once twice the limit has passed between the last start and an end.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Container;

use crate::pod::model::PodKey;

/// First wait, seconds.
const FIRST_S: u32 = 10;
/// Longest wait where the node says nothing, seconds.
pub const MAX_S: u32 = 300;

/// The wait of one container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// Seconds.
    pub wait_s: u32,
    /// When it was last raised.
    pub updated: Timestamp,
}

/// By what a wait is remembered: a change of image or resources begins anew.
pub fn key(pod: &PodKey, container: &Container) -> String {
    let image = container.image.as_deref().unwrap_or_default();
    let resources = serde_json::to_string(&container.resources).unwrap_or_default();
    format!("{}/{}/{}/{}/{image}/{resources}", pod.name, pod.namespace, pod.uid, container.name)
}

impl Backoff {
    /// The time before which a container that ended at `finished` is not started again.
    pub fn until(&self, finished: Timestamp, max_s: u32, now: Timestamp) -> Option<Timestamp> {
        let end = later(finished, self.wait_s);
        // An end in the future is a clock that was set back: no reason to wait for years.
        let bounded = end.min(later(now, self.wait_s));
        (!self.is_stale(finished, max_s) && now < bounded).then_some(bounded)
    }

    /// What is remembered once the container is started again.
    pub fn next(previous: Option<&Self>, finished: Timestamp, max_s: u32, now: Timestamp) -> Self {
        let max_s = limit(max_s);
        let wait_s = match previous {
            Some(backoff) if !backoff.is_stale(finished, max_s) => backoff.wait_s.saturating_mul(2).min(max_s),
            _ => FIRST_S.min(max_s),
        };
        Self { wait_s, updated: now }
    }

    fn is_stale(&self, finished: Timestamp, max_s: u32) -> bool {
        finished.duration_since(self.updated) > SignedDuration::from_secs(2 * i64::from(limit(max_s)))
    }
}

fn limit(max_s: u32) -> u32 {
    if max_s == 0 { MAX_S } else { max_s }
}

fn later(time: Timestamp, seconds: u32) -> Timestamp {
    time.checked_add(SignedDuration::from_secs(i64::from(seconds))).unwrap_or(Timestamp::MAX)
}

/// As Go prints a duration of whole seconds.
pub fn go_duration(seconds: u32) -> String {
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{rest}s"),
        (0, _) => format!("{minutes}m{rest}s"),
        _ => format!("{hours}h{minutes}m{rest}s"),
    }
}
