//! `/v1/images/{pull,push,save,load}`, `/v1/login`: images on their way.
//!
//! Always true: whoever goes away calls a transfer off, and what was fetched is kept; credentials are used for the request
//! that they came with, and are in no answer.

use std::{future::Future, io};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, Query, Request, State},
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use container_engine::{
    image::{
        Format, Images, LoadRequest, PullError, PullEvent, PullPolicy, PullRequest, Pulled, PushEvent, PushRequest,
    },
    platform::Platform,
    reference::ImageRef,
};
use futures_util::TryStreamExt;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::{
    Api, ApiError, Given, Whose, json_parameter, line, ndjson,
    wire::{Line, Loaded, Login, Transfer},
};
use crate::pipe::{Reading, Writing, break_off, pipe};

/// Steps that wait for a slow client; more of a download's are left out.
const IN_FLIGHT: usize = 64;

type Answer<T> = Result<Json<T>, ApiError>;
type Lines = mpsc::Sender<Result<Bytes, io::Error>>;

/// The routes.
pub fn routes() -> Router<Api> {
    Router::new()
        .route("/v1/images/pull", post(pull))
        .route("/v1/images/push", post(push))
        .route("/v1/images/save", get(save))
        .route("/v1/images/load", post(load).layer(DefaultBodyLimit::disable()))
        .route("/v1/login", post(login))
}

async fn pull(State(api): State<Api>, Given(asked): Given<Transfer>) -> Result<Response, ApiError> {
    let name: ImageRef = asked.image.parse()?;
    let request = PullRequest {
        name: name.clone(),
        owner: asked.owner,
        platform: platform(asked.platform.as_deref())?,
        policy: PullPolicy::Always,
        credentials: asked.credentials,
    };
    let (lines, body) = mpsc::channel(IN_FLIGHT);
    let (events, steps) = mpsc::channel(IN_FLIGHT);
    let images = api.engine()?.images().clone();
    let work = async move {
        let pulled = fetch(images, request, asked.all_platforms, events).await?;
        Ok(Line::Done {
            image: name.to_string(),
            digest: pulled.image.record.target.to_string(),
            changed: pulled.changed,
            offline: pulled.offline,
        })
    };
    api.stream(tell(work, steps, lines));
    Ok(ndjson(body))
}

async fn fetch(
    images: Images,
    request: PullRequest,
    all_platforms: bool,
    events: mpsc::Sender<PullEvent>,
) -> Result<Pulled, PullError> {
    if all_platforms { images.pull_all(&request, &events).await } else { images.pull(&request, &events).await }
}

async fn push(State(api): State<Api>, Given(asked): Given<Transfer>) -> Result<Response, ApiError> {
    let name: ImageRef = asked.image.parse()?;
    let request = PushRequest {
        name: name.clone(),
        owner: asked.owner,
        credentials: asked.credentials,
        all_platforms: asked.all_platforms,
    };
    let (lines, body) = mpsc::channel(IN_FLIGHT);
    let (events, steps) = mpsc::channel::<PushEvent>(IN_FLIGHT);
    let images = api.engine()?.images().clone();
    let work = async move {
        let digest = images.push(&request, &events).await?;
        Ok(Line::Done { image: name.to_string(), digest: digest.to_string(), changed: true, offline: None })
    };
    api.stream(tell(work, steps, lines));
    Ok(ndjson(body))
}

/// Tells a client of a transfer, step by step and how it ended.
async fn tell<E: Serialize>(
    work: impl Future<Output = Result<Line, ApiError>>,
    mut steps: mpsc::Receiver<E>,
    lines: Lines,
) {
    let to = lines.clone();
    let forward = async move {
        while let Some(event) = steps.recv().await {
            if to.send(Ok(line(&event))).await.is_err() {
                return;
            }
        }
    };
    let done = tokio::select! {
        (done, ()) = async { tokio::join!(work, forward) } => done,
        () = lines.closed() => return,
    };
    let last = match done {
        Ok(done) => line(&done),
        Err(error) => error.line().into(),
    };
    // A client that has gone needs no answer.
    let _ = lines.send(Ok(last)).await;
}

fn platform(text: Option<&str>) -> Result<Option<Platform>, ApiError> {
    text.map(|text| text.parse::<Platform>().map_err(|error| ApiError::invalid(error.to_string()))).transpose()
}

#[derive(Deserialize)]
struct SaveAsked {
    names: String,
    format: Option<String>,
}

async fn save(State(api): State<Api>, whose: Whose, Query(asked): Query<SaveAsked>) -> Result<Response, ApiError> {
    let names: Vec<String> = json_parameter("names", Some(&asked.names))?;
    let format = match asked.format.as_deref() {
        None | Some("docker") => Format::DockerArchive,
        Some("oci") => Format::OciArchive,
        Some(other) => {
            return Err(ApiError::invalid(format!("there is no format {other:?}: there are docker and oci")));
        }
    };
    let owner = whose.or_local();
    let engine = api.engine()?;
    // What is not here is told before the archive begins.
    for name in &names {
        engine.images().get(&owner, name).await?;
    }
    let (to, mut from) = pipe();
    let images = engine.images().clone();
    api.stream(async move {
        let saved = tokio::select! {
            saved = images.save(&owner, &names, format, Writing::new(to.clone())) => saved,
            () = to.closed() => return,
        };
        if let Err(error) = saved {
            tracing::warn!(%error, "images could not be saved");
            break_off(&to).await;
        }
    });
    // The first part is awaited, so that an archive that cannot begin is an error and not a broken connection.
    let first = from.recv().await;
    let first = match first {
        Some(Ok(part)) => Some(Ok(part)),
        Some(Err(_)) => return Err(ApiError::internal("the archive could not be written: see the agent's log")),
        None => None,
    };
    let rest = futures_util::stream::unfold(from, |mut from| async { Some((from.recv().await?, from)) });
    let stream = futures_util::StreamExt::chain(futures_util::stream::iter(first), rest);
    Ok(([(CONTENT_TYPE, "application/x-tar")], Body::from_stream(stream)).into_response())
}

#[derive(Deserialize)]
struct LoadAsked {
    name: Option<String>,
    platform: Option<String>,
    #[serde(default)]
    all_platforms: bool,
}

async fn load(
    State(api): State<Api>,
    whose: Whose,
    Query(asked): Query<LoadAsked>,
    request: Request,
) -> Answer<Loaded> {
    let wanted = LoadRequest {
        owner: whose.or_local(),
        name: asked.name.as_deref().map(str::parse).transpose()?,
        platform: platform(asked.platform.as_deref())?,
        all_platforms: asked.all_platforms,
    };
    let (to, from) = pipe();
    let mut body = request.into_body().into_data_stream();
    let feed = async move {
        loop {
            match body.try_next().await {
                Ok(Some(part)) => {
                    if to.send(Ok(part)).await.is_err() {
                        return;
                    }
                }
                Ok(None) => return,
                Err(_) => return break_off(&to).await,
            }
        }
    };
    // Nobody watches: a full channel loses events, nothing else.
    let (events, _unread) = mpsc::channel(1);
    let images = api.engine()?.images().clone();
    let (loaded, ()) = tokio::join!(images.load(&wanted, Reading::new(from), &events), feed);
    let name = |it: container_engine::image::Loaded| {
        if it.names.is_empty() { vec![it.image.id().to_string()] } else { it.names }
    };
    Ok(Json(Loaded { images: loaded?.into_iter().flat_map(name).collect() }))
}

async fn login(State(api): State<Api>, Given(asked): Given<Login>) -> Answer<()> {
    // Any name at that registry will do.
    let name: ImageRef = format!("{}/library/login", asked.registry).parse()?;
    Ok(Json(api.engine()?.registry().login(&name, &asked.credentials).await?))
}
