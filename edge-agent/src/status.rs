//! How the board is: for `status`, the status page and the metrics.

use std::{fmt::Write, path::PathBuf, time::Instant};

use board::{
    metrics::Metrics,
    sys,
    tasks::{Health, ServiceHealth, State as ServiceState},
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::gauge::ConstGauge,
};
use store::state::State;
use telemetry::{
    outbox::{Outbox, Waiting},
    uploads::{Standing, Uploads},
};

/// What a status is made of.
pub struct Board {
    /// Name of the board.
    pub name: String,
    /// Where the store is.
    pub data_dir: PathBuf,
    /// The services.
    pub health: Health,
    /// The outbox.
    pub outbox: Outbox,
    /// The state.
    pub state: State,
    /// Large files, where there is an S3 for them.
    pub uploads: Option<Uploads>,
    /// Start of the agent.
    pub started: Instant,
    /// What opening the store found damaged.
    pub mended: Vec<String>,
}

/// One status, as `status --json` prints it.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Status {
    /// Name of the board.
    pub name: String,
    /// Version of the agent.
    pub version: String,
    /// Seconds since its start.
    pub uptime_s: u64,
    /// Whether nothing needs anybody.
    pub healthy: bool,
    /// Whether the time is known.
    pub clock_trusted: bool,
    /// Services by name.
    pub services: Vec<ServiceHealth>,
    /// The outbox.
    pub outbox: OutboxStatus,
    /// Large files.
    pub uploads: Option<Standing>,
    /// Bytes: proportional set size, its anonymous part, and free on the data's disk.
    pub memory_pss: u64,
    /// The anonymous part of it.
    pub memory_anonymous: u64,
    /// Free bytes on the file system of the data.
    pub disk_free: u64,
    /// What opening the store found damaged.
    pub mended: Vec<String>,
}

/// The outbox in figures.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct OutboxStatus {
    /// The store's epoch.
    pub epoch: u64,
    /// Oldest number held.
    pub first: u64,
    /// Number the next reading will get.
    pub next: u64,
    /// Bytes on disk.
    pub disk_bytes: u64,
    /// Readings that wait for each relay.
    pub waiting: Vec<Waiting>,
}

impl Board {
    /// Now.
    pub fn status(&self) -> Status {
        let services = self.health.snapshot();
        let memory = sys::memory();
        let stats = self.outbox.stats();
        let blobs = self.state.blobs();
        let mut mended = self.mended.clone();
        if stats.damaged > 0 {
            mended
                .push(format!("{} readings of the log are damaged; the rest is kept (see set-aside/)", stats.damaged));
        }
        if blobs > 0 {
            mended.push(format!("the state database holds {blobs} unsynced blobs; please report this"));
        }
        Status {
            name: self.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_s: self.started.elapsed().as_secs(),
            healthy: services.iter().all(|service| service.state.is_healthy()),
            clock_trusted: self.outbox.clock().is_trusted(),
            services,
            outbox: OutboxStatus {
                epoch: self.outbox.epoch(),
                first: stats.first,
                next: stats.next,
                disk_bytes: stats.disk_bytes,
                waiting: self.outbox.waiting(),
            },
            uploads: self.uploads.as_ref().map(Uploads::standing),
            memory_pss: memory.pss,
            memory_anonymous: memory.anonymous,
            disk_free: sys::disk(&self.data_dir).map_or(0, |disk| disk.free),
            mended,
        }
    }

    /// Registers what only the whole agent knows.
    pub fn register(self: &std::sync::Arc<Self>, metrics: &Metrics) {
        let figures = Figures(self.clone());
        metrics.register(|registry| registry.register_collector(Box::new(figures)));
    }
}

struct Figures(std::sync::Arc<Board>);

impl std::fmt::Debug for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Figures")
    }
}

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let status = self.0.status();
        let unwell = status.services.iter().filter(|service| !service.state.is_healthy()).count();
        let restarts = status.services.iter().map(|service| service.restarts).sum::<u64>();
        let gauges = [
            ("memory_pss_bytes", "Memory of the agent, proportional set size", status.memory_pss),
            ("memory_anonymous_bytes", "Its anonymous part", status.memory_anonymous),
            ("disk_free_bytes", "Free on the file system of the data", status.disk_free),
            ("services_unwell", "Services that are degraded or failed", unwell as u64),
            ("service_restarts", "Times that services were started again", restarts),
            ("clock_trusted", "Whether the time is known", u64::from(status.clock_trusted)),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(signed(value));
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}

/// For people: one line a service.
pub fn text(status: &Status) -> String {
    let mut out = String::new();
    let word = if status.healthy { "healthy" } else { "degraded" };
    let (name, version) = (&status.name, &status.version);
    // Writing to a `String` cannot fail.
    let _ = writeln!(out, "{name}: {word}, edge-agent {version}, up {}", span(status.uptime_s));
    let held = status.outbox.next - status.outbox.first;
    let _ = writeln!(out, "  {:<10} {held} readings held in {} MB", "outbox", status.outbox.disk_bytes / 1_000_000);
    for waiting in &status.outbox.waiting {
        let _ = writeln!(out, "  {:<10} {} readings wait", waiting.relay, waiting.readings);
    }
    for line in status.uploads.iter().filter(|it| it.files > 0) {
        let _ = writeln!(out, "  {:<10} {}", "uploads", standing(line));
    }
    // How much the outbox holds is said above.
    for service in status.services.iter().filter(|service| service.name != "outbox" || !service.state.is_healthy()) {
        let (mark, words) = match &service.state {
            ServiceState::Starting => (' ', "starting".to_owned()),
            ServiceState::Healthy { detail } => (' ', detail.clone()),
            ServiceState::Degraded { problem, remedy } => ('!', format!("{problem}: {remedy}")),
            ServiceState::Failed { problem } => ('!', format!("failed, will be started again: {problem}")),
        };
        let _ = writeln!(out, "{mark} {:<10} {words}", service.name);
    }
    for line in &status.mended {
        let _ = writeln!(out, "! {:<10} {line}", "store");
    }
    let mb = |bytes: u64| bytes / 1_000_000;
    let _ = writeln!(
        out,
        "  {:<10} {} MB memory ({} MB anonymous), {} MB free on disk",
        "board",
        mb(status.memory_pss),
        mb(status.memory_anonymous),
        mb(status.disk_free)
    );
    out
}

fn standing(uploads: &Standing) -> String {
    let files = format!("{} files of {} MB wait", uploads.files, uploads.bytes / 1_000_000);
    match &uploads.current {
        Some(name) => format!("{files}; {name} is at {} %", uploads.done * 100 / uploads.size.max(1)),
        None => files,
    }
}

fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}
