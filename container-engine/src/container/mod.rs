//! Containers: created from an image, started, watched, stopped, found again after a restart of the agent.
//!
//! A container is a record in the store, a writable part in `snapshot`, and while it lives a shim, a network and a root
//! file system mounted in its run directory.
//!
//! Always true:
//! - A record is durable before `create` returns, and gone before anything of the container is removed: what has no
//!   record is removed when the agent starts. Where the database itself was lost, copies beside the containers' files
//!   are taken up instead.
//! - No lock is held across a slow step, save a container's own gate: containers do not wait for each other.
//! - The end of a container is known from its shim's exit record, on disk before anybody is told.
//!
//! Elsewhere: the process that stays with a container (`shim`), its files (`snapshot`), its network (`network`), the
//! runtime's command line (`runtime`).

mod archive;
mod book;
mod control;
mod copy;
mod create;
mod devices;
mod end;
mod error;
mod exec;
mod front;
mod id;
mod image;
pub(crate) mod init;
mod kept;
pub mod oci;
pub(crate) mod pause;
mod record;
mod recover;
mod restart;
mod roots;
mod shared;
mod signal;
mod spec;
mod start;
mod stats;
mod types;
mod user;

pub use archive::{ArchiveError, PutOptions};
pub use control::Attaching;
pub use error::{ContainerError, CreateError, ResolveError, StartError};
pub use front::Containers;
pub(crate) use front::Parts;
pub use id::{ContainerId, IdError, is_name};
pub use image::ImageDefaults;
pub(crate) use record::Record;
pub use recover::RecoveryReport;
pub use roots::{Answer, IdRange, ImageFacts, RootError, Roots, VolumeWanted};
pub use shared::{ShareError, ShareOptions, Shared};
pub use signal::{SignalError, parse as parse_signal};
pub use spec::*;
pub use stats::StatsStream;
pub use types::*;
pub use user::{User, UserError};
