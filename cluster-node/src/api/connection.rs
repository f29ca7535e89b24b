//! The one connection to the API server: HTTP/2 over TLS, made when it is needed, made anew when it broke.
//!
//! Always true:
//! - All requests share it; a request that finds it broken waits for the next one to be made, at most [`CONNECT`].
//! - A peer that says nothing is found out by pings within half a minute, and then every request on it fails.
//! - The task that drives it belongs to it and ends with it.

use std::{sync::Arc, time::Duration};

use board::{clock::Clock, tasks::chain};
use hyper::{
    Request, Response,
    body::Incoming,
    client::conn::http2::{self, SendRequest},
    header::{AUTHORIZATION, DATE, HOST, HeaderValue, USER_AGENT},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use kube::client::Body;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    net::TcpStream,
    sync::{Mutex, watch},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::{ConnectError, Link, Server, Wire};

/// Longest way to a connection: TCP, TLS and HTTP/2.
const CONNECT: Duration = Duration::from_secs(15);
/// Longest wait for the head of an answer. The API server ends requests after a minute.
const ANSWER: Duration = Duration::from_secs(65);
/// Pings go out this often, and are waited for so long.
const PING: Duration = Duration::from_secs(15);

/// Who the node is to the server.
pub(super) struct Dialer {
    pub server: Server,
    /// Absent where the board is in no cluster: nothing is ever asked then.
    pub tls: Option<Arc<ClientConfig>>,
    /// A bootstrap token, where there is no certificate yet.
    pub token: Option<HeaderValue>,
    pub wire: Wire,
    /// Told the server's time; absent where whoever answers is believed: his time would hold for all of the agent's TLS.
    pub clock: Option<Clock>,
    pub link: watch::Sender<Link>,
    pub open: Mutex<Option<Open>>,
}

/// A connection and what drives it.
pub(super) struct Open {
    sender: SendRequest<Body>,
    _driver: JoinSet<()>,
}

impl Dialer {
    /// Sends a request and gives the head of its answer.
    pub async fn send(self: Arc<Self>, mut request: Request<Body>) -> Result<Response<Incoming>, ConnectError> {
        let outcome = timeout(CONNECT, self.sender()).await;
        let sender = outcome.unwrap_or_else(|_| Err(self.problem("no answer within 15 s")));
        let mut sender = match sender {
            Ok(sender) => sender,
            Err(error) => {
                self.is_down(&error.to_string());
                return Err(error);
            }
        };
        self.complete(&mut request)?;
        let answer = match timeout(ANSWER, sender.send_request(request)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(self.lost(&chain(&error)).await),
            Err(_) => return Err(self.lost("no answer within 65 s").await),
        };
        self.is_up();
        let date = answer.headers().get(DATE).and_then(|it| it.to_str().ok()).and_then(http_date);
        if let (Some(clock), Some(at)) = (&self.clock, date) {
            clock.observe(at, "the API server");
        }
        Ok(answer)
    }

    /// Drops the connection; the next request makes another.
    pub async fn hang_up(&self) {
        *self.open.lock().await = None;
    }

    async fn sender(&self) -> Result<SendRequest<Body>, ConnectError> {
        let mut open = self.open.lock().await;
        if let Some(it) = open.as_ref().filter(|it| !it.sender.is_closed()) {
            return Ok(it.sender.clone());
        }
        *open = None;
        let made = self.connect().await?;
        let sender = made.sender.clone();
        *open = Some(made);
        Ok(sender)
    }

    async fn connect(&self) -> Result<Open, ConnectError> {
        let tls = self.tls.clone().ok_or_else(|| self.problem("this board has not joined a cluster"))?;
        let stream = TcpStream::connect((self.server.host.as_str(), self.server.port))
            .await
            .map_err(|it| self.problem(chain(&it)))?;
        stream.set_nodelay(true).map_err(|it| self.problem(chain(&it)))?;
        let name = ServerName::try_from(self.server.host.clone()).map_err(|it| self.problem(chain(&it)))?;
        let connector = TlsConnector::from(tls);
        let stream = connector.connect(name, self.wire.count(stream)).await.map_err(|it| self.problem(chain(&it)))?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING)
            .keep_alive_timeout(PING)
            .keep_alive_while_idle(true)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|it| self.problem(chain(&it)))?;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            // A break shows at the requests.
            let _ = connection.await;
        });
        Ok(Open { sender, _driver: driver })
    }

    /// HTTP/2 wants the whole address in the request.
    fn complete(&self, request: &mut Request<Body>) -> Result<(), ConnectError> {
        let path = request.uri().path_and_query().map_or("/", |it| it.as_str());
        let whole = format!("https://{}{path}", self.server.authority());
        *request.uri_mut() = whole.parse().map_err(|_| self.problem(format!("{path:?} is no path")))?;
        let headers = request.headers_mut();
        headers.remove(HOST);
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("edge-agent/", env!("CARGO_PKG_VERSION"))));
        if let Some(token) = &self.token {
            headers.insert(AUTHORIZATION, token.clone());
        }
        Ok(())
    }

    fn problem(&self, problem: impl Into<String>) -> ConnectError {
        ConnectError { server: self.server.authority(), problem: problem.into() }
    }

    /// A connection on which a request broke is not used again.
    async fn lost(&self, problem: &str) -> ConnectError {
        self.hang_up().await;
        self.is_down(problem);
        self.problem(problem)
    }

    fn is_up(&self) {
        self.link.send_if_modified(|link| {
            let changes = !matches!(link, Link::Up);
            if changes {
                tracing::info!(server = %self.server.authority(), "the API server answers");
                *link = Link::Up;
            }
            changes
        });
    }

    fn is_down(&self, problem: &str) {
        self.link.send_if_modified(|link| {
            if let Link::Down { problem: before, .. } = link {
                problem.clone_into(before);
                return false;
            }
            if self.tls.is_some() {
                tracing::warn!(server = %self.server.authority(), problem, "the API server does not answer");
            }
            *link = Link::Down { since: std::time::Instant::now(), problem: problem.to_owned() };
            true
        });
    }
}

/// Microseconds since 1970 of an HTTP date.
fn http_date(text: &str) -> Option<i64> {
    let at = jiff::fmt::rfc2822::parse(text).ok()?;
    Some(at.timestamp().as_microsecond())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_servers_date_is_read() {
        assert_eq!(super::http_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777_000_000));
        assert_eq!(super::http_date("yesterday"), None);
    }
}
