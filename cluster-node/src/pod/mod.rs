//! A pod's life: what is wanted of it, what is seen of it, and what is done about the difference.
//!
//! `decide` and `spec` are pure: no task, no engine, no clock of their own.

pub mod decide;
pub mod model;
pub mod probe;
pub mod runtime;
pub mod source;
pub mod spec;
pub mod status_manager;
