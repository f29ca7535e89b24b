//! The board as a Kubernetes node: it joins an existing cluster, runs its pods, and goes on without it.
//!
//! The way of a pod: `pod::source` says what is wanted, `pod::runtime` what the engine has of it, `pod::decide` what to do
//! about the difference and what its status is; `volume` and `object` bring what it refers to; `api` is told the outcome.
//!
//! Knows nothing of GitLab. Containers, images and networks are the engine's.

pub mod api;
pub mod device;
pub mod event;
pub mod grpc;
pub mod housekeeping;
pub mod join;
pub mod node;
pub mod object;
pub mod options;
pub mod pod;
pub mod server;
pub mod service;
pub mod volume;
