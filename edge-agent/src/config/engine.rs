//! `[engine]`, checked.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use container_engine::{
    engine::Options,
    image::Water,
    network::{self, CniOptions},
    registry,
};
use ipnet::{Ipv4Net, Ipv6Net};

use super::{
    checked::{Wrong, readable, wrong},
    raw,
};

/// Smallest quota of images: less holds none.
const MIN_QUOTA: u64 = 64 << 20;
/// Most layers of a pull at once: each is a connection and a process that unpacks.
const MAX_DOWNLOADS: usize = 32;
/// Largest seccomp profile.
const MAX_PROFILE: u64 = 4 << 20;

/// Containers and images.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Whether there is an engine.
    pub enabled: bool,
    /// `embedded`, `runc`, `crun` or a path.
    pub runtime: String,
    /// Bytes that images may take.
    pub quota: Option<u64>,
    /// When unused images go.
    pub water: Water,
    /// Layers of one pull on their way at once.
    pub parallel_downloads: usize,
    /// How registries are reached, mirrors included.
    pub registry: registry::Options,
    /// Control group above `edge.slice`; empty: none. Absent: what goes with the data.
    pub cgroup_parent: Option<String>,
    /// Device of the default network. Absent: what goes with the data.
    pub bridge: Option<String>,
    /// The default network. Absent: what goes with the data.
    pub subnet: Option<Ipv4Net>,
    /// The same for IPv6.
    pub ipv6: Option<Ipv6Net>,
    /// The host's plugins, where they are used.
    pub cni: Option<CniOptions>,
    /// Size after which a log is rotated.
    pub log_max_bytes: u64,
    /// Files of a log.
    pub log_max_files: u32,
    /// Instead of Docker's system call filter.
    pub seccomp: Option<serde_json::Value>,
}

impl EngineConfig {
    /// What the engine is opened with.
    pub fn options(&self, data_dir: &Path, run_dir: &Path) -> Options {
        let usual = Options::new(data_dir, run_dir);
        let network = network::Options {
            device: self.bridge.clone().unwrap_or(usual.network.device),
            subnet: self.subnet.unwrap_or(usual.network.subnet),
            ipv6: self.ipv6,
            cni: self.cni.clone(),
            ..usual.network
        };
        Options {
            runtime: self.runtime.clone(),
            cgroup_parent: self.cgroup_parent.clone().unwrap_or(usual.cgroup_parent),
            network,
            registry: self.registry.clone(),
            quota: self.quota,
            water: self.water,
            parallel_downloads: self.parallel_downloads,
            ..usual
        }
    }
}

fn cgroup_parent(text: String) -> Result<String, Wrong> {
    let is_part = |part: &str| {
        !part.is_empty() && part != "." && part != ".." && part.bytes().all(|b| b.is_ascii_graphic() && b != b'/')
    };
    if text.is_empty() || text.split('/').all(is_part) {
        return Ok(text);
    }
    wrong("engine.cgroup_parent", format!("{text:?} is no control group; write it like \"machine.slice/edge\""))
}

fn bridge(name: String) -> Result<String, Wrong> {
    // Longest name of a device, `IFNAMSIZ`, with its final zero.
    let fits = (1..16).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if fits {
        Ok(name)
    } else {
        wrong("engine.bridge", format!("{name:?} is no name of a device; write it like \"edge0\""))
    }
}

fn subnet(text: &str) -> Result<Ipv4Net, Wrong> {
    let subnet = text.parse::<Ipv4Net>().ok().filter(|it| (8..=30).contains(&it.prefix_len()));
    let problem = || format!("{text:?} is no subnet; write it like \"10.88.0.0/16\"");
    subnet.map_or_else(|| wrong("engine.subnet", problem()), Ok)
}

pub(super) fn check(raw: raw::Engine) -> Result<EngineConfig, Wrong> {
    if raw.docker_socket {
        return wrong("engine.docker_socket", "Docker's API is not available yet: leave it out, or set it to false");
    }
    if let Some(quota) = &raw.quota
        && quota.0 < MIN_QUOTA
    {
        return wrong("engine.quota", format!("{} bytes; at least 64MiB", quota.0));
    }
    if raw.high_water > 100 {
        return wrong("engine.high_water", format!("{}; up to 100 per cent", raw.high_water));
    }
    if raw.low_water >= raw.high_water {
        return wrong("engine.low_water", format!("{} is not below engine.high_water", raw.low_water));
    }
    if !(1..=MAX_DOWNLOADS).contains(&raw.parallel_downloads) {
        return wrong("engine.parallel_downloads", format!("{}; from 1 to {MAX_DOWNLOADS}", raw.parallel_downloads));
    }
    if raw.log_max_size.0 < 4096 {
        return wrong("engine.log_max_size", format!("{} bytes; at least 4KiB", raw.log_max_size.0));
    }
    if !(1..=1000).contains(&raw.log_max_files) {
        return wrong("engine.log_max_files", format!("{}; from 1 to 1000", raw.log_max_files));
    }
    let subnet = raw.subnet.as_deref().map(subnet).transpose()?;
    let ipv6 = raw.ipv6_subnet.as_deref().map(ipv6).transpose()?;
    let cni = readable("engine.cni_conf_dir", raw.cni_conf_dir)?;
    let cni = cni.map(|conf_dir| CniOptions { conf_dir, bin_dirs: raw.cni_bin_dir, ..CniOptions::default() });
    let insecure = hosts(raw.insecure)?;
    Ok(EngineConfig {
        enabled: raw.enabled,
        runtime: runtime(raw.runtime)?,
        cgroup_parent: raw.cgroup_parent.map(cgroup_parent).transpose()?,
        bridge: raw.bridge.map(bridge).transpose()?,
        quota: raw.quota.map(|it| it.0),
        water: Water { high: raw.high_water, low: raw.low_water, ..Water::default() },
        parallel_downloads: raw.parallel_downloads,
        registry: registry::Options {
            mirrors: mirrors(raw.mirrors)?,
            insecure,
            certs_dir: Some(raw.certs_dir),
            bandwidth: raw.bandwidth.map(|it| it.0),
        },
        subnet,
        ipv6,
        cni,
        log_max_bytes: raw.log_max_size.0,
        log_max_files: raw.log_max_files,
        seccomp: seccomp(raw.seccomp_profile.as_deref())?,
    })
}

fn ipv6(text: &str) -> Result<Ipv6Net, Wrong> {
    let problem = || format!("{text:?} is no subnet; write it like \"fd00:88::/64\"");
    let subnet = text.parse::<Ipv6Net>().ok().filter(|it| it.prefix_len() <= 120);
    subnet.map_or_else(|| wrong("engine.ipv6_subnet", problem()), Ok)
}

fn runtime(name: String) -> Result<String, Wrong> {
    match name.as_str() {
        "embedded" | "runc" | "crun" => Ok(name),
        path if path.starts_with('/') => {
            let path = readable("engine.runtime", Some(PathBuf::from(path)))?;
            Ok(path.map_or(name.clone(), |path| path.display().to_string()))
        }
        other => {
            wrong("engine.runtime", format!("{other:?}; use \"embedded\", \"runc\", \"crun\" or an absolute path"))
        }
    }
}

fn hosts(hosts: Vec<String>) -> Result<BTreeSet<String>, Wrong> {
    for host in &hosts {
        if host.is_empty() || host.contains('/') || host.contains(char::is_whitespace) {
            return wrong(
                "engine.insecure",
                format!("{host:?} is no registry; write it like \"HOST\" or \"HOST:5000\""),
            );
        }
    }
    Ok(hosts.into_iter().collect())
}

fn mirrors(mirrors: BTreeMap<String, Vec<String>>) -> Result<BTreeMap<String, Vec<String>>, Wrong> {
    for (registry, places) in &mirrors {
        if registry.contains('/') || places.iter().any(|place| place.trim().is_empty() || place.contains('@')) {
            let form = "write it like mirrors = { \"docker.io\" = [\"http://127.0.0.1:5000\"] }";
            return wrong("engine.mirrors", format!("{registry:?} is not understood; {form}"));
        }
    }
    Ok(mirrors)
}

fn seccomp(path: Option<&Path>) -> Result<Option<serde_json::Value>, Wrong> {
    let Some(path) = path else { return Ok(None) };
    let key = "engine.seccomp_profile";
    let bytes = board::durable::read(path, MAX_PROFILE)
        .or_else(|error| wrong(key, format!("{} cannot be read: {error}", path.display())))?;
    let profile = serde_json::from_slice(&bytes);
    profile.map(Some).or_else(|error| wrong(key, format!("{} is no JSON: {error}", path.display())))
}
