//! What the cluster's `KubeletConfiguration` says of the node object. Pure.
//!
//! What the board's own configuration says comes before it; what does not read is passed over with a warning, as one
//! cluster's configuration is meant for nodes of many kinds.

use std::{collections::BTreeMap, time::Duration};

use serde_json::Value;

use super::image::MAX_IMAGES;
use crate::{
    housekeeping::threshold::{self, Threshold},
    options::{Options, Taint},
};

/// Between two reports where nothing changed.
const REPORT: Duration = Duration::from_secs(300);
/// How long a lease is good for, s.
const LEASE_S: i32 = 40;
/// Taints that one configuration may bring.
const MAX_TAINTS: usize = 32;

/// The parts that matter here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Configuration {
    /// Pods at the most.
    pub max_pods: u32,
    /// Pods for each processor at the most.
    pub pods_per_core: Option<u32>,
    /// `systemReserved` and `kubeReserved`.
    pub reserved: Vec<BTreeMap<String, String>>,
    /// Thresholds of eviction that hold at once.
    pub hard: Vec<Threshold>,
    /// Between two reports where nothing changed.
    pub report: Duration,
    /// How long a lease is good for, s.
    pub lease_s: i32,
    /// Images in the status.
    pub max_images: usize,
    /// Taints to register with, beside the board's own.
    pub taints: Vec<Taint>,
}

impl Configuration {
    /// Of the cluster's, for a board that is configured so.
    pub fn of(cluster: &Value, options: &Options) -> Self {
        let number = |name: &str| cluster.get(name).and_then(Value::as_i64);
        let above_zero = |name: &str| number(name).and_then(|it| u32::try_from(it).ok()).filter(|it| *it > 0);
        let map = |name: &str| -> BTreeMap<String, String> {
            let pairs = cluster.get(name).and_then(Value::as_object).into_iter().flatten();
            pairs.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
        };
        // The board's number is the usual one where nobody wrote another.
        let usual = Options::default().max_pods;
        let max_pods = if options.max_pods == usual { above_zero("maxPods") } else { None };
        let none = BTreeMap::new();
        let hard = map("evictionHard");
        let hard = if hard.is_empty() {
            threshold::defaults()
        } else {
            threshold::configured(&hard, &none, &BTreeMap::new(), &none).unwrap_or_else(|error| {
                tracing::warn!(%error, "the cluster's evictionHard is passed over");
                threshold::defaults()
            })
        };
        let report = cluster.get("nodeStatusReportFrequency").and_then(Value::as_str).and_then(duration);
        let lease = number("nodeLeaseDurationSeconds").and_then(|it| i32::try_from(it).ok()).filter(|it| *it > 0);
        Self {
            max_pods: max_pods.unwrap_or(options.max_pods),
            pods_per_core: above_zero("podsPerCore"),
            reserved: vec![map("systemReserved"), map("kubeReserved")],
            hard,
            report: report.filter(|it| *it >= Duration::from_secs(10)).unwrap_or(REPORT),
            lease_s: lease.unwrap_or(LEASE_S),
            max_images: match number("nodeStatusMaxImages") {
                Some(-1) => usize::MAX,
                Some(most) => usize::try_from(most).unwrap_or(MAX_IMAGES),
                None => MAX_IMAGES,
            },
            taints: taints(cluster.get("registerWithTaints")),
        }
    }

    /// Pods at the most on so many processors.
    pub fn pods(&self, cpus: u64) -> u32 {
        let by_core = self.pods_per_core.map(|each| u64::from(each).saturating_mul(cpus));
        by_core.map_or(self.max_pods, |most| u32::try_from(most).unwrap_or(u32::MAX).min(self.max_pods))
    }
}

fn taints(value: Option<&Value>) -> Vec<Taint> {
    let one = |taint: &Value| {
        let text = |name: &str| taint.get(name).and_then(Value::as_str).unwrap_or_default();
        format!("{}={}:{}", text("key"), text("value"), text("effect")).parse().ok()
    };
    value.and_then(Value::as_array).into_iter().flatten().take(MAX_TAINTS).filter_map(one).collect()
}

/// Go's: `5m0s`, `1.5h`, `300ms`. `None` for zero, which stands for the usual.
pub fn duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut sum = 0.0f64;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        sum += number * unit;
        rest = &rest[end..];
    }
    Duration::try_from_secs_f64(sum).ok().filter(|it| !it.is_zero())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn kubeadms_own_configuration_leaves_all_as_it_is() {
        let kubeadm = json!({ "nodeStatusReportFrequency": "0s", "maxPods": 0, "registerWithTaints": null });
        let usual = Configuration::of(&Value::Null, &Options::default());
        assert_eq!(Configuration::of(&kubeadm, &Options::default()), usual);
        assert_eq!((usual.max_pods, usual.lease_s, usual.report, usual.max_images), (110, 40, REPORT, 50));
        assert_eq!(usual.hard, threshold::defaults());
    }

    #[test]
    fn a_clusters_wishes() {
        let cluster = json!({
            "maxPods": 30, "podsPerCore": 4, "nodeLeaseDurationSeconds": 60, "nodeStatusReportFrequency": "1m30s",
            "nodeStatusMaxImages": -1, "systemReserved": { "cpu": "100m", "odd": 3 }, "evictionHard": { "odd": "1%" },
            "registerWithTaints": [{ "key": "a", "effect": "NoSchedule" }, { "key": "b", "effect": "odd" }, 7],
        });
        let got = Configuration::of(&cluster, &Options::default());
        assert_eq!((got.max_pods, got.lease_s, got.report.as_secs()), (30, 60, 90));
        assert_eq!((got.pods(4), got.pods(64)), (16, 30));
        assert_eq!(got.max_images, usize::MAX);
        assert_eq!(got.reserved[0], [("cpu".to_owned(), "100m".to_owned())].into());
        assert_eq!(got.taints.len(), 1);
        assert_eq!(got.hard, threshold::defaults());
        let own = Options { max_pods: 7, ..Options::default() };
        assert_eq!(Configuration::of(&cluster, &own).max_pods, 7);
        for odd in [json!([]), json!("x"), json!({ "maxPods": -1, "nodeStatusMaxImages": -9 })] {
            assert_eq!(Configuration::of(&odd, &Options::default()).max_pods, 110);
        }
    }

    #[test]
    fn durations_as_go_writes_them() {
        for (text, ms) in [
            ("5m0s", Some(300_000)),
            ("1.5h", Some(5_400_000)),
            ("300ms", Some(300)),
            ("0s", None),
            ("", None),
            ("5", None),
            ("s", None),
            ("5x", None),
            ("99999999999999999999999h", None),
            ("1..5s", None),
        ] {
            assert_eq!(duration(text).map(|it| it.as_millis()), ms, "{text}");
        }
    }
}
