//! The listeners: HTTPS for the cluster, and a plain `/healthz` for the board itself.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use board::tasks::Context;
use hyper::{Method, Request, StatusCode, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::sockopt;
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use super::{
    answer::{self, Answer},
    auth::{self, User},
    door::{Bounds, Door, Stranger},
    service::Service,
};

/// Connections at a time; sessions that have taken one over are counted apart. The API server makes one for each log that
/// it follows.
const BOUNDS: Bounds = Bounds { strangers: 128, of_one: 32, known: 512 };
/// Those of the plain listener.
const PLAIN: Bounds = Bounds { strangers: 16, of_one: 16, known: 0 };
/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a request's head may take, and how long a connection may wait for one.
const HEAD: Duration = Duration::from_secs(120);
/// Most bytes of a request's head: commands are in its path.
const MAX_HEAD: usize = 256 << 10;
/// Before the next try where nothing can be accepted: files are short, perhaps.
const PAUSE: Duration = Duration::from_millis(200);
/// How long what is under way may take when we stop.
const GRACE: Duration = Duration::from_secs(2);

/// There is no listener.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for {what}: is a kubelet running here? Stop it, or set {key}")]
pub struct BindError {
    /// Where.
    pub address: SocketAddr,
    /// For whom.
    pub what: &'static str,
    /// Key of the configuration.
    pub key: &'static str,
    /// Why.
    pub source: io::Error,
}

/// Binds, so that a mistake shows at start.
pub async fn bind(address: SocketAddr, what: &'static str, key: &'static str) -> Result<TcpListener, BindError> {
    TcpListener::bind(address).await.map_err(|source| BindError { address, what, key, source })
}

/// Serves HTTPS until stopped.
pub async fn https(listener: Arc<TcpListener>, tls: Arc<ServerConfig>, service: Arc<Service>, context: &Context) {
    let acceptor = TlsAcceptor::from(tls);
    let door = Door::new(BOUNDS);
    let each = |stream: TcpStream, stranger: Stranger| {
        let (acceptor, service, door) = (acceptor.clone(), service.clone(), door.clone());
        async move {
            let Ok(Ok(stream)) = timeout(HANDSHAKE, acceptor.accept(stream)).await else { return };
            let (_, session) = stream.get_ref();
            let certificate = session.peer_certificates().and_then(|chain| chain.first());
            if let Some(user) = certificate.and_then(auth::user_of) {
                let Some(_place) = door.recognize(stranger) else { return };
                secure(stream, Some(user), service).await;
            } else {
                secure(stream, None, service).await;
                drop(stranger);
            }
        }
    };
    accept(&listener, &door, each, context).await;
}

async fn secure<I: AsyncRead + AsyncWrite + Unpin + Send + 'static>(io: I, user: Option<User>, service: Arc<Service>) {
    let stop = service.stop().clone();
    let answer = service_fn(move |request: Request<Incoming>| {
        let (service, user) = (service.clone(), user.clone());
        async move { Ok::<_, std::convert::Infallible>(service.answer(request, user).await) }
    });
    let connection = builder().serve_connection(TokioIo::new(io), answer).with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        // A request that is under way is answered, one that has not come is not waited for.
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "a connection to the node's API broke");
    }
}

/// Serves the plain health page until stopped.
pub async fn plain(listener: Arc<TcpListener>, service: Arc<Service>, context: &Context) {
    let each = |stream: TcpStream, stranger: Stranger| {
        let service = service.clone();
        let answer = service_fn(move |request: Request<Incoming>| {
            let answer = healthz(&request, &service);
            async move { Ok::<_, std::convert::Infallible>(answer) }
        });
        async move {
            if let Err(error) = builder().serve_connection(TokioIo::new(stream), answer).await {
                tracing::debug!(%error, "a connection to the health page broke");
            }
            drop(stranger);
        }
    };
    accept(&listener, &Door::new(PLAIN), each, context).await;
}

fn healthz(request: &Request<Incoming>, service: &Service) -> Answer {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return answer::text(StatusCode::METHOD_NOT_ALLOWED, "405 method not allowed\n");
    }
    match request.uri().path().trim_end_matches('/').strip_prefix("/healthz") {
        Some("") => service.health(None, request.uri().query()),
        Some(check) if check.starts_with('/') => service.health(Some(&check[1..]), request.uri().query()),
        _ => answer::text(StatusCode::NOT_FOUND, "404 page not found\n"),
    }
}

fn builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(MAX_HEAD);
    builder
}

/// Accepts connections until stopped; then lets those that are there finish, for a short while.
async fn accept<F, Fut>(listener: &TcpListener, door: &Door, each: F, context: &Context)
where
    F: Fn(TcpStream, Stranger) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        let (stream, address) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection to the node's API");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            },
            () = context.stop.cancelled() => break,
        };
        while connections.try_join_next().is_some() {}
        let Some(stranger) = door.admit(address.ip()) else {
            tracing::debug!(%address, "a connection to the node's API is one too many");
            continue;
        };
        if let Err(error) = tune(&stream) {
            tracing::debug!(%error, "a connection to the node's API keeps the kernel's settings");
        }
        connections.spawn(each(stream, stranger));
    }
    let _ = timeout(GRACE, async { while connections.join_next().await.is_some() {} }).await;
    connections.shutdown().await;
}

/// It speaks in small pieces: one that waits for more would be seen. A silent connection whose peer is gone is found out after
/// two minutes: a log that nobody writes to would be followed for ever.
fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(60))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(15))?;
    // No TCP_USER_TIMEOUT: it would also end whoever reads a log in a pager and takes his time.
    Ok(sockopt::set_tcp_keepcnt(stream, 4)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn peers_that_are_gone_are_missed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        tune(&stream).unwrap();
        assert!(sockopt::socket_keepalive(&stream).unwrap() && stream.nodelay().unwrap());
        assert_eq!(sockopt::tcp_keepidle(&stream).unwrap(), Duration::from_secs(60));
        assert_eq!(sockopt::tcp_keepcnt(&stream).unwrap(), 4);
    }
}
