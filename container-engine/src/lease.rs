//! Leases: what is held against garbage collection, by whom and until when.
//!
//! A lease names images (as their records are named), manifests and layers by digest. It is a record of the store, so that a
//! build which goes on after a restart finds its layers; it ends by itself, so that nothing is held for ever by a holder
//! that died.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use store::state::{Batch, Entity, State, StateError};

use crate::{content::Digest, owner::Owner};

/// Longest life of a lease that is not renewed.
pub const MAX_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);
/// Things one lease may hold.
const MAX_HELD: usize = 4096;
/// Leases there may be.
const MAX_LEASES: usize = 4096;
/// Longest id.
const MAX_ID: usize = 128;

/// What a lease holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Resource {
    /// An image with all that belongs to it, by its manifest's or configuration's digest.
    Image(Digest),
    /// One blob.
    Blob(Digest),
    /// One unpacked layer, by its diff id.
    Layer(Digest),
    /// A snapshot, by its id.
    Snapshot(String),
}

/// A lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Unique.
    pub id: String,
    /// Who holds it.
    pub owner: Owner,
    /// What it holds.
    pub resources: BTreeSet<Resource>,
    /// Seconds since 1970 after which it holds nothing.
    pub expires_s: u64,
}

impl Entity for Lease {
    const TREE: &'static str = "lease";
    const VERSION: u16 = 1;
}

/// Why a lease was not made or changed.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// There is none of that name.
    #[error("there is no lease {0:?}: it has ended or was released")]
    NotFound(String),
    /// The name is taken.
    #[error("there is a lease {0:?} already: release it, or choose another name")]
    Exists(String),
    /// A name that is none.
    #[error("{0:?} is no name of a lease: 1 to 128 letters, digits, '.', '_', '/' or '-'")]
    Name(String),
    /// More than is sane.
    #[error("lease {id:?}: {problem}")]
    TooMany {
        /// Which.
        id: String,
        /// What there is too much of.
        problem: &'static str,
    },
    /// The store failed.
    #[error("cannot write lease {id:?}")]
    State {
        /// Which.
        id: String,
        /// Why.
        source: StateError,
    },
}

impl LeaseError {
    /// For the control socket.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotFound(_) => "not_found",
            Self::Exists(_) => "conflict",
            Self::Name(_) | Self::TooMany { .. } => "invalid",
            Self::State { .. } => "internal",
        }
    }

    /// Whether the same call may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::State { .. })
    }
}

/// All leases; cheap to clone.
#[derive(Clone)]
pub struct Leases {
    state: State,
    /// One change at a time: each reads the record that it writes.
    change: std::sync::Arc<tokio::sync::Mutex<()>>,
}

impl Leases {
    /// Over the store.
    pub fn new(state: State) -> Self {
        Self { state, change: std::sync::Arc::default() }
    }

    /// Makes a lease that ends after `life` (at most a week) unless it is renewed. An ended one of that name is replaced.
    pub async fn create(&self, id: &str, owner: Owner, life: Duration) -> Result<Lease, LeaseError> {
        let _one = self.change.lock().await;
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'/');
        if id.is_empty() || id.len() > MAX_ID || !id.bytes().all(plain) {
            return Err(LeaseError::Name(id.chars().take(MAX_ID).collect()));
        }
        if self.get(id).is_ok() {
            return Err(LeaseError::Exists(id.to_owned()));
        }
        if self.list().len() >= MAX_LEASES {
            return Err(LeaseError::TooMany { id: id.to_owned(), problem: "there are 4096 already: release some" });
        }
        let lease = Lease { id: id.to_owned(), owner, resources: BTreeSet::new(), expires_s: until(life) };
        self.put(lease).await
    }

    /// Adds to what a lease holds; returns when durable.
    pub async fn add(&self, id: &str, resources: impl IntoIterator<Item = Resource>) -> Result<Lease, LeaseError> {
        let _one = self.change.lock().await;
        let mut lease = self.get(id)?;
        lease.resources.extend(resources);
        if lease.resources.len() > MAX_HELD {
            return Err(LeaseError::TooMany { id: id.to_owned(), problem: "it would hold over 4096 things" });
        }
        self.put(lease).await
    }

    /// Lets a lease end after `life` from now.
    pub async fn renew(&self, id: &str, life: Duration) -> Result<Lease, LeaseError> {
        let _one = self.change.lock().await;
        let mut lease = self.get(id)?;
        lease.expires_s = until(life);
        self.put(lease).await
    }

    /// Ends a lease; one that is not there is no error.
    pub async fn release(&self, id: &str) -> Result<(), LeaseError> {
        let _one = self.change.lock().await;
        let mut batch = Batch::default();
        batch.delete::<Lease>(id);
        self.state.commit(batch).await.map_err(|source| LeaseError::State { id: id.to_owned(), source })
    }

    /// Ends all leases of an owner; how many.
    pub async fn release_owner(&self, owner: &Owner) -> Result<usize, LeaseError> {
        let _one = self.change.lock().await;
        self.drop_where(|lease| lease.owner == *owner).await
    }

    /// One lease that has not ended.
    pub fn get(&self, id: &str) -> Result<Lease, LeaseError> {
        let found = self.state.get::<Lease>(id).map_err(|source| LeaseError::State { id: id.to_owned(), source })?;
        found.filter(|lease| lease.expires_s > now()).ok_or_else(|| LeaseError::NotFound(id.to_owned()))
    }

    /// All leases that have not ended. A record that cannot be read is passed over: it held what nobody can name.
    pub fn list(&self) -> Vec<Lease> {
        let now = now();
        let alive = |lease: &Lease| lease.expires_s > now;
        self.state.scan::<Lease>("").filter_map(|item| item.ok().map(|(_, lease)| lease)).filter(alive).collect()
    }

    /// All that is held now.
    pub fn held(&self) -> BTreeSet<Resource> {
        self.list().into_iter().flat_map(|lease| lease.resources).collect()
    }

    /// Forgets the leases that have ended; how many.
    pub async fn sweep(&self) -> Result<usize, LeaseError> {
        let _one = self.change.lock().await;
        let now = now();
        self.drop_where(|lease| lease.expires_s <= now).await
    }

    async fn drop_where(&self, gone: impl Fn(&Lease) -> bool) -> Result<usize, LeaseError> {
        let mut batch = Batch::default();
        let mut count = 0;
        for (id, _) in self.state.scan::<Lease>("").filter_map(Result::ok).filter(|(_, lease)| gone(lease)) {
            batch.delete::<Lease>(&id);
            count += 1;
        }
        if count > 0 {
            self.state.commit(batch).await.map_err(|source| LeaseError::State { id: "(several)".into(), source })?;
        }
        Ok(count)
    }

    async fn put(&self, lease: Lease) -> Result<Lease, LeaseError> {
        let failed = |source| LeaseError::State { id: lease.id.clone(), source };
        let mut batch = Batch::default();
        batch.put(&lease.id, &lease).map_err(failed)?;
        self.state.commit(batch).await.map_err(failed)?;
        Ok(lease)
    }
}

fn until(life: Duration) -> u64 {
    now().saturating_add(life.min(MAX_LIFE).as_secs().max(1))
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_lease_holds_until_it_ends_and_over_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(&dir.path().join("state")).unwrap().0;
        let leases = Leases::new(state.clone());
        let (blob, layer) = (Resource::Blob(Digest::of(b"blob")), Resource::Layer(Digest::of(b"layer")));
        leases.create("build/1", Owner::Job("7".into()), Duration::from_secs(60)).await.unwrap();
        leases.create("short", Owner::Local, Duration::from_secs(60)).await.unwrap();
        leases.add("build/1", [blob.clone()]).await.unwrap();
        leases.add("short", [layer.clone()]).await.unwrap();
        assert!(matches!(leases.create("short", Owner::Local, MAX_LIFE).await, Err(LeaseError::Exists(_))));
        assert!(matches!(leases.create("a b", Owner::Local, MAX_LIFE).await, Err(LeaseError::Name(_))));
        let mut past = leases.get("short").unwrap();
        past.expires_s = now() - 1;
        leases.put(past).await.unwrap();
        assert!(matches!(leases.add("short", [layer]).await, Err(LeaseError::NotFound(_))));
        drop(leases);
        state.close();
        drop(state);
        let leases = Leases::new(State::open(&dir.path().join("state")).unwrap().0);
        assert_eq!(leases.held().into_iter().collect::<Vec<_>>(), [blob]);
        assert_eq!(leases.sweep().await.unwrap(), 1);
        assert_eq!(leases.release_owner(&Owner::Job("7".into())).await.unwrap(), 1);
        assert!(leases.held().is_empty());
        leases.release("never there").await.unwrap();
    }
}
