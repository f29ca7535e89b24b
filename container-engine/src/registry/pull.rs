//! Fetching: manifests whole, blobs as streams from an offset.

use std::time::Duration;

use board::tasks::backoff;
use bytes::Bytes;
use reqwest::{Response, StatusCode, header};

use super::{
    Credentials, Descriptor, Document, DocumentError, IMAGE_TYPES, INDEX_TYPES, MAX_MANIFEST, Registry, RegistryError,
    client::Ask, endpoint::Endpoint,
};
use crate::{content::Digest, reference::ImageRef};

/// Longest wait between two tries of a blob.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Tries of a blob in a row that bring no byte, before it is given up.
const BARREN_TRIES: u32 = 6;
/// Names of a page of tags, and pages that are read.
const TAGS: (usize, usize) = (1000, 50);

/// A manifest or index as a registry gave it.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// Its bytes, which have `digest`.
    pub bytes: Bytes,
    /// Its kind.
    pub media_type: String,
    /// Of the bytes.
    pub digest: Digest,
    /// What it says.
    pub document: Document,
    /// The host that gave it.
    pub source: String,
}

/// The bytes of a blob, from an offset on, of one connection. Not yet compared with a digest.
pub struct BlobStream {
    answer: Response,
    endpoint: Endpoint,
    registry: Registry,
    start: u64,
    /// Bytes that are still to come.
    left: u64,
}

impl std::fmt::Debug for BlobStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlobStream").field("start", &self.start).finish_non_exhaustive()
    }
}

impl BlobStream {
    /// Offset of its first byte: what was asked for, or 0 where the server knows no ranges.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// The host that gives it.
    pub fn source(&self) -> &str {
        &self.endpoint.host
    }

    /// More bytes, at the configured bandwidth; `None` once all of the blob came, and never more than it has.
    pub async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        let registry = || self.endpoint.host.clone();
        let Some(chunk) = self.registry.chunk(&self.endpoint, &mut self.answer).await? else {
            let problem = || format!("the connection ended {} bytes early", self.left);
            return match self.left {
                0 => Ok(None),
                _ => Err(RegistryError::Network { registry: registry(), problem: problem() }),
            };
        };
        self.left = self.left.checked_sub(chunk.len() as u64).ok_or_else(|| RegistryError::Protocol {
            registry: registry(),
            what: "a blob".to_owned(),
            problem: "it has more bytes than the manifest says".to_owned(),
        })?;
        tokio::time::sleep(self.registry.0.throttle.sent(chunk.len())).await;
        Ok(Some(chunk))
    }
}

/// When to try a blob again: as long as tries bring bytes, for ever; without any, a few times.
#[derive(Debug, Default)]
pub struct Retry {
    barren: u32,
}

impl Retry {
    /// Some bytes came.
    pub fn progress(&mut self) {
        self.barren = 0;
    }

    /// Waits, or says that there is no use.
    pub async fn wait(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        self.barren += 1;
        if !error.is_transient() || self.barren >= BARREN_TRIES {
            return Err(error);
        }
        let wait =
            error.retry_after().unwrap_or_else(|| backoff(self.barren, Duration::from_millis(300), LONGEST_WAIT));
        tracing::info!(%error, retry_in = ?wait, "fetching a blob broke off and goes on");
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

fn pull_scope(image: &ImageRef) -> [String; 1] {
    [format!("repository:{}:pull", image.repository())]
}

impl Registry {
    /// Fetches what `image` names: from the mirrors in turn, then from the registry. Compared with the digest where it has one.
    pub async fn manifest(&self, image: &ImageRef, credentials: &Credentials) -> Result<Manifest, RegistryError> {
        let mut problem = None;
        for endpoint in self.0.places.of(image).await {
            match self.manifest_from(&endpoint, image, credentials).await {
                // What the registry itself says counts more than what a mirror says.
                Err(error) if endpoint.mirror => {
                    self.0.places.disappointed(&endpoint, &error);
                    problem = Some(error);
                }
                other => return other,
            }
        }
        // The registry itself is always among the places, so this is not reached.
        Err(problem
            .unwrap_or_else(|| RegistryError::NotFound { registry: image.registry().to_owned(), image: image.clone() }))
    }

    async fn manifest_from(
        &self,
        endpoint: &Endpoint,
        image: &ImageRef,
        credentials: &Credentials,
    ) -> Result<Manifest, RegistryError> {
        let url = format!("{}/v2/{}/manifests/{}", endpoint.base, image.repository(), image.version());
        let accept = [IMAGE_TYPES, INDEX_TYPES].concat().join(", ");
        let (scopes, what) = (pull_scope(image), format!("the manifest of {}", image.familiar()));
        let mut ask = Ask::new(image, &what, &scopes, credentials);
        if endpoint.mirror {
            ask = ask.once(); // There is another place.
        }
        let answer = self.send(endpoint, &ask, |client| client.get(&url).header(header::ACCEPT, &accept)).await?;
        let media_type = answer.headers().get(header::CONTENT_TYPE).and_then(|it| it.to_str().ok());
        let media_type = media_type.unwrap_or_default().split(';').next().unwrap_or_default().trim().to_owned();
        let bytes = self.whole(endpoint, answer, &what).await?;
        let got = Digest::of(&bytes);
        if let Some(want) = image.digest().filter(|want| *want != got) {
            return Err(RegistryError::WrongDigest { registry: endpoint.host.clone(), want, got });
        }
        let document = Document::parse(&bytes, &media_type).map_err(|error| match error {
            DocumentError::Unsupported(media_type) => RegistryError::Unsupported { image: image.clone(), media_type },
            DocumentError::Malformed(problem) => {
                RegistryError::Protocol { registry: endpoint.host.clone(), what: what.clone(), problem }
            }
        })?;
        let own = match &document {
            Document::Image(image) => image.media_type.clone(),
            Document::Index(index) => index.media_type.clone(),
        };
        let kinds = if matches!(document, Document::Image(_)) { IMAGE_TYPES } else { INDEX_TYPES };
        let media_type = own.unwrap_or(media_type);
        let media_type = if kinds.contains(&media_type.as_str()) { media_type } else { kinds[0].to_owned() };
        Ok(Manifest { bytes, media_type, digest: got, document, source: endpoint.host.clone() })
    }

    /// Opens a blob from byte `from` on; one try at each place. `Retry` says whether and when to try again.
    pub async fn blob(
        &self,
        image: &ImageRef,
        blob: &Descriptor,
        from: u64,
        credentials: &Credentials,
    ) -> Result<BlobStream, RegistryError> {
        let mut problem = None;
        for endpoint in self.0.places.of(image).await {
            // What a mirror gave once, and is wanted anew, was damaged: the registry itself is asked.
            if endpoint.mirror && from == 0 && !self.0.places.may_begin(&endpoint, blob.digest) {
                continue;
            }
            match self.blob_from(&endpoint, image, blob, from, credentials).await {
                Err(error) if endpoint.mirror => {
                    self.0.places.disappointed(&endpoint, &error);
                    problem = Some(error);
                }
                other => return other,
            }
        }
        let (registry, image) = (image.registry().to_owned(), image.clone());
        Err(problem.unwrap_or(RegistryError::BlobNotFound { registry, image, digest: blob.digest }))
    }

    async fn blob_from(
        &self,
        endpoint: &Endpoint,
        image: &ImageRef,
        blob: &Descriptor,
        from: u64,
        credentials: &Credentials,
    ) -> Result<BlobStream, RegistryError> {
        let url = format!("{}/v2/{}/blobs/{}", endpoint.base, image.repository(), blob.digest);
        let (scopes, what) = (pull_scope(image), format!("layer {} of {}", blob.digest, image.familiar()));
        let ask = Ask::new(image, &what, &scopes, credentials).once();
        let answer = self.send(endpoint, &ask, |client| {
            let request = client.get(&url);
            if from == 0 { request } else { request.header(header::RANGE, format!("bytes={from}-")) }
        });
        let answer = answer.await.map_err(|error| match error {
            RegistryError::NotFound { registry, image } => {
                RegistryError::BlobNotFound { registry, image, digest: blob.digest }
            }
            other => other,
        })?;
        let protocol =
            |problem: String| RegistryError::Protocol { registry: endpoint.host.clone(), what: what.clone(), problem };
        let (start, total) = match answer.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = answer.headers().get(header::CONTENT_RANGE).and_then(|it| it.to_str().ok());
                let range = range.and_then(content_range).ok_or_else(|| protocol("206 without a range".to_owned()))?;
                if range.0 != from {
                    return Err(protocol(format!("asked for bytes from {from}, it sends them from {}", range.0)));
                }
                (from, range.1)
            }
            StatusCode::OK => (0, answer.content_length()),
            status => return Err(protocol(format!("HTTP {}", status.as_u16()))),
        };
        if total.is_some_and(|total| total != blob.size) {
            return Err(protocol(format!("it has {} bytes, the manifest says {}", total.unwrap_or(0), blob.size)));
        }
        let left = blob.size.saturating_sub(start);
        Ok(BlobStream { answer, endpoint: endpoint.clone(), registry: self.clone(), start, left })
    }

    /// Fetches a small blob whole, such as a configuration; compared with its digest.
    pub async fn small_blob(
        &self,
        image: &ImageRef,
        blob: &Descriptor,
        credentials: &Credentials,
    ) -> Result<Bytes, RegistryError> {
        let (mut retry, mut damaged) = (Retry::default(), false);
        loop {
            match self.small_blob_once(image, blob, credentials).await {
                // Once more: on the way, or from another place, it may come whole.
                Err(RegistryError::WrongDigest { .. }) if !damaged => damaged = true,
                Err(error) => retry.wait(error).await?,
                bytes => return bytes,
            }
        }
    }

    async fn small_blob_once(
        &self,
        image: &ImageRef,
        blob: &Descriptor,
        credentials: &Credentials,
    ) -> Result<Bytes, RegistryError> {
        let what = format!("{} of {}", blob.digest, image.familiar());
        let registry = image.registry().to_owned();
        if blob.size > MAX_MANIFEST {
            let problem = format!("it has {} bytes, over the limit of {MAX_MANIFEST}", blob.size);
            return Err(RegistryError::Protocol { registry, what, problem });
        }
        let mut stream = self.blob(image, blob, 0, credentials).await?;
        let mut bytes = Vec::new();
        while let Some(chunk) = stream.next().await? {
            bytes.extend_from_slice(&chunk);
        }
        let got = Digest::of(&bytes);
        if got != blob.digest {
            return Err(RegistryError::WrongDigest { registry: stream.endpoint.host, want: blob.digest, got });
        }
        Ok(bytes.into())
    }

    /// Tags of a repository, up to a limit.
    pub async fn tags(&self, image: &ImageRef, credentials: &Credentials) -> Result<Vec<String>, RegistryError> {
        #[derive(serde::Deserialize)]
        struct Page {
            #[serde(default)]
            tags: Option<Vec<String>>,
        }
        let endpoint = self.0.places.registry(image).await;
        let (scopes, what) = (pull_scope(image), format!("the tags of {}", image.name()));
        let ask = Ask::new(image, &what, &scopes, credentials);
        let mut tags: Vec<String> = Vec::new();
        for _ in 0..TAGS.1 {
            let last = tags.last().map_or_else(String::new, |it| format!("&last={it}"));
            let url = format!("{}/v2/{}/tags/list?n={}{last}", endpoint.base, image.repository(), TAGS.0);
            let answer = self.send(&endpoint, &ask, |client| client.get(&url)).await?;
            let more = answer.headers().contains_key(header::LINK);
            let bytes = self.whole(&endpoint, answer, &what).await?;
            let page: Page = serde_json::from_slice(&bytes).map_err(|error| RegistryError::Protocol {
                registry: endpoint.host.clone(),
                what: what.clone(),
                problem: error.to_string(),
            })?;
            let page = page.tags.unwrap_or_default();
            let empty = page.is_empty();
            tags.extend(page);
            if !more || empty {
                break;
            }
        }
        Ok(tags)
    }

    /// Whether a registry accepts a login. `image` is any name at that registry.
    pub async fn login(&self, image: &ImageRef, credentials: &Credentials) -> Result<(), RegistryError> {
        let endpoint = self.0.places.registry(image).await;
        let url = format!("{}/v2/", endpoint.base);
        let what = format!("the login at {}", endpoint.host);
        let ask = Ask::new(image, &what, &[], credentials);
        self.send(&endpoint, &ask, |client| client.get(&url)).await.map(drop).map_err(|error| match error {
            RegistryError::NotFound { registry, .. } => {
                RegistryError::Protocol { registry, what: what.clone(), problem: "it is no registry".to_owned() }
            }
            other => other,
        })
    }
}

/// First byte and total of `bytes 5-9/10`.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, _) = range.split_once('-')?;
    Some((first.trim().parse().ok()?, total.trim().parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(content_range("bytes 5-9/*"), Some((5, None)));
        assert_eq!(content_range("bytes */10"), None);
        assert_eq!(content_range("items 5-9/10"), None);
    }
}
