//! The host's resolvers, as `/etc/resolv.conf` has them.
//!
//! The file is looked at when a question is to be asked, at most once a second: an idle board does nothing, and no way
//! of replacing the file or what it links to is missed, as a watch on its folder would.

use std::{
    net::IpAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Mutex,
    time::{Duration, Instant},
};

use super::super::host::lock;

/// Most servers used.
const MAX_SERVERS: usize = 3;
/// Largest file read.
const MAX_BYTES: u64 = 64 << 10;

/// What a `resolv.conf` says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostConf {
    /// Name servers.
    pub servers: Vec<IpAddr>,
    /// Search domains.
    pub search: Vec<String>,
    /// Options.
    pub options: Vec<String>,
}

/// Reads a `resolv.conf` as resolv.conf(5) has it: the last `search` or `domain` counts.
pub fn parse(text: &str) -> HostConf {
    let mut conf = HostConf::default();
    for line in text.lines() {
        let line = line.split(['#', ';']).next().unwrap_or_default();
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => {
                // A zone (`fe80::1%eth0`) means nothing elsewhere.
                let address = words.next().and_then(|word| word.parse().ok());
                conf.servers.extend(address.filter(|address| !conf.servers.contains(address)));
            }
            Some("search" | "domain") => conf.search = words.take(32).map(str::to_owned).collect(),
            Some("options") => conf.options.extend(words.take(32).map(str::to_owned)),
            _ => {}
        }
    }
    conf.servers.truncate(MAX_SERVERS);
    conf
}

struct Seen {
    at: Option<Instant>,
    stamp: Option<(u64, u64, i64, i64)>,
    conf: HostConf,
}

/// The file, read again when it has changed.
pub(super) struct Resolvers {
    path: PathBuf,
    seen: Mutex<Seen>,
}

impl Resolvers {
    pub fn new(path: PathBuf) -> Self {
        Self { path, seen: Mutex::new(Seen { at: None, stamp: None, conf: HostConf::default() }) }
    }

    /// As it is now, or was a second ago. Where there is none, a server on the host is hoped for, as libc does.
    pub fn now(&self) -> HostConf {
        let mut seen = lock(&self.seen);
        if seen.at.is_some_and(|at| at.elapsed() < Duration::from_secs(1)) {
            return seen.conf.clone();
        }
        seen.at = Some(Instant::now());
        let stamp = stamp(&self.path);
        if stamp != seen.stamp || stamp.is_none() {
            let bytes = board::durable::read(&self.path, MAX_BYTES).unwrap_or_default();
            seen.conf = parse(&String::from_utf8_lossy(&bytes));
            if seen.conf.servers.is_empty() {
                seen.conf.servers.push(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST));
            }
            seen.stamp = stamp;
        }
        seen.conf.clone()
    }
}

fn stamp(path: &Path) -> Option<(u64, u64, i64, i64)> {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_is_read() {
        let conf = parse(
            "# made by hand\nnameserver 10.0.0.1 # first\n nameserver fd00::1\nnameserver fe80::1%eth0\nnameserver x\n\
            domain old.example\nsearch a.example b.example\noptions ndots:2 edns0\nnameserver 10.0.0.1\n",
        );
        assert_eq!(conf.servers, ["10.0.0.1".parse::<IpAddr>().unwrap(), "fd00::1".parse().unwrap()]);
        assert_eq!(conf.search, ["a.example", "b.example"]);
        assert_eq!(conf.options, ["ndots:2", "edns0"]);
        assert_eq!(parse(""), HostConf::default());
    }

    #[test]
    fn a_replaced_file_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        let resolvers = Resolvers::new(path.clone());
        assert_eq!(resolvers.now().servers, ["127.0.0.1".parse::<IpAddr>().unwrap()]);
        std::fs::write(&path, "nameserver 10.9.9.9\n").unwrap();
        std::thread::sleep(Duration::from_millis(1100));
        assert_eq!(resolvers.now().servers, ["10.9.9.9".parse::<IpAddr>().unwrap()]);
    }
}
