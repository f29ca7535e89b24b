//! How much of a processor something uses, from two looks at its counter.

use std::collections::HashMap;

/// Shortest time between two looks that says anything.
const SHORTEST_NS: i64 = 100_000_000;
/// From here on a new look takes the place of the one before.
const LONG_NS: i64 = 5_000_000_000;
/// Looks that nobody has repeated for so long are forgotten.
const FORGET_NS: i64 = 600_000_000_000;

struct Look {
    time_ns: i64,
    usage_us: u64,
    rate: Option<u64>,
    /// The last time that anybody asked.
    asked_ns: i64,
}

/// Looks by what they were at.
#[derive(Default)]
pub struct Rates(HashMap<String, Look>);

impl Rates {
    /// Billionths of a core; `None` at the first look.
    pub fn look(&mut self, what: &str, time_ns: i64, usage_us: u64) -> Option<u64> {
        let new = Look { time_ns, usage_us, rate: None, asked_ns: time_ns };
        let Some(last) = self.0.get_mut(what) else {
            self.0.insert(what.to_owned(), new);
            return None;
        };
        // Another container under the same name, or a clock that was set back.
        if usage_us < last.usage_us || time_ns < last.time_ns {
            *last = new;
            return None;
        }
        last.asked_ns = time_ns;
        let passed = time_ns - last.time_ns;
        if passed < SHORTEST_NS {
            return last.rate;
        }
        let used_ns = u128::from(usage_us - last.usage_us) * 1000;
        let rate = used_ns * 1_000_000_000 / u128::from(passed.unsigned_abs());
        let rate = u64::try_from(rate).unwrap_or(u64::MAX);
        if passed >= LONG_NS {
            *last = Look { rate: Some(rate), ..new };
        } else {
            last.rate = Some(rate);
        }
        Some(rate)
    }

    /// Forgets what is no longer asked for.
    pub fn forget(&mut self, now_ns: i64) {
        self.0.retain(|_, look| (0..FORGET_NS).contains(&(now_ns - look.asked_ns).max(0)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: i64 = 1_000_000_000;

    #[test]
    fn two_looks_make_a_rate() {
        let mut rates = Rates::default();
        let mut look = |ms: i64, usage_us| rates.look("c", ms * 1_000_000, usage_us);
        assert_eq!(look(0, 1_000_000), None);
        assert_eq!(look(50, 1_010_000), None, "too soon");
        assert_eq!(look(200, 1_100_000), Some(500_000_000), "0.1 s in 0.2 s");
        assert_eq!(look(10_000, 6_000_000), Some(500_000_000));
        assert_eq!(look(10_010, 6_000_000), Some(500_000_000), "the last known");
        assert_eq!(look(20_000, 6_000_000), Some(0), "idle since");
        assert_eq!(look(21_000, 5), None, "another container");
        assert_eq!(look(22_000, 1_000_005), Some(1_000_000_000));
        assert_eq!(look(1_000, 2_000_000), None, "the clock was set back");
    }

    #[test]
    fn what_is_not_asked_for_is_forgotten() {
        let mut rates = Rates::default();
        rates.look("a", 0, 1);
        rates.look("b", 400 * S, 1);
        rates.forget(700 * S);
        assert_eq!(rates.0.keys().collect::<Vec<_>>(), ["b"]);
    }
}
