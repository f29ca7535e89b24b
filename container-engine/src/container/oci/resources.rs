//! OCI's `resources`.

use serde_json::{Value, json};

use super::ConfigError;
use crate::{cgroup, container::Resources};

/// Least memory that a container can be started with: runc's and Docker's limit.
const MIN_MEMORY: u64 = 6 << 20;

/// The limits as the runtime takes them, at the start and when they change. `blkio` has the numbers of the devices that
/// `resources.blkio` names.
pub fn resources(limits: &Resources, limits_swap: bool, blkio: &[(usize, u32, u32)]) -> Result<Value, ConfigError> {
    check(limits)?;
    let mut value = json!({});
    let mut set = |part: &str, name: &str, number: Value| value[part][name] = number;
    if let Some(memory) = limits.memory {
        set("memory", "limit", memory.into());
        // As Docker: as much swap again as memory where nothing is said.
        let swap = limits.memory_swap.unwrap_or_else(|| i64::try_from(memory.saturating_mul(2)).unwrap_or(i64::MAX));
        if limits_swap && swap != 0 {
            set("memory", "swap", swap.into());
        }
    }
    if let Some(low) = limits.memory_reservation {
        set("memory", "reservation", low.into());
    }
    if let Some(milli) = limits.cpu_milli {
        let period = limits.cpu_period_us.unwrap_or(cgroup::PERIOD_US);
        set("cpu", "quota", cgroup::quota_us(milli, period).into());
        set("cpu", "period", period.into());
    }
    if let Some(shares) = limits.cpu_shares.filter(|shares| *shares > 0) {
        set("cpu", "shares", shares.into());
    }
    if let Some(cpus) = limits.cpuset_cpus.as_deref().filter(|cpus| !cpus.is_empty()) {
        set("cpu", "cpus", cpus.into());
    }
    if let Some(mems) = limits.cpuset_mems.as_deref().filter(|mems| !mems.is_empty()) {
        set("cpu", "mems", mems.into());
    }
    if let Some(pids) = limits.pids.filter(|pids| *pids != 0) {
        set("pids", "limit", pids.into());
    }
    if let Some(weight) = limits.blkio_weight.filter(|weight| *weight > 0) {
        set("blockIO", "weight", weight.into());
    }
    throttles(limits, blkio, &mut value);
    if !limits.hugepages.is_empty() {
        let pages = limits.hugepages.iter().map(|(size, bytes)| json!({ "pageSize": size, "limit": bytes }));
        value["hugepageLimits"] = pages.collect();
    }
    if !limits.unified.is_empty() {
        value["unified"] = json!(limits.unified);
    }
    Ok(value)
}

fn throttles(limits: &Resources, blkio: &[(usize, u32, u32)], value: &mut Value) {
    let fields =
        ["throttleReadBpsDevice", "throttleWriteBpsDevice", "throttleReadIOPSDevice", "throttleWriteIOPSDevice"];
    for (place, major, minor) in blkio {
        let Some(limit) = limits.blkio.get(*place) else { continue };
        let rates = [limit.read_bps, limit.write_bps, limit.read_iops, limit.write_iops];
        for (field, rate) in fields.iter().zip(rates) {
            if let Some(rate) = rate {
                if value["blockIO"][field].is_null() {
                    value["blockIO"][field] = json!([]);
                }
                if let Some(list) = value["blockIO"][field].as_array_mut() {
                    list.push(json!({ "major": major, "minor": minor, "rate": rate }));
                }
            }
        }
    }
}

fn check(limits: &Resources) -> Result<(), ConfigError> {
    let wrong = |field, value: String, problem| Err(ConfigError::Invalid { field, value, problem });
    if let Some(memory) = limits.memory.filter(|memory| *memory < MIN_MEMORY) {
        return wrong("resources.memory", memory.to_string(), "is too little: 6 MiB is the least");
    }
    if let (Some(memory), Some(swap)) = (limits.memory, limits.memory_swap)
        && swap > 0
        && u64::try_from(swap).is_ok_and(|swap| swap < memory)
    {
        return wrong("resources.memory_swap", swap.to_string(), "is memory and swap together: not below the memory");
    }
    if let Some(period) = limits.cpu_period_us.filter(|period| !(1000..=1_000_000).contains(period)) {
        return wrong("resources.cpu_period_us", period.to_string(), "must be from 1000 to 1000000");
    }
    if let Some(shares) = limits.cpu_shares.filter(|shares| *shares == 1 || *shares > 262_144) {
        return wrong("resources.cpu_shares", shares.to_string(), "must be from 2 to 262144");
    }
    if let Some(weight) = limits.blkio_weight.filter(|weight| *weight != 0 && !(10..=1000).contains(weight)) {
        return wrong("resources.blkio_weight", weight.to_string(), "must be from 10 to 1000");
    }
    if let Some(score) = limits.oom_score_adj.filter(|score| !(-1000..=1000).contains(score)) {
        return wrong("resources.oom_score_adj", score.to_string(), "must be from -1000 to 1000");
    }
    for set in [&limits.cpuset_cpus, &limits.cpuset_mems].into_iter().flatten() {
        if !set.bytes().all(|b| b.is_ascii_digit() || matches!(b, b',' | b'-')) {
            return wrong("resources.cpuset", set.clone(), "is no list such as 0-1,3");
        }
    }
    for name in limits.unified.keys() {
        if name.contains('/') || !name.contains('.') {
            return wrong("resources.unified", name.clone(), "is no file of a control group, such as memory.high");
        }
    }
    for size in limits.hugepages.keys() {
        if !size.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return wrong("resources.hugepages", size.clone(), "is no page size such as 2MB");
        }
    }
    Ok(())
}
