//! The seam's two sides for real: a registry's repository, and the unpacked layers of `snapshot`.

use bytes::{Buf, Bytes};
use futures_util::{StreamExt, future::BoxFuture, stream};

use super::{
    manifest::Descriptor,
    seam::{Body, Failure, RawManifest, Remote},
};
use crate::{
    reference::ImageRef,
    registry::{Credentials, Registry, RegistryError},
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
            let manifest = self.registry.manifest(name, &self.credentials).await?;
            Ok(RawManifest { bytes: manifest.bytes, media_type: manifest.media_type, digest: manifest.digest })
        })
    }

    fn small<'a>(&'a self, blob: &'a Descriptor) -> BoxFuture<'a, Result<Bytes, Failure>> {
        Box::pin(async { Ok(self.registry.small_blob(&self.name, blob, &self.credentials).await?) })
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
