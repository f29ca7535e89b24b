//! The OCI runtime: this same file's own (`oci-runtime`, on libcontainer), runc or crun, behind one command line.
//!
//! [`Runtime`] calls one of them, blocking; shims and the recovery after a restart use it. [`SealedExe`] is the view of
//! this program from which shims and runtimes are started.

mod client;
mod error;
mod sealed;

pub use client::{Launch, Runtime, State, Status, Streams, TIME_LIMIT};
pub use error::RuntimeError;
pub use sealed::{SealError, SealedExe};
