//! What was sent to a client and is not acknowledged: packet identifiers and the client's receive maximum.
//!
//! Pure: it decides, the connection writes.

use std::collections::BTreeMap;

use crate::router::Delivery;

/// Sent at most without an acknowledgement, whatever the client allows: it bounds memory.
const MOST: u16 = 64;

/// The send window of one connection.
pub(super) struct Window {
    max: usize,
    next: u16,
    /// By packet identifier: the message, or `None` once the client has received a QoS 2 message.
    unacked: BTreeMap<u16, Option<Delivery>>,
    /// Order of sending, for redelivery.
    order: Vec<u16>,
}

impl Window {
    pub fn new(receive_max: u16) -> Self {
        Self { max: usize::from(receive_max.min(MOST)), next: 0, unacked: BTreeMap::new(), order: Vec::new() }
    }

    pub fn has_room(&self) -> bool {
        self.unacked.len() < self.max
    }

    /// An identifier for a message of QoS 1 or 2, which is kept until acknowledged.
    pub fn send(&mut self, delivery: &Delivery) -> u16 {
        loop {
            self.next = self.next.checked_add(1).unwrap_or(1);
            if !self.unacked.contains_key(&self.next) {
                break;
            }
        }
        self.unacked.insert(self.next, Some(delivery.clone()));
        self.order.push(self.next);
        self.next
    }

    /// PUBACK, or a PUBREC that refuses.
    pub fn done(&mut self, id: u16) {
        self.unacked.remove(&id);
        self.order.retain(|it| *it != id);
    }

    /// PUBREC: the message need not be sent again, its release does.
    pub fn received(&mut self, id: u16) {
        if let Some(delivery) = self.unacked.get_mut(&id) {
            *delivery = None;
        }
    }

    /// What to send again to a client that comes back, in order.
    pub fn into_unacked(mut self) -> Vec<Delivery> {
        let ids = std::mem::take(&mut self.order);
        let again = |delivery| Delivery { again: true, ..delivery };
        ids.into_iter().filter_map(|id| self.unacked.remove(&id)?.map(again)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::router::Message;

    fn delivery(text: &str) -> Delivery {
        let message = Arc::new(Message::plain("t".into(), text.to_owned().into()));
        Delivery { message, qos: 2, retain: false, ids: Vec::new(), again: false }
    }

    #[test]
    fn the_window_fills_and_empties_and_gives_back_what_is_open() {
        let mut window = Window::new(3);
        let ids: Vec<_> = ["a", "b", "c"].map(|text| window.send(&delivery(text))).into();
        assert_eq!(ids, [1, 2, 3]);
        assert!(!window.has_room());
        window.done(1);
        window.received(2);
        assert!(window.has_room());
        window.done(77);
        let again = window.into_unacked();
        assert_eq!(again.len(), 1);
        assert!(again[0].again && again[0].message.payload == "c");
    }

    #[test]
    fn identifiers_wrap_and_skip_those_in_use() {
        let mut window = Window::new(2);
        let first = window.send(&delivery("stays"));
        for _ in 0..70_000 {
            let id = window.send(&delivery("goes"));
            assert!(id != 0 && id != first);
            window.done(id);
        }
    }
}
