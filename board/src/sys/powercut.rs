//! A power cut for tests: an ext4 file system that stops at once, without flushing its journal.

use std::{fs::File, io, os::fd::AsRawFd, path::Path};

/// `EXT4_IOC_SHUTDOWN`, `_IOR('X', 125, __u32)` (fs/ext4/ext4.h), as xfstests uses it.
#[allow(clippy::cast_possible_wrap)] // A bit pattern, whose integer type differs between C libraries.
const EXT4_IOC_SHUTDOWN: libc::Ioctl = 0x8004_587d_u32 as libc::Ioctl;
/// `EXT4_GOING_FLAGS_NOLOGFLUSH`: what is not yet on disk stays away, the journal too.
const NO_LOG_FLUSH: u32 = 2;

/// Shuts down the ext4 file system mounted at `mount`: every later write to it fails; unmount and mount it again to go
/// on. Needs `CAP_SYS_ADMIN`.
pub fn shutdown(mount: &Path) -> io::Result<()> {
    let dir = File::open(mount)?;
    let flags = NO_LOG_FLUSH;
    // SAFETY: the kernel reads one u32 through the pointer, which outlives the call.
    let ret = unsafe { libc::ioctl(dir.as_raw_fd(), EXT4_IOC_SHUTDOWN, &raw const flags) };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
