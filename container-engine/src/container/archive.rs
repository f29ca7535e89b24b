//! Files out of a container and into it, as tar, like `docker cp`.
//!
//! The container's files are not trusted: every path is looked up inside the container's root (`openat2` with
//! `RESOLVE_IN_ROOT`), so a link that leads out ends inside, also one that is exchanged while we look. What is written is
//! made beside nothing: an entry replaces what is there, and never follows a link in its last part.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Component, Path, PathBuf},
};

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid};

use super::{PathStat, roots::IdRange, user::open_beneath};

/// Deepest tree that is read.
const MAX_DEPTH: usize = 256;

/// Why files were not copied.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// Not there.
    #[error("{0} does not exist in the container")]
    NotFound(PathBuf),
    /// Not a folder.
    #[error("{0} is no folder of the container: an archive is unpacked into a folder")]
    NotFolder(PathBuf),
    /// Mounted read-only.
    #[error("{0} is read-only in the container")]
    ReadOnly(PathBuf),
    /// The archive.
    #[error("the archive cannot be read")]
    Archive(#[source] io::Error),
    /// An entry of the archive.
    #[error("entry {0:?} of the archive cannot be used: {1}")]
    Entry(PathBuf, &'static str),
    /// Anything else.
    #[error("cannot {what} {path} in the container")]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Whoever was to get the archive is gone, or the work panicked.
    #[error("the copy was broken off")]
    BrokenOff,
}

impl ArchiveError {
    /// The code told over the control socket.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotFound(_) => "not_found",
            Self::NotFolder(_) | Self::Archive(_) | Self::Entry(..) => "invalid",
            Self::ReadOnly(_) => "denied",
            Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => "no_space",
            Self::Io { .. } | Self::BrokenOff => "internal",
        }
    }

    fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::NotFound => Self::NotFound(path),
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly(path),
            _ => Self::Io { what, path, source },
        }
    }
}

/// How to unpack.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PutOptions {
    /// A folder is never replaced by something else, nor the other way round.
    pub no_overwrite_dir_non_dir: bool,
    /// Owners as the archive has them; else whoever owns the target folder.
    pub copy_owners: bool,
}

/// A container's files.
pub(super) struct Tree {
    root: OwnedFd,
    ids: Option<IdRange>,
}

impl Tree {
    /// Rooted at `root`: where it is mounted, or `/proc/PID/root`.
    pub fn open(root: &Path, ids: Option<IdRange>) -> Result<Self, ArchiveError> {
        let opened = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        Ok(Self { root: opened.map_err(|error| ArchiveError::io("open", root)(error.into()))?, ids })
    }

    /// The folder that holds the last part of `path`, and that part; the root has none.
    fn parent(&self, path: &Path) -> Result<(File, Option<OsString>), ArchiveError> {
        let clean = clean(path);
        let name = clean.file_name().map(OsStr::to_owned);
        let dir = if name.is_some() { clean.parent().unwrap_or(Path::new("/")) } else { &clean };
        Ok((self.dir(dir)?, name))
    }

    fn dir(&self, path: &Path) -> Result<File, ArchiveError> {
        let path = if path.as_os_str().is_empty() { Path::new("/") } else { path };
        open_beneath(&self.root, path, OFlags::PATH | OFlags::DIRECTORY).map_err(|error| match error.raw_os_error() {
            Some(code) if code == rustix::io::Errno::NOTDIR.raw_os_error() => ArchiveError::NotFolder(path.to_owned()),
            _ => ArchiveError::io("open", path)(error),
        })
    }

    /// What `path` is; a link itself is looked at.
    pub fn stat(&self, path: &Path) -> Result<PathStat, ArchiveError> {
        let (dir, name) = self.parent(path)?;
        let failed = |error: rustix::io::Errno| ArchiveError::io("look at", path)(error.into());
        let (stat, link) = match &name {
            None => (rustix::fs::fstat(&dir).map_err(failed)?, None),
            Some(name) => {
                let stat = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
                let link = FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
                let link = link.then(|| rustix::fs::readlinkat(&dir, name, Vec::new()).map_err(failed)).transpose()?;
                (stat, link.map(|link| link.to_string_lossy().into_owned()))
            }
        };
        Ok(PathStat {
            name: name.map_or_else(|| "/".to_owned(), |name| name.to_string_lossy().into_owned()),
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mode: stat.st_mode,
            mtime_ns: mtime(&stat).0.saturating_mul(1_000_000_000).saturating_add(i64::from(mtime(&stat).1)),
            link_target: link,
        })
    }

    /// Writes `path` and all below it as tar. The entries begin with its last part; with `.` at the end of the path
    /// with `.` itself. Blocking.
    pub fn get(&self, path: &Path, to: impl Write) -> Result<(), ArchiveError> {
        let mut builder = tar::Builder::new(to);
        builder.sparse(false);
        let contents = path.as_os_str().as_bytes().ends_with(b"/.") || path.as_os_str() == ".";
        let (dir, name) = self.parent(path)?;
        match name {
            Some(name) if contents => {
                let flags = OFlags::PATH | OFlags::DIRECTORY;
                let inside = open_beneath(&self.root, &clean(path), flags).map_err(ArchiveError::io("open", path))?;
                self.folder(&mut builder, &inside, Path::new("."), 0)?;
                drop(name);
            }
            Some(name) => self.entry(&mut builder, dir.as_fd(), &name, Path::new(&name), 0)?,
            None => self.folder(&mut builder, &dir, Path::new("."), 0)?,
        }
        builder.finish().map_err(|_| ArchiveError::BrokenOff)
    }

    fn header(&self, stat: &Stat) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_mode(stat.st_mode & 0o7777);
        header.set_uid(u64::from(self.inside(stat.st_uid)));
        header.set_gid(u64::from(self.inside(stat.st_gid)));
        header.set_mtime(u64::try_from(mtime(stat).0).unwrap_or(0));
        header.set_size(0);
        header
    }

    /// An id as the container sees it.
    fn inside(&self, id: u32) -> u32 {
        match self.ids {
            Some(ids) if id >= ids.host && id - ids.host < ids.size => id - ids.host,
            _ => id,
        }
    }

    fn folder<W: Write>(
        &self,
        to: &mut tar::Builder<W>,
        dir: &File,
        name: &Path,
        depth: usize,
    ) -> Result<(), ArchiveError> {
        let failed = |error: rustix::io::Errno| ArchiveError::io("read", name)(error.into());
        if depth > MAX_DEPTH {
            return Err(ArchiveError::Entry(name.to_owned(), "the folders are nested too deeply"));
        }
        let stat = rustix::fs::fstat(dir).map_err(failed)?;
        let mut header = self.header(&stat);
        header.set_entry_type(tar::EntryType::Directory);
        let mut shown = name.as_os_str().to_owned();
        shown.push("/");
        to.append_data(&mut header, Path::new(&shown), io::empty()).map_err(|_| ArchiveError::BrokenOff)?;
        let open = rustix::fs::openat(dir, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let mut names = Vec::new();
        for entry in Dir::read_from(open.map_err(failed)?).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let bytes = entry.file_name().to_bytes();
            if bytes != b"." && bytes != b".." {
                names.push(OsString::from_vec(bytes.to_vec()));
            }
        }
        names.sort();
        for child in names {
            self.entry(to, dir.as_fd(), &child, &name.join(&child), depth + 1)?;
        }
        Ok(())
    }

    fn entry<W: Write>(
        &self,
        to: &mut tar::Builder<W>,
        dir: rustix::fd::BorrowedFd<'_>,
        child: &OsStr,
        name: &Path,
        depth: usize,
    ) -> Result<(), ArchiveError> {
        let failed = |error: rustix::io::Errno| ArchiveError::io("read", name)(error.into());
        let stat = rustix::fs::statat(dir, child, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        let mut header = self.header(&stat);
        let broken = |_| ArchiveError::BrokenOff;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let inside = rustix::fs::openat(dir, child, flags, Mode::empty()).map_err(failed)?;
                return self.folder(to, &File::from(inside), name, depth);
            }
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
                let file = File::from(rustix::fs::openat(dir, child, flags, Mode::empty()).map_err(failed)?);
                // Its size as it is now; a file that grows or shrinks meanwhile is cut or padded to it.
                let size = u64::try_from(rustix::fs::fstat(&file).map_err(failed)?.st_size).unwrap_or(0);
                header.set_size(size);
                header.set_entry_type(tar::EntryType::Regular);
                return to.append_data(&mut header, name, file.chain(io::repeat(0)).take(size)).map_err(broken);
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(dir, child, Vec::new()).map_err(failed)?;
                header.set_entry_type(tar::EntryType::Symlink);
                return to.append_link(&mut header, name, OsStr::from_bytes(target.as_bytes())).map_err(broken);
            }
            FileType::CharacterDevice => header.set_entry_type(tar::EntryType::Char),
            FileType::BlockDevice => header.set_entry_type(tar::EntryType::Block),
            FileType::Fifo => header.set_entry_type(tar::EntryType::Fifo),
            // A socket means nothing outside its process.
            _ => return Ok(()),
        }
        // The number of a device fits: the kernel's own are 12 and 20 bits.
        let numbers = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        header.set_device_major(numbers.0).and_then(|()| header.set_device_minor(numbers.1)).map_err(broken)?;
        to.append_data(&mut header, name, io::empty()).map_err(broken)
    }

    /// Unpacks a tar archive into the folder `path`. Blocking.
    pub fn put(&self, path: &Path, from: impl Read, options: PutOptions) -> Result<(), ArchiveError> {
        let base = clean(path);
        let dir = self.dir(&base)?;
        let owner = rustix::fs::fstat(&dir).map_err(|error| ArchiveError::io("look at", path)(error.into()))?;
        let mut archive = tar::Archive::new(from);
        let mut times = Vec::new();
        for entry in archive.entries().map_err(ArchiveError::Archive)? {
            let mut entry = entry.map_err(ArchiveError::Archive)?;
            let name = entry.path().map_err(ArchiveError::Archive)?.into_owned();
            let mut target = base.clone();
            for part in name.components() {
                match part {
                    Component::Normal(part) => target.push(part),
                    Component::CurDir | Component::RootDir => {}
                    _ => return Err(ArchiveError::Entry(name, "its path leads out of the folder")),
                }
            }
            if target == base {
                continue; // The folder itself: it is there, and stays as it is.
            }
            self.unpack(&mut entry, &base, &target, &owner, options, &mut times)?;
        }
        // Folders last, the deepest first: writing into them has changed their times.
        for (dir, mtime) in times.into_iter().rev() {
            set_times(&dir, c"", mtime, AtFlags::EMPTY_PATH);
        }
        Ok(())
    }

    fn unpack<R: Read>(
        &self,
        entry: &mut tar::Entry<'_, R>,
        base: &Path,
        target: &Path,
        owner: &Stat,
        options: PutOptions,
        times: &mut Vec<(File, u64)>,
    ) -> Result<(), ArchiveError> {
        let failed = |what: &'static str| move |error: rustix::io::Errno| ArchiveError::io(what, target)(error.into());
        let (dir, name) = (self.make_parents(base, target, owner)?, target.file_name().unwrap_or_default());
        let mode = Mode::from_raw_mode(entry.header().mode().unwrap_or(0o644) & 0o7777);
        let mtime = entry.header().mtime().unwrap_or(0);
        let kind = entry.header().entry_type();
        let present = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW).ok();
        let is_folder = present.is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
        if options.no_overwrite_dir_non_dir && present.is_some() && is_folder != kind.is_dir() {
            return Err(ArchiveError::Entry(target.to_owned(), "a folder would replace a file, or a file a folder"));
        }
        if is_folder && !kind.is_dir() {
            rustix::fs::unlinkat(&dir, name, AtFlags::REMOVEDIR).map_err(failed("replace the folder"))?;
        } else if present.is_some() && !is_folder {
            rustix::fs::unlinkat(&dir, name, AtFlags::empty()).map_err(failed("replace"))?;
        }
        match kind {
            tar::EntryType::Directory => {
                if !is_folder {
                    rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(0o700)).map_err(failed("make"))?;
                }
            }
            tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = rustix::fs::openat(&dir, name, flags, Mode::from_raw_mode(0o600)).map_err(failed("make"))?;
                io::copy(entry, &mut File::from(file)).map_err(ArchiveError::io("write", target))?;
            }
            tar::EntryType::Symlink => {
                let link = entry.link_name_bytes().unwrap_or_default();
                rustix::fs::symlinkat(OsStr::from_bytes(&link), &dir, name).map_err(failed("make"))?;
            }
            tar::EntryType::Link => {
                let link = entry.link_name().map_err(ArchiveError::Archive)?.unwrap_or_default();
                // Links of an archive count from the folder it is unpacked into.
                let (from, file) = self.parent(&base.join(clean(&link).strip_prefix("/").unwrap_or(Path::new(""))))?;
                let file = file.ok_or_else(|| ArchiveError::Entry(target.to_owned(), "it links to nothing"))?;
                return rustix::fs::linkat(&from, file, &dir, name, AtFlags::empty()).map_err(failed("make"));
            }
            tar::EntryType::Fifo | tar::EntryType::Char | tar::EntryType::Block => {
                let file_type = match kind {
                    tar::EntryType::Fifo => FileType::Fifo,
                    tar::EntryType::Char => FileType::CharacterDevice,
                    _ => FileType::BlockDevice,
                };
                let number = |part: io::Result<Option<u32>>| part.ok().flatten().unwrap_or(0);
                let (major, minor) = (number(entry.header().device_major()), number(entry.header().device_minor()));
                let device = rustix::fs::makedev(major, minor);
                rustix::fs::mknodat(&dir, name, file_type, mode, device).map_err(failed("make"))?;
            }
            _ => return Ok(()),
        }
        let (uid, gid) = self.owners(entry.header(), owner, options);
        let no_follow = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::chownat(&dir, name, Some(uid), Some(gid), no_follow).map_err(failed("give"))?;
        if kind.is_symlink() {
            set_times(&dir, name, mtime, no_follow);
            return Ok(());
        }
        // After the owner, who would take the setuid bit. The name may have been exchanged: the link is not followed.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = rustix::fs::openat(&dir, name, flags, Mode::empty()).map_err(failed("open"))?;
        let itself = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&made));
        rustix::fs::chmod(itself.as_str(), mode).map_err(failed("set the mode of"))?;
        if kind.is_dir() {
            times.push((File::from(made), mtime));
        } else {
            set_times(&dir, name, mtime, no_follow);
        }
        Ok(())
    }

    fn owners(&self, header: &tar::Header, owner: &Stat, options: PutOptions) -> (Uid, Gid) {
        let outside = |id: io::Result<u64>, default: u32| match (
            options.copy_owners,
            id.ok().and_then(|id| u32::try_from(id).ok()),
        ) {
            (true, Some(id)) => match self.ids {
                Some(ids) if id < ids.size => ids.host + id,
                Some(_) => default,
                None => id,
            },
            _ => default,
        };
        (Uid::from_raw(outside(header.uid(), owner.st_uid)), Gid::from_raw(outside(header.gid(), owner.st_gid)))
    }

    /// The folder that holds `target`, with what is missing between it and `base` made.
    fn make_parents(&self, base: &Path, target: &Path, owner: &Stat) -> Result<File, ArchiveError> {
        let parent = target.parent().unwrap_or(base);
        match self.dir(parent) {
            Err(ArchiveError::NotFound(_)) => {}
            other => return other,
        }
        let mut path = base.to_owned();
        let mut dir = self.dir(base)?;
        for part in parent.strip_prefix(base).unwrap_or(Path::new("")).components() {
            let failed = |error: rustix::io::Errno| ArchiveError::io("make", parent)(error.into());
            match rustix::fs::mkdirat(&dir, part.as_os_str(), Mode::from_raw_mode(0o755)) {
                Ok(()) => {
                    let (uid, gid) = (Uid::from_raw(owner.st_uid), Gid::from_raw(owner.st_gid));
                    let flags = AtFlags::SYMLINK_NOFOLLOW;
                    rustix::fs::chownat(&dir, part.as_os_str(), Some(uid), Some(gid), flags).map_err(failed)?;
                }
                Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(failed(error)),
            }
            path.push(part);
            dir = self.dir(&path)?;
        }
        Ok(dir)
    }
}

/// An absolute path without `.`; `..` goes one up and stops at the root, as in the container.
fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(part) => clean.push(part),
            Component::ParentDir => drop(clean.pop()),
            _ => {}
        }
    }
    clean
}

fn mtime(stat: &Stat) -> (i64, u32) {
    #[allow(clippy::useless_conversion, clippy::unnecessary_cast)] // The types differ between machines.
    (i64::from(stat.st_mtime), u32::try_from(stat.st_mtime_nsec as u64).unwrap_or(0))
}

/// A time that cannot be set is no reason to fail.
fn set_times(dir: impl AsFd, name: impl rustix::path::Arg, mtime: u64, flags: AtFlags) {
    let time = Timespec { tv_sec: i64::try_from(mtime).unwrap_or(0), tv_nsec: 0 };
    let _ = rustix::fs::utimensat(dir, name, &Timestamps { last_access: time, last_modification: time }, flags);
}

#[cfg(test)]
mod tests;
