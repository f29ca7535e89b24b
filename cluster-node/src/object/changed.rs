//! Pods whose objects changed, gathered until somebody takes them: bounded by the pods there are.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::Notify;

/// Uids of pods whose objects changed. Cheap to clone; every clone takes from the same set.
#[derive(Debug, Clone, Default)]
pub struct ChangedPods(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    uids: Mutex<BTreeSet<String>>,
    news: Notify,
}

impl ChangedPods {
    /// Waits for changes and takes them all. Cancelled: nothing is taken.
    pub async fn next(&self) -> BTreeSet<String> {
        loop {
            let news = self.0.news.notified();
            let taken = std::mem::take(&mut *self.0.uids.lock().unwrap_or_else(PoisonError::into_inner));
            if !taken.is_empty() {
                return taken;
            }
            news.await;
        }
    }

    pub(super) fn add(&self, uids: impl IntoIterator<Item = String>) {
        let mut known = self.0.uids.lock().unwrap_or_else(PoisonError::into_inner);
        known.extend(uids);
        let is_any = !known.is_empty();
        drop(known);
        if is_any {
            self.0.news.notify_one();
        }
    }

    pub(super) fn forget(&self, uid: &str) {
        self.0.uids.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }
}
