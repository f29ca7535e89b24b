//! What was sent to a client and is not acknowledged: packet identifiers and the client's receive maximum.
//!
//! Pure: it decides, the connection writes. Always true: an identifier belongs to one message until the client is done
//! with it, across connections. A client that has received a QoS 2 message knows it by its identifier alone: sent again
//! under another one it would be heard twice, and a new message under that one not at all.

use std::collections::{BTreeMap, VecDeque};

use crate::router::{Delivery, Open};

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
    /// Of an earlier connection, and not yet sent again on this one.
    again: VecDeque<u16>,
}

impl Window {
    /// A window that begins with what an earlier connection left open.
    pub fn new(receive_max: u16, open: Vec<Open>) -> Self {
        let order: Vec<_> = open.iter().map(|open| open.id).collect();
        Self {
            max: usize::from(receive_max.min(MOST)),
            next: order.last().copied().unwrap_or(0),
            again: order.iter().copied().collect(),
            order,
            unacked: open.into_iter().map(|open| (open.id, open.delivery)).collect(),
        }
    }

    pub fn has_room(&self) -> bool {
        self.unacked.len() - self.again.len() < self.max
    }

    /// What to send again next: a message, or (`None`) the release of one.
    pub fn send_again(&mut self) -> Option<(u16, Option<Delivery>)> {
        let id = self.again.pop_front()?;
        let delivery = self.unacked.get(&id).cloned().flatten();
        Some((id, delivery.map(|delivery| Delivery { again: true, ..delivery })))
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

    /// PUBACK, PUBCOMP, or a PUBREC that refuses.
    pub fn done(&mut self, id: u16) {
        if self.unacked.remove(&id).is_some() {
            self.order.retain(|it| *it != id);
            self.again.retain(|it| *it != id);
        }
    }

    /// PUBREC: the message need not be sent again, its release does.
    pub fn received(&mut self, id: u16) {
        if let Some(delivery) = self.unacked.get_mut(&id) {
            *delivery = None;
        }
    }

    /// What the next connection of the session begins with.
    pub fn into_open(mut self) -> Vec<Open> {
        let open = |id| self.unacked.remove(&id).map(|delivery| Open { id, delivery });
        self.order.into_iter().filter_map(open).collect()
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
    fn the_window_fills_and_empties_and_the_next_one_goes_on_with_what_is_open() {
        let mut window = Window::new(3, Vec::new());
        let ids: Vec<_> = ["a", "b", "c"].map(|text| window.send(&delivery(text))).into();
        assert_eq!(ids, [1, 2, 3]);
        assert!(!window.has_room());
        window.done(1);
        window.received(2);
        assert!(window.has_room());
        window.done(77);
        let mut window = Window::new(1, window.into_open());
        assert_eq!(window.send_again(), Some((2, None)));
        assert!(!window.has_room(), "a smaller window waits with the rest");
        window.done(2);
        let (id, again) = window.send_again().unwrap();
        assert!(id == 3 && again.is_some_and(|it| it.again && it.message.payload == "c"));
        assert_eq!(window.send_again(), None);
        assert_eq!(window.send(&delivery("d")), 4);
        assert_eq!(window.into_open().len(), 2);
    }

    #[test]
    fn identifiers_wrap_and_skip_those_in_use() {
        let mut window = Window::new(2, Vec::new());
        let first = window.send(&delivery("stays"));
        for _ in 0..70_000 {
            let id = window.send(&delivery("goes"));
            assert!(id != 0 && id != first);
            window.done(id);
        }
    }
}
