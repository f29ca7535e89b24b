//! Decisions about a pod, as pure functions: what to do next, what its status is, whether this node takes it.
//!
//! Always true: the same input gives the same answer, and no input panics.

pub mod admission;
pub mod backoff;
pub mod containers;
mod course;
mod plan;
pub mod qos;
pub mod quantity;
pub mod restart;
mod status;

#[cfg(test)]
mod tests;

pub use course::{Course, course, grace_s, is_finished, may_run};
pub use plan::{next_look, plan};
pub use status::{known, status};
