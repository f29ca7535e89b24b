//! The shim's process.

pub(crate) mod cgroups;
