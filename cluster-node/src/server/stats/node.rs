//! What the whole board uses, from `/proc` and the root of the control groups.

use std::{collections::BTreeMap, fs, path::Path};

use container_engine::{
    cgroup::{Pressure, Usage},
    container::NetworkUsage,
};

use super::model::{Fs, Rlimit, Time};

/// Ticks of the kernel's accounting in a second, as every program is told.
const TICKS: u64 = 100;

/// The board.
#[derive(Debug, Clone, Default)]
pub struct Board {
    /// As a control group has it; `memory.limit` is all there is.
    pub usage: Usage,
    /// Swap that is free, where there is any.
    pub swap_free: Option<u64>,
    /// Interfaces.
    pub network: BTreeMap<String, NetworkUsage>,
    /// The one with the default route.
    pub default_interface: String,
    /// When it was booted, ns since 1970.
    pub booted_ns: i64,
    /// Processors.
    pub cpus: u64,
    /// Processes and threads now, and the most there may be.
    pub tasks: Option<(i64, i64)>,
}

/// Reads it. Blocking, short.
pub fn board() -> Board {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let meminfo = meminfo(&read("/proc/meminfo"));
    let stat = read("/proc/stat");
    let mut usage = Usage::default();
    usage.cpu.usage_us = root_cpu_us().or_else(|| cpu_of_stat(&stat)).unwrap_or_default();
    memory(&meminfo, &read("/proc/vmstat"), &mut usage);
    for name in ["cpu", "memory", "io"] {
        if let Some(pressure) = pressure(&read(&format!("/proc/pressure/{name}"))) {
            usage.pressure.insert(name.to_owned(), pressure);
        }
    }
    let number = |text: String| text.trim().parse::<i64>().ok();
    let running = tasks_of(&read("/proc/loadavg"));
    Board {
        usage,
        swap_free: meminfo.get("SwapTotal").filter(|total| **total > 0).and_then(|_| meminfo.get("SwapFree").copied()),
        network: interfaces(&read("/proc/net/dev")),
        default_interface: default_interface(&read("/proc/net/route")).unwrap_or_default(),
        booted_ns: booted(&stat).unwrap_or_default().saturating_mul(1_000_000_000),
        cpus: u64::try_from(stat.lines().filter(|line| line.starts_with("cpu") && !line.starts_with("cpu ")).count())
            .unwrap_or(1),
        tasks: running.zip(number(read("/proc/sys/kernel/pid_max"))),
    }
}

/// What this process uses.
pub fn own() -> Usage {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let mut usage = Usage::default();
    usage.cpu.usage_us = own_cpu_us(&read("/proc/self/stat")).unwrap_or_default();
    let memory = board::sys::memory();
    usage.memory.usage = memory.pss;
    usage.memory.working_set = memory.pss;
    usage.memory.anon = memory.anonymous;
    usage
}

/// Behind the name in brackets: user time is the twelfth word, system time the next.
fn own_cpu_us(stat: &str) -> Option<u64> {
    let words: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let ticks = |at: usize| words.get(at).and_then(|word| word.parse::<u64>().ok());
    Some((ticks(11)? + ticks(12)?) * (1_000_000 / TICKS))
}

/// µs, exact; of version 2 or 1.
fn root_cpu_us() -> Option<u64> {
    let v2 = fs::read_to_string("/sys/fs/cgroup/cpu.stat").ok();
    let of_v2 = v2.as_deref().and_then(|text| {
        text.lines().find_map(|line| line.strip_prefix("usage_usec ")).and_then(|value| value.trim().parse().ok())
    });
    of_v2.or_else(|| {
        let text = fs::read_to_string("/sys/fs/cgroup/cpuacct/cpuacct.usage").ok()?;
        Some(text.trim().parse::<u64>().ok()? / 1000)
    })
}

/// µs, in steps of a tick: user, nice, system, irq, softirq and steal.
fn cpu_of_stat(stat: &str) -> Option<u64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line.split_ascii_whitespace().map_while(|word| word.parse().ok()).collect();
    let busy = [0, 1, 2, 5, 6, 7].into_iter().filter_map(|at| ticks.get(at)).sum::<u64>();
    Some(busy * (1_000_000 / TICKS))
}

fn booted(stat: &str) -> Option<i64> {
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

/// The number behind the slash of `0.00 0.01 0.05 2/345 6789`.
fn tasks_of(loadavg: &str) -> Option<i64> {
    loadavg.split(' ').nth(3)?.split_once('/')?.1.parse().ok()
}

/// Bytes by name.
fn meminfo(text: &str) -> BTreeMap<String, u64> {
    let line = |line: &str| {
        let (name, rest) = line.split_once(':')?;
        let number: u64 = rest.split_ascii_whitespace().next()?.parse().ok()?;
        Some((name.to_owned(), number * if rest.trim_end().ends_with("kB") { 1024 } else { 1 }))
    };
    text.lines().filter_map(line).collect()
}

/// As the kubelet counts: used is what is not free, and the working set that without inactive file pages.
fn memory(meminfo: &BTreeMap<String, u64>, vmstat: &str, usage: &mut Usage) {
    let of = |name: &str| meminfo.get(name).copied().unwrap_or_default();
    let fault = |name: &str| {
        let found = vmstat.lines().find_map(|line| line.strip_prefix(name).and_then(|rest| rest.strip_prefix(' ')));
        found.and_then(|value| value.trim().parse().ok()).unwrap_or_default()
    };
    let memory = &mut usage.memory;
    memory.limit = Some(of("MemTotal"));
    memory.usage = of("MemTotal").saturating_sub(of("MemFree"));
    memory.working_set = memory.usage.saturating_sub(of("Inactive(file)"));
    memory.anon = of("AnonPages");
    memory.file = of("Cached");
    memory.swap = of("SwapTotal").saturating_sub(of("SwapFree"));
    (memory.page_faults, memory.major_page_faults) = (fault("pgfault"), fault("pgmajfault"));
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0` and `full …`.
fn pressure(text: &str) -> Option<Pressure> {
    let values = |kind: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(kind))?;
        let value = |name: &str| {
            line.split_ascii_whitespace()
                .find_map(|word| word.strip_prefix(name).and_then(|rest| rest.strip_prefix('=')))
        };
        let share = |name: &str| value(name).and_then(|text| text.parse::<f64>().ok()).unwrap_or_default();
        let total = value("total").and_then(|text| text.parse::<u64>().ok()).unwrap_or_default();
        Some((share("avg10"), share("avg60"), share("avg300"), total))
    };
    let (some_avg10, some_avg60, some_avg300, some_total_us) = values("some ")?;
    let (full_avg10, full_avg60, full_avg300, full_total_us) = values("full ").unwrap_or_default();
    Some(Pressure {
        some_avg10,
        some_avg60,
        some_avg300,
        some_total_us,
        full_avg10,
        full_avg60,
        full_avg300,
        full_total_us,
    })
}

/// Interfaces of the board itself: without loopback and what leads into pods.
fn interfaces(text: &str) -> BTreeMap<String, NetworkUsage> {
    let line = |line: &str| {
        let (name, counters) = line.split_once(':')?;
        let counters: Vec<u64> = counters.split_ascii_whitespace().map_while(|word| word.parse().ok()).collect();
        let [rx_bytes, rx_packets, rx_errors, rx_dropped, _, _, _, _, tx_bytes, tx_packets, tx_errors, tx_dropped, ..] =
            counters[..]
        else {
            return None;
        };
        let usage =
            NetworkUsage { rx_bytes, rx_packets, rx_errors, rx_dropped, tx_bytes, tx_packets, tx_errors, tx_dropped };
        Some((name.trim().to_owned(), usage))
    };
    // The engine's ends of pods' links begin with `ev`, those of CNI plugins with the others.
    let pods = |name: &str| {
        ["veth", "cali", "lxc", "ifb"].iter().any(|it| name.starts_with(it))
            || (name.starts_with("ev") && name.len() > 8)
    };
    let own = |name: &String| name != "lo" && !pods(name);
    text.lines().filter_map(line).filter(|(name, _)| own(name)).collect()
}

fn default_interface(route: &str) -> Option<String> {
    let mut words = route.lines().skip(1).map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    words.find(|words| words.get(1) == Some(&"00000000")).and_then(|words| words.first().map(|name| (*name).to_owned()))
}

/// A file system as a whole. Blocking where it is a network's.
pub fn file_system(path: &Path, time: Time) -> Option<Fs> {
    let stat = rustix::fs::statvfs(path).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    Some(Fs {
        time,
        available_bytes: Some(bytes(stat.f_bavail)),
        capacity_bytes: Some(bytes(stat.f_blocks)),
        used_bytes: Some(bytes(stat.f_blocks.saturating_sub(stat.f_bfree))),
        inodes_free: Some(stat.f_ffree),
        inodes: Some(stat.f_files),
        inodes_used: Some(stat.f_files.saturating_sub(stat.f_ffree)),
    })
}

/// As the summary has it.
pub fn rlimit(board: &Board, time: Time) -> Option<Rlimit> {
    board.tasks.map(|(curproc, maxpid)| Rlimit { time, maxpid, curproc })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_are_read() {
        let stat = "cpu  10 20 30 400 50 1 2 3 9 9\ncpu0 1 1 1 1\ncpu1 1 1 1 1\nbtime 1700000000\n";
        assert_eq!(cpu_of_stat(stat), Some(66 * 10_000));
        assert_eq!(booted(stat), Some(1_700_000_000));
        assert_eq!(tasks_of("0.00 0.01 0.05 2/345 6789\n"), Some(345));
        assert_eq!(tasks_of("?"), None);
        let own = "42 (edge) agent) S 1 42 42 0 -1 4194560 1 0 0 0 30 12 0 0 20 0 8 0 1 1 1";
        assert_eq!(own_cpu_us(own), Some(42 * 10_000));
        let route = "Iface\tDestination\tGateway\neth1\t0002A8C0\t00000000\neth0\t00000000\t0102A8C0\n";
        assert_eq!(default_interface(route).as_deref(), Some("eth0"));
        assert_eq!(default_interface(""), None);
        let dev = "Inter-|   Receive\n face |bytes\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  eth0: 5 1 2 0 0 0 0 0 6 1 3 0 0 0 0 0\nvethx: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\nevca978112ca1b: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n";
        let found = interfaces(dev);
        assert_eq!(found.keys().collect::<Vec<_>>(), ["eth0"]);
        assert_eq!((found["eth0"].rx_bytes, found["eth0"].tx_bytes, found["eth0"].tx_errors), (5, 6, 3));
        let psi = pressure(
            "some avg10=1.50 avg60=0.00 avg300=0.00 total=7\nfull avg10=0.00 avg60=0.00 avg300=2.00 total=3\n",
        )
        .unwrap();
        assert_eq!((psi.some_total_us, psi.full_total_us), (7, 3));
        assert_eq!(pressure(""), None);
    }

    #[test]
    fn memory_is_counted_as_the_kubelet_does() {
        let info = meminfo(
            "MemTotal: 1000 kB\nMemFree: 300 kB\nInactive(file): 100 kB\nAnonPages: 50 kB\nSwapTotal: 10 kB\nSwapFree: 4 kB\n",
        );
        let mut usage = Usage::default();
        memory(&info, "pgfault 12\npgmajfault 3\n", &mut usage);
        let memory = usage.memory;
        assert_eq!((memory.usage, memory.working_set, memory.anon), (700 << 10, 600 << 10, 50 << 10));
        assert_eq!((memory.page_faults, memory.major_page_faults, memory.swap), (12, 3, 6 << 10));
    }

    #[test]
    fn this_machine_is_measured() {
        let (board, own) = (board(), own());
        assert!(own.memory.working_set > 1 << 20);
        assert!(board.usage.cpu.usage_us > 0 && board.usage.memory.working_set > 0 && board.booted_ns > 0);
        let fs = file_system(Path::new("/"), Time::ns(0)).unwrap();
        assert!(fs.capacity_bytes > Some(0) && fs.inodes_used.is_some());
    }
}
