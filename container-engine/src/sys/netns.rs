//! Network namespaces: made, entered by a thread that ends with the work, held by a bind mount.
//!
//! A thread that changed its namespace never goes back to a pool: each call here has a thread of its own, so nothing
//! else of the process ever finds itself in a container's network.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use rustix::{
    mount::{UnmountFlags, mount_bind, unmount},
    thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe},
};

/// Runs `work` in a new network namespace, and holds that namespace by a bind mount on `at` where given (whose folder
/// exists). The namespace is returned open.
pub fn create<T: Send>(
    at: Option<&Path>,
    work: impl FnOnce(BorrowedFd<'_>) -> io::Result<T> + Send,
) -> io::Result<(File, T)> {
    on_a_thread(move || {
        // SAFETY: NEWNET alone: nothing of the thread's memory or files is unshared, and the thread ends with this.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET)? };
        let namespace = File::open("/proc/thread-self/ns/net")?;
        if let Some(at) = at {
            hold(at)?;
        }
        let result = work(namespace.as_fd()).inspect_err(|_| {
            if let Some(at) = at {
                let _ = release(at); // The first error is the one to report.
            }
        })?;
        Ok((namespace, result))
    })
}

/// Runs `work` in that network namespace.
pub fn within<T: Send>(namespace: BorrowedFd<'_>, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    on_a_thread(move || {
        move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))?;
        work()
    })
}

/// Lets go of a namespace held at `at`; one that is not there is no error.
pub fn release(at: &Path) -> io::Result<()> {
    loop {
        match unmount(at, UnmountFlags::DETACH) {
            Ok(()) => {} // One may be mounted over another.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => break,
            Err(error) => return Err(error.into()),
        }
    }
    match std::fs::remove_file(at) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether a network namespace is held at `at`, not merely a file left from before a restart of the board.
pub fn is_held(at: &Path) -> bool {
    /// `NSFS_MAGIC`, `linux/magic.h`. The field's type differs between architectures.
    const NSFS: i64 = 0x6e73_6673;
    #[allow(clippy::useless_conversion, reason = "it is another type with another C library")]
    rustix::fs::statfs(at).is_ok_and(|fs| i64::try_from(fs.f_type) == Ok(NSFS))
}

fn hold(at: &Path) -> io::Result<()> {
    release(at)?;
    File::create_new(at)?;
    mount_bind("/proc/thread-self/ns/net", at).inspect_err(|_| {
        let _ = std::fs::remove_file(at); // The first error is the one to report.
    })?;
    Ok(())
}

fn on_a_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".into()).stack_size(2 << 20).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread in the network namespace panicked")))
    })
}
