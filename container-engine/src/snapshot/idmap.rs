//! Layers shown with other owners: clones of their mounts with the mapping of a user namespace.

use std::{io, os::fd::OwnedFd, path::Path};

use rustix::{
    fs::CWD,
    mount::{MoveMountFlags, OpenTreeFlags},
};

use super::IdMap;
use crate::sys::{attr, userns};

/// A mapping that mounts can be given.
#[derive(Debug)]
pub struct Mapping(OwnedFd);

impl Mapping {
    /// Makes it.
    pub fn new(map: IdMap) -> io::Result<Self> {
        userns::with_mapping(map.host, map.size).map(Self)
    }

    /// Mounts the folder `from` at `to` through the mapping, read-only. Fails where the kernel (before 5.12, for layers
    /// of overlayfs 5.19) or the file system has no such mounts.
    pub fn mount(&self, from: &Path, to: &Path) -> io::Result<()> {
        use std::os::fd::AsFd;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = rustix::mount::open_tree(CWD, from, flags)?;
        let set = attr::MOUNT_ATTR_IDMAP | attr::MOUNT_ATTR_RDONLY;
        let attributes = attr::Attributes { set, user_namespace: Some(self.0.as_fd()), ..Default::default() };
        attr::set(&tree, attributes, false)?;
        rustix::mount::move_mount(&tree, "", CWD, to, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        Ok(())
    }
}
