//! What the core has acknowledged: everything below a number, and some ranges above it.
//!
//! Ranges above exist because alarms and fresh readings overtake history. Pure.

use std::ops::Range;

use crate::reading::{push_varint, take_varint};

/// Ranges remembered; beyond that the shortest is forgotten, and sent again.
const MAX_RANGES: usize = 4096;
/// Ranges saved, the longest: a checkpoint has room for 4 KiB.
const MAX_SAVED: usize = 128;

/// Acknowledged numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Progress {
    below: u64,
    /// Ascending, apart from each other and from `below`.
    above: Vec<Range<u64>>,
}

impl Progress {
    pub fn new(below: u64) -> Self {
        Self { below, above: Vec::new() }
    }

    /// Everything below this is acknowledged.
    pub fn below(&self) -> u64 {
        self.below
    }

    pub fn has(&self, seq: u64) -> bool {
        self.next_missing(seq) > seq
    }

    /// The first number from `seq` on that is not acknowledged.
    pub fn next_missing(&self, seq: u64) -> u64 {
        if seq < self.below {
            return self.below;
        }
        let at = self.above.partition_point(|it| it.end <= seq);
        self.above.get(at).filter(|it| it.start <= seq).map_or(seq, |it| it.end)
    }

    /// Adds acknowledged (or missing) numbers.
    pub fn add(&mut self, range: Range<u64>) {
        if range.is_empty() || range.end <= self.below {
            return;
        }
        // Those that touch the new one become one with it.
        let from = self.above.partition_point(|it| it.end < range.start);
        let to = self.above.partition_point(|it| it.start <= range.end);
        let start = self.above[from..to].first().map_or(range.start, |it| it.start.min(range.start));
        let end = self.above[from..to].last().map_or(range.end, |it| it.end.max(range.end));
        if start <= self.below {
            self.below = end;
            self.above.drain(from..to);
        } else {
            self.above.splice(from..to, std::iter::once(start..end));
        }
        if self.above.len() > MAX_RANGES {
            let shortest = self.above.iter().enumerate().min_by_key(|(_, it)| it.end - it.start);
            if let Some(at) = shortest.map(|(at, _)| at) {
                self.above.remove(at);
            }
        }
    }

    /// For the checkpoint; `below` is kept beside it.
    pub fn encode(&self) -> Vec<u8> {
        let mut saved: Vec<&Range<u64>> = self.above.iter().collect();
        if saved.len() > MAX_SAVED {
            saved.sort_unstable_by_key(|it| std::cmp::Reverse(it.end - it.start));
            saved.truncate(MAX_SAVED);
            saved.sort_unstable_by_key(|it| it.start);
        }
        let mut out = Vec::new();
        let mut last = self.below;
        for range in saved {
            push_varint(&mut out, range.start - last);
            push_varint(&mut out, range.end - range.start);
            last = range.end;
        }
        out
    }

    /// The inverse of `encode`; what does not fit together is forgotten, and sent again.
    pub fn decode(below: u64, mut bytes: &[u8]) -> Self {
        let mut progress = Self::new(below);
        let mut last = below;
        while !bytes.is_empty() {
            let (Some(gap), Some(len)) = (take_varint(&mut bytes), take_varint(&mut bytes)) else { break };
            let Some(start) = last.checked_add(gap) else { break };
            let Some(end) = start.checked_add(len) else { break };
            progress.add(start..end);
            last = end;
        }
        progress
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn never_claims_what_was_not_added(ranges in prop::collection::vec((1u64..200, 0u64..20), 0..60)) {
            let mut progress = Progress::new(1);
            let mut added = std::collections::BTreeSet::new();
            for (start, len) in ranges {
                progress.add(start..start + len);
                added.extend(start..start + len);
                for seq in 1..230 {
                    prop_assert_eq!(progress.has(seq), added.contains(&seq), "number {}", seq);
                }
            }
            prop_assert_eq!(Progress::decode(progress.below(), &progress.encode()), progress);
        }

        #[test]
        fn no_bytes_panic(bytes: Vec<u8>, below: u64) {
            let _ = Progress::decode(below, &bytes);
        }
    }

    #[test]
    fn forgetting_ranges_only_repeats() {
        let mut progress = Progress::new(1);
        // What came fresh, then alarms here and there in a long history.
        progress.add(1_000_000..1_000_500);
        for n in 0..10_000 {
            progress.add(10 + n * 2..11 + n * 2);
        }
        assert!(progress.has(1_000_400) && !progress.has(11));
        assert!(progress.encode().len() < 4000);
        let saved = Progress::decode(progress.below(), &progress.encode());
        assert!(saved.has(1_000_400), "the longest range is worth the most");
        assert!((1..30_000).all(|seq| progress.has(seq) || !saved.has(seq)));
    }
}
