//! Devices for pods: what device plugins offer, and which of it a container gets.
//!
//! Elsewhere: devices in a container's specification (`container_engine::container`).

pub mod plugin;
pub mod pool;
pub mod proto;
