//! Descriptors in the asynchronous runtime.

use std::{io, os::fd::OwnedFd};

use tokio::io::unix::AsyncFd;

/// Registers a descriptor, to wait until it is readable or writable.
pub fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is the same open descriptor for as long as it lives, which is what the registration relies on.
    Ok(unsafe { AsyncFd::register(fd) }?)
}
