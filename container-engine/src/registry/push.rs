//! Sending: blobs that are not there yet, mounted from another repository or uploaded in parts that survive a cut; manifests last.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use reqwest::{Body, Response, StatusCode, header};

use super::{
    Credentials, Descriptor, Registry, RegistryError,
    client::{Ask, Pulse},
    endpoint::Endpoint,
    pull::Retry,
};
use crate::{content::Digest, reference::ImageRef};

/// Read and sent at once.
const PIECE: usize = 128 << 10;
/// Up to this size a blob goes in one request.
const MONOLITHIC: u64 = 1 << 20;
/// Without taking a piece of a body.
const STALL: Duration = Duration::from_secs(60);
/// For what a registry does once it has all of a blob: it hashes, and copies in its storage.
const COMMIT: Duration = Duration::from_secs(300);

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

fn scopes(image: &ImageRef, mount_from: Option<&str>) -> Vec<String> {
    let own = format!("repository:{}:pull,push", image.repository());
    let other = mount_from.map(|name| format!("repository:{name}:pull"));
    [own].into_iter().chain(other).collect()
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
        let endpoint = self.0.places.registry(image).await;
        let what = format!("blob {} of {}", blob.digest, image.familiar());
        check_file(file, blob.size).await?;
        let scopes = scopes(image, None);
        let upload = Upload { registry: self, endpoint, image, blob, file, what, scopes, credentials, progress };
        if upload.exists().await? {
            return Ok(Pushed::Existed);
        }
        let mut place = None;
        for from in mount_from {
            match upload.mount(from).await {
                Ok(Begun::Mounted) => return Ok(Pushed::Mounted),
                Ok(Begun::Location(location)) => place = Some(location),
                Err(error) if error.is_transient() => return Err(error),
                // It is not there, or not for these credentials.
                Err(error) => tracing::debug!(%error, from, "a blob could not be mounted and is sent"),
            }
        }
        upload.run(place).await.map(|()| Pushed::Uploaded)
    }

    /// Puts a manifest or index under the image's tag or digest; returns the digest that the registry knows it by.
    pub async fn push_manifest(
        &self,
        image: &ImageRef,
        bytes: Bytes,
        media_type: &str,
        credentials: &Credentials,
    ) -> Result<Digest, RegistryError> {
        let endpoint = self.0.places.registry(image).await;
        let url = format!("{}/v2/{}/manifests/{}", endpoint.base, image.repository(), image.version());
        let (what, scopes) = (format!("the manifest of {}", image.familiar()), scopes(image, None));
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

/// A file of another size would be found out only after all of it was sent.
async fn check_file(file: &Path, size: u64) -> Result<(), RegistryError> {
    let failed = |source| RegistryError::File { path: file.to_owned(), source };
    let found = tokio::fs::metadata(file).await.map_err(failed)?.len();
    let problem = || io::Error::new(io::ErrorKind::InvalidData, format!("it has {found} bytes, not {size}"));
    if found == size { Ok(()) } else { Err(failed(problem())) }
}

/// How far an upload is.
struct State {
    /// Where it goes on; absent until it began.
    place: Option<String>,
    offset: u64,
    /// In one request.
    whole: bool,
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

    /// Asks for a blob that another repository has. A registry that doesn't give it begins an upload instead.
    async fn mount(&self, from: &str) -> Result<Begun, RegistryError> {
        let scopes = scopes(self.image, Some(from));
        let ask = Ask::new(self.image, &self.what, &scopes, self.credentials);
        self.post(&ask, &format!("?mount={}&from={from}", self.blob.digest)).await
    }

    async fn post(&self, ask: &Ask<'_>, query: &str) -> Result<Begun, RegistryError> {
        let url = format!("{}/v2/{}/blobs/uploads/{query}", self.endpoint.base, self.image.repository());
        let send =
            self.registry.send(&self.endpoint, ask, |client| client.post(&url).header(header::CONTENT_LENGTH, 0));
        let answer = send.await?;
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
        if base.scheme() == "https" && url.scheme() != "https" {
            return Err(
                self.protocol("it sends uploads where there is no TLS: its proxy should tell it that it has TLS")
            );
        }
        Ok(url.into())
    }

    /// From the first byte to the registry's word that it has the blob.
    async fn run(&self, place: Option<String>) -> Result<(), RegistryError> {
        let mut retry = Retry::default();
        let mut state = State { place, offset: 0, whole: self.blob.size <= MONOLITHIC };
        loop {
            let error = match self.go_on(&mut state).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            // Some registries take blobs in one request alone.
            if matches!(error, RegistryError::Protocol { .. }) && !state.whole {
                tracing::debug!(%error, "an upload in parts was refused; once more as a whole");
                state = State { place: None, offset: 0, whole: true };
                continue;
            }
            let before = state.offset;
            retry.wait(error).await?;
            if self.look(&mut state).await? {
                return Ok(());
            }
            if state.offset > before {
                retry.progress();
            }
        }
    }

    /// After a cut: what the registry has of it; whether that is all.
    async fn look(&self, state: &mut State) -> Result<bool, RegistryError> {
        let Some(place) = &state.place else { return Ok(false) };
        match self.status(place).await {
            // A request that carries all cannot go on in the middle.
            Ok((_, at)) if state.whole && at > 0 => (state.place, state.offset) = (None, 0),
            Ok((place, at)) => (state.place, state.offset) = (Some(place), at),
            // The registry forgot it, or had finished it and only its answer was lost.
            Err(RegistryError::NotFound { .. }) => {
                (state.place, state.offset) = (None, 0);
                return self.exists().await;
            }
            Err(error) if error.is_transient() => {}
            Err(error) => return Err(error),
        }
        Ok(false)
    }

    async fn go_on(&self, state: &mut State) -> Result<(), RegistryError> {
        let place = match &state.place {
            Some(place) => place.clone(),
            None => match self.post(&self.ask(), "").await? {
                Begun::Mounted => return Ok(()),
                Begun::Location(place) => state.place.insert(place).clone(),
            },
        };
        if state.whole {
            return self.finish(&place, true).await;
        }
        let from = state.offset;
        if from < self.blob.size {
            let range = format!("{from}-{}", self.blob.size - 1);
            let ask = self.ask().once();
            let answer = self.put(&place, &ask, |client| {
                client
                    .patch(&place)
                    .header(header::CONTENT_TYPE, "application/octet-stream")
                    .header(header::CONTENT_RANGE, &range)
                    .header(header::CONTENT_LENGTH, self.blob.size - from)
                    .body(self.body(from, &ask.pulse))
            });
            state.place = Some(self.location(&answer.await?)?);
            state.offset = self.blob.size;
        }
        let place = state.place.clone().unwrap_or(place);
        self.finish(&place, false).await
    }

    /// Ends the upload; with the whole blob in the same request, or with nothing more.
    async fn finish(&self, place: &str, whole: bool) -> Result<(), RegistryError> {
        let mark = if place.contains('?') { '&' } else { '?' };
        let url = format!("{place}{mark}digest={}", self.blob.digest);
        let ask = self.ask().once().patient(COMMIT);
        let send = self.put(place, &ask, |client| {
            let request = client.put(&url).header(header::CONTENT_TYPE, "application/octet-stream");
            if whole {
                request.header(header::CONTENT_LENGTH, self.blob.size).body(self.body(0, &ask.pulse))
            } else {
                request.header(header::CONTENT_LENGTH, 0)
            }
        });
        send.await.map(drop)
    }

    /// Sends to where the registry wants it: with the login where that is the registry itself.
    async fn put(
        &self,
        place: &str,
        ask: &Ask<'_>,
        build: impl Fn(&reqwest::Client) -> reqwest::RequestBuilder,
    ) -> Result<Response, RegistryError> {
        let answer = self.registry.send(&self.there(place), ask, build).await?;
        if answer.status().is_redirection() {
            return Err(self.protocol("it redirects what is uploaded"));
        }
        Ok(answer)
    }

    /// The registry, or a storage that gets no credentials.
    fn there(&self, place: &str) -> Endpoint {
        let own = place.parse().is_ok_and(|url| self.endpoint.owns(&url));
        let url: Option<url::Url> = if own { None } else { place.parse().ok() };
        url.map_or_else(|| self.endpoint.clone(), |url| self.endpoint.storage(&url))
    }

    /// Where an upload stands: the place to go on at, and the offset.
    async fn status(&self, place: &str) -> Result<(String, u64), RegistryError> {
        let answer = self.registry.send(&self.there(place), &self.ask(), |client| client.get(place)).await?;
        let range = answer.headers().get(header::RANGE).and_then(|it| it.to_str().ok());
        let last: Option<u64> = range.and_then(|it| it.trim_start_matches("bytes=").split_once('-')?.1.parse().ok());
        // `0-0` is how registries say that they have nothing: one byte is as good as none.
        let offset = last.filter(|last| *last > 0).map_or(0, |last| last + 1);
        let next = self.location(&answer).unwrap_or_else(|_| place.to_owned());
        Ok((next, offset.min(self.blob.size)))
    }

    /// The file from an offset on, in pieces, at the configured bandwidth.
    fn body(&self, from: u64, pulse: &Pulse) -> Body {
        let (path, progress, throttle) =
            (self.file.to_owned(), self.progress.clone(), self.registry.0.throttle.clone());
        let pulse = pulse.clone();
        pulse.allow(STALL);
        let begin = (None::<File>, from);
        let stream = futures_util::stream::try_unfold(begin, move |(file, at)| {
            let (path, progress, throttle, pulse) = (path.clone(), progress.clone(), throttle.clone(), pulse.clone());
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
                    pulse.allow(COMMIT);
                    return Ok::<_, io::Error>(None);
                }
                let wait = throttle.sent(piece.len());
                pulse.allow(STALL + wait);
                tokio::time::sleep(wait).await;
                let at = at + piece.len() as u64;
                Ok(Some((Bytes::from(piece), (Some(file), at))))
            }
        });
        Body::wrap_stream(stream)
    }
}
