//! What a registry may answer, and whether asking again helps.

use std::{io, path::PathBuf, time::Duration};

use crate::{content::Digest, reference::ImageRef};

/// Why a registry did not give, or take, what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// No such image.
    #[error("{registry} has no image {image}: check the name and the tag, or log in where it is private")]
    NotFound {
        /// Host.
        registry: String,
        /// What was asked for.
        image: ImageRef,
    },
    /// A blob that a manifest names is not there.
    #[error("{registry} lacks {digest} of {image}: the image there is incomplete; push it again")]
    BlobNotFound {
        /// Host.
        registry: String,
        /// Of which image.
        image: ImageRef,
        /// Which.
        digest: Digest,
    },
    /// It wants to know who asks.
    #[error("{registry} wants a login for {image}: `edge-agent image login {registry}`, or a pull secret")]
    Unauthorized {
        /// Host.
        registry: String,
        /// For what.
        image: String,
    },
    /// It knows who asks, and does not let them.
    #[error("{registry} refused these credentials for {image}: check user, password and their rights there")]
    Denied {
        /// Host.
        registry: String,
        /// For what.
        image: String,
    },
    /// Busy or down.
    #[error("{registry} answered HTTP {status} for {what}: it is busy or down; try again later")]
    Unavailable {
        /// Host.
        registry: String,
        /// For what.
        what: String,
        /// The status.
        status: u16,
        /// How long it asks to be left alone.
        retry_after: Option<Duration>,
    },
    /// The connection broke, or never came to be.
    #[error("cannot reach {registry}: {problem}")]
    Network {
        /// Host.
        registry: String,
        /// How.
        problem: String,
    },
    /// Nothing comes from it.
    #[error("{registry} does not answer: it hangs, or the network loses what it says; try again later")]
    Silent {
        /// Host.
        registry: String,
    },
    /// Its certificate is not trusted.
    #[error(
        "the certificate of {registry} is not trusted ({problem}): put its CA into /etc/docker/certs.d/{registry}/ca.crt, or name it in \
         engine.insecure if you accept anybody in its place"
    )]
    Tls {
        /// Host.
        registry: String,
        /// How.
        problem: String,
    },
    /// It speaks HTTP without TLS.
    #[error("{registry} does not speak TLS: name it in engine.insecure to use plain HTTP")]
    PlainHttp {
        /// Host.
        registry: String,
    },
    /// An answer that no registry should give.
    #[error("{registry} gave a wrong answer for {what}: {problem}")]
    Protocol {
        /// Host.
        registry: String,
        /// For what.
        what: String,
        /// How.
        problem: String,
    },
    /// The bytes are others than were asked for.
    #[error(
        "{registry} sent other bytes than {want} (they are {got}): something on the way, or the registry, is damaged"
    )]
    WrongDigest {
        /// Host.
        registry: String,
        /// Asked for.
        want: Digest,
        /// Sent.
        got: Digest,
    },
    /// A kind of document that cannot be read here.
    #[error(
        "{image} is of a kind that is not supported ({media_type}): build it again as an OCI or Docker schema 2 image"
    )]
    Unsupported {
        /// Which.
        image: ImageRef,
        /// Its kind.
        media_type: String,
    },
    /// A file of this machine.
    #[error("cannot read {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Stored credentials that cannot be used.
    #[error("{path}: {problem}")]
    Config {
        /// Of which file.
        path: PathBuf,
        /// Why.
        problem: String,
    },
}

impl RegistryError {
    /// Whether the same call, unchanged, may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Network { .. } | Self::Silent { .. })
    }

    /// How long the registry asked to be left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Unavailable { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// The word of it in the control API.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotFound { .. } | Self::BlobNotFound { .. } => "not_found",
            Self::Unauthorized { .. } | Self::Denied { .. } => "denied",
            Self::Unavailable { .. }
            | Self::Network { .. }
            | Self::Silent { .. }
            | Self::Tls { .. }
            | Self::PlainHttp { .. } => "unavailable",
            Self::Unsupported { .. } | Self::Config { .. } => "invalid",
            Self::Protocol { .. } | Self::WrongDigest { .. } | Self::File { .. } => "internal",
        }
    }
}
