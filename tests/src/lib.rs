//! What the end-to-end tests start: the agent itself, real brokers and gateways, publishers, Python.
//!
//! Everything listens on free loopback ports, keeps to a temporary folder, and is stopped by its process id when dropped.

mod agent;
mod certificates;
mod publisher;
mod servers;

pub use agent::Agent;
pub use certificates::Certificates;
pub use publisher::Publisher;
pub use servers::{Ceph, Mosquitto, python};

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
