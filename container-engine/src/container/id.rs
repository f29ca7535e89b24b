//! Ids and names of containers.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Digits of an id.
const DIGITS: usize = 64;
/// Longest name, bytes.
const MAX_NAME: usize = 255;

/// A container's id: 64 hexadecimal digits, random.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ContainerId(String);

/// Not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no container id: it has 64 hexadecimal digits")]
pub struct IdError(String);

impl ContainerId {
    /// A new one.
    pub fn random() -> Result<Self, ring::error::Unspecified> {
        let mut bytes = [0; DIGITS / 2];
        ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes)?;
        let id = Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect());
        // A short id that reads as a number is a nuisance for people and for YAML.
        if id.short().bytes().all(|b| b.is_ascii_digit()) { Self::random() } else { Ok(id) }
    }

    /// All digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first 12 digits.
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ContainerId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let good = text.len() == DIGITS && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if good { Ok(Self(text.to_owned())) } else { Err(IdError(text.chars().take(DIGITS + 1).collect())) }
    }
}

impl<'de> Deserialize<'de> for ContainerId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Whether `name` may be a container's: a letter or digit, then letters, digits, `_`, `.`, `-` (as Docker has it).
pub fn is_name(name: &str) -> bool {
    let rest = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    name.len() >= 2 && name.len() <= MAX_NAME && name.as_bytes()[0].is_ascii_alphanumeric() && name.bytes().all(rest)
}

/// A name made up from random bytes: an adjective, a noun.
pub(super) fn made_up(seed: [u8; 4]) -> String {
    const FIRST: [&str; 32] = [
        "amber", "brave", "brisk", "calm", "clear", "coral", "crisp", "dusty", "eager", "early", "fair", "fleet",
        "frosty", "gentle", "golden", "grand", "green", "hardy", "hazel", "jolly", "keen", "lively", "lucid", "mellow",
        "nimble", "quiet", "rapid", "ruddy", "sandy", "silver", "sunny", "vivid",
    ];
    const SECOND: [&str; 32] = [
        "acorn", "alder", "aspen", "badger", "beacon", "birch", "brook", "cedar", "comet", "crane", "dune", "elm",
        "falcon", "fern", "finch", "fjord", "grove", "harbor", "heron", "ibis", "juniper", "lark", "maple", "meadow",
        "otter", "pebble", "quail", "reef", "sparrow", "thicket", "tundra", "willow",
    ];
    let pick = |words: &[&'static str; 32], byte: u8| words[usize::from(byte) % words.len()];
    format!("{}_{}{}", pick(&FIRST, seed[0]), pick(&SECOND, seed[1]), u16::from_le_bytes([seed[2], seed[3]]) % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids() {
        let id = ContainerId::random().unwrap();
        assert_eq!(id.to_string().parse::<ContainerId>().unwrap(), id);
        assert_ne!(id, ContainerId::random().unwrap());
        for wrong in ["", "abc", &"A".repeat(64), &"a".repeat(65), &format!("{}/", "a".repeat(63))] {
            assert!(wrong.parse::<ContainerId>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn names() {
        for good in ["ab", "web-1", "a_b.c", "1x"] {
            assert!(is_name(good), "{good}");
        }
        for wrong in ["", "a", "-a", ".ab", "a/b", "a b", "ä1", "../x", &"a".repeat(256)] {
            assert!(!is_name(wrong), "{wrong}");
        }
        for seed in 0..=255 {
            let name = made_up([seed, 255 - seed, seed, 7]);
            assert!(is_name(&name), "{name}");
        }
    }
}
