//! What the core has acknowledged: everything below a number, and some ranges above it.
//!
//! Ranges above exist because alarms and fresh readings overtake history. Pure.

use std::ops::Range;

use crate::reading::{push_varint, take_varint};

/// Ranges remembered; beyond that the last are forgotten, and sent again.
const MAX_RANGES: usize = 128;

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
        seq < self.below || self.above.iter().any(|range| range.contains(&seq))
    }

    /// Adds acknowledged (or missing) numbers.
    pub fn add(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let mut range = range;
        self.above.retain(|it| {
            let touches = it.start <= range.end && range.start <= it.end;
            if touches {
                range = range.start.min(it.start)..range.end.max(it.end);
            }
            !touches
        });
        let at = self.above.partition_point(|it| it.start < range.start);
        self.above.insert(at, range);
        while let Some(first) = self.above.first().filter(|first| first.start <= self.below) {
            self.below = self.below.max(first.end);
            self.above.remove(0);
        }
        self.above.truncate(MAX_RANGES);
    }

    /// For the checkpoint; `below` is kept beside it.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut last = self.below;
        for range in &self.above {
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
        for n in 0..1000 {
            progress.add(10 + n * 2..11 + n * 2);
        }
        assert!(progress.has(10) && !progress.has(10 + 2 * 999));
        assert!(progress.encode().len() < 4000);
    }
}
