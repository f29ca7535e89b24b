//! The kubelet's HTTPS API: logs, exec, attach, port-forward, statistics and metrics.
//!
//! The way of a request: `tls` makes a connection of a socket and knows the peer's certificate, `auth` says who asks and
//! whether he may, `route` what is asked for; `logs`, `remote`, `forward`, `stats` and `pods` answer.
//!
//! Always true:
//! - Nobody is anonymous: without a certificate of the cluster's CA or a token that the API server vouches for there is
//!   no answer but 401, for any path.
//! - Everything a peer can make grow has a bound: connections, headers, bodies, streams, windows, frames, caches.
//!
//! Elsewhere: what a pod is (`pod`); who has signed the serving certificate (`join`); containers (the engine).

mod answer;
mod auth;
mod directory;
mod query;
mod remote;
mod route;
mod runtime;
mod spdy;
mod upgrade;

pub use auth::{AccessReview, Delegate, DelegateError, User};
pub use directory::{Directory, Instance, Instances, NoNetwork, VolumeDir};
