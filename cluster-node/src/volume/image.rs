//! Image volumes: the files of an image, read-only, through the engine's snapshots.
//!
//! Always true: the layers are held by a lease while the pod is there, for the garbage collector sees no container that
//! uses them.
//!
//! Elsewhere: pulling the image (`pod::runtime`), before a container is started.

use std::{collections::BTreeSet, path::Path, time::Duration};

use container_engine::{
    engine::Engine,
    lease::{LeaseError, Resource},
    owner::Owner,
    snapshot::{Layer, PrepareOptions, SnapshotError},
};

use super::Problem;

/// Life of a lease, renewed when half of it is over.
const LEASE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Mounts the image `reference` at `path`; it must have been pulled. Where it is mounted already nothing happens.
pub async fn set_up(engine: &Engine, uid: &str, volume: &str, reference: &str, path: &Path) -> Result<(), Problem> {
    let owner = Owner::Pod(uid.to_owned());
    let image = engine.images().get(&owner, reference).await;
    let image = image.map_err(|error| Problem::Missing(board::tasks::chain(&error)))?;
    hold(engine, uid, image.layers().iter().map(|layer| Resource::Layer(*layer)).collect()).await?;
    let (snapshots, ids) = (engine.snapshots().clone(), image.layers().to_vec());
    let found = tokio::task::spawn_blocking(move || -> Option<Vec<Layer>> {
        ids.iter().enumerate().map(|(n, id)| snapshots.layer(id, &ids[..n])).collect()
    });
    let layers = found.await.ok().flatten();
    let layers = layers
        .ok_or_else(|| Problem::Missing(format!("a layer of image {reference} is not unpacked: it is pulled again")))?;
    let dir = path.to_owned();
    let made = tokio::task::spawn_blocking(move || board::durable::create_dir_all(&dir, 0o755)).await;
    made.map_err(std::io::Error::other).and_then(|it| it).map_err(Problem::io("make", path))?;
    let id = snapshot_id(uid, volume);
    let options = PrepareOptions { read_only: true, volatile: true, ..PrepareOptions::default() };
    let made = match engine.snapshots().prepare(&id, &layers, path, options.clone()).await {
        Err(SnapshotError::Exists(_)) => match engine.snapshots().mount(&id, path).await {
            // What a reboot has left of it is of no use.
            Err(_) => {
                let gone = engine.snapshots().remove(&id).await;
                match gone {
                    Ok(()) => engine.snapshots().prepare(&id, &layers, path, options).await,
                    Err(error) => Err(error),
                }
            }
            other => other,
        },
        other => other,
    };
    made.map(drop).map_err(|error| Problem::Missing(board::tasks::chain(&error)))
}

/// Keeps what is held from ending; for a pod that is still there.
pub async fn renew(engine: &Engine, uid: &str) {
    let id = lease_id(uid);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let is_young = |expires_s: u64| expires_s > (now + LEASE / 2).as_secs();
    if engine.leases().get(&id).is_ok_and(|lease| !is_young(lease.expires_s))
        && let Err(error) = engine.leases().renew(&id, LEASE).await
    {
        tracing::warn!(%error, uid, "the layers of image volumes are held no longer than this lease");
    }
}

/// Takes away what there is of a pod's image volumes.
pub async fn remove(engine: &Engine, uid: &str) -> Result<(), Problem> {
    let snapshots = engine.snapshots().clone();
    let all = tokio::task::spawn_blocking(move || snapshots.list()).await;
    let all = all.ok().and_then(Result::ok).unwrap_or_default();
    let prefix = snapshot_id(uid, "");
    for id in all.iter().filter(|id| id.starts_with(&prefix)) {
        engine.snapshots().remove(id).await.map_err(|error| Problem::Missing(board::tasks::chain(&error)))?;
    }
    let released = engine.leases().release(&lease_id(uid)).await;
    released.map_err(|error| Problem::Missing(board::tasks::chain(&error)))
}

/// Each container of the pod comes by here: the disk is asked once.
async fn hold(engine: &Engine, uid: &str, resources: BTreeSet<Resource>) -> Result<(), Problem> {
    let id = lease_id(uid);
    if engine.leases().get(&id).is_ok_and(|lease| lease.resources.is_superset(&resources)) {
        return Ok(());
    }
    let failed = |error: LeaseError| Problem::Missing(board::tasks::chain(&error));
    match engine.leases().create(&id, Owner::Pod(uid.to_owned()), LEASE).await {
        Ok(_) | Err(LeaseError::Exists(_)) => {}
        Err(error) => return Err(failed(error)),
    }
    engine.leases().add(&id, resources).await.map(drop).map_err(failed)
}

fn snapshot_id(uid: &str, volume: &str) -> String {
    format!("volume-{uid}-{volume}")
}

fn lease_id(uid: &str) -> String {
    format!("volumes-{uid}")
}
