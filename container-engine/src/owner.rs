//! Who a container, network, volume, image name or lease belongs to, and where in the cgroup tree it therefore lives.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Longest id of a pod or job, bytes.
const MAX_ID: usize = 128;

/// An owner; written `pods/UID`, `jobs/ID` or `local`. Ids are letters, digits, `.`, `_` and `-`, so they are safe as
/// names of files and cgroups.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// The board's own user.
    #[default]
    Local,
    /// A Kubernetes pod, by its uid.
    Pod(String),
    /// A CI job, by its id.
    Job(String),
}

/// Not an owner.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no owner: write local, pods/UID or jobs/ID, where ids are up to 128 letters, digits, '.', '_' or '-'"
)]
pub struct OwnerError(pub String);

impl Owner {
    /// Its cgroup below the root of the hierarchy, without a slash in front.
    pub fn cgroup(&self) -> String {
        match self {
            Self::Local => "edge.slice/local".to_owned(),
            Self::Pod(id) => format!("edge.slice/kubepods/{id}"),
            Self::Job(id) => format!("edge.slice/jobs/{id}"),
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("local"),
            Self::Pod(id) => write!(f, "pods/{id}"),
            Self::Job(id) => write!(f, "jobs/{id}"),
        }
    }
}

impl FromStr for Owner {
    type Err = OwnerError;

    fn from_str(text: &str) -> Result<Self, OwnerError> {
        let wrong = || OwnerError(text.chars().take(2 * MAX_ID).collect());
        let plain = |id: &str| {
            let letters = id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
            (letters && !id.is_empty() && id.len() <= MAX_ID && id != "." && id != "..").then(|| id.to_owned())
        };
        match text.split_once('/') {
            None if text == "local" => Ok(Self::Local),
            Some(("pods", id)) => plain(id).map(Self::Pod).ok_or_else(wrong),
            Some(("jobs", id)) => plain(id).map(Self::Job).ok_or_else(wrong),
            _ => Err(wrong()),
        }
    }
}

impl Serialize for Owner {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Owner {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_written_and_read() {
        #[track_caller]
        fn check(text: &str, want: Option<Owner>) {
            assert_eq!(text.parse::<Owner>().ok(), want, "{text:?}");
            if let Some(owner) = want {
                assert_eq!(owner.to_string(), text);
            }
        }
        check("local", Some(Owner::Local));
        check("pods/0b4f-1", Some(Owner::Pod("0b4f-1".into())));
        check("jobs/17", Some(Owner::Job("17".into())));
        check("jobs/../../x", None);
        check("jobs/..", None);
        check("pods/", None);
        check("root", None);
    }
}
