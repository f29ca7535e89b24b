//! What the end-to-end tests start: the agent itself, real brokers and gateways, publishers, Python.
//!
//! Everything listens on free loopback ports, keeps to a temporary folder, and is stopped by its process id when dropped.

mod agent;
pub mod bench;
mod bundle;
mod certificates;
pub mod cluster;
pub mod control_plane;
mod disk;
pub mod engine;
pub mod images;
pub mod lan;
mod publisher;
pub mod raw;
pub mod registry;
mod servers;
pub mod wall_clock;
pub mod written;

pub use agent::{Agent, agent_binary};
pub use bundle::Bundle;
pub use certificates::Certificates;
pub use control_plane::ControlPlane;
pub use disk::Disk;
pub use publisher::Publisher;
pub use raw::Raw;
pub use servers::{Ceph, Forwarder, Heard, Mosquitto, python, python_program};
pub use wall_clock::WallClock;

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// A port that is free now, and given out once by this process. Below those that the kernel gives to outgoing
/// connections: one of them would take the port while nobody listens there, between two starts of an agent.
pub fn free_port() -> Result<u16> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    const PORTS: std::ops::Range<u32> = 10_000..32_000;
    for _ in PORTS {
        // Processes begin in different places.
        let n = NEXT.fetch_add(1, Ordering::Relaxed).wrapping_add(std::process::id().wrapping_mul(977));
        let port = u16::try_from(PORTS.start + n % (PORTS.end - PORTS.start))?;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no port is free")
}

/// Folders of a control group: one on version 2, on version 1 one of each hierarchy that has it.
pub fn cgroup_dirs(path: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let path = path.trim_start_matches('/');
    if root.join("cgroup.controllers").exists() {
        return vec![root.join(path)].into_iter().filter(|dir| dir.exists()).collect();
    }
    let hierarchies = std::fs::read_dir(root).into_iter().flatten().flatten();
    hierarchies.map(|entry| entry.path().join(path)).filter(|dir| dir.exists()).collect()
}

/// Kills what is left in a control group, and removes it and those below.
pub fn remove_cgroup(path: &str) {
    let removed = container_engine::cgroup::Cgroups::detect().and_then(|groups| groups.remove(path));
    assert!(removed.is_ok() || std::thread::panicking(), "{path}: {removed:?}");
}

/// Waits until `done` holds; names `what` when it does not come to be within `patience`.
pub fn wait_until(what: &str, patience: Duration, mut done: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + patience;
    while !done() {
        if Instant::now() > deadline {
            bail!("timed out after {patience:?}: {what}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Rounds of a test that repeats: `EDGE_AGENT_ROUNDS`, or `usual`.
pub fn rounds(usual: u32) -> u32 {
    std::env::var("EDGE_AGENT_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// Numbers that look random; the seed is printed, so that a failure can be repeated as far as timing allows.
pub struct Dice(u64);

impl Dice {
    /// Seeded by `EDGE_AGENT_SEED` or the clock.
    #[allow(clippy::print_stderr)] // For whoever reads the failed test's output.
    pub fn new() -> Self {
        let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let clock = clock.map_or(1, |it| u64::try_from(it.as_nanos()).unwrap_or(1));
        let seed = std::env::var("EDGE_AGENT_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(clock) | 1;
        eprintln!("EDGE_AGENT_SEED={seed}");
        Self(seed)
    }

    /// Below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        // xorshift64 (Marsaglia 2003).
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    /// Sleeps up to `most`.
    pub fn pause(&mut self, most: Duration) {
        let most = u64::try_from(most.as_micros()).unwrap_or(u64::MAX).max(1);
        std::thread::sleep(Duration::from_micros(self.below(most)));
    }
}

impl Default for Dice {
    fn default() -> Self {
        Self::new()
    }
}
