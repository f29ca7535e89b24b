//! Relays out.
pub mod mqtt;
pub mod s3;
