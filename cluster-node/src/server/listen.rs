//! The listeners: HTTPS for the cluster, and a plain `/healthz` for the board itself.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use board::tasks::Context;
use hyper::{Method, Request, StatusCode, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use super::{
    answer::{self, Answer},
    auth::{self, User},
    service::Service,
};

/// Connections at a time; sessions that have taken one over are counted apart.
const MAX_CONNECTIONS: usize = 256;
/// Those of the plain listener.
const MAX_PLAIN: usize = 16;
/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a request's head may take, and how long a connection may wait for one.
const HEAD: Duration = Duration::from_secs(120);
/// Most bytes of a request's head.
const MAX_HEAD: usize = 64 << 10;
/// Most headers of a request.
const MAX_HEADERS: usize = 64;
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
    let each = move |stream: TcpStream| {
        let (acceptor, service) = (acceptor.clone(), service.clone());
        async move {
            let Ok(Ok(stream)) = timeout(HANDSHAKE, acceptor.accept(stream)).await else { return };
            let (_, session) = stream.get_ref();
            let certificate = session.peer_certificates().and_then(|chain| chain.first());
            let user = certificate.and_then(auth::user_of);
            secure(stream, user, service).await;
        }
    };
    accept(&listener, MAX_CONNECTIONS, each, context).await;
}

async fn secure<I: AsyncRead + AsyncWrite + Unpin + Send + 'static>(io: I, user: Option<User>, service: Arc<Service>) {
    let answer = service_fn(move |request: Request<Incoming>| {
        let (service, user) = (service.clone(), user.clone());
        async move { Ok::<_, std::convert::Infallible>(service.answer(request, user).await) }
    });
    let connection = builder().serve_connection(TokioIo::new(io), answer).with_upgrades();
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection to the node's API broke");
    }
}

/// Serves the plain health page until stopped.
pub async fn plain(listener: Arc<TcpListener>, service: Arc<Service>, context: &Context) {
    let each = move |stream: TcpStream| {
        let service = service.clone();
        let answer = service_fn(move |request: Request<Incoming>| {
            let answer = healthz(&request, &service);
            async move { Ok::<_, std::convert::Infallible>(answer) }
        });
        async move {
            if let Err(error) = builder().serve_connection(TokioIo::new(stream), answer).await {
                tracing::debug!(%error, "a connection to the health page broke");
            }
        }
    };
    accept(&listener, MAX_PLAIN, each, context).await;
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
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(MAX_HEAD).max_headers(MAX_HEADERS);
    builder
}

/// Accepts connections until stopped; then lets those that are there finish, for a short while.
async fn accept<F, Fut>(listener: &TcpListener, most: usize, each: F, context: &Context)
where
    F: Fn(TcpStream) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    let room = Arc::new(Semaphore::new(most));
    let mut connections = JoinSet::new();
    while let Some((stream, permit)) = next(listener, &room, context).await {
        while connections.try_join_next().is_some() {}
        // It speaks in small pieces: one that waits for more would be seen.
        let _ = stream.set_nodelay(true);
        let serving = each(stream);
        connections.spawn(async move {
            serving.await;
            drop(permit);
        });
    }
    let _ = timeout(GRACE, async { while connections.join_next().await.is_some() {} }).await;
    connections.shutdown().await;
}

async fn next(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
    context: &Context,
) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let wait = async {
        let permit = room.clone().acquire_owned().await.ok()?;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => return Some((stream, permit)),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection to the node's API");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
    };
    tokio::select! {
        connection = wait => connection,
        () = context.stop.cancelled() => None,
    }
}
