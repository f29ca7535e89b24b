//! Who asks, and whether he may.
//!
//! A certificate of the cluster's CA names its user itself; a token is reviewed by the API server, as is what a user may.
//! Verdicts are kept for a while: tokens and permissions for minutes, refusals for half a minute.
//!
//! Without the API server the last verdict stands, for as long as a token itself is good; and the API server's own
//! certificate is let in, so that logs and exec work at once when it is back, and through whatever path it takes.
//!
//! Always true: a token is kept only as its SHA-256, and never written anywhere.

mod attributes;
mod cache;
mod certificate;
mod delegate;
mod judge;

pub use attributes::{subresources, verb};
pub use certificate::user_of;
pub use delegate::{AccessReview, Delegate, DelegateError, User};
pub use judge::{Judge, Verdict};

#[cfg(test)]
mod tests;
