//! What goes wrong with layers and snapshots, and whether trying again helps.

use std::{io, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::content::Digest;

/// Why a layer was not unpacked. Nothing of the attempt is left on disk.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The layer itself is at fault, or the disk: what the child found.
    #[error("layer {layer}: {fault}")]
    Layer {
        /// Its diff id, or where it came from.
        layer: String,
        /// What was found.
        fault: Fault,
    },
    /// The content is not what was asked for.
    #[error(
        "layer {expected} unpacks to {found}: the configuration and the layer are of two images; pull it again, and tell the registry's owner if it stays"
    )]
    WrongDiffId {
        /// Asked for.
        expected: Digest,
        /// What it is.
        found: Digest,
    },
    /// The child ended without a word.
    #[error("layer {layer}: the process that unpacks it ended {how}; {says}")]
    Child {
        /// Which.
        layer: String,
        /// Exit status.
        how: String,
        /// What it wrote last.
        says: String,
    },
    /// The agent's side failed.
    #[error("cannot {step} for layer {layer} in {path}")]
    Io {
        /// Which.
        layer: String,
        /// What was tried.
        step: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl UnpackError {
    /// Whether the same layer may succeed later: after room was made, or the machine recovered.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Layer { fault, .. } => {
                matches!(fault.kind, FaultKind::NoSpace | FaultKind::Io | FaultKind::Truncated)
            }
            Self::WrongDiffId { .. } => false,
            Self::Child { .. } | Self::Io { .. } => true,
        }
    }

    /// Whether the layer must be unpacked again with the layers below it at hand (`Unpack::parents`).
    pub fn needs_parents(&self) -> bool {
        matches!(self, Self::Layer { fault: Fault { kind: FaultKind::NeedsParents, .. }, .. })
    }

    /// Code on the control socket.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Layer { fault, .. } => match fault.kind {
                FaultKind::NoSpace | FaultKind::Quota | FaultKind::Entries => "no_space",
                FaultKind::Io => "internal",
                _ => "invalid",
            },
            Self::WrongDiffId { .. } => "invalid",
            Self::Child { .. } | Self::Io { .. } => "internal",
        }
    }
}

/// What the child found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// What sort of thing.
    pub kind: FaultKind,
    /// The archive entry it happened at; empty before the first.
    #[serde(default)]
    pub entry: String,
    /// In words, with what to do.
    pub message: String,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.entry.is_empty() {
            write!(f, "entry {:?}: ", self.entry)?;
        }
        f.write_str(&self.message)
    }
}

/// Sorts of faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// No archive, or a damaged one.
    Corrupt,
    /// It ends early.
    Truncated,
    /// A name leads out of the tree.
    Escape,
    /// More bytes than allowed.
    Quota,
    /// More entries than allowed.
    Entries,
    /// A name, header or attribute over its limit.
    Limit,
    /// A kind of entry that no file system has.
    Unsupported,
    /// A hard link to a file of a lower layer.
    NeedsParents,
    /// The disk is full.
    NoSpace,
    /// The file system refused.
    Io,
    /// The child could not confine itself.
    Confinement,
}

/// Why a snapshot could not be made, mounted, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// No such snapshot.
    #[error("there is no snapshot {0}")]
    NotFound(String),
    /// There is one of that name.
    #[error("there is a snapshot {0} already; remove it first")]
    Exists(String),
    /// Not a name.
    #[error("{0:?} is no name of a snapshot: up to 128 letters, digits, '.', '_' or '-'")]
    Id(String),
    /// A layer is missing or incomplete.
    #[error("layer {layer} of snapshot {id} is not unpacked; pull the image again")]
    MissingLayer {
        /// Which snapshot.
        id: String,
        /// Which layer.
        layer: String,
    },
    /// A layer is in use.
    #[error("layer {layer} is below snapshot {id}; remove that first")]
    LayerInUse {
        /// Which layer.
        layer: String,
        /// By whom.
        id: String,
    },
    /// More was written than allowed.
    #[error("snapshot {id} holds {used} bytes, over its quota of {quota}")]
    OverQuota {
        /// Which.
        id: String,
        /// Bytes.
        used: u64,
        /// Bytes.
        quota: u64,
    },
    /// Neither overlay nor a copy could be made.
    #[error("cannot {step} snapshot {id} at {path}")]
    Io {
        /// Which.
        id: String,
        /// What was tried.
        step: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The new layer.
    #[error("the changes of snapshot {id} could not be made a layer")]
    Commit {
        /// Which.
        id: String,
        /// Why.
        source: UnpackError,
    },
}

impl SnapshotError {
    /// Code on the control socket.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotFound(_) | Self::MissingLayer { .. } => "not_found",
            Self::Exists(_) | Self::LayerInUse { .. } => "conflict",
            Self::Id(_) => "invalid",
            Self::OverQuota { .. } => "no_space",
            Self::Io { source, .. } if source.raw_os_error() == Some(libc::ENOSPC) => "no_space",
            Self::Io { .. } => "internal",
            Self::Commit { source, .. } => source.code(),
        }
    }

    /// Whether the same call may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Io { source, .. } => {
                matches!(source.raw_os_error(), Some(libc::ENOSPC | libc::EBUSY | libc::ENOMEM | libc::EMFILE))
            }
            Self::Commit { source, .. } => source.is_transient(),
            _ => false,
        }
    }
}
