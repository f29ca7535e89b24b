//! Why a volume is not ready, in the kubelet's words where it has some.

use std::{io, path::PathBuf};

use crate::object::ObjectError;

/// Why a pod's volumes are not ready.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// One volume could not be set up.
    #[error("MountVolume.SetUp failed for volume \"{volume}\" : {problem}")]
    SetUp {
        /// The volume's name in the pod.
        volume: String,
        /// Why.
        problem: Problem,
    },
    /// A block device could not be given.
    #[error("MapVolume.SetUpDevice failed for volume \"{volume}\" : {problem}")]
    Map {
        /// The volume's name in the pod.
        volume: String,
        /// Why.
        problem: Problem,
    },
    /// A container mounts a volume that the pod does not have.
    #[error("volume \"{volume}\" of container \"{container}\" is not among the pod's volumes")]
    NoSuchVolume {
        /// The container.
        container: String,
        /// The volume.
        volume: String,
    },
    /// A `subPath` cannot be used.
    #[error("failed to prepare subPath for volumeMount \"{volume}\" of container \"{container}\": {problem}")]
    SubPath {
        /// The container.
        container: String,
        /// The volume.
        volume: String,
        /// Why.
        problem: Problem,
    },
    /// Something of a pod that is gone could not be taken away.
    #[error("UnmountVolume.TearDown failed for {path}: {problem}", path = path.display())]
    TearDown {
        /// What.
        path: PathBuf,
        /// Why.
        problem: Problem,
    },
}

/// What was wrong with one volume.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// An object that it is made of is not to be had.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// It asks for what cannot be: nobody but the pod's author can mend it.
    #[error("{0}")]
    Invalid(String),
    /// It is not there yet.
    #[error("{0}")]
    Missing(String),
    /// It needs what this node, or its kernel, does not have.
    #[error("{0}")]
    Unsupported(String),
    /// The system refused.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Problem {
    /// For `map_err`.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    fn is_transient(&self) -> bool {
        match self {
            Self::Object(_) | Self::Missing(_) | Self::Io { .. } => true,
            Self::Invalid(_) | Self::Unsupported(_) => false,
        }
    }
}

impl VolumeError {
    /// The event's reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::SetUp { .. } | Self::NoSuchVolume { .. } | Self::SubPath { .. } => "FailedMount",
            Self::Map { .. } => "FailedMapVolume",
            Self::TearDown { .. } => "FailedUnMount",
        }
    }

    /// Whether the same call may succeed later: what is missing may come, what the system refused may be mended.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::SetUp { problem, .. }
            | Self::Map { problem, .. }
            | Self::SubPath { problem, .. }
            | Self::TearDown { problem, .. } => problem.is_transient(),
            Self::NoSuchVolume { .. } => false,
        }
    }
}
