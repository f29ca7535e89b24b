//! The container engine: OCI images, snapshots, running containers and networks, for a board with no other engine.
//!
//! The way of a container: `registry` fetches what an image is made of into `content` (by digest) and, through a
//! confined child, into `snapshot` (by layer); `container` prepares a snapshot and a network, writes the OCI
//! configuration, and starts a `shim`, which calls the `runtime` and stays with the container until its end.
//!
//! Knows nothing of Kubernetes or GitLab. Everything it keeps has an [`owner::Owner`].

pub mod build;
pub mod cgroup;
pub mod commit;
pub mod container;
pub mod content;
pub mod engine;
pub mod event;
pub mod image;
pub mod lease;
pub mod ledger;
pub mod logs;
pub mod network;
pub mod owner;
pub mod platform;
pub mod reference;
pub mod registry;
mod roots;
pub mod runtime;
pub mod shim;
pub mod snapshot;
pub mod sys;
pub mod verb;
pub mod volume;
