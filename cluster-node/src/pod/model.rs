//! The words in which a pod is spoken of: what is wanted, what is seen, what is to be done.
//!
//! Always true: what is observed is derived from the engine, by labels; [`Memory`] holds only what an agent may forget at
//! its end without harm.
//!
//! Elsewhere: where pods come from (`source`), who acts (`runtime`), how it is decided (`decide`).

use std::{collections::BTreeMap, fmt, net::IpAddr, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodStatus};

/// Labels and annotations by which the engine's containers are known as a pod's.
pub mod label {
    /// Name of the pod.
    pub const POD_NAME: &str = "io.kubernetes.pod.name";
    /// Its namespace.
    pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
    /// Its uid.
    pub const POD_UID: &str = "io.kubernetes.pod.uid";
    /// Name of the container in the pod.
    pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
    /// How often it had been started before.
    pub const ATTEMPT: &str = "edge-agent/attempt";
    /// A [`Kind`](super::Kind).
    pub const KIND: &str = "edge-agent/kind";
    /// Of the definition it was made from.
    pub const HASH: &str = "edge-agent/hash";
    /// `NAME@DIGEST` of its image.
    pub const IMAGE: &str = "edge-agent/image";
    /// Its `terminationMessagePolicy`.
    pub const MESSAGE_POLICY: &str = "edge-agent/termination-message-policy";
    /// The start of the machine it was made in.
    pub const BOOT: &str = "edge-agent/boot";
    /// Which network of its pod it was made in.
    pub const SANDBOX: &str = "edge-agent/sandbox";
}

/// Which pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodKey {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Of this one among all that have had the name.
    pub uid: String,
}

impl PodKey {
    /// Of a pod as the API server sends it.
    pub fn of(pod: &Pod) -> Self {
        let meta = &pod.metadata;
        Self {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
        }
    }
}

/// As the kubelet's messages name a pod.
impl fmt::Display for PodKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}({})", self.name, self.namespace, self.uid)
    }
}

/// What a container is in its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Runs to its end before the next.
    Init,
    /// An init container that keeps running beside the others.
    Sidecar,
    /// What the pod is for.
    Regular,
    /// Added to a running pod by hand.
    Ephemeral,
}

impl Kind {
    /// In the label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Init => "init",
            Self::Sidecar => "sidecar",
            Self::Regular => "regular",
            Self::Ephemeral => "ephemeral",
        }
    }

    /// From the label.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Init, Self::Sidecar, Self::Regular, Self::Ephemeral].into_iter().find(|kind| kind.name() == text)
    }

    /// Of an init container.
    pub fn of_init(container: &Container) -> Self {
        if container.restart_policy.as_deref() == Some("Always") { Self::Sidecar } else { Self::Init }
    }
}

/// Why a pod must end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndCause {
    /// It was deleted.
    Deleted,
    /// This node ends it: eviction, shutdown.
    Node {
        /// Of the status, such as `Evicted`.
        reason: String,
        /// Of the status.
        message: String,
    },
}

/// The end that is wanted of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// Why.
    pub cause: EndCause,
    /// Since when.
    pub since: Timestamp,
    /// Instead of the pod's own grace, seconds.
    pub grace_s: Option<i64>,
}

/// What is wanted of a pod.
#[derive(Debug, Clone)]
pub struct Desired {
    /// As admitted on this node.
    pub pod: Arc<Pod>,
    /// From a manifest of this node.
    pub is_static: bool,
    /// It must end.
    pub ending: Option<Ending>,
}

/// The network of a pod as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sandbox {
    /// Of this one among all that the pod has had.
    pub id: String,
    /// Everything of it is there.
    pub ready: bool,
    /// It is the host's.
    pub host_network: bool,
    /// Its addresses, none on the host's network.
    pub addresses: Vec<IpAddr>,
}

/// Where one life of a container is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Life {
    /// Made, never started.
    Created,
    /// It runs.
    Running {
        /// Since.
        started: Timestamp,
    },
    /// It has ended, or could not be started.
    Exited(Exited),
    /// The engine cannot say.
    Unknown,
}

/// How a container ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exited {
    /// As a shell tells it.
    pub code: i32,
    /// `Completed`, `Error`, `OOMKilled`, `StartError` …
    pub reason: String,
    /// Its termination message.
    pub message: String,
    /// Absent where it was never started.
    pub started: Option<Timestamp>,
    /// End.
    pub finished: Timestamp,
}

/// One container of the engine that is a pod's.
#[derive(Debug, Clone, PartialEq)]
pub struct Instance {
    /// The engine's id.
    pub id: String,
    /// Name in the pod.
    pub name: String,
    /// Kind.
    pub kind: Kind,
    /// Lives before this one.
    pub attempt: u32,
    /// Of the definition it was made from.
    pub hash: String,
    /// Image as asked for.
    pub image: String,
    /// The image it was resolved to.
    pub image_id: String,
    /// When it was made.
    pub created: Timestamp,
    /// Where it is.
    pub life: Life,
    /// Limits it has.
    pub resources: container_engine::container::Resources,
    /// It was made before the present network of its pod, or before the machine was started the last time.
    pub before_sandbox: bool,
    /// It was stopped in order to be started again, whatever it ended with.
    pub is_due: bool,
}

impl Instance {
    /// Whether it has processes.
    pub fn is_running(&self) -> bool {
        matches!(self.life, Life::Running { .. })
    }
}

/// What the engine has of a pod.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    /// Its network.
    pub sandbox: Option<Sandbox>,
    /// All its containers, of all attempts.
    pub instances: Vec<Instance>,
}

impl Observed {
    /// The newest instance of a container.
    pub fn latest(&self, name: &str) -> Option<&Instance> {
        self.of(name).max_by_key(|instance| (instance.attempt, instance.created))
    }

    /// All instances of a container.
    pub fn of(&self, name: &str) -> impl Iterator<Item = &Instance> {
        self.instances.iter().filter(move |instance| instance.name == name)
    }
}

/// Why a container does not run: the reason and message of its waiting state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Problem {
    /// Such as `ErrImagePull`.
    pub reason: String,
    /// For people.
    pub message: String,
    /// Not tried again before.
    pub retry: Option<Timestamp>,
}

/// What a pod's worker remembers.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// The last status that was made.
    pub previous: Option<PodStatus>,
    /// By container.
    pub problems: BTreeMap<String, Problem>,
    /// By [`decide::backoff::key`](super::decide::backoff::key).
    pub backoffs: BTreeMap<String, super::decide::backoff::Backoff>,
    /// Instances that are being stopped, and the grace they were given, seconds.
    pub stopping: BTreeMap<String, i64>,
    /// The container that is being started, its hook included.
    pub starting: Option<String>,
}

/// What the node knows that pods depend on.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Addresses of the node, the preferred family first.
    pub host_addresses: Vec<IpAddr>,
    /// Memory of the node, bytes.
    pub memory: u64,
    /// Longest wait between restarts, seconds; 300 where 0.
    pub max_backoff_s: u32,
}

/// Why a container is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KillReason {
    /// Its definition changed, or nobody knows its state.
    Changed,
    /// The network of its pod has gone.
    Sandbox,
    /// Another container's end makes all of the pod start anew.
    RestartAll,
    /// Its `postStart` hook failed.
    Hook,
    /// Its liveness probe failed.
    Liveness,
    /// Its startup probe failed.
    Startup,
    /// The pod ends.
    PodEnds,
}

/// What is to be done next.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Make the pod's network.
    CreateSandbox,
    /// Take it away: nothing runs any more.
    RemoveSandbox,
    /// Make and start a container, with its image and hook.
    Start {
        /// Name in the pod.
        container: String,
        /// Kind.
        kind: Kind,
        /// Lives before this one.
        attempt: u32,
    },
    /// It crashed and must wait: the problem is to be remembered and told.
    Wait {
        /// Name in the pod.
        container: String,
        /// `CrashLoopBackOff`, with the time of the next try.
        problem: Problem,
    },
    /// Stop an instance, with its hook before the end.
    Kill {
        /// Which.
        id: String,
        /// Name in the pod.
        container: String,
        /// Why.
        reason: KillReason,
        /// Of the event.
        message: String,
        /// Seconds, the hook's included.
        grace_s: i64,
        /// It is to be started again, whatever it ends with.
        is_due: bool,
    },
    /// Change the limits of a running instance.
    Resize {
        /// Which.
        id: String,
        /// Name in the pod.
        container: String,
        /// The limits it must have.
        resources: Box<container_engine::container::Resources>,
    },
    /// Remove an instance that is over.
    Remove {
        /// Which.
        id: String,
    },
}
