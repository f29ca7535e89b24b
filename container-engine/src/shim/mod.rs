//! The process that stays with one container: its stdio, its log, its end.
//!
//! `edge-agent shim` is a re-exec of this same file, one for each container: single-threaded, no tokio, no TLS, idle in
//! `epoll_wait` without a time limit. It is told what to do by a [`ShimSpec`] on standard input, calls the OCI runtime
//! (`create` at once, the rest on demand), and listens on `shim.sock` in the container's run directory.
//!
//! Always true:
//! - The container never waits for a reader that does not read, nor for a full disk: a slow client is cut, log lines
//!   that find no room are dropped and counted. (A client may ask to be waited for, see [`Attach::wait`].)
//! - The exit record is on disk before anybody is told of the end, and the client has all output before the exit.
//! - When the container's first process has gone, so does everything else in its cgroup.
//! - The death of the agent changes nothing; a new one asks for the [`Status`] and follows from there. With no agent
//!   listening, the shim of an ended container goes by itself, a minute after its record is on disk; one whose container
//!   was never started gives up after [`ShimSpec::start_within_s`].
//! - After `kill -9` of the shim, [`recover`] tells whether the container still lives.
//!
//! Elsewhere: the OCI configuration (`container`), the runtime itself (`runtime`), reading of logs (`logs`).

mod client;
mod record;
mod recover;
pub(crate) mod server;
mod session;
mod spec;
mod wire;

pub use client::{Events, ShimClient, ShimError, SpawnError};
pub use record::{ExitRecord, Reason, ShimRecord, StartTime};
pub use recover::{Lost, Recovered, recover, recover_broken};
pub use session::{Output, Session, SessionInput, SessionOutput};
pub use spec::{Attach, ExecRequest, RuntimeSpec, ShimSpec};
pub use wire::{Event, ExecStatus, ExitStatus, Phase, Problem, ProblemCode, Status, VERSION};

#[cfg(fuzzing)]
pub use wire::{Decoder, Frame};
