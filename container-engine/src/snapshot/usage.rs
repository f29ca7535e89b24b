//! What a tree takes on disk.

use std::{
    collections::HashSet,
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags},
    io::Errno,
};
use serde::{Deserialize, Serialize};

/// Files with several names that are told apart; more are counted for each name.
const MAX_LINKED: usize = 1 << 18;
/// Deeper folders are not looked into.
const MAX_DEPTH: usize = 512;

/// Bytes and inodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// On disk.
    pub bytes: u64,
    /// Files, folders and the like, the root not counted.
    pub inodes: u64,
}

/// Of the tree below `path`; what goes away meanwhile is passed over. Blocking.
pub fn of(path: &Path) -> io::Result<Usage> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut usage = Usage::default();
    let mut linked = HashSet::new();
    let root = rustix::fs::open(path, flags, Mode::empty())?;
    let mut stack: Vec<(OwnedFd, Dir)> = vec![with_items(root)?];
    while let Some((folder, items)) = stack.last_mut() {
        let Some(item) = items.next() else {
            stack.pop();
            continue;
        };
        let item = item?;
        if matches!(item.file_name().to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = match rustix::fs::statat(folder.as_fd(), item.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => continue,
            other => other?,
        };
        let is_folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if !is_folder && stat.st_nlink > 1 && linked.len() < MAX_LINKED && !linked.insert((stat.st_dev, stat.st_ino)) {
            continue;
        }
        usage.inodes += 1;
        usage.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        if is_folder {
            match rustix::fs::openat(folder.as_fd(), item.file_name(), flags, Mode::empty()) {
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                other => {
                    let next = with_items(other?)?;
                    if stack.len() < MAX_DEPTH {
                        stack.push(next);
                    }
                }
            }
        }
    }
    Ok(usage)
}

fn with_items(folder: OwnedFd) -> io::Result<(OwnedFd, Dir)> {
    let items = Dir::read_from(&folder)?;
    Ok((folder, items))
}
