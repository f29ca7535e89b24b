//! Which readings an object has, and how it is called. Pure.

use crate::reading::{push_varint, take_varint};

/// Longest object name that fits the checkpoint.
const MAX_NAME: usize = 1024;

/// One object, decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cut {
    pub first: u64,
    /// Inclusive.
    pub last: u64,
    pub name: String,
}

impl Cut {
    /// The next cut of what was gathered (number and corrected time in µs, ascending numbers): up to the first reading of
    /// another hour, so that a reading lies in the partition of its time. At least 64 readings go together all the same,
    /// or a clock that flaps would make an object of each.
    pub fn of(gathered: &[(u64, i64)], prefix: &str, board: &str, epoch: u64) -> Option<Self> {
        let &(first, time_us) = gathered.first()?;
        let hour = |us: i64| us.div_euclid(3_600_000_000);
        let same =
            gathered.iter().enumerate().take_while(|(n, (_, us))| hour(*us) == hour(time_us) || *n < 64 && *n > 0);
        let same = same.take_while(|(n, (_, us))| *n == 0 || hour(*us) == hour(time_us) || is_flapping(gathered));
        let last = same.last().map_or(first, |(_, (seq, _))| *seq);
        let (date, hour) = date_and_hour(time_us);
        let slash = if prefix.is_empty() { "" } else { "/" };
        let name = format!("{prefix}{slash}board={board}/date={date}/hour={hour:02}/{epoch}-{first}-{last}.parquet");
        Some(Self { first, last, name })
    }
}

/// Whether the first 64 readings change their hour more than twice: no clock that is right does.
fn is_flapping(gathered: &[(u64, i64)]) -> bool {
    let hours = gathered.iter().take(64).map(|(_, us)| us.div_euclid(3_600_000_000));
    let mut last = None;
    hours.filter(|hour| last.replace(*hour).is_some_and(|last| last != *hour)).count() > 2
}

/// `YYYY-MM-DD` and the hour, UTC.
fn date_and_hour(time_us: i64) -> (String, u8) {
    let time = jiff::Timestamp::from_microsecond(time_us).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    let time = time.to_zoned(jiff::tz::TimeZone::UTC);
    (time.strftime("%Y-%m-%d").to_string(), u8::try_from(time.hour()).unwrap_or(0))
}

/// What the checkpoint holds: everything below is stored; the cut, if any, is under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Progress {
    pub below: u64,
    pub cut: Option<Cut>,
}

impl Progress {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        if let Some(cut) = &self.cut {
            push_varint(&mut out, cut.first);
            push_varint(&mut out, cut.last);
            out.extend_from_slice(cut.name.as_bytes());
        }
        out
    }

    pub fn decode(below: u64, mut bytes: &[u8]) -> Self {
        let cut = (|| {
            let (first, last) = (take_varint(&mut bytes)?, take_varint(&mut bytes)?);
            let name = std::str::from_utf8(bytes).ok().filter(|name| !name.is_empty() && name.len() <= MAX_NAME)?;
            (first >= below && last >= first).then(|| Cut { first, last, name: name.to_owned() })
        })();
        Self { below, cut }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: i64 = 3_600_000_000;

    #[test]
    fn names_repeat_and_cuts_end_with_the_hour() {
        let at = |n: i64| 1_795_000_000_000_000 / HOUR * HOUR + n;
        let gathered = [(5, at(0)), (6, at(1)), (9, at(2)), (10, at(HOUR))];
        let cut = Cut::of(&gathered, "raw", "b7", 42).unwrap();
        assert_eq!((cut.first, cut.last), (5, 9));
        assert_eq!(cut.name, "raw/board=b7/date=2026-11-18/hour=11/42-5-9.parquet");
        assert_eq!(
            Cut::of(&gathered[3..], "", "b7", 42).unwrap().name,
            "board=b7/date=2026-11-18/hour=12/42-10-10.parquet"
        );
    }

    #[test]
    fn a_flapping_clock_does_not_make_an_object_of_each_reading() {
        let gathered: Vec<_> = (0..200).map(|n| (n, if n % 2 == 0 { 0 } else { 50 * HOUR })).collect();
        let cut = Cut::of(&gathered, "", "b", 1).unwrap();
        assert!(cut.last - cut.first >= 63, "{cut:?}");
    }

    proptest! {
        #[test]
        fn progress_reads_back(below in 1u64..1 << 50, first in 0u64..1000, len in 0u64..1000, has: bool) {
            let first = below + first;
            let cut = has.then(|| Cut { first, last: first + len, name: "board=b/x.parquet".into() });
            let progress = Progress { below, cut };
            prop_assert_eq!(Progress::decode(below, &progress.encode()), progress);
        }

        /// Whatever the times: cutting again and again puts every reading into exactly one object.
        #[test]
        fn each_reading_is_in_one_cut(hours in prop::collection::vec(0i64..4, 1..300)) {
            let gathered: Vec<_> = (1u64..).zip(hours.iter().map(|hour| hour * HOUR)).collect();
            let mut rest = &gathered[..];
            let mut next = 1;
            while let Some(cut) = Cut::of(rest, "", "b", 1) {
                prop_assert_eq!(cut.first, next);
                prop_assert!(cut.last >= cut.first);
                next = cut.last + 1;
                rest = &gathered[usize::try_from(next - 1).unwrap()..];
            }
            prop_assert_eq!(next, gathered.len() as u64 + 1);
        }
    }
}
