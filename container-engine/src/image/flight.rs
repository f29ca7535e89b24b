//! What is being fetched now: one download for all who want the same blob, and pins that garbage collection respects.
//!
//! A second pull of a blob waits for the first and follows its progress; when the first is dropped, the second goes on from
//! what is on disk. Something is pinned before it is looked for, and removed only under the lock of the pins, so what was
//! found stays.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use tokio::sync::watch;

use super::LayerStatus;
use crate::content::Digest;

/// One blob on its way.
#[derive(Debug)]
pub(crate) struct Flight {
    /// Held by the one who fetches.
    pub turn: Arc<tokio::sync::Mutex<()>>,
    /// How far it is.
    pub progress: watch::Sender<LayerStatus>,
}

#[derive(Debug, Default)]
struct Inner {
    flights: HashMap<Digest, Weak<Flight>>,
    pins: HashMap<Digest, usize>,
}

/// All of them; cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Flights(Arc<Mutex<Inner>>);

/// Keeps digests from being removed while it lives.
#[derive(Debug)]
pub(crate) struct Pins {
    flights: Flights,
    digests: Vec<Digest>,
}

impl Flights {
    /// The flight of a blob, begun or joined.
    pub fn join(&self, digest: Digest) -> Arc<Flight> {
        let mut inner = self.lock();
        if let Some(flight) = inner.flights.get(&digest).and_then(Weak::upgrade) {
            return flight;
        }
        inner.flights.retain(|_, flight| flight.strong_count() > 0);
        let flight = Arc::new(Flight { turn: Arc::default(), progress: watch::Sender::new(LayerStatus::Waiting) });
        inner.flights.insert(digest, Arc::downgrade(&flight));
        flight
    }

    /// Pins: what is there now, or comes, is not removed until the pins are dropped.
    pub fn pin(&self, digests: impl IntoIterator<Item = Digest>) -> Pins {
        let digests: Vec<_> = digests.into_iter().collect();
        let mut inner = self.lock();
        for digest in &digests {
            *inner.pins.entry(*digest).or_default() += 1;
        }
        Pins { flights: self.clone(), digests }
    }

    /// Whether somebody has pinned it.
    pub fn is_pinned(&self, digest: &Digest) -> bool {
        self.lock().pins.contains_key(digest)
    }

    /// Runs `remove` where nobody has pinned `digest` and nobody can meanwhile; `None` where somebody has.
    pub fn unless_pinned<T>(&self, digest: &Digest, remove: impl FnOnce() -> T) -> Option<T> {
        let inner = self.lock();
        (!inner.pins.contains_key(digest)).then(remove)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let mut inner = self.flights.lock();
        for digest in &self.digests {
            if let Some(count) = inner.pins.get_mut(digest) {
                *count -= 1;
                if *count == 0 {
                    inner.pins.remove(digest);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flights_are_shared_and_pins_counted() {
        let flights = Flights::default();
        let digest = Digest::of(b"x");
        let first = flights.join(digest);
        assert!(Arc::ptr_eq(&first, &flights.join(digest)));
        drop(first);
        let one = flights.pin([digest]);
        let two = flights.pin([digest]);
        drop(one);
        assert_eq!(flights.unless_pinned(&digest, || ()), None);
        drop(two);
        assert_eq!(flights.unless_pinned(&digest, || ()), Some(()));
    }
}
