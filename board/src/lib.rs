//! What the board gives every room: trusted clock, identity, TLS set-up, task groups, metrics registry, system calls.
//!
//! Nothing in here knows of readings, pods or jobs. Every other crate may use it; it uses none of them.

pub mod clock;
pub mod durable;
pub mod identity;
pub mod metrics;
pub mod sys;
pub mod tasks;
pub mod throttle;
pub mod tls;
