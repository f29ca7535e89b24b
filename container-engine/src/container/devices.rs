//! What has to be looked up on the board: device nodes, block devices of I/O limits, another container's `/dev/shm`.

use std::{
    io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Mode, OFlags},
    mount::{MoveMountFlags, OpenTreeFlags},
    thread::LinkNameSpaceType,
};

use super::{ContainerSpec, Resources, StartError, oci::Node};

/// Deepest folder below `/dev` that is looked through.
const MAX_DEPTH: u32 = 4;
/// Most devices given to one container.
const MAX_DEVICES: usize = 2048;
/// Below `/dev`, and each container's own.
const OWN: [&str; 11] = ["pts", "shm", "mqueue", "console", "fd", "core", "stdin", "stdout", "stderr", "ptmx", ".udev"];

/// The devices that the specification asks for; with privileges all of the board. Blocking.
pub(super) fn of(spec: &ContainerSpec) -> Result<Vec<Node>, StartError> {
    let mut nodes = Vec::new();
    if spec.security.privileged {
        below(Path::new("/dev"), "/dev", "rwm", 0, &mut nodes);
    }
    for device in &spec.devices {
        let target = if device.target.is_empty() { device.source.display().to_string() } else { device.target.clone() };
        let access = if device.access.is_empty() { "rwm" } else { &device.access };
        let missing = || StartError::NoDevice(device.source.clone());
        if !access.bytes().all(|b| matches!(b, b'r' | b'w' | b'm')) || !target.starts_with('/') || target.contains("..")
        {
            return Err(missing());
        }
        let before = nodes.len();
        if device.source.is_dir() {
            below(&device.source, &target, access, 0, &mut nodes);
        } else if let Some(node) = node(&device.source, &target, access) {
            nodes.retain(|other: &Node| other.path != node.path);
            nodes.push(node);
            continue;
        }
        if nodes.len() == before {
            return Err(missing());
        }
    }
    nodes.truncate(MAX_DEVICES);
    Ok(nodes)
}

fn node(path: &Path, target: &str, access: &str) -> Option<Node> {
    let metadata = std::fs::metadata(path).ok()?;
    let kind = match metadata.file_type() {
        kind if kind.is_char_device() => 'c',
        kind if kind.is_block_device() => 'b',
        _ => return None,
    };
    let (major, minor) = (rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()));
    let (uid, gid, mode) = (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777);
    Some(Node { path: target.to_owned(), kind, major, minor, mode, uid, gid, access: access.to_owned() })
}

fn below(dir: &Path, target: &str, access: &str, depth: u32, nodes: &mut Vec<Node>) {
    let mut entries: Vec<_> = std::fs::read_dir(dir).into_iter().flatten().flatten().collect();
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| depth > 0 || !OWN.contains(name)) else { continue };
        let target = format!("{}/{name}", target.trim_end_matches('/'));
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && depth < MAX_DEPTH => below(&entry.path(), &target, access, depth + 1, nodes),
            // Links are left out: what they lead to is there under its own name.
            Ok(kind) if kind.is_char_device() || kind.is_block_device() => {
                nodes.extend(node(&entry.path(), &target, access));
            }
            _ => {}
        }
    }
}

/// The numbers of the block devices that have limits: (place in the list, major, minor); or a path that is none.
pub(super) fn blkio(limits: &Resources) -> Result<Vec<(usize, u32, u32)>, PathBuf> {
    let one = |(place, limit): (usize, &super::BlkioLimit)| {
        let node = node(&limit.device, "", "").filter(|node| node.kind == 'b');
        node.map(|node| (place, node.major, node.minor)).ok_or_else(|| limit.device.clone())
    };
    limits.blkio.iter().enumerate().map(one).collect()
}

/// Shows `/dev/shm` of the process's mount namespace at `target` of ours. Blocking.
pub(super) fn share_shm(pid: u32, target: &Path) -> io::Result<()> {
    std::fs::create_dir_all(target)?;
    // A thread of its own: it goes over into the other namespace and never comes back.
    let there = std::thread::Builder::new().stack_size(256 << 10).spawn(move || {
        let namespace =
            rustix::fs::open(format!("/proc/{pid}/ns/mnt"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        crate::sys::thread::unshare_root()?;
        rustix::thread::move_into_link_name_space(rustix::fd::AsFd::as_fd(&namespace), Some(LinkNameSpaceType::Mount))?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        rustix::mount::open_tree(rustix::fs::CWD, "/dev/shm", flags).map_err(io::Error::from)
    })?;
    let tree = there.join().map_err(|_| io::Error::other("the thread that looks panicked"))??;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(rustix::mount::move_mount(tree, "", rustix::fs::CWD, target, flags)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::{Device, Security};

    #[test]
    fn devices_are_found_by_their_path() {
        let device = |source: &str, target: &str, access: &str| Device {
            source: PathBuf::from(source),
            target: target.into(),
            access: access.into(),
        };
        let spec = |devices| ContainerSpec { devices, ..ContainerSpec::default() };
        let nodes = of(&spec(vec![device("/dev/null", "/dev/nothing", "r")])).unwrap();
        let node = &nodes[0];
        assert_eq!((node.path.as_str(), node.kind, node.major, node.minor), ("/dev/nothing", 'c', 1, 3));
        assert_eq!(node.access, "r");
        assert_eq!(of(&spec(vec![device("/dev/zero", "", "")])).unwrap()[0].path, "/dev/zero");
        for wrong in
            [device("/dev/absent", "/x", "r"), device("/etc/passwd", "/x", "r"), device("/dev/null", "/x", "z")]
        {
            assert!(matches!(of(&spec(vec![wrong])), Err(StartError::NoDevice(_))));
        }
        let all = ContainerSpec { security: Security { privileged: true, ..Security::default() }, ..spec(Vec::new()) };
        let nodes = of(&all).unwrap();
        assert!(nodes.iter().any(|node| node.path == "/dev/null"));
        assert!(!nodes.iter().any(|node| node.path.starts_with("/dev/pts/") || node.path == "/dev/console"));
    }

    #[test]
    fn limits_are_of_block_devices() {
        let limits = |device: &str| Resources {
            blkio: vec![super::super::BlkioLimit { device: device.into(), ..Default::default() }],
            ..Resources::default()
        };
        assert_eq!(blkio(&limits("/dev/null")), Err(PathBuf::from("/dev/null")));
        assert_eq!(blkio(&Resources::default()).unwrap(), []);
    }
}
