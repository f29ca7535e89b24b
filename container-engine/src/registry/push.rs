//! Sending: blobs that are not there yet, mounted from another repository or uploaded in parts that survive a cut; manifests last.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
    sync::Arc,
};

use bytes::Bytes;
use reqwest::{Body, Response, StatusCode, header};

use super::{
    Credentials, Descriptor, Registry, RegistryError,
    client::{Ask, Endpoint},
    pull::Retry,
};
use crate::{content::Digest, reference::ImageRef};

/// Read and sent at once.
const PIECE: usize = 128 << 10;
/// Up to this size a blob goes in one request.
const MONOLITHIC: u64 = 1 << 20;

/// How a blob got there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// It was there already.
    Existed,
    /// Taken from another repository of the same registry.
    Mounted,
    /// Sent.
    Uploaded,
}

/// Told with the number of bytes that are at the registry.
pub type Progress = Arc<dyn Fn(u64) + Send + Sync>;

fn scopes(image: &ImageRef, mount_from: &[String]) -> Vec<String> {
    let own = format!("repository:{}:pull,push", image.repository());
    let others = mount_from.iter().map(|name| format!("repository:{name}:pull"));
    [own].into_iter().chain(others).collect()
}

impl Registry {
    /// Sees to it that a blob, which lies in `file`, is in the image's repository.
    ///
    /// * `mount_from`: repositories of the same registry that may have it.
    /// * Cancelled: the upload is left to the registry, which forgets it after some time.
    pub async fn push_blob(
        &self,
        image: &ImageRef,
        blob: &Descriptor,
        file: &Path,
        mount_from: &[String],
        credentials: &Credentials,
        progress: Progress,
    ) -> Result<Pushed, RegistryError> {
        let endpoint = self.registry(image).await;
        let what = format!("blob {} of {}", blob.digest, image.familiar());
        let scopes = scopes(image, mount_from);
        let upload = Upload { registry: self, endpoint, image, blob, file, what, scopes, credentials, progress };
        if upload.exists().await? {
            return Ok(Pushed::Existed);
        }
        for from in mount_from {
            if let Begun::Mounted = upload.begin(Some(from)).await? {
                return Ok(Pushed::Mounted);
            }
        }
        upload.run().await.map(|()| Pushed::Uploaded)
    }

    /// Puts a manifest or index under the image's tag or digest; returns the digest that the registry knows it by.
    pub async fn push_manifest(
        &self,
        image: &ImageRef,
        bytes: Bytes,
        media_type: &str,
        credentials: &Credentials,
    ) -> Result<Digest, RegistryError> {
        let endpoint = self.registry(image).await;
        let url = format!("{}/v2/{}/manifests/{}", endpoint.base, image.repository(), image.version());
        let (what, scopes) = (format!("the manifest of {}", image.familiar()), scopes(image, &[]));
        let ask = Ask::new(image, &what, &scopes, credentials);
        let answer = self.send(&endpoint, &ask, |client| {
            client.put(&url).header(header::CONTENT_TYPE, media_type).body(bytes.clone())
        });
        let answer = answer.await?;
        let own = Digest::of(&bytes);
        let told = answer.headers().get("docker-content-digest").and_then(|it| it.to_str().ok()?.parse().ok());
        match told {
            Some(got) if got != own => Err(RegistryError::WrongDigest { registry: endpoint.host, want: own, got }),
            _ => Ok(own),
        }
    }
}

/// One blob on its way.
struct Upload<'a> {
    registry: &'a Registry,
    endpoint: Endpoint,
    image: &'a ImageRef,
    blob: &'a Descriptor,
    file: &'a Path,
    what: String,
    scopes: Vec<String>,
    credentials: &'a Credentials,
    progress: Progress,
}

enum Begun {
    Mounted,
    /// Where the bytes go.
    Location(String),
}

impl Upload<'_> {
    fn ask(&self) -> Ask<'_> {
        Ask::new(self.image, &self.what, &self.scopes, self.credentials)
    }

    fn protocol(&self, problem: &str) -> RegistryError {
        let (registry, what) = (self.endpoint.host.clone(), self.what.clone());
        RegistryError::Protocol { registry, what, problem: problem.to_owned() }
    }

    async fn exists(&self) -> Result<bool, RegistryError> {
        let url = format!("{}/v2/{}/blobs/{}", self.endpoint.base, self.image.repository(), self.blob.digest);
        match self.registry.send(&self.endpoint, &self.ask(), |client| client.head(&url)).await {
            Ok(_) => Ok(true),
            Err(RegistryError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn begin(&self, mount_from: Option<&String>) -> Result<Begun, RegistryError> {
        let mut url = format!("{}/v2/{}/blobs/uploads/", self.endpoint.base, self.image.repository());
        if let Some(from) = mount_from {
            url.push_str(&format!("?mount={}&from={from}", self.blob.digest));
        }
        let ask = self.ask();
        let send =
            self.registry.send(&self.endpoint, &ask, |client| client.post(&url).header(header::CONTENT_LENGTH, 0));
        let answer = match send.await {
            // The registry knows no such repository: the blob is uploaded instead.
            Err(RegistryError::Protocol { .. }) if mount_from.is_some() => return Box::pin(self.begin(None)).await,
            other => other?,
        };
        if answer.status() == StatusCode::CREATED {
            return Ok(Begun::Mounted);
        }
        Ok(Begun::Location(self.location(&answer)?))
    }

    /// `Location`, which may be relative, and is at this registry.
    fn location(&self, answer: &Response) -> Result<String, RegistryError> {
        let value = answer.headers().get(header::LOCATION).and_then(|it| it.to_str().ok());
        let value = value.ok_or_else(|| self.protocol("it does not say where to upload to"))?;
        let base: url::Url = self.endpoint.base.parse().map_err(|_| self.protocol("its address is no URL"))?;
        let url = base.join(value).map_err(|_| self.protocol("it says no URL to upload to"))?;
        if (url.host_str(), url.port_or_known_default()) != (base.host_str(), base.port_or_known_default()) {
            return Err(self.protocol("it sends uploads, and with them the login, to another host"));
        }
        Ok(url.into())
    }

    /// From the first byte to the registry's word that it has the blob.
    async fn run(&self) -> Result<(), RegistryError> {
        let mut retry = Retry::default();
        let (mut location, mut offset) = (None, 0);
        loop {
            let error = match self.go_on(&mut location, &mut offset).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let before = offset;
            retry.wait(error).await?;
            if let Some(place) = &location {
                match self.status(place).await {
                    Ok((place, at)) => (location, offset) = (Some(place), at),
                    // The registry forgot it: begun anew.
                    Err(RegistryError::NotFound { .. }) => (location, offset) = (None, 0),
                    Err(error) if error.is_transient() => {}
                    Err(error) => return Err(error),
                }
            }
            if offset > before {
                retry.progress();
            }
        }
    }

    async fn go_on(&self, location: &mut Option<String>, offset: &mut u64) -> Result<(), RegistryError> {
        let place = match location {
            Some(place) => place.clone(),
            None => match self.begin(None).await? {
                Begun::Mounted => return Ok(()),
                Begun::Location(place) => location.insert(place).clone(),
            },
        };
        if self.blob.size <= MONOLITHIC {
            return self.finish(&place, Some(0)).await;
        }
        if *offset < self.blob.size {
            let last = self.blob.size - 1;
            let range = format!("{offset}-{last}");
            let from = *offset;
            let ask = self.ask().once();
            let send = self.registry.send(&self.endpoint, &ask, |client| {
                client
                    .patch(&place)
                    .header(header::CONTENT_TYPE, "application/octet-stream")
                    .header(header::CONTENT_RANGE, &range)
                    .header(header::CONTENT_LENGTH, self.blob.size - from)
                    .body(self.body(from))
            });
            let answer = send.await?;
            *location = Some(self.location(&answer)?);
            *offset = self.blob.size;
        }
        let place = location.clone().unwrap_or(place);
        self.finish(&place, None).await
    }

    /// Ends the upload, with the whole blob in the same request where it starts at 0.
    async fn finish(&self, place: &str, body_from: Option<u64>) -> Result<(), RegistryError> {
        let mark = if place.contains('?') { '&' } else { '?' };
        let url = format!("{place}{mark}digest={}", self.blob.digest);
        let ask = self.ask().once();
        let send = self.registry.send(&self.endpoint, &ask, |client| {
            let request = client.put(&url).header(header::CONTENT_TYPE, "application/octet-stream");
            match body_from {
                Some(from) => request.header(header::CONTENT_LENGTH, self.blob.size - from).body(self.body(from)),
                None => request.header(header::CONTENT_LENGTH, 0),
            }
        });
        send.await.map(drop)
    }

    /// Where an upload stands: the place to go on at, and the offset.
    async fn status(&self, place: &str) -> Result<(String, u64), RegistryError> {
        let answer = self.registry.send(&self.endpoint, &self.ask(), |client| client.get(place)).await?;
        let range = answer.headers().get(header::RANGE).and_then(|it| it.to_str().ok());
        let last: Option<u64> = range.and_then(|it| it.trim_start_matches("bytes=").split_once('-')?.1.parse().ok());
        // `0-0` is how registries say that they have nothing: one byte is as good as none.
        let offset = last.filter(|last| *last > 0).map_or(0, |last| last + 1);
        let next = self.location(&answer).unwrap_or_else(|_| place.to_owned());
        Ok((next, offset.min(self.blob.size)))
    }

    /// The file from an offset on, in pieces, at the configured bandwidth.
    fn body(&self, from: u64) -> Body {
        let (path, progress, throttle) =
            (self.file.to_owned(), self.progress.clone(), self.registry.0.throttle.clone());
        let begin = (None::<File>, from);
        let stream = futures_util::stream::try_unfold(begin, move |(file, at)| {
            let (path, progress, throttle) = (path.clone(), progress.clone(), throttle.clone());
            async move {
                let read = move || -> io::Result<(File, Vec<u8>)> {
                    let mut file = if let Some(file) = file {
                        file
                    } else {
                        let mut file = File::open(&path)?;
                        file.seek(SeekFrom::Start(at))?;
                        file
                    };
                    let mut piece = Vec::with_capacity(PIECE);
                    (&mut file).take(PIECE as u64).read_to_end(&mut piece)?;
                    Ok((file, piece))
                };
                let (file, piece) = tokio::task::spawn_blocking(read).await.map_err(io::Error::other)??;
                progress(at);
                if piece.is_empty() {
                    return Ok::<_, io::Error>(None);
                }
                tokio::time::sleep(throttle.sent(piece.len())).await;
                let at = at + piece.len() as u64;
                Ok(Some((Bytes::from(piece), (Some(file), at))))
            }
        });
        Body::wrap_stream(stream)
    }
}
