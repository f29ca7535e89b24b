//! What the node is made of: facts of the machine, and what is configured. Reading them blocks for a moment.
//!
//! Elsewhere: what becomes of them (`build`).

use std::{collections::BTreeMap, fs, path::Path};

use container_engine::platform::Platform;

/// Version of the kubelet whose behaviour this node has. The API server and the scheduler read it, and the part behind the
/// plus sign is for people.
pub const KUBELET_VERSION: &str = concat!("v1.36.3+edge-agent.", env!("CARGO_PKG_VERSION"));
/// Kernels from these on mount read-only recursively, and map the ids of a tmpfs as pods with users of their own need it.
const RECURSIVE: (u32, u32) = (5, 12);
const MAPPED: (u32, u32) = (6, 3);

/// What does not change while the machine runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machine {
    /// `/etc/machine-id`.
    pub machine_id: String,
    /// Of the firmware; the machine id where that has none.
    pub system_uuid: String,
    /// Of this boot.
    pub boot_id: String,
    /// `uname -r`.
    pub kernel: String,
    /// In words, of `/etc/os-release`.
    pub os_image: String,
    /// `arm64`, `amd64`, `arm`, …
    pub architecture: String,
    /// Read-only mounts can be so for what is mounted below.
    pub recursive_read_only: bool,
    /// Pods can have users of their own.
    pub user_namespaces: bool,
}

/// What there is of what containers use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Amounts {
    /// Processors that are on.
    pub cpus: u64,
    /// Bytes.
    pub memory: u64,
    /// Bytes of swap.
    pub swap: u64,
    /// Bytes of the file system that pods' files and logs are on.
    pub disk: u64,
    /// Pages by their size in bytes.
    pub huge_pages: BTreeMap<u64, u64>,
}

impl Machine {
    /// Of this machine. Blocking.
    pub fn read() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let first = |paths: &[&str]| paths.iter().map(|path| plain(&read(path))).find(|it| !it.is_empty());
        let uname = rustix::system::uname();
        let kernel = uname.release().to_string_lossy().into_owned();
        let version = version_of(&kernel);
        let machine_id = first(&["/etc/machine-id", "/var/lib/dbus/machine-id"]).unwrap_or_default();
        let system_uuid = first(&[
            "/sys/class/dmi/id/product_uuid",
            "/proc/device-tree/system-id",
            "/proc/device-tree/vm,uuid",
            "/sys/firmware/devicetree/base/serial-number",
        ]);
        let namespaces: u64 = read("/proc/sys/user/max_user_namespaces").trim().parse().unwrap_or(0);
        Self {
            system_uuid: system_uuid.unwrap_or_else(|| machine_id.clone()),
            machine_id,
            boot_id: plain(&read("/proc/sys/kernel/random/boot_id")),
            os_image: os_image(&(read("/etc/os-release") + &read("/usr/lib/os-release"))),
            architecture: Platform::host().architecture,
            recursive_read_only: version >= RECURSIVE,
            user_namespaces: version >= MAPPED && namespaces > 0,
            kernel,
        }
    }
}

impl Amounts {
    /// Of this machine; the disk that `dir` is on. Blocking.
    pub fn read(dir: &Path) -> Self {
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let online = fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
        let here = || std::thread::available_parallelism().map_or(1, |it| it.get() as u64);
        Self {
            cpus: count_of(&online).filter(|count| *count > 0).unwrap_or_else(here),
            memory: meminfo_of(&meminfo, "MemTotal"),
            swap: meminfo_of(&meminfo, "SwapTotal"),
            disk: board::sys::disk(existing(dir)).map_or(0, |disk| disk.total),
            huge_pages: huge_pages(Path::new("/sys/kernel/mm/hugepages")),
        }
    }
}

/// The nearest folder that is there.
fn existing(dir: &Path) -> &Path {
    dir.ancestors().find(|it| it.exists()).unwrap_or_else(|| Path::new("/"))
}

/// On one line and of bounded length: it goes into an object. Device trees end texts with a zero.
fn plain(text: &str) -> String {
    let end = text.find('\0').unwrap_or(text.len());
    text[..end].trim().chars().filter(|c| !c.is_control()).take(256).collect()
}

fn os_image(os_release: &str) -> String {
    let pretty = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    pretty.map(|it| plain(it.trim().trim_matches(['"', '\'']))).filter(|it| !it.is_empty()).unwrap_or("Linux".into())
}

/// `6.1.0-rpi7` → (6, 1).
fn version_of(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|it| it.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Bytes.
fn meminfo_of(meminfo: &str, name: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib = line.and_then(|it| it.trim().strip_suffix("kB")).and_then(|it| it.trim().parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}

/// How many are in `0-3,5`.
fn count_of(list: &str) -> Option<u64> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        last.checked_sub(first)?.checked_add(1)
    };
    list.trim().split(',').map(range).try_fold(0u64, |sum, count| sum.checked_add(count?))
}

fn huge_pages(dir: &Path) -> BTreeMap<u64, u64> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let one = |entry: fs::DirEntry| {
        let name = entry.file_name();
        let kib: u64 = name.to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        let pages = fs::read_to_string(entry.path().join("nr_hugepages")).ok()?.trim().parse().ok()?;
        Some((kib.checked_mul(1024)?, pages))
    };
    entries.filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words() {
        for (text, want) in [("0-3", Some(4)), ("0-3,5,7-8\n", Some(7)), ("0", Some(1)), ("", None), ("3-1", None)] {
            assert_eq!(count_of(text), want, "{text}");
        }
        let meminfo = "MemTotal:   2000 kB\nSwapTotal:       0 kB\nMemTotalX: 1 kB\n";
        assert_eq!((meminfo_of(meminfo, "MemTotal"), meminfo_of(meminfo, "SwapTotal")), (2000 << 10, 0));
        assert_eq!(meminfo_of("MemTotal: many kB", "MemTotal"), 0);
        for (text, want) in [("6.1.0-rpi7", (6, 1)), ("5.15", (5, 15)), ("odd", (0, 0)), ("", (0, 0))] {
            assert_eq!(version_of(text), want, "{text}");
        }
    }

    #[test]
    fn names_of_systems() {
        assert_eq!(os_image("ID=x\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n"), "Debian GNU/Linux 12");
        assert_eq!(os_image("ID=x\n"), "Linux");
        assert_eq!(plain("0000-1\0"), "0000-1");
        assert_eq!(plain(" a\u{7}b \n"), "ab");
    }

    #[test]
    fn this_machine_has_what_a_node_needs() {
        let amounts = Amounts::read(Path::new("/nonexistent/below"));
        assert!(amounts.cpus > 0 && amounts.memory > 0 && amounts.disk > 0, "{amounts:?}");
        let machine = Machine::read();
        assert!(!machine.boot_id.is_empty() && !machine.kernel.is_empty() && !machine.architecture.is_empty());
    }

    #[test]
    fn huge_pages_are_found() {
        let dir = tempfile::tempdir().unwrap();
        for (name, pages) in [("hugepages-2048kB", "4\n"), ("hugepages-1048576kB", "0\n"), ("odd", "1")] {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("nr_hugepages"), pages).unwrap();
        }
        assert_eq!(huge_pages(dir.path()), [(2 << 20, 4), (1 << 30, 0)].into());
    }
}
