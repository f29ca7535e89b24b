//! What is on its way to the broker: which packet identifier carries which readings, and what is delivered.
//!
//! The client numbers packets itself and tells the numbers in the order in which the packets were handed to it, so
//! packets wait in that order for their number. One that collides with an unacknowledged number waits for that.
//!
//! Always true: a reading counts as delivered only when the packet that carried it in this connection was acknowledged.
//! A new connection starts with nothing in flight.

use std::{
    collections::{HashMap, VecDeque},
    ops::Range,
};

use super::progress::{Progress, RangeSet};

/// The readings of one packet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Packet {
    /// Their numbers.
    pub(super) seqs: Vec<Range<u64>>,
}

impl Packet {
    /// A packet with readings of these numbers, ascending.
    pub(super) fn of(seqs: impl IntoIterator<Item = u64>) -> Self {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for seq in seqs {
            match ranges.last_mut() {
                Some(last) if last.end == seq => last.end += 1,
                _ => ranges.push(seq..seq + 1),
            }
        }
        Self { seqs: ranges }
    }

    /// Readings in it.
    pub(super) fn readings(&self) -> u64 {
        self.seqs.iter().map(|range| range.end - range.start).sum()
    }
}

/// Packets on their way, and progress.
#[derive(Debug)]
pub(super) struct Flight {
    delivered: Progress,
    sent: RangeSet,
    unnumbered: VecDeque<Packet>,
    numbered: HashMap<u16, Packet>,
    collided: Option<(u16, Packet)>,
}

impl Flight {
    /// Nothing on its way.
    pub(super) fn new(delivered: Progress) -> Self {
        Self {
            delivered,
            sent: RangeSet::default(),
            unnumbered: VecDeque::new(),
            numbered: HashMap::new(),
            collided: None,
        }
    }

    /// What is delivered.
    pub(super) fn delivered(&self) -> &Progress {
        &self.delivered
    }

    /// Ends the flight; what was not acknowledged is to be sent again.
    pub(super) fn land(self) -> Progress {
        self.delivered
    }

    /// Packets not yet acknowledged.
    pub(super) fn packets(&self) -> usize {
        self.unnumbered.len() + self.numbered.len() + usize::from(self.collided.is_some())
    }

    /// Whether this reading needs no sending: delivered, or on its way.
    pub(super) fn has(&self, seq: u64) -> bool {
        self.delivered.contains(seq) || self.sent.contains(seq)
    }

    /// These numbers will never be delivered: they are gone from the log, or nobody can take them.
    pub(super) fn pass_over(&mut self, gone: Range<u64>) {
        self.delivered.insert(gone);
    }

    /// Keeps the list of what is delivered short; `from` is where reading goes on.
    pub(super) fn shorten(&mut self, from: u64) {
        self.delivered.shorten(from);
    }

    /// A packet is handed to the client.
    pub(super) fn hand_over(&mut self, packet: Packet) {
        for range in &packet.seqs {
            self.sent.insert(range.clone());
        }
        self.unnumbered.push_back(packet);
    }

    /// The client sent a packet as number `id`; with `id` 0 (`QoS` 0) that is all that will be heard of it. Returns
    /// the readings delivered.
    pub(super) fn sent_as(&mut self, id: u16) -> u64 {
        if let Some((_, packet)) = self.collided.take_if(|(waiting, _)| *waiting == id) {
            self.numbered.insert(id, packet);
            return 0;
        }
        let Some(packet) = self.unnumbered.pop_front() else { return 0 };
        if id == 0 {
            return self.deliver(&packet);
        }
        self.numbered.insert(id, packet);
        0
    }

    /// The client holds a packet back until number `id` is free.
    pub(super) fn held_back(&mut self, id: u16) {
        self.collided = self.unnumbered.pop_front().map(|packet| (id, packet));
    }

    /// The broker has packet `id` for good. Returns the readings delivered.
    pub(super) fn acknowledged(&mut self, id: u16) -> u64 {
        self.numbered.remove(&id).map_or(0, |packet| self.deliver(&packet))
    }

    fn deliver(&mut self, packet: &Packet) -> u64 {
        for range in &packet.seqs {
            self.sent.remove(range);
            self.delivered.insert(range.clone());
        }
        packet.readings()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_packet_knows_its_ranges() {
        assert_eq!(Packet::of([3, 4, 5, 9]).seqs, [3..6, 9..10]);
        assert_eq!(Packet::of([3, 4, 5, 9]).readings(), 4);
    }

    #[test]
    fn a_collision_is_delivered_by_its_own_acknowledgement() {
        let mut flight = Flight::new(Progress::new(1));
        flight.hand_over(Packet::of([1]));
        flight.hand_over(Packet::of([2]));
        flight.sent_as(1);
        flight.held_back(1);
        assert_eq!(flight.acknowledged(1), 1);
        assert_eq!((flight.delivered().below(), flight.packets()), (2, 1));
        flight.sent_as(1);
        assert!(flight.has(2) && !flight.delivered().contains(2));
        flight.acknowledged(1);
        assert_eq!((flight.delivered().below(), flight.packets()), (3, 0));
    }

    #[test]
    fn an_unknown_acknowledgement_delivers_nothing() {
        let mut flight = Flight::new(Progress::new(1));
        flight.hand_over(Packet::of([1]));
        assert_eq!(flight.acknowledged(1), 0);
        assert_eq!(flight.delivered().below(), 1);
    }

    proptest! {
        /// Packets of one reading each, acknowledged in any order, some never.
        #[test]
        fn delivered_is_exactly_what_was_acknowledged(order in proptest::sample::subsequence((1..=60u16).collect::<Vec<_>>(), 0..60).prop_shuffle()) {
            let mut flight = Flight::new(Progress::new(1));
            for id in 1..=60 {
                flight.hand_over(Packet::of([u64::from(id)]));
                flight.sent_as(id);
            }
            for &id in &order {
                prop_assert_eq!(flight.acknowledged(id), 1);
            }
            prop_assert_eq!(flight.packets(), 60 - order.len());
            let progress = flight.land();
            for id in 1..=60 {
                prop_assert_eq!(progress.contains(id.into()), order.contains(&id));
            }
        }
    }
}
