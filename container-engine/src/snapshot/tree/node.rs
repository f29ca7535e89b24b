//! Single entries: files, links and devices, with owner, mode, attributes and times.

use std::os::fd::OwnedFd;

use rustix::{
    fs::{AtFlags, Gid, Mode, OFlags, Uid, XattrFlags},
    io::Errno,
};

use super::{
    Archive, Entry, Fault, FaultKind, Kind, MAX_PATH, SET_AFTERWARDS, Tree, UNIT, components, failed, fault, is_folder,
    mtime, set_mtime, times,
};

/// Zeros of this length and more, at such an offset, are a hole.
const HOLE: usize = 64 << 10;
/// Longest attribute, as the kernel has it.
const MAX_VALUE: usize = 64 << 10;
static ZEROS: [u8; HOLE] = [0; HOLE];

impl Tree {
    pub(super) fn file<R: std::io::BufRead>(
        &mut self,
        name: &[u8],
        entry: &Entry,
        archive: &mut Archive<R>,
    ) -> Result<(), Fault> {
        let fd = self.make_file(name, entry.mode)?;
        self.content(&fd, entry, archive)?;
        self.dress(&fd, entry)?;
        set_mtime(&fd, mtime(entry))
    }

    /// A new and empty file; whatever had the name makes way.
    pub(super) fn make_file(&mut self, name: &[u8], mode: u32) -> Result<OwnedFd, Fault> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let bits = Mode::from_raw_mode(mode & 0o777);
        let mut made = rustix::fs::openat(&self.top().fd, name, flags, bits);
        if matches!(made, Err(Errno::EXIST)) {
            self.remove(name)?;
            made = rustix::fs::openat(&self.top().fd, name, flags, bits);
        }
        let fd = made.map_err(failed("make the file"))?;
        self.count(0)?;
        Ok(fd)
    }

    /// Owner, mode and attributes of a new file: each changed only where the kernel has not made it so already.
    fn dress(&mut self, fd: &OwnedFd, entry: &Entry) -> Result<(), Fault> {
        if (entry.uid, entry.gid) != (0, 0) || self.top().setgid {
            own(fd, entry)?;
        }
        if entry.mode & SET_AFTERWARDS != 0 {
            mode(fd, entry)?; // After the owner, whose change takes setuid away.
        }
        xattrs(fd, entry)
    }

    fn content<R: std::io::BufRead>(
        &mut self,
        fd: &OwnedFd,
        entry: &Entry,
        archive: &mut Archive<R>,
    ) -> Result<(), Fault> {
        let whole = [(0, entry.size)];
        let pieces = entry.pieces.as_deref().unwrap_or(&whole);
        let (mut end, mut written) = (0, 0);
        for (offset, length) in pieces {
            let (mut at, mut left) = (*offset, *length);
            while left > 0 {
                let bytes = archive.data()?;
                let want = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len()).min(HOLE);
                if want == 0 {
                    return Err(fault(FaultKind::Corrupt, "the file has less data than it says"));
                }
                let bytes = &bytes[..want];
                if want < HOLE || *bytes != ZEROS[..want] {
                    self.spend(want as u64)?;
                    write_at(fd, bytes, at)?;
                    written += want as u64;
                    end = at + want as u64;
                }
                archive.consume(want);
                (at, left) = (at + want as u64, left - want as u64);
            }
        }
        self.spend(written.wrapping_neg() % UNIT)?;
        if end < entry.size {
            rustix::fs::ftruncate(fd, entry.size).map_err(failed("give the file its size"))?;
        }
        Ok(())
    }

    pub(super) fn symbolic_link(&mut self, name: &[u8], entry: &Entry) -> Result<(), Fault> {
        let target = entry.link.as_slice();
        if target.is_empty() || target.len() >= MAX_PATH || target.contains(&0) {
            return Err(fault(FaultKind::Corrupt, "a symbolic link to an empty or overlong name"));
        }
        let mut made = rustix::fs::symlinkat(target, &self.top().fd, name);
        if made == Err(Errno::EXIST) {
            self.remove(name)?;
            made = rustix::fs::symlinkat(target, &self.top().fd, name);
        }
        made.map_err(failed("make the link"))?;
        self.count(if target.len() < 60 { 0 } else { UNIT })?; // Short ones lie in the inode.
        self.dress_at(name, entry)
    }

    pub(super) fn node(&mut self, name: &[u8], entry: &Entry) -> Result<(), Fault> {
        let kind = match entry.kind {
            Kind::Character => rustix::fs::FileType::CharacterDevice,
            Kind::Block => rustix::fs::FileType::BlockDevice,
            _ => rustix::fs::FileType::Fifo,
        };
        let device = rustix::fs::makedev(entry.device.0, entry.device.1);
        let bits = Mode::from_raw_mode(entry.mode & 0o777);
        let mut made = rustix::fs::mknodat(&self.top().fd, name, kind, bits, device);
        if made == Err(Errno::EXIST) {
            self.remove(name)?;
            made = rustix::fs::mknodat(&self.top().fd, name, kind, bits, device);
        }
        made.map_err(failed("make the device"))?;
        self.count(0)?;
        self.dress_at(name, entry)
    }

    /// Owner, mode and time of what has no descriptor. It was made a moment ago and nobody else is here.
    fn dress_at(&mut self, name: &[u8], entry: &Entry) -> Result<(), Fault> {
        let top = &self.top().fd;
        let (uid, gid) = ids(entry)?;
        rustix::fs::chownat(top, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(failed("set its owner"))?;
        if entry.kind != Kind::Symbolic && entry.mode & SET_AFTERWARDS != 0 {
            let bits = Mode::from_raw_mode(entry.mode & 0o7777);
            rustix::fs::chmodat(top, name, bits, AtFlags::empty()).map_err(failed("set its mode"))?;
        }
        rustix::fs::utimensat(top, name, &times(mtime(entry)), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(failed("set its time"))
    }

    pub(super) fn hard_link(&mut self, name: &[u8], entry: &Entry) -> Result<(), Fault> {
        let target = components(&entry.link)?;
        let Some((file, folder)) = target.split_last() else {
            return Err(fault(FaultKind::Corrupt, "a hard link to the root"));
        };
        let found = self.folder_of(folder);
        let linked = match &found {
            Ok(fd) => rustix::fs::linkat(fd, *file, &self.top().fd, name, AtFlags::empty()),
            Err(error) => Err(*error),
        };
        let linked = match (linked, &found) {
            (Err(Errno::EXIST), Ok(fd)) => {
                let (old, new) = (self.stat(name)?, rustix::fs::statat(fd, *file, AtFlags::SYMLINK_NOFOLLOW));
                if new.is_ok_and(|new| (new.st_dev, new.st_ino) == (old.st_dev, old.st_ino)) {
                    return Ok(()); // The same link once more.
                }
                if !is_folder(&old) || rustix::fs::statat(fd, *file, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
                    self.remove(name)?;
                }
                rustix::fs::linkat(fd, *file, &self.top().fd, name, AtFlags::empty())
            }
            (other, _) => other,
        };
        match linked {
            Ok(()) => self.count(0),
            Err(Errno::NOENT | Errno::NOTDIR) => self.copy_from_below(name, &target),
            Err(Errno::PERM) => Err(fault(FaultKind::Corrupt, "a hard link to a folder")),
            Err(error) => Err(failed("make the hard link")(error)),
        }
    }

    /// The folder a link's target is in, within the root.
    fn folder_of(&self, path: &[&[u8]]) -> Result<OwnedFd, Errno> {
        use rustix::fs::ResolveFlags;
        let here = self.levels[1..].iter().map(|level| level.name.as_slice()).eq(path.iter().copied());
        if here {
            return rustix::io::fcntl_dupfd_cloexec(&self.top().fd, 0);
        }
        let path = if path.is_empty() { b".".to_vec() } else { path.join(&b'/') };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(&self.levels[0].fd, path, flags, Mode::empty(), resolve)
    }
}

pub(super) fn write_at(fd: &OwnedFd, mut bytes: &[u8], mut at: u64) -> Result<(), Fault> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(fd, bytes, at) {
            Ok(0) => return Err(failed("write the file")(Errno::IO)),
            Ok(written) => (bytes, at) = (&bytes[written..], at + written as u64),
            Err(Errno::INTR) => {}
            Err(Errno::FBIG) => return Err(fault(FaultKind::Quota, "the file is larger than the quota")),
            Err(error) => return Err(failed("write the file")(error)),
        }
    }
    Ok(())
}

fn ids(entry: &Entry) -> Result<(Uid, Gid), Fault> {
    let id = |id: u64| u32::try_from(id).ok().filter(|id| *id != u32::MAX);
    match (id(entry.uid), id(entry.gid)) {
        (Some(uid), Some(gid)) => Ok((Uid::from_raw(uid), Gid::from_raw(gid))),
        _ => Err(fault(FaultKind::Limit, format!("the owner {}:{} is out of range", entry.uid, entry.gid))),
    }
}

pub(super) fn own(fd: &OwnedFd, entry: &Entry) -> Result<(), Fault> {
    let (uid, gid) = ids(entry)?;
    rustix::fs::fchown(fd, Some(uid), Some(gid)).map_err(failed("set its owner"))
}

pub(super) fn mode(fd: &OwnedFd, entry: &Entry) -> Result<(), Fault> {
    rustix::fs::fchmod(fd, Mode::from_raw_mode(entry.mode & 0o7777)).map_err(failed("set its mode"))
}

/// Attributes that belong to a file anywhere. Not those of overlayfs, which would change what is hidden, nor those of
/// this machine's security modules.
pub(super) fn xattrs(fd: &OwnedFd, entry: &Entry) -> Result<(), Fault> {
    for (name, value) in &entry.xattrs {
        let needed = name == b"security.capability";
        let wanted = needed || name.starts_with(b"system.posix_acl_");
        let user = name.starts_with(b"user.") && !name.starts_with(b"user.overlay.");
        if !wanted && !user {
            continue;
        }
        if value.len() > MAX_VALUE || name.len() > 255 || name.contains(&0) {
            return Err(fault(FaultKind::Limit, "an extended attribute over 64 KiB, or with an overlong name"));
        }
        match rustix::fs::fsetxattr(fd, name.as_slice(), value, XattrFlags::empty()) {
            // The file system has none of these, and programs do without; capabilities they can't do without.
            Err(Errno::NOTSUP) if !needed => {}
            other => other.map_err(failed("set an extended attribute"))?,
        }
    }
    Ok(())
}
