//! The words of `/stats/summary`, version `v1alpha1`. What is not known is absent.

use std::collections::BTreeMap;

use container_engine::{
    cgroup::{Pressure, Usage},
    container::NetworkUsage,
};
use serde::Serialize;

/// A moment, RFC 3339.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Time(pub i64);

impl Time {
    /// Of nanoseconds since 1970.
    pub fn ns(ns: i64) -> Self {
        Self(ns)
    }
}

impl Serialize for Time {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Seconds, as all of Kubernetes writes them.
        let time = jiff::Timestamp::from_second(self.0.div_euclid(1_000_000_000)).unwrap_or_default();
        serializer.collect_str(&time)
    }
}

/// Everything.
#[derive(Debug, Serialize)]
pub struct Summary {
    pub node: Node,
    pub pods: Vec<Pod>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(clippy::struct_field_names, reason = "the names are those of the API")]
pub struct Node {
    pub node_name: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub system_containers: Vec<Container>,
    pub start_time: Time,
    pub cpu: Cpu,
    pub memory: Memory,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io: Option<Io>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fs: Option<Fs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<RuntimeFs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rlimit: Option<Rlimit>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap: Option<Swap>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RuntimeFs {
    pub image_fs: Option<Fs>,
    pub container_fs: Option<Fs>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Rlimit {
    pub time: Time,
    pub maxpid: i64,
    pub curproc: i64,
}

#[derive(Debug, Clone, Serialize)]
pub struct PodRef {
    pub name: String,
    pub namespace: String,
    pub uid: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(clippy::struct_field_names, reason = "the names are those of the API")]
pub struct Pod {
    pub pod_ref: PodRef,
    pub start_time: Time,
    pub containers: Vec<Container>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Cpu>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io: Option<Io>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volume: Vec<Volume>,
    #[serde(rename = "ephemeral-storage", skip_serializing_if = "Option::is_none")]
    pub ephemeral_storage: Option<Fs>,
    #[serde(rename = "process_stats", skip_serializing_if = "Option::is_none")]
    pub process_stats: Option<ProcessStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap: Option<Swap>,
}

#[derive(Debug, Clone, Serialize)]
pub struct ProcessStats {
    pub process_count: u64,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Container {
    pub name: String,
    pub start_time: Time,
    pub cpu: Cpu,
    pub memory: Memory,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io: Option<Io>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rootfs: Option<Fs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logs: Option<Fs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap: Option<Swap>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cpu {
    pub time: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage_nano_cores: Option<u64>,
    pub usage_core_nano_seconds: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Psi>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Memory {
    pub time: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub available_bytes: Option<u64>,
    pub usage_bytes: u64,
    pub working_set_bytes: u64,
    pub rss_bytes: u64,
    pub page_faults: u64,
    pub major_page_faults: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Psi>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Io {
    pub time: Time,
    pub psi: Psi,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub struct Psi {
    pub full: PsiData,
    pub some: PsiData,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub struct PsiData {
    /// ns.
    pub total: u64,
    pub avg10: f64,
    pub avg60: f64,
    pub avg300: f64,
}

#[derive(Debug, Clone, Serialize)]
pub struct Swap {
    pub time: Time,
    #[serde(rename = "swapAvailableBytes", skip_serializing_if = "Option::is_none")]
    pub available: Option<u64>,
    #[serde(rename = "swapUsageBytes")]
    pub usage: u64,
}

#[derive(Debug, Clone, Serialize)]
pub struct Network {
    pub time: Time,
    #[serde(flatten)]
    pub default: Option<Interface>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    pub name: String,
    pub rx_bytes: u64,
    pub rx_errors: u64,
    pub tx_bytes: u64,
    pub tx_errors: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Fs {
    pub time: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub available_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacity_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub used_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inodes_free: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inodes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inodes_used: Option<u64>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Volume {
    #[serde(flatten)]
    pub fs: Fs,
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pvc_ref: Option<PvcRef>,
}

#[derive(Debug, Clone, Serialize)]
pub struct PvcRef {
    pub name: String,
    pub namespace: String,
}

impl From<&Pressure> for Psi {
    fn from(of: &Pressure) -> Self {
        let data = |total_us: u64, avg10, avg60, avg300| PsiData {
            total: total_us.saturating_mul(1000),
            avg10,
            avg60,
            avg300,
        };
        Self {
            full: data(of.full_total_us, of.full_avg10, of.full_avg60, of.full_avg300),
            some: data(of.some_total_us, of.some_avg10, of.some_avg60, of.some_avg300),
        }
    }
}

/// Processor time of a group; the rate is known from the second look on.
pub fn cpu(usage: &Usage, time: Time, rate: Option<u64>) -> Cpu {
    Cpu {
        time,
        usage_nano_cores: rate,
        // What runs has run: the metrics server takes a zero for a lost container, and drops its pod.
        usage_core_nano_seconds: usage.cpu.usage_us.saturating_mul(1000).max(1000),
        psi: usage.pressure.get("cpu").map(Psi::from),
    }
}

/// Memory of a group.
pub fn memory(usage: &Usage, time: Time) -> Memory {
    let of = &usage.memory;
    let working_set = working_set(usage);
    Memory {
        time,
        available_bytes: of.limit.map(|limit| limit.saturating_sub(working_set)),
        usage_bytes: of.usage.max(working_set),
        working_set_bytes: working_set,
        rss_bytes: of.anon,
        page_faults: of.page_faults,
        major_page_faults: of.major_page_faults,
        psi: usage.pressure.get("memory").map(Psi::from),
    }
}

/// Never zero for what runs: a page is the least that a process has.
pub fn working_set(usage: &Usage) -> u64 {
    usage.memory.working_set.max(usage.memory.anon).max(4096)
}

/// Stalls of a group for want of a disk.
pub fn io(usage: &Usage, time: Time) -> Option<Io> {
    usage.pressure.get("io").map(|pressure| Io { time, psi: pressure.into() })
}

/// Interfaces, the default one also by itself.
pub fn network(interfaces: &BTreeMap<String, NetworkUsage>, default: &str, time: Time) -> Option<Network> {
    let of = |(name, usage): (&String, &NetworkUsage)| Interface {
        name: name.clone(),
        rx_bytes: usage.rx_bytes,
        rx_errors: usage.rx_errors,
        tx_bytes: usage.tx_bytes,
        tx_errors: usage.tx_errors,
    };
    let interfaces: Vec<Interface> = interfaces.iter().map(of).collect();
    let default = interfaces.iter().find(|it| it.name == default).cloned();
    (!interfaces.is_empty()).then_some(Network { time, default, interfaces })
}
