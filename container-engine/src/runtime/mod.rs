//! The OCI runtime: this same file's own (`oci-runtime`, on libcontainer), runc or crun, behind one command line.
//!
//! [`Runtime`] calls one of them, blocking; shims and the recovery after a restart use it. [`SealedExe`] is the view of
//! this program from which shims and runtimes are started. [`seccomp`] has the profiles that configurations carry.

mod cgroup;
mod client;
mod error;
mod oci;
mod sealed;
pub mod seccomp;

pub use client::{Launch, Runtime, State, Status, Streams, TIME_LIMIT};
pub use error::RuntimeError;
pub(crate) use oci::main;
pub use sealed::{SealError, SealedExe};
