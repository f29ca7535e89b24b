//! `/v1/volumes…`

use axum::{
    Json, Router,
    extract::{Path, Query, State},
    routing::{get, post},
};
use container_engine::{
    container::{ContainerId, ListFilter},
    engine::Engine,
    owner::Owner,
    volume::{NewVolume, Volume, VolumeError, Volumes},
};
use serde::Deserialize;

use super::{
    Api, ApiError, Given, Whose,
    wire::{Removed, VolumeInfo, VolumeSpec},
};

type Answer<T> = Result<Json<T>, ApiError>;

/// The routes.
pub fn routes() -> Router<Api> {
    Router::new()
        .route("/v1/volumes", get(list).post(create))
        .route("/v1/volumes/prune", post(prune))
        .route("/v1/volumes/{name}", get(inspect).delete(remove))
}

/// Does work on volumes, which blocks.
async fn blocking<T: Send + 'static>(
    engine: &Engine,
    work: impl FnOnce(&Volumes) -> Result<T, VolumeError> + Send + 'static,
) -> Result<T, ApiError> {
    let volumes = engine.volumes().clone();
    let done = tokio::task::spawn_blocking(move || work(&volumes)).await;
    Ok(done.map_err(|error| ApiError::internal(error.to_string()))??)
}

/// Names of the containers that mount a volume.
fn users(engine: &Engine, owner: &Owner, name: &str) -> Vec<String> {
    let filter = ListFilter { owner: Some(owner.clone()), ..ListFilter::default() };
    let all = engine.containers().list(&filter).into_iter();
    let mounts = |mounts: &[container_engine::container::MountPoint]| {
        mounts.iter().any(|mount| mount.name.as_deref() == Some(name))
    };
    all.filter(|container| mounts(&container.mounts)).map(|container| container.name).collect()
}

fn info(engine: &Engine, volume: Volume) -> VolumeInfo {
    VolumeInfo {
        containers: users(engine, &volume.owner, &volume.name).len(),
        path: volume.path.display().to_string(),
        created_ns: i64::try_from(volume.created_s.saturating_mul(1_000_000_000)).unwrap_or(i64::MAX),
        name: volume.name,
        owner: volume.owner,
        labels: volume.labels,
        anonymous: volume.anonymous,
    }
}

async fn list(State(api): State<Api>, whose: Whose) -> Answer<Vec<VolumeInfo>> {
    let engine = api.engine()?;
    let volumes = blocking(&engine, move |volumes| volumes.list(whose.0.as_ref())).await?;
    Ok(Json(volumes.into_iter().map(|volume| info(&engine, volume)).collect()))
}

async fn create(State(api): State<Api>, whose: Whose, Given(spec): Given<VolumeSpec>) -> Answer<VolumeInfo> {
    let engine = api.engine()?;
    let owner = whose.or_local();
    let anonymous = spec.name.is_none();
    let name = match spec.name {
        Some(name) => name,
        None => ContainerId::random().map_err(|_| ApiError::internal("the kernel has no random bytes"))?.to_string(),
    };
    let new = NewVolume { labels: spec.labels, anonymous };
    let (of, called) = (owner.clone(), name.clone());
    let volume = blocking(&engine, move |volumes| volumes.create(&of, &called, new)).await?;
    Ok(Json(info(&engine, volume)))
}

async fn inspect(State(api): State<Api>, whose: Whose, Path(name): Path<String>) -> Answer<VolumeInfo> {
    let engine = api.engine()?;
    let volume = blocking(&engine, move |volumes| volumes.get(&whose.or_local(), &name)).await?;
    Ok(Json(info(&engine, volume)))
}

async fn remove(State(api): State<Api>, whose: Whose, Path(name): Path<String>) -> Answer<()> {
    let engine = api.engine()?;
    let owner = whose.or_local();
    remove_one(&engine, &owner, &name).await?;
    Ok(Json(()))
}

async fn remove_one(engine: &Engine, owner: &Owner, name: &str) -> Result<(), ApiError> {
    let (of, called, all) = (owner.clone(), name.to_owned(), engine.clone());
    let used = move |volume: &Volume| {
        let users = users(&all, &volume.owner, &volume.name);
        (!users.is_empty()).then(|| users.join(", "))
    };
    blocking(engine, move |volumes| volumes.remove(&of, &called, used)).await?;
    Ok(())
}

#[derive(Deserialize)]
struct PruneAsked {
    #[serde(default)]
    all: bool,
}

/// Volumes that no container has: those made for one, or all.
async fn prune(State(api): State<Api>, whose: Whose, Query(asked): Query<PruneAsked>) -> Answer<Removed> {
    let engine = api.engine()?;
    let owner = whose.or_local();
    let of = owner.clone();
    let volumes = blocking(&engine, move |volumes| volumes.list(Some(&of))).await?;
    let mut removed = Removed::default();
    for volume in volumes.into_iter().filter(|volume| asked.all || volume.anonymous) {
        if !users(&engine, &owner, &volume.name).is_empty() {
            continue;
        }
        let name = volume.name.clone();
        let bytes = blocking(&engine, move |volumes| volumes.usage(&volume)).await.map_or(0, |usage| usage.bytes);
        remove_one(&engine, &owner, &name).await?;
        removed.removed.push(name);
        removed.freed_bytes += bytes;
    }
    Ok(Json(removed))
}
