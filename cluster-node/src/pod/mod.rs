//! A pod's life: what is wanted of it, what is seen of it, and what is done about the difference.
//!
//! The way of a pod: `source` says that it is wanted, `manager` gives it a `worker`, which sees what the engine has of it
//! (`runtime`), has decided what to do and what its status is (`decide`), does it (`work`), and hands the status to
//! `status_manager`; `pods` shows it to the rest of the node.
//!
//! `decide` and `spec` are pure: no task, no engine, no clock of their own.

pub mod decide;
mod make;
mod manager;
pub mod model;
mod pods;
pub mod probe;
pub mod runtime;
pub mod source;
pub mod spec;
pub mod status_manager;
mod work;
mod worker;

pub use make::{Ground, Made, Making, make};
pub use manager::Manager;
pub use pods::{Pods, View};
pub(crate) use worker::timestamp as now;
