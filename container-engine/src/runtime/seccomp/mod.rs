//! Seccomp profiles: Docker's default ([`docker_default`]), Docker's format ([`Profile`]), and what the OCI makes of
//! either, compiled to the kernel's filters ([`compile`]).

mod architecture;
mod compile;
mod docker;
mod profile;
#[cfg(test)]
mod tests;

pub(super) use compile::{ACTIONS, FLAGS, compile};
pub use docker::docker_default;
pub use profile::{Host, Profile, ProfileError};
