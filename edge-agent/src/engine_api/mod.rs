//! The engine's part of the control API, under `/v1/`: JSON and NDJSON, `Upgrade` for byte streams.
//!
//! Served by the running agent on `agent.sock`, and by a command to itself where none runs (`one_shot`). Every route takes
//! `?owner=`; without it `local` is meant, in lists everybody.
//!
//! Always true: a body is bounded or streamed; an error names what it is about and has one of the codes of `error`; what a
//! client began and goes away from is called off, besides changes of containers, which are carried to their end.

mod containers;
mod error;
mod images;
mod networks;
mod one_shot;
pub mod service;
mod streams;
mod transfer;
mod volumes;
pub mod wire;

use std::{
    future::Future,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, FromRequest, FromRequestParts, Query, Request, State},
    http::request::Parts,
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::get,
};
use container_engine::{
    engine::Engine,
    event::{self, Filter},
    owner::Owner,
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

pub use error::ApiError;
pub use one_shot::OneShot;

use crate::config::EngineConfig;

/// Largest JSON body: a container with a seccomp profile in it.
const MAX_JSON: usize = 8 << 20;
/// How long requests wait for an engine that starts.
const STARTS_WITHIN: Duration = Duration::from_secs(30);

/// What the routes serve. Cheap to clone.
#[derive(Clone)]
pub struct Api(Arc<Inner>);

struct Inner {
    served: watch::Sender<Served>,
    /// Instead of Docker's system call filter.
    seccomp: Option<serde_json::Value>,
    /// Streams that have outlived their request; they end with the engine.
    streams: Mutex<JoinSet<()>>,
}

/// What there is to serve.
enum Served {
    /// Nothing yet: who asks waits.
    Starting,
    Engine(Engine),
    /// Nothing, and why.
    Nothing(String),
}

impl Api {
    /// With no engine yet.
    pub fn new(config: &EngineConfig) -> Self {
        let inner = Inner {
            served: watch::Sender::new(Served::Starting),
            seccomp: config.seccomp.clone(),
            streams: Mutex::default(),
        };
        Self(Arc::new(inner))
    }

    /// Serves this engine from now on.
    pub fn set(&self, engine: Engine) {
        self.0.served.send_replace(Served::Engine(engine));
    }

    /// Serves none from now on, and ends all streams.
    pub async fn unset(&self, problem: impl Into<String>) {
        self.0.served.send_replace(Served::Nothing(problem.into()));
        let mut streams = std::mem::take(&mut *lock(&self.0.streams));
        streams.shutdown().await;
    }

    /// The engine, as soon as it is open.
    pub async fn opened(&self) -> Engine {
        let mut served = self.0.served.subscribe();
        loop {
            if let Served::Engine(engine) = &*served.borrow_and_update() {
                return engine.clone();
            }
            if served.changed().await.is_err() {
                // The sender lives as long as `self`.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Returns when the engine that is open is so no longer.
    pub async fn closed(&self) {
        let mut served = self.0.served.subscribe();
        // The sender lives as long as `self`.
        let _ = served.wait_for(|served| !matches!(served, Served::Engine(_))).await;
    }

    /// All routes.
    pub fn routes(&self) -> Router {
        Router::new()
            .merge(containers::routes())
            .merge(images::routes())
            .merge(transfer::routes())
            .merge(networks::routes())
            .merge(volumes::routes())
            .route("/v1/events", get(events))
            .route("/v1/capacity", get(capacity))
            .layer(DefaultBodyLimit::max(MAX_JSON))
            .layer(from_fn_with_state(self.clone(), started))
            .with_state(self.clone())
    }

    fn engine(&self) -> Result<Engine, ApiError> {
        match &*self.0.served.borrow() {
            Served::Engine(engine) => Ok(engine.clone()),
            Served::Nothing(problem) => Err(ApiError::unavailable(problem.as_str())),
            Served::Starting => Err(ApiError::unavailable("the engine is still starting: see `edge-agent status`")),
        }
    }

    /// Starts a stream that the agent owns.
    fn stream(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut streams = lock(&self.0.streams);
        while streams.try_join_next().is_some() {}
        streams.spawn(task);
    }
}

/// Has requests wait for an engine that starts, which takes a moment on a slow board with many containers.
async fn started(State(api): State<Api>, request: Request, next: Next) -> Response {
    let mut served = api.0.served.subscribe();
    let started = served.wait_for(|served| !matches!(served, Served::Starting));
    // One that takes longer is told of by the route.
    let _ = tokio::time::timeout(STARTS_WITHIN, started).await;
    next.run(request).await
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `?owner=`.
struct Whose(Option<Owner>);

impl Whose {
    fn or_local(self) -> Owner {
        self.0.unwrap_or_default()
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Whose {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        #[derive(serde::Deserialize)]
        struct Asked {
            owner: Option<Owner>,
        }
        let asked = Query::<Asked>::try_from_uri(&parts.uri).map_err(|error| ApiError::invalid(error.body_text()))?;
        Ok(Self(asked.0.owner))
    }
}

/// A body that is JSON; one that is not is refused in our words.
struct Given<T>(T);

impl<T: serde::de::DeserializeOwned, S: Send + Sync> FromRequest<S> for Given<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let body = Bytes::from_request(request, state).await;
        let body = body.map_err(|error| ApiError::invalid(format!("the request: {}", error.body_text())))?;
        let given = serde_json::from_slice(&body);
        given.map(Self).map_err(|error| ApiError::invalid(format!("the request is not understood: {error}")))
    }
}

/// A parameter that is JSON; absent means its default.
fn json_parameter<T: serde::de::DeserializeOwned + Default>(name: &str, text: Option<&str>) -> Result<T, ApiError> {
    let parsed = text.map_or_else(|| Ok(T::default()), serde_json::from_str);
    parsed.map_err(|error| ApiError::invalid(format!("{name} is not understood: {error}")))
}

/// Lines as they come.
fn ndjson(body: mpsc::Receiver<Result<Bytes, io::Error>>) -> Response {
    let stream = futures_util::stream::unfold(body, |mut body| async { Some((body.recv().await?, body)) });
    ([("content-type", "application/x-ndjson")], Body::from_stream(stream)).into_response()
}

/// A value as one line.
pub fn line(value: &impl serde::Serialize) -> Bytes {
    // What the engine tells is strings and numbers: it has a JSON form.
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    line.push(b'\n');
    line.into()
}

/// Which events.
#[derive(serde::Deserialize)]
struct EventsAsked {
    filter: Option<String>,
    since_ns: Option<i64>,
    until_ns: Option<i64>,
}

/// Events as they happen, until the client goes or `until_ns` is past.
async fn events(State(api): State<Api>, whose: Whose, Query(asked): Query<EventsAsked>) -> Result<Response, ApiError> {
    let mut filter: Filter = json_parameter("filter", asked.filter.as_deref())?;
    filter.owner = whose.0;
    let mut events = api.engine()?.events().subscribe(filter, asked.since_ns);
    let (lines, body) = mpsc::channel(16);
    api.stream(async move {
        let left = asked.until_ns.map(|until| {
            let now = crate::cli::now_ns();
            Duration::from_nanos(u64::try_from(until - now).unwrap_or(0))
        });
        let is_past = left.is_some_and(|left| left.is_zero());
        let end = async {
            match left {
                Some(left) => tokio::time::sleep(left).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(end);
        loop {
            let next = if is_past {
                events.try_next()
            } else {
                tokio::select! {
                    next = events.next() => next,
                    () = &mut end => break,
                    () = lines.closed() => break,
                }
            };
            let bytes = match next {
                None => break,
                Some(event::Next::Event(event)) if asked.until_ns.is_some_and(|until| event.time_ns > until) => break,
                Some(event::Next::Event(event)) => line(&*event),
                Some(event::Next::Missed(n)) => line(&serde_json::json!({ "missed": n })),
            };
            if lines.send(Ok(bytes)).await.is_err() {
                break;
            }
        }
    });
    Ok(ndjson(body))
}

/// What the board has, and who has it.
async fn capacity(State(api): State<Api>) -> Result<Response, ApiError> {
    Ok(axum::Json(api.engine()?.ledger().snapshot()).into_response())
}
