//! Writes the tree of a layer in overlayfs form, entry by entry, in one pass.
//!
//! Always true:
//! - No name of an archive is ever resolved by the kernel across more than one component: folders are opened one below
//!   the other without following links, and links are followed here, within the root. Nothing leaves the tree, even
//!   without the change of root that the child makes beforehand.
//! - Memory does not grow with entries: known are the folders from the root to where the last entry was written. A
//!   folder's time is set again when it is left.
//! - What is written is counted before it is written; the limits hold for all that was ever written, not for what is
//!   left of it.
//!
//! OCI's `.wh.` names become overlayfs' whiteouts (character device 0:0) and opaque attributes. As both apply to lower
//! layers only, an entry and its whiteout in one layer make a file that hides the lower one, whichever comes first.

mod lower;
mod node;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, Stat, Timespec, Timestamps, XattrFlags},
    io::Errno,
};

use super::{
    Limits, Marks,
    archive::{Archive, Entry, Kind, named},
    error::{Fault, FaultKind},
    remove,
};

/// Longest name, as the kernel has it.
const MAX_PATH: usize = 4096;
/// Deepest folder: each level costs a descriptor.
const MAX_DEPTH: usize = 512;
/// Links followed for one name.
const MAX_LINKS: usize = 40;
/// Unit of what files take on disk.
const UNIT: u64 = 4096;

/// Bits of a mode that are not there yet when a file was made with it. The child has no umask; the tests of this crate,
/// which share a process with others, have one.
const SET_AFTERWARDS: u32 = if cfg!(test) { 0o7777 } else { 0o7000 };

/// The writer.
#[derive(Debug)]
pub struct Tree {
    /// From the root to the folder of the last entry.
    levels: Vec<Level>,
    marks: Marks,
    limits: Limits,
    /// Lower layers, the uppermost first.
    parents: Vec<OwnedFd>,
    bytes: u64,
    inodes: u64,
    copied: bool,
}

#[derive(Debug)]
struct Level {
    name: Vec<u8>,
    fd: OwnedFd,
    /// To be set when it is left.
    mtime: Timespec,
    changed: bool,
    /// New entries inherit its group.
    setgid: bool,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// In blocks of the file system.
    pub bytes: u64,
    /// Entries made.
    pub inodes: u64,
    /// Whether files of lower layers were copied.
    pub copied: bool,
}

fn fault(kind: FaultKind, message: impl Into<String>) -> Fault {
    Fault { kind, entry: String::new(), message: message.into() }
}

/// An error of the file system.
fn failed(step: &str) -> impl FnOnce(Errno) -> Fault + '_ {
    move |error| {
        let full = matches!(error, Errno::NOSPC | Errno::DQUOT);
        let (kind, help) = if full { (FaultKind::NoSpace, ": make room on the disk") } else { (FaultKind::Io, "") };
        fault(kind, format!("cannot {step}: {error}{help}"))
    }
}

impl Tree {
    /// Writes below `root`. The process has to be without a umask.
    pub fn new(root: OwnedFd, marks: Marks, limits: Limits, parents: Vec<OwnedFd>) -> Result<Self, Fault> {
        let stat = rustix::fs::fstat(&root).map_err(failed("read the root"))?;
        let level = Level::of(Vec::new(), root, &stat);
        Ok(Self { levels: vec![level], marks, limits, parents, bytes: 0, inodes: 0, copied: false })
    }

    /// Writes everything that is in the archive.
    pub fn write_all<R: std::io::BufRead>(&mut self, archive: &mut Archive<R>) -> Result<Written, Fault> {
        let mut entries = 0;
        while let Some(entry) = archive.next()? {
            entries += 1;
            if entries > self.limits.entries {
                let message = format!(
                    "more than the {} entries allowed; raise the limit if it is to be trusted",
                    self.limits.entries
                );
                return Err(named(&entry.path, fault(FaultKind::Entries, message)));
            }
            self.add(&entry, archive).map_err(|fault| named(&entry.path, fault))?;
        }
        self.leave(0)?;
        Ok(Written { bytes: self.bytes, inodes: self.inodes, copied: self.copied })
    }

    fn add<R: std::io::BufRead>(&mut self, entry: &Entry, archive: &mut Archive<R>) -> Result<(), Fault> {
        let path = components(&entry.path)?;
        let Some((name, parent)) = path.split_last() else {
            return if entry.kind == Kind::Folder { self.root(entry) } else { Err(nameless()) };
        };
        self.enter(parent)?;
        if let Some(hidden) = name.strip_prefix(b".wh.") {
            return self.whiteout(hidden);
        }
        match entry.kind {
            Kind::File => self.file(name, entry, archive),
            Kind::Folder => self.folder(name, entry),
            Kind::Hard => self.hard_link(name, entry),
            Kind::Symbolic => self.symbolic_link(name, entry),
            Kind::Character | Kind::Block | Kind::Fifo => self.node(name, entry),
        }
    }

    fn root(&mut self, entry: &Entry) -> Result<(), Fault> {
        self.leave(1)?;
        let level = &mut self.levels[0];
        node::own(&level.fd, entry)?;
        node::mode(&level.fd, entry)?;
        node::xattrs(&level.fd, entry)?;
        level.mtime = mtime(entry);
        level.changed = true;
        level.setgid = entry.mode & 0o2000 != 0;
        Ok(())
    }

    /// `hidden` is what follows `.wh.`.
    fn whiteout(&mut self, hidden: &[u8]) -> Result<(), Fault> {
        if hidden == b".wh..opq" {
            return self.opaque(self.top().fd.as_fd());
        }
        if hidden.starts_with(b".wh.") {
            return Ok(()); // aufs' own files: of no meaning to others.
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(fault(FaultKind::Escape, "a whiteout of no name, or of a folder above"));
        }
        let made = rustix::fs::mknodat(&self.top().fd, hidden, FileType::CharacterDevice, Mode::empty(), 0);
        match made {
            Ok(()) => self.count(0),
            Err(Errno::EXIST) => {
                // Of the same layer, so it stays; but of the lower one's content nothing may be seen through it.
                match self.open_folder(hidden) {
                    Ok(fd) => self.opaque(fd.as_fd()),
                    Err(_) => Ok(()),
                }
            }
            Err(error) => Err(failed("make a whiteout")(error)),
        }
    }

    fn opaque(&self, folder: BorrowedFd<'_>) -> Result<(), Fault> {
        rustix::fs::fsetxattr(folder, self.marks.opaque(), b"y", XattrFlags::empty())
            .map_err(failed("mark a folder as opaque"))
    }

    fn folder(&mut self, name: &[u8], entry: &Entry) -> Result<(), Fault> {
        let fd = self.make_folder(name, entry.mode)?;
        node::own(&fd, entry)?;
        node::mode(&fd, entry)?;
        node::xattrs(&fd, entry)?;
        let stat = rustix::fs::fstat(&fd).map_err(failed("read a folder"))?;
        self.levels.push(Level { mtime: mtime(entry), changed: true, ..Level::of(name.to_vec(), fd, &stat) });
        Ok(())
    }

    /// A folder, new or there already; anything else of that name makes way.
    fn make_folder(&mut self, name: &[u8], mode: u32) -> Result<OwnedFd, Fault> {
        let bits = Mode::from_raw_mode(mode & 0o777);
        let made = rustix::fs::mkdirat(&self.top().fd, name, bits);
        match made {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let stat = self.stat(name)?;
                if is_folder(&stat) {
                    return self.open_folder(name).map_err(failed("open a folder"));
                }
                let whiteout = is_whiteout(&stat);
                self.remove(name)?;
                rustix::fs::mkdirat(&self.top().fd, name, bits).map_err(failed("make a folder"))?;
                if whiteout {
                    let fd = self.open_folder(name).map_err(failed("open a folder"))?;
                    self.opaque(fd.as_fd())?;
                }
            }
            Err(error) => return Err(failed("make a folder")(error)),
        }
        self.count(UNIT)?;
        self.open_folder(name).map_err(failed("open a folder"))
    }

    /// Makes the folder `parent` the top level: opens, makes, and follows links within the root, as needed.
    fn enter(&mut self, parent: &[&[u8]]) -> Result<(), Fault> {
        let same = self.levels[1..].iter().zip(parent).take_while(|(level, name)| level.name == **name).count();
        self.leave(same + 1)?;
        if same == parent.len() {
            return Ok(());
        }
        let mut ahead: Vec<Vec<u8>> = parent[same..].iter().rev().map(|name| name.to_vec()).collect();
        let mut links = 0;
        while let Some(name) = ahead.pop() {
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    let up = self.levels.len().saturating_sub(1).max(1); // Above the root is the root.
                    self.leave(up)?;
                    continue;
                }
                _ => {}
            }
            if self.levels.len() > MAX_DEPTH {
                return Err(fault(FaultKind::Limit, format!("deeper than {MAX_DEPTH} folders")));
            }
            match self.open_folder(&name) {
                Ok(fd) => self.push(name, fd)?,
                Err(Errno::NOENT) => self.make_parent(name)?,
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    if FileType::from_raw_mode(self.stat(&name)?.st_mode) != FileType::Symlink {
                        self.make_parent(name)?;
                        continue;
                    }
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(fault(FaultKind::Limit, "too many symbolic links on the way to it"));
                    }
                    let target = rustix::fs::readlinkat(&self.top().fd, name.as_slice(), Vec::new());
                    let target = target.map_err(failed("read a link"))?.into_bytes();
                    if target.first() == Some(&b'/') {
                        self.leave(1)?;
                    }
                    ahead.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
                }
                Err(error) => return Err(failed("open a folder")(error)),
            }
        }
        Ok(())
    }

    /// A folder that has no entry of its own, or not yet.
    fn make_parent(&mut self, name: Vec<u8>) -> Result<(), Fault> {
        let fd = self.make_folder(&name, 0o755)?;
        self.push(name, fd)?;
        let level = self.levels.last_mut().ok_or_else(nameless)?;
        // Always the same, so that the same archive makes the same tree.
        (level.mtime, level.changed) = (Timespec { tv_sec: 0, tv_nsec: 0 }, true);
        Ok(())
    }

    fn push(&mut self, name: Vec<u8>, fd: OwnedFd) -> Result<(), Fault> {
        let stat = rustix::fs::fstat(&fd).map_err(failed("read a folder"))?;
        self.levels.push(Level::of(name, fd, &stat));
        Ok(())
    }

    /// Leaves all but `levels` levels, and gives the folders their times.
    fn leave(&mut self, levels: usize) -> Result<(), Fault> {
        while self.levels.len() > levels {
            let Some(level) = self.levels.pop() else { break };
            if level.changed {
                set_mtime(&level.fd, level.mtime)?;
            }
        }
        Ok(())
    }

    fn top(&self) -> &Level {
        // `leave(0)` is the last call of all.
        &self.levels[self.levels.len() - 1]
    }

    fn open_folder(&self, name: &[u8]) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&self.top().fd, name, flags, Mode::empty())
    }

    fn stat(&self, name: &[u8]) -> Result<Stat, Fault> {
        rustix::fs::statat(&self.top().fd, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed("look at it"))
    }

    fn remove(&mut self, name: &[u8]) -> Result<(), Fault> {
        remove::at(self.top().fd.as_fd(), name).map_err(|error| {
            let error = error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error);
            failed("replace what was there")(error)
        })
    }

    /// One entry more in the top folder.
    fn count(&mut self, bytes: u64) -> Result<(), Fault> {
        if let Some(level) = self.levels.last_mut() {
            level.changed = true;
        }
        self.inodes += 1;
        self.spend(bytes)
    }

    fn spend(&mut self, bytes: u64) -> Result<(), Fault> {
        self.bytes += bytes;
        if self.bytes > self.limits.bytes {
            let message = format!(
                "it unpacks to more than the {} bytes allowed; make room or raise the quota if it is to be trusted",
                self.limits.bytes
            );
            return Err(fault(FaultKind::Quota, message));
        }
        Ok(())
    }
}

impl Level {
    fn of(name: Vec<u8>, fd: OwnedFd, stat: &Stat) -> Self {
        let mtime = Timespec { tv_sec: stat.st_mtime, tv_nsec: i64::try_from(stat.st_mtime_nsec).unwrap_or(0) };
        Self { name, fd, mtime, changed: false, setgid: stat.st_mode & 0o2000 != 0 }
    }
}

fn nameless() -> Fault {
    fault(FaultKind::Corrupt, "an entry without a name")
}

/// The components of a name, `.` and `..` resolved; an absolute one begins at the root of the tree.
fn components(path: &[u8]) -> Result<Vec<&[u8]>, Fault> {
    if path.len() >= MAX_PATH {
        return Err(fault(FaultKind::Limit, format!("a name of {} bytes; {MAX_PATH} are too many", path.len())));
    }
    if path.contains(&0) {
        return Err(fault(FaultKind::Corrupt, "a name with a NUL in it"));
    }
    let mut components = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => {
                if components.pop().is_none() {
                    let message =
                        "its name leads out of the layer; such layers are made to attack: do not trust this image";
                    return Err(fault(FaultKind::Escape, message));
                }
            }
            name if name.len() > 255 => {
                return Err(fault(FaultKind::Limit, "a component of its name is longer than 255 bytes"));
            }
            name => components.push(name),
        }
    }
    if components.len() > MAX_DEPTH {
        return Err(fault(FaultKind::Limit, format!("deeper than {MAX_DEPTH} folders")));
    }
    Ok(components)
}

fn mtime(entry: &Entry) -> Timespec {
    Timespec { tv_sec: entry.mtime, tv_nsec: i64::from(entry.mtime_ns) }
}

fn times(mtime: Timespec) -> Timestamps {
    Timestamps { last_access: mtime, last_modification: mtime }
}

fn set_mtime(fd: &OwnedFd, mtime: Timespec) -> Result<(), Fault> {
    rustix::fs::futimens(fd, &times(mtime)).map_err(failed("set its time"))
}

fn is_folder(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// Whether it is overlayfs' mark of a removed file.
pub(super) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}
