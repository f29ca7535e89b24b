//! `/v1/containers…`

use std::time::Duration;

use axum::{
    Json, Router,
    body::Body,
    extract::{DefaultBodyLimit, Path, Query, Request, State},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use container_engine::{
    commit::CommitRequest,
    container::{
        ContainerId, ContainerSpec, Created, ExecSpec, Exit, Inspect, ListFilter, PathStat, Process, Pruned,
        PutOptions, RemoveOptions, Resources, Seccomp, Started, Stats, Summary, TtySize, WaitFor,
    },
    logs::ReadOptions,
    shim::Attach,
};
use futures_util::TryStreamExt;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio_util::io::{ReaderStream, StreamReader};

use super::{Api, ApiError, Given, Whose, json_parameter, line, ndjson, streams, wire::Committed};

/// Largest specification of an exec.
const MAX_EXEC: usize = 1 << 20;
/// Between two figures of a stream, unless told otherwise.
const INTERVAL_MS: u64 = 1000;

type Answer<T> = Result<Json<T>, ApiError>;

/// The routes.
pub fn routes() -> Router<Api> {
    let one = Router::new()
        .route("/", get(inspect).delete(remove))
        .route("/start", post(start))
        .route("/stop", post(stop))
        .route("/kill", post(kill))
        .route("/pause", post(pause))
        .route("/unpause", post(unpause))
        .route("/wait", post(wait))
        .route("/rename", post(rename))
        .route("/update", post(update))
        .route("/resize", post(resize))
        .route("/top", get(top))
        .route("/stats", get(stats))
        .route("/logs", get(logs))
        .route("/attach", post(attach))
        .route("/exec", post(exec))
        .route("/stat", get(stat))
        .route("/commit", post(commit))
        .route("/archive", put(put_archive).layer(DefaultBodyLimit::disable()).get(get_archive))
        .route("/connect", post(super::networks::connect))
        .route("/disconnect", post(super::networks::disconnect));
    Router::new()
        .route("/v1/containers", get(list).post(create))
        .route("/v1/containers/prune", post(prune))
        .nest("/v1/containers/{name}", one)
}

impl Api {
    /// The container that is meant.
    pub(super) fn container(&self, whose: &Whose, name: &str) -> Result<ContainerId, ApiError> {
        Ok(self.engine()?.containers().resolve(whose.0.as_ref(), name)?)
    }
}

#[derive(Deserialize)]
struct ListAsked {
    filter: Option<String>,
}

async fn list(State(api): State<Api>, whose: Whose, Query(asked): Query<ListAsked>) -> Answer<Vec<Summary>> {
    let mut filter: ListFilter = json_parameter("filter", asked.filter.as_deref())?;
    filter.owner = whose.0;
    Ok(Json(api.engine()?.containers().list(&filter)))
}

async fn create(State(api): State<Api>, whose: Whose, Given(mut spec): Given<ContainerSpec>) -> Answer<Created> {
    if let Some(owner) = whose.0 {
        spec.owner = owner;
    }
    if let (Seccomp::Default, Some(profile)) = (&spec.security.seccomp, &api.0.seccomp) {
        spec.security.seccomp = Seccomp::Custom(profile.clone());
    }
    Ok(Json(api.engine()?.containers().create(spec).await?))
}

async fn inspect(State(api): State<Api>, whose: Whose, Path(name): Path<String>) -> Answer<Inspect> {
    let id = api.container(&whose, &name)?;
    Ok(Json(api.engine()?.containers().inspect(&id)?))
}

async fn start(State(api): State<Api>, whose: Whose, Path(name): Path<String>) -> Answer<Started> {
    let id = api.container(&whose, &name)?;
    Ok(Json(api.engine()?.containers().start(&id).await?))
}

#[derive(Deserialize)]
struct StopAsked {
    signal: Option<String>,
    timeout_s: Option<u64>,
}

async fn stop(
    State(api): State<Api>,
    whose: Whose,
    Path(name): Path<String>,
    Query(asked): Query<StopAsked>,
) -> Answer<Option<Exit>> {
    let id = api.container(&whose, &name)?;
    let grace = asked.timeout_s.map(Duration::from_secs);
    Ok(Json(api.engine()?.containers().stop(&id, asked.signal.as_deref(), grace).await?))
}

#[derive(Deserialize)]
struct KillAsked {
    signal: Option<String>,
}

async fn kill(
    State(api): State<Api>,
    whose: Whose,
    Path(name): Path<String>,
    Query(asked): Query<KillAsked>,
) -> Answer<()> {
    let id = api.container(&whose, &name)?;
    Ok(Json(api.engine()?.containers().kill(&id, asked.signal.as_deref().unwrap_or("KILL")).await?))
}

async fn pause(State(api): State<Api>, whose: Whose, Path(name): Path<String>) -> Answer<()> {
    let id = api.container(&whose, &name)?;
    Ok(Json(api.engine()?.containers().pause(&id).await?))
}

async fn unpause(State(api): State<Api>, whose: Whose, Path(name): Path<String>) -> Answer<()> {
    let id = api.container(&whose, &name)?;
    Ok(Json(api.engine()?.containers().unpause(&id).await?))
}

#[derive(Deserialize)]
struct WaitAsked {
    #[serde(rename = "for", default)]
    until: WaitFor,
}

async fn wait(
    State(api): State<Api>,
    whose: Whose,
    Path(name): Path<String>,
    Query(asked): Query<WaitAsked>,
) -> Answer<Exit> {
    let id = api.container(&whose, &name)?;
    Ok(Json(api.engine()?.containers().wait(&id, asked.until).await?))
}

#[derive(Deserialize)]
struct RemoveAsked {
    #[serde(default)]
    force: bool,
    #[serde(default)]
    volumes: bool,
}

async fn remove(
    State(api): State<Api>,
    whose: Whose,
    Path(name): Path<String>,
    Query(asked): Query<RemoveAsked>,
) -> Answer<()> {
    let id = api.container(&whose, &name)?;
    let options = RemoveOptions { force: asked.force, volumes: asked.volumes };
    Ok(Json(api.engine()?.containers().remove(&id, options).await?))
}

#[derive(Deserialize)]
struct RenameAsked {
    #[serde(rename = "name")]
    new: String,
}

async fn rename(
    State(api): State<Api>,
    whose: Whose,
    Path(name): Path<String>,
    Query(asked): Query<RenameAsked>,
) -> Answer<()> {
    let id = api.container(&whose, &name)?;
    Ok(Json(api.engine()?.containers().rename(&id, &asked.new).await?))
}

async fn update(
    State(api): State<Api>,
    whose: Whose,
    Path(name): Path<String>,
    Given(limits): Given<Resources>,
) -> Answer<()> {
    let id = api.container(&whose, &name)?;
    Ok(Json(api.engine()?.containers().update(&id, limits).await?))
}

async fn resize(
    State(api): State<Api>,
    whose: Whose,
    Path(name): Path<String>,
    Query(size): Query<TtySize>,
) -> Answer<()> {
    let id = api.container(&whose, &name)?;
    Ok(Json(api.engine()?.containers().resize(&id, size).await?))
}

async fn top(State(api): State<Api>, whose: Whose, Path(name): Path<String>) -> Answer<Vec<Process>> {
    let id = api.container(&whose, &name)?;
    Ok(Json(api.engine()?.containers().top(&id).await?))
}

#[derive(Deserialize)]
struct StatsAsked {
    #[serde(default)]
    stream: bool,
    #[serde(default)]
    disk: bool,
    interval_ms: Option<u64>,
}

async fn stats(
    State(api): State<Api>,
    whose: Whose,
    Path(name): Path<String>,
    Query(asked): Query<StatsAsked>,
) -> Result<Response, ApiError> {
    let id = api.container(&whose, &name)?;
    if !asked.stream {
        let stats: Stats = api.engine()?.containers().stats(&id, asked.disk).await?;
        return Ok(Json(stats).into_response());
    }
    let interval = Duration::from_millis(asked.interval_ms.unwrap_or(INTERVAL_MS));
    let mut stream = api.engine()?.containers().stats_stream(&id, interval);
    let (lines, body) = mpsc::channel(2);
    api.stream(async move {
        loop {
            let next = tokio::select! {
                next = stream.next() => next,
                () = lines.closed() => None,
            };
            let Some(stats) = next else { return };
            if lines.send(Ok(line(&stats))).await.is_err() {
                return;
            }
        }
    });
    Ok(ndjson(body))
}

#[derive(Deserialize)]
struct LogsAsked {
    #[serde(default)]
    follow: bool,
    tail: Option<u64>,
    since_ns: Option<i64>,
    until_ns: Option<i64>,
    #[serde(default)]
    timestamps: bool,
    stdout: Option<bool>,
    stderr: Option<bool>,
}

async fn logs(
    State(api): State<Api>,
    whose: Whose,
    Path(name): Path<String>,
    Query(asked): Query<LogsAsked>,
) -> Result<Response, ApiError> {
    let id = api.container(&whose, &name)?;
    let ns = |ns: i64| u64::try_from(ns).unwrap_or(0);
    let options = ReadOptions {
        follow: asked.follow,
        tail: asked.tail,
        since_ns: asked.since_ns.map(ns),
        until_ns: asked.until_ns.map(ns),
        stdout: asked.stdout.unwrap_or(true),
        stderr: asked.stderr.unwrap_or(true),
        limit_bytes: None,
    };
    let reader = api.engine()?.containers().logs(&id, options).await?;
    let (frames, body) = mpsc::channel(16);
    api.stream(streams::log(reader, asked.timestamps, frames));
    Ok(streams::frames_body(body))
}

#[derive(Deserialize)]
struct AttachAsked {
    #[serde(default)]
    stdin: bool,
    stdout: Option<bool>,
    stderr: Option<bool>,
    #[serde(default)]
    wait: bool,
}

async fn attach(
    State(api): State<Api>,
    whose: Whose,
    Path(name): Path<String>,
    Query(asked): Query<AttachAsked>,
    mut request: Request,
) -> Result<Response, ApiError> {
    let upgrade = streams::upgrade(&mut request)?;
    let id = api.container(&whose, &name)?;
    let wish = Attach {
        stdin: asked.stdin,
        stdout: asked.stdout.unwrap_or(true),
        stderr: asked.stderr.unwrap_or(true),
        wait: asked.wait,
    };
    let attaching = api.engine()?.containers().attach(&id, wish).await?;
    api.stream(streams::attached(upgrade, attaching));
    Ok(streams::switching())
}

#[derive(Deserialize)]
struct ExecAsked {
    #[serde(default)]
    detach: bool,
    rows: Option<u16>,
    columns: Option<u16>,
}

async fn exec(
    State(api): State<Api>,
    whose: Whose,
    Path(name): Path<String>,
    Query(asked): Query<ExecAsked>,
    mut request: Request,
) -> Result<Response, ApiError> {
    let id = api.container(&whose, &name)?;
    let upgrade = if asked.detach { None } else { Some(streams::upgrade(&mut request)?) };
    let bytes = axum::body::to_bytes(request.into_body(), MAX_EXEC).await;
    let bytes = bytes.map_err(|error| ApiError::invalid(format!("the command is not understood: {error}")))?;
    let spec: ExecSpec = serde_json::from_slice(&bytes)
        .map_err(|error| ApiError::invalid(format!("the command is not understood: {error}")))?;
    let engine = api.engine()?;
    let containers = engine.containers();
    let exec = containers.exec_create(&id, spec)?;
    let size = asked.rows.zip(asked.columns).map(|(rows, columns)| TtySize { rows, columns });
    let session = containers.exec_start(&exec.id, size).await?;
    match upgrade {
        // Dropping the session leaves the process running.
        None => Ok(Json(serde_json::json!({ "id": exec.id })).into_response()),
        Some(upgrade) => {
            api.stream(streams::executed(upgrade, session));
            Ok(streams::switching())
        }
    }
}

async fn commit(
    State(api): State<Api>,
    whose: Whose,
    Path(name): Path<String>,
    Given(request): Given<CommitRequest>,
) -> Answer<Committed> {
    let id = api.container(&whose, &name)?;
    let image = api.engine()?.commit(&id, whose.or_local(), request).await?;
    Ok(Json(Committed { id: image.id().to_string(), image: image.record.name }))
}

#[derive(Deserialize)]
struct PathAsked {
    path: String,
    #[serde(default)]
    copy_owners: bool,
}

async fn stat(
    State(api): State<Api>,
    whose: Whose,
    Path(name): Path<String>,
    Query(asked): Query<PathAsked>,
) -> Answer<PathStat> {
    let id = api.container(&whose, &name)?;
    Ok(Json(api.engine()?.containers().stat_path(&id, &asked.path).await?))
}

async fn get_archive(
    State(api): State<Api>,
    whose: Whose,
    Path(name): Path<String>,
    Query(asked): Query<PathAsked>,
) -> Result<Response, ApiError> {
    let id = api.container(&whose, &name)?;
    let (_, archive) = api.engine()?.containers().archive_get(&id, &asked.path).await?;
    let body = Body::from_stream(ReaderStream::new(archive));
    Ok(([("content-type", "application/x-tar")], body).into_response())
}

async fn put_archive(
    State(api): State<Api>,
    whose: Whose,
    Path(name): Path<String>,
    Query(asked): Query<PathAsked>,
    request: Request,
) -> Answer<()> {
    let id = api.container(&whose, &name)?;
    let body = request.into_body().into_data_stream().map_err(std::io::Error::other);
    let options = PutOptions { no_overwrite_dir_non_dir: true, copy_owners: asked.copy_owners };
    Ok(Json(api.engine()?.containers().archive_put(&id, &asked.path, StreamReader::new(body), options).await?))
}

#[derive(Deserialize)]
struct PruneAsked {
    labels: Option<String>,
}

async fn prune(State(api): State<Api>, whose: Whose, Query(asked): Query<PruneAsked>) -> Answer<Pruned> {
    let labels = json_parameter("labels", asked.labels.as_deref())?;
    let filter = ListFilter { owner: Some(whose.or_local()), labels, ..ListFilter::default() };
    Ok(Json(api.engine()?.containers().prune(&filter).await?))
}
