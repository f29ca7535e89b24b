//! The API server as the node sees it: one connection whose certificate can be replaced, lists and watches, the state of
//! the link.
//!
//! Elsewhere: where certificates come from (`join`), what is asked for (everywhere).

mod connection;
mod error;
pub mod tls;
pub mod watch;
mod wire;

use std::{
    fmt,
    future::Future,
    pin::Pin,
    str::FromStr,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use board::clock::Clock;
use hyper::{Request, Response, body::Incoming, header::HeaderValue};
use kube::client::Body;
use tokio::sync::watch as channel;

pub use error::{Failure, failure};
pub use wire::Wire;

use connection::Dialer;
use tls::{ClientCertificate, TlsError};

/// Whether the API server can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// Nothing was asked yet.
    Unknown,
    /// It answered the last time.
    Up,
    /// It did not.
    Down {
        /// Since when.
        since: Instant,
        /// Why, as of the last try.
        problem: String,
    },
}

/// Where the API server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Name or address; an IPv6 address without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
}

/// Not the URL of an API server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no API server: write https://HOST:PORT or HOST:PORT")]
pub struct ServerError(pub String);

impl Server {
    /// `HOST:PORT`, with brackets round an IPv6 address.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for Server {
    type Err = ServerError;

    fn from_str(text: &str) -> Result<Self, ServerError> {
        let wrong = || ServerError(text.chars().take(256).collect());
        let rest = text.strip_prefix("https://").unwrap_or(text).trim_end_matches('/');
        let uri: hyper::http::uri::Authority = rest.parse().map_err(|_| wrong())?;
        let host = uri.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() || rest.contains('@') {
            return Err(wrong());
        }
        let port = match uri.port() {
            Some(port) => port.as_str().parse().map_err(|_| wrong())?,
            // Something is there, and it is no port.
            None if uri.host().len() != rest.len() => return Err(wrong()),
            None if text.starts_with("https://") => 443,
            None => 6443,
        };
        Ok(Self { host, port })
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}", self.authority())
    }
}

/// The API server could not be reached, or broke off.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the API server at {server} cannot be reached: {problem}")]
pub struct ConnectError {
    /// `HOST:PORT`.
    pub server: String,
    /// Why.
    pub problem: String,
}

/// The API server; cheap to clone.
#[derive(Clone)]
pub struct Api {
    client: kube::Client,
    dialer: Arc<Dialer>,
    certificate: Arc<ClientCertificate>,
}

/// How the node shows who it is.
pub enum Identity {
    /// A client certificate and its key, PEM.
    Certificate {
        /// The chain.
        chain: Vec<u8>,
        /// The key.
        key: Vec<u8>,
    },
    /// A bearer token, as `kubeadm join` has one.
    Token(String),
    /// Not at all.
    Nobody,
}

impl Api {
    /// Connects at the first request. `ca` is PEM: nobody else is trusted.
    pub fn new(server: Server, ca: &[u8], identity: Identity, clock: Clock, wire: Wire) -> Result<Self, TlsError> {
        let (certificate, token) = match identity {
            Identity::Certificate { chain, key } => (ClientCertificate::new(&chain, &key)?, None),
            Identity::Token(token) => {
                let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| TlsError::Pem {
                    what: "the token",
                    problem: "it has characters that no token has".to_owned(),
                })?;
                value.set_sensitive(true);
                (ClientCertificate::default(), Some(value))
            }
            Identity::Nobody => (ClientCertificate::default(), None),
        };
        let certificate = Arc::new(certificate);
        let tls = tls::config(ca, certificate.clone())?;
        let link = channel::Sender::new(Link::Unknown);
        let dialer = Arc::new(Dialer {
            server,
            tls: Some(tls),
            token,
            wire,
            clock: Some(clock),
            link,
            open: tokio::sync::Mutex::default(),
        });
        let client = kube::Client::new(Service(dialer.clone()), "default");
        Ok(Self { client, dialer, certificate })
    }

    /// That of a board which is in no cluster: down from the start, and every request fails at once.
    pub fn nowhere(clock: Clock, wire: Wire) -> Self {
        let problem = "this board has not joined a cluster".to_owned();
        let link = channel::Sender::new(Link::Down { since: Instant::now(), problem });
        let server = Server { host: "none".to_owned(), port: 0 };
        let open = tokio::sync::Mutex::default();
        let dialer = Arc::new(Dialer { server, tls: None, token: None, wire, clock: Some(clock), link, open });
        let client = kube::Client::new(Service(dialer.clone()), "default");
        Self { client, dialer, certificate: Arc::default() }
    }

    /// One that believes whoever answers, and shows nothing of itself: for what is signed otherwise.
    pub(crate) fn unverified(server: Server, wire: Wire) -> Result<Self, TlsError> {
        let tls = crate::join::anybody().map_err(|error| TlsError::Pem { what: "TLS", problem: error.to_string() })?;
        let link = channel::Sender::new(Link::Unknown);
        let open = tokio::sync::Mutex::default();
        let dialer = Arc::new(Dialer { server, tls: Some(tls), token: None, wire, clock: None, link, open });
        let client = kube::Client::new(Service(dialer.clone()), "default");
        Ok(Self { client, dialer, certificate: Arc::default() })
    }

    /// Whether there is a cluster at all.
    pub fn is_somewhere(&self) -> bool {
        self.dialer.tls.is_some()
    }

    /// For typed requests.
    pub fn client(&self) -> kube::Client {
        self.client.clone()
    }

    /// Whether the server answers, as of the last request.
    pub fn link(&self) -> channel::Receiver<Link> {
        self.dialer.link.subscribe()
    }

    /// Where it is.
    pub fn server(&self) -> &Server {
        &self.dialer.server
    }

    /// Bytes on the wire.
    pub fn wire(&self) -> &Wire {
        &self.dialer.wire
    }

    /// Another certificate from now on; the connection is made anew with it.
    pub async fn replace_certificate(&self, chain: &[u8], key: &[u8]) -> Result<(), TlsError> {
        self.certificate.replace(chain, key)?;
        self.dialer.hang_up().await;
        Ok(())
    }

    /// The network has changed: the next request does not wait for a connection that may be dead.
    pub async fn reconnect(&self) {
        self.dialer.hang_up().await;
    }
}

/// The connection as kube's client wants it.
struct Service(Arc<Dialer>);

impl tower::Service<Request<Body>> for Service {
    type Response = Response<Incoming>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.0.clone().send(request))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read_as_kubeadm_and_kubeconfigs_write_them() {
        let server = |host: &str, port| Ok(Server { host: host.into(), port });
        for (text, want) in [
            ("10.0.0.1:6443", server("10.0.0.1", 6443)),
            ("https://core.example.org:8443/", server("core.example.org", 8443)),
            ("https://core.example.org", server("core.example.org", 443)),
            ("core.example.org", server("core.example.org", 6443)),
            ("https://[fd00::1]:6443", server("fd00::1", 6443)),
        ] {
            assert_eq!(text.parse::<Server>(), want, "{text}");
        }
        for wrong in ["", "https://", "a b", "https://x/y", "http://x", "u@h:1", "h:99999"] {
            assert!(wrong.parse::<Server>().is_err(), "{wrong}");
        }
        assert_eq!(Server { host: "fd00::1".into(), port: 1 }.authority(), "[fd00::1]:1");
    }
}
