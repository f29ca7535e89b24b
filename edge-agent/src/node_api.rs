//! The node's part of the control API, under `/v1/node` and `/v1/pods`, and the node as a service of the agent.
//!
//! Always true: who asks to join or leave and goes away calls it off; then the board is joined whole or not at all.

use std::io;

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, Path, Query, State},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use board::tasks::Context;
use cluster_node::{
    join::{JoinError, JoinOptions},
    pod::View,
    service::{Node, ServiceError, Standing},
};
use k8s_openapi::api::core::v1 as k8s;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::engine_api::{self, ApiError, line as json_line};

/// Largest body: a join.toml as JSON.
const MAX_JSON: usize = 64 << 10;

/// A line of the answer to joining and leaving.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// What happens.
    Said(String),
    /// It is done.
    Done(Standing),
}

/// A pod as commands show it.
#[derive(Debug, Serialize, Deserialize)]
pub struct PodDetails {
    /// The object, with its status.
    pub pod: k8s::Pod,
    /// Its containers, the newest of each last.
    pub containers: Vec<PodContainer>,
}

/// A container of a pod.
#[derive(Debug, Serialize, Deserialize)]
pub struct PodContainer {
    /// Its name in the pod.
    pub name: String,
    /// The engine's id.
    pub id: String,
    /// Lives before this one.
    pub attempt: u32,
    /// Whether it runs.
    pub running: bool,
}

/// Runs the node whenever there is an engine, until told to stop.
pub async fn run(node: Node, engine: engine_api::Api, context: Context) -> Result<(), ServiceError> {
    loop {
        let open = tokio::select! {
            open = engine.opened() => open,
            () = context.stop.cancelled() => return Ok(()),
        };
        tokio::select! {
            ended = node.clone().run(open, context.clone()) => return ended,
            () = engine.closed() => {}
        }
    }
}

/// All routes.
pub fn routes(node: Node) -> Router {
    Router::new()
        .route("/v1/node", get(|State(node): State<Node>| async move { Json(node.standing()) }))
        .route("/v1/node/join", post(join))
        .route("/v1/node/leave", post(leave))
        .route("/v1/pods", get(pods))
        .route("/v1/pods/{namespace}/{name}", get(pod))
        .layer(DefaultBodyLimit::max(MAX_JSON))
        .with_state(node)
}

async fn join(State(node): State<Node>, body: Bytes) -> Response {
    let how: JoinOptions = match serde_json::from_slice(&body) {
        Ok(how) => how,
        // The error's words have no values of keys that are known: a token is not shown.
        Err(error) => return ApiError::invalid(format!("how to join is not understood: {error}")).into_response(),
    };
    steps(node, Wish::Join(Box::new(how)))
}

#[derive(Deserialize)]
struct Leaving {
    #[serde(default)]
    purge: bool,
}

async fn leave(State(node): State<Node>, Query(how): Query<Leaving>) -> Response {
    steps(node, Wish::Leave { purge: how.purge })
}

enum Wish {
    Join(Box<JoinOptions>),
    Leave { purge: bool },
}

impl Wish {
    async fn fulfil(self, node: &Node, said: &(dyn Fn(String) + Send + Sync)) -> Result<(), JoinError> {
        match self {
            Self::Join(how) => node.join(&how, said).await,
            Self::Leave { purge } => node.leave(purge, said).await,
        }
    }
}

/// Answers with what is said, line by line, and how it ended.
fn steps(node: Node, wish: Wish) -> Response {
    let (lines, body) = mpsc::channel::<Result<Bytes, io::Error>>(32);
    let answer = async move {
        let said = |words: String| {
            tracing::info!("{words}");
            // A reader that is slow or gone misses it; the log has it.
            let _ = lines.try_send(Ok(json_line(&Step::Said(words))));
        };
        let ended = wish.fulfil(&node, &said).await;
        let last = match &ended {
            Ok(()) => json_line(&Step::Done(node.standing())),
            Err(error) => ApiError::of("failed", error).line().into(),
        };
        // Who asked may have gone.
        let _ = lines.send(Ok(last)).await;
    };
    // The stream owns the work: it goes on while somebody reads, and is called off between two requests otherwise.
    let stream =
        futures_util::stream::unfold((Box::pin(answer), body, false), |(mut work, mut body, done)| async move {
            let mut done = done;
            loop {
                tokio::select! {
                    biased;
                    line = body.recv() => return line.map(|line| (line, (work, body, done))),
                    () = &mut work, if !done => done = true,
                }
            }
        });
    ([("content-type", "application/x-ndjson")], Body::from_stream(stream)).into_response()
}

fn all(node: &Node) -> Result<Vec<View>, ApiError> {
    let live = node.live().ok_or_else(|| ApiError::unavailable("the node is starting: see `edge-agent status`"))?;
    Ok(live.pods.all())
}

async fn pods(State(node): State<Node>) -> Result<Json<Vec<PodDetails>>, ApiError> {
    Ok(Json(all(&node)?.iter().map(details).collect()))
}

async fn pod(
    State(node): State<Node>,
    Path((namespace, name)): Path<(String, String)>,
) -> Result<Json<PodDetails>, ApiError> {
    let live = node.live().ok_or_else(|| ApiError::unavailable("the node is starting: see `edge-agent status`"))?;
    let found = live.pods.named(&namespace, &name);
    let missing = || ApiError::not_found(format!("no pod {namespace}/{name} on this board: see `edge-agent pod ls`"));
    found.map(|view| Json(details(&view))).ok_or_else(missing)
}

fn details(view: &View) -> PodDetails {
    let mut instances: Vec<_> = view.observed.instances.iter().collect();
    instances.sort_by_key(|it| (it.attempt, it.created));
    let container = |it: &&cluster_node::pod::model::Instance| PodContainer {
        name: it.name.clone(),
        id: it.id.clone(),
        attempt: it.attempt,
        running: it.is_running(),
    };
    PodDetails { pod: (*view.pod).clone(), containers: instances.iter().map(container).collect() }
}
