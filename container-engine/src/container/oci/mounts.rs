//! Mounts, in the order in which they are made: those of every container, those asked for by depth, the engine's files.

use std::path::Path;

use serde_json::{Value, json};

use super::{ConfigError, INIT, Input};
use crate::container::{MountKind, MountPoint, MountSource, NamespaceMode, Propagation};

/// `/dev/shm` where no size is asked for.
const SHM_BYTES: u64 = 64 << 20;

fn mount(target: &str, kind: &str, source: &str, options: &[&str]) -> Value {
    json!({ "destination": target, "type": kind, "source": source, "options": options })
}

fn bind(source: &Path, target: &str, options: &[&str]) -> Value {
    json!({ "destination": target, "type": "bind", "source": source, "options": options })
}

pub(super) fn mounts(input: &Input<'_>) -> Result<Vec<Value>, ConfigError> {
    let spec = input.spec;
    let mut own: Vec<(&MountPoint, usize)> = Vec::new();
    for mount in input.mounts {
        own.push((mount, depth(&mount.target)?));
    }
    // What lies deeper is mounted later, or it would be hidden.
    own.sort_by_key(|(_, depth)| *depth);
    let taken = |target: &str| input.mounts.iter().any(|mount| same(&mount.target, target));
    let mut list: Vec<Value> =
        defaults(input).into_iter().filter(|mount| !taken(mount["destination"].as_str().unwrap_or_default())).collect();
    list.extend(input.files.iter().filter(|(_, target)| !taken(target)).map(|(source, target)| {
        let access = if spec.security.read_only_rootfs { "ro" } else { "rw" };
        bind(source, target, &["rbind", "rprivate", access])
    }));
    for (mount, _) in own {
        list.push(asked(input, mount));
    }
    if let Some(init) = &input.init {
        list.push(bind(init, INIT, &["bind", "ro", "rprivate"]));
    }
    Ok(list)
}

fn defaults(input: &Input<'_>) -> Vec<Value> {
    let spec = input.spec;
    let privileged = spec.security.privileged;
    let quiet = ["nosuid", "noexec", "nodev"];
    let mut list = Vec::new();
    let foreign_pid = input.userns.is_some() && spec.pid == NamespaceMode::Host;
    if foreign_pid {
        // A user namespace may mount no proc of pids that it does not own.
        list.push(bind(Path::new("/proc"), "/proc", &["rbind", "rprivate"]));
    } else {
        list.push(mount("/proc", "proc", "proc", &quiet));
    }
    list.push(mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]));
    let pts = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"];
    list.push(mount("/dev/pts", "devpts", "devpts", &pts));
    let sys_access = if privileged { "rw" } else { "ro" };
    // Likewise no sysfs of a network that it does not own: ours are made before it.
    let foreign_net = input.userns.is_some();
    if foreign_net {
        list.push(bind(Path::new("/sys"), "/sys", &["rbind", "nosuid", "noexec", "nodev", sys_access, "rprivate"]));
    } else {
        list.push(mount("/sys", "sysfs", "sysfs", &[quiet[0], quiet[1], quiet[2], sys_access]));
    }
    let group = ["nosuid", "noexec", "nodev", "relatime", sys_access];
    list.push(mount("/sys/fs/cgroup", "cgroup", "cgroup", &group));
    // A namespace that the container does not own shows it no message queues.
    let own_queues = input.userns.is_none() || spec.ipc == NamespaceMode::Private;
    match (&spec.ipc, &input.joined.shm) {
        (NamespaceMode::Host, _) => {
            list.push(bind(Path::new("/dev/shm"), "/dev/shm", &["rbind", "rprivate", "rw"]));
            list.push(bind(Path::new("/dev/mqueue"), "/dev/mqueue", &["rbind", "rprivate", "rw"]));
        }
        (_, Some(shm)) => {
            list.push(bind(shm, "/dev/shm", &["rbind", "rprivate", "rw"]));
            list.extend(own_queues.then(|| mount("/dev/mqueue", "mqueue", "mqueue", &quiet)));
        }
        _ => {
            let size = format!("size={}", spec.shm_size.unwrap_or(SHM_BYTES));
            list.push(mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", &size]));
            list.extend(own_queues.then(|| mount("/dev/mqueue", "mqueue", "mqueue", &quiet)));
        }
    }
    list
}

/// One mount that was asked for.
fn asked(input: &Input<'_>, mount: &MountPoint) -> Value {
    let spec = input.spec;
    let original = spec.mounts.iter().find(|original| same(&original.target, &mount.target));
    let access = if mount.read_only { "ro" } else { "rw" };
    if mount.kind == MountKind::Tmpfs {
        let mut options = vec!["nosuid".to_owned(), "nodev".to_owned(), "noexec".to_owned(), access.to_owned()];
        let (size, mode) = match original.map(|original| &original.source) {
            Some(MountSource::Tmpfs { size, mode }) => (*size, *mode),
            _ => (None, None),
        };
        options.extend(size.map(|size| format!("size={size}")));
        options.push(format!("mode={:o}", mode.unwrap_or(0o1777) & 0o7777));
        return json!({ "destination": mount.target, "type": "tmpfs", "source": "tmpfs", "options": options });
    }
    let propagation = match mount.propagation {
        Propagation::Rprivate => "rprivate",
        Propagation::Rslave => "rslave",
        Propagation::Rshared => "rshared",
    };
    let mut options = vec!["rbind", access, propagation];
    if original.is_some_and(|original| original.recursive_read_only) && mount.read_only {
        options.push("rro");
    }
    // Anybody may write into `/dev/shm`, and memory can be mapped by the newest kernels alone.
    if spec.map_mounts && input.userns.is_some() && mount.kind == MountKind::Bind && !same(&mount.target, "/dev/shm") {
        options.push("idmap");
    }
    bind(&mount.source, &mount.target, &options)
}

/// How many parts the path has; targets are absolute, without `..`, and not the root.
fn depth(target: &str) -> Result<usize, ConfigError> {
    let wrong = || ConfigError::invalid("mounts.target", target, "must be an absolute path below /, without '..'");
    let parts: Vec<&str> = target.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    let good = target.starts_with('/') && !parts.is_empty() && !parts.contains(&"..") && !target.contains('\0');
    if good { Ok(parts.len()) } else { Err(wrong()) }
}

/// Whether two paths name the same place.
pub(in crate::container) fn same(one: &str, other: &str) -> bool {
    let parts = |path: &str| -> Vec<String> {
        path.split('/').filter(|part| !part.is_empty() && *part != ".").map(str::to_owned).collect()
    };
    parts(one) == parts(other)
}
