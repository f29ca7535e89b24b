//! Hard links to files of lower layers: such a file is copied, with all that belongs to it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::{
    fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Uid, XattrFlags},
    io::Errno,
};

use super::{Fault, FaultKind, Tree, failed, fault, is_whiteout, node, set_mtime};
use crate::snapshot::Marks;

impl Tree {
    pub(super) fn copy_from_below(&mut self, name: &[u8], target: &[&[u8]]) -> Result<(), Fault> {
        if self.parents.is_empty() {
            let message = "a hard link to a file that is not in this layer; unpack it again with the layers below it";
            return Err(fault(FaultKind::NeedsParents, message));
        }
        let parents = std::mem::take(&mut self.parents);
        let found = parents.iter().find_map(|parent| look_up(parent.as_fd(), target, self.marks).transpose());
        self.parents = parents;
        match found {
            Some(Ok(Some(file))) => self.copy(name, &file),
            Some(Err(error)) => Err(failed("find the target of a hard link below")(error)),
            _ => Err(fault(FaultKind::Corrupt, "a hard link to a file that is neither in this layer nor below it")),
        }
    }

    fn copy(&mut self, name: &[u8], source: &OwnedFd) -> Result<(), Fault> {
        let stat = rustix::fs::fstat(source).map_err(failed("read a file below"))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            let message = "a hard link to a file of a lower layer that is no regular file";
            return Err(fault(FaultKind::Unsupported, message));
        }
        let target = self.make_file(name, stat.st_mode)?;
        let mut buffer = vec![0; 64 << 10];
        let mut at = 0;
        loop {
            let read = rustix::io::pread(source, &mut buffer, at).map_err(failed("read a file below"))?;
            if read == 0 {
                break;
            }
            self.spend(read as u64)?;
            node::write_at(&target, &buffer[..read], at)?;
            at += read as u64;
        }
        let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        rustix::fs::fchown(&target, Some(uid), Some(gid)).map_err(failed("set its owner"))?;
        rustix::fs::fchmod(&target, Mode::from_raw_mode(stat.st_mode & 0o7777)).map_err(failed("set its mode"))?;
        let (name, mut value) = ("security.capability", [0; 64]);
        if let Ok(length) = rustix::fs::fgetxattr(source, name, &mut value) {
            let value = &value[..length.min(value.len())];
            rustix::fs::fsetxattr(&target, name, value, XattrFlags::empty()).map_err(failed("set an attribute"))?;
        }
        let tv_nsec = i64::try_from(stat.st_mtime_nsec).unwrap_or(0);
        set_mtime(&target, Timespec { tv_sec: stat.st_mtime, tv_nsec })?;
        self.copied = true;
        Ok(())
    }
}

/// The file in one layer. `Ok(Some(None))`: it is hidden there, so nobody need look further down.
#[allow(clippy::option_option)] // Three answers: found, hidden, ask below.
fn look_up(layer: BorrowedFd<'_>, path: &[&[u8]], marks: Marks) -> Result<Option<Option<OwnedFd>>, Errno> {
    let mut hidden_below = false;
    let mut folder = rustix::io::fcntl_dupfd_cloexec(layer, 0)?;
    for (at, name) in path.iter().enumerate() {
        let last = at + 1 == path.len();
        let stat = match rustix::fs::statat(&folder, *name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(hidden_below.then_some(None)),
            Err(error) => return Err(error),
        };
        if is_whiteout(&stat) {
            return Ok(Some(None));
        }
        let kind = FileType::from_raw_mode(stat.st_mode);
        let flags = match (last, kind) {
            (true, FileType::RegularFile) => OFlags::RDONLY | OFlags::NOFOLLOW,
            (true, _) => OFlags::PATH | OFlags::NOFOLLOW,
            (false, FileType::Directory) => OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW,
            (false, _) => return Ok(Some(None)),
        };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
        let resolve = if flags.contains(OFlags::PATH) { ResolveFlags::IN_ROOT } else { resolve };
        folder = rustix::fs::openat2(&folder, *name, flags | OFlags::CLOEXEC, Mode::empty(), resolve)?;
        if !last {
            let mut value = [0; 1];
            hidden_below |= rustix::fs::fgetxattr(&folder, marks.opaque(), &mut value).is_ok();
        }
    }
    Ok(Some(Some(folder)))
}
