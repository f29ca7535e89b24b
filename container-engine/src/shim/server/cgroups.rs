//! The container's cgroup: where it is, and the end of everything in it. Both versions, and both at once.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use rustix::process::{Pid, Signal, kill_process as kill};

/// Folders of the cgroups of `pid`, one for each hierarchy in which it is neither in the root nor beside this process:
/// such a cgroup is not the container's own, and killing it would kill others.
pub(crate) fn of(pid: i32) -> Vec<PathBuf> {
    let read = |path: String| fs::read_to_string(path).unwrap_or_default();
    let mounts = mounts(&read("/proc/self/mountinfo".to_owned()));
    let own = memberships(&read("/proc/self/cgroup".to_owned()));
    let theirs = memberships(&read(format!("/proc/{pid}/cgroup")));
    let mut all = Vec::new();
    for (controllers, path) in theirs {
        if path == "/" || own.iter().any(|(mine, at)| *mine == controllers && *at == path) {
            continue;
        }
        let mount = mounts.iter().find(|(of, _, _)| *of == controllers);
        let Some((_, root, mount)) = mount else { continue };
        let below = if root == "/" { path.as_str() } else { path.strip_prefix(root.as_str()).unwrap_or(&path) };
        all.push(Path::new(mount).join(below.trim_start_matches('/')));
    }
    all
}

/// `(controllers, path)`; no controllers for v2.
fn memberships(text: &str) -> Vec<(String, String)> {
    let cut = |line: &str| {
        let mut fields = line.splitn(3, ':').skip(1);
        Some((sorted(fields.next()?), fields.next()?.to_owned()))
    };
    text.lines().filter_map(cut).collect()
}

/// `(controllers, root, mount point)` from mountinfo.
fn mounts(text: &str) -> Vec<(String, String, String)> {
    let cut = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ').skip(3);
        let (root, at) = (before.next()?.to_owned(), before.next()?.to_owned());
        let mut after = after.split(' ');
        let (kind, _, options) = (after.next()?, after.next()?, after.next()?);
        let known = |option: &&str| !matches!(*option, "rw" | "ro" | "xattr" | "clone_children") && !option.is_empty();
        match kind {
            "cgroup2" => Some((String::new(), root, at)),
            "cgroup" => {
                let names: Vec<_> =
                    options.split(',').filter(known).filter(|it| !it.starts_with("release_agent")).collect();
                Some((sorted(&names.join(",")), root, at))
            }
            _ => None,
        }
    };
    text.lines().filter_map(cut).collect()
}

fn sorted(names: &str) -> String {
    let mut names: Vec<_> = names.split(',').collect();
    names.sort_unstable();
    names.join(",")
}

/// Sends SIGKILL to whatever is in these cgroups and below them; whether anything was.
pub(crate) fn kill_all(cgroups: &[PathBuf]) -> bool {
    let mut found = false;
    for dir in cgroups {
        // One write kills a v2 tree at once, without a race against fork (Linux 5.14).
        let populated = processes(dir, 0);
        if populated.is_empty() {
            continue;
        }
        found = true;
        if fs::write(dir.join("cgroup.kill"), "1").is_err() {
            populated.into_iter().for_each(kill_process);
        }
    }
    found
}

/// SIGKILL to one process; one that has gone is fine.
pub(crate) fn kill_process(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill(pid, Signal::KILL);
    }
}

/// Processes of a cgroup and of those below.
pub(crate) fn processes(dir: &Path, depth: usize) -> Vec<i32> {
    let Ok(text) = fs::read_to_string(dir.join("cgroup.procs")) else { return Vec::new() };
    // 0 stands for a process of another pid namespace; it would mean our own group to kill(2).
    let mut all: Vec<i32> = text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect();
    if depth < 16
        && let Ok(entries) = fs::read_dir(dir)
    {
        for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            all.extend(processes(&entry.path(), depth + 1));
        }
    }
    all
}

/// Cgroups that this process is to be in, made where they are missing, and open.
#[derive(Debug)]
pub(crate) struct Joining(Vec<(PathBuf, fs::File)>);

impl Joining {
    pub fn open(dirs: &[PathBuf]) -> io::Result<Self> {
        let open = |dir: &PathBuf| {
            fs::create_dir_all(dir).map_err(|error| named(dir, &error))?;
            let file = fs::OpenOptions::new().write(true).open(dir.join("cgroup.procs"));
            Ok((dir.clone(), file.map_err(|error| named(dir, &error))?))
        };
        dirs.iter().map(open).collect::<io::Result<_>>().map(Self)
    }

    /// Puts this process into them, which takes a while: the kernel waits until no processor looks at the old ones.
    pub fn join(self) -> io::Result<()> {
        self.0.into_iter().try_for_each(|(dir, mut file)| file.write_all(b"0").map_err(|error| named(&dir, &error)))
    }
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hybrid_mounts_are_told_apart() {
        let text = "30 20 0:26 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpuacct,cpu\n\
                    31 20 0:27 /a /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                    32 20 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
                    33 20 0:29 / /proc rw - proc proc rw\n";
        let want = [
            ("cpu,cpuacct", "/", "/sys/fs/cgroup/cpu,cpuacct"),
            ("", "/a", "/sys/fs/cgroup/unified"),
            ("name=systemd", "/", "/sys/fs/cgroup/systemd"),
        ];
        assert_eq!(mounts(text), want.map(|(a, b, c)| (a.to_owned(), b.to_owned(), c.to_owned())));
        let own = memberships("4:cpu,cpuacct:/x:y\n0::/z\n");
        assert_eq!(own, [("cpu,cpuacct".to_owned(), "/x:y".to_owned()), (String::new(), "/z".to_owned())]);
    }

    #[test]
    fn a_process_beside_us_has_no_cgroup_of_its_own() {
        assert_eq!(of(i32::try_from(std::process::id()).unwrap()), Vec::<PathBuf>::new());
    }
}
