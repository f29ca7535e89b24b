//! The status of pods on its way to the API server: kept here while there is none, true when there is one again.
//!
//! Always true:
//! - The latest status wins; a pod that has ended never runs again, nor does a container that may not be restarted.
//! - What is sent names the pod's uid, so that another pod of the same name is never hit; conditions of others stay.
//! - The last DELETE is by uid, and comes after the last status was taken.
//!
//! Elsewhere: what the status is (`decide`), which pods there are (`source`).

mod book;
mod normal;
mod patch;
mod send;
#[cfg(test)]
mod tests;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use board::tasks::Context;
use futures_util::{StreamExt, stream::FuturesUnordered};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use store::state::{Batch, State, StateError};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use self::book::{Book, Kept, Work};
use super::source::Known;
use crate::api::{Api, Link};

pub use patch::{is_own, patch};

/// Requests at once.
const PARALLEL: usize = 8;
/// How often records of pods that are no more are looked for.
const SWEEP: Duration = Duration::from_secs(60);

/// Cheap to clone.
#[derive(Clone)]
pub struct StatusManager(Arc<Inner>);

struct Inner {
    client: kube::Client,
    link: watch::Receiver<Link>,
    state: State,
    known: Known,
    book: Mutex<Book>,
    wake: Notify,
    settled: watch::Sender<bool>,
}

impl StatusManager {
    /// With what was kept before. Reads the store: short, but blocking.
    pub fn new(api: &Api, state: State, known: Known) -> Self {
        Self::with(api.client(), api.link(), state, known)
    }

    fn with(client: kube::Client, link: watch::Receiver<Link>, state: State, known: Known) -> Self {
        let kept = state.scan::<Kept>("").filter_map(|record| match record {
            Ok((uid, kept)) => Some((uid, kept)),
            Err(error) => {
                tracing::warn!(%error, "the kept status of a pod does not read; it is made anew");
                None
            }
        });
        let book = Mutex::new(Book::of(kept.collect()));
        let settled = watch::Sender::new(false);
        Self(Arc::new(Inner { client, link, state, known, book, wake: Notify::new(), settled }))
    }

    /// From now on this is the pod's status, by the pod's uid: a static pod's goes to its mirror. Never waits. What
    /// cannot be true (a life after the end) is left out; returned is what holds.
    pub fn set(&self, pod: &Pod, status: PodStatus) -> PodStatus {
        let is_static = pod.metadata.uid.as_deref().is_some_and(|uid| self.0.known.is_static(uid));
        let (holds, is_new) = self.book().set(pod, is_static, status);
        if is_new {
            self.0.settled.send_replace(false);
            self.0.wake.notify_one();
        }
        holds
    }

    /// The status last set, also by an agent before this one.
    pub fn last(&self, uid: &str) -> Option<PodStatus> {
        self.book().status(uid)
    }

    /// Returns when the status last set is on the disk: before what it tells of is removed, such as the containers of a
    /// pod that has ended.
    pub async fn keep(&self, uid: &str) -> Result<(), StateError> {
        let mut batch = Batch::default();
        let Some((kept, version)) = self.book().kept(uid) else { return Ok(()) };
        batch.put(uid, &kept)?;
        self.0.state.commit(batch).await?;
        self.book().stored(uid, version);
        Ok(())
    }

    /// Nothing of the pod is left on this node. When its last status was taken it is deleted for good, where it is being
    /// deleted; its record goes when the API server no longer has it. What a restart forgets of this is asked for again.
    pub fn finish(&self, uid: &str) {
        let pod = self.0.known.get(uid);
        self.book().finish(uid, pod.as_deref());
        self.0.known.ended(uid);
        self.0.settled.send_replace(false);
        self.0.wake.notify_one();
    }

    /// The API server has the pod no more, nor has this node: its status interests nobody.
    pub fn forget(&self, uid: &str) {
        self.0.known.ended(uid);
        self.book().forget(uid);
        self.0.wake.notify_one();
    }

    /// Whether everything was told that there was to tell: `false` from a reconnection until the statuses are true.
    pub fn settled(&self) -> watch::Receiver<bool> {
        self.0.settled.subscribe()
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // Every change leaves the book whole.
        self.0.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends and keeps until it is told to stop; then keeps once more.
    pub async fn run(self, context: Context) -> Result<(), StateError> {
        let outcome = tokio::select! {
            outcome = self.work(&context) => outcome,
            () = context.stop.cancelled() => Ok(()),
        };
        self.store().await?;
        outcome
    }

    async fn work(&self, context: &Context) -> Result<(), StateError> {
        let mut link = self.0.link.clone();
        let mut changes = self.0.known.changes();
        let mut requests = FuturesUnordered::new();
        let mut swept = Instant::now();
        // A run before this one may have been broken off in the middle of a request.
        self.book().nothing_on_its_way();
        loop {
            self.store().await?;
            let is_up = !matches!(*link.borrow_and_update(), Link::Down { .. });
            changes.mark_unchanged();
            if is_up && self.0.known.is_listed() {
                while requests.len() < PARALLEL {
                    let Some(work) = self.book().next(&self.0.known, Instant::now()) else { break };
                    requests.push(send::send(&self.0.client, work));
                }
            }
            if swept.elapsed() >= SWEEP && self.0.known.is_complete() {
                self.book().sweep(&self.0.known);
                swept = Instant::now();
            }
            self.report(context, is_up && requests.is_empty());
            let pause = self.book().pause(Instant::now()).unwrap_or(SWEEP).min(SWEEP);
            tokio::select! {
                Some((work, answer)) = requests.next(), if !requests.is_empty() => self.answered(&work, answer),
                () = self.0.wake.notified() => {}
                _ = link.changed() => {}
                _ = changes.changed() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn answered(&self, work: &Work, answer: send::Answer) {
        if let send::Answer::Later(problem) | send::Answer::Refused(problem) = &answer {
            let pod = work.target.to_string();
            tracing::debug!(pod, problem, "a status was not taken");
        }
        let refused = self.book().answered(work, answer, Instant::now());
        if let Some(problem) = refused {
            tracing::warn!(pod = %work.target, problem, "the API server does not take the status of a pod; tried again");
        }
    }

    /// Everything that is not on the disk, without waiting for it.
    async fn store(&self) -> Result<(), StateError> {
        let unsaved = self.book().unsaved()?;
        let Some((batch, versions)) = unsaved else { return Ok(()) };
        self.0.state.commit_relaxed(batch).await?;
        let mut book = self.book();
        for (uid, version) in versions {
            book.stored(&uid, version);
        }
        Ok(())
    }

    fn report(&self, context: &Context, is_idle: bool) {
        let (waiting, all) = self.book().waiting();
        let is_settled = is_idle && waiting == 0;
        self.0.settled.send_if_modified(|it| std::mem::replace(it, is_settled) != is_settled);
        context.healthy(if waiting == 0 {
            format!("{all} pods")
        } else {
            format!("{waiting} of {all} pods to be told")
        });
    }
}
