//! What images need of a registry and of the unpacked layers, and no more; tests put their own in.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{future::BoxFuture, stream::BoxStream};
use tokio::sync::mpsc;

use super::manifest::Descriptor;
use crate::{content::Digest, reference::ImageRef};

/// A failure of the other side, as far as the pipeline cares.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct Failure {
    /// For the control socket.
    pub code: &'static str,
    /// Whether the same call may succeed later.
    pub transient: bool,
    /// What the other side asked to wait.
    pub retry_after: Option<Duration>,
    /// The whole story.
    #[source]
    pub error: Box<dyn std::error::Error + Send + Sync>,
}

/// A manifest or index as it came.
#[derive(Debug, Clone)]
pub(crate) struct RawManifest {
    pub bytes: Bytes,
    pub media_type: String,
    pub digest: Digest,
}

pub(crate) type Body = BoxStream<'static, Result<Bytes, Failure>>;

/// The `code` of a failed unpacking that succeeds once the layers below are there.
pub(crate) const NEEDS_BELOW: &str = "needs_below";

/// One repository of a registry, with the credentials for it.
pub(crate) trait Remote: Send + Sync {
    /// Fetches a manifest or index, tried again where that may help: that of the name, or another of its repository.
    fn manifest<'a>(&'a self, name: &'a ImageRef) -> BoxFuture<'a, Result<RawManifest, Failure>>;
    /// Fetches a small blob whole, tried again where that may help.
    fn small<'a>(&'a self, blob: &'a Descriptor) -> BoxFuture<'a, Result<Bytes, Failure>>;
    /// One attempt at a blob's bytes from `from` on.
    fn blob<'a>(&'a self, blob: &'a Descriptor, from: u64) -> BoxFuture<'a, Result<Body, Failure>>;
}

/// A layer to unpack.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    /// What its uncompressed bytes hash to.
    pub diff_id: Digest,
    /// The unpacked layers below it, lowest first, for hard links into them; absent until they are there.
    pub below: Option<Vec<Digest>>,
    /// Bytes that it may make.
    pub most: u64,
}

/// A layer that lies unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unpacked {
    pub diff_id: Digest,
    pub bytes: u64,
}

/// The bytes of a layer, compressed, in pieces; closed without its end when the download broke.
pub(crate) type Pieces = mpsc::Receiver<Result<Bytes, std::io::Error>>;

/// The unpacked layers.
pub(crate) trait Layers: Send + Sync {
    /// A whole layer that is good above the layers `below`; `None` where it is not here. Blocking.
    fn get(&self, diff_id: &Digest, below: &[Digest]) -> Option<Unpacked>;
    /// Unpacks; nothing of a failed or dropped try is left.
    fn unpack(&self, layer: Layer, pieces: Pieces) -> BoxFuture<'_, Result<Unpacked, Failure>>;
    /// All whole layers.
    fn list(&self) -> BoxFuture<'_, Result<Vec<Unpacked>, Failure>>;
    /// Removes one; `conflict` where something stands on it.
    fn remove(&self, diff_id: Digest) -> BoxFuture<'_, Result<(), Failure>>;
}
