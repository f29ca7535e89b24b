//! The agent's end of the control socket. Mode 0600, and only root and the agent's own user are answered.

use std::{
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, Path as UrlPath, Query as UrlQuery, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use board::tasks::Context;
use hyper_util::rt::TokioIo;
use telemetry::{
    ingest::Ingest,
    outbox::query::{self, Query},
    reading::NewReading,
    topic,
};
use tokio::{net::UnixListener, sync::mpsc, task::JoinSet};

use crate::{readings, status::Board};

/// Requests at the same time: fifty commands that run containers have two or three each, and others go on beside them.
const MAX_CONNECTIONS: usize = 512;

#[derive(Clone)]
struct Shared {
    ingest: Ingest,
    board: Arc<Board>,
}

/// The bound socket.
#[derive(Clone)]
pub struct Server {
    listener: Arc<UnixListener>,
    path: PathBuf,
    routes: Router,
}

impl Server {
    /// Binds `path`. A socket that is there already is stale: the caller holds the store's lock.
    pub fn bind(path: &Path, ingest: Ingest, board: Arc<Board>, engine: Option<Router>) -> anyhow::Result<Self> {
        let dir = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(dir)
            .with_context(|| format!("cannot create {}: choose another --run-dir", dir.display()))?;
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot replace the stale socket {}", path.display()));
            }
            _ => {}
        }
        let listener = UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        let routes = Router::new()
            .route("/v1/status", get(|State(it): State<Shared>| async move { Json(it.board.status()) }))
            .route("/v1/telemetry/{*topic}", post(put))
            .route("/v1/query", get(run_query))
            .route("/v1/tail", get(tail))
            .layer(DefaultBodyLimit::max(2 << 20))
            .with_state(Shared { ingest, board })
            .merge(engine.unwrap_or_default());
        Ok(Self { listener: Arc::new(listener), path: path.to_owned(), routes })
    }

    /// Serves until stopped.
    pub async fn run(self, context: Context) -> io::Result<()> {
        context.healthy(self.path.display().to_string());
        let own = std::fs::metadata("/proc/self").map_or(0, |it| std::os::unix::fs::MetadataExt::uid(&it));
        let mut connections = JoinSet::new();
        loop {
            let stream = tokio::select! {
                accepted = self.listener.accept(), if connections.len() < MAX_CONNECTIONS => accepted?.0,
                Some(_) = connections.join_next() => continue,
                () = context.stop.cancelled() => break,
            };
            let allowed = stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own);
            if allowed {
                connections.spawn(crate::http::serve(TokioIo::new(stream), self.routes.clone()));
            } else {
                tracing::warn!("a user who may not was refused on the control socket");
            }
        }
        connections.shutdown().await;
        Ok(())
    }
}

async fn put(State(shared): State<Shared>, UrlPath(topic): UrlPath<String>, payload: Bytes) -> Response {
    let refused =
        |status: StatusCode, error: String| (status, Json(serde_json::json!({ "error": error }))).into_response();
    if let Err(error) = topic::check_name(&topic) {
        return refused(StatusCode::BAD_REQUEST, error.to_string());
    }
    match shared.ingest.submit(vec![NewReading { topic: topic.clone(), payload }]).await {
        Ok(Some(range)) => Json(serde_json::json!({ "seq": range.start })).into_response(),
        Ok(None) => refused(StatusCode::BAD_REQUEST, format!("topic {topic:?} is not kept: see outbox.topics")),
        Err(error) => refused(StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
    }
}

/// What a query asks for, in the URL.
#[derive(Debug, Default, serde::Deserialize)]
struct Asked {
    topic: Option<String>,
    since_us: Option<i64>,
    until_us: Option<i64>,
    limit: Option<u64>,
}

async fn run_query(State(shared): State<Shared>, UrlQuery(asked): UrlQuery<Asked>) -> Response {
    let (lines, body) = mpsc::channel::<Result<Bytes, io::Error>>(4);
    let query = Query { topic: asked.topic, since_us: asked.since_us, until_us: asked.until_us, from_seq: 1 };
    let limit = usize::try_from(asked.limit.unwrap_or(u64::MAX)).unwrap_or(usize::MAX);
    // Ends when the reader of the body goes away: sending fails then.
    tokio::task::spawn_blocking(move || {
        let outbox = &shared.ingest.outbox;
        let mut chunk = Vec::new();
        for found in query::run(outbox.log(), outbox.clock(), &query).take(limit) {
            match found {
                Ok((reading, time_us)) => append(&mut chunk, &readings::rows(outbox.epoch(), &reading, time_us)),
                Err(error) => {
                    let _ = lines.blocking_send(Err(io::Error::other(error)));
                    return;
                }
            }
            if chunk.len() > 32 << 10 && lines.blocking_send(Ok(std::mem::take(&mut chunk).into())).is_err() {
                return;
            }
        }
        if !chunk.is_empty() {
            let _ = lines.blocking_send(Ok(chunk.into()));
        }
    });
    ndjson(body)
}

fn append(chunk: &mut Vec<u8>, rows: &[readings::Row]) {
    for row in rows {
        // A row is strings and numbers: it has a JSON form.
        let _ = serde_json::to_writer(&mut *chunk, row);
        chunk.push(b'\n');
    }
}

fn ndjson(body: mpsc::Receiver<Result<Bytes, io::Error>>) -> Response {
    let stream = futures_util::stream::unfold(body, |mut body| async { Some((body.recv().await?, body)) });
    ([("content-type", "application/x-ndjson")], Body::from_stream(stream)).into_response()
}

/// Messages as they come, for `telemetry tail`.
async fn tail(State(shared): State<Shared>, UrlQuery(asked): UrlQuery<Asked>) -> Response {
    let filter = asked.topic.unwrap_or_else(|| "#".to_owned());
    if let Err(error) = topic::check_filter(&filter) {
        return (StatusCode::BAD_REQUEST, error.to_string()).into_response();
    }
    let tap = shared.ingest.router.tap(&filter);
    let (epoch, clock) = (shared.ingest.outbox.epoch(), shared.ingest.outbox.clock().clone());
    let stream = futures_util::stream::unfold(tap, move |mut tap| {
        let clock = clock.clone();
        async move {
            let message = tap.recv().await?;
            let stamp = clock.stamp();
            let (topic, payload) = (message.topic.clone(), message.payload.clone());
            let reading = telemetry::reading::Reading { seq: 0, stamp, topic, payload };
            let mut chunk = Vec::new();
            append(&mut chunk, &readings::rows(epoch, &reading, clock.correct(&stamp).time_us));
            Some((Ok::<_, io::Error>(Bytes::from(chunk)), tap))
        }
    });
    ([("content-type", "application/x-ndjson")], Body::from_stream(stream)).into_response()
}

/// How long a command waits for the agent.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
