//! `mount_setattr(2)`: the attributes of a mount, or of a whole tree of mounts, in one call.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

pub use libc::{MOUNT_ATTR_IDMAP, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY};

/// What to change.
#[derive(Debug, Clone, Copy, Default)]
pub struct Attributes<'a> {
    /// `MOUNT_ATTR_…` to set.
    pub set: u64,
    /// `MOUNT_ATTR_…` to clear.
    pub clear: u64,
    /// One of `MS_PRIVATE`, `MS_SHARED`, `MS_SLAVE`, `MS_UNBINDABLE`, or 0.
    pub propagation: u64,
    /// The user namespace whose mapping `MOUNT_ATTR_IDMAP` gives the mount.
    pub user_namespace: Option<BorrowedFd<'a>>,
}

/// Changes the mount (detached or not) that `fd` is the root of; with `recursive` all mounts below it as well.
pub fn set(fd: impl AsFd, attributes: Attributes<'_>, recursive: bool) -> io::Result<()> {
    let user_namespace = attributes.user_namespace.map_or(0, |fd| fd.as_raw_fd());
    let argument = libc::mount_attr {
        attr_set: attributes.set,
        attr_clr: attributes.clear,
        propagation: attributes.propagation,
        userns_fd: u64::try_from(user_namespace).map_err(io::Error::other)?,
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a terminated empty string and the structure lives, with the size given, for the whole call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const argument,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
