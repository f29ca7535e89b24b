//! A container's control groups, on version 2, version 1 and both at once (a "hybrid" host: controllers on version 1).
//!
//! libcontainer makes the groups and puts the container's first process into them; limits are written here, once that
//! process is ready and before it runs anything of the container's, so that setting a container up is not bound by its
//! own limits.

mod devices;
mod limits;

use std::{
    fs, io,
    path::{Component, Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use oci_spec::runtime::LinuxResources;
use rustix::process::{Pid, Signal};

use crate::sys::bpf;

/// Where control groups are mounted.
const ROOT: &str = "/sys/fs/cgroup";
/// How long freezing, and removing a group whose processes are dying, may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a control group could not be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum CgroupError {
    #[error("no control groups are mounted at {ROOT}")]
    NotMounted,
    #[error("{0:?} is no path of a control group: it must not lead out of the hierarchy")]
    Path(PathBuf),
    #[error("cannot write {value:?} to {path}: {source}")]
    Write { path: PathBuf, value: String, source: io::Error },
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("this machine has no {controller} controller, which limit {limit} needs")]
    NoController { controller: &'static str, limit: &'static str },
    #[error("cannot set the device rules of {path}: {source}")]
    Devices { path: PathBuf, source: io::Error },
    #[error("the processes of {0} do not freeze")]
    Freeze(PathBuf),
    #[error("{0} cannot be removed: processes in it do not end")]
    Busy(PathBuf),
    #[error("{0}")]
    Value(String),
}

/// The groups of one container.
#[derive(Debug)]
pub(super) struct Cgroup {
    /// Version 2: one path without a name. Version 1: one for each controller.
    groups: Vec<(String, PathBuf)>,
    unified: bool,
}

impl Cgroup {
    /// The groups at `path` below the root of each hierarchy. They need not exist.
    pub fn new(path: &Path) -> Result<Self, CgroupError> {
        let relative = path.strip_prefix("/").unwrap_or(path);
        if !relative.components().all(|part| matches!(part, Component::Normal(_))) || relative.as_os_str().is_empty() {
            return Err(CgroupError::Path(path.to_owned()));
        }
        if is_unified() {
            return Ok(Self { groups: vec![(String::new(), Path::new(ROOT).join(relative))], unified: true });
        }
        let groups: Vec<_> =
            hierarchies()?.into_iter().map(|(controller, mount)| (controller, mount.join(relative))).collect();
        if groups.is_empty() { Err(CgroupError::NotMounted) } else { Ok(Self { groups, unified: false }) }
    }

    pub fn is_unified(&self) -> bool {
        self.unified
    }

    /// The folder of a controller, where there is one.
    pub fn folder(&self, controller: &str) -> Option<&Path> {
        let found = self.groups.iter().find(|(name, _)| self.unified || name == controller);
        found.map(|(_, path)| path.as_path()).filter(|path| path.exists())
    }

    /// Whether a process is in it already.
    pub fn is_populated(&self) -> bool {
        !self.processes().is_empty()
    }

    /// Every process, also of groups below.
    pub fn processes(&self) -> Vec<i32> {
        // On version 1 a process is in all hierarchies; the freezer's may be missing, so the fullest is taken.
        let mut most = Vec::new();
        for (_, path) in &self.groups {
            let mut pids = Vec::new();
            collect(path, &mut pids);
            if pids.len() > most.len() {
                most = pids;
            }
        }
        most
    }

    /// Writes limits; what is not named stays as it is. `devices` only when the container is made.
    pub fn apply(&self, resources: &LinuxResources, with_devices: bool) -> Result<(), CgroupError> {
        if with_devices {
            self.set_devices(resources)?;
        }
        if self.unified { limits::apply_v2(self, resources) } else { limits::apply_v1(self, resources) }
    }

    fn set_devices(&self, resources: &LinuxResources) -> Result<(), CgroupError> {
        let rules = devices::Rules::new(resources.devices().as_deref().unwrap_or_default())?;
        if !self.unified {
            let folder = self
                .folder("devices")
                .ok_or(CgroupError::NoController { controller: "devices", limit: "linux.resources.devices" })?;
            return rules.lines().iter().try_for_each(|(file, line)| write(&folder.join(file), line));
        }
        let path = &self.groups[0].1;
        let failed = |source| CgroupError::Devices { path: path.clone(), source };
        let folder = fs::File::open(path).map_err(failed)?;
        bpf::attach_device_filter(&folder, &rules.program()).map_err(failed)
    }

    /// Freezes or thaws every process, and waits until that is so.
    pub fn freeze(&self, frozen: bool) -> Result<(), CgroupError> {
        let folder =
            self.folder("freezer").ok_or(CgroupError::NoController { controller: "freezer", limit: "pause" })?;
        let end = Instant::now() + PATIENCE;
        let (file, value) = match (self.unified, frozen) {
            (true, frozen) => (folder.join("cgroup.freeze"), if frozen { "1" } else { "0" }),
            (false, true) => (folder.join("freezer.state"), "FROZEN"),
            (false, false) => (folder.join("freezer.state"), "THAWED"),
        };
        write(&file, value)?;
        let mut pause = Duration::from_micros(200);
        while self.is_frozen() != frozen {
            if Instant::now() > end {
                let _ = write(&file, if self.unified { "0" } else { "THAWED" });
                return Err(CgroupError::Freeze(folder.to_owned()));
            }
            // Neither version tells the end of freezing in a way that can be waited for on every kernel.
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
            if !self.unified {
                // A process that forks while the group freezes leaves it "freezing" until asked again.
                write(&file, value)?;
            }
        }
        Ok(())
    }

    /// Whether it is frozen now.
    pub fn is_frozen(&self) -> bool {
        let Some(folder) = self.folder("freezer") else { return false };
        if self.unified {
            let events = fs::read_to_string(folder.join("cgroup.events")).unwrap_or_default();
            events.lines().any(|line| line == "frozen 1")
        } else {
            fs::read_to_string(folder.join("freezer.state")).is_ok_and(|state| state.trim() == "FROZEN")
        }
    }

    /// Sends a signal to every process.
    pub fn signal(&self, signal: Signal) -> Result<(), CgroupError> {
        if self.unified && signal == Signal::KILL {
            let file = self.groups[0].1.join("cgroup.kill");
            if file.exists() {
                return write(&file, "1");
            }
        }
        // Frozen, they cannot fork away from under the list; a group without processes needs none of this.
        if !self.is_populated() {
            return Ok(());
        }
        let was_frozen = self.is_frozen();
        let freezes = self.folder("freezer").is_some();
        if freezes && !was_frozen {
            let _ = self.freeze(true);
        }
        for pid in self.processes() {
            if let Some(pid) = Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, signal);
            }
        }
        // The dying have to run to die.
        if freezes && (!was_frozen || signal == Signal::KILL) {
            self.freeze(false)?;
        }
        Ok(())
    }

    /// Kills what is left in the groups and removes them.
    pub fn remove(&self) -> Result<(), CgroupError> {
        let end = Instant::now() + PATIENCE;
        let mut pause = Duration::from_micros(200);
        loop {
            let left = self.groups.iter().find(|(_, path)| !remove_tree(path));
            let Some((_, path)) = left else { return Ok(()) };
            if Instant::now() > end {
                return Err(CgroupError::Busy(path.clone()));
            }
            self.signal(Signal::KILL)?;
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }
}

fn is_unified() -> bool {
    rustix::fs::statfs(ROOT).is_ok_and(|stat| stat.f_type == 0x6367_7270)
}

/// Version 1: each controller with its mount point.
fn hierarchies() -> Result<Vec<(String, PathBuf)>, CgroupError> {
    let path = Path::new("/proc/self/mountinfo");
    let table = fs::read_to_string(path).map_err(|source| CgroupError::Read { path: path.to_owned(), source })?;
    Ok(parse_hierarchies(&table))
}

fn parse_hierarchies(table: &str) -> Vec<(String, PathBuf)> {
    const KNOWN: [&str; 12] = [
        "cpu",
        "cpuacct",
        "cpuset",
        "memory",
        "devices",
        "freezer",
        "blkio",
        "pids",
        "hugetlb",
        "perf_event",
        "net_cls",
        "net_prio",
    ];
    let mut found: Vec<(String, PathBuf)> = Vec::new();
    for line in table.lines() {
        let Some((before, after)) = line.split_once(" - ") else { continue };
        let mut after = after.split(' ');
        let mount = before.split(' ').nth(4);
        if let (Some("cgroup"), Some(mount), Some(options)) = (after.next(), mount, after.nth(1)) {
            for option in options.split(',').filter(|option| KNOWN.contains(option)) {
                if Path::new(mount).starts_with(ROOT) && !found.iter().any(|(name, _)| name == option) {
                    found.push((option.to_owned(), PathBuf::from(mount)));
                }
            }
        }
    }
    found
}

fn collect(folder: &Path, pids: &mut Vec<i32>) {
    if let Ok(list) = fs::read_to_string(folder.join("cgroup.procs")) {
        pids.extend(list.lines().filter_map(|line| line.parse::<i32>().ok()));
    }
    for below in below(folder) {
        collect(&below, pids);
    }
}

fn below(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Removes a group and those below it; false while something is still in one.
fn remove_tree(folder: &Path) -> bool {
    match fs::remove_dir(folder) {
        Ok(()) => return true,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return true,
        Err(_) => {}
    }
    for below in below(folder) {
        remove_tree(&below);
    }
    !folder.exists() || fs::remove_dir(folder).is_ok()
}

fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    let failed = |source| CgroupError::Write { path: path.to_owned(), value: value.to_owned(), source };
    let mut file = fs::OpenOptions::new().write(true).open(path).map_err(failed)?;
    io::Write::write_all(&mut file, value.as_bytes()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounted_hierarchies_are_found() {
        let table = "\
30 24 0:26 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct
31 24 0:27 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
32 24 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
33 24 0:29 / /elsewhere rw - cgroup cgroup rw,memory
34 24 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
";
        let found: Vec<_> =
            parse_hierarchies(table).into_iter().map(|(name, path)| format!("{name} {}", path.display())).collect();
        assert_eq!(
            found,
            ["cpu /sys/fs/cgroup/cpu,cpuacct", "cpuacct /sys/fs/cgroup/cpu,cpuacct", "memory /sys/fs/cgroup/memory"]
        );
    }

    #[test]
    fn paths_do_not_lead_out() {
        for path in ["/../x", "a/../../b", "/", ""] {
            assert!(matches!(Cgroup::new(Path::new(path)), Err(CgroupError::Path(_))), "{path}");
        }
    }
}
