//! A view of this program's own file that nobody can write through.
//!
//! A container's process can reach the file of the runtime that entered it through `/proc/PID/exe` (CVE-2019-5736).
//! Shims and runtimes are therefore started from a detached, read-only clone of the mount that the file lies on; where
//! the kernel has no such mounts, from a sealed copy in memory.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use rustix::{
    fs::{CWD, MemfdFlags, SealFlags},
    mount::OpenTreeFlags,
};

use crate::sys::attr;

/// Why there is no sealed view.
#[derive(Debug, thiserror::Error)]
#[error("cannot make a sealed view of {path}: {source}; it needs CAP_SYS_ADMIN, or memory for a copy of the file")]
pub struct SealError {
    path: PathBuf,
    source: io::Error,
}

/// The sealed view. It lasts as long as this value (and as the processes that were started from it).
#[derive(Debug)]
pub struct SealedExe {
    /// `None`: this process was itself started from a sealed view.
    file: Option<OwnedFd>,
}

impl SealedExe {
    /// Makes the view of the file that this process runs.
    pub fn open() -> Result<Self, SealError> {
        let failed = |source| SealError { path: PathBuf::from("/proc/self/exe"), source };
        let path = std::fs::read_link("/proc/self/exe").map_err(failed)?;
        let failed = |source| SealError { path: path.clone(), source };
        let file = match clone_read_only() {
            Ok(file) => file,
            Err(error) => {
                tracing::debug!(%error, "no read-only clone of the program's mount; it is copied into memory");
                copy_sealed().map_err(failed)?
            }
        };
        Ok(Self { file: Some(file) })
    }

    /// Another file of this same program, which its owner keeps from being written: for tests, whose own file it is not.
    pub fn of(path: &std::path::Path) -> Result<Self, SealError> {
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
        let opened = rustix::fs::open(path, flags, rustix::fs::Mode::empty());
        let file = opened.map_err(|error| SealError { path: path.to_owned(), source: error.into() })?;
        Ok(Self { file: Some(file) })
    }

    /// The file of this process, where whoever started it has used a sealed view already: a shim's, a runtime's.
    pub fn inherited() -> Self {
        Self { file: None }
    }

    /// What to execute. Valid in this process and, until they execute something, in its children.
    pub fn path(&self) -> PathBuf {
        match &self.file {
            Some(file) => PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())),
            None => PathBuf::from("/proc/self/exe"),
        }
    }

    /// The descriptor behind it, if this process has made the view.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(AsFd::as_fd)
    }
}

/// A detached bind mount of the one file, read-only.
fn clone_read_only() -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(CWD, "/proc/self/exe", flags)?;
    let attributes = attr::Attributes { set: attr::MOUNT_ATTR_RDONLY | attr::MOUNT_ATTR_NODEV, ..Default::default() };
    attr::set(&tree, attributes, false)?;
    // The clone of a file that is not the one we run would be worse than none (a mount over it, since the start).
    let (own, clone) = (rustix::fs::stat("/proc/self/exe")?, rustix::fs::fstat(&tree)?);
    if (own.st_dev, own.st_ino) != (clone.st_dev, clone.st_ino) {
        return Err(io::Error::other("the clone shows another file"));
    }
    Ok(tree)
}

/// A copy in memory, sealed against every change.
fn copy_sealed() -> io::Result<OwnedFd> {
    let memory = rustix::fs::memfd_create("edge-agent", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut copy = File::from(memory);
    io::copy(&mut File::open("/proc/self/exe")?, &mut copy)?;
    rustix::fs::fchmod(&copy, rustix::fs::Mode::from_raw_mode(0o555))?;
    rustix::fs::fcntl_add_seals(&copy, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)?;
    // What is open for writing cannot be executed: open it again, for reading.
    Ok(File::open(format!("/proc/self/fd/{}", copy.as_raw_fd()))?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_copy_is_the_program_and_cannot_be_changed() {
        let copy = SealedExe { file: Some(copy_sealed().unwrap()) };
        assert_eq!(std::fs::read(copy.path()).unwrap(), std::fs::read("/proc/self/exe").unwrap());
        assert!(
            std::fs::OpenOptions::new().write(true).open(copy.path()).is_err_and(|_| true) || {
                // Root may open it; writing is what the seal forbids.
                let file = std::fs::OpenOptions::new().write(true).open(copy.path()).unwrap();
                io::Write::write(&mut &file, b"x").is_err()
            }
        );
    }

    #[test]
    fn the_view_runs_and_cannot_be_written() {
        let sealed = SealedExe::open().unwrap();
        let output = std::process::Command::new(sealed.path()).arg("--list").output().unwrap();
        assert!(output.status.success());
        let mut write = std::fs::OpenOptions::new();
        let refused = match write.write(true).open(sealed.path()) {
            Err(_) => true,
            Ok(file) => io::Write::write(&mut &file, b"x").is_err(),
        };
        assert!(refused, "the sealed view could be written");
    }
}
