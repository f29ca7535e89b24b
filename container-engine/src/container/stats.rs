//! What a container uses, and which processes it has. Read when asked for: nobody polls.

use std::{collections::BTreeMap, path::Path, time::Duration};

use super::{ContainerError, ContainerId, Containers, NetworkMode, NetworkUsage, Process, Stats};
use crate::{
    event::now_ns,
    logs::{ReadError, ReadOptions, Reader},
};

/// Shortest interval of a stream.
const SHORTEST: Duration = Duration::from_millis(100);
/// Most processes that are listed.
const MAX_PROCESSES: usize = 10_000;

impl Containers {
    /// What the container uses now; one that does not run uses nothing. With `disk` its writable part is measured too,
    /// which takes a while.
    pub async fn stats(&self, id: &ContainerId, disk: bool) -> Result<Stats, ContainerError> {
        let entry = self.entry(id)?;
        let mut stats = Stats { time_ns: now_ns(), ..Stats::default() };
        let pid = entry.with(|record| record.state.pid.filter(|_| record.state.status.is_alive()));
        if let Some(pid) = pid {
            let own = entry.with(|record| !matches!(record.spec.network, NetworkMode::Host));
            let (cgroups, cgroup) = (self.0.parts.cgroups.clone(), self.cgroup(&entry));
            let read = tokio::task::spawn_blocking(move || {
                let network = if own { interfaces(pid) } else { BTreeMap::new() };
                (cgroups.usage(&cgroup), network)
            });
            if let Ok((usage, network)) = read.await {
                // It may have ended since.
                stats.cgroup = usage.unwrap_or_default();
                stats.network = network;
            }
        }
        if disk {
            stats.disk = Some(self.0.parts.roots.usage(id.as_str()).await.map_err(ContainerError::Root)?);
        }
        Ok(stats)
    }

    /// The same again and again, for as long as it is asked.
    pub fn stats_stream(&self, id: &ContainerId, interval: Duration) -> StatsStream {
        StatsStream { containers: self.clone(), id: id.clone(), interval: interval.max(SHORTEST), due: None }
    }

    /// Its log. When following, it ends with the container's present life; one that does not run has what it has.
    pub async fn logs(&self, id: &ContainerId, options: ReadOptions) -> Result<Reader, ContainerError> {
        let entry = self.entry(id)?;
        let (path, life) = (self.log_path(&entry), entry.life());
        match Reader::open(&path, options.clone(), life.clone()).await {
            // One that was never started has said nothing.
            Err(ReadError::Missing { .. }) if entry.with(|record| record.state.starts == 0) => {
                let failed = |source| ContainerError::Io { what: "make", path: path.clone(), source };
                std::fs::OpenOptions::new().create(true).append(true).open(&path).map_err(failed)?;
                Ok(Reader::open(&path, options, life).await?)
            }
            other => Ok(other?),
        }
    }

    /// The container's processes, the first one first.
    pub async fn top(&self, id: &ContainerId) -> Result<Vec<Process>, ContainerError> {
        let entry = self.alive(id, "only a running container has processes")?;
        let (cgroups, cgroup) = (self.0.parts.cgroups.clone(), self.cgroup(&entry));
        let read = tokio::task::spawn_blocking(move || {
            let pids = cgroups.processes(&cgroup)?;
            let boot = boot_ns();
            Ok(pids.into_iter().take(MAX_PROCESSES).filter_map(|pid| process(pid, boot)).collect())
        });
        read.await.unwrap_or_else(|_| Ok(Vec::new()))
    }
}

/// Statistics of one container, one after the other.
pub struct StatsStream {
    containers: Containers,
    id: ContainerId,
    interval: Duration,
    due: Option<tokio::time::Instant>,
}

impl StatsStream {
    /// The next; the first at once. `None` when the container is removed or has ended. Cancel-safe.
    pub async fn next(&mut self) -> Option<Stats> {
        if let Some(due) = self.due {
            tokio::time::sleep_until(due).await;
            if !self.containers.entry(&self.id).is_ok_and(|entry| entry.status().is_alive()) {
                return None;
            }
        }
        let stats = self.containers.stats(&self.id, false).await.ok()?;
        self.due = Some(tokio::time::Instant::now() + self.interval);
        Some(stats)
    }
}

/// Counters of the interfaces in the network namespace of a process, loopback left out.
fn interfaces(pid: u32) -> BTreeMap<String, NetworkUsage> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default();
    net_dev(&text)
}

fn net_dev(text: &str) -> BTreeMap<String, NetworkUsage> {
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
    text.lines().filter_map(line).filter(|(name, _)| name != "lo").collect()
}

/// When the board started, nanoseconds since 1970.
fn boot_ns() -> i64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let seconds =
        stat.lines().find_map(|line| line.strip_prefix("btime ")).and_then(|text| text.trim().parse::<i64>().ok());
    seconds.unwrap_or(0).saturating_mul(1_000_000_000)
}

/// One process; `None` where it has ended meanwhile.
fn process(pid: u32, boot_ns: i64) -> Option<Process> {
    let dir = format!("/proc/{pid}");
    let stat = std::fs::read(format!("{dir}/stat")).ok()?;
    let mut process = parse_stat(&String::from_utf8_lossy(&stat), rustix::param::clock_ticks_per_second(), boot_ns)?;
    process.pid = pid;
    process.uid = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(Path::new(&dir)).ok()?);
    process.rss = process.rss.saturating_mul(rustix::param::page_size() as u64);
    let line = std::fs::read(format!("{dir}/cmdline")).unwrap_or_default();
    let words = line.split(|byte| *byte == 0).filter(|word| !word.is_empty());
    let words: Vec<String> = words.take(256).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    if !words.is_empty() {
        process.command = words;
    }
    Some(process)
}

/// `/proc/PID/stat`; memory in pages. The name stands in parentheses and may hold anything.
fn parse_stat(stat: &str, ticks: u64, boot_ns: i64) -> Option<Process> {
    let (open, close) = (stat.find('(')?, stat.rfind(')')?);
    let name = stat.get(open + 1..close)?;
    let fields: Vec<&str> = stat.get(close + 1..)?.split_ascii_whitespace().collect();
    // The state is field 3 of proc(5).
    let number = |field: usize| fields.get(field - 3).and_then(|text| text.parse::<u64>().ok());
    let nanos = |count: u64| count.saturating_mul(1_000_000_000) / ticks.max(1);
    let started = i64::try_from(nanos(number(22)?)).unwrap_or(i64::MAX);
    Some(Process {
        state: fields.first()?.chars().next()?,
        ppid: u32::try_from(number(4)?).ok()?,
        tty: u32::try_from(number(7)?).unwrap_or(0),
        cpu_time: Duration::from_nanos(nanos(number(14)?.saturating_add(number(15)?))),
        started_ns: boot_ns.saturating_add(started),
        rss: number(24)?,
        command: vec![format!("[{name}]")],
        ..Process::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_interfaces() {
        let text = "Inter-|   Receive                                                |  Transmit\n \
            face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
            lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0\n  \
            eth0: 1500 10 1 2 0 0 0 0 700 7 3 4 0 0 0 0\nshort: 1 2\n";
        let usage = net_dev(text);
        assert_eq!(usage.len(), 1);
        let eth0 = usage["eth0"];
        assert_eq!((eth0.rx_bytes, eth0.rx_packets, eth0.rx_errors, eth0.rx_dropped), (1500, 10, 1, 2));
        assert_eq!((eth0.tx_bytes, eth0.tx_packets, eth0.tx_errors, eth0.tx_dropped), (700, 7, 3, 4));
    }

    #[test]
    fn processes() {
        let rest = "S 7 1 1 34816 1 0 0 0 0 0 150 50 0 0 20 0 1 0 200 4096 12 0 0";
        let process = parse_stat(&format!("42 (a) (b)) {rest}"), 100, 1_000).unwrap();
        assert_eq!((process.state, process.ppid, process.tty, process.rss), ('S', 7, 34816, 12));
        assert_eq!(process.cpu_time, Duration::from_secs(2));
        assert_eq!(process.started_ns, 2_000_001_000);
        assert_eq!(process.command, ["[a) (b)]"]);
        for wrong in ["", "1 (x", "1 (x) S", ")(", "1 (x) S a b c"] {
            assert_eq!(parse_stat(wrong, 100, 0), None, "{wrong:?}");
        }
        assert_eq!(super::process(std::process::id(), boot_ns()).unwrap().pid, std::process::id());
    }
}
