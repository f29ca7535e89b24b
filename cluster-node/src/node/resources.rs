//! Capacity, and what of it pods get. Pure.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::facts::Amounts;
use crate::{
    housekeeping::threshold::{Amount as Limit, Signal, Threshold, bytes_text},
    pod::decide::quantity::Amount,
};

/// Resources by name.
pub type Resources = BTreeMap<String, Quantity>;

/// Amounts of one extended resource, as its plugin has them: all, and those that are healthy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extended {
    /// All.
    pub capacity: u64,
    /// Those that pods can get.
    pub allocatable: u64,
}

/// What is kept from pods.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reserved {
    /// Thousandths of a processor.
    pub cpu_milli: u64,
    /// Bytes.
    pub memory: u64,
    /// Bytes.
    pub disk: u64,
}

impl Reserved {
    /// What is configured on the board, and for what it says nothing of, the sum of the cluster's `systemReserved` and
    /// `kubeReserved`. What is no quantity counts as nothing.
    pub fn of(own: &BTreeMap<String, String>, cluster: &[BTreeMap<String, String>]) -> Self {
        let read = |text: &String| Amount::parse(text).unwrap_or_default().max(Amount::default());
        let of = |name: &str| match own.get(name) {
            Some(text) => read(text),
            None => cluster.iter().filter_map(|it| it.get(name)).map(read).fold(Amount::default(), Amount::plus),
        };
        let number = |amount: i64| u64::try_from(amount).unwrap_or(0);
        Self {
            cpu_milli: number(of("cpu").milli()),
            memory: number(of("memory").value()),
            disk: number(of("ephemeral-storage").value()),
        }
    }

    /// With what eviction keeps free anyway: hard thresholds of memory and of the node's file system.
    #[must_use]
    pub fn with(mut self, thresholds: &[Threshold], amounts: &Amounts) -> Self {
        let hard = |signal: Signal, capacity: u64| {
            let of = thresholds.iter().filter(|it| it.signal == signal && it.grace.is_none());
            of.map(|it| it.amount).map(|it: Limit| it.of(capacity)).max().unwrap_or(0)
        };
        self.memory = self.memory.saturating_add(hard(Signal::Memory, amounts.memory));
        self.disk = self.disk.saturating_add(hard(Signal::NodeFs, amounts.disk));
        self
    }
}

/// All there is. Resources that are not known are left out: the node is not ready without them.
pub fn capacity(amounts: &Amounts, max_pods: u32, extended: &BTreeMap<String, Extended>) -> Resources {
    let mut all = Resources::new();
    if amounts.cpus > 0 {
        all.insert("cpu".into(), Quantity(amounts.cpus.to_string()));
    }
    if amounts.memory > 0 {
        all.insert("memory".into(), kib(amounts.memory));
    }
    if amounts.disk > 0 {
        all.insert("ephemeral-storage".into(), kib(amounts.disk));
    }
    all.insert("pods".into(), Quantity(max_pods.to_string()));
    for (size, pages) in &amounts.huge_pages {
        all.insert(page_name(*size), Quantity(bytes_text(size.saturating_mul(*pages))));
    }
    for (name, amount) in extended {
        all.insert(name.clone(), Quantity(amount.capacity.to_string()));
    }
    all
}

/// What pods get of it: never below nothing. `reserved` has the eviction's share in it.
pub fn allocatable(
    amounts: &Amounts,
    max_pods: u32,
    extended: &BTreeMap<String, Extended>,
    reserved: &Reserved,
) -> Resources {
    let mut all = capacity(amounts, max_pods, extended);
    let mut set = |name: &str, value: Quantity| {
        if let Some(entry) = all.get_mut(name) {
            *entry = value;
        }
    };
    let milli = amounts.cpus.saturating_mul(1000).saturating_sub(reserved.cpu_milli);
    set("cpu", Quantity(if milli.is_multiple_of(1000) { (milli / 1000).to_string() } else { format!("{milli}m") }));
    set("memory", kib(memory(amounts, reserved)));
    // As the kubelet has it, in bytes.
    set("ephemeral-storage", Quantity(amounts.disk.saturating_sub(reserved.disk).to_string()));
    for (name, amount) in extended {
        set(name, Quantity(amount.allocatable.min(amount.capacity).to_string()));
    }
    all
}

/// Bytes of memory that pods get: huge pages are not memory any more.
pub fn memory(amounts: &Amounts, reserved: &Reserved) -> u64 {
    let pages = amounts.huge_pages.iter().map(|(size, pages)| size.saturating_mul(*pages));
    let taken = pages.fold(reserved.memory, u64::saturating_add);
    amounts.memory.saturating_sub(taken)
}

/// The kernel counts memory and most disks in KiB, and the kubelet writes it so.
fn kib(bytes: u64) -> Quantity {
    Quantity(if bytes.is_multiple_of(1024) { format!("{}Ki", bytes / 1024) } else { bytes.to_string() })
}

/// `hugepages-2Mi`.
fn page_name(bytes: u64) -> String {
    format!("hugepages-{}", bytes_text(bytes))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn amounts() -> Amounts {
        Amounts { cpus: 4, memory: 2000 << 10, disk: 100 << 20, ..Amounts::default() }
    }

    fn text(resources: &Resources) -> String {
        resources.iter().map(|(name, it)| format!("{name}={} ", it.0)).collect::<String>().trim_end().to_owned()
    }

    #[test]
    fn what_there_is() {
        let mut amounts = amounts();
        assert_eq!(
            text(&capacity(&amounts, 110, &BTreeMap::new())),
            "cpu=4 ephemeral-storage=102400Ki memory=2000Ki pods=110"
        );
        amounts.huge_pages = [(2 << 20, 3), (1 << 30, 0)].into();
        let extended = [("example.com/cam".to_owned(), Extended { capacity: 2, allocatable: 1 })].into();
        assert_eq!(
            text(&capacity(&amounts, 9, &extended)),
            "cpu=4 ephemeral-storage=102400Ki example.com/cam=2 hugepages-1Gi=0 hugepages-2Mi=6Mi memory=2000Ki pods=9"
        );
        assert_eq!(text(&capacity(&Amounts::default(), 1, &BTreeMap::new())), "pods=1");
    }

    #[test]
    fn what_pods_get() {
        #[track_caller]
        fn check(change: impl FnOnce(&mut Amounts, &mut Reserved), want: &str) {
            let (mut amounts, mut reserved) = (amounts(), Reserved::default());
            change(&mut amounts, &mut reserved);
            let extended = [("x/y".to_owned(), Extended { capacity: 1, allocatable: 5 })].into();
            assert_eq!(text(&allocatable(&amounts, 110, &extended, &reserved)), want);
        }
        check(|_, _| {}, "cpu=4 ephemeral-storage=104857600 memory=2000Ki pods=110 x/y=1");
        check(
            |_, it| *it = Reserved { cpu_milli: 250, memory: 1000 << 10, disk: 1 << 20 },
            "cpu=3750m ephemeral-storage=103809024 memory=1000Ki pods=110 x/y=1",
        );
        check(
            |_, it| *it = Reserved { cpu_milli: 9000, memory: 1 << 40, disk: 1 << 40 },
            "cpu=0 ephemeral-storage=0 memory=0Ki pods=110 x/y=1",
        );
        check(
            |it, _| it.huge_pages = [(1 << 20, 1)].into(),
            "cpu=4 ephemeral-storage=104857600 hugepages-1Mi=1Mi memory=976Ki pods=110 x/y=1",
        );
    }

    #[test]
    fn what_is_kept_from_pods() {
        let map = |pairs: &[(&str, &str)]| pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        let own = map(&[("cpu", "100m"), ("memory", "x")]);
        let cluster = [map(&[("cpu", "1"), ("ephemeral-storage", "1Mi")]), map(&[("ephemeral-storage", "1Mi")])];
        let reserved = Reserved::of(&own, &cluster);
        assert_eq!(reserved, Reserved { cpu_milli: 100, memory: 0, disk: 2 << 20 });
        let threshold = |signal, amount, grace| Threshold { signal, amount, grace, reclaim: None };
        let thresholds = [
            threshold(Signal::Memory, Limit::Count(100 << 10), None),
            threshold(Signal::Memory, Limit::Count(900 << 10), Some(Duration::from_secs(1))),
            threshold(Signal::NodeFs, Limit::Part(1000), None),
            threshold(Signal::ImageFs, Limit::Part(5000), None),
        ];
        let with = reserved.with(&thresholds, &amounts());
        assert_eq!(with, Reserved { cpu_milli: 100, memory: 100 << 10, disk: 12 << 20 });
    }
}
