//! What this server needs to know of pods, and no more. `pod::Pods` has it.

use std::{path::PathBuf, sync::Arc};

use container_engine::container::ContainerId;
use k8s_openapi::api::core::v1::Pod;

/// One attempt of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// The engine's id.
    pub id: ContainerId,
    /// Number of the attempt, from 0.
    pub attempt: u32,
    /// Whether it has processes.
    pub running: bool,
}

/// The attempts of one container of a pod that the engine still has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Instances {
    /// The newest that was started, whether it runs or has ended.
    pub last: Option<Instance>,
    /// The one before it.
    pub previous: Option<Instance>,
}

/// A volume of a pod that takes room of the node: `emptyDir`, projected files and the like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeDir {
    /// Its name in the pod.
    pub name: String,
    /// Where it lies.
    pub path: PathBuf,
    /// The claim that it comes from, `(namespace, name)`.
    pub claim: Option<(String, String)>,
}

/// The pods of this node. Nothing here waits: everything is in memory.
pub trait Directory: Send + Sync + 'static {
    /// All pods, with the status as it is known here; a static pod under the name and uid of its own.
    fn pods(&self) -> Vec<Arc<Pod>>;

    /// The one of that name.
    fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>>;

    /// Whether the uid in a request means this pod: its own, or that of its mirror.
    fn is_uid_of(&self, pod: &Pod, uid: &str) -> bool {
        pod.metadata.uid.as_deref() == Some(uid)
    }

    /// Attempts of a container of any kind (init, regular, ephemeral) of the pod with that uid.
    fn instances(&self, uid: &str, container: &str) -> Instances;

    /// The pod's network namespace: `Err` where it has none now, `Ok(None)` where it is the host's.
    fn network(&self, uid: &str) -> Result<Option<PathBuf>, NoNetwork>;

    /// Its volumes.
    fn volumes(&self, uid: &str) -> Vec<VolumeDir>;

    /// What holds up the loop that syncs pods, in one line; for `/healthz`.
    fn problem(&self) -> Option<String>;
}

/// A pod has no network at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the pod has no network now: it has not been started, or has ended")]
pub struct NoNetwork;
