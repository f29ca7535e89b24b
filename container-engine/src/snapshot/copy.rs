//! The way without overlayfs: all layers merged into one tree, by reference (`FICLONE`) where the file system can.
//!
//! Kept are owners (shifted where there is an id mapping), modes, times, extended attributes, hard links within a layer,
//! and holes. Beside the tree `index` lists what was made: path, inode and change time in the order of `diff`'s walk, so
//! that what was changed later is known without a second copy.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufWriter, Read, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, Uid, XattrFlags},
    io::Errno,
};

use super::{IdMap, Marks, remove, tree::is_whiteout};

/// Deepest folder.
const MAX_DEPTH: usize = 512;
/// Files with several names, in one layer, whose names are remembered.
const MAX_LINKED: usize = 1 << 18;
/// Longest list of attributes, and value of one.
const MAX_XATTR: usize = 64 << 10;
const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Makes `folder/root` of `layers`, lowest first, and `folder/index`.
pub fn layers(layers: &[(PathBuf, Marks)], folder: &Path, map: Option<IdMap>) -> io::Result<()> {
    let root = folder.join("root");
    remove::tree(&root)?;
    std::fs::create_dir(&root)?;
    let to = rustix::fs::open(&root, FOLDER, Mode::empty())?;
    for (path, marks) in layers {
        let from = rustix::fs::open(path, FOLDER, Mode::empty())?;
        let stat = rustix::fs::fstat(&from)?;
        let root = rustix::io::fcntl_dupfd_cloexec(&to, 0)?;
        let mut copy = Copy { marks: *marks, shift: map.map_or(0, |map| map.host), linked: HashMap::new(), root };
        copy.folder(from.as_fd(), to.as_fd(), &mut Vec::new(), 0)?;
        copy.dress(&from, &to, &stat)?;
    }
    if layers.is_empty()
        && let Some(map) = map
    {
        rustix::fs::fchown(&to, Some(Uid::from_raw(map.host)), Some(Gid::from_raw(map.host)))?;
    }
    write_index(&to, &folder.join("index"))
}

/// Copies what the root file system `root` has at `at` into the folder `to`, links followed within the root; false where
/// there is no folder.
pub fn below(root: &Path, at: &str, to: &Path) -> io::Result<bool> {
    use rustix::fs::ResolveFlags;
    let root = rustix::fs::open(root, FOLDER, Mode::empty())?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let from = match rustix::fs::openat2(&root, at, flags, Mode::empty(), resolve) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(false),
        other => other?,
    };
    let to = rustix::fs::open(to, FOLDER, Mode::empty())?;
    let stat = rustix::fs::fstat(&from)?;
    let root = rustix::io::fcntl_dupfd_cloexec(&to, 0)?;
    let mut copy = Copy { marks: Marks::User, shift: 0, linked: HashMap::new(), root };
    copy.folder(from.as_fd(), to.as_fd(), &mut Vec::new(), 0)?;
    copy.dress(&from, &to, &stat)?;
    Ok(true)
}

struct Copy {
    marks: Marks,
    shift: u32,
    /// Inode in the layer, and where it was copied to.
    linked: HashMap<u64, Vec<u8>>,
    root: OwnedFd,
}

impl Copy {
    fn folder(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, path: &mut Vec<u8>, depth: usize) -> io::Result<()> {
        if depth > MAX_DEPTH {
            return Err(io::Error::other(format!("folders are nested deeper than {MAX_DEPTH}")));
        }
        for item in Dir::read_from(from)? {
            let item = item?;
            let name = item.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let before = path.len();
            path.push(b'/');
            path.extend_from_slice(name.to_bytes());
            if is_whiteout(&stat) {
                remove::at(to, name.to_bytes())?;
            } else if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                let source = rustix::fs::openat(from, name, FOLDER, Mode::empty())?;
                let target = self.make_folder(&source, to, name)?;
                self.folder(source.as_fd(), target.as_fd(), path, depth + 1)?;
                self.dress(&source, &target, &stat)?;
            } else {
                remove::at(to, name.to_bytes())?;
                self.other(from, to, name, &stat, path)?;
            }
            path.truncate(before);
        }
        Ok(())
    }

    fn make_folder(&self, source: &OwnedFd, to: BorrowedFd<'_>, name: &std::ffi::CStr) -> io::Result<OwnedFd> {
        let opaque = rustix::fs::fgetxattr(source, self.marks.opaque(), &mut [0; 1]).is_ok();
        let there = rustix::fs::statat(to, name, AtFlags::SYMLINK_NOFOLLOW);
        let is_folder = there.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
        if opaque || !is_folder {
            remove::at(to, name.to_bytes())?;
            rustix::fs::mkdirat(to, name, Mode::RWXU)?;
        }
        let target = rustix::fs::openat(to, name, FOLDER, Mode::empty())?;
        for name in xattr_names(&target)? {
            rustix::fs::fremovexattr(&target, name.as_slice())?; // The upper layer's alone count.
        }
        Ok(target)
    }

    fn other(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        name: &std::ffi::CStr,
        stat: &Stat,
        path: &[u8],
    ) -> io::Result<()> {
        if stat.st_nlink > 1 {
            if let Some(first) = self.linked.get(&stat.st_ino) {
                return Ok(rustix::fs::linkat(&self.root, first.as_slice(), to, name, AtFlags::empty())?);
            }
            if self.linked.len() < MAX_LINKED {
                self.linked.insert(stat.st_ino, path[1..].to_vec());
            }
        }
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                let source =
                    rustix::fs::openat(from, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let target = rustix::fs::openat(to, name, flags, Mode::RUSR | Mode::WUSR)?;
                content(&source, &target, u64::try_from(stat.st_size).unwrap_or(0))?;
                return self.dress(&source, &target, stat);
            }
            FileType::Symlink => {
                rustix::fs::symlinkat(rustix::fs::readlinkat(from, name, Vec::new())?, to, name)?;
            }
            FileType::Socket => return Ok(()), // Of a process that is not here.
            kind => rustix::fs::mknodat(to, name, kind, Mode::RUSR | Mode::WUSR, stat.st_rdev)?,
        }
        let (uid, gid) = self.owner(stat)?;
        rustix::fs::chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            rustix::fs::chmodat(to, name, Mode::from_raw_mode(stat.st_mode & 0o7777), AtFlags::empty())?;
        }
        Ok(rustix::fs::utimensat(to, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    fn dress(&self, source: &OwnedFd, target: &OwnedFd, stat: &Stat) -> io::Result<()> {
        let (uid, gid) = self.owner(stat)?;
        rustix::fs::fchown(target, Some(uid), Some(gid))?;
        rustix::fs::fchmod(target, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
        for name in xattr_names(source)? {
            if name.starts_with(b"trusted.") {
                continue;
            }
            let mut value = xattr(source, &name)?;
            if name == b"security.capability" && self.shift > 0 {
                value = rooted_capability(value, self.shift);
            }
            match rustix::fs::fsetxattr(target, name.as_slice(), &value, XattrFlags::empty()) {
                Err(Errno::NOTSUP) => {}
                other => other?,
            }
        }
        Ok(rustix::fs::futimens(target, &times(stat))?)
    }

    fn owner(&self, stat: &Stat) -> io::Result<(Uid, Gid)> {
        let shift = |id: u32| {
            let shifted = id.checked_add(self.shift).filter(|id| *id != u32::MAX);
            shifted.ok_or_else(|| io::Error::other(format!("the owner {id} is out of range of the id mapping")))
        };
        Ok((Uid::from_raw(shift(stat.st_uid)?), Gid::from_raw(shift(stat.st_gid)?)))
    }
}

/// File capabilities that hold in the user namespace whose root is `root`: version 3 of the format.
pub(super) fn rooted_capability(mut value: Vec<u8>, root: u32) -> Vec<u8> {
    if value.len() == 20 && value[3] == 2 {
        value[3] = 3;
        value.extend_from_slice(&root.to_le_bytes());
    }
    value
}

/// The other way.
pub(super) fn plain_capability(mut value: Vec<u8>) -> Vec<u8> {
    if value.len() == 24 && value[3] == 3 {
        value[3] = 2;
        value.truncate(20);
    }
    value
}

fn content(source: &OwnedFd, target: &OwnedFd, size: u64) -> io::Result<()> {
    if size == 0 || rustix::fs::ioctl_ficlone(target, source).is_ok() {
        return Ok(());
    }
    rustix::fs::ftruncate(target, size)?;
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(source, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => break, // A hole to the end.
            Err(Errno::INVAL) => at,
            other => other?,
        };
        let end = rustix::fs::seek(source, SeekFrom::Hole(start)).unwrap_or(size).min(size);
        range(source, target, start, end)?;
        at = end.max(start + 1);
    }
    Ok(())
}

fn range(source: &OwnedFd, target: &OwnedFd, start: u64, end: u64) -> io::Result<()> {
    let (mut from, mut to) = (start, start);
    while from < end {
        let left = usize::try_from(end - from).unwrap_or(usize::MAX);
        match rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), left) {
            Ok(0) => break,
            Ok(_) => {}
            Err(Errno::XDEV | Errno::NOSYS | Errno::INVAL | Errno::NOTSUP) => {
                return by_hand(source, target, from, end);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn by_hand(source: &OwnedFd, target: &OwnedFd, mut at: u64, end: u64) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    while at < end {
        let want = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
        let read = rustix::io::pread(source, &mut buffer[..want], at)?;
        if read == 0 {
            break;
        }
        let mut written = 0;
        while written < read {
            written += rustix::io::pwrite(target, &buffer[written..read], at + written as u64)?;
        }
        at += read as u64;
    }
    Ok(())
}

/// Names of a file's attributes, without overlayfs' own.
pub(super) fn xattr_names(fd: &OwnedFd) -> io::Result<Vec<Vec<u8>>> {
    let mut list = vec![0; 1024];
    let length = loop {
        match rustix::fs::flistxattr(fd, list.as_mut_slice()) {
            Ok(length) => break length,
            Err(Errno::RANGE) if list.len() < MAX_XATTR => list.resize(MAX_XATTR, 0),
            Err(Errno::NOTSUP) => break 0,
            Err(error) => return Err(error.into()),
        }
    };
    let names = list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let foreign = |name: &&[u8]| !name.starts_with(b"user.overlay.") && !name.starts_with(b"trusted.overlay.");
    Ok(names.filter(foreign).map(<[u8]>::to_vec).collect())
}

/// Value of an attribute.
pub(super) fn xattr(fd: &OwnedFd, name: &[u8]) -> io::Result<Vec<u8>> {
    let mut value = vec![0; 256];
    loop {
        match rustix::fs::fgetxattr(fd, name, value.as_mut_slice()) {
            Ok(length) => {
                value.truncate(length);
                return Ok(value);
            }
            Err(Errno::RANGE) if value.len() < MAX_XATTR => value.resize(MAX_XATTR, 0),
            Err(error) => return Err(error.into()),
        }
    }
}

fn times(stat: &Stat) -> Timestamps {
    let nanos = |nanos: u64| i64::try_from(nanos).unwrap_or(0);
    Timestamps {
        last_access: Timespec { tv_sec: stat.st_atime, tv_nsec: nanos(stat.st_atime_nsec) },
        last_modification: Timespec { tv_sec: stat.st_mtime, tv_nsec: nanos(stat.st_mtime_nsec) },
    }
}

/// What tells whether an entry was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    inode: u64,
    changed_s: i64,
    changed_ns: u64,
}

impl Mark {
    pub(super) fn of(stat: &Stat) -> Self {
        Self { inode: stat.st_ino, changed_s: stat.st_ctime, changed_ns: stat.st_ctime_nsec }
    }
}

/// The sorted names in a folder.
pub(super) fn names(folder: BorrowedFd<'_>) -> io::Result<Vec<std::ffi::CString>> {
    let mut names = Vec::new();
    for item in Dir::read_from(folder)? {
        let item = item?;
        if !matches!(item.file_name().to_bytes(), b"." | b"..") {
            names.push(item.file_name().to_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn write_index(root: &OwnedFd, path: &Path) -> io::Result<()> {
    let mut out = BufWriter::new(File::create(path)?);
    index_folder(root.as_fd(), &mut out, &mut Vec::new(), 0)?;
    out.into_inner().map_err(io::IntoInnerError::into_error)?;
    Ok(())
}

fn index_folder(folder: BorrowedFd<'_>, out: &mut impl Write, path: &mut Vec<u8>, depth: usize) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(io::Error::other(format!("folders are nested deeper than {MAX_DEPTH}")));
    }
    for name in names(folder)? {
        let stat = rustix::fs::statat(folder, &name, AtFlags::SYMLINK_NOFOLLOW)?;
        let before = path.len();
        path.push(b'/');
        path.extend_from_slice(name.to_bytes());
        let mark = Mark::of(&stat);
        let length = u32::try_from(path.len()).map_err(io::Error::other)?;
        out.write_all(&length.to_le_bytes())?;
        out.write_all(path)?;
        for number in [mark.inode, mark.changed_s.cast_unsigned(), mark.changed_ns] {
            out.write_all(&number.to_le_bytes())?;
        }
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            let below = rustix::fs::openat(folder, &name, FOLDER, Mode::empty())?;
            index_folder(below.as_fd(), out, path, depth + 1)?;
        }
        path.truncate(before);
    }
    Ok(())
}

/// Reads one record of the index; `None` at its end.
pub(super) fn read_index(input: &mut impl Read) -> io::Result<Option<(Vec<u8>, Mark)>> {
    let mut length = [0; 4];
    match input.read_exact(&mut length) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
    if length > 1 << 20 {
        return Err(io::Error::other("the index of the copy is damaged"));
    }
    let mut path = vec![0; length];
    input.read_exact(&mut path)?;
    let mut number = || -> io::Result<u64> {
        let mut bytes = [0; 8];
        input.read_exact(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    };
    let mark = Mark { inode: number()?, changed_s: number()?.cast_signed(), changed_ns: number()? };
    Ok(Some((path, mark)))
}
