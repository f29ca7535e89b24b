//! OCI's `linux`: namespaces, user mapping, devices, masked paths, limits.

use serde_json::{Value, json};

use super::{ConfigError, Input, Node, resources};
use crate::{
    cgroup::Mode,
    container::{NamespaceMode, Propagation},
};

/// Docker's.
const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
/// Docker's.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
/// Character devices of every container: null, zero, full, random, urandom, tty, ptmx, pts.
const DEVICES: [(u32, Option<u32>); 8] =
    [(1, Some(3)), (1, Some(5)), (1, Some(7)), (1, Some(8)), (1, Some(9)), (5, Some(0)), (5, Some(2)), (136, None)];

pub(super) fn linux(input: &Input<'_>) -> Result<Value, ConfigError> {
    let (spec, security) = (input.spec, &input.spec.security);
    let mut limits = resources(&spec.resources, input.limits_swap, &input.blkio)?;
    limits["devices"] = device_rules(security.privileged, &input.devices).into();
    let paths = |own: &Option<Vec<String>>, default: &[&str]| match own {
        Some(own) => own.clone(),
        None if security.privileged => Vec::new(),
        None => default.iter().map(|path| (*path).to_owned()).collect(),
    };
    let mut linux = json!({
        "namespaces": namespaces(input),
        "resources": limits,
        "cgroupsPath": format!("/{}", input.cgroup.trim_start_matches('/')),
        "devices": input.devices.iter().map(node).collect::<Vec<_>>(),
        "maskedPaths": paths(&security.masked_paths, &MASKED),
        "readonlyPaths": paths(&security.readonly_paths, &READ_ONLY),
        "sysctl": sysctls(input)?,
    });
    if let Some(propagation) = root_propagation(input) {
        linux["rootfsPropagation"] = propagation.into();
    }
    if let Some((host, size)) = input.userns {
        let mapping = json!([{ "containerID": 0, "hostID": host, "size": size }]);
        linux["uidMappings"] = mapping.clone();
        linux["gidMappings"] = mapping;
    }
    if let Some(seccomp) = &input.seccomp {
        linux["seccomp"] = seccomp.clone();
    }
    Ok(linux)
}

fn namespaces(input: &Input<'_>) -> Vec<Value> {
    let spec = input.spec;
    let mut list = vec![json!({ "type": "mount" })];
    let mut add = |kind: &str, mode: &NamespaceMode, joined: &Option<std::path::PathBuf>| match (mode, joined) {
        (NamespaceMode::Host, _) => {}
        (NamespaceMode::Private, _) | (_, None) => list.push(json!({ "type": kind })),
        (_, Some(path)) => list.push(json!({ "type": kind, "path": path })),
    };
    add("pid", &spec.pid, &input.joined.pid);
    add("ipc", &spec.ipc, &input.joined.ipc);
    add("uts", &spec.uts, &input.joined.uts);
    if let Some(netns) = &input.netns {
        list.push(json!({ "type": "network", "path": netns }));
    }
    if input.userns.is_some() {
        list.push(json!({ "type": "user" }));
    }
    // As Docker: private where version 2 makes that mean something, with privileges too: what is an engine itself, such as
    // a CI job's, divides the group that it finds at the top.
    if input.cgroup_mode == Mode::V2 {
        list.push(json!({ "type": "cgroup" }));
    }
    list
}

fn node(node: &Node) -> Value {
    json!({
        "path": node.path, "type": node.kind.to_string(), "major": node.major, "minor": node.minor,
        "fileMode": node.mode, "uid": node.uid, "gid": node.gid,
    })
}

fn device_rules(privileged: bool, devices: &[Node]) -> Vec<Value> {
    if privileged {
        return vec![json!({ "allow": true, "access": "rwm" })];
    }
    let mut rules = vec![json!({ "allow": false, "access": "rwm" })];
    // Making nodes is allowed, opening them is not: unpacking archives as root has to work.
    rules.extend(["c", "b"].map(|kind| json!({ "allow": true, "type": kind, "access": "m" })));
    for (major, minor) in DEVICES {
        let mut rule = json!({ "allow": true, "type": "c", "major": major, "access": "rwm" });
        if let Some(minor) = minor {
            rule["minor"] = minor.into();
        }
        rules.push(rule);
    }
    rules.extend(devices.iter().map(|node| {
        let kind = node.kind.to_string();
        json!({ "allow": true, "type": kind, "major": node.major, "minor": node.minor, "access": node.access })
    }));
    rules
}

/// Sysctls of namespaces that the container does not have for itself would change the host's.
fn sysctls(input: &Input<'_>) -> Result<serde_json::Map<String, Value>, ConfigError> {
    let spec = input.spec;
    let mut map = serde_json::Map::new();
    let own_net = input.netns.is_some();
    if own_net && input.userns.is_none() {
        // As Docker since 20.10: small ports and ping need no capability in a network of its own.
        map.insert("net.ipv4.ip_unprivileged_port_start".into(), "0".into());
        map.insert("net.ipv4.ping_group_range".into(), "0 2147483647".into());
    }
    for (name, value) in &spec.sysctls {
        let ipc = ["kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax"];
        let ipc = ipc.contains(&name.as_str())
            || matches!(name.as_str(), "kernel.shmmni" | "kernel.shm_rmid_forced")
            || name.starts_with("fs.mqueue.");
        let allowed = match name.as_str() {
            "kernel.domainname" => spec.uts != NamespaceMode::Host,
            _ if name.contains('/') || name.contains("..") => false,
            _ if name.starts_with("net.") => own_net,
            _ => ipc && spec.ipc != NamespaceMode::Host,
        };
        if !allowed {
            let problem = "is not of a namespace that this container has for itself: net.* needs a network of its own, \
                           kernel.shm* and fs.mqueue.* an IPC namespace";
            return Err(ConfigError::invalid("sysctls", name, problem));
        }
        map.insert(name.clone(), value.as_str().into());
    }
    Ok(map)
}

/// A mount that is to be seen on the other side needs a root that lets it through. The words that all runtimes know.
fn root_propagation(input: &Input<'_>) -> Option<&'static str> {
    let any = |wanted: Propagation| input.mounts.iter().any(|mount| mount.propagation == wanted);
    match (any(Propagation::Rshared), any(Propagation::Rslave)) {
        (true, _) => Some("shared"),
        (_, true) => Some("slave"),
        _ => None,
    }
}
