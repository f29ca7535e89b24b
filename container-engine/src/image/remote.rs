//! The seam's two sides for real: a registry's repository, and the unpacked layers of `snapshot`.

use bytes::{Buf, Bytes};
use futures_util::{StreamExt, future::BoxFuture, stream};

use super::{
    manifest::Descriptor,
    seam::{Body, Failure, Layer, Layers, NEEDS_BELOW, Pieces, RawManifest, Remote, Unpacked},
};
use crate::{
    content::Digest,
    reference::ImageRef,
    registry::{Credentials, Registry, RegistryError},
    snapshot::{Limits, SnapshotError, Snapshots, Unpack, UnpackError},
};

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Self {
        let (code, transient, retry_after) = (error.code(), error.is_transient(), error.retry_after());
        Self { code, transient, retry_after, error: Box::new(error) }
    }
}

/// One repository of a registry.
pub(crate) struct Repository {
    pub registry: Registry,
    pub name: ImageRef,
    pub credentials: Credentials,
}

impl Remote for Repository {
    fn manifest<'a>(&'a self, name: &'a ImageRef) -> BoxFuture<'a, Result<RawManifest, Failure>> {
        Box::pin(async {
            let ask = || self.registry.manifest(name, &self.credentials);
            let manifest = match ask().await {
                Err(RegistryError::WrongDigest { .. }) => ask().await?,
                answer => answer?,
            };
            Ok(RawManifest { bytes: manifest.bytes, media_type: manifest.media_type, digest: manifest.digest })
        })
    }

    fn small<'a>(&'a self, blob: &'a Descriptor) -> BoxFuture<'a, Result<Bytes, Failure>> {
        Box::pin(async {
            let ask = || self.registry.small_blob(&self.name, blob, &self.credentials);
            // As with layers: wrong bytes once may be the way's fault.
            match ask().await {
                Err(RegistryError::WrongDigest { .. }) => Ok(ask().await?),
                answer => Ok(answer?),
            }
        })
    }

    fn blob<'a>(&'a self, blob: &'a Descriptor, from: u64) -> BoxFuture<'a, Result<Body, Failure>> {
        Box::pin(async move {
            let body = self.registry.blob(&self.name, blob, from, &self.credentials).await?;
            // A server that knows no ranges begins at 0: what is here already is passed over.
            let skip = from.saturating_sub(body.start());
            let pieces = stream::try_unfold((body, skip), |(mut body, mut skip)| async move {
                while let Some(mut piece) = body.next().await? {
                    let over = usize::try_from(skip).unwrap_or(usize::MAX).min(piece.len());
                    piece.advance(over);
                    skip -= over as u64;
                    if !piece.is_empty() {
                        return Ok(Some((piece, (body, skip))));
                    }
                }
                Ok(None)
            });
            Ok(pieces.boxed())
        })
    }
}

impl From<UnpackError> for Failure {
    fn from(error: UnpackError) -> Self {
        let code = if error.needs_parents() { NEEDS_BELOW } else { error.code() };
        Self { code, transient: error.is_transient(), retry_after: None, error: Box::new(error) }
    }
}

impl From<SnapshotError> for Failure {
    fn from(error: SnapshotError) -> Self {
        Self { code: error.code(), transient: error.is_transient(), retry_after: None, error: Box::new(error) }
    }
}

fn broken(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Failure {
    Failure { code: "internal", transient: true, retry_after: None, error: error.into() }
}

impl Layers for Snapshots {
    fn get(&self, diff_id: &Digest, below: &[Digest]) -> Option<Unpacked> {
        self.layer(diff_id, below).map(|layer| Unpacked { diff_id: layer.diff_id, bytes: layer.bytes })
    }

    fn unpack(&self, layer: Layer, mut pieces: Pieces) -> BoxFuture<'_, Result<Unpacked, Failure>> {
        Box::pin(async move {
            let below = layer.below.unwrap_or_default();
            let parents = below.iter().enumerate().map(|(n, it)| self.layer(it, &below[..n]));
            let parents = parents.collect::<Option<Vec<_>>>();
            let parents = parents.ok_or_else(|| broken("a layer below went away meanwhile: pull again"))?;
            let limits = Limits { bytes: layer.most.min(Limits::default().bytes), ..Limits::default() };
            let diff_id = Some(layer.diff_id);
            let mut unpacking = self.begin(Unpack { diff_id, declared: None, limits, parents }).await?;
            while let Some(piece) = pieces.recv().await {
                // The download broke: what was unpacked goes, what was downloaded stays.
                unpacking.write(&piece.map_err(broken)?).await?;
            }
            let layer = unpacking.finish().await?;
            Ok(Unpacked { diff_id: layer.diff_id, bytes: layer.bytes })
        })
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Unpacked>, Failure>> {
        let snapshots = self.clone();
        Box::pin(async {
            let layers = tokio::task::spawn_blocking(move || snapshots.layers()).await.map_err(broken)?;
            let layers = layers.map_err(broken)?.into_iter();
            Ok(layers.map(|layer| Unpacked { diff_id: layer.diff_id, bytes: layer.bytes }).collect())
        })
    }

    fn remove(&self, diff_id: Digest) -> BoxFuture<'_, Result<(), Failure>> {
        let snapshots = self.clone();
        let remove = move || {
            let layers = snapshots.layers().map_err(broken)?;
            for layer in layers.into_iter().filter(|it| it.diff_id == diff_id) {
                snapshots.remove_layer(&layer.key)?;
            }
            Ok(())
        };
        Box::pin(async { tokio::task::spawn_blocking(remove).await.map_err(broken)? })
    }
}
