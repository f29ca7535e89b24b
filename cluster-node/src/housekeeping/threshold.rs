//! Signals and thresholds of eviction, as the kubelet's configuration writes them.

use std::{collections::BTreeMap, time::Duration};

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    /// Memory that could be had at once.
    Memory,
    /// Bytes of the node's file system.
    NodeFs,
    /// Its inodes.
    NodeFsInodes,
    /// Bytes of the images' file system.
    ImageFs,
    /// Its inodes.
    ImageFsInodes,
    /// Process ids.
    Pids,
}

/// A condition of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pressure {
    /// `MemoryPressure`.
    Memory,
    /// `DiskPressure`.
    Disk,
    /// `PIDPressure`.
    Pid,
}

impl Pressure {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Memory, Self::Disk, Self::Pid];
}

impl Signal {
    /// All of them, memory first: it is what is acted on first.
    pub const ALL: [Self; 6] =
        [Self::Memory, Self::NodeFs, Self::NodeFsInodes, Self::ImageFs, Self::ImageFsInodes, Self::Pids];

    /// In configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory.available",
            Self::NodeFs => "nodefs.available",
            Self::NodeFsInodes => "nodefs.inodesFree",
            Self::ImageFs => "imagefs.available",
            Self::ImageFsInodes => "imagefs.inodesFree",
            Self::Pids => "pid.available",
        }
    }

    /// The resource in messages.
    pub fn resource(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::NodeFs | Self::ImageFs => "ephemeral-storage",
            Self::NodeFsInodes | Self::ImageFsInodes => "inodes",
            Self::Pids => "pids",
        }
    }

    /// The condition that it raises.
    pub fn pressure(self) -> Pressure {
        match self {
            Self::Memory => Pressure::Memory,
            Self::Pids => Pressure::Pid,
            _ => Pressure::Disk,
        }
    }

    /// Whether it is counted in bytes.
    pub fn is_bytes(self) -> bool {
        matches!(self, Self::Memory | Self::NodeFs | Self::ImageFs)
    }

    fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|signal| signal.name() == name)
    }
}

/// An amount, or a part of what there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amount {
    /// Bytes, inodes or ids.
    Count(u64),
    /// Hundredths of a percent of the capacity.
    Part(u32),
}

impl Amount {
    /// In numbers, of this capacity.
    pub fn of(self, capacity: u64) -> u64 {
        match self {
            Self::Count(count) => count,
            Self::Part(part) => u64::try_from(u128::from(capacity) * u128::from(part) / 10_000).unwrap_or(u64::MAX),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        if let Some(percent) = text.strip_suffix('%') {
            let (whole, part) = percent.split_once('.').unwrap_or((percent, ""));
            let whole: u32 = whole.parse().ok().filter(|whole| *whole <= 100)?;
            let digits: String = part.chars().chain("00".chars()).take(2).collect();
            let part = whole * 100 + digits.parse::<u32>().ok()?;
            return (part <= 10_000).then_some(Self::Part(part));
        }
        let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, suffix) = text.split_at(at);
        let unit: u64 = match suffix {
            "" => 1,
            "k" => 1000,
            "M" => 1_000_000,
            "G" => 1_000_000_000,
            "T" => 1_000_000_000_000,
            "Ki" => 1 << 10,
            "Mi" => 1 << 20,
            "Gi" => 1 << 30,
            "Ti" => 1 << 40,
            _ => return None,
        };
        number.parse::<u64>().ok()?.checked_mul(unit).map(Self::Count)
    }
}

/// A threshold: less than this is too little.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Threshold {
    /// Of what.
    pub signal: Signal,
    /// How little.
    pub amount: Amount,
    /// For how long before pods go; none: at once, and they get no time to end.
    pub grace: Option<Duration>,
    /// How much above it counts as enough again.
    pub reclaim: Option<Amount>,
}

/// Configuration that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ThresholdError {
    /// No such signal.
    #[error("{0:?} is no eviction signal: memory.available, nodefs.available, imagefs.inodesFree and the like are")]
    Signal(String),
    /// No amount.
    #[error("the threshold {value:?} of {signal} is no amount: write one such as 100Mi or 10%")]
    Amount {
        /// Of what.
        signal: String,
        /// What was written.
        value: String,
    },
    /// A soft threshold that says not how long.
    #[error("the soft threshold of {0} has no grace period: add it to evictionSoftGracePeriod")]
    NoGrace(String),
}

/// The kubelet's own.
pub fn defaults() -> Vec<Threshold> {
    let hard = |signal, amount| Threshold { signal, amount, grace: None, reclaim: None };
    vec![
        hard(Signal::Memory, Amount::Count(100 << 20)),
        hard(Signal::NodeFs, Amount::Part(1000)),
        hard(Signal::NodeFsInodes, Amount::Part(500)),
        hard(Signal::ImageFs, Amount::Part(1500)),
        hard(Signal::ImageFsInodes, Amount::Part(500)),
    ]
}

/// Thresholds from `evictionHard`, `evictionSoft`, `evictionSoftGracePeriod` and `evictionMinimumReclaim`. A threshold of
/// 0 % or 100 % is none.
pub fn configured(
    hard: &BTreeMap<String, String>,
    soft: &BTreeMap<String, String>,
    grace: &BTreeMap<String, Duration>,
    reclaim: &BTreeMap<String, String>,
) -> Result<Vec<Threshold>, ThresholdError> {
    let amount = |name: &str, text: &str| {
        let wrong = || ThresholdError::Amount { signal: name.to_owned(), value: text.chars().take(64).collect() };
        Amount::parse(text).ok_or_else(wrong)
    };
    let one = |name: &String, text: &String, grace: Option<Duration>| {
        let signal = Signal::of(name).ok_or_else(|| ThresholdError::Signal(name.chars().take(64).collect()))?;
        let reclaim = reclaim.get(name).map(|text| amount(name, text)).transpose()?;
        Ok(Threshold { signal, amount: amount(name, text)?, grace, reclaim })
    };
    let mut all = Vec::new();
    for (name, text) in hard {
        all.push(one(name, text, None)?);
    }
    for (name, text) in soft {
        let grace = grace.get(name).ok_or_else(|| ThresholdError::NoGrace(name.clone()))?;
        all.push(one(name, text, Some(*grace))?);
    }
    all.retain(|threshold| !matches!(threshold.amount, Amount::Part(0 | 10_000)));
    Ok(all)
}

/// As Kubernetes writes bytes: with the largest binary suffix that leaves no rest.
pub fn bytes_text(bytes: u64) -> String {
    let units = [("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10)];
    let unit = units.into_iter().find(|(_, bits)| bytes > 0 && bytes.trailing_zeros() >= *bits);
    unit.map_or_else(|| bytes.to_string(), |(name, bits)| format!("{}{name}", bytes >> bits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts() {
        #[track_caller]
        fn check(text: &str, want: Option<Amount>) {
            assert_eq!(Amount::parse(text), want, "{text}");
        }
        check("100Mi", Some(Amount::Count(100 << 20)));
        check("1k", Some(Amount::Count(1000)));
        check("5", Some(Amount::Count(5)));
        check("10%", Some(Amount::Part(1000)));
        check("2.5%", Some(Amount::Part(250)));
        check("100.1%", None);
        check("101%", None);
        check("-1", None);
        check("1Xi", None);
        check("99999999999999999999", None);
        check("", None);
        check("%", None);
        assert_eq!(Amount::Part(1000).of(u64::MAX), u64::MAX / 10);
    }

    #[test]
    fn configuration() {
        let map = |pairs: &[(&str, &str)]| pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        let none = BTreeMap::new();
        let grace = [("memory.available".to_owned(), Duration::from_secs(90))].into();
        let hard = map(&[("nodefs.available", "10%"), ("imagefs.available", "0%")]);
        let soft = map(&[("memory.available", "1Gi")]);
        let all = configured(&hard, &soft, &grace, &map(&[("nodefs.available", "1Gi")])).unwrap();
        assert_eq!(all.len(), 2);
        assert_eq!(all[0].reclaim, Some(Amount::Count(1 << 30)));
        assert_eq!(all[1].grace, Some(Duration::from_secs(90)));
        assert!(matches!(configured(&none, &soft, &BTreeMap::new(), &none), Err(ThresholdError::NoGrace(_))));
        assert!(matches!(configured(&map(&[("x", "1")]), &none, &grace, &none), Err(ThresholdError::Signal(_))));
    }

    #[test]
    fn bytes_in_words() {
        for (bytes, text) in [(0, "0"), (1000, "1000"), (1 << 10, "1Ki"), (100 << 20, "100Mi"), (3 << 30, "3Gi")] {
            assert_eq!(bytes_text(bytes), text);
        }
    }
}
