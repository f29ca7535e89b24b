//! Probes of containers: exec, HTTP, TCP and gRPC; and the hooks of a container's life, which speak in the same ways.
//!
//! The pod's worker owns a [`PodProbes`] and tells it what is there ([`PodProbes::sync`]); it is told what came out by a
//! [`View`] that it can wait for. What to do when is decided in [`worker`], which does nothing.
//!
//! Always true:
//! - A container that was ready and started in the status that was known before the agent began stays so until a probe
//!   says otherwise.
//! - A probe that could not be made (no such port, no answer of the engine) changes nothing.
//! - What a container answers is read up to 10 KiB and is never in a log.
//!
//! Elsewhere: what a failure of a container leads to (`pod::decide`); events (`event`).

pub mod exec;
mod grpc;
pub mod hook;
pub mod http;
mod metrics;
pub mod port;
mod prober;
mod run;
mod tls;
pub use metrics::metrics;
pub(crate) use tls::config as anybody;
mod view;
pub mod worker;

use std::{collections::BTreeMap, fmt, net::IpAddr, sync::Arc};

use k8s_openapi::api::core::v1::{Container, Pod, Probe};

pub use prober::{Count, PodProbes, Prober};
pub use view::{Probed, View};

/// Most that is kept of an answer or of output, bytes.
pub const MAX_OUTPUT: usize = 10 << 10;

/// What a probe is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Failure means: start it again.
    Liveness,
    /// Failure means: no traffic.
    Readiness,
    /// Until it succeeds, the other two wait; failure means: start it again.
    Startup,
}

impl Kind {
    /// All of them, the one that others wait for first.
    pub const ALL: [Self; 3] = [Self::Startup, Self::Readiness, Self::Liveness];

    /// The container's probe of this kind.
    pub fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            Self::Liveness => container.liveness_probe.as_ref(),
            Self::Readiness => container.readiness_probe.as_ref(),
            Self::Startup => container.startup_probe.as_ref(),
        }
    }

    /// In messages about a container that is ended for it: `liveness`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Liveness => "liveness",
            Self::Readiness => "readiness",
            Self::Startup => "startup",
        }
    }
}

impl fmt::Display for Kind {
    /// As the kubelet's events and metrics have it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
            Self::Startup => "Startup",
        })
    }
}

/// What probes of one kind have come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is well.
    Success,
    /// It is not.
    Failure,
    /// Not yet known: of a startup probe before its thresholds.
    Unknown,
}

/// Where a container is in its life, as far as probes care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// It has no process yet.
    Waiting,
    /// Its process runs, and its `postStart` hook is done.
    Running {
        /// Wall clock, nanoseconds since 1970 UTC.
        started_ns: i64,
    },
    /// Its process has ended.
    Ended,
}

/// What the last status that was known before said of the same container (of the same id).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Before {
    /// `started`.
    pub started: bool,
    /// `ready`.
    pub ready: bool,
}

/// A container as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The engine's id: of another attempt it is another.
    pub id: String,
    /// Where it is in its life.
    pub life: Life,
    /// Only where the last status known had this very container.
    pub before: Option<Before>,
}

/// A pod as it is now.
#[derive(Debug, Clone)]
pub struct Scene {
    /// The pod.
    pub pod: Arc<Pod>,
    /// Where probes go that name no host: the pod's address, or the node's for a pod in the host's network.
    pub ip: Option<IpAddr>,
    /// It is being ended: no container is started again any more.
    pub deleting: bool,
    /// Its newest containers, by name.
    pub containers: BTreeMap<String, Seen>,
}

/// Who is told of what a probe met: the recorder of events.
pub trait Witness: Send + Sync + 'static {
    /// A warning about a container (`field_path` as in `spec.containers{name}`). Never waits.
    fn warning(&self, pod: &Pod, field_path: &str, reason: &'static str, message: String);
}

/// `spec.containers{name}`, or `spec.initContainers{name}` for one that is begun before.
pub fn field_path(pod: &Pod, container: &str) -> String {
    let init = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten()).any(|one| one.name == container);
    format!("spec.{}{{{container}}}", if init { "initContainers" } else { "containers" })
}

/// Containers of a pod that have probes: regular ones, and init containers that go on beside them.
fn probed(pod: &Pod) -> impl Iterator<Item = &Container> {
    let spec = pod.spec.iter();
    let sidecars = spec.clone().flat_map(|spec| spec.init_containers.iter().flatten());
    let sidecars = sidecars.filter(|one| one.restart_policy.as_deref() == Some("Always"));
    spec.flat_map(|spec| &spec.containers).chain(sidecars)
}

/// Seconds that a container ended for this kind of probe has, where the probe has a say of its own.
pub fn grace_period_s(container: &Container, kind: Kind) -> Option<i64> {
    kind.of(container).and_then(|probe| probe.termination_grace_period_seconds)
}

/// The message of the event `Killing` and the reason in the log when a container is ended for a probe.
pub fn kill_message(container: &str, kind: Kind, restarts: bool) -> String {
    let then = if restarts { ", will be restarted" } else { "" };
    format!("Container {container} failed {} probe{then}", kind.word())
}
