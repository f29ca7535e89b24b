//! Trees that containers have written: walked, measured, handed to a group, removed. Blocking.
//!
//! Always true:
//! - No symbolic link is followed and no mount is entered, whatever is exchanged meanwhile: each folder is opened below the
//!   root by the kernel's own rule (`openat2`).
//! - Depth costs no stack and no descriptors.
//!
//! Elsewhere: mounts themselves (`mount`).

use std::{
    collections::HashSet,
    ffi::{CStr, CString},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat},
    io::Errno,
};

use super::{Problem, VolumeUsage};

/// Paths longer than this are shortened by moving the folder up before it is removed.
const LONG_PATH: usize = 2048;
/// Paths beyond this are not followed: the memory for them would be the container's to choose.
const LONGEST_PATH: usize = 64 << 10;
/// Entries that are measured; a tree with more is at least as large as found by then.
const MAX_MEASURED: u64 = 2_000_000;

/// An open root.
struct Root {
    fd: OwnedFd,
    path: PathBuf,
}

/// A folder still to be visited, or visited already.
struct Step {
    path: PathBuf,
    is_left: bool,
}

impl Root {
    fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Self { fd: rustix::fs::open(path, flags, Mode::empty())?, path: path.to_owned() })
    }

    /// Opens a folder below, by a path without links and mounts in it. One that is longer than the kernel takes is gone along
    /// in pieces.
    fn dir(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        if path.as_os_str().len() > LONGEST_PATH {
            return Err(Errno::NAMETOOLONG);
        }
        let mut at: Option<OwnedFd> = None;
        let (mut piece, mut parts) = (PathBuf::from("."), path.components().peekable());
        loop {
            while let Some(part) = parts.next_if(|_| piece.as_os_str().len() < LONG_PATH) {
                piece.push(part);
            }
            let next = open_dir(at.as_ref().unwrap_or(&self.fd), &piece)?;
            if parts.peek().is_none() {
                return Ok(next);
            }
            at = Some(next);
            piece = PathBuf::from(".");
        }
    }

    fn problem(&self, action: &'static str, path: &Path, errno: Errno) -> Problem {
        let path = self.path.join(path);
        match errno {
            Errno::XDEV => Problem::Missing(format!("something is still mounted at {}", path.display())),
            errno => Problem::io(action, path)(errno.into()),
        }
    }
}

fn open_dir(from: &OwnedFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat2(from, path, flags, Mode::empty(), inside())
}

fn inside() -> ResolveFlags {
    ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV
}

/// The entries of a folder.
fn entries(dir: &OwnedFd) -> rustix::io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

fn join(path: &Path, name: &CStr) -> PathBuf {
    path.join(std::ffi::OsStr::from_bytes(name.to_bytes()))
}

fn stat(dir: &OwnedFd, name: &CStr) -> rustix::io::Result<Stat> {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT)
}

fn is_dir(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// Removes `path` and all below it. Nothing there is no error; something mounted below is one, and it stays.
pub fn remove(path: &Path) -> Result<(), Problem> {
    let root = match Root::open(path) {
        Ok(root) => root,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) if matches!(error.raw_os_error(), Some(code) if code == Errno::NOTDIR.raw_os_error() || code == Errno::LOOP.raw_os_error()) =>
        {
            return std::fs::remove_file(path).map_err(Problem::io("remove", path));
        }
        Err(source) => return Err(Problem::io("open", path)(source)),
    };
    let mut moved = 0u64;
    let mut steps = vec![Step { path: PathBuf::new(), is_left: false }];
    while let Some(step) = steps.pop() {
        if step.is_left {
            leave(&root, &step.path)?;
            continue;
        }
        let dir = match root.dir(&step.path) {
            // Gone, or exchanged for something else by whoever still writes: the parent's removal will tell.
            Err(Errno::NOENT) => continue,
            other => other.map_err(|errno| root.problem("open", &step.path, errno))?,
        };
        steps.push(Step { path: step.path.clone(), is_left: true });
        for name in entries(&dir).map_err(|errno| root.problem("list", &step.path, errno))? {
            let path = join(&step.path, &name);
            match rustix::fs::unlinkat(&dir, &name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::ISDIR | Errno::PERM) if stat(&dir, &name).is_ok_and(|stat| is_dir(&stat)) => {
                    let path = shortened(&root, &dir, &name, path, &mut moved)?;
                    steps.push(Step { path, is_left: false });
                }
                Err(errno) => return Err(root.problem("remove", &path, errno)),
            }
        }
    }
    match std::fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(Problem::io("remove", path)),
    }
}

fn leave(root: &Root, path: &Path) -> Result<(), Problem> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    let dir = root.dir(parent).map_err(|errno| root.problem("open", parent, errno))?;
    match rustix::fs::unlinkat(&dir, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::BUSY) => Err(root.problem("remove", path, Errno::XDEV)),
        Err(errno) => Err(root.problem("remove", path, errno)),
    }
}

/// A folder with too long a path is moved to the top first.
fn shortened(root: &Root, dir: &OwnedFd, name: &CStr, path: PathBuf, moved: &mut u64) -> Result<PathBuf, Problem> {
    if path.as_os_str().len() < LONG_PATH {
        return Ok(path);
    }
    loop {
        *moved += 1;
        let up = PathBuf::from(format!("..removed-{moved}"));
        let flags = rustix::fs::RenameFlags::NOREPLACE;
        match rustix::fs::renameat_with(dir, name, &root.fd, &up, flags) {
            Ok(()) => return Ok(up),
            Err(Errno::EXIST) => {}
            // Something is mounted there.
            Err(Errno::BUSY | Errno::XDEV) => return Err(root.problem("move", &path, Errno::XDEV)),
            Err(errno) => return Err(root.problem("move", &path, errno)),
        }
    }
}

/// What is below a folder: blocks on the disk, each file with several names once. Entries that vanish meanwhile do not
/// count.
pub fn measure(path: &Path) -> Result<VolumeUsage, Problem> {
    let root = Root::open(path).map_err(Problem::io("open", path))?;
    let mut usage = VolumeUsage::default();
    let mut several: HashSet<(u64, u64)> = HashSet::new();
    let mut count = |stat: &Stat, usage: &mut VolumeUsage| {
        #[allow(clippy::unnecessary_cast)] // The types differ between machines.
        let key = (stat.st_dev as u64, stat.st_ino as u64);
        if is_dir(stat) || stat.st_nlink < 2 || several.insert(key) {
            usage.bytes = usage.bytes.saturating_add(u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512));
            usage.inodes += 1;
        }
    };
    let top = rustix::fs::fstat(&root.fd).map_err(|errno| root.problem("look at", Path::new(""), errno))?;
    count(&top, &mut usage);
    let mut paths = vec![PathBuf::new()];
    let mut seen = 0u64;
    while let Some(path) = paths.pop() {
        // Mounts, and what has gone or become something else, are no part of it.
        let Ok(dir) = root.dir(&path) else { continue };
        for name in entries(&dir).unwrap_or_default() {
            let Ok(stat) = stat(&dir, &name) else { continue };
            seen += 1;
            count(&stat, &mut usage);
            if is_dir(&stat) && seen < MAX_MEASURED {
                paths.push(join(&path, &name));
            }
        }
    }
    Ok(usage)
}

/// Whether the pod's group can use the folder already: then `OnRootMismatch` leaves everything below as it is.
pub fn is_groups(path: &Path, group: u32, read_only: bool) -> bool {
    let Ok(stat) = rustix::fs::stat(path) else { return false };
    let wanted = mode_of_group(true, read_only);
    stat.st_gid == group && is_dir(&stat) && Mode::from_raw_mode(stat.st_mode).as_raw_mode() & wanted == wanted
}

/// Bits that the group gets.
fn mode_of_group(is_dir: bool, read_only: bool) -> u32 {
    let base = if read_only { 0o440 } else { 0o660 };
    if is_dir { base | 0o2110 } else { base }
}

/// Hands everything at and below `path` to a group, which may then read it and, unless `read_only`, write it. The root
/// comes last, so that a walk that a crash ended is begun again.
pub fn set_group(path: &Path, group: u32, read_only: bool) -> Result<(), Problem> {
    let root = Root::open(path).map_err(Problem::io("open", path))?;
    let mut paths = vec![PathBuf::new()];
    while let Some(path) = paths.pop() {
        let Ok(dir) = root.dir(&path) else { continue };
        for name in entries(&dir).map_err(|errno| root.problem("list", &path, errno))? {
            match hand_over(&dir, &name, group, read_only) {
                Ok(true) => paths.push(join(&path, &name)),
                // Gone meanwhile.
                Ok(false) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(root.problem("change the group of", &join(&path, &name), errno)),
            }
        }
    }
    let changed = hand_over(&root.fd, c".", group, read_only);
    changed.map(drop).map_err(|errno| root.problem("change the group of", Path::new(""), errno))
}

/// One entry; `true` for a folder.
fn hand_over(dir: &OwnedFd, name: &CStr, group: u32, read_only: bool) -> rustix::io::Result<bool> {
    let entry = rustix::fs::openat2(
        dir,
        name,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV,
    );
    let entry = match entry {
        // A mount is somebody else's.
        Err(Errno::XDEV) => return Ok(false),
        other => other?,
    };
    let stat = rustix::fs::fstat(&entry)?;
    if stat.st_gid != group {
        rustix::fs::chownat(&entry, c"", None, Some(Gid::from_raw(group)), AtFlags::EMPTY_PATH)?;
    }
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind == FileType::Symlink {
        return Ok(false);
    }
    let is_dir = kind == FileType::Directory;
    let mode = Mode::from_raw_mode(stat.st_mode).as_raw_mode();
    let wanted = mode | mode_of_group(is_dir, read_only);
    // A change of owner takes setuid and setgid away, so the mode is written in any case.
    let path = format!("/proc/self/fd/{}", entry.as_raw_fd());
    rustix::fs::chmod(path, Mode::from_raw_mode(wanted))?;
    Ok(is_dir)
}

#[cfg(test)]
mod tests;
