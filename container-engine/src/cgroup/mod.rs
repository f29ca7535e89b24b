//! Control groups: which hierarchies this board has, the engine's part of the tree, limits of owners, what is used.
//!
//! The tree is the same on each hierarchy: `edge.slice/{local,kubepods/UID,jobs/ID}/CONTAINER`, and `edge.slice/shims`.
//! The runtime makes the containers' own groups; this room makes what is above them, reads statistics, and removes what
//! is left over.
//!
//! Always true:
//! - Paths are relative, without `..`: nothing outside a hierarchy's mount is touched.
//! - Version 2 hands a controller down only where the kernel offers it; one that is missing is no error.
//!
//! All calls block for as long as the kernel needs (microseconds): callers on the async runtime use `spawn_blocking`.

mod limits;
mod usage;

use std::{
    collections::BTreeMap,
    io,
    path::{Component, Path, PathBuf},
    time::Duration,
};

pub use limits::weight_of_shares;
pub(crate) use limits::{PERIOD_US, quota_us};
pub use usage::{Cpu, Hugepages, Io, Memory, Pids, Pressure, Usage};

use crate::container::Resources;

/// Where hierarchies are mounted.
const ROOT: &str = "/sys/fs/cgroup";
/// Controllers that are handed down on version 2.
const WANTED: [&str; 6] = ["cpu", "cpuset", "io", "memory", "pids", "hugetlb"];
/// A group whose last process is just ending is busy for a moment.
const REMOVE_TRIES: u32 = 40;

/// Which versions the board has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Version 2 alone.
    V2,
    /// Version 1 alone.
    V1,
    /// Controllers on version 1, version 2 beside it without them.
    Hybrid,
}

/// Why something about a control group failed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// None is mounted.
    #[error("no control groups are mounted at {0}: mount cgroup2 there, or boot with systemd or cgroupfs-mount")]
    None(PathBuf),
    /// Not a path below the root.
    #[error("{0:?} is no path of a control group")]
    Path(String),
    /// The kernel refused a value.
    #[error("cannot write {value:?} to {path}")]
    Write {
        /// Which file.
        path: PathBuf,
        /// What.
        value: String,
        /// Why.
        source: io::Error,
    },
    /// A group cannot be made, read or removed.
    #[error("cannot {what} control group {path}")]
    Group {
        /// What was attempted.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A limit for which the kernel has no controller.
    #[error("this kernel has no {controller} controller, which {limit} needs: leave the limit out, or boot with it on")]
    NoController {
        /// Which.
        controller: &'static str,
        /// For what.
        limit: &'static str,
    },
}

/// The hierarchies of this board; cheap enough to clone.
#[derive(Debug, Clone)]
pub struct Cgroups {
    mode: Mode,
    /// Version 1: controller → its mount.
    v1: BTreeMap<String, PathBuf>,
    /// Version 2's mount.
    v2: Option<PathBuf>,
}

impl Cgroups {
    /// What is mounted at `/sys/fs/cgroup`.
    pub fn detect() -> Result<Self, CgroupError> {
        let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Self::of_mounts(&text, Path::new(ROOT))
    }

    fn of_mounts(mountinfo: &str, root: &Path) -> Result<Self, CgroupError> {
        let (mut v1, mut v2) = (BTreeMap::new(), None);
        for (kind, point, options) in mountinfo.lines().filter_map(mount_of) {
            if !point.starts_with(root) {
                continue;
            }
            if kind == "cgroup2" {
                v2 = Some(point);
            } else {
                let controllers =
                    options.split(',').filter(|word| !matches!(*word, "rw" | "ro" | "xattr" | "clone_children"));
                for controller in controllers.filter(|word| !word.starts_with("release_agent=")) {
                    v1.insert(controller.to_owned(), point.clone());
                }
            }
        }
        let mode = match (v1.keys().any(|name| !name.starts_with("name=")), &v2) {
            (false, Some(_)) => Mode::V2,
            (true, Some(_)) => Mode::Hybrid,
            (true, None) => Mode::V1,
            (false, None) => return Err(CgroupError::None(root.to_owned())),
        };
        Ok(Self { mode, v1, v2 })
    }

    /// Which versions.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Whether swap can be limited: kernels may have that switched off.
    pub fn limits_swap(&self) -> bool {
        match self.mode {
            // The root group has no such file; with swap accounting off no group has.
            Mode::V2 => {
                self.v2.iter().flat_map(|root| subdirectories(root)).any(|dir| dir.join("memory.swap.max").exists())
            }
            _ => self.v1.get("memory").is_some_and(|root| root.join("memory.memsw.limit_in_bytes").exists()),
        }
    }

    /// Whether the kernel has `controller` here.
    pub fn has(&self, controller: &str) -> bool {
        match (self.mode, &self.v2) {
            (Mode::V2, Some(root)) => {
                let text = std::fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
                text.split_ascii_whitespace().any(|name| name == controller)
            }
            _ => self.v1.contains_key(controller),
        }
    }

    /// The directory of `path` under one controller of version 1, or of version 2.
    fn dir(&self, controller: &str, path: &Path) -> Option<PathBuf> {
        match self.mode {
            Mode::V2 => self.v2.as_ref().map(|root| root.join(path)),
            _ => self.v1.get(controller).map(|root| root.join(path)),
        }
    }

    /// The mounts, each once: controllers that share one and the named hierarchies included.
    fn roots(&self) -> Vec<&PathBuf> {
        let mut roots: Vec<&PathBuf> = self.v1.values().chain(&self.v2).collect();
        roots.sort();
        roots.dedup();
        roots
    }

    /// Makes a group of groups where it is missing, with all above it, and sets `limits`. Controllers are handed down to
    /// its children, so that on version 2 it takes no processes itself.
    pub fn create(&self, path: &str, limits: &Resources) -> Result<(), CgroupError> {
        let path = relative(path)?;
        self.make_all(path)?;
        if let (Mode::V2, Some(root)) = (self.mode, &self.v2) {
            hand_down(&root.join(path))?;
        }
        self.limit(path, limits)
    }

    /// Makes a group of processes where it is missing, with all above it.
    pub fn create_leaf(&self, path: &str) -> Result<(), CgroupError> {
        self.make_all(relative(path)?)
    }

    /// Makes the group and all above it; those above hand down.
    fn make_all(&self, path: &Path) -> Result<(), CgroupError> {
        for root in self.roots() {
            let mut dir = root.clone();
            for part in path.components() {
                if self.mode == Mode::V2 {
                    hand_down(&dir)?;
                }
                dir.push(part);
                make(&dir)?;
                if self.v1.get("cpuset") == Some(root) {
                    inherit_cpuset(&dir)?;
                }
            }
        }
        Ok(())
    }

    /// Changes the limits of a group; what is absent stays.
    pub fn update(&self, path: &str, limits: &Resources) -> Result<(), CgroupError> {
        self.limit(relative(path)?, limits)
    }

    fn limit(&self, path: &Path, limits: &Resources) -> Result<(), CgroupError> {
        let files = if self.mode == Mode::V2 { limits::v2(limits) } else { limits::v1(limits) };
        for file in files {
            let missing = || CgroupError::NoController { controller: file.controller, limit: file.limit };
            let dir = self.dir(file.controller, path).ok_or_else(missing)?;
            let target = dir.join(&file.name);
            if !target.exists() {
                if file.optional {
                    continue;
                }
                return Err(missing());
            }
            let written = write(&target, &file.value);
            // Memory and swap bound each other: which of the two goes first depends on what is set now.
            if written.is_err() && file.controller == "memory" && self.mode != Mode::V2 {
                Self::memory_v1(&dir, limits)?;
                continue;
            }
            written?;
        }
        Ok(())
    }

    /// Raises `memsw` first where the plain limit would pass it.
    fn memory_v1(dir: &Path, limits: &Resources) -> Result<(), CgroupError> {
        let files = limits::v1(limits);
        let memory = files.iter().filter(|file| file.name.ends_with("limit_in_bytes") && !file.name.contains("soft"));
        for file in memory.rev().filter(|file| dir.join(&file.name).exists()) {
            write(&dir.join(&file.name), &file.value)?;
        }
        Ok(())
    }

    /// The directories of the group, one of each hierarchy.
    pub fn dirs(&self, path: &str) -> Vec<PathBuf> {
        relative(path).map_or_else(|_| Vec::new(), |path| self.roots().iter().map(|root| root.join(path)).collect())
    }

    /// Moves a process into the group, on every hierarchy.
    pub fn enter(&self, path: &str, pid: u32) -> Result<(), CgroupError> {
        let path = relative(path)?;
        for root in self.roots() {
            let dir = root.join(path);
            make(&dir)?;
            if self.v1.get("cpuset") == Some(root) {
                inherit_cpuset(&dir)?;
            }
            write(&dir.join("cgroup.procs"), &pid.to_string())?;
        }
        Ok(())
    }

    /// Kills what is in the group and below it, and removes it, on every hierarchy. One that is not there is no error.
    pub fn remove(&self, path: &str) -> Result<(), CgroupError> {
        let path = relative(path)?;
        if path.as_os_str().is_empty() {
            return Err(CgroupError::Path(String::new()));
        }
        for root in self.roots() {
            remove_tree(&root.join(path))?;
        }
        Ok(())
    }

    /// Removes the group and those below it, on every hierarchy, and kills nothing: an error where somebody is in them.
    pub fn remove_empty(&self, path: &str) -> Result<(), CgroupError> {
        let path = relative(path)?;
        if path.as_os_str().is_empty() {
            return Err(CgroupError::Path(String::new()));
        }
        self.roots().into_iter().try_for_each(|root| remove_empty(&root.join(path), 0))
    }

    /// Whether the group is there on any hierarchy.
    pub fn exists(&self, path: &str) -> bool {
        relative(path).is_ok_and(|path| self.roots().iter().any(|root| root.join(path).is_dir()))
    }

    /// Groups directly below `path`, by name, on any hierarchy.
    pub fn children(&self, path: &str) -> Vec<String> {
        let Ok(path) = relative(path) else { return Vec::new() };
        let dirs = self.roots().into_iter().flat_map(|root| subdirectories(&root.join(path)));
        let mut names: Vec<String> = dirs.filter_map(|dir| Some(dir.file_name()?.to_str()?.to_owned())).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Processes of the group and of those below it.
    pub fn processes(&self, path: &str) -> Result<Vec<u32>, CgroupError> {
        let path = relative(path)?;
        // Any hierarchy knows them; the one that has all is the runtime's: pids, memory or version 2.
        let dir = ["pids", "memory", "cpu", "devices"]
            .iter()
            .find_map(|name| self.dir(name, path).filter(|dir| dir.is_dir()));
        let mut pids = Vec::new();
        collect(&dir.unwrap_or_default(), 0, &mut pids);
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// What the group uses. What the kernel does not count here is 0 or absent.
    pub fn usage(&self, path: &str) -> Result<Usage, CgroupError> {
        let path = relative(path)?;
        let dir = |controller: &str| self.dir(controller, path);
        if self.mode == Mode::V2 {
            let dir = dir("").ok_or_else(|| CgroupError::None(ROOT.into()))?;
            if !dir.is_dir() {
                return Err(CgroupError::Group { what: "read", path: dir, source: io::ErrorKind::NotFound.into() });
            }
            return Ok(usage::read_v2(&dir));
        }
        if !["memory", "cpuacct", "pids"].iter().filter_map(|name| dir(name)).any(|dir| dir.is_dir()) {
            return Err(CgroupError::Group { what: "read", path: path.into(), source: io::ErrorKind::NotFound.into() });
        }
        Ok(usage::read_v1(&dir))
    }

    /// How often the kernel has killed a process of the group for want of memory.
    pub fn oom_kills(&self, path: &str) -> Option<u64> {
        let dir = self.dir("memory", relative(path).ok()?)?;
        let name = if self.mode == Mode::V2 { "memory.events" } else { "memory.oom_control" };
        usage::flat(&std::fs::read_to_string(dir.join(name)).ok()?).get("oom_kill").copied()
    }
}

/// One line of mountinfo that is about control groups: its type, its mount point, the options of its file system.
fn mount_of(line: &str) -> Option<(&str, PathBuf, &str)> {
    let (mount, fs) = line.split_once(" - ")?;
    let mut fs = fs.split(' ');
    let kind = fs.next().filter(|kind| matches!(*kind, "cgroup" | "cgroup2"))?;
    let options = fs.nth(1)?;
    Some((kind, PathBuf::from(mount.split(' ').nth(4)?), options))
}

/// The path, without a slash in front; only plain names.
fn relative(path: &str) -> Result<&Path, CgroupError> {
    let relative = Path::new(path.trim_start_matches('/'));
    let plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
    if plain { Ok(relative) } else { Err(CgroupError::Path(path.to_owned())) }
}

fn make(dir: &Path) -> Result<(), CgroupError> {
    match std::fs::create_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(source) => Err(CgroupError::Group { what: "make", path: dir.to_owned(), source }),
        Ok(()) => Ok(()),
    }
}

fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    let failed = |source| CgroupError::Write { path: path.to_owned(), value: value.to_owned(), source };
    // One write(2): the kernel takes each as a whole value.
    std::fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()))
        .map_err(failed)
}

/// Version 2: gives the children of `dir` every controller that it has itself.
fn hand_down(dir: &Path) -> Result<(), CgroupError> {
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap_or_default();
    let (offered, given) = (read("cgroup.controllers"), read("cgroup.subtree_control"));
    let has = |text: &str, name: &str| text.split_ascii_whitespace().any(|word| word == name);
    for name in WANTED.iter().filter(|name| has(&offered, name) && !has(&given, name)) {
        let value = format!("+{name}");
        let file = dir.join("cgroup.subtree_control");
        match write(&file, &value) {
            Ok(()) => {}
            // A group with processes of its own gives nothing down. The root of a namespace may be such a group when
            // the agent itself runs in a container: its processes move one level down.
            Err(CgroupError::Write { source, .. }) if source.kind() == io::ErrorKind::ResourceBusy => {
                make_room(dir)?;
                write(&file, &value)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn make_room(dir: &Path) -> Result<(), CgroupError> {
    let leaf = dir.join("edge-agent");
    make(&leaf)?;
    for pid in std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default().lines() {
        // One that has ended meanwhile is no problem.
        let _ = write(&leaf.join("cgroup.procs"), pid);
    }
    Ok(())
}

/// Version 1: a new cpuset group has no processors until it is given some.
fn inherit_cpuset(dir: &Path) -> Result<(), CgroupError> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let own = std::fs::read_to_string(dir.join(name)).unwrap_or_default();
        if own.trim().is_empty()
            && let Some(parent) = dir.parent()
        {
            let value = std::fs::read_to_string(parent.join(name)).unwrap_or_default();
            write(&dir.join(name), value.trim())?;
        }
    }
    Ok(())
}

fn subdirectories(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

/// Deeper trees are not followed: a container cannot make us recurse without end.
const MAX_DEPTH: u32 = 32;

fn collect(dir: &Path, depth: u32, pids: &mut Vec<u32>) {
    let text = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
    if depth < MAX_DEPTH {
        for child in subdirectories(dir) {
            collect(&child, depth + 1, pids);
        }
    }
}

fn remove_tree(dir: &Path) -> Result<(), CgroupError> {
    if !dir.is_dir() {
        return Ok(());
    }
    // Version 2 kills a tree in one go; version 1 has processes to be told one by one.
    if std::fs::write(dir.join("cgroup.kill"), "1").is_err() {
        let mut pids = Vec::new();
        collect(dir, 0, &mut pids);
        for pid in pids.into_iter().filter_map(|pid| rustix::process::Pid::from_raw(i32::try_from(pid).ok()?)) {
            // It may just have ended.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    remove_empty(dir, 0)
}

/// One that is not there is no error.
fn remove_empty(dir: &Path, depth: u32) -> Result<(), CgroupError> {
    for child in subdirectories(dir) {
        if depth < MAX_DEPTH {
            remove_empty(&child, depth + 1)?;
        }
    }
    let mut tries = 0;
    loop {
        match std::fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && tries < REMOVE_TRIES => {
                tries += 1;
                std::thread::sleep(Duration::from_millis(u64::from(tries.min(10))));
            }
            Err(source) => return Err(CgroupError::Group { what: "remove", path: dir.to_owned(), source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
24 1 0:20 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
25 24 0:21 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
26 24 0:22 / /sys/fs/cgroup/memory rw,relatime shared:7 - cgroup cgroup rw,memory
27 24 0:23 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/x,name=systemd
28 24 0:24 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
    const V2: &str = "28 24 0:24 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn modes() {
        let root = Path::new(ROOT);
        let hybrid = Cgroups::of_mounts(HYBRID, root).unwrap();
        assert_eq!(hybrid.mode(), Mode::Hybrid);
        assert_eq!(hybrid.dir("cpuacct", Path::new("a/b")), Some("/sys/fs/cgroup/cpu,cpuacct/a/b".into()));
        assert_eq!(hybrid.dir("pids", Path::new("a")), None);
        assert_eq!(hybrid.roots().len(), 4);
        let v1: String = HYBRID.lines().take(4).map(|line| format!("{line}\n")).collect();
        assert_eq!(Cgroups::of_mounts(&v1, root).unwrap().mode(), Mode::V1);
        let v2 = Cgroups::of_mounts(V2, root).unwrap();
        assert_eq!(v2.mode(), Mode::V2);
        assert_eq!(v2.dir("memory", Path::new("a")), Some("/sys/fs/cgroup/a".into()));
        assert!(matches!(Cgroups::of_mounts("1 2 0:1 / / rw - ext4 /dev/sda rw\n", root), Err(CgroupError::None(_))));
        assert!(matches!(Cgroups::of_mounts("garbage - \n\n - cgroup2", root), Err(CgroupError::None(_))));
    }

    #[test]
    fn paths_stay_inside() {
        for good in ["edge.slice/local/x", "/edge.slice"] {
            assert!(relative(good).is_ok(), "{good}");
        }
        for wrong in ["..", "a/../b", "./a/.."] {
            assert!(relative(wrong).is_err(), "{wrong}");
        }
        let cgroups = Cgroups::of_mounts(V2, Path::new(ROOT)).unwrap();
        assert!(cgroups.remove("").is_err());
        assert!(cgroups.remove("/").is_err());
    }

    /// Needs a writable hierarchy; passed over without root.
    #[test]
    fn a_group_is_made_limited_read_and_removed() {
        let Ok(cgroups) = Cgroups::detect() else { return };
        let path = format!("edge-test-{}", std::process::id());
        let inner = format!("{path}/pod/container");
        let limits = Resources { memory: Some(64 << 20), pids: Some(20), cpu_milli: Some(500), ..Resources::default() };
        if !rustix::process::getuid().is_root() {
            return;
        }
        cgroups.create(&format!("{path}/pod"), &limits).unwrap();
        cgroups.create_leaf(&inner).unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        cgroups.enter(&inner, child.id()).unwrap();
        assert_eq!(cgroups.processes(&path).unwrap(), [child.id()]);
        let usage = cgroups.usage(&format!("{path}/pod")).unwrap();
        if cgroups.has("memory") {
            assert_eq!(usage.memory.limit, Some(64 << 20));
        }
        if cgroups.has("pids") {
            assert_eq!(usage.pids.limit, Some(20));
            assert_eq!(usage.pids.current, 1);
        }
        let more = Resources { memory: Some(128 << 20), memory_swap: Some(128 << 20), ..Resources::default() };
        cgroups.update(&format!("{path}/pod"), &more).unwrap();
        if cgroups.has("memory") {
            assert_eq!(cgroups.usage(&format!("{path}/pod")).unwrap().memory.limit, Some(128 << 20));
        }
        assert_eq!(cgroups.children(&path), ["pod"]);
        cgroups.remove(&path).unwrap();
        assert!(!cgroups.exists(&path));
        child.wait().unwrap();
        cgroups.remove(&path).unwrap();
    }
}
