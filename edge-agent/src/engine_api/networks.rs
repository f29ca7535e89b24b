//! `/v1/networks…`

use axum::{
    Json, Router,
    extract::{Path, Query, State},
    routing::get,
};
use container_engine::{
    container::Attachment,
    network::{Interface, Network, NetworkInfo, NetworkSpec},
};
use serde::Deserialize;

use super::{Api, ApiError, Given, Whose};

type Answer<T> = Result<Json<T>, ApiError>;

/// The routes.
pub fn routes() -> Router<Api> {
    Router::new()
        .route("/v1/networks", get(list).post(create))
        .route("/v1/networks/{name}", get(inspect).delete(remove))
}

async fn list(State(api): State<Api>, whose: Whose) -> Answer<Vec<NetworkInfo>> {
    Ok(Json(api.engine()?.networks().list(whose.0.as_ref())))
}

async fn create(State(api): State<Api>, whose: Whose, Given(spec): Given<NetworkSpec>) -> Answer<Network> {
    Ok(Json(api.engine()?.networks().create(&whose.or_local(), spec).await?))
}

async fn inspect(State(api): State<Api>, whose: Whose, Path(name): Path<String>) -> Answer<NetworkInfo> {
    Ok(Json(api.engine()?.networks().inspect(&whose.or_local(), &name)?))
}

async fn remove(State(api): State<Api>, whose: Whose, Path(name): Path<String>) -> Answer<()> {
    Ok(Json(api.engine()?.networks().remove(&whose.or_local(), &name).await?))
}

/// Puts a running container on a further network.
pub async fn connect(
    State(api): State<Api>,
    whose: Whose,
    Path(name): Path<String>,
    Given(place): Given<Attachment>,
) -> Answer<Interface> {
    let id = api.container(&whose, &name)?;
    Ok(Json(api.engine()?.networks().connect(id.as_str(), place).await?))
}

#[derive(Deserialize)]
pub struct Place {
    network: String,
}

/// Takes a running container off a network.
pub async fn disconnect(
    State(api): State<Api>,
    whose: Whose,
    Path(name): Path<String>,
    Query(place): Query<Place>,
) -> Answer<()> {
    let id = api.container(&whose, &name)?;
    Ok(Json(api.engine()?.networks().disconnect(id.as_str(), &place.network).await?))
}
