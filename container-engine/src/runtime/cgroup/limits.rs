//! What the OCI's numbers are called in control groups of version 1 and 2.

use std::path::Path;

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources, LinuxThrottleDevice};

use super::{Cgroup, CgroupError, write};

/// A file to write, where its controller exists.
struct Target<'a> {
    cgroup: &'a Cgroup,
    controller: &'static str,
    limit: &'static str,
}

impl Target<'_> {
    fn folder(&self) -> Result<&Path, CgroupError> {
        self.cgroup
            .folder(self.controller)
            .ok_or(CgroupError::NoController { controller: self.controller, limit: self.limit })
    }

    fn write(&self, file: &str, value: impl ToString) -> Result<(), CgroupError> {
        let path = self.folder()?.join(file);
        if !path.exists() {
            return Err(CgroupError::NoController { controller: self.controller, limit: self.limit });
        }
        write(&path, &value.to_string())
    }

    fn has(&self, file: &str) -> bool {
        self.folder().is_ok_and(|folder| folder.join(file).exists())
    }

    fn read(&self, file: &str) -> Option<i64> {
        std::fs::read_to_string(self.folder().ok()?.join(file)).ok()?.trim().parse().ok()
    }
}

fn target<'a>(cgroup: &'a Cgroup, controller: &'static str, limit: &'static str) -> Target<'a> {
    Target { cgroup, controller, limit }
}

/// `-1` is no limit.
fn or_max(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

pub(super) fn apply_v2(cgroup: &Cgroup, resources: &LinuxResources) -> Result<(), CgroupError> {
    if let Some(pids) = resources.pids().as_ref().filter(|pids| pids.limit() != 0) {
        target(cgroup, "pids", "pids.limit").write("pids.max", or_max(pids.limit()))?;
    }
    if let Some(memory) = resources.memory() {
        memory_v2(&target(cgroup, "memory", "memory"), memory)?;
    }
    if let Some(cpu) = resources.cpu() {
        cpu_v2(cgroup, cpu)?;
    }
    if let Some(block) = resources.block_io() {
        block_v2(&target(cgroup, "io", "blockIO"), block)?;
    }
    for huge in resources.hugepage_limits().iter().flatten() {
        let to = target(cgroup, "hugetlb", "hugepageLimits");
        to.write(&format!("hugetlb.{}.max", huge.page_size()), or_max(huge.limit()))?;
        let reserved = format!("hugetlb.{}.rsvd.max", huge.page_size());
        if to.has(&reserved) {
            to.write(&reserved, or_max(huge.limit()))?;
        }
    }
    for (device, limit) in resources.rdma().iter().flatten() {
        let handles = limit.hca_handles().map(|n| format!(" hca_handle={n}")).unwrap_or_default();
        let objects = limit.hca_objects().map(|n| format!(" hca_object={n}")).unwrap_or_default();
        target(cgroup, "rdma", "rdma").write("rdma.max", format!("{device}{handles}{objects}"))?;
    }
    for (file, value) in resources.unified().iter().flatten() {
        if file.contains('/') || file.is_empty() || file.starts_with("cgroup.") {
            return Err(CgroupError::Value(format!("unified resource {file:?} is not a controller's file")));
        }
        target(cgroup, "unified", "unified").write(file, value)?;
    }
    Ok(())
}

fn memory_v2(to: &Target<'_>, memory: &LinuxMemory) -> Result<(), CgroupError> {
    if let Some(swap) = memory.swap().filter(|swap| *swap != 0) {
        // The OCI counts memory and swap together, version 2 counts swap alone.
        let alone = match (swap, memory.limit()) {
            (-1, _) => "max".to_owned(),
            (swap, Some(limit)) if limit > 0 && swap >= limit => (swap - limit).to_string(),
            _ => {
                return Err(CgroupError::Value(
                    "memory.swap needs memory.limit, and counts both: it cannot be the smaller one".to_owned(),
                ));
            }
        };
        // A kernel without swap accounting has no such file; then there is nothing to limit.
        if to.has("memory.swap.max") || (alone != "max" && alone != "0") {
            to.write("memory.swap.max", alone)?;
        }
    }
    if let Some(limit) = memory.limit().filter(|limit| *limit != 0) {
        if let (Some(true), Some(used)) = (memory.check_before_update(), to.read("memory.current"))
            && limit > 0
            && used > limit
        {
            return Err(CgroupError::Value(format!("memory.limit {limit} is below what is in use: {used}")));
        }
        to.write("memory.max", or_max(limit))?;
        if limit < 0 && memory.swap().is_none() && to.has("memory.swap.max") {
            to.write("memory.swap.max", "max")?;
        }
    }
    if let Some(reservation) = memory.reservation().filter(|reservation| *reservation != 0) {
        to.write("memory.low", or_max(reservation))?;
    }
    Ok(())
}

fn cpu_v2(cgroup: &Cgroup, cpu: &LinuxCpu) -> Result<(), CgroupError> {
    let to = target(cgroup, "cpu", "cpu");
    if let Some(idle) = cpu.idle() {
        to.write("cpu.idle", idle)?;
    }
    if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
        // An idle group has no weight.
        if cpu.idle() != Some(1) {
            to.write("cpu.weight", weight_of_shares(shares))?;
        }
    }
    let (quota, period) = (cpu.quota().unwrap_or(0), cpu.period().unwrap_or(0));
    let burst = cpu.burst();
    // A burst above the quota is refused: make room first, or lower it first.
    let lowered = burst == Some(0) && to.has("cpu.max.burst");
    if lowered {
        to.write("cpu.max.burst", 0)?;
    }
    if quota != 0 || period != 0 {
        let quota = if quota > 0 { quota.to_string() } else { "max".to_owned() };
        let period = if period == 0 { 100_000 } else { period };
        to.write("cpu.max", format!("{quota} {period}"))?;
    }
    if let Some(burst) = burst.filter(|_| !lowered) {
        to.write("cpu.max.burst", burst)?;
    }
    let to = target(cgroup, "cpuset", "cpu.cpus");
    for (file, value) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
        if let Some(value) = value.as_ref().filter(|value| !value.is_empty()) {
            to.write(file, value)?;
        }
    }
    Ok(())
}

/// From 2…262144 to 1…10000, as every runtime does it.
fn weight_of_shares(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

fn block_v2(to: &Target<'_>, block: &LinuxBlockIo) -> Result<(), CgroupError> {
    if let Some(weight) = block.weight().filter(|weight| *weight != 0) {
        if to.has("io.bfq.weight") {
            to.write("io.bfq.weight", weight)?;
        } else {
            let weight = 1 + (u64::from(weight).clamp(10, 1000) - 10) * 9999 / 990;
            to.write("io.weight", weight)?;
        }
    }
    for device in block.weight_device().iter().flatten() {
        if let Some(weight) = device.weight() {
            to.write("io.bfq.weight", format!("{}:{} {weight}", device.major(), device.minor()))?;
        }
    }
    let throttles = [
        ("rbps", block.throttle_read_bps_device()),
        ("wbps", block.throttle_write_bps_device()),
        ("riops", block.throttle_read_iops_device()),
        ("wiops", block.throttle_write_iops_device()),
    ];
    for (key, devices) in throttles {
        for device in devices.iter().flatten() {
            let rate = if device.rate() == 0 { "max".to_owned() } else { device.rate().to_string() };
            to.write("io.max", format!("{}:{} {key}={rate}", device.major(), device.minor()))?;
        }
    }
    Ok(())
}

pub(super) fn apply_v1(cgroup: &Cgroup, resources: &LinuxResources) -> Result<(), CgroupError> {
    if let Some(pids) = resources.pids().as_ref().filter(|pids| pids.limit() != 0) {
        target(cgroup, "pids", "pids.limit").write("pids.max", or_max(pids.limit()))?;
    }
    if let Some(memory) = resources.memory() {
        memory_v1(&target(cgroup, "memory", "memory"), memory)?;
    }
    if let Some(cpu) = resources.cpu() {
        cpu_v1(cgroup, cpu)?;
    }
    if let Some(block) = resources.block_io() {
        block_v1(&target(cgroup, "blkio", "blockIO"), block)?;
    }
    for huge in resources.hugepage_limits().iter().flatten() {
        let to = target(cgroup, "hugetlb", "hugepageLimits");
        to.write(&format!("hugetlb.{}.limit_in_bytes", huge.page_size()), huge.limit())?;
    }
    if let Some(network) = resources.network() {
        if let Some(class) = network.class_id().filter(|class| *class != 0) {
            target(cgroup, "net_cls", "network.classID").write("net_cls.classid", class)?;
        }
        for priority in network.priorities().iter().flatten() {
            let line = format!("{} {}", priority.name(), priority.priority());
            target(cgroup, "net_prio", "network.priorities").write("net_prio.ifpriomap", line)?;
        }
    }
    if resources.unified().as_ref().is_some_and(|unified| !unified.is_empty()) {
        return Err(CgroupError::NoController { controller: "version 2", limit: "unified" });
    }
    Ok(())
}

fn memory_v1(to: &Target<'_>, memory: &LinuxMemory) -> Result<(), CgroupError> {
    const LIMIT: &str = "memory.limit_in_bytes";
    const BOTH: &str = "memory.memsw.limit_in_bytes";
    let limit = memory.limit().filter(|limit| *limit != 0);
    // Without a swap limit of its own, unlimited memory means unlimited swap.
    let both = memory.swap().filter(|swap| *swap != 0).or(limit.filter(|limit| *limit < 0));
    let both = both.filter(|both| to.has(BOTH) || *both > 0);
    match (limit, both) {
        (Some(limit), Some(both)) => {
            // The kernel wants the sum never below the part: grow it first, or shrink it last.
            let now = to.read(BOTH).unwrap_or(i64::MAX);
            let grows = both < 0 || both > now;
            let order = [(BOTH, both), (LIMIT, limit)];
            let order = if grows { order } else { [order[1], order[0]] };
            order.iter().try_for_each(|(file, value)| to.write(file, value))?;
        }
        (Some(limit), None) => to.write(LIMIT, limit)?,
        (None, Some(both)) => to.write(BOTH, both)?,
        (None, None) => {}
    }
    if let Some(reservation) = memory.reservation().filter(|reservation| *reservation != 0) {
        to.write("memory.soft_limit_in_bytes", reservation)?;
    }
    if let Some(tcp) = memory.kernel_tcp().filter(|tcp| *tcp != 0) {
        to.write("memory.kmem.tcp.limit_in_bytes", tcp)?;
    }
    // `kernel` was taken out of the kernel in 5.16; like runc, it is passed over.
    if let Some(swappiness) = memory.swappiness() {
        to.write("memory.swappiness", swappiness)?;
    }
    if memory.disable_oom_killer() == Some(true) {
        to.write("memory.oom_control", 1)?;
    }
    Ok(())
}

fn cpu_v1(cgroup: &Cgroup, cpu: &LinuxCpu) -> Result<(), CgroupError> {
    let to = target(cgroup, "cpu", "cpu");
    if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
        to.write("cpu.shares", shares)?;
    }
    if let Some(idle) = cpu.idle() {
        to.write("cpu.idle", idle)?;
    }
    if cpu.burst() == Some(0) && to.has("cpu.cfs_burst_us") {
        to.write("cpu.cfs_burst_us", 0)?;
    }
    let period = cpu.period().filter(|period| *period != 0);
    let quota = cpu.quota().filter(|quota| *quota != 0);
    let period_first = period.map_or(Ok(()), |period| to.write("cpu.cfs_period_us", period));
    match (&period_first, quota) {
        // A period too short for the quota in force: the new quota goes first.
        (Err(_), Some(quota)) => {
            to.write("cpu.cfs_quota_us", quota)?;
            to.write("cpu.cfs_period_us", period.unwrap_or_default())?;
        }
        (Err(_), None) => period_first?,
        (Ok(()), Some(quota)) => to.write("cpu.cfs_quota_us", quota)?,
        (Ok(()), None) => {}
    }
    if let Some(burst) = cpu.burst().filter(|burst| *burst != 0) {
        to.write("cpu.cfs_burst_us", burst)?;
    }
    if let Some(period) = cpu.realtime_period().filter(|period| *period != 0) {
        to.write("cpu.rt_period_us", period)?;
    }
    if let Some(runtime) = cpu.realtime_runtime().filter(|runtime| *runtime != 0) {
        to.write("cpu.rt_runtime_us", runtime)?;
    }
    let to = target(cgroup, "cpuset", "cpu.cpus");
    for (file, value) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
        if let Some(value) = value.as_ref().filter(|value| !value.is_empty()) {
            to.write(file, value)?;
        }
    }
    Ok(())
}

fn block_v1(to: &Target<'_>, block: &LinuxBlockIo) -> Result<(), CgroupError> {
    if let Some(weight) = block.weight().filter(|weight| *weight != 0) {
        to.write(if to.has("blkio.weight") { "blkio.weight" } else { "blkio.bfq.weight" }, weight)?;
    }
    if let Some(weight) = block.leaf_weight().filter(|weight| *weight != 0) {
        to.write("blkio.leaf_weight", weight)?;
    }
    for device in block.weight_device().iter().flatten() {
        let file = if to.has("blkio.weight_device") { "blkio.weight_device" } else { "blkio.bfq.weight_device" };
        if let Some(weight) = device.weight() {
            to.write(file, format!("{}:{} {weight}", device.major(), device.minor()))?;
        }
    }
    let throttles: [(&str, &Option<Vec<LinuxThrottleDevice>>); 4] = [
        ("blkio.throttle.read_bps_device", block.throttle_read_bps_device()),
        ("blkio.throttle.write_bps_device", block.throttle_write_bps_device()),
        ("blkio.throttle.read_iops_device", block.throttle_read_iops_device()),
        ("blkio.throttle.write_iops_device", block.throttle_write_iops_device()),
    ];
    for (file, devices) in throttles {
        for device in devices.iter().flatten() {
            to.write(file, format!("{}:{} {}", device.major(), device.minor(), device.rate()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_weights() {
        for (shares, weight) in [(2, 1), (1024, 39), (262_144, 10_000), (1, 1), (1_000_000, 10_000)] {
            assert_eq!(weight_of_shares(shares), weight, "{shares}");
        }
    }
}
