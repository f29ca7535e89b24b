//! Quality of service: the class of a pod, and what it means for limits and for the order in which memory is taken back.

use std::collections::BTreeMap;

use container_engine::container::Resources;
use k8s_openapi::{
    api::core::v1::{Container, Pod, PodSpec},
    apimachinery::pkg::api::resource::Quantity,
};

use super::quantity::Amount;

/// From this priority on a pod is critical for its node.
pub const CRITICAL: i32 = 2_000_000_000;
/// Least and most shares.
const SHARES: (i64, i64) = (2, 262_144);
/// Least limit of memory that the engine starts a container with, bytes.
const MIN_MEMORY: u64 = 6 << 20;

/// Class of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Every container has limits, and requests that equal them.
    Guaranteed,
    /// Some container asks for something.
    Burstable,
    /// None does.
    BestEffort,
}

impl Class {
    /// In the status.
    pub fn name(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

type List = Option<BTreeMap<String, Quantity>>;

fn amount(list: &List, name: &str) -> Amount {
    list.as_ref().and_then(|list| list.get(name)).and_then(Amount::of).unwrap_or_default().max(Amount::default())
}

/// What a container asks for; its limit where it does not say.
pub fn request(container: &Container, name: &str) -> Amount {
    let Some(resources) = &container.resources else { return Amount::default() };
    let named = resources.requests.as_ref().is_some_and(|list| list.contains_key(name));
    amount(if named { &resources.requests } else { &resources.limits }, name)
}

/// What a container may have; zero: without limit.
pub fn limit(container: &Container, name: &str) -> Amount {
    container.resources.as_ref().map(|resources| amount(&resources.limits, name)).unwrap_or_default()
}

/// The class of a pod; resources of the pod as a whole count before those of its containers.
pub fn class(pod: &Pod) -> Class {
    let Some(spec) = &pod.spec else { return Class::BestEffort };
    let whole = spec
        .resources
        .as_ref()
        .map(|resources| Container { resources: Some(resources.clone()), ..Container::default() });
    let all: Vec<&Container> = match &whole {
        Some(whole) if is_asking(whole) => vec![whole],
        _ => spec.init_containers.iter().flatten().chain(&spec.containers).collect(),
    };
    if !all.iter().any(|container| is_asking(container)) {
        return Class::BestEffort;
    }
    let guaranteed = all.iter().all(|container| {
        ["cpu", "memory"].iter().all(|name| {
            let limit = limit(container, name);
            !limit.is_zero() && request(container, name) == limit
        })
    });
    if guaranteed { Class::Guaranteed } else { Class::Burstable }
}

fn is_asking(container: &Container) -> bool {
    ["cpu", "memory"].iter().any(|name| !request(container, name).is_zero() || !limit(container, name).is_zero())
}

/// Which processes the kernel kills first when memory is short.
pub fn oom_score_adj(pod: &Pod, container: &Container, memory: u64) -> i32 {
    if pod.spec.as_ref().and_then(|spec| spec.priority).is_some_and(|priority| priority >= CRITICAL) {
        return -997;
    }
    match class(pod) {
        Class::Guaranteed => -997,
        Class::BestEffort => 1000,
        Class::Burstable => {
            let wanted = i128::from(request(container, "memory").value());
            let share = 1000 - 1000 * wanted / i128::from(memory.max(1));
            i32::try_from(share.clamp(3, 999)).unwrap_or(999)
        }
    }
}

/// Shares of the processor for thousandths of a core.
pub fn shares(milli: i64) -> u64 {
    let shares = i128::from(milli) * 1024 / 1000;
    u64::try_from(shares.clamp(SHARES.0.into(), SHARES.1.into())).unwrap_or(2)
}

/// The limits that the engine holds a container to.
pub fn resources(pod: &Pod, container: &Container, memory: u64) -> Resources {
    let cpu = limit(container, "cpu").milli();
    let bytes = u64::try_from(limit(container, "memory").value()).ok().filter(|bytes| *bytes > 0);
    let memory_limit = bytes.map(|bytes| bytes.max(MIN_MEMORY));
    let hugepages = container.resources.iter().flat_map(|resources| resources.limits.iter().flatten());
    let hugepages = hugepages.filter_map(|(name, quantity)| {
        let size = Amount::parse(name.strip_prefix("hugepages-")?)?.value();
        let bytes = u64::try_from(Amount::of(quantity)?.value()).ok()?;
        Some((page_size(size)?, bytes))
    });
    Resources {
        memory: memory_limit,
        // Pods get no swap.
        memory_swap: memory_limit.and_then(|bytes| i64::try_from(bytes).ok()),
        cpu_milli: u64::try_from(cpu).ok().filter(|milli| *milli > 0),
        cpu_shares: Some(shares(request(container, "cpu").milli())),
        hugepages: hugepages.collect(),
        oom_score_adj: Some(oom_score_adj(pod, container, memory)),
        ..Resources::default()
    }
}

/// As the kernel names a page size: `2MB`.
fn page_size(bytes: i64) -> Option<String> {
    [(30, "GB"), (20, "MB"), (10, "KB")]
        .into_iter()
        .find_map(|(shift, unit)| (bytes > 0 && bytes % (1 << shift) == 0).then(|| format!("{}{unit}", bytes >> shift)))
}

/// What a pod asks for in whole: sidecars run beside all that comes after them.
pub fn pod_request(spec: &PodSpec, name: &str) -> Amount {
    if let Some(whole) = &spec.resources
        && whole.requests.as_ref().is_some_and(|list| list.contains_key(name))
    {
        return amount(&whole.requests, name).plus(amount(&spec.overhead, name));
    }
    let (mut beside, mut peak) = (Amount::default(), Amount::default());
    for container in spec.init_containers.iter().flatten() {
        let own = request(container, name);
        if container.restart_policy.as_deref() == Some("Always") {
            beside = beside.plus(own);
            peak = peak.max(beside);
        } else {
            peak = peak.max(beside.plus(own));
        }
    }
    let regular = spec.containers.iter().fold(beside, |sum, container| sum.plus(request(container, name)));
    peak.max(regular).plus(amount(&spec.overhead, name))
}
