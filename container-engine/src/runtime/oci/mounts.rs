//! Mounts that libcontainer does not make, or makes otherwise than runc: id-mapped ones, `tmpcopyup`, propagation of bind
//! mounts, read-only control groups, masked and read-only paths, the read-only root.
//!
//! The plan is made on the host, where sources can be opened (and mapped, and made read-only) as detached trees; it is
//! carried out in the container, after its root has become `/` and before it gives up its privileges. What lies below
//! such a mount is made here too, so that the order of the configuration holds.

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use libcontainer::rootfs::utils::parse_mount;
use oci_spec::runtime::{LinuxIdMapping, Mount, Spec};
use rustix::{
    fs::{CWD, Mode, OFlags},
    mount::{MountFlags, MountPropagationFlags, OpenTreeFlags},
};

use super::{Failure, init};
use crate::sys::{attr, process};

/// What is done inside.
#[derive(Debug, Default)]
pub(super) struct Late {
    mounts: Vec<LateMount>,
    /// `(destination, flags)`, in the configuration's order.
    propagation: Vec<(PathBuf, MountPropagationFlags)>,
    /// Mount trees that become read-only as a whole.
    read_only_trees: Vec<PathBuf>,
    read_only_paths: Vec<String>,
    masked_paths: Vec<String>,
    read_only_root: bool,
}

#[derive(Debug)]
struct LateMount {
    destination: PathBuf,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// A tree that was opened on the host; whether it is a folder.
    Tree(OwnedFd, bool),
    /// A file system.
    New { kind: String, source: String, flags: MountFlags, data: String, copy_up: bool },
}

/// Takes out of `spec` what is done here.
pub(super) fn plan(spec: &mut Spec, user_namespace: Option<&OwnedFd>) -> Result<Late, Failure> {
    let mut late = Late::default();
    if let Some(root) = spec.root_mut() {
        late.read_only_root = root.readonly() == Some(true);
        root.set_readonly(Some(false));
    }
    if let Some(linux) = spec.linux_mut() {
        late.read_only_paths = linux.readonly_paths().clone().unwrap_or_default();
        late.masked_paths = linux.masked_paths().clone().unwrap_or_default();
        linux.set_readonly_paths(None).set_masked_paths(None);
    }
    let mut kept = Vec::new();
    for mount in spec.mounts().iter().flatten() {
        let options = mount.options().as_deref().unwrap_or_default();
        let has = |name: &str| options.iter().any(|option| option == name);
        for option in options {
            if let Some(flags) = propagation(option) {
                late.propagation.push((mount.destination().clone(), flags));
            }
        }
        if matches!(mount.typ().as_deref(), Some("cgroup" | "cgroup2")) && has("ro") {
            late.read_only_trees.push(mount.destination().clone());
        }
        let mapped = has("idmap") || has("ridmap") || mount.uid_mappings().is_some() || mount.gid_mappings().is_some();
        let below = late.mounts.iter().any(|earlier| mount.destination().starts_with(&earlier.destination));
        if mapped || below || has("tmpcopyup") {
            let kind = prepare(mount, mapped, user_namespace)?;
            late.mounts.push(LateMount { destination: mount.destination().clone(), kind });
        } else {
            let mut mount = mount.clone();
            let rest = options.iter().filter(|option| propagation(option).is_none()).cloned().collect();
            mount.set_options(Some(rest));
            kept.push(mount);
        }
    }
    spec.set_mounts(Some(kept));
    Ok(late)
}

fn propagation(option: &str) -> Option<MountPropagationFlags> {
    let (kind, deep) = match option.strip_prefix('r') {
        Some(kind) => (kind, MountPropagationFlags::REC),
        None => (option, MountPropagationFlags::empty()),
    };
    Some(
        deep | match kind {
            "private" => MountPropagationFlags::PRIVATE,
            "shared" => MountPropagationFlags::SHARED,
            "slave" => MountPropagationFlags::DOWNSTREAM,
            "unbindable" => MountPropagationFlags::UNBINDABLE,
            _ => return None,
        },
    )
}

fn prepare(mount: &Mount, mapped: bool, user_namespace: Option<&OwnedFd>) -> Result<Kind, Failure> {
    let destination = mount.destination();
    let told =
        |error: io::Error| Failure::new(format!("cannot prepare the mount on {}: {error}", destination.display()));
    let options = mount.options().as_deref().unwrap_or_default();
    let has = |name: &str| options.iter().any(|option| option == name);
    let bind = mount.typ().as_deref() == Some("bind") || has("bind") || has("rbind");
    let parsed = parse_mount(mount).map_err(|error| Failure::new(error.to_string()))?;
    let source = mount.source().as_ref().map_or_else(String::new, |path| path.display().to_string());
    if !bind {
        if mapped {
            return Err(Failure::new(format!(
                "the mount on {} has id mappings, which only bind mounts may have",
                destination.display()
            )));
        }
        let data: Vec<_> = parsed.data.iter().filter(|option| *option != "tmpcopyup").map(String::as_str).collect();
        let flags = MountFlags::from_bits_truncate(u32::try_from(parsed.flags.bits()).unwrap_or(0));
        let kind = mount.typ().clone().unwrap_or_default();
        return Ok(Kind::New { kind, source, flags, data: data.join(","), copy_up: has("tmpcopyup") });
    }
    let recursive = has("rbind");
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let tree = rustix::mount::open_tree(CWD, &source, flags).map_err(|error| {
        Failure::new(format!("cannot open {source}, the source of the mount on {}: {error}", destination.display()))
    })?;
    let mut set = 0;
    for (flag, bit) in [
        ("ro", attr::MOUNT_ATTR_RDONLY),
        ("nosuid", attr::MOUNT_ATTR_NOSUID),
        ("nodev", attr::MOUNT_ATTR_NODEV),
        ("noexec", libc::MOUNT_ATTR_NOEXEC),
    ] {
        if has(flag) {
            set |= bit;
        }
    }
    attr::set(&tree, attr::Attributes { set, ..Default::default() }, false).map_err(told)?;
    if let Some(deep) = &parsed.rec_attr {
        let attributes = attr::Attributes { set: deep.attr_set, clear: deep.attr_clr, ..Default::default() };
        attr::set(&tree, attributes, true).map_err(told)?;
    }
    if mapped {
        let own = match (mount.uid_mappings(), mount.gid_mappings()) {
            (Some(uids), Some(gids)) if !uids.is_empty() && !gids.is_empty() => {
                Some(process::user_namespace(&lines(uids), &lines(gids)).map_err(told)?)
            }
            (None, None) => None,
            _ => {
                return Err(Failure::new(format!(
                    "the mount on {} needs uidMappings and gidMappings",
                    destination.display()
                )));
            }
        };
        let namespace = own.as_ref().or(user_namespace).ok_or_else(|| {
            Failure::new(format!(
                "the mount on {} is id-mapped, without mappings and without a user namespace",
                destination.display()
            ))
        })?;
        let attributes = attr::Attributes {
            set: attr::MOUNT_ATTR_IDMAP,
            user_namespace: Some(namespace.as_fd()),
            ..Default::default()
        };
        attr::set(&tree, attributes, recursive && has("ridmap")).map_err(|error| {
            Failure::new(format!(
                "cannot map the ids of {source} for the mount on {}: {error} (can its file system be id-mapped?)",
                destination.display()
            ))
        })?;
    }
    let folder = fs::metadata(&source).map_err(told)?.is_dir();
    Ok(Kind::Tree(tree, folder))
}

/// Mappings as `/proc/PID/uid_map` wants them.
pub(super) fn lines(mappings: &[LinuxIdMapping]) -> String {
    mappings.iter().map(|map| format!("{} {} {}\n", map.container_id(), map.host_id(), map.size())).collect()
}

/// Inside the container.
pub(super) fn make(late: &Late, cwd: &Path) -> Result<(), String> {
    for mount in &late.mounts {
        make_one(mount).map_err(|error| format!("cannot mount {}: {error}", mount.destination.display()))?;
    }
    for (path, flags) in &late.propagation {
        rustix::mount::mount_change(path, *flags)
            .map_err(|error| format!("cannot set the propagation of {}: {error}", path.display()))?;
    }
    for path in &late.read_only_trees {
        read_only(path, true).map_err(|error| format!("cannot make {} read-only: {error}", path.display()))?;
    }
    // A working directory that is missing is made, as root's, like runc does.
    if !cwd.as_os_str().is_empty() && !cwd.exists() {
        let _ = fs::create_dir_all(cwd);
    }
    if late.read_only_root {
        read_only(Path::new("/"), false).map_err(|error| format!("cannot make the root read-only: {error}"))?;
    }
    for path in &late.read_only_paths {
        bind_read_only(Path::new(path)).map_err(|error| format!("cannot make {path} read-only: {error}"))?;
    }
    mask(&late.masked_paths)
}

fn make_one(mount: &LateMount) -> io::Result<()> {
    let destination = &mount.destination;
    match &mount.kind {
        Kind::Tree(tree, folder) => {
            if *folder {
                fs::create_dir_all(destination)?;
            } else if fs::symlink_metadata(destination).is_err() {
                destination.parent().map_or(Ok(()), fs::create_dir_all)?;
                fs::File::create(destination)?;
            }
            Ok(init::attach(tree, init::open_path(destination)?)?)
        }
        Kind::New { kind, source, flags, data, copy_up } => {
            fs::create_dir_all(destination)?;
            let before =
                rustix::fs::open(destination, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
            // Read-only only after copying.
            let first = if *copy_up { *flags - MountFlags::RDONLY } else { *flags };
            let data = std::ffi::CString::new(data.as_str())?;
            rustix::mount::mount(source.as_str(), destination, kind.as_str(), first, Some(data.as_c_str()))?;
            if *copy_up {
                copy(&before, destination)?;
                if flags.contains(MountFlags::RDONLY) {
                    read_only(destination, false)?;
                }
            }
            Ok(())
        }
    }
}

/// What the folder held before a tmpfs covered it.
fn copy(from: &OwnedFd, to: &Path) -> io::Result<()> {
    use rustix::fs::{AtFlags, FileType};
    let owner = |path: &Path, stat: &rustix::fs::Stat| {
        let (uid, gid) = (rustix::fs::Uid::from_raw(stat.st_uid), rustix::fs::Gid::from_raw(stat.st_gid));
        rustix::fs::chownat(CWD, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
    };
    let stat = rustix::fs::fstat(from)?;
    owner(to, &stat)?;
    rustix::fs::chmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    for entry in rustix::fs::Dir::read_from(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let target = to.join(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(name.to_bytes()));
        let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                fs::create_dir(&target)?;
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                copy(&rustix::fs::openat(from, name, flags, Mode::empty())?, &target)?;
            }
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let mut source = fs::File::from(rustix::fs::openat(from, name, flags, Mode::empty())?);
                io::copy(&mut source, &mut fs::File::create(&target)?)?;
                owner(&target, &stat)?;
                rustix::fs::chmod(&target, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
            }
            FileType::Symlink => {
                rustix::fs::symlink(rustix::fs::readlinkat(from, name, Vec::new())?, &target)?;
                owner(&target, &stat)?;
            }
            kind => {
                rustix::fs::mknodat(CWD, &target, kind, Mode::from_raw_mode(stat.st_mode & 0o7777), stat.st_rdev)?;
                owner(&target, &stat)?;
            }
        }
    }
    Ok(())
}

fn read_only(path: &Path, recursive: bool) -> io::Result<()> {
    let attributes = attr::Attributes { set: attr::MOUNT_ATTR_RDONLY, ..Default::default() };
    attr::set(init::open_path(path)?, attributes, recursive)
}

/// A path that is not there needs no protection.
fn bind_read_only(path: &Path) -> io::Result<()> {
    let target = match init::open_path(path) {
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(()),
        target => target?,
    };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::AT_EMPTY_PATH | OpenTreeFlags::AT_RECURSIVE;
    let tree = rustix::mount::open_tree(&target, "", flags | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    // Recursive, since what is mounted below would stay writable else.
    attr::set(&tree, attr::Attributes { set: attr::MOUNT_ATTR_RDONLY, ..Default::default() }, true)?;
    Ok(init::attach(tree, target)?)
}

/// Files get `/dev/null` over them, folders an empty read-only file system.
fn mask(paths: &[String]) -> Result<(), String> {
    if paths.is_empty() {
        return Ok(());
    }
    let null = init::open_path(Path::new("/dev/null"))
        .map_err(|error| format!("cannot open /dev/null to mask with: {error}"))?;
    let stat = rustix::fs::fstat(&null).map_err(|error| format!("cannot look at /dev/null: {error}"))?;
    let device = rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::CharacterDevice;
    // A container that could put something else here would decide what hides its secrets.
    if !device || stat.st_rdev != rustix::fs::makedev(1, 3) {
        return Err("/dev/null in the container is not the null device; refusing to mask with it".to_owned());
    }
    for path in paths {
        let masked = || -> rustix::io::Result<()> {
            let target = match init::open_path(Path::new(path)) {
                Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(()),
                target => target?,
            };
            let folder = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&target)?.st_mode)
                == rustix::fs::FileType::Directory;
            if folder {
                return rustix::mount::mount(
                    "tmpfs",
                    path,
                    "tmpfs",
                    MountFlags::RDONLY,
                    Some(c"nr_blocks=1,nr_inodes=1"),
                );
            }
            let flags =
                OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::AT_EMPTY_PATH | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            init::attach(rustix::mount::open_tree(&null, "", flags)?, target)
        };
        masked().map_err(|error| format!("cannot mask {path}: {error}"))?;
    }
    Ok(())
}
