//! [`Engine`]: the front object. It builds the rooms, hands them to each other, and finds again what was there.
//!
//! Always true: dropping or closing an engine ends no container. Shims hold them, and the next engine on the same folders
//! takes them up.

use std::{
    future::Future,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use board::{metrics::Metrics, tasks::Context};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::gauge::ConstGauge,
};
use store::state::State;
use tokio::{sync::oneshot, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::{
    cgroup::{CgroupError, Cgroups},
    container::{Containers, Parts, RecoveryReport, Resources},
    event::{Events, Filter, Kind},
    image::{self, Images, Water},
    lease::Leases,
    ledger::{Amount, Ledger},
    network::{NetworkError, Networks},
    owner::Owner,
    registry::{self, Registry, RegistryError},
    roots::{ContainersUse, EngineRoots},
    runtime::{Runtime, SealError, SealedExe},
    shim::RuntimeSpec,
    snapshot::Snapshots,
    volume::Volumes,
};

/// How the engine is to be on this board.
#[derive(Debug, Clone)]
pub struct Options {
    /// `DATA`: images, snapshots, volumes, logs.
    pub data_dir: PathBuf,
    /// `RUN`: sockets, mounts, namespaces. Gone after a reboot.
    pub run_dir: PathBuf,
    /// `embedded`, `runc`, `crun`, or the path of a program with runc's command line.
    pub runtime: String,
    /// The program that shims are started from; this one, sealed, where absent.
    pub program: Option<PathBuf>,
    /// A control group above `edge.slice`; empty: none.
    pub cgroup_parent: String,
    /// Kept back from containers for the system and the agent.
    pub reserved: Amount,
    /// Networks; its folders are set from those above.
    pub network: crate::network::Options,
    /// Registries.
    pub registry: registry::Options,
    /// Bytes that blobs and layers may take together; absent: what the disk has.
    pub quota: Option<u64>,
    /// When unused images go.
    pub water: Water,
    /// Layers of one pull on their way at once.
    pub parallel_downloads: usize,
}

/// What tells an engine on this data from others on the same host: nothing for the usual place, else twelve hexadecimal
/// digits. Control groups, rules and devices have it in their names, so that no engine takes another's for its own.
pub fn instance(data_dir: &Path) -> String {
    let data_dir: PathBuf = data_dir.components().collect();
    if data_dir == crate::network::Options::default().data_dir {
        return String::new();
    }
    crate::content::Digest::of(data_dir.as_os_str().as_encoded_bytes()).hex()[..12].to_owned()
}

impl Options {
    /// Everything in these two folders, the rest as on a board; what an engine on other data than the usual makes on the
    /// host has its [`instance`] in its name.
    pub fn new(data_dir: impl Into<PathBuf>, run_dir: impl Into<PathBuf>) -> Self {
        let data_dir = data_dir.into();
        let network = crate::network::Options::of(instance(&data_dir));
        let cgroup_parent =
            if network.instance.is_empty() { String::new() } else { format!("edge-{}", network.instance) };
        Self {
            data_dir,
            run_dir: run_dir.into(),
            runtime: "embedded".to_owned(),
            program: None,
            cgroup_parent,
            reserved: Amount::default(),
            network,
            registry: registry::Options::default(),
            quota: None,
            water: Water::default(),
            parallel_downloads: image::PARALLEL_DOWNLOADS,
        }
    }
}

/// Why there is no engine.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A folder.
    #[error("cannot make {path}")]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Control groups.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The program.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// Networks.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// Registries.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// Images.
    #[error(transparent)]
    Images(#[from] image::OpenError),
}

/// The engine; cheap to clone.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

struct Inner {
    containers: Containers,
    images: Images,
    snapshots: Snapshots,
    volumes: Volumes,
    leases: Leases,
    registry: Registry,
    networks: Networks,
    events: Events,
    ledger: Ledger,
    cgroups: Cgroups,
    recovered: RecoveryReport,
    /// The engine's own work, which is awaited when it closes: the collector of images, commits.
    tasks: Mutex<JoinSet<()>>,
    stop: CancellationToken,
    /// Control groups that go with the last container: those of an engine on other data than the usual.
    groups: Vec<String>,
}

/// Between two looks at the water marks where no image came.
const COLLECT_EVERY: Duration = Duration::from_secs(300);

impl Engine {
    /// Opens the engine and finds again what was there: containers that still run are followed, ends that nobody saw are
    /// recorded, what belongs to nobody is removed.
    ///
    /// * Errors: of the board; damage to single containers is in [`Engine::recovered`].
    /// * Cancelled: open it again.
    pub async fn open(options: Options, state: State) -> Result<Self, OpenError> {
        for dir in [&options.data_dir, &options.run_dir] {
            folder(dir)?;
        }
        let cgroups = Cgroups::detect()?;
        let program = options.program.clone().or_else(|| std::fs::read_link("/proc/self/exe").ok()).unwrap_or_default();
        let sealed = || match &options.program {
            Some(program) => SealedExe::of(program),
            None => SealedExe::open(),
        };
        let own_runtime = Runtime::named(&options.runtime, sealed()?, options.run_dir.join("oci"));
        let exe = sealed()?;
        let registry = Registry::new(options.registry.clone())?;
        let events = Events::new();
        let (snapshots, volumes) = folders(&options.data_dir, &exe.path(), &events)?;
        let leases = Leases::new(state.clone());
        let images = image::Options {
            quota: options.quota,
            water: options.water,
            parallel_downloads: options.parallel_downloads,
            events: events.clone(),
            ..image::Options::new(&options.data_dir)
        };
        let images = Images::open(images, state.clone(), leases.clone(), registry.clone(), snapshots.clone()).await?;
        let roots = EngineRoots { images: images.clone(), snapshots: snapshots.clone(), volumes: volumes.clone() };
        let network = crate::network::Options {
            run_dir: options.run_dir.clone(),
            data_dir: options.data_dir.clone(),
            events: events.clone(),
            ..options.network
        };
        let groups = own_groups(&network.instance, &options.cgroup_parent);
        let networks = Networks::open(network, state.clone()).await?;
        let ledger = Ledger::open(state.clone(), Amount::of_board(&options.data_dir), options.reserved);
        let parts = Parts {
            runtime: runtime(&options.runtime, &options.run_dir),
            data_dir: options.data_dir,
            run_dir: options.run_dir,
            own_runtime: Arc::new(own_runtime),
            exe,
            program,
            cgroup_parent: options.cgroup_parent,
            state,
            events: events.clone(),
            ledger: ledger.clone(),
            cgroups: cgroups.clone(),
            networks: networks.clone(),
            roots: Arc::new(roots),
        };
        let containers = Containers::new(parts);
        let recovered = containers.recover().await;
        for problem in &recovered.problems {
            tracing::warn!(problem, "something of an earlier run could not be put in order");
        }
        images.set_in_use(Arc::new(ContainersUse(containers.clone())));
        // Only now: before, no image would seem to be in use.
        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        let (collected, ended) = (images.clone(), stop.clone());
        let collector = async move { collected.keep_water(COLLECT_EVERY, ended).await };
        tasks.spawn(collector.instrument(tracing::info_span!("image collector")));
        Ok(Self(Arc::new(Inner {
            containers,
            images,
            snapshots,
            volumes,
            leases,
            registry,
            networks,
            events,
            ledger,
            cgroups,
            recovered,
            tasks: Mutex::new(tasks),
            stop,
            groups,
        })))
    }

    /// Images.
    pub fn images(&self) -> &Images {
        &self.0.images
    }

    /// Layers and root file systems: prepare, diff, commit.
    pub fn snapshots(&self) -> &Snapshots {
        &self.0.snapshots
    }

    /// Named volumes. Their calls block.
    pub fn volumes(&self) -> &Volumes {
        &self.0.volumes
    }

    /// What is held against garbage collection.
    pub fn leases(&self) -> &Leases {
        &self.0.leases
    }

    /// Registries.
    pub fn registry(&self) -> &Registry {
        &self.0.registry
    }

    /// Containers.
    pub fn containers(&self) -> &Containers {
        &self.0.containers
    }

    /// Networks.
    pub fn networks(&self) -> &Networks {
        &self.0.networks
    }

    /// What happens.
    pub fn events(&self) -> &Events {
        &self.0.events
    }

    /// The board's capacity.
    pub fn ledger(&self) -> &Ledger {
        &self.0.ledger
    }

    /// Control groups.
    pub fn cgroups(&self) -> &Cgroups {
        &self.0.cgroups
    }

    /// What was found when the engine was opened.
    pub fn recovered(&self) -> &RecoveryReport {
        &self.0.recovered
    }

    /// Limits of all containers of an owner together; its group is made where it is missing.
    pub async fn limit_owner(&self, owner: &Owner, limits: Resources) -> Result<(), CgroupError> {
        let (cgroups, path) = (self.0.cgroups.clone(), self.0.containers.owner_cgroup(owner));
        blocking(move || cgroups.create(&path, &limits)).await
    }

    /// Removes the group of an owner without containers.
    pub async fn remove_owner(&self, owner: &Owner) -> Result<(), CgroupError> {
        let (cgroups, path) = (self.0.cgroups.clone(), self.0.containers.owner_cgroup(owner));
        blocking(move || cgroups.remove(&path)).await
    }

    /// What all containers of an owner use together.
    pub async fn owner_usage(&self, owner: &Owner) -> Result<crate::cgroup::Usage, CgroupError> {
        let (cgroups, path) = (self.0.cgroups.clone(), self.0.containers.owner_cgroup(owner));
        blocking(move || cgroups.usage(&path)).await
    }

    /// Registers what is counted: read when somebody asks, never before.
    pub fn register(&self, metrics: &Metrics) {
        let collector = Counted(self.containers().clone());
        metrics.register(|registry| registry.register_collector(Box::new(collector)));
        self.images().register(metrics);
    }

    /// The service: says how the engine is, at each change of a container, until it is told to stop.
    pub async fn run(&self, context: Context) -> Result<(), std::convert::Infallible> {
        let containers = Filter { kinds: vec![Kind::Container], ..Filter::default() };
        let mut changes = self.events().subscribe(containers, None);
        loop {
            self.report(&context);
            tokio::select! {
                () = context.stop.cancelled() => return Ok(()),
                Some(_) = changes.next() => {}
            }
        }
    }

    fn report(&self, context: &Context) {
        match (self.0.networks.problem(), self.0.recovered.problems.first()) {
            (Some(problem), _) => context.degraded(problem, "see `edge-agent doctor`"),
            (None, Some(problem)) => context.degraded(problem.clone(), "see the log of the agent's start"),
            (None, None) => {
                let (all, alive) = self.containers().count();
                context.healthy(format!("{alive} of {all} containers run"));
            }
        }
    }

    /// Carries `work` to its end, also when whoever asked for it has gone and when the engine closes meanwhile. `None`: it
    /// is closed already, or the work panicked.
    pub(crate) async fn whole<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Option<T> {
        let (done, answer) = oneshot::channel();
        {
            let mut tasks = self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner);
            if self.0.stop.is_cancelled() {
                return None;
            }
            while tasks.try_join_next().is_some() {}
            tasks.spawn(async move {
                // Whoever asked may be gone.
                let _ = done.send(work.await);
            });
        }
        answer.await.ok()
    }

    /// Ends the engine's own work. Containers go on. An engine on other data than the usual, whose last container has
    /// gone, takes its control groups, rules and bridges with it.
    pub async fn close(&self) {
        self.0.stop.cancel();
        let mut tasks = std::mem::take(&mut *self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        while tasks.join_next().await.is_some() {}
        self.0.containers.close().await;
        self.0.networks.close();
        let (_, alive) = self.containers().count();
        if alive > 0 || self.0.groups.is_empty() {
            return;
        }
        if let Err(error) = self.0.networks.leave().await {
            tracing::warn!(error = %board::tasks::chain(&error), "rules or bridges of networks stay");
        }
        let (cgroups, groups) = (self.0.cgroups.clone(), self.0.groups.clone());
        if let Err(error) = blocking(move || groups.iter().try_for_each(|group| cgroups.remove_empty(group))).await {
            tracing::warn!(error = %board::tasks::chain(&error), "control groups stay");
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CgroupError> + Send + 'static,
) -> Result<T, CgroupError> {
    let panicked = |error: tokio::task::JoinError| CgroupError::Group {
        what: "work on",
        path: PathBuf::new(),
        source: std::io::Error::other(error),
    };
    tokio::task::spawn_blocking(work).await.map_err(panicked)?
}

/// The groups that are nobody else's, the innermost first: nothing above `edge.slice` that somebody chose by name.
fn own_groups(instance: &str, parent: &str) -> Vec<String> {
    let parent = parent.trim_matches('/');
    match instance {
        "" => Vec::new(),
        instance if parent == format!("edge-{instance}") => vec![parent.to_owned()],
        _ if parent.is_empty() => vec!["edge.slice".to_owned()],
        _ => vec![format!("{parent}/edge.slice")],
    }
}

/// Briefly blocking: two folders are listed.
fn folders(data: &Path, program: &Path, events: &Events) -> Result<(Snapshots, Volumes), OpenError> {
    let failed = |name: &str| {
        let path = data.join(name);
        move |source| OpenError::Folder { path, source }
    };
    let snapshots = Snapshots::open(data, program).map_err(failed("layers"))?;
    Ok((snapshots, Volumes::open(data, events.clone()).map_err(failed("volumes"))?))
}

fn folder(dir: &Path) -> Result<(), OpenError> {
    // Ids of a user namespace have to get through to their mounts; what is secret below has modes of its own.
    let mode = |dir: &Path| std::fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o711));
    let made = board::durable::create_dir_all(dir, 0o711).and_then(|()| mode(dir));
    made.map_err(|source| OpenError::Folder { path: dir.to_owned(), source })
}

/// What shims are told of the runtime.
fn runtime(name: &str, run_dir: &Path) -> RuntimeSpec {
    let embedded = name.is_empty() || name == "embedded";
    RuntimeSpec {
        program: (!embedded).then(|| PathBuf::from(name)),
        root: run_dir.join("oci"),
        no_pivot: root_is_initramfs(),
    }
}

/// `pivot_root` cannot leave an initramfs.
fn root_is_initramfs() -> bool {
    const RAMFS: i64 = 0x8584_58f6;
    const TMPFS: i64 = 0x0102_1994;
    let is_memory = rustix::fs::statfs("/").is_ok_and(|fs| {
        #[allow(clippy::unnecessary_cast, clippy::cast_possible_wrap)] // The type differs between machines.
        let kind = fs.f_type as i64;
        kind == RAMFS || kind == TMPFS
    });
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    // An initramfs is the root of all mounts: its own parent, and not on the list; a tmpfs as root is.
    is_memory && !mounts.lines().any(|line| line.split(' ').nth(4) == Some("/") && !line.contains(" - rootfs "))
}

struct Counted(Containers);

impl std::fmt::Debug for Counted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Counted")
    }
}

impl Collector for Counted {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let (all, alive) = self.0.count();
        let mut gauge = |name: &str, help: &str, value: usize| {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
        };
        gauge("containers", "Containers that are kept", all)?;
        gauge("containers_running", "Containers that have processes", alive)
    }
}
