//! List and watch of a few objects, for as long as somebody needs them.
//!
//! Elsewhere: the list and watch themselves (`api::watch`), what becomes of the objects (`watched`, `service`).

use std::future::Future;

use futures_util::pin_mut;
use kube::Api;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::connection::{Connection, Kind};
use crate::api::{
    Failure, failure,
    watch::{Event, Selection, reflect},
};

/// Right after a binding the authorizer has not heard of the pod: that many refusals are nobody's business yet.
const EARLY_REFUSALS: u32 = 4;
/// Events on their way.
const QUEUE: usize = 16;

/// Who wants to know.
pub(super) trait Sink<K>: Send + Sync {
    /// All there are now. `true`: no need to go on.
    fn listed(&self, objects: Vec<K>) -> impl Future<Output = bool> + Send;
    /// One is new or changed. `true`: no need to go on.
    fn set(&self, object: K) -> impl Future<Output = bool> + Send;
    /// One is gone.
    fn gone(&self, object: K) -> impl Future<Output = ()> + Send;
    /// The API server gave no answer, or refused.
    fn failed(&self, error: &kube::Error);
}

/// What is followed.
pub(super) struct Target<K> {
    /// Where.
    pub api: fn(kube::Client, &str) -> Api<K>,
    /// Its namespace.
    pub namespace: String,
    /// Its name, where it is a single one.
    pub name: Option<String>,
}

/// Follows until `stop`, or until the sink has enough.
pub(super) async fn follow<K: Kind + kube::Resource<DynamicType = ()>>(
    connection: &dyn Connection,
    target: &Target<K>,
    sink: &impl Sink<K>,
    stop: &CancellationToken,
) {
    let api = (target.api)(connection.client(), &target.namespace);
    let selection = target.name.as_deref().map(Selection::named).unwrap_or_default();
    let (to, mut events) = mpsc::channel(QUEUE);
    let mut refusals = 0;
    let says = |error: &kube::Error| {
        refusals += u32::from(failure(error) == Failure::Forbidden);
        if failure(error) != Failure::Forbidden || refusals > EARLY_REFUSALS {
            sink.failed(error);
        }
    };
    let source = reflect(api, selection, to, stop.clone(), says);
    let events = async {
        while let Some(event) = events.recv().await {
            let is_enough = match event {
                Event::Listed(objects) => sink.listed(objects).await,
                Event::Applied(object) => sink.set(object).await,
                Event::Deleted(object) => {
                    sink.gone(object).await;
                    false
                }
            };
            if is_enough {
                return;
            }
        }
    };
    pin_mut!(source, events);
    // The source ends when it is told to stop; whatever it had sent by then is of no use any more.
    tokio::select! {
        () = source => {}
        () = events => {}
    }
}
