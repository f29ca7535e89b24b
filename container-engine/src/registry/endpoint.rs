//! Where a registry is: its mirrors, its scheme, whom it must prove to be, and which client therefore speaks to it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use board::{tasks, tls::ClientFiles};
use reqwest::Client;

use super::RegistryError;
use crate::{
    content::Digest,
    reference::{DOCKER_HUB, ImageRef},
};

/// Until a connection stands.
const CONNECT: Duration = Duration::from_secs(10);
/// Until an insecure host shows whether it speaks TLS.
const PROBE: Duration = Duration::from_secs(5);
/// How long a mirror that failed is left alone.
const HOLD_OFF: Duration = Duration::from_secs(60);
/// Within this time a mirror is asked once for the beginning of a blob: asked for again, what it gave was not good.
const ASKED: Duration = Duration::from_secs(600);
/// Remembered of the above, at most.
const MAX_ASKED: usize = 4096;

/// How registries are reached.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Instead of a registry, in this order; the registry itself comes last. URLs, or hosts.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// Hosts that may speak plain HTTP or show any certificate: `HOST` or `HOST:PORT`.
    pub insecure: BTreeSet<String>,
    /// Where `HOST/*.crt`, and `HOST/*.cert` with `HOST/*.key`, may lie; `/etc/docker/certs.d` where absent.
    pub certs_dir: Option<PathBuf>,
    /// Of all that is fetched and sent, bytes a second.
    pub bandwidth: Option<u64>,
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

impl Endpoint {
    /// Whether a URL leads to this same place, so that credentials may go there.
    pub(super) fn owns(&self, url: &url::Url) -> bool {
        self.base.parse::<url::Url>().is_ok_and(|own| own.origin() == url.origin())
    }

    /// Where it sends uploads to, if not to itself: that gets no credentials, and is trusted as a host of its own.
    pub(super) fn storage(&self, url: &url::Url) -> Self {
        let name = url.host_str().unwrap_or_default();
        let host = url.port().map_or_else(|| name.to_owned(), |port| format!("{name}:{port}"));
        Self { base: url.origin().ascii_serialization(), host, mirror: true, insecure: self.insecure }
    }
}

/// All places, and what was learnt of them.
pub(super) struct Places {
    options: Options,
    secure: Client,
    insecure: Client,
    /// Clients of hosts with certificates of their own.
    own: Mutex<BTreeMap<String, Client>>,
    /// Whether an insecure host speaks HTTP without TLS, once known.
    plain: Mutex<BTreeMap<String, bool>>,
    /// Mirrors that failed.
    failed: Mutex<BTreeMap<String, Instant>>,
    asked: Mutex<BTreeMap<(String, Digest), Instant>>,
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
        .pool_max_idle_per_host(4)
        .pool_idle_timeout(Duration::from_secs(20))
        .redirect(policy)
        .user_agent(concat!("edge-agent/", env!("CARGO_PKG_VERSION")))
}

/// `host:port` without the port; an IPv6 address keeps its brackets.
pub(super) fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => name,
        _ => host,
    }
}

impl Places {
    pub(super) fn new(options: Options) -> Result<Self, RegistryError> {
        let wrong = |problem: String| RegistryError::Network { registry: "every registry".to_owned(), problem };
        let tls = board::tls::client(&ClientFiles::default()).map_err(|error| wrong(tasks::chain(&error)))?;
        let secure = builder().tls_backend_preconfigured((*tls).clone()).build();
        let insecure = builder().tls_danger_accept_invalid_certs(true).build();
        Ok(Self {
            options,
            secure: secure.map_err(|error| wrong(tasks::chain(&error)))?,
            insecure: insecure.map_err(|error| wrong(tasks::chain(&error)))?,
            own: Mutex::default(),
            plain: Mutex::default(),
            failed: Mutex::default(),
            asked: Mutex::default(),
        })
    }

    /// Where an image may be, in the order in which it is looked for. Mirrors that failed a moment ago are left out.
    pub(super) async fn of(&self, image: &ImageRef) -> Vec<Endpoint> {
        let mut endpoints = Vec::new();
        for mirror in self.options.mirrors.get(image.registry()).into_iter().flatten() {
            if !self.is_held_off(mirror) {
                endpoints.push(self.endpoint(mirror, true).await);
            }
        }
        endpoints.push(self.registry(image).await);
        endpoints
    }

    /// The registry itself: where pushes go.
    pub(super) async fn registry(&self, image: &ImageRef) -> Endpoint {
        self.endpoint(image.registry(), false).await
    }

    fn is_held_off(&self, mirror: &str) -> bool {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.get(host_of(mirror)).is_some_and(|since| since.elapsed() < HOLD_OFF)
    }

    /// Notes what a mirror did: one that is down is not waited for at every blob.
    pub(super) fn disappointed(&self, mirror: &Endpoint, error: &RegistryError) {
        tracing::debug!(mirror = mirror.host, %error, "a mirror did not give what was asked");
        if error.is_transient() || matches!(error, RegistryError::WrongDigest { .. }) {
            self.failed.lock().unwrap_or_else(PoisonError::into_inner).insert(mirror.host.clone(), Instant::now());
        }
    }

    /// Whether a mirror may be asked for the beginning of a blob; notes that it was.
    pub(super) fn may_begin(&self, mirror: &Endpoint, digest: Digest) -> bool {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if asked.len() >= MAX_ASKED {
            asked.retain(|_, at| at.elapsed() < ASKED);
        }
        if asked.len() >= MAX_ASKED {
            asked.clear();
        }
        let before = asked.insert((mirror.host.clone(), digest), Instant::now());
        before.is_none_or(|at| at.elapsed() >= ASKED)
    }

    async fn endpoint(&self, name: &str, mirror: bool) -> Endpoint {
        let (scheme, rest) = match name.split_once("://") {
            Some((scheme, rest)) => (Some(scheme), rest.trim_end_matches('/')),
            None => (None, name.trim_end_matches('/')),
        };
        let host = host_of(name).to_owned();
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
        let name = without_port(host);
        let loopback =
            name == "localhost" || name == "[::1]" || name.parse().is_ok_and(|it: std::net::Ipv4Addr| it.is_loopback());
        loopback || self.options.insecure.contains(host) || self.options.insecure.contains(name)
    }

    /// Whether an insecure host speaks HTTP without TLS; asked once. One that is down is taken to speak it, and asked again.
    async fn speaks_plain(&self, host: &str) -> bool {
        if let Some(known) = self.plain.lock().unwrap_or_else(PoisonError::into_inner).get(host) {
            return *known;
        }
        let answers = async |scheme: &str| {
            let request = self.insecure.get(format!("{scheme}://{host}/v2/"));
            tokio::time::timeout(PROBE, request.send()).await.is_ok_and(|it| it.is_ok())
        };
        let tls = answers("https").await;
        let plain = !tls && answers("http").await;
        if tls || plain {
            self.plain.lock().unwrap_or_else(PoisonError::into_inner).insert(host.to_owned(), plain);
        }
        !tls
    }

    /// The client for an endpoint: with the host's own certificates where it has some.
    pub(super) fn client(&self, endpoint: &Endpoint) -> Result<Client, RegistryError> {
        if endpoint.insecure {
            return Ok(self.insecure.clone());
        }
        let mut known = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = known.get(&endpoint.host) {
            return Ok(client.clone());
        }
        let dir = self.options.certs_dir.clone().unwrap_or_else(|| PathBuf::from("/etc/docker/certs.d"));
        let Some((cas, files)) = own_certificates(&dir.join(&endpoint.host)) else {
            return Ok(self.secure.clone());
        };
        let failed = |problem: String| RegistryError::Tls { registry: endpoint.host.clone(), problem };
        let tls = board::tls::client_trusting(&cas, &files).map_err(|error| failed(tasks::chain(&error)))?;
        let client = builder().tls_backend_preconfigured((*tls).clone()).build();
        let client = client.map_err(|error| failed(tasks::chain(&error)))?;
        known.insert(endpoint.host.clone(), client.clone());
        Ok(client)
    }

    /// The client for where an endpoint's tokens are given: an insecure registry makes nobody else insecure.
    pub(super) fn token_client(&self, endpoint: &Endpoint, realm: &url::Url) -> Result<Client, RegistryError> {
        let name = realm.host_str().unwrap_or_default();
        let host = realm.port().map_or_else(|| name.to_owned(), |port| format!("{name}:{port}"));
        let same = without_port(&endpoint.host) == name;
        if !endpoint.insecure || same || self.is_insecure(&host) {
            // A registry's own CA counts for its token server too, as with Docker.
            return self.client(endpoint);
        }
        self.client(&Endpoint { base: String::new(), host, mirror: false, insecure: false })
    }
}

/// Host and port of a registry or a mirror.
fn host_of(name: &str) -> &str {
    let rest = name.split_once("://").map_or(name, |(_, rest)| rest);
    rest.split('/').next().unwrap_or_default()
}

/// CAs, and a client certificate with its key; `None` where there is nothing.
fn own_certificates(dir: &Path) -> Option<(Vec<PathBuf>, ClientFiles)> {
    let mut paths: Vec<_> = std::fs::read_dir(dir).ok()?.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    let of =
        |kind: &'static str| paths.iter().filter(move |path| path.extension().is_some_and(|it| it == kind)).cloned();
    let cas: Vec<_> = of("crt").collect();
    let cert_file = of("cert").next();
    let key_file = cert_file.as_ref().map(|path| path.with_extension("key"));
    let found = !cas.is_empty() || cert_file.is_some();
    found.then_some((cas, ClientFiles { ca_file: None, cert_file, key_file }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_and_the_named_are_insecure() {
        let _ = rustls::crypto::ring::default_provider().install_default(); // By another test, perhaps.
        let insecure = ["reg.x:5000", "lan.x"].map(str::to_owned).into();
        let places = Places::new(Options { insecure, ..Options::default() }).unwrap();
        #[track_caller]
        fn check(places: &Places, host: &str, want: bool) {
            assert_eq!(places.is_insecure(host), want, "{host}");
        }
        for host in ["localhost", "localhost:5000", "127.0.0.1", "127.8.9.1:80", "[::1]", "[::1]:5000"] {
            check(&places, host, true);
        }
        for host in ["reg.x:5000", "lan.x", "lan.x:443"] {
            check(&places, host, true);
        }
        for host in ["reg.x", "reg.x:5001", "128.0.0.1", "localhost.x", "127.0.0.1.x", "[::2]:5000", "docker.io"] {
            check(&places, host, false);
        }
    }

    #[tokio::test]
    async fn mirrors_come_first_until_they_fail() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mirrors = [("docker.io".to_owned(), vec!["https://a.x/hub/".to_owned(), "https://b.x".to_owned()])];
        let places = Places::new(Options { mirrors: mirrors.into(), ..Options::default() }).unwrap();
        let image: ImageRef = "alpine".parse().unwrap();
        let bases = async || places.of(&image).await.into_iter().map(|it| (it.base, it.mirror)).collect::<Vec<_>>();
        let hub = ("https://registry-1.docker.io".to_owned(), false);
        let (a, b) = (("https://a.x/hub".to_owned(), true), ("https://b.x".to_owned(), true));
        assert_eq!(bases().await, [a.clone(), b.clone(), hub.clone()]);
        let first = places.of(&image).await.swap_remove(0);
        places.disappointed(&first, &RegistryError::NotFound { registry: "a.x".into(), image: image.clone() });
        assert_eq!(bases().await.len(), 3, "it merely has not this one");
        places.disappointed(&first, &RegistryError::Network { registry: "a.x".into(), problem: "down".into() });
        assert_eq!(bases().await, [b, hub]);
        assert!(places.may_begin(&first, Digest::of(b"x")) && !places.may_begin(&first, Digest::of(b"x")));
        assert!(places.may_begin(&first, Digest::of(b"y")));
    }
}
