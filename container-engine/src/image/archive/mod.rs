//! Images as one file: `save` writes Docker archives and OCI layouts, `load` reads both, and Docker's oldest form too.
//!
//! What `save` writes by default is what Docker writes since 25: an OCI layout with `manifest.json` beside, which every
//! Docker, podman and skopeo reads. Blobs go out as they lie on disk, compressed or not, and come in through the ingest of
//! `content`, so that neither way holds more than a piece of one in memory.
//!
//! Elsewhere: headers of the archive (`tarball`), the three ways to say what is in it (`listing`).

mod listing;
mod load;
mod save;
mod tarball;
#[cfg(test)]
mod tests;

use std::{io, path::PathBuf};

use serde::{Deserialize, Serialize};

pub use load::{LoadEvent, LoadRequest, Loaded};

use super::{ImageError, PullError, RecordError, manifest::DocumentError};
use crate::content::{ContentError, Digest};

#[cfg(fuzzing)]
pub use listing::fuzz;

/// Which form `save` writes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// As `docker save`.
    #[default]
    DockerArchive,
    /// An OCI layout and nothing else.
    OciArchive,
}

/// Why images were not saved or loaded.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// An image is not here or not usable.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The archive is not one, or says what cannot be.
    #[error("the archive cannot be loaded: {problem}")]
    Invalid {
        /// What is wrong.
        problem: String,
    },
    /// A blob that is not here in the form that is saved.
    #[error("layer {layer} of {image} is here in its unpacked form only: pull the image again, then save")]
    Missing {
        /// Which.
        layer: Digest,
        /// Of which image.
        image: String,
    },
    /// The archive's reader or writer failed.
    #[error("cannot {action} the archive")]
    Stream {
        /// `read` or `write`.
        action: &'static str,
        /// Why.
        source: io::Error,
    },
    /// No image in it runs here.
    #[error("{image} in the archive is for {has}, and {want} is needed: ask for that platform with --platform")]
    Platform {
        /// Which.
        image: String,
        /// What it is for.
        has: String,
        /// What is needed.
        want: String,
    },
    /// The disk, or the quota, is full.
    #[error(
        "{path} has no room left for the archive ({free} bytes for images): remove images, raise engine.quota or grow the disk"
    )]
    NoSpace {
        /// Where.
        path: PathBuf,
        /// Bytes that images may still take.
        free: u64,
    },
    /// A blob.
    #[error("{0}")]
    Content(ContentError),
    /// A manifest or configuration.
    #[error("the archive cannot be loaded: {0}")]
    Document(#[from] DocumentError),
    /// A layer did not unpack.
    #[error(transparent)]
    Layer(Box<PullError>),
    /// The name was not recorded.
    #[error(transparent)]
    Record(#[from] RecordError),
}

impl ArchiveError {
    /// For the control socket.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Image(error) => error.code(),
            Self::Invalid { .. } | Self::Document(_) => "invalid",
            Self::Missing { .. } => "not_found",
            Self::Stream { .. } | Self::Record(_) => "internal",
            Self::Platform { .. } => "platform",
            Self::NoSpace { .. } => "no_space",
            Self::Content(error) => error.code(),
            Self::Layer(error) => error.code(),
        }
    }

    /// Whether the same call may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Image(error) => error.is_transient(),
            Self::Stream { .. } | Self::NoSpace { .. } | Self::Record(_) => true,
            Self::Content(error) => error.is_transient(),
            Self::Layer(error) => error.is_transient(),
            Self::Invalid { .. } | Self::Missing { .. } | Self::Platform { .. } | Self::Document(_) => false,
        }
    }
}

impl From<PullError> for ArchiveError {
    fn from(error: PullError) -> Self {
        Self::Layer(Box::new(error))
    }
}

impl From<ContentError> for ArchiveError {
    fn from(error: ContentError) -> Self {
        match error {
            ContentError::NoSpace { path, free } => Self::NoSpace { path, free },
            error => Self::Content(error),
        }
    }
}

fn invalid(problem: impl Into<String>) -> ArchiveError {
    ArchiveError::Invalid { problem: problem.into() }
}
