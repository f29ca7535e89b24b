//! Which thresholds are passed, which conditions hold, and what to act on. Decides; does nothing.

use std::{collections::BTreeMap, time::Duration};

use super::threshold::{Pressure, Signal, Threshold};

/// What was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measured {
    /// What is left.
    pub available: u64,
    /// Of how much.
    pub capacity: u64,
}

/// All signals that could be measured.
pub type Measures = BTreeMap<Signal, Measured>;

/// What is remembered between two looks.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// Thresholds passed, by their place, and since when.
    since: BTreeMap<usize, Duration>,
    /// When a condition's cause was seen last.
    seen: BTreeMap<Pressure, Duration>,
}

/// What came of a look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Conditions that hold.
    pub pressures: Vec<Pressure>,
    /// What to act on now: memory before all else, hard thresholds before soft ones.
    pub act: Option<Starved>,
}

/// A threshold that has been passed for long enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Starved {
    /// Which.
    pub threshold: Threshold,
    /// What was measured.
    pub measured: Measured,
}

/// Looks at what was measured. `transition` is how long a condition holds after its cause has gone.
pub fn look(
    memory: &mut Memory,
    thresholds: &[Threshold],
    measures: &Measures,
    now: Duration,
    transition: Duration,
) -> Decision {
    for (place, threshold) in thresholds.iter().enumerate() {
        let Some(measured) = measures.get(&threshold.signal) else {
            // Nothing is known of it: what is not seen is not acted on.
            memory.since.remove(&place);
            continue;
        };
        let mut limit = threshold.amount.of(measured.capacity);
        if memory.since.contains_key(&place) {
            limit = limit.saturating_add(threshold.reclaim.map_or(0, |reclaim| reclaim.of(measured.capacity)));
        }
        if measured.available < limit {
            memory.since.entry(place).or_insert(now);
            memory.seen.insert(threshold.signal.pressure(), now);
        } else {
            memory.since.remove(&place);
        }
    }
    memory.seen.retain(|_, seen| *seen == now || now.saturating_sub(*seen) < transition);
    let ripe = memory.since.iter().filter_map(|(place, since)| {
        let threshold = thresholds.get(*place)?;
        let measured = *measures.get(&threshold.signal)?;
        let ripe = now.saturating_sub(*since) >= threshold.grace.unwrap_or_default();
        ripe.then_some(Starved { threshold: *threshold, measured })
    });
    let act = ripe.min_by_key(|starved| (starved.threshold.signal, starved.threshold.grace));
    Decision { pressures: memory.seen.keys().copied().collect(), act }
}

#[cfg(test)]
mod tests {
    use super::{super::threshold::Amount, *};

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn measures(memory: u64, disk: u64) -> Measures {
        let of = |available| Measured { available, capacity: 1000 };
        [(Signal::Memory, of(memory)), (Signal::NodeFs, of(disk))].into()
    }

    fn threshold(signal: Signal, amount: u64, grace: Option<u64>, reclaim: Option<u64>) -> Threshold {
        Threshold { signal, amount: Amount::Count(amount), grace: grace.map(s), reclaim: reclaim.map(Amount::Count) }
    }

    #[test]
    fn a_run_of_looks() {
        let thresholds = [
            threshold(Signal::NodeFs, 100, None, Some(50)),
            threshold(Signal::Memory, 200, Some(30), None),
            threshold(Signal::Memory, 100, None, None),
        ];
        let mut memory = Memory::default();
        let mut check = |at: u64, free: (u64, u64), pressures: &[Pressure], acts: Option<(Signal, bool)>| {
            let got = look(&mut memory, &thresholds, &measures(free.0, free.1), s(at), s(300));
            assert_eq!(got.pressures, pressures, "at {at}");
            let act = got.act.map(|act| (act.threshold.signal, act.threshold.grace.is_none()));
            assert_eq!(act, acts, "at {at}");
        };
        use Pressure::{Disk, Memory as Mem};
        check(0, (500, 500), &[], None);
        check(10, (150, 500), &[Mem], None);
        check(30, (150, 500), &[Mem], None);
        check(40, (150, 500), &[Mem], Some((Signal::Memory, false)));
        check(41, (90, 90), &[Mem, Disk], Some((Signal::Memory, true)));
        check(50, (500, 120), &[Mem, Disk], Some((Signal::NodeFs, true)));
        check(60, (500, 150), &[Mem, Disk], None);
        check(340, (500, 150), &[Mem, Disk], None);
        check(349, (500, 150), &[Disk], None);
        check(400, (500, 150), &[], None);
        check(410, (199, 500), &[Mem], None);
    }

    #[test]
    fn what_is_not_measured_is_not_acted_on() {
        let thresholds = [threshold(Signal::Pids, 100, None, None)];
        let got = look(&mut Memory::default(), &thresholds, &measures(0, 0), s(0), s(1));
        assert_eq!(got, Decision { pressures: vec![], act: None });
    }
}
