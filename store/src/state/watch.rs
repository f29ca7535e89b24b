//! Watching a tree: keys travel, values are read when they are asked for, so a watcher sees the newest.

use std::{marker::PhantomData, sync::Arc};

use tokio::sync::broadcast::{self, error::RecvError};

use super::{Entity, State, value};

/// Keys that one commit wrote (`true`) or removed.
pub(super) type Keys = Vec<(Vec<u8>, bool)>;

/// A stream of changes.
pub struct Watch<E> {
    state: State,
    changes: broadcast::Receiver<Arc<Keys>>,
    prefix: Vec<u8>,
    waiting: std::collections::VecDeque<Change<E>>,
    entity: PhantomData<E>,
}

/// One change.
#[derive(Debug, PartialEq, Eq)]
pub enum Change<E> {
    /// Set.
    Put(String, E),
    /// Removed.
    Deleted(String),
    /// Some were missed, or a value could not be read: scan again.
    Lagged,
}

impl<E: Entity> Watch<E> {
    pub(super) fn new(state: State, changes: broadcast::Receiver<Arc<Keys>>, prefix: &str) -> Self {
        let prefix = value::key_of(E::TREE, prefix).unwrap_or_else(|_| vec![0xff; 8]);
        Self { state, changes, prefix, waiting: std::collections::VecDeque::new(), entity: PhantomData }
    }

    /// The next change; `None` when the state is gone.
    pub async fn next(&mut self) -> Option<Change<E>> {
        loop {
            if let Some(change) = self.waiting.pop_front() {
                return Some(change);
            }
            match self.changes.recv().await {
                Ok(keys) => self.take(&keys),
                Err(RecvError::Lagged(_)) => return Some(Change::Lagged),
                Err(RecvError::Closed) => return None,
            }
        }
    }

    fn take(&mut self, keys: &Keys) {
        for (key, put) in keys.iter().filter(|(key, _)| key.starts_with(&self.prefix)) {
            let name = String::from_utf8_lossy(&key[E::TREE.len() + 1..]).into_owned();
            let change = if *put {
                match self.state.get(&name) {
                    Ok(Some(value)) => Change::Put(name, value),
                    Ok(None) => Change::Deleted(name),
                    Err(_) => Change::Lagged,
                }
            } else {
                Change::Deleted(name)
            };
            self.waiting.push_back(change);
        }
    }
}
