//! What the volumes of a pod are once they are ready, and what their setting up needs to know of the node.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use container_engine::container::{Device, Mount};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// What volumes need to know of the node.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// The node's name.
    pub node: String,
    /// Its labels: local volumes are bound to some.
    pub labels: BTreeMap<String, String>,
    /// What pods may take: the limit of a container that has none, in downward API volumes.
    pub allocatable: BTreeMap<String, Quantity>,
}

/// The volumes of one pod, ready to be mounted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodMounts {
    /// By the volume's name in the pod.
    pub volumes: BTreeMap<String, Ready>,
    /// Groups that volumes ask for (`pv.beta.kubernetes.io/gid`): further groups of the pod's processes.
    pub groups: BTreeSet<u32>,
}

/// One volume that is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    /// What it is on the host.
    pub source: Source,
    /// It cannot be written to, whatever a container says.
    pub read_only: bool,
}

/// What a volume is on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A folder or file.
    Path {
        /// Where.
        path: PathBuf,
        /// Made as an empty folder by the first container, where it is missing: a `hostPath` of no type.
        create: bool,
    },
    /// An image, mounted when a container needs it.
    Image {
        /// Its name.
        reference: String,
        /// Where its files will be.
        path: PathBuf,
    },
    /// A block device, for `volumeDevices`.
    Device(PathBuf),
}

/// What one container mounts.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ContainerMounts {
    /// In the order of its `volumeMounts`.
    pub mounts: Vec<Mount>,
    /// Its `volumeDevices`.
    pub devices: Vec<Device>,
}

/// What a pod's volumes take of the disk and of memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// By the volume's name.
    pub volumes: BTreeMap<String, VolumeUsage>,
}

/// What one volume takes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VolumeUsage {
    /// Bytes.
    pub bytes: u64,
    /// Files and folders.
    pub inodes: u64,
    /// Bytes that its file system has; 0 where it is not known.
    pub capacity: u64,
    /// Bytes free in it.
    pub available: u64,
    /// Files it can have.
    pub inodes_total: u64,
    /// Files it can still get.
    pub inodes_free: u64,
    /// Bytes that it may take (`sizeLimit` of an `emptyDir`).
    pub limit: Option<u64>,
    /// It lies on the node's disk and counts as the pod's ephemeral storage.
    pub is_ephemeral: bool,
    /// The claim behind it.
    pub claim: Option<String>,
}
