//! Which pod goes first, which pod is over its own limits, and in which words. Decides; does nothing.

use std::cmp::Reverse;

use super::{
    pressure::Starved,
    threshold::{Signal, bytes_text},
};

/// The reason of an evicted pod's status and of the event.
pub const REASON: &str = "Evicted";

/// A container's part.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerUse {
    /// Its name.
    pub name: String,
    /// Memory that cannot be taken from it at once, where known.
    pub memory: Option<u64>,
    /// What it asked for.
    pub memory_request: u64,
    /// Bytes of its writable part and its log, where known.
    pub disk: Option<u64>,
    /// What it asked for.
    pub disk_request: u64,
    /// What it may have.
    pub disk_limit: Option<u64>,
}

/// An `emptyDir` on disk or in memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VolumeUse {
    /// Its name.
    pub name: String,
    /// Bytes in it.
    pub used: u64,
    /// `sizeLimit`.
    pub limit: Option<u64>,
}

/// A pod that runs, and what it uses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Candidate {
    /// Its uid.
    pub uid: String,
    /// `spec.priority`.
    pub priority: i32,
    /// Static, a mirror, or of a priority that the node does not do without: never evicted.
    pub critical: bool,
    /// Containers.
    pub containers: Vec<ContainerUse>,
    /// Its `emptyDir` volumes.
    pub volumes: Vec<VolumeUse>,
    /// Inodes, where known.
    pub inodes: Option<u64>,
    /// Processes.
    pub pids: u64,
}

impl Candidate {
    fn memory(&self) -> Option<u64> {
        self.containers.iter().map(|one| one.memory).sum()
    }

    fn disk(&self) -> Option<u64> {
        let containers: Option<u64> = self.containers.iter().map(|one| one.disk).sum();
        Some(containers? + self.volumes.iter().map(|volume| volume.used).sum::<u64>())
    }

    fn request(&self, part: impl Fn(&ContainerUse) -> u64) -> u64 {
        self.containers.iter().map(part).fold(0, u64::saturating_add)
    }

    /// Sorts before others that go later.
    fn key(&self, signal: Signal) -> (bool, i32, Reverse<i128>) {
        let (used, request) = match signal {
            Signal::Memory => (self.memory(), self.request(|one| one.memory_request)),
            Signal::NodeFs | Signal::ImageFs => (self.disk(), self.request(|one| one.disk_request)),
            Signal::NodeFsInodes | Signal::ImageFsInodes => (self.inodes, 0),
            // Nobody asks for process ids: priority alone comes first.
            Signal::Pids => return (false, self.priority, Reverse(i128::from(self.pids))),
        };
        // Of whom nothing is known is taken for the worst.
        let over = used.map_or(i128::MAX, |used| i128::from(used) - i128::from(request));
        (over <= 0, self.priority, Reverse(over))
    }
}

/// Pods in the order in which they go: over their request before others, low priority before high, most over first.
/// Critical ones are not among them.
pub fn order(mut pods: Vec<Candidate>, signal: Signal) -> Vec<Candidate> {
    pods.retain(|pod| !pod.critical);
    pods.sort_by_key(|pod| pod.key(signal));
    pods
}

/// Why a pod was evicted for a threshold; the kubelet's words.
pub fn message(pod: &Candidate, starved: &Starved) -> String {
    let (signal, measured) = (starved.threshold.signal, starved.measured);
    let text = |count: u64| if signal.is_bytes() { bytes_text(count) } else { count.to_string() };
    let resource = signal.resource();
    let limit = text(starved.threshold.amount.of(measured.capacity));
    let available = text(measured.available);
    let mut message =
        format!("The node was low on resource: {resource}. Threshold quantity: {limit}, available: {available}. ");
    for one in &pod.containers {
        let (used, request) = match signal {
            Signal::Memory => (one.memory, one.memory_request),
            Signal::NodeFs | Signal::ImageFs => (one.disk, one.disk_request),
            _ => (None, 0),
        };
        if let Some(used) = used.filter(|used| *used > request) {
            message.push_str(&format!(
                "Container {} was using {}, request is {}, has larger consumption of {resource}. ",
                one.name,
                bytes_text(used),
                bytes_text(request)
            ));
        }
    }
    message
}

/// Why a pod has to go for limits of its own: of a volume, of all its containers together, of one container.
pub fn over_limit(pod: &Candidate) -> Option<String> {
    if pod.critical {
        return None;
    }
    let full = |volume: &&VolumeUse| volume.limit.is_some_and(|limit| limit > 0 && volume.used > limit);
    if let Some(volume) = pod.volumes.iter().find(full) {
        let limit = bytes_text(volume.limit.unwrap_or_default());
        return Some(format!("Usage of EmptyDir volume {:?} exceeds the limit {limit:?}. ", volume.name));
    }
    let limits: Option<u64> = pod.containers.iter().map(|one| one.disk_limit).sum();
    let used = pod.disk().unwrap_or_default();
    if let Some(limit) = limits.filter(|limit| *limit > 0 && used > *limit) {
        let limit = bytes_text(limit);
        return Some(format!("Pod ephemeral local storage usage exceeds the total limit of containers {limit}. "));
    }
    pod.containers.iter().find_map(|one| {
        let limit = one.disk_limit.filter(|limit| *limit > 0 && one.disk.is_some_and(|used| used > *limit))?;
        let limit = bytes_text(limit);
        Some(format!("Container {} exceeded its local ephemeral storage limit {limit:?}. ", one.name))
    })
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            pressure::Measured,
            threshold::{Amount, Threshold},
        },
        *,
    };

    fn pod(uid: &str, priority: i32, memory: Option<u64>, request: u64) -> Candidate {
        let one = ContainerUse { name: "c".into(), memory, memory_request: request, ..ContainerUse::default() };
        Candidate {
            uid: uid.into(),
            priority,
            containers: vec![one],
            pids: memory.unwrap_or(0),
            ..Candidate::default()
        }
    }

    #[test]
    fn who_goes_first() {
        let pods = vec![
            pod("within", 0, Some(50), 100),
            pod("over-high", 9, Some(900), 100),
            pod("over-low", 0, Some(200), 100),
            pod("over-low-more", 0, Some(300), 100),
            pod("unknown", 0, None, 100),
            Candidate { critical: true, ..pod("critical", 0, Some(5000), 0) },
        ];
        let uids = |signal| -> Vec<_> { order(pods.clone(), signal).into_iter().map(|pod| pod.uid).collect() };
        assert_eq!(uids(Signal::Memory), ["unknown", "over-low-more", "over-low", "over-high", "within"]);
        assert_eq!(uids(Signal::Pids), ["over-low-more", "over-low", "within", "unknown", "over-high"]);
    }

    #[test]
    fn words_of_the_kubelet() {
        let threshold =
            Threshold { signal: Signal::Memory, amount: Amount::Count(100 << 20), grace: None, reclaim: None };
        let starved = Starved { threshold, measured: Measured { available: 90 << 20, capacity: 1 << 30 } };
        assert_eq!(
            message(&pod("p", 0, Some(300 << 20), 100 << 20), &starved),
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 90Mi. Container c was using \
             300Mi, request is 100Mi, has larger consumption of memory. "
        );
    }

    #[test]
    fn limits_of_its_own() {
        #[track_caller]
        fn check(volume: (u64, Option<u64>), disk: (u64, Option<u64>), other: (u64, Option<u64>), want: Option<&str>) {
            let one = |name: &str, (used, limit)| ContainerUse {
                name: name.into(),
                disk: Some(used),
                disk_limit: limit,
                ..ContainerUse::default()
            };
            let pod = Candidate {
                containers: vec![one("a", disk), one("b", other)],
                volumes: vec![VolumeUse { name: "v".into(), used: volume.0, limit: volume.1 }],
                ..Candidate::default()
            };
            assert_eq!(over_limit(&pod).as_deref(), want);
            assert_eq!(over_limit(&Candidate { critical: true, ..pod }), None);
        }
        check((5, None), (5, None), (5, None), None);
        check((5, Some(5)), (5, Some(5)), (5, None), None);
        check(
            (2049, Some(2048)),
            (0, None),
            (0, None),
            Some("Usage of EmptyDir volume \"v\" exceeds the limit \"2Ki\". "),
        );
        let total = "Pod ephemeral local storage usage exceeds the total limit of containers 3Ki. ";
        check((3000, None), (50, Some(1024)), (50, Some(2048)), Some(total));
        let single = "Container a exceeded its local ephemeral storage limit \"1Ki\". ";
        check((0, None), (1025, Some(1024)), (0, None), Some(single));
    }
}
