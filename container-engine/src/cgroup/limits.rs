//! Limits as the files of a group. Pure: what goes where, for both versions.

use crate::container::Resources;

/// Shortest quota that the kernel takes, µs.
const MIN_QUOTA_US: u64 = 1000;
/// Accounting period where none is given, µs.
pub(crate) const PERIOD_US: u64 = 100_000;

/// One value for one file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct File {
    pub controller: &'static str,
    pub name: String,
    pub value: String,
    /// Which limit, for an error.
    pub limit: &'static str,
    /// Whether a kernel without this file is no error.
    pub optional: bool,
}

fn file(controller: &'static str, name: impl Into<String>, value: impl ToString, limit: &'static str) -> File {
    File { controller, name: name.into(), value: value.to_string(), limit, optional: false }
}

/// Shares of version 1 (2 to 262144) as a weight of version 2 (1 to 10000): runc's and systemd's conversion.
pub fn weight_of_shares(shares: u64) -> u64 {
    if shares == 0 { 0 } else { 1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142 }
}

/// Quota in µs for thousandths of a core.
pub(crate) fn quota_us(cpu_milli: u64, period_us: u64) -> u64 {
    let quota = u128::from(cpu_milli) * u128::from(period_us) / 1000;
    u64::try_from(quota).unwrap_or(u64::MAX).max(MIN_QUOTA_US)
}

/// Negative means without limit.
fn or_max(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

/// Swap alone: what `memory_swap` allows beyond the memory.
pub(crate) fn swap_v2(memory: Option<u64>, memory_swap: i64) -> String {
    let both = u64::try_from(memory_swap);
    both.map_or_else(|_| "max".to_owned(), |both| both.saturating_sub(memory.unwrap_or(0)).to_string())
}

pub(super) fn v2(limits: &Resources) -> Vec<File> {
    let mut files = Vec::new();
    if let Some(memory) = limits.memory {
        files.push(file("memory", "memory.max", memory, "a memory limit"));
    }
    if let Some(swap) = limits.memory_swap {
        let swap = file("memory", "memory.swap.max", swap_v2(limits.memory, swap), "a swap limit");
        files.push(File { optional: true, ..swap });
    }
    if let Some(low) = limits.memory_reservation {
        files.push(file("memory", "memory.low", low, "a memory reservation"));
    }
    if let Some(milli) = limits.cpu_milli {
        let period = limits.cpu_period_us.unwrap_or(PERIOD_US);
        files.push(file("cpu", "cpu.max", format!("{} {period}", quota_us(milli, period)), "a CPU limit"));
    }
    if let Some(shares) = limits.cpu_shares.filter(|shares| *shares > 0) {
        files.push(file("cpu", "cpu.weight", weight_of_shares(shares), "CPU shares"));
    }
    cpuset(limits, &mut files);
    if let Some(pids) = limits.pids {
        files.push(file("pids", "pids.max", or_max(pids), "a pids limit"));
    }
    if let Some(weight) = limits.blkio_weight.filter(|weight| *weight > 0) {
        // 10 to 1000 becomes 1 to 10000, as runc does; the scheduler's own file is there with BFQ alone.
        let wide = 1 + (u64::from(weight.clamp(10, 1000)) - 10) * 9999 / 990;
        files.push(File { optional: true, ..file("io", "io.bfq.weight", weight, "a block I/O weight") });
        files.push(File { optional: true, ..file("io", "io.weight", wide, "a block I/O weight") });
    }
    for (size, bytes) in &limits.hugepages {
        files.push(file("hugetlb", format!("hugetlb.{size}.max"), bytes, "a hugepage limit"));
    }
    for (name, value) in &limits.unified {
        // A name with a slash would leave the group.
        if !name.contains('/') && name.contains('.') {
            files.push(file("", name.clone(), value, "a further file of cgroup v2"));
        }
    }
    files
}

pub(super) fn v1(limits: &Resources) -> Vec<File> {
    let mut files = Vec::new();
    if let Some(memory) = limits.memory {
        files.push(file("memory", "memory.limit_in_bytes", memory, "a memory limit"));
    }
    if let Some(swap) = limits.memory_swap {
        let swap = file("memory", "memory.memsw.limit_in_bytes", swap, "a swap limit");
        files.push(File { optional: true, ..swap });
    }
    if let Some(low) = limits.memory_reservation {
        files.push(file("memory", "memory.soft_limit_in_bytes", low, "a memory reservation"));
    }
    if let Some(milli) = limits.cpu_milli {
        let period = limits.cpu_period_us.unwrap_or(PERIOD_US);
        files.push(file("cpu", "cpu.cfs_period_us", period, "a CPU limit"));
        files.push(file("cpu", "cpu.cfs_quota_us", quota_us(milli, period), "a CPU limit"));
    }
    if let Some(shares) = limits.cpu_shares.filter(|shares| *shares > 0) {
        files.push(file("cpu", "cpu.shares", shares, "CPU shares"));
    }
    cpuset(limits, &mut files);
    if let Some(pids) = limits.pids {
        files.push(file("pids", "pids.max", or_max(pids), "a pids limit"));
    }
    if let Some(weight) = limits.blkio_weight.filter(|weight| *weight > 0) {
        files.push(File { optional: true, ..file("blkio", "blkio.bfq.weight", weight, "a block I/O weight") });
        files.push(File { optional: true, ..file("blkio", "blkio.weight", weight, "a block I/O weight") });
    }
    for (size, bytes) in &limits.hugepages {
        files.push(file("hugetlb", format!("hugetlb.{size}.limit_in_bytes"), bytes, "a hugepage limit"));
    }
    files
}

fn cpuset(limits: &Resources, files: &mut Vec<File>) {
    for (name, value) in [("cpuset.cpus", &limits.cpuset_cpus), ("cpuset.mems", &limits.cpuset_mems)] {
        if let Some(value) = value {
            files.push(file("cpuset", name, value, "a cpuset"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights() {
        for (shares, weight) in [(0, 0), (1, 1), (2, 1), (1024, 39), (262_144, 10_000), (u64::MAX, 10_000)] {
            assert_eq!(weight_of_shares(shares), weight, "{shares}");
        }
    }

    #[test]
    fn quotas() {
        for (milli, period, quota) in [(500, 100_000, 50_000), (1, 100_000, 1000), (2500, 50_000, 125_000)] {
            assert_eq!(quota_us(milli, period), quota, "{milli} of {period}");
        }
        assert_eq!(quota_us(u64::MAX, u64::MAX), u64::MAX);
    }

    #[test]
    fn files() {
        let limits = Resources {
            memory: Some(1000),
            memory_swap: Some(1500),
            cpu_milli: Some(250),
            pids: Some(-1),
            cpu_shares: Some(1024),
            cpuset_cpus: Some("0-1".into()),
            ..Resources::default()
        };
        let flat = |files: Vec<File>| -> Vec<String> {
            files.into_iter().map(|file| format!("{}:{}={}", file.controller, file.name, file.value)).collect()
        };
        assert_eq!(
            flat(v2(&limits)),
            [
                "memory:memory.max=1000",
                "memory:memory.swap.max=500",
                "cpu:cpu.max=25000 100000",
                "cpu:cpu.weight=39",
                "cpuset:cpuset.cpus=0-1",
                "pids:pids.max=max"
            ]
        );
        assert_eq!(
            flat(v1(&limits)),
            [
                "memory:memory.limit_in_bytes=1000",
                "memory:memory.memsw.limit_in_bytes=1500",
                "cpu:cpu.cfs_period_us=100000",
                "cpu:cpu.cfs_quota_us=25000",
                "cpu:cpu.shares=1024",
                "cpuset:cpuset.cpus=0-1",
                "pids:pids.max=max"
            ]
        );
        let unlimited = Resources { memory_swap: Some(-1), ..Resources::default() };
        assert_eq!(flat(v2(&unlimited)), ["memory:memory.swap.max=max"]);
        let escape = Resources { unified: [("../x.y".to_owned(), "1".to_owned())].into(), ..Resources::default() };
        assert!(v2(&escape).is_empty());
        assert!(v1(&Resources::default()).is_empty());
    }
}
