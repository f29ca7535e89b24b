//! What the cluster sends that pods refer to: watched by reference, kept sealed in the store for the time without the cluster.
//!
//! [`Objects`] is the front: config maps, secrets, services, tokens, claims. [`Cache`] is what is on the disk.
//!
//! Elsewhere: what becomes of them (`volume`, `pod::spec`); pods and the node themselves (`pod::source`, `node`).

mod cache;
mod changed;
mod connection;
mod error;
mod follow;
mod objects;
mod pull_secret;
mod reference;
mod seal;
mod service;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod token;
mod watched;

pub use cache::{Cache, CacheError, Keep};
pub use changed::ChangedPods;
pub use connection::{Connection, MAX_OBJECT};
pub use error::ObjectError;
pub use objects::Objects;
pub(crate) use objects::is_static;
pub use pull_secret::Keyring;
pub use reference::{References, claim_of, of as references_of};
pub use seal::SealError;
pub use token::{Token, TokenWanted};
