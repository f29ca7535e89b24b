//! What a thread has for itself.

use std::io;

use rustix::thread::UnshareFlags;

/// Gives the calling thread a root and a working directory of its own, without which it may not change its mount
/// namespace.
pub fn unshare_root() -> io::Result<()> {
    // SAFETY: only the root, working directory and umask are no longer shared; no descriptor and no memory is.
    Ok(unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }?)
}
