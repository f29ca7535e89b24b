//! Lists and watches: what the API server has of one kind, and every change of it, without end.
//!
//! Always true:
//! - After [`Event::Listed`] what was not in the list is gone; between lists every change comes as one event, in order.
//! - A broken watch goes on at the version it had; where the server has forgotten that (410) there is a new list.
//! - The channel is bounded: a slow reader slows the watch down, and nothing is dropped.

use std::time::Duration;

use board::tasks::backoff;
use futures_util::StreamExt;
use kube::{
    Resource, ResourceExt,
    api::{Api as Typed, ListParams, WatchEvent, WatchParams},
};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Failure, failure};

/// First and longest wait after a failure.
const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(30);
/// A watch ends by itself after this time, s; the server has the same habit.
const TIMEOUT: u32 = 290;
/// Largest page of a list.
const PAGE: u32 = 100;

/// A change.
#[derive(Debug, Clone)]
pub enum Event<K> {
    /// All that there is now.
    Listed(Vec<K>),
    /// New, or changed.
    Applied(K),
    /// Gone; as it was last.
    Deleted(K),
}

/// What is watched.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// `spec.nodeName=board`, `metadata.name=x`.
    pub fields: Option<String>,
    /// Labels.
    pub labels: Option<String>,
}

impl Selection {
    /// By fields.
    pub fn fields(fields: impl Into<String>) -> Self {
        Self { fields: Some(fields.into()), labels: None }
    }

    /// One object.
    pub fn named(name: &str) -> Self {
        Self::fields(format!("metadata.name={name}"))
    }

    fn list(&self) -> ListParams {
        ListParams {
            field_selector: self.fields.clone(),
            label_selector: self.labels.clone(),
            limit: Some(PAGE),
            ..ListParams::default()
        }
    }

    fn watch(&self) -> WatchParams {
        WatchParams {
            field_selector: self.fields.clone(),
            label_selector: self.labels.clone(),
            timeout: Some(TIMEOUT),
            bookmarks: true,
            ..WatchParams::default()
        }
    }
}

/// Lists and watches until `stop`, or until nobody listens. Failures are waited out; `says` is told of each.
pub async fn reflect<K>(
    api: Typed<K>,
    selection: Selection,
    to: mpsc::Sender<Event<K>>,
    stop: CancellationToken,
    mut says: impl FnMut(&kube::Error) + Send,
) where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let work = async {
        let mut version = None;
        let mut tries = 0;
        loop {
            let outcome = match version.take() {
                None => list(&api, &selection, &to).await.map(|listed| listed.map(|at| (at, false))),
                Some(at) => follow(&api, &selection, at, &to).await,
            };
            match outcome {
                Ok(None) => return,
                Ok(Some((at, broken))) => {
                    tries = if broken { tries + 1 } else { 0 };
                    version = Some(at);
                }
                Err((error, at)) => {
                    says(&error);
                    tries += 1;
                    version = at.filter(|_| failure(&error) != Failure::Gone);
                }
            }
            if tries > 0 {
                tokio::time::sleep(backoff(tries, FIRST, LONGEST)).await;
            }
        }
    };
    tokio::select! {
        () = work => {}
        () = stop.cancelled() => {}
    }
}

/// What went wrong, and the version to go on from.
type Broken = (kube::Error, Option<String>);

/// `None` where nobody listens any more.
async fn list<K>(api: &Typed<K>, selection: &Selection, to: &mpsc::Sender<Event<K>>) -> Result<Option<String>, Broken>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let mut params = selection.list();
    let mut all = Vec::new();
    loop {
        let page = api.list(&params).await.map_err(|error| (error, None))?;
        all.extend(page.items);
        params.continue_token = page.metadata.continue_.filter(|it| !it.is_empty());
        if params.continue_token.is_none() {
            let version = page.metadata.resource_version.unwrap_or_default();
            return Ok(to.send(Event::Listed(all)).await.is_ok().then_some(version));
        }
    }
}

/// Follows a watch to its end; the version it came to, and whether it broke before anything came.
async fn follow<K>(
    api: &Typed<K>,
    selection: &Selection,
    from: String,
    to: &mpsc::Sender<Event<K>>,
) -> Result<Option<(String, bool)>, Broken>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let started = tokio::time::Instant::now();
    let mut version = from;
    let mut events = match api.watch(&selection.watch(), &version).await {
        Ok(events) => events.boxed(),
        Err(error) => return Err((error, Some(version))),
    };
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(WatchEvent::Added(it) | WatchEvent::Modified(it)) => Event::Applied(it),
            Ok(WatchEvent::Deleted(it)) => Event::Deleted(it),
            Ok(WatchEvent::Bookmark(mark)) => {
                version = mark.metadata.resource_version;
                continue;
            }
            Ok(WatchEvent::Error(status)) => return Err((kube::Error::Api(status), Some(version))),
            Err(error) => return Err((error, Some(version))),
        };
        let (Event::Applied(it) | Event::Deleted(it)) = &event else { continue };
        if let Some(at) = it.resource_version() {
            version = at;
        }
        if to.send(event).await.is_err() {
            return Ok(None);
        }
    }
    // One that ends at once is not a watch that timed out.
    Ok(Some((version, started.elapsed() < Duration::from_secs(1))))
}
