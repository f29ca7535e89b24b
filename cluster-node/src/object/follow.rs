//! List and watch of a few objects, for as long as somebody needs them.
//!
//! Always true: a watch that ends goes on from where it was; one that is too old (410) or breaks begins with a new list; no
//! two tries follow each other without a wait.
//!
//! Elsewhere: what becomes of the objects (`watched`, `service`).

use std::{future::Future, time::Duration};

use futures_util::{StreamExt, pin_mut};
use kube::{
    Api,
    api::{ListParams, WatchEvent, WatchParams},
};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::connection::{Connection, Kind, PATIENCE};

/// Between tries that failed.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Right after a binding the authorizer has not heard of the pod: it is asked again soon, so many times.
const EARLY_TRIES: u32 = 6;
const EARLY_WAIT: Duration = Duration::from_millis(250);
/// Objects of one list that are kept.
const MOST: usize = 10_000;
/// A silent watch is begun anew: the server ends it itself by then.
const SILENCE: Duration = Duration::from_secs(11 * 60);
/// While the link is down it is tried all the same, so rarely.
const DOWN_WAIT: Duration = Duration::from_secs(60);

/// Who wants to know.
pub(super) trait Sink<K>: Send + Sync {
    /// All there are now. `true`: no need to go on.
    fn listed(&self, objects: Vec<K>) -> impl Future<Output = bool> + Send;
    /// One is new or changed. `true`: no need to go on.
    fn set(&self, object: K) -> impl Future<Output = bool> + Send;
    /// One is gone.
    fn gone(&self, object: K) -> impl Future<Output = ()> + Send;
    /// There is no answer to the list. `is_last`: it was not one of the early refusals that are tried again at once.
    fn failed(&self, error: &kube::Error, is_last: bool);
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
    let work = async {
        let mut tries = 0;
        loop {
            let begun = Instant::now();
            match round(connection, target, sink).await {
                End::Enough => return,
                End::Again if begun.elapsed() > Duration::from_secs(5) => tries = 0,
                End::Again => tries += 1,
                End::Failed(error) => {
                    tries += 1;
                    let early =
                        matches!(&error, kube::Error::Api(status) if status.code == 403) && tries <= EARLY_TRIES;
                    sink.failed(&error, !early);
                    if early {
                        sleep(EARLY_WAIT * tries).await;
                        continue;
                    }
                }
            }
            if tries > 0 {
                sleep(board::tasks::backoff(tries, FIRST_WAIT, LONGEST_WAIT)).await;
            }
            // A link that is down for everybody is tried by others more often.
            let _ = timeout(DOWN_WAIT, connection.when_up()).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}

enum End {
    /// The sink has enough.
    Enough,
    /// The watch ended: list again.
    Again,
    /// The list failed.
    Failed(kube::Error),
}

/// One list and the watches from there.
async fn round<K: Kind + kube::Resource<DynamicType = ()>>(
    connection: &dyn Connection,
    target: &Target<K>,
    sink: &impl Sink<K>,
) -> End {
    let api = (target.api)(connection.client(), &target.namespace);
    let fields = target.name.as_ref().map(|name| format!("metadata.name={name}"));
    let mut list = ListParams::default().match_any();
    list.field_selector.clone_from(&fields);
    list.limit = u32::try_from(MOST).ok();
    let listed = match timeout(PATIENCE, api.list(&list)).await {
        Ok(Ok(listed)) => listed,
        Ok(Err(error)) => return End::Failed(error),
        Err(_) => return End::Failed(kube::Error::Service("no answer in time".into())),
    };
    let mut version = listed.metadata.resource_version.unwrap_or_default();
    if sink.listed(listed.items).await {
        return End::Enough;
    }
    loop {
        let before = version.clone();
        let begun = Instant::now();
        match watch(&api, fields.as_deref(), &mut version, sink).await {
            Watched::Enough => return End::Enough,
            Watched::Broken => return End::Again,
            // The server ends watches after some minutes; one that ends at once without a word is not trusted.
            Watched::Ended if before == version && begun.elapsed() < Duration::from_secs(1) => return End::Again,
            Watched::Ended => {}
        }
    }
}

enum Watched {
    Enough,
    Ended,
    Broken,
}

async fn watch<K: Kind + kube::Resource<DynamicType = ()>>(
    api: &Api<K>,
    fields: Option<&str>,
    version: &mut String,
    sink: &impl Sink<K>,
) -> Watched {
    let mut parameters = WatchParams::default();
    parameters.field_selector = fields.map(str::to_owned);
    // The API server's own limit is 5 to 10 minutes.
    parameters.timeout = None;
    let Ok(Ok(events)) = timeout(PATIENCE, api.watch(&parameters, version)).await else { return Watched::Broken };
    pin_mut!(events);
    loop {
        let object = match timeout(SILENCE, events.next()).await {
            Err(_) | Ok(Some(Err(_) | Ok(WatchEvent::Error(_)))) => return Watched::Broken,
            Ok(None) => return Watched::Ended,
            Ok(Some(Ok(WatchEvent::Bookmark(bookmark)))) => {
                version.clone_from(&bookmark.metadata.resource_version);
                continue;
            }
            Ok(Some(Ok(WatchEvent::Deleted(object)))) => {
                note(version, &object);
                sink.gone(object).await;
                continue;
            }
            Ok(Some(Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)))) => object,
        };
        note(version, &object);
        if sink.set(object).await {
            return Watched::Enough;
        }
    }
}

fn note<K: kube::Resource>(version: &mut String, object: &K) {
    if let Some(seen) = &object.meta().resource_version {
        version.clone_from(seen);
    }
}
