//! What a relay has delivered: everything below a number, and a short list of ranges above it.
//!
//! Always true: ranges are disjoint, not adjacent, and above `below`; nothing is claimed that was not inserted; what is
//! forgotten to stay short is sent again, never lost.

use std::{collections::BTreeMap, ops::Range};

use crate::reading::{push_varint, take_varint};

/// Ranges saved, and kept beside those of the window. With two varints each they fit a checkpoint of 4 KiB.
pub(super) const MAX_RANGES: usize = 64;

/// Disjoint ranges of sequence numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct RangeSet(BTreeMap<u64, u64>);

impl RangeSet {
    /// Adds a range and merges it with those that it touches.
    pub(super) fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let Range { mut start, mut end } = range;
        // From the right: all that begin within or just behind the range, and the one that reaches into it.
        while let Some((&from, &to)) = self.0.range(..=end).next_back() {
            if to < start {
                break;
            }
            self.0.remove(&from);
            start = start.min(from);
            end = end.max(to);
        }
        self.0.insert(start, end);
    }

    /// Takes a range out; what of it was not in the set does not matter.
    pub(super) fn remove(&mut self, range: &Range<u64>) {
        while let Some((&from, &to)) = self.0.range(..range.end).next_back() {
            if to <= range.start {
                break;
            }
            self.0.remove(&from);
            if to > range.end {
                self.0.insert(range.end, to);
            }
            if from < range.start {
                self.0.insert(from, range.start);
            }
        }
    }

    /// Whether `seq` is in the set.
    pub(super) fn contains(&self, seq: u64) -> bool {
        self.0.range(..=seq).next_back().is_some_and(|(_, &end)| seq < end)
    }

    /// Number of ranges.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

/// The progress of a relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Progress {
    below: u64,
    above: RangeSet,
}

impl Progress {
    /// Everything below `below` is delivered, nothing above.
    pub(super) fn new(below: u64) -> Self {
        Self { below, above: RangeSet::default() }
    }

    /// The first number not known to be delivered.
    pub(super) fn below(&self) -> u64 {
        self.below
    }

    /// Whether `seq` is delivered.
    pub(super) fn contains(&self, seq: u64) -> bool {
        seq < self.below || self.above.contains(seq)
    }

    /// Adds what was delivered.
    pub(super) fn insert(&mut self, range: Range<u64>) {
        if range.end <= self.below {
            return;
        }
        self.above.insert(range.start.max(self.below)..range.end);
        if let Some(end) = self.above.0.remove(&self.below) {
            self.below = end;
        }
    }

    /// Forgets the smallest ranges that start at `from` or later until at most `MAX_RANGES` of those are left. `from`
    /// is what will be read again, so that what is forgotten here is sent once more instead of being waited for.
    pub(super) fn shorten(&mut self, from: u64) {
        let mut ahead: Vec<_> = self.above.0.range(from..).map(|(&start, &end)| (end - start, start)).collect();
        if ahead.len() <= MAX_RANGES {
            return;
        }
        ahead.sort_unstable();
        for (_, start) in &ahead[..ahead.len() - MAX_RANGES] {
            self.above.0.remove(start);
        }
    }

    /// The largest ranges above `below`, as pairs of varints: distance from the end of the last one, and length.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut largest: Vec<_> = self.above.0.iter().map(|(&start, &end)| (end - start, start)).collect();
        largest.sort_unstable();
        let mut kept = largest.split_off(largest.len().saturating_sub(MAX_RANGES));
        kept.sort_unstable_by_key(|&(_, start)| start);
        let mut out = Vec::with_capacity(8 * kept.len());
        let mut at = self.below;
        for (length, start) in kept {
            push_varint(&mut out, start - at);
            push_varint(&mut out, length);
            at = start + length;
        }
        out
    }

    /// Reads what `encode` wrote; of other bytes what makes sense before the first that does not, which at worst repeats.
    pub(super) fn decode(below: u64, mut bytes: &[u8]) -> Self {
        let mut progress = Self::new(below);
        let mut at = below;
        while let (Some(gap), Some(length)) = (take_varint(&mut bytes), take_varint(&mut bytes)) {
            let Some(start) = at.checked_add(gap) else { break };
            let Some(end) = start.checked_add(length) else { break };
            if gap == 0 || length == 0 || progress.above.len() == MAX_RANGES {
                break;
            }
            progress.insert(start..end);
            at = end;
        }
        progress
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const SPAN: u64 = 300;

    fn ranges() -> impl Strategy<Value = Vec<Range<u64>>> {
        proptest::collection::vec((1..SPAN, 0u64..12).prop_map(|(start, length)| start..start + length), 0..120)
    }

    fn members(has: impl Fn(u64) -> bool) -> BTreeSet<u64> {
        (0..SPAN + 20).filter(|&seq| has(seq)).collect()
    }

    proptest! {
        #[test]
        fn a_set_of_ranges_is_a_set(steps in proptest::collection::vec((any::<bool>(), 1..SPAN, 0u64..30), 0..100)) {
            let (mut set, mut model) = (RangeSet::default(), BTreeSet::new());
            for (add, start, length) in steps {
                let range = start..start + length;
                if add {
                    set.insert(range.clone());
                    model.extend(range);
                } else {
                    set.remove(&range);
                    model.retain(|seq| !range.contains(seq));
                }
                let neighbours: Vec<_> = set.0.iter().collect();
                prop_assert!(neighbours.windows(2).all(|pair| pair[0].1 < pair[1].0) || !add, "not merged: {set:?}");
            }
            prop_assert_eq!(members(|seq| set.contains(seq)), model);
        }

        #[test]
        fn progress_claims_what_was_delivered_and_nothing_else(delivered in ranges()) {
            let mut progress = Progress::new(1);
            for range in delivered.clone() {
                progress.insert(range);
            }
            let want = members(|seq| seq < 1 || delivered.iter().any(|range| range.contains(&seq)));
            prop_assert_eq!(members(|seq| progress.contains(seq)), want);
            prop_assert!(!progress.contains(progress.below()));
        }

        #[test]
        fn what_is_saved_is_short_and_claims_no_more(delivered in ranges()) {
            let mut progress = Progress::new(1);
            for range in delivered {
                progress.insert(range);
            }
            let bytes = progress.encode();
            let back = Progress::decode(progress.below(), &bytes);
            prop_assert!(bytes.len() < 4000 && back.above.len() <= MAX_RANGES);
            prop_assert!(members(|seq| back.contains(seq)).is_subset(&members(|seq| progress.contains(seq))));
            if progress.above.len() <= MAX_RANGES {
                prop_assert_eq!(back, progress);
            }
        }

        #[test]
        fn shortening_forgets_only_what_will_be_read_again(delivered in ranges(), from in 1..SPAN) {
            let mut progress = Progress::new(1);
            for range in delivered {
                progress.insert(range);
            }
            let before = progress.clone();
            progress.shorten(from);
            prop_assert!(progress.above.0.range(from..).count() <= MAX_RANGES);
            prop_assert_eq!(progress.below(), before.below());
            for seq in (0..SPAN + 20).filter(|&seq| progress.contains(seq) != before.contains(seq)) {
                prop_assert!(seq >= from && before.contains(seq));
            }
        }

        #[test]
        fn any_saved_bytes_are_read_without_claiming_below(below in 1u64..u64::MAX, bytes: Vec<u8>) {
            let progress = Progress::decode(below, &bytes);
            prop_assert_eq!(progress.below(), below);
        }
    }
}
