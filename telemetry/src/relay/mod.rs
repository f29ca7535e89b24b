//! Relays: from the outbox to the core, each at its own pace.
//!
//! Always true: a relay releases a reading only after the core has acknowledged it; it keeps its data and tries again,
//! whatever goes wrong; and it says in one line what that is and what to do.

pub mod mqtt;
pub mod s3;
