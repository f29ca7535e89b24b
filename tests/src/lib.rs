//! What the end-to-end tests start: the agent itself, real brokers and gateways, publishers, Python.
//!
//! Everything listens on free loopback ports, keeps to a temporary folder, and is stopped by its process id when dropped.

mod agent;
mod certificates;
mod disk;
mod publisher;
mod servers;
pub mod written;

pub use agent::Agent;
pub use certificates::Certificates;
pub use disk::Disk;
pub use publisher::Publisher;
pub use servers::{Ceph, Mosquitto, python, python_program};

use std::{
    net::TcpListener,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// A port that is free now.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
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
