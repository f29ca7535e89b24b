//! Decisions about a pod, as pure functions: what to do next, what its status is, whether this node takes it.
//!
//! Always true: the same input gives the same answer, and no input panics.

pub mod backoff;
pub mod qos;
pub mod quantity;
pub mod restart;
