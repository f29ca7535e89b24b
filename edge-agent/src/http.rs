//! The HTTP server: status page, metrics, health, and readings.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{Html, IntoResponse, Response},
    routing::get,
};
use board::{
    metrics::Metrics,
    tasks::{self, Context, ServiceHealth},
};
use hyper_util::{rt::TokioIo, rt::TokioTimer, service::TowerToHyperService};
use telemetry::ingest::Ingest;
use tokio::{net::TcpListener, sync::Semaphore, task::JoinSet};

use crate::{page, status::Board};

/// Connections at the same time.
const MAX_CONNECTIONS: usize = 64;
/// The head of a request must have come by then; so long, too, may a connection do nothing.
const REQUEST_PATIENCE: Duration = Duration::from_secs(10);

/// Everything that is served on `http.listen`.
pub fn routes(ingest: &Ingest, options: &telemetry::http::Options, metrics: &Metrics, board: Arc<Board>) -> Router {
    let readings = telemetry::http::router(ingest.clone(), options, metrics);
    let metrics = metrics.clone();
    Router::new()
        .route("/", get(|State(board): State<Arc<Board>>| async move { Html(page::render(&board.status())) }))
        .route("/metrics", get(move || async move { open_metrics(&metrics) }))
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(ready))
        .with_state(board)
        .merge(readings)
        .fallback(|| async {
            let hint = "there are /, /metrics, /healthz, /readyz and POST /v1/telemetry/TOPIC";
            telemetry::http::refusal(StatusCode::NOT_FOUND, "there is no such page", hint)
        })
        .method_not_allowed_fallback(|| async {
            telemetry::http::refusal(StatusCode::METHOD_NOT_ALLOWED, "this page is read only", "use GET")
        })
}

fn open_metrics(metrics: &Metrics) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], metrics.encode()).into_response()
}

/// Ready once the sources accept readings; relays may wait for their link for days.
async fn ready(State(board): State<Arc<Board>>) -> Response {
    let is_starting = |it: &ServiceHealth| it.state == tasks::State::Starting && !it.name.starts_with("relay.");
    let starting: Vec<_> = board.health.snapshot().into_iter().filter(is_starting).collect();
    if starting.is_empty() {
        return "ok".into_response();
    }
    let names: Vec<_> = starting.into_iter().map(|service| service.name).collect();
    (StatusCode::SERVICE_UNAVAILABLE, format!("starting: {}\n", names.join(", "))).into_response()
}

/// The bound server.
#[derive(Clone)]
pub struct HttpServer {
    listener: Arc<TcpListener>,
    routes: Router,
    address: SocketAddr,
}

impl HttpServer {
    /// Binds, so that a mistake shows at start.
    pub async fn bind(address: SocketAddr, routes: Router) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(address).await.map_err(|error| {
            anyhow::Error::new(error).context(format!(
                "cannot listen for HTTP on {address}: is another program there? Set http.listen, \"\" to switch it off"
            ))
        })?;
        let address = listener.local_addr()?;
        Ok(Self { listener: Arc::new(listener), routes, address })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until stopped.
    pub async fn run(self, context: Context) -> io::Result<()> {
        context.healthy(format!("http://{}/", self.address));
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            let permit = tokio::select! {
                permit = room.clone().acquire_owned() => permit.map_err(io::Error::other)?,
                () = context.stop.cancelled() => break,
            };
            let stream = tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept an HTTP connection");
                        tokio::time::sleep(Duration::from_millis(200)).await;
                        continue;
                    }
                },
                () = context.stop.cancelled() => break,
            };
            while connections.try_join_next().is_some() {}
            let routes = self.routes.clone();
            connections.spawn(async move {
                serve(TokioIo::new(stream), routes).await;
                drop(permit);
            });
        }
        // A request in flight may finish within the supervisor's grace; keep-alive connections just go.
        let _ =
            tokio::time::timeout(Duration::from_secs(2), async { while connections.join_next().await.is_some() {} })
                .await;
        Ok(())
    }
}

/// Serves one connection, with upper bounds on headers and time.
pub async fn serve<I>(io: I, routes: Router)
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_PATIENCE)
        .max_buf_size(64 << 10)
        .serve_connection(io, TowerToHyperService::new(routes))
        .with_upgrades();
    if let Err(error) = connection.await {
        tracing::debug!(%error, "an HTTP connection broke");
    }
}
