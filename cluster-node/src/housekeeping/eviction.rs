//! The service that looks at what the board has left, and has pods evicted before it runs out.
//!
//! Always true: one pod at a time, and only after images and dead containers were cleared away where they take of what is
//! short; critical pods never.

use std::{
    convert::Infallible,
    future::Future,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use board::tasks::Context;
use container_engine::engine::Engine;
use tokio::time::Instant;

use super::{
    pressure::{Decision, Measured, Measures, Memory, Starved, look},
    rank::{Candidate, message, order, over_limit},
    threshold::{Pressure, Signal, Threshold},
};

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// What an evicted pod has where a limit of its own was passed, or a hard threshold.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Answers of the seams below.
pub type Done<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What eviction needs of pods.
pub trait Pods: Send + Sync + 'static {
    /// Those that run, and what they use.
    fn candidates(&self) -> Done<'_, Vec<Candidate>>;

    /// Removes ended containers that no status needs any more.
    fn clear_ended(&self) -> Done<'_, ()>;

    /// Ends a pod for good with reason `Evicted` and this message; returns when it has ended, `false` where it cannot be.
    fn evict<'a>(&'a self, uid: &'a str, message: String, grace: Duration) -> Done<'a, bool>;
}

/// What eviction needs of the node object.
pub trait Conditions: Send + Sync + 'static {
    /// Whether the condition holds; the same again does nothing.
    fn set_pressure(&self, pressure: Pressure, holds: bool);
}

/// What clears away what nobody misses: the engine.
pub trait Reclaim: Send + Sync + 'static {
    /// Unused images. An error is logged by whoever has it.
    fn reclaim(&self) -> Done<'_, ()>;
}

impl Reclaim for Engine {
    fn reclaim(&self) -> Done<'_, ()> {
        Box::pin(async {
            if let Err(error) = self.images().prune(true).await {
                tracing::warn!(error = %board::tasks::chain(&error), "unused images could not be cleared away");
            }
        })
    }
}

/// How it is to be.
#[derive(Debug, Clone)]
pub struct Options {
    /// Thresholds.
    pub thresholds: Vec<Threshold>,
    /// How long a condition holds after its cause has gone; the kubelet has five minutes.
    pub transition: Duration,
    /// Longest time that a pod gets to end for a soft threshold.
    pub max_grace: Duration,
    /// In the node's file system.
    pub node_dir: PathBuf,
    /// In the images' file system.
    pub image_dir: PathBuf,
}

/// The service.
pub struct Eviction {
    options: Options,
    pods: Arc<dyn Pods>,
    conditions: Arc<dyn Conditions>,
    reclaim: Arc<dyn Reclaim>,
}

impl Eviction {
    /// One that has not looked yet.
    pub fn new(
        options: Options,
        pods: Arc<dyn Pods>,
        conditions: Arc<dyn Conditions>,
        reclaim: Arc<dyn Reclaim>,
    ) -> Self {
        Self { options, pods, conditions, reclaim }
    }

    /// Looks every ten seconds until it is told to stop.
    pub async fn run(self, context: Context) -> Result<(), Infallible> {
        let (began, mut memory) = (Instant::now(), Memory::default());
        loop {
            let measures = self.measure().await;
            let decision = self.turn(&mut memory, &measures, began.elapsed()).await;
            match decision.pressures.as_slice() {
                [] => context.healthy("enough memory, disk and process ids"),
                some => context.degraded(
                    format!("the board is short of resources: {some:?}"),
                    "free memory or disk, or run fewer pods here",
                ),
            }
            tokio::select! {
                () = context.stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    /// One look, and at most one pod evicted for a threshold.
    async fn turn(&self, memory: &mut Memory, measures: &Measures, now: Duration) -> Decision {
        let decision = look(memory, &self.options.thresholds, measures, now, self.options.transition);
        for pressure in Pressure::ALL {
            self.conditions.set_pressure(pressure, decision.pressures.contains(&pressure));
        }
        let candidates = self.pods.candidates().await;
        let mut left = Vec::new();
        for pod in candidates {
            match over_limit(&pod) {
                Some(message) => _ = self.evict(&pod, message, AT_ONCE).await,
                None => left.push(pod),
            }
        }
        if let Some(starved) = decision.act {
            self.act(starved, left).await;
        }
        decision
    }

    async fn act(&self, starved: Starved, pods: Vec<Candidate>) {
        let signal = starved.threshold.signal;
        if signal.pressure() == Pressure::Disk {
            self.pods.clear_ended().await;
            self.reclaim.reclaim().await;
            let enough = |measured: &Measured| measured.available >= starved.threshold.amount.of(measured.capacity);
            if self.measure().await.get(&signal).is_some_and(enough) {
                tracing::info!(signal = signal.name(), "images and ended containers made room: no pod has to go");
                return;
            }
        }
        let grace = if starved.threshold.grace.is_some() { self.options.max_grace } else { AT_ONCE };
        for pod in order(pods, signal) {
            if self.evict(&pod, message(&pod, &starved), grace).await {
                return;
            }
        }
        tracing::warn!(signal = signal.name(), "the board is short of this, and no pod is left that could go");
    }

    async fn evict(&self, pod: &Candidate, message: String, grace: Duration) -> bool {
        tracing::warn!(pod = pod.uid, message, "a pod is evicted");
        self.pods.evict(&pod.uid, message, grace).await
    }

    async fn measure(&self) -> Measures {
        let (node, images) = (self.options.node_dir.clone(), self.options.image_dir.clone());
        tokio::task::spawn_blocking(move || measure(&node, &images)).await.unwrap_or_default()
    }
}

/// Blocking. What cannot be read is left out.
fn measure(node: &Path, images: &Path) -> Measures {
    let mut measures = Measures::new();
    let mut file_system = |dir: &Path, bytes, inodes| {
        let Ok(stat) = rustix::fs::statvfs(dir) else { return };
        let scale = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        measures.insert(bytes, Measured { available: scale(stat.f_bavail), capacity: scale(stat.f_blocks) });
        // File systems such as btrfs have no fixed number of them.
        if stat.f_files > 0 {
            measures.insert(inodes, Measured { available: stat.f_favail, capacity: stat.f_files });
        }
    };
    file_system(node, Signal::NodeFs, Signal::NodeFsInodes);
    file_system(images, Signal::ImageFs, Signal::ImageFsInodes);
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    measures.extend(memory_of(&read("/proc/meminfo")).map(|memory| (Signal::Memory, memory)));
    let number = |path: &str| read(path).trim().parse::<u64>().ok();
    let most = number("/proc/sys/kernel/pid_max").into_iter().chain(number("/proc/sys/kernel/threads-max")).min();
    let pids = most.and_then(|most| pids_of(&read("/proc/loadavg"), most));
    measures.extend(pids.map(|pids| (Signal::Pids, pids)));
    measures
}

/// As the kubelet counts: what is free, and pages of files that nobody has used lately.
fn memory_of(meminfo: &str) -> Option<Measured> {
    let field = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
    };
    let available = field("MemFree")?.saturating_add(field("Inactive(file)")?);
    Some(Measured { available, capacity: field("MemTotal")? })
}

/// From the fourth field, `RUNNING/ALL`.
fn pids_of(loadavg: &str, most: u64) -> Option<Measured> {
    let all: u64 = loadavg.split_whitespace().nth(3)?.split_once('/')?.1.parse().ok()?;
    Some(Measured { available: most.saturating_sub(all), capacity: most })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::{
        super::{rank::ContainerUse, threshold::Amount},
        *,
    };

    #[derive(Default)]
    struct World(Mutex<Vec<String>>);

    impl World {
        fn note(&self, text: String) {
            self.0.lock().unwrap().push(text);
        }
    }

    impl Pods for World {
        fn candidates(&self) -> Done<'_, Vec<Candidate>> {
            let pod = |uid: &str, memory, disk_limit| {
                let one = ContainerUse { memory: Some(memory), disk: Some(10), disk_limit, ..ContainerUse::default() };
                Candidate { uid: uid.into(), containers: vec![one], ..Candidate::default() }
            };
            Box::pin(async move { vec![pod("small", 10, None), pod("big", 99, None), pod("full", 1, Some(5))] })
        }

        fn clear_ended(&self) -> Done<'_, ()> {
            self.note("clear".into());
            Box::pin(async {})
        }

        fn evict<'a>(&'a self, uid: &'a str, _: String, grace: Duration) -> Done<'a, bool> {
            self.note(format!("evict {uid} {}", grace.as_secs()));
            Box::pin(async move { uid != "big" })
        }
    }

    impl Conditions for World {
        fn set_pressure(&self, pressure: Pressure, holds: bool) {
            if holds {
                self.note(format!("{pressure:?}"));
            }
        }
    }

    impl Reclaim for World {
        fn reclaim(&self) -> Done<'_, ()> {
            self.note("reclaim".into());
            Box::pin(async {})
        }
    }

    async fn acted(signal: Signal, amount: u64, available: u64) -> Vec<String> {
        let world = Arc::new(World::default());
        let dir = tempfile::tempdir().unwrap();
        let options = Options {
            thresholds: vec![Threshold { signal, amount: Amount::Count(amount), grace: None, reclaim: None }],
            transition: Duration::ZERO,
            max_grace: Duration::from_secs(30),
            node_dir: dir.path().to_owned(),
            image_dir: dir.path().to_owned(),
        };
        let eviction = Eviction::new(options, world.clone(), world.clone(), world.clone());
        let measures = [(signal, Measured { available, capacity: u64::MAX })].into();
        eviction.turn(&mut Memory::default(), &measures, Duration::from_secs(9)).await;
        world.0.lock().unwrap().clone()
    }

    #[tokio::test]
    async fn pods_go_one_after_the_other_until_one_has_gone() {
        assert_eq!(acted(Signal::Memory, 100, 200).await, ["evict full 1"]);
        assert_eq!(acted(Signal::Memory, 100, 50).await, ["Memory", "evict full 1", "evict big 1", "evict small 1"]);
    }

    #[tokio::test]
    async fn images_go_before_pods() {
        // After the collection, the disk of this test has the one byte that is asked for.
        assert_eq!(acted(Signal::NodeFs, 1, 0).await, ["Disk", "evict full 1", "clear", "reclaim"]);
        let never = acted(Signal::NodeFs, u64::MAX, 0).await;
        assert_eq!(never, ["Disk", "evict full 1", "clear", "reclaim", "evict small 1"]);
    }

    #[test]
    fn numbers_of_the_kernel() {
        let meminfo = "MemTotal:  2000 kB\nMemFree:   100 kB\nInactive:  70 kB\nInactive(file):   50 kB\n";
        let got = memory_of(meminfo).unwrap();
        assert_eq!(got, Measured { available: 150 << 10, capacity: 2000 << 10 });
        assert_eq!(memory_of("MemTotal: x kB"), None);
        assert_eq!(pids_of("0.1 0.2 0.3 2/300 999", 1000), Some(Measured { available: 700, capacity: 1000 }));
        assert_eq!(pids_of("", 1000), None);
        let here = measure(Path::new("/"), Path::new("/nonexistent"));
        assert!(here.contains_key(&Signal::Memory) && here.contains_key(&Signal::NodeFs));
        assert!(!here.contains_key(&Signal::ImageFs));
    }
}
