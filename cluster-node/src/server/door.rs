//! How many may be connected: few strangers, and few from one address, so that they never shut out who is known by a
//! certificate of the cluster.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bounds of a door.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Those who have shown no certificate, or not yet.
    pub strangers: usize,
    /// Of them, from one address.
    pub of_one: usize,
    /// Those who have.
    pub known: usize,
}

/// Counts who is in.
#[derive(Clone)]
pub struct Door(Arc<Inner>);

struct Inner {
    bounds: Bounds,
    strangers: Arc<Semaphore>,
    known: Arc<Semaphore>,
    by_address: Mutex<HashMap<IpAddr, usize>>,
}

impl Inner {
    fn by_address(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.by_address.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stranger that is in, until it is dropped.
pub struct Stranger {
    door: Arc<Inner>,
    address: IpAddr,
    _place: OwnedSemaphorePermit,
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let mut by_address = self.door.by_address();
        if let Some(count) = by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                by_address.remove(&self.address);
            }
        }
    }
}

impl Door {
    /// A door for so many.
    pub fn new(bounds: Bounds) -> Self {
        Self(Arc::new(Inner {
            bounds,
            strangers: Arc::new(Semaphore::new(bounds.strangers)),
            known: Arc::new(Semaphore::new(bounds.known)),
            by_address: Mutex::default(),
        }))
    }

    /// Lets somebody in whom nobody knows yet; `None`: there are enough.
    pub fn admit(&self, address: IpAddr) -> Option<Stranger> {
        let place = self.0.strangers.clone().try_acquire_owned().ok()?;
        let mut by_address = self.0.by_address();
        let count = by_address.entry(address).or_default();
        if *count >= self.0.bounds.of_one {
            return None;
        }
        *count += 1;
        Some(Stranger { door: self.0.clone(), address, _place: place })
    }

    /// The place of somebody who is known now, instead of that of a stranger; `None`: there are enough.
    pub fn recognize(&self, stranger: Stranger) -> Option<OwnedSemaphorePermit> {
        drop(stranger);
        self.0.known.clone().try_acquire_owned().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_never_shut_out_the_known() {
        let door = Door::new(Bounds { strangers: 3, of_one: 2, known: 1 });
        let address = |last| IpAddr::from([10, 0, 0, last]);
        let first = door.admit(address(1)).unwrap();
        let second = door.admit(address(1)).unwrap();
        assert!(door.admit(address(1)).is_none(), "two of one address are the most");
        let known = door.recognize(first).unwrap();
        let third = door.admit(address(1)).unwrap();
        let fourth = door.admit(address(2)).unwrap();
        assert!(door.admit(address(3)).is_none(), "three strangers are the most");
        assert!(door.recognize(fourth).is_none(), "one that is known is the most");
        drop((second, third));
        assert!(door.0.by_address().is_empty());
        drop(known);
        assert!(door.recognize(door.admit(address(3)).unwrap()).is_some());
    }
}
