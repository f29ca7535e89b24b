//! Setting up one volume on the host, its objects being at hand. Blocking.
//!
//! Always true: what is ready stays as it is, so a call after a crash or a reboot does what was left undone.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::Pod;
use rustix::mount::MountFlags;

use super::{
    Problem, Source, atomic,
    collect::{Planned, Setup, group_of, on_root_mismatch},
    empty_dir, host_path, mount, nfs,
    payload::MAX_BYTES,
    place::{self, PodDir},
    tree,
};

/// Sets up and says what came of it. `address` is that of an NFS server; `nested` are folders that other mounts of the pod's
/// containers need inside.
pub fn set_up(
    dir: &PodDir,
    pod: &Pod,
    planned: &Planned,
    address: Option<IpAddr>,
    nested: &[String],
) -> Result<Source, Problem> {
    let at = |kind| dir.volume(kind, &planned.name);
    let group = group_of(pod);
    let is_path = |path: PathBuf| Source::Path { path, create: false };
    match &planned.setup {
        Setup::Files { kind, payload, in_memory } => {
            let path = at(kind)?;
            make(&path)?;
            if *in_memory && !mount::is_mounted(&path)? {
                // Old and new files at once, and their folders.
                mount::tmpfs(&path, Some(2 * MAX_BYTES as u64 + (4 << 20)), "mode=1777")?;
            }
            atomic::write(&path, payload, group)?;
            nested.iter().try_for_each(|inside| make_nested(&path, inside))?;
            Ok(is_path(path))
        }
        Setup::Empty(medium) => {
            let path = at(place::EMPTY_DIR)?;
            empty_dir::set_up(&path, medium, group)?;
            Ok(is_path(path))
        }
        Setup::Host { path, kind } => {
            let path = host_path::check(path, kind)?;
            Ok(Source::Path { path, create: kind.is_empty() })
        }
        Setup::Nfs(export) => {
            let path = at(place::NFS)?;
            make(&path)?;
            let address =
                address.ok_or_else(|| Problem::Missing("the NFS server's address is not known".to_owned()))?;
            nfs::set_up(&path, export, address)?;
            Ok(is_path(path))
        }
        Setup::Local { path: from, kind, options } => {
            let path = at(place::LOCAL)?;
            let group = group.filter(|_| !planned.read_only).map(|group| (group, on_root_mismatch(pod)));
            let local = Local { from, kind: kind.as_deref(), options, read_only: planned.read_only, group };
            local.set_up(&path)?;
            Ok(is_path(path))
        }
        Setup::Device(path) => Ok(Source::Device(path.clone())),
        Setup::Image(reference) => Ok(Source::Image { reference: reference.clone(), path: at(place::IMAGE)? }),
    }
}

fn make(path: &Path) -> Result<(), Problem> {
    if mount::is_mounted(path)? {
        return Ok(());
    }
    board::durable::create_dir_all(path, 0o755).map_err(Problem::io("make", path))
}

/// A folder for another mount inside a volume that containers cannot write to.
fn make_nested(volume: &Path, inside: &str) -> Result<(), Problem> {
    let mut path = volume.to_owned();
    for part in place::inside(inside)? {
        path.push(part);
        match std::fs::create_dir(&path) {
            // A file or a link of the volume's own: the mount goes there.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                if !std::fs::symlink_metadata(&path).is_ok_and(|it| it.is_dir()) {
                    return Ok(());
                }
            }
            other => other.map_err(Problem::io("make", &path))?,
        }
    }
    Ok(())
}

/// A folder or a block device of this node.
struct Local<'a> {
    from: &'a Path,
    kind: Option<&'a str>,
    options: &'a [String],
    read_only: bool,
    /// And whether what is the group's already is left alone.
    group: Option<(u32, bool)>,
}

impl Local<'_> {
    /// A folder is bound, a block device mounted; handed to the group before containers see it, and once.
    fn set_up(&self, target: &Path) -> Result<(), Problem> {
        use std::os::unix::fs::FileTypeExt;

        make(target)?;
        if mount::is_mounted(target)? {
            return Ok(());
        }
        let there = std::fs::metadata(self.from).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Problem::Missing(format!("path {:?} does not exist", self.from.display())),
            _ => Problem::io("look at", self.from)(error),
        })?;
        if there.is_dir() {
            self.hand_over(&mount::real(self.from))?;
            return mount::bind(&mount::open(self.from)?, target, false);
        }
        if !there.file_type().is_block_device() {
            let message = format!("{:?} is neither a folder nor a block device", self.from.display());
            return Err(Problem::Invalid(message));
        }
        self.mount(target)?;
        self.hand_over(target).inspect_err(|_| {
            // The first error is the one to report; mounted, it would seem ready.
            let _ = mount::unmount(target);
        })
    }

    fn hand_over(&self, path: &Path) -> Result<(), Problem> {
        match self.group {
            Some((group, true)) if tree::is_groups(path, group, false) => Ok(()),
            Some((group, _)) => tree::set_group(path, group, false),
            None => Ok(()),
        }
    }

    fn mount(&self, target: &Path) -> Result<(), Problem> {
        let flags = if self.read_only { MountFlags::RDONLY } else { MountFlags::empty() };
        let kind = self.kind.filter(|kind| !kind.is_empty()).unwrap_or("ext4");
        let from = self.from.to_string_lossy();
        mount::mount(&from, target, kind, flags, &self.options.join(",")).map_err(|error| match error {
            Problem::Io { source, .. } if source.kind() == std::io::ErrorKind::InvalidInput => Problem::Missing(
                format!("{from:?} holds no {kind} file system, and none is made here: format it, or set fsType"),
            ),
            error => error,
        })
    }
}
