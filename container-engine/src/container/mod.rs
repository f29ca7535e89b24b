//! Containers: created from an image, started, watched, stopped, found again after a restart of the agent.

mod spec;

pub use spec::*;
