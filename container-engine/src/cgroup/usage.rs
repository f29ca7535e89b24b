//! What a group uses, read from the files of either version. Files are bounded by the kernel; what cannot be parsed is
//! passed over, as kernels add lines.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// Limits of version 1 from here on mean "none": the largest multiple of a page.
const NO_LIMIT: u64 = i64::MAX as u64 - 0xffff;

/// What a group uses.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    /// Processor time.
    pub cpu: Cpu,
    /// Memory.
    pub memory: Memory,
    /// Processes and threads.
    pub pids: Pids,
    /// Block I/O, by device.
    pub io: Vec<Io>,
    /// Huge pages, by size.
    pub hugepages: BTreeMap<String, Hugepages>,
    /// Stall information, by resource (`cpu`, `memory`, `io`), where the kernel has it.
    pub pressure: BTreeMap<String, Pressure>,
}

/// Processor time, µs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cpu {
    /// All of it.
    pub usage_us: u64,
    /// Outside the kernel.
    pub user_us: u64,
    /// In the kernel.
    pub system_us: u64,
    /// Accounting periods.
    pub periods: u64,
    /// Periods in which the limit was reached.
    pub throttled: u64,
    /// Time spent waiting for the next period.
    pub throttled_us: u64,
}

/// Memory, bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// All that is charged to it.
    pub usage: u64,
    /// What cannot easily be taken back: without inactive file pages.
    pub working_set: u64,
    /// Most there ever was; absent where the kernel does not say.
    pub peak: Option<u64>,
    /// Limit.
    pub limit: Option<u64>,
    /// Swap.
    pub swap: u64,
    /// Anonymous.
    pub anon: u64,
    /// Of files.
    pub file: u64,
    /// Page faults.
    pub page_faults: u64,
    /// Page faults that needed the disk.
    pub major_page_faults: u64,
    /// Processes killed for want of memory.
    pub oom_kills: u64,
}

/// Processes and threads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pids {
    /// Now.
    pub current: u64,
    /// Limit.
    pub limit: Option<u64>,
}

/// Block I/O of one device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Io {
    /// Device number.
    pub major: u32,
    /// Device number.
    pub minor: u32,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
}

/// Huge pages of one size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hugepages {
    /// Bytes.
    pub usage: u64,
    /// Bytes.
    pub limit: Option<u64>,
}

/// Stall information (PSI): shares of time in percent, and microseconds in all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pressure {
    /// Some tasks waited: last 10 s.
    pub some_avg10: f64,
    /// Last 60 s.
    pub some_avg60: f64,
    /// Last 300 s.
    pub some_avg300: f64,
    /// In all, µs.
    pub some_total_us: u64,
    /// All tasks waited: last 10 s.
    pub full_avg10: f64,
    /// Last 60 s.
    pub full_avg60: f64,
    /// Last 300 s.
    pub full_avg300: f64,
    /// In all, µs.
    pub full_total_us: u64,
}

/// `name value` lines.
pub(super) fn flat(text: &str) -> BTreeMap<&str, u64> {
    let pair =
        |line: &'_ str| line.split_once(' ').and_then(|(name, value)| Some((name.len(), value.trim().parse().ok()?)));
    text.lines().filter_map(|line| pair(line).map(|(len, value)| (&line[..len], value))).collect()
}

fn text(path: PathBuf) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn number(path: PathBuf) -> Option<u64> {
    text(path).trim().parse().ok()
}

/// A limit; `max` and version 1's largest number mean none.
fn limit(path: PathBuf) -> Option<u64> {
    number(path).filter(|limit| *limit < NO_LIMIT)
}

pub(super) fn read_v2(dir: &Path) -> Usage {
    let read = |name: &str| text(dir.join(name));
    let mut usage = Usage { cpu: cpu_v2(&read("cpu.stat")), io: io_v2(&read("io.stat")), ..Usage::default() };
    usage.memory =
        memory_v2(number(dir.join("memory.current")).unwrap_or(0), &read("memory.stat"), &read("memory.events"));
    usage.memory.peak = number(dir.join("memory.peak"));
    usage.memory.limit = limit(dir.join("memory.max"));
    usage.memory.swap = number(dir.join("memory.swap.current")).unwrap_or(0);
    usage.pids = Pids { current: number(dir.join("pids.current")).unwrap_or(0), limit: limit(dir.join("pids.max")) };
    usage.hugepages = hugepages(dir, "current", "max");
    for name in ["cpu", "memory", "io"] {
        if let Some(pressure) = pressure(&read(&format!("{name}.pressure"))) {
            usage.pressure.insert(name.to_owned(), pressure);
        }
    }
    usage
}

pub(super) fn read_v1(dir: &dyn Fn(&str) -> Option<PathBuf>) -> Usage {
    let path = |controller: &str, name: &str| dir(controller).unwrap_or_default().join(name);
    let read = |controller: &str, name: &str| text(path(controller, name));
    let cpu = cpu_v1(
        &read("cpuacct", "cpuacct.usage"),
        &read("cpuacct", "cpuacct.usage_user"),
        &read("cpuacct", "cpuacct.usage_sys"),
        &read("cpu", "cpu.stat"),
    );
    let mut usage = Usage { cpu, ..Usage::default() };
    let now = number(path("memory", "memory.usage_in_bytes")).unwrap_or(0);
    usage.memory = memory_v1(now, &read("memory", "memory.stat"), &read("memory", "memory.oom_control"));
    usage.memory.peak = number(path("memory", "memory.max_usage_in_bytes"));
    usage.memory.limit = limit(path("memory", "memory.limit_in_bytes"));
    usage.pids =
        Pids { current: number(path("pids", "pids.current")).unwrap_or(0), limit: limit(path("pids", "pids.max")) };
    let (bytes, ops) = match read("blkio", "blkio.throttle.io_service_bytes_recursive") {
        empty if empty.is_empty() => {
            (read("blkio", "blkio.throttle.io_service_bytes"), read("blkio", "blkio.throttle.io_serviced"))
        }
        bytes => (bytes, read("blkio", "blkio.throttle.io_serviced_recursive")),
    };
    usage.io = io_v1(&bytes, &ops);
    if let Some(dir) = dir("hugetlb") {
        usage.hugepages = hugepages(&dir, "usage_in_bytes", "limit_in_bytes");
    }
    usage
}

fn cpu_v2(stat: &str) -> Cpu {
    let stat = flat(stat);
    let get = |name: &str| stat.get(name).copied().unwrap_or(0);
    Cpu {
        usage_us: get("usage_usec"),
        user_us: get("user_usec"),
        system_us: get("system_usec"),
        periods: get("nr_periods"),
        throttled: get("nr_throttled"),
        throttled_us: get("throttled_usec"),
    }
}

fn cpu_v1(usage: &str, user: &str, system: &str, stat: &str) -> Cpu {
    let stat = flat(stat);
    let get = |name: &str| stat.get(name).copied().unwrap_or(0);
    let us = |ns: &str| ns.trim().parse::<u64>().unwrap_or(0) / 1000;
    Cpu {
        usage_us: us(usage),
        user_us: us(user),
        system_us: us(system),
        periods: get("nr_periods"),
        throttled: get("nr_throttled"),
        throttled_us: get("throttled_time") / 1000,
    }
}

fn memory_v2(usage: u64, stat: &str, events: &str) -> Memory {
    let stat = flat(stat);
    let get = |name: &str| stat.get(name).copied().unwrap_or(0);
    Memory {
        usage,
        working_set: usage.saturating_sub(get("inactive_file")),
        anon: get("anon"),
        file: get("file"),
        page_faults: get("pgfault"),
        major_page_faults: get("pgmajfault"),
        oom_kills: flat(events).get("oom_kill").copied().unwrap_or(0),
        ..Memory::default()
    }
}

fn memory_v1(usage: u64, stat: &str, oom_control: &str) -> Memory {
    let stat = flat(stat);
    // `total_…` counts the groups below as well.
    let get = |name: &str| stat.get(format!("total_{name}").as_str()).or_else(|| stat.get(name)).copied().unwrap_or(0);
    Memory {
        usage,
        working_set: usage.saturating_sub(get("inactive_file")),
        swap: get("swap"),
        anon: get("rss"),
        file: get("cache"),
        page_faults: get("pgfault"),
        major_page_faults: get("pgmajfault"),
        oom_kills: flat(oom_control).get("oom_kill").copied().unwrap_or(0),
        ..Memory::default()
    }
}

fn device(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn io_v2(stat: &str) -> Vec<Io> {
    let mut devices = Vec::new();
    for line in stat.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some((major, minor)) = words.next().and_then(device) else { continue };
        let mut io = Io { major, minor, ..Io::default() };
        for (name, value) in words.filter_map(|word| word.split_once('=')) {
            let value = value.parse().unwrap_or(0);
            match name {
                "rbytes" => io.read_bytes = value,
                "wbytes" => io.write_bytes = value,
                "rios" => io.reads = value,
                "wios" => io.writes = value,
                _ => {}
            }
        }
        devices.push(io);
    }
    devices
}

fn io_v1(bytes: &str, ops: &str) -> Vec<Io> {
    let mut devices: BTreeMap<(u32, u32), Io> = BTreeMap::new();
    for (text, counts) in [(bytes, false), (ops, true)] {
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            let (Some(key), Some(what)) = (words.next().and_then(device), words.next()) else { continue };
            let value = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
            let io = devices.entry(key).or_insert(Io { major: key.0, minor: key.1, ..Io::default() });
            match (what, counts) {
                ("Read", false) => io.read_bytes = value,
                ("Write", false) => io.write_bytes = value,
                ("Read", true) => io.reads = value,
                ("Write", true) => io.writes = value,
                _ => {}
            }
        }
    }
    devices.into_values().collect()
}

fn hugepages(dir: &Path, current: &str, most: &str) -> BTreeMap<String, Hugepages> {
    let mut sizes = BTreeMap::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let size =
            name.to_str().and_then(|name| name.strip_prefix("hugetlb.")?.strip_suffix(current)?.strip_suffix('.'));
        if let Some(size) = size.filter(|size| !size.contains('.')) {
            let usage = number(entry.path()).unwrap_or(0);
            let limit = limit(dir.join(format!("hugetlb.{size}.{most}")));
            sizes.insert(size.to_owned(), Hugepages { usage, limit });
        }
    }
    sizes
}

fn pressure(text: &str) -> Option<Pressure> {
    let mut pressure = Pressure::default();
    let mut seen = false;
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let some = match words.next() {
            Some("some") => true,
            Some("full") => false,
            _ => continue,
        };
        seen = true;
        for (name, value) in words.filter_map(|word| word.split_once('=')) {
            let share = value.parse().unwrap_or(0.0);
            match (name, some) {
                ("avg10", true) => pressure.some_avg10 = share,
                ("avg60", true) => pressure.some_avg60 = share,
                ("avg300", true) => pressure.some_avg300 = share,
                ("total", true) => pressure.some_total_us = value.parse().unwrap_or(0),
                ("avg10", false) => pressure.full_avg10 = share,
                ("avg60", false) => pressure.full_avg60 = share,
                ("avg300", false) => pressure.full_avg300 = share,
                ("total", false) => pressure.full_total_us = value.parse().unwrap_or(0),
                _ => {}
            }
        }
    }
    seen.then_some(pressure)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_2() {
        let cpu = cpu_v2(
            "usage_usec 1000\nuser_usec 600\nsystem_usec 400\nnr_periods 5\nnr_throttled 2\nthrottled_usec 77\nnew_line x\n",
        );
        assert_eq!(
            cpu,
            Cpu { usage_us: 1000, user_us: 600, system_us: 400, periods: 5, throttled: 2, throttled_us: 77 }
        );
        let memory = memory_v2(
            5000,
            "anon 1000\nfile 3000\ninactive_file 2000\npgfault 9\npgmajfault 1\n",
            "low 0\noom 1\noom_kill 3\n",
        );
        assert_eq!((memory.working_set, memory.anon, memory.oom_kills), (3000, 1000, 3));
        // Inactive pages may for a moment be more than all.
        assert_eq!(memory_v2(1, "inactive_file 2\n", "").working_set, 0);
        let io = io_v2("8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\nrubbish\n253:1 \n");
        assert_eq!(io[0], Io { major: 8, minor: 0, read_bytes: 10, write_bytes: 20, reads: 1, writes: 2 });
        assert_eq!(io[1], Io { major: 253, minor: 1, ..Io::default() });
        let psi = pressure(
            "some avg10=1.50 avg60=0.25 avg300=0.00 total=123\nfull avg10=0.10 avg60=0.00 avg300=0.00 total=45\n",
        )
        .unwrap();
        assert!((psi.some_avg10 - 1.5).abs() < 1e-9 && psi.some_total_us == 123 && psi.full_total_us == 45);
        assert_eq!(pressure(""), None);
    }

    #[test]
    fn version_1() {
        let cpu = cpu_v1("5000000\n", "3000000\n", "2000000\n", "nr_periods 4\nnr_throttled 1\nthrottled_time 9000\n");
        assert_eq!(
            cpu,
            Cpu { usage_us: 5000, user_us: 3000, system_us: 2000, periods: 4, throttled: 1, throttled_us: 9 }
        );
        let stat = "cache 1\nrss 2\ninactive_file 3\ntotal_cache 30\ntotal_rss 40\ntotal_swap 5\ntotal_inactive_file 20\ntotal_pgfault 6\n";
        let memory = memory_v1(100, stat, "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n");
        assert_eq!((memory.working_set, memory.anon, memory.file, memory.swap, memory.oom_kills), (80, 40, 30, 5, 2));
        let io = io_v1("8:0 Read 100\n8:0 Write 200\n8:0 Total 300\nTotal 300\n", "8:0 Read 1\n8:0 Write 2\n");
        assert_eq!(io, [Io { major: 8, minor: 0, read_bytes: 100, write_bytes: 200, reads: 1, writes: 2 }]);
    }

    #[test]
    fn limits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("limit");
        for (text, want) in [("max\n", None), ("9223372036854771712\n", None), ("4096\n", Some(4096)), ("", None)] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(limit(path.clone()), want, "{text:?}");
        }
        assert_eq!(limit(dir.path().join("absent")), None);
        std::fs::write(dir.path().join("hugetlb.2MB.current"), "4096").unwrap();
        std::fs::write(dir.path().join("hugetlb.2MB.rsvd.current"), "1").unwrap();
        std::fs::write(dir.path().join("hugetlb.2MB.max"), "max").unwrap();
        let sizes = hugepages(dir.path(), "current", "max");
        assert_eq!(sizes, BTreeMap::from([("2MB".to_owned(), Hugepages { usage: 4096, limit: None })]));
    }
}
