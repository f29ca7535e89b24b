//! The channel between the router and one connection: bounded in messages and in bytes.
//!
//! A bound on messages alone would let a client that does not read hold on to a hundred of the largest packets.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::mpsc;

use super::Delivery;

/// Messages waiting in a subscriber's channel.
pub(super) const CHANNEL: usize = 128;
/// Bytes waiting there; one message always has room.
pub(super) const CHANNEL_BYTES: usize = 1 << 20;

/// The router's end.
pub(super) struct Outlet {
    sender: mpsc::Sender<Delivery>,
    bytes: Arc<AtomicUsize>,
}

/// The connection's end.
pub struct Inbox {
    receiver: mpsc::Receiver<Delivery>,
    bytes: Arc<AtomicUsize>,
}

pub(super) fn channel() -> (Outlet, Inbox) {
    let (sender, receiver) = mpsc::channel(CHANNEL);
    let bytes = Arc::new(AtomicUsize::new(0));
    (Outlet { sender, bytes: bytes.clone() }, Inbox { receiver, bytes })
}

impl Outlet {
    /// Hands the message on, or gives it back where there is no room or nobody any more.
    pub fn send(&self, delivery: Delivery) -> Result<(), Delivery> {
        let size = delivery.message.size();
        // Only the router adds, one message at a time: between the look and the addition it can only get less.
        let waiting = self.bytes.load(Ordering::Relaxed);
        if waiting > 0 && waiting + size > CHANNEL_BYTES {
            return Err(delivery);
        }
        self.bytes.fetch_add(size, Ordering::Relaxed);
        self.sender.try_send(delivery).map_err(|refused| {
            self.bytes.fetch_sub(size, Ordering::Relaxed);
            match refused {
                mpsc::error::TrySendError::Full(delivery) | mpsc::error::TrySendError::Closed(delivery) => delivery,
            }
        })
    }
}

impl Inbox {
    /// The next message; `None` once the session belongs to another connection. Cancel-safe.
    pub async fn recv(&mut self) -> Option<Delivery> {
        let delivery = self.receiver.recv().await;
        self.took(delivery)
    }

    /// The next message, if one waits.
    pub fn try_recv(&mut self) -> Option<Delivery> {
        let delivery = self.receiver.try_recv().ok();
        self.took(delivery)
    }

    fn took(&self, delivery: Option<Delivery>) -> Option<Delivery> {
        let delivery = delivery?;
        self.bytes.fetch_sub(delivery.message.size(), Ordering::Relaxed);
        Some(delivery)
    }

    /// Takes no more: what still waits can be received, what comes later is queued by the session.
    pub fn close(&mut self) {
        self.receiver.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::router::Message;

    fn delivery(bytes: usize) -> Delivery {
        let message = Arc::new(Message::plain("t".into(), vec![0; bytes].into()));
        Delivery { message, qos: 0, retain: false, ids: Vec::new(), again: false }
    }

    #[test]
    fn bytes_are_bounded_and_come_free_again() {
        let (outlet, mut inbox) = channel();
        outlet.send(delivery(2 * CHANNEL_BYTES)).expect("one always has room");
        assert!(outlet.send(delivery(1)).is_err());
        assert!(inbox.try_recv().is_some() && inbox.try_recv().is_none());
        let sent = (0..1000).take_while(|_| outlet.send(delivery(CHANNEL_BYTES / 10)).is_ok()).count();
        assert_eq!(sent, 9);
        assert_eq!((0..1000).take_while(|_| inbox.try_recv().is_some()).count(), 9);
        let sent = (0..1000).take_while(|_| outlet.send(delivery(1)).is_ok()).count();
        assert_eq!(sent, CHANNEL);
    }
}
