//! One request to a registry: with which login, tried how often, given up when.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use board::{tasks, throttle::Throttle};
use bytes::Bytes;
use reqwest::{Client, RequestBuilder, Response, StatusCode, header};
use tokio::time::Instant;

use super::{
    Credentials, MAX_MANIFEST, Options, RegistryError,
    endpoint::{Endpoint, Places},
    token::Tokens,
};
use crate::reference::ImageRef;

/// Without a byte.
pub(super) const SILENCE: Duration = Duration::from_secs(30);
/// Tries of one request that fails in a way that may pass.
const TRIES: u32 = 5;
/// Longest wait between two of them.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Longest wait that a registry may ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(120);
/// Longest error body that is read, bytes.
const MAX_ERROR: usize = 64 << 10;

/// Registries. Cheap to clone.
#[derive(Clone)]
pub struct Registry(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) places: Places,
    pub(super) tokens: Tokens,
    pub(super) throttle: Throttle,
    pub(super) silence: Duration,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").finish_non_exhaustive()
    }
}

impl Registry {
    /// Sets up what is needed to reach registries.
    pub fn new(options: Options) -> Result<Self, RegistryError> {
        Self::with_silence(options, SILENCE)
    }

    /// The same, with another time without a byte after which a registry is given up.
    pub fn with_silence(options: Options, silence: Duration) -> Result<Self, RegistryError> {
        let throttle = Throttle::new(options.bandwidth);
        let (places, tokens) = (Places::new(options)?, Tokens::default());
        Ok(Self(Arc::new(Inner { places, tokens, throttle, silence })))
    }

    /// Sends a request, logs in where it must, and tries again what may pass; any status below 400 is an answer.
    ///
    /// `build` makes the request anew for each try.
    pub(super) async fn send(
        &self,
        endpoint: &Endpoint,
        ask: &Ask<'_>,
        build: impl Fn(&Client) -> RequestBuilder,
    ) -> Result<Response, RegistryError> {
        let mut tries = 0;
        loop {
            tries += 1;
            let error = match self.send_once(endpoint, ask, &build).await {
                Err(error) if error.is_transient() && tries < ask.tries => error,
                other => return other,
            };
            if matches!(error, RegistryError::Silent { .. }) {
                tries += 1; // It took long enough to find out.
            }
            let wait =
                error.retry_after().unwrap_or_else(|| tasks::backoff(tries, Duration::from_millis(500), LONGEST_WAIT));
            tracing::debug!(registry = endpoint.host, %error, tries, retry_in = ?wait, "registry request failed");
            tokio::time::sleep(wait).await;
        }
    }

    async fn send_once(
        &self,
        endpoint: &Endpoint,
        ask: &Ask<'_>,
        build: &impl Fn(&Client) -> RequestBuilder,
    ) -> Result<Response, RegistryError> {
        let anonymous = Credentials::Anonymous;
        let credentials = if endpoint.mirror { &anonymous } else { ask.credentials };
        let client = self.0.places.client(endpoint)?;
        let known = self.0.tokens.known(endpoint, ask.scopes, credentials);
        let mut request = build(&client);
        let had_token = known.is_some();
        if let Some(value) = known {
            request = request.header(header::AUTHORIZATION, value);
        }
        let answer = self.timed(endpoint, ask, request).await?;
        // A storage that a registry redirects to may ask for a login too: it gets none.
        if answer.status() != StatusCode::UNAUTHORIZED || !endpoint.owns(answer.url()) {
            return self.judge(endpoint, ask, answer, false).await;
        }
        if had_token {
            self.0.tokens.forget(endpoint, ask.scopes, credentials);
        }
        let challenges = answer.headers().get_all(header::WWW_AUTHENTICATE);
        let challenges: Vec<_> = challenges.iter().filter_map(|it| it.to_str().ok().map(str::to_owned)).collect();
        let value = self.obtain(endpoint, ask, credentials, &challenges).await?;
        let request = build(&client).header(header::AUTHORIZATION, value);
        let answer = self.timed(endpoint, ask, request).await?;
        self.judge(endpoint, ask, answer, true).await
    }

    /// Sends until an answer begins, or until `ask.pulse` has stood still for too long.
    async fn timed(
        &self,
        endpoint: &Endpoint,
        ask: &Ask<'_>,
        request: RequestBuilder,
    ) -> Result<Response, RegistryError> {
        ask.pulse.allow(ask.patience.unwrap_or(self.0.silence));
        let send = request.send();
        tokio::pin!(send);
        loop {
            let until = ask.pulse.until();
            tokio::select! {
                answer = &mut send => return answer.map_err(|error| broken(endpoint, &error)),
                () = tokio::time::sleep_until(until) => {
                    if ask.pulse.until() <= until {
                        return Err(silent(endpoint));
                    }
                }
            }
        }
    }

    /// More of an answer's body.
    pub(super) async fn chunk(
        &self,
        endpoint: &Endpoint,
        answer: &mut Response,
    ) -> Result<Option<Bytes>, RegistryError> {
        match tokio::time::timeout(self.0.silence, answer.chunk()).await {
            Ok(chunk) => chunk.map_err(|error| broken(endpoint, &error)),
            Err(_) => Err(silent(endpoint)),
        }
    }

    /// A whole body, within the limit of manifests.
    pub(super) async fn whole(
        &self,
        endpoint: &Endpoint,
        mut answer: Response,
        what: &str,
    ) -> Result<Bytes, RegistryError> {
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk(endpoint, &mut answer).await? {
            body.extend_from_slice(&chunk);
            if body.len() as u64 > MAX_MANIFEST {
                let problem = format!("it is over {MAX_MANIFEST} bytes");
                return Err(RegistryError::Protocol {
                    registry: endpoint.host.clone(),
                    what: what.to_owned(),
                    problem,
                });
            }
        }
        Ok(body.into())
    }

    /// An answer, or the error that its status means.
    async fn judge(
        &self,
        endpoint: &Endpoint,
        ask: &Ask<'_>,
        answer: Response,
        logged_in: bool,
    ) -> Result<Response, RegistryError> {
        let status = answer.status();
        if status.as_u16() < 400 {
            return Ok(answer);
        }
        let (registry, image) = (endpoint.host.clone(), ask.image.familiar());
        let anonymous = *ask.credentials == Credentials::Anonymous;
        let retry_after = retry_after(answer.headers());
        let elsewhere = !endpoint.owns(answer.url());
        let words = self.words(endpoint, answer).await;
        let what = ask.what.to_owned();
        Err(match status {
            _ if status == StatusCode::TOO_MANY_REQUESTS
                || status == StatusCode::REQUEST_TIMEOUT
                || status.is_server_error() =>
            {
                RegistryError::Unavailable { registry, what, status: status.as_u16(), retry_after }
            }
            // The signature in a redirect has run out, or its clock is another one: the registry makes a new one.
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if elsewhere => {
                let problem = format!("the storage it leads to refused with HTTP {}{words}", status.as_u16());
                RegistryError::Network { registry, problem }
            }
            StatusCode::NOT_FOUND => RegistryError::NotFound { registry, image: ask.image.clone() },
            // Docker Hub says 401 for what does not exist as well: nobody may be told apart by it.
            StatusCode::UNAUTHORIZED if logged_in && !anonymous => RegistryError::Denied { registry, image },
            StatusCode::UNAUTHORIZED => RegistryError::Unauthorized { registry, image },
            StatusCode::FORBIDDEN if anonymous => RegistryError::Unauthorized { registry, image },
            StatusCode::FORBIDDEN => RegistryError::Denied { registry, image },
            _ => RegistryError::Protocol { registry, what, problem: format!("HTTP {}{words}", status.as_u16()) },
        })
    }

    /// The words of an error body, short.
    async fn words(&self, endpoint: &Endpoint, mut answer: Response) -> String {
        let mut body = Vec::new();
        while let Ok(Some(chunk)) = self.chunk(endpoint, &mut answer).await {
            body.extend_from_slice(&chunk);
            if body.len() > MAX_ERROR {
                break;
            }
        }
        let envelope: Option<oci_client::errors::OciEnvelope> = serde_json::from_slice(&body).ok();
        let told = envelope.and_then(|it| it.errors.into_iter().next()).map(|it| it.message);
        told.filter(|it| !it.is_empty())
            .map_or_else(String::new, |it| format!(" ({})", it.chars().take(200).collect::<String>()))
    }
}

/// Until when a request may be silent. A body that is being sent moves it on.
#[derive(Clone)]
pub(super) struct Pulse(Arc<Mutex<Instant>>);

impl Pulse {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    /// From now on.
    pub(super) fn allow(&self, silence: Duration) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now() + silence;
    }

    fn until(&self) -> Instant {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What all tries of a request have in common.
pub(super) struct Ask<'a> {
    /// For messages.
    pub(super) image: &'a ImageRef,
    /// For messages: `manifest of …`.
    pub(super) what: &'a str,
    /// What a token is asked for: `repository:NAME:pull`, and further ones.
    pub(super) scopes: &'a [String],
    pub(super) credentials: &'a Credentials,
    /// How often it is tried.
    pub(super) tries: u32,
    /// How long an answer may take; the registry's silence where absent.
    pub(super) patience: Option<Duration>,
    pub(super) pulse: Pulse,
}

impl<'a> Ask<'a> {
    pub(super) fn new(image: &'a ImageRef, what: &'a str, scopes: &'a [String], credentials: &'a Credentials) -> Self {
        Self { image, what, scopes, credentials, tries: TRIES, patience: None, pulse: Pulse::new() }
    }

    /// Tried once: the caller has its own way to go on.
    pub(super) fn once(mut self) -> Self {
        self.tries = 1;
        self
    }

    /// For what a registry has to work on.
    pub(super) fn patient(mut self, patience: Duration) -> Self {
        self.patience = Some(patience);
        self
    }
}

fn silent(endpoint: &Endpoint) -> RegistryError {
    RegistryError::Silent { registry: endpoint.host.clone() }
}

/// A connection that broke, in words.
pub(super) fn broken(endpoint: &Endpoint, error: &reqwest::Error) -> RegistryError {
    let registry = endpoint.host.clone();
    if error.is_timeout() {
        return RegistryError::Silent { registry };
    }
    let problem = without_url(&tasks::chain(error));
    // Of HTTP spoken to TLS, and of TLS spoken to HTTP.
    if problem.contains("InvalidContentType") || problem.contains("corrupt message") {
        return RegistryError::PlainHttp { registry };
    }
    if problem.contains("certificate") {
        return RegistryError::Tls { registry, problem };
    }
    RegistryError::Network { registry, problem }
}

/// URLs may hold a signature, or a token.
fn without_url(text: &str) -> String {
    let Some(at) = text.find(" for url (") else { return text.to_owned() };
    text[at..].find("): ").map_or_else(|| text[..at].to_owned(), |end| text[at + end + 3..].to_owned())
}

/// `Retry-After`: seconds, or a date, which is compared with the answer's own: clocks need not agree.
pub(super) fn retry_after(headers: &header::HeaderMap) -> Option<Duration> {
    let text = |name| headers.get(name).and_then(|it: &header::HeaderValue| it.to_str().ok()).map(str::trim);
    let value = text(header::RETRY_AFTER)?;
    let wait = if let Ok(seconds) = value.parse() {
        Duration::from_secs(seconds)
    } else {
        let date = |text: &str| jiff::fmt::rfc2822::parse(text).ok().map(|it| it.timestamp().as_second());
        let now = text(header::DATE).and_then(date);
        let seconds = date(value)?.saturating_sub(now.unwrap_or_else(|| jiff::Timestamp::now().as_second()));
        Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_read_and_bounded() {
        #[track_caller]
        fn check(value: &str, want: Option<u64>) {
            let mut headers = header::HeaderMap::new();
            headers.insert(header::DATE, "Wed, 21 Oct 2015 07:28:00 GMT".parse().unwrap());
            headers.insert(header::RETRY_AFTER, value.parse().unwrap());
            assert_eq!(retry_after(&headers).map(|it| it.as_secs()), want, "{value}");
        }
        check("7", Some(7));
        check(" 0 ", Some(0));
        check("86400", Some(120));
        check("Wed, 21 Oct 2015 07:28:09 GMT", Some(9));
        check("Wed, 21 Oct 2015 07:00:00 GMT", Some(0));
        check("-1", None);
        check("soon", None);
        assert_eq!(retry_after(&header::HeaderMap::new()), None);
    }

    #[test]
    fn urls_are_left_out_of_what_is_told() {
        #[track_caller]
        fn check(text: &str, want: &str) {
            assert_eq!(without_url(text), want);
        }
        check("error sending request for url (https://s3/x?sig=SECRET): refused", "refused");
        check("error sending request for url (https://s3/x?sig=SECRET)", "error sending request");
        check("refused", "refused");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pulse_that_beats_is_waited_for() {
        let pulse = Pulse::new();
        pulse.allow(Duration::from_secs(3));
        let before = pulse.until();
        tokio::time::advance(Duration::from_secs(2)).await;
        pulse.allow(Duration::from_secs(3));
        assert_eq!(pulse.until() - before, Duration::from_secs(2));
    }
}
