//! Containers: created from an image, started, watched, stopped, found again after a restart of the agent.

mod id;
mod spec;
mod types;

pub use id::{ContainerId, IdError, is_name};
pub use spec::*;
pub use types::*;
