//! HTTP requests of probes and hooks, with the words of the kubelet's client where events carry them.
//!
//! One connection for each request, HTTP/1.1, closed afterwards: a probe must not be answered by a connection that was
//! made before the server went bad.
//!
//! Elsewhere: what an answer means (`run` for probes, `hook` for hooks).

use std::{io, time::Duration};

use bytes::Bytes;
use futures_util::future::{Either, select};
use http_body_util::{BodyExt, Empty};
use hyper::{
    Request, Response, StatusCode, Uri,
    body::Incoming,
    client::conn::http1,
    header::{self, HeaderMap, HeaderName, HeaderValue},
};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction};
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use super::{
    MAX_OUTPUT,
    port::{self, PortError},
    tls,
};

/// Most bytes of an answer's head.
const MAX_HEAD: usize = 64 << 10;
/// Requests of one probe, redirects included.
const MAX_REQUESTS: usize = 10;

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A probe.
    Probe,
    /// A hook of a container's life.
    Lifecycle,
}

impl Purpose {
    fn agent(self) -> &'static str {
        match self {
            Self::Probe => "kube-probe/1.36",
            Self::Lifecycle => "kube-lifecycle/1.36",
        }
    }
}

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Get {
    /// Over TLS.
    pub tls: bool,
    /// Name or address, an IPv6 address without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Path and query.
    pub target: String,
    /// The `Host` header where another is wanted.
    pub host_header: Option<String>,
    /// The others.
    pub headers: HeaderMap,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Status.
    pub status: StatusCode,
    /// Its beginning, up to [`MAX_OUTPUT`].
    pub body: String,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The port.
    #[error(transparent)]
    Port(#[from] PortError),
    /// A header that no request can have.
    #[error("net/http: invalid header field {0:?}")]
    Header(String),
    /// No connection, or it broke.
    #[error("Get {url:?}: {problem}")]
    Connection {
        /// Where.
        url: String,
        /// What.
        problem: String,
    },
    /// Plain HTTP where TLS was wanted.
    #[error("Get {url:?}: http: server gave HTTP response to HTTPS client")]
    Plain {
        /// Where.
        url: String,
    },
    /// It took too long.
    #[error("Get {url:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)")]
    Timeout {
        /// Where.
        url: String,
    },
    /// It leads in circles.
    #[error("Get {url:?}: stopped after {MAX_REQUESTS} redirects")]
    Redirects {
        /// Where it led last.
        url: String,
    },
}

impl Get {
    /// What the pod asks for; `ip` is the pod's address.
    pub fn of(action: &HTTPGetAction, container: &Container, ip: &str, purpose: Purpose) -> Result<Self, HttpError> {
        let port = port::resolve(&action.port, container)?;
        let host = action.host.as_deref().filter(|host| !host.is_empty()).unwrap_or(ip).to_owned();
        let tls = action.scheme.as_deref().is_some_and(|scheme| scheme.eq_ignore_ascii_case("https"));
        let mut headers = HeaderMap::new();
        let mut host_header = None;
        for pair in action.http_headers.iter().flatten() {
            let bad = || HttpError::Header(pair.name.chars().take(64).collect());
            let name = HeaderName::from_bytes(pair.name.as_bytes()).map_err(|_| bad())?;
            let value = HeaderValue::from_str(&pair.value).map_err(|_| bad())?;
            if name == header::HOST {
                host_header = host_header.or_else(|| Some(pair.value.clone()).filter(|value| !value.is_empty()));
            } else {
                headers.append(name, value);
            }
        }
        headers.entry(header::USER_AGENT).or_insert(HeaderValue::from_static(purpose.agent()));
        if headers.entry(header::ACCEPT).or_insert(HeaderValue::from_static("*/*")).is_empty() {
            headers.remove(header::ACCEPT);
        }
        let target = target(action.path.as_deref().unwrap_or_default());
        Ok(Self { tls, host, port, target, host_header, headers })
    }

    /// In messages.
    pub fn url(&self) -> String {
        format!("{}://{}{}", if self.tls { "https" } else { "http" }, self.authority(), self.target)
    }

    /// `HOST:PORT`.
    pub fn authority(&self) -> String {
        authority(&self.host, self.port)
    }

    /// Where a redirect leads: another request to the same host, or `None` where it leads elsewhere or nowhere.
    fn redirected(&self, location: &str) -> Option<Self> {
        let uri = if let Some(rest) = location.strip_prefix("//") {
            format!("{}://{rest}", if self.tls { "https" } else { "http" })
        } else {
            location.to_owned()
        };
        if !uri.contains("://") {
            // Within the same server: an absolute path, a query, or a path beside this one.
            let here = self.target.split(['?', '#']).next().unwrap_or("/");
            let whole = match uri.as_bytes().first() {
                Some(b'/') => uri,
                Some(b'?') => format!("{here}{uri}"),
                _ => format!("{}{uri}", &here[..=here.rfind('/').unwrap_or(0)]),
            };
            return Some(Self { target: target(&whole), ..self.clone() });
        }
        let uri: Uri = uri.parse().ok()?;
        let tls = match uri.scheme_str()? {
            "http" => false,
            "https" => true,
            _ => return None,
        };
        let host = uri.host()?.trim_matches(['[', ']']);
        if !host.eq_ignore_ascii_case(&self.host) {
            return None;
        }
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let path = target(uri.path_and_query().map_or("/", |path| path.as_str()));
        Some(Self { tls, port, target: path, host_header: None, ..self.clone() })
    }
}

/// `HOST:PORT`, an IPv6 address in brackets.
pub fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Path and query of what a pod calls a path; what may not stand in a request is escaped.
fn target(path: &str) -> String {
    let path = path.split('#').next().unwrap_or_default();
    // An address in full: only its path counts.
    let path = path
        .split_once("://")
        .filter(|(scheme, _)| !scheme.contains(['/', '?']))
        .map_or(path, |(_, rest)| rest.find(['/', '?']).map_or("", |at| &rest[at..]));
    let mut out = String::with_capacity(path.len() + 1);
    if !path.starts_with('/') {
        out.push('/');
    }
    for byte in path.bytes() {
        if byte.is_ascii_graphic() && !matches!(byte, b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// Asks, and follows redirects as long as they stay on the same host: an answer that leads elsewhere is the last one.
///
/// * Errors: of connection, time and form; an answer of any status is none.
/// * Cancelled: the connection is closed.
pub async fn get(first: &Get, limit: Option<Duration>) -> Result<Answer, HttpError> {
    let asked = follow(first);
    match limit {
        Some(limit) => {
            let late = |_| HttpError::Timeout { url: first.url() };
            tokio::time::timeout(limit, asked).await.map_err(late)?
        }
        None => asked.await,
    }
}

async fn follow(first: &Get) -> Result<Answer, HttpError> {
    let mut get = first.clone();
    for _ in 0..MAX_REQUESTS {
        let (status, location, body) = once(&get).await?;
        let redirects = matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308);
        match location.filter(|_| redirects).and_then(|location| get.redirected(&location)) {
            Some(next) => get = next,
            None => return Ok(Answer { status, body }),
        }
    }
    Err(HttpError::Redirects { url: get.url() })
}

async fn once(get: &Get) -> Result<(StatusCode, Option<String>, String), HttpError> {
    let broken = |problem: String| HttpError::Connection { url: get.url(), problem };
    let authority = get.authority();
    let socket = TcpStream::connect((get.host.as_str(), get.port)).await;
    let socket = socket.map_err(|error| broken(dial_problem(&authority, &error)))?;
    if !get.tls {
        return exchange(get, socket).await;
    }
    let config = tls::config().map_err(|error| broken(error.to_string()))?;
    let name = ServerName::try_from(get.host.clone()).map_err(|error| broken(error.to_string()))?;
    match tokio_rustls::TlsConnector::from(config).connect(name, socket).await {
        Ok(stream) => exchange(get, stream).await,
        Err(error) if tls::is_plain_answer(&error) => Err(HttpError::Plain { url: get.url() }),
        Err(error) => Err(broken(error.to_string())),
    }
}

/// In Go's words: `dial tcp 10.0.0.1:80: connect: connection refused`.
pub fn dial_problem(authority: &str, error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let call = if error.raw_os_error().is_some() { "connect: " } else { "" };
    format!("dial tcp {authority}: {call}{}", text.to_lowercase())
}

async fn exchange<S>(get: &Get, stream: S) -> Result<(StatusCode, Option<String>, String), HttpError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let broken = |error: &(dyn std::error::Error + 'static)| HttpError::Connection {
        url: get.url(),
        problem: board::tasks::chain(error),
    };
    let mut request = Request::get(get.target.as_str()).body(Empty::<Bytes>::new()).map_err(|error| broken(&error))?;
    let host = get.host_header.clone().unwrap_or_else(|| {
        // As browsers and Go do, the usual port is not named.
        let usual = if get.tls { 443 } else { 80 };
        let whole = get.authority();
        if get.port == usual {
            whole.rsplit_once(':').map_or(whole.clone(), |(host, _)| host.to_owned())
        } else {
            whole
        }
    });
    *request.headers_mut() = get.headers.clone();
    let host = HeaderValue::from_str(&host).map_err(|error| broken(&error))?;
    request.headers_mut().insert(header::HOST, host);
    request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    let mut builder = http1::Builder::new();
    builder.max_buf_size(MAX_HEAD);
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
    let asked = std::pin::pin!(async {
        let response = sender.send_request(request).await?;
        read(response).await
    });
    let done = match select(asked, std::pin::pin!(connection)).await {
        Either::Left((done, _)) => done,
        // The connection has ended; what it brought is still to be read.
        Either::Right((_, asked)) => asked.await,
    };
    done.map_err(|error| broken(&error))
}

async fn read(response: Response<Incoming>) -> Result<(StatusCode, Option<String>, String), hyper::Error> {
    let (head, mut body) = response.into_parts();
    let location = head.headers.get(header::LOCATION).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let mut bytes = Vec::new();
    while bytes.len() < MAX_OUTPUT {
        let Some(frame) = body.frame().await else { break };
        if let Ok(data) = frame?.into_data() {
            let room = (MAX_OUTPUT - bytes.len()).min(data.len());
            bytes.extend_from_slice(&data[..room]);
        }
    }
    Ok((head.status, location, String::from_utf8_lossy(&bytes).into_owned()))
}

#[cfg(test)]
mod tests;
