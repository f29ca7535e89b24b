//! `/v1/images…`: what is here. Elsewhere: pull, push, save, load (`transfer`).

use std::collections::BTreeMap;

use axum::{
    Json, Router,
    extract::{Path, Query, State},
    routing::{get, post},
};
use container_engine::{
    container::ListFilter,
    engine::Engine,
    image::{Change, Record},
};
use serde::Deserialize;

use super::{
    Api, ApiError, Whose,
    wire::{ImageDetails, ImageInfo, ImageRemoved},
};

/// Largest configuration.
const MAX_CONFIG: u64 = 8 << 20;

type Answer<T> = Result<Json<T>, ApiError>;

/// The routes.
pub fn routes() -> Router<Api> {
    Router::new()
        .route("/v1/images", get(list))
        .route("/v1/images/prune", post(prune))
        .route("/v1/images/{name}", get(inspect).delete(remove))
        .route("/v1/images/{name}/tag", post(tag))
}

async fn list(State(api): State<Api>, whose: Whose) -> Answer<Vec<ImageInfo>> {
    let engine = api.engine()?;
    let images = engine.images();
    let mut order = Vec::new();
    let mut by_id = BTreeMap::<_, Vec<Record>>::new();
    for record in images.list(whose.0.as_ref()) {
        let records = by_id.entry(record.config).or_default();
        if records.is_empty() {
            order.push(record.config);
        }
        records.push(record);
    }
    let used = users(&engine);
    let mut all = Vec::new();
    for id in order {
        let records = by_id.remove(&id).unwrap_or_default();
        let Some(first) = records.first() else { continue };
        // An image whose configuration cannot be read is shown all the same, so that it can be removed.
        let config = images.get(&first.owner, &id.to_string()).await.map(|image| image.config.clone()).ok();
        let mut info = info(&records, &used);
        info.created = config.as_ref().and_then(|config| config.created.clone());
        info.labels = config.map(|config| config.config.labels.clone()).unwrap_or_default().into_iter().collect();
        all.push(info);
    }
    Ok(Json(all))
}

/// How many containers each image has.
fn users(engine: &Engine) -> BTreeMap<String, usize> {
    let mut used = BTreeMap::new();
    for container in engine.containers().list(&ListFilter::default()) {
        *used.entry(container.image.id).or_default() += 1;
    }
    used
}

fn info(records: &[Record], used: &BTreeMap<String, usize>) -> ImageInfo {
    let Some(first) = records.first() else { return ImageInfo::default() };
    let id = first.config.to_string();
    let digests = records.iter().flat_map(|it| it.repositories.iter().map(|name| format!("{name}@{}", it.target)));
    let mut digests: Vec<_> = digests.collect();
    digests.sort_unstable();
    digests.dedup();
    ImageInfo {
        names: records.iter().map(|it| it.name.clone()).filter(|name| !name.is_empty()).collect(),
        digests,
        manifest: first.manifest.to_string(),
        created: None,
        size: first.size,
        platform: first.platform.to_string(),
        labels: BTreeMap::new(),
        containers: used.get(&id).copied().unwrap_or(0),
        used_s: records.iter().map(|it| it.used_s).max().unwrap_or(0),
        id,
    }
}

async fn inspect(State(api): State<Api>, whose: Whose, Path(name): Path<String>) -> Answer<ImageDetails> {
    let owner = whose.or_local();
    let engine = api.engine()?;
    let images = engine.images();
    let image = images.get(&owner, &name).await?;
    let same: Vec<_> = images.list(Some(&owner)).into_iter().filter(|it| it.config == image.record.config).collect();
    let mut info = info(&same, &users(&engine));
    info.created.clone_from(&image.config.created);
    let (content, id) = (images.content().clone(), image.record.config);
    let bytes = tokio::task::spawn_blocking(move || content.read(&id, MAX_CONFIG)).await;
    let bytes = bytes.map_err(|error| ApiError::internal(error.to_string()))?;
    let bytes = bytes.map_err(|error| ApiError::of(error.code(), &error))?;
    let config = serde_json::from_slice(&bytes);
    let config = config.map_err(|error| ApiError::internal(format!("the configuration of {name}: {error}")))?;
    Ok(Json(ImageDetails { info, config }))
}

#[derive(Deserialize)]
struct TagAsked {
    #[serde(rename = "name")]
    new: String,
}

async fn tag(
    State(api): State<Api>,
    whose: Whose,
    Path(name): Path<String>,
    Query(asked): Query<TagAsked>,
) -> Answer<()> {
    api.engine()?.images().tag(&whose.or_local(), &name, &asked.new).await?;
    Ok(Json(()))
}

#[derive(Deserialize)]
struct RemoveAsked {
    #[serde(default)]
    force: bool,
}

async fn remove(
    State(api): State<Api>,
    whose: Whose,
    Path(name): Path<String>,
    Query(asked): Query<RemoveAsked>,
) -> Answer<ImageRemoved> {
    let changes = api.engine()?.images().remove(&whose.or_local(), &name, asked.force).await?;
    let mut removed = ImageRemoved::default();
    for change in changes {
        match change {
            Change::Untagged(name) => removed.untagged.push(name),
            Change::Deleted(id) => removed.deleted.push(id.to_string()),
        }
    }
    Ok(Json(removed))
}

#[derive(Deserialize)]
struct PruneAsked {
    #[serde(default)]
    all: bool,
}

async fn prune(State(api): State<Api>, Query(asked): Query<PruneAsked>) -> Answer<ImageRemoved> {
    let report = api.engine()?.images().prune(asked.all).await?;
    Ok(Json(ImageRemoved { untagged: Vec::new(), deleted: report.images, freed_bytes: report.freed }))
}
