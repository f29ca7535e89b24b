//! One request to a registry: which host, with which login, tried how often.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use board::{tasks, throttle::Throttle, tls::ClientFiles};
use reqwest::{Client, RequestBuilder, Response, StatusCode, header};

use super::{Credentials, RegistryError, token::Tokens};
use crate::reference::{DOCKER_HUB, ImageRef};

/// Until a connection stands.
const CONNECT: Duration = Duration::from_secs(10);
/// Without a byte.
const SILENCE: Duration = Duration::from_secs(30);
/// Tries of one request that fails in a way that may pass.
const TRIES: u32 = 5;
/// Longest wait that a registry may ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(120);
/// Longest error body that is read, bytes.
const MAX_ERROR: usize = 64 << 10;

/// How registries are reached.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Instead of a registry, in this order; the registry itself comes last. URLs, or hosts.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// Hosts that may speak plain HTTP or show any certificate: `HOST` or `HOST:PORT`.
    pub insecure: BTreeSet<String>,
    /// Where `HOST/ca.crt` may lie; `/etc/docker/certs.d` where absent.
    pub certs_dir: Option<PathBuf>,
    /// Of all that is fetched and sent.
    pub bandwidth: Option<u64>,
}

/// Registries. Cheap to clone.
#[derive(Clone)]
pub struct Registry(pub(super) Arc<Inner>);

pub(super) struct Inner {
    options: Options,
    secure: Client,
    insecure: Client,
    /// Clients of hosts with a CA of their own.
    own_ca: Mutex<BTreeMap<String, Client>>,
    /// Schemes of insecure hosts, once known.
    plain: Mutex<BTreeMap<String, bool>>,
    pub(super) tokens: Tokens,
    pub(super) throttle: Throttle,
}

/// One place to ask.
#[derive(Debug, Clone)]
pub(super) struct Endpoint {
    /// `https://host:port`, without a slash at its end.
    pub(super) base: String,
    /// For messages and certificates.
    pub(super) host: String,
    /// Gets no credentials.
    pub(super) mirror: bool,
    /// May do without TLS.
    pub(super) insecure: bool,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").finish_non_exhaustive()
    }
}

fn builder() -> reqwest::ClientBuilder {
    let policy = reqwest::redirect::Policy::custom(|attempt| {
        let from_tls = attempt.previous().last().is_some_and(|url| url.scheme() == "https");
        if attempt.previous().len() > 5 {
            attempt.error("too many redirects")
        } else if from_tls && attempt.url().scheme() != "https" {
            attempt.error("a redirect from https to http")
        } else {
            attempt.follow() // Without credentials where the host is another one: reqwest sees to that.
        }
    });
    Client::builder()
        .connect_timeout(CONNECT)
        .read_timeout(SILENCE)
        .pool_max_idle_per_host(4)
        .pool_idle_timeout(Duration::from_secs(20))
        .redirect(policy)
        .user_agent(concat!("edge-agent/", env!("CARGO_PKG_VERSION")))
}

impl Registry {
    /// Sets up what is needed to reach registries.
    pub fn new(options: Options) -> Result<Self, RegistryError> {
        let wrong = |problem: String| RegistryError::Network { registry: "every registry".to_owned(), problem };
        let tls = board::tls::client(&ClientFiles::default()).map_err(|error| wrong(tasks::chain(&error)))?;
        let secure = builder().tls_backend_preconfigured((*tls).clone()).build();
        let insecure = builder().tls_danger_accept_invalid_certs(true).build();
        let inner = Inner {
            throttle: Throttle::new(options.bandwidth),
            options,
            secure: secure.map_err(|error| wrong(tasks::chain(&error)))?,
            insecure: insecure.map_err(|error| wrong(tasks::chain(&error)))?,
            own_ca: Mutex::default(),
            plain: Mutex::default(),
            tokens: Tokens::default(),
        };
        Ok(Self(Arc::new(inner)))
    }

    /// Where an image may be, in the order in which it is looked for.
    pub(super) async fn endpoints(&self, image: &ImageRef) -> Vec<Endpoint> {
        let mut endpoints = Vec::new();
        for mirror in self.0.options.mirrors.get(image.registry()).into_iter().flatten() {
            endpoints.push(self.endpoint(mirror, true).await);
        }
        endpoints.push(self.registry(image).await);
        endpoints
    }

    /// The registry itself: where pushes go.
    pub(super) async fn registry(&self, image: &ImageRef) -> Endpoint {
        self.endpoint(image.registry(), false).await
    }

    async fn endpoint(&self, name: &str, mirror: bool) -> Endpoint {
        let (scheme, rest) = match name.split_once("://") {
            Some((scheme, rest)) => (Some(scheme), rest.trim_end_matches('/')),
            None => (None, name),
        };
        let host = rest.split('/').next().unwrap_or_default().to_owned();
        let insecure = self.is_insecure(&host);
        let scheme = match scheme {
            Some(scheme) => scheme,
            None if insecure && self.speaks_plain(&host).await => "http",
            None => "https",
        };
        let rest = if host == DOCKER_HUB { "registry-1.docker.io" } else { rest };
        Endpoint { base: format!("{scheme}://{rest}"), host, mirror, insecure }
    }

    /// As configured, and loopback always, as Docker does.
    fn is_insecure(&self, host: &str) -> bool {
        let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
        let loopback =
            name == "localhost" || name == "[::1]" || name.parse().is_ok_and(|it: std::net::Ipv4Addr| it.is_loopback());
        loopback || self.0.options.insecure.contains(host) || self.0.options.insecure.contains(name)
    }

    /// Whether an insecure host speaks HTTP without TLS; asked once. One that is down is taken to speak it, and asked again.
    async fn speaks_plain(&self, host: &str) -> bool {
        if let Some(known) = self.0.plain.lock().unwrap_or_else(PoisonError::into_inner).get(host) {
            return *known;
        }
        let tls = self.0.insecure.get(format!("https://{host}/v2/")).send().await.is_ok();
        let plain = !tls && self.0.insecure.get(format!("http://{host}/v2/")).send().await.is_ok();
        if tls || plain {
            self.0.plain.lock().unwrap_or_else(PoisonError::into_inner).insert(host.to_owned(), plain);
        }
        !tls
    }

    /// The client for an endpoint: with the host's own CA where it has one.
    fn client(&self, endpoint: &Endpoint) -> Result<Client, RegistryError> {
        if endpoint.insecure {
            return Ok(self.0.insecure.clone());
        }
        let mut known = self.0.own_ca.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = known.get(&endpoint.host) {
            return Ok(client.clone());
        }
        let dir = self.0.options.certs_dir.clone().unwrap_or_else(|| PathBuf::from("/etc/docker/certs.d"));
        let ca_file = dir.join(&endpoint.host).join("ca.crt");
        if !ca_file.exists() {
            return Ok(self.0.secure.clone());
        }
        let failed = |problem: String| RegistryError::Tls { registry: endpoint.host.clone(), problem };
        let files = ClientFiles { ca_file: Some(ca_file), ..ClientFiles::default() };
        let tls = board::tls::client(&files).map_err(|error| failed(tasks::chain(&error)))?;
        let client = builder().tls_backend_preconfigured((*tls).clone()).build();
        let client = client.map_err(|error| failed(tasks::chain(&error)))?;
        known.insert(endpoint.host.clone(), client.clone());
        Ok(client)
    }

    /// Sends a request, logs in where it must, and tries again what may pass; any status below 400 is an answer.
    ///
    /// `build` makes the request anew for each try. `scopes` is what a token is asked for. `what` is for messages.
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
            let wait =
                error.retry_after().unwrap_or_else(|| tasks::backoff(tries, Duration::from_millis(500), SILENCE));
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
        let client = self.client(endpoint)?;
        let known = self.0.tokens.known(endpoint, ask.scopes, credentials);
        let mut request = build(&client);
        let had_token = known.is_some();
        if let Some(value) = known {
            request = request.header(header::AUTHORIZATION, value);
        }
        let answer = request.send().await.map_err(|error| broken(endpoint, &error))?;
        if answer.status() != StatusCode::UNAUTHORIZED {
            return judge(endpoint, ask, answer, false).await;
        }
        if had_token {
            self.0.tokens.forget(endpoint, ask.scopes, credentials);
        }
        let challenges = answer.headers().get_all(header::WWW_AUTHENTICATE);
        let challenges: Vec<_> = challenges.iter().filter_map(|it| it.to_str().ok().map(str::to_owned)).collect();
        let value = self.0.tokens.obtain(&client, endpoint, ask, credentials, &challenges).await?;
        let answer = build(&client).header(header::AUTHORIZATION, value).send().await;
        judge(endpoint, ask, answer.map_err(|error| broken(endpoint, &error))?, true).await
    }
}

/// What all tries of a request have in common.
pub(super) struct Ask<'a> {
    /// For messages.
    pub(super) image: &'a ImageRef,
    /// For messages: `manifest of …`.
    pub(super) what: &'a str,
    /// `repository:NAME:pull`, and further ones.
    pub(super) scopes: &'a [String],
    pub(super) credentials: &'a Credentials,
    /// How often it is tried.
    pub(super) tries: u32,
}

impl<'a> Ask<'a> {
    pub(super) fn new(image: &'a ImageRef, what: &'a str, scopes: &'a [String], credentials: &'a Credentials) -> Self {
        Self { image, what, scopes, credentials, tries: TRIES }
    }

    /// Tried once: the caller has its own way to go on.
    pub(super) fn once(mut self) -> Self {
        self.tries = 1;
        self
    }
}

/// A connection that broke, in words.
pub(super) fn broken(endpoint: &Endpoint, error: &reqwest::Error) -> RegistryError {
    let registry = endpoint.host.clone();
    let text = tasks::chain(error);
    // The URL is left out: it may hold a signature.
    let problem = match text.find(" for url (") {
        Some(at) => text[at..].find("): ").map_or_else(|| text[..at].to_owned(), |end| text[at + end + 3..].to_owned()),
        None => text,
    };
    if error.is_timeout() {
        return RegistryError::Network { registry, problem: "it does not answer in time".to_owned() };
    }
    if problem.contains("InvalidContentType") || problem.contains("corrupt message") {
        return RegistryError::PlainHttp { registry };
    }
    if problem.contains("certificate") {
        return RegistryError::Tls { registry, problem };
    }
    RegistryError::Network { registry, problem }
}

/// An answer, or the error that its status means.
async fn judge(
    endpoint: &Endpoint,
    ask: &Ask<'_>,
    answer: Response,
    logged_in: bool,
) -> Result<Response, RegistryError> {
    let status = answer.status();
    if status.as_u16() < 400 {
        return Ok(answer);
    }
    let registry = endpoint.host.clone();
    let retry_after = retry_after(&answer);
    let words = words(answer).await;
    let image = ask.image.familiar();
    Err(match status {
        StatusCode::NOT_FOUND => RegistryError::NotFound { registry, image: ask.image.clone() },
        // Docker Hub says 401 for what does not exist as well: nobody may be told apart by it.
        StatusCode::UNAUTHORIZED if logged_in && *ask.credentials != Credentials::Anonymous => {
            RegistryError::Denied { registry, image }
        }
        StatusCode::UNAUTHORIZED => RegistryError::Unauthorized { registry, image },
        StatusCode::FORBIDDEN => RegistryError::Denied { registry, image },
        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => {
            RegistryError::Unavailable { registry, what: ask.what.to_owned(), status: status.as_u16(), retry_after }
        }
        _ if status.is_server_error() => {
            RegistryError::Unavailable { registry, what: ask.what.to_owned(), status: status.as_u16(), retry_after }
        }
        _ => RegistryError::Protocol {
            registry,
            what: ask.what.to_owned(),
            problem: format!("HTTP {}{words}", status.as_u16()),
        },
    })
}

/// `Retry-After` in seconds; the form with a date is for clocks that agree.
fn retry_after(answer: &Response) -> Option<Duration> {
    let value = answer.headers().get(header::RETRY_AFTER)?.to_str().ok()?;
    Some(Duration::from_secs(value.trim().parse().ok()?).min(MAX_RETRY_AFTER))
}

/// The words of an error body, short.
async fn words(mut answer: Response) -> String {
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = answer.chunk().await {
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
