//! The only place where rooms are built and handed to each other.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use board::{clock::Clock, identity::Identity, metrics::Metrics, tasks::Supervisor};
use cluster_node::service::Node;
use store::{lock::Lock, state::State};
use telemetry::{
    board_metrics::BoardMetrics, ingest::Ingest, mqtt, outbox::Outbox, relay, router::Router, socket::Socket,
    uploads::Uploads,
};
use tokio_util::sync::CancellationToken;

use crate::{
    config::Config,
    control, engine_api,
    http::{self, HttpServer},
    node_api,
    status::Board,
};

/// How long a starting agent waits for a command to let go of the store.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
/// How long services have to finish what they have begun.
const GRACE: Duration = Duration::from_secs(10);

/// A built agent, not yet running.
pub struct App {
    supervisor: Supervisor,
    outbox: Outbox,
    state: State,
    /// What it says about itself at start.
    pub greeting: Vec<String>,
    /// Port of the first MQTT listener.
    pub mqtt_port: Option<u16>,
    _lock: Lock,
}

/// What the store's opening gives, before anything serves.
struct Opened {
    lock: Lock,
    clock: Clock,
    outbox: Outbox,
    state: State,
    mended: Vec<String>,
}

fn open_store(config: &Config, metrics: &Metrics) -> anyhow::Result<Opened> {
    let data = &config.data_dir;
    board::durable::create_dir_all(data, 0o700).with_context(|| {
        format!("cannot create the data directory {}: choose another with --data-dir", data.display())
    })?;
    let lock = Lock::take(data, LOCK_PATIENCE)?;
    let identity = Identity::open(&data.join("identity")).context("cannot open the board's identity")?;
    let clock = Clock::system(&identity).context("cannot read the board's clock")?;
    let (state, state_recovery) = State::open(&data.join("state"))?;
    let (outbox, log_recovery) =
        Outbox::open(&data.join("log"), identity.epoch(), config.outbox.clone(), clock.clone(), metrics)?;
    let mut mended = Vec::new();
    if let Some(aside) = state_recovery.set_aside {
        mended.push(format!("the state database was damaged; it is in {} and a new one was begun", aside.display()));
    }
    if !log_recovery.lost.is_empty() {
        mended.push(format!("part of the log was damaged; readings {:?} are lost", log_recovery.lost));
    }
    Ok(Opened { lock, clock, outbox, state, mended })
}

/// Adds the relays that are configured; what to say of them at start.
fn add_relays(
    config: &Config,
    outbox: &Outbox,
    router: &Router,
    metrics: &Metrics,
    supervisor: &mut Supervisor,
) -> Vec<String> {
    let mut greeting = Vec::new();
    if let Some(options) = &config.relay_mqtt {
        greeting.push(format!("relay     {} ({:?} mode)", options.url, options.mode));
        let relay = relay::mqtt::Relay::new(options.clone(), outbox.clone(), router.clone(), metrics);
        supervisor.service("relay.mqtt", move |context| relay.clone().run(context));
    }
    if let Some(options) = &config.relay_s3 {
        greeting.push(format!("relay     {} bucket {}", options.target.endpoint, options.target.bucket));
        let relay = relay::s3::Relay::new(options.clone(), outbox.clone(), metrics);
        supervisor.service("relay.s3", move |context| relay.clone().run(context));
    }
    if greeting.is_empty() {
        greeting.push("relay     none: readings are kept here; add [relay.mqtt] or [relay.s3] to send them on".into());
    }
    greeting
}

impl App {
    /// Opens the store and binds every socket, so that what is wrong shows now.
    pub async fn build(config: &Config) -> anyhow::Result<Self> {
        let metrics = Metrics::new();
        let (for_store, store_metrics) = (config.clone(), metrics.clone());
        let opened = tokio::task::spawn_blocking(move || open_store(&for_store, &store_metrics)).await??;
        let Opened { lock, clock, outbox, state, mended } = opened;
        let configured =
            [config.relay_mqtt.as_ref().map(|_| relay::mqtt::NAME), config.relay_s3.as_ref().map(|_| relay::s3::NAME)];
        outbox.forget_relays_except(&configured.into_iter().flatten().collect::<Vec<_>>());
        let router = Router::new(&metrics);
        let (loading, from) = (router.clone(), state.clone());
        tokio::task::spawn_blocking(move || loading.load(&from)).await?;
        let ingest = Ingest { outbox: outbox.clone(), router: router.clone() };
        let listener = mqtt::Listener::bind(config.mqtt.clone(), ingest.clone(), state.clone(), &metrics).await?;
        let mqtt_port = listener.local_addrs().first().map(std::net::SocketAddr::port);
        let mut supervisor = Supervisor::new();
        let uploads = config
            .uploads
            .clone()
            .map(|options| Uploads::new(options, state.clone(), outbox.clock().clone(), &metrics));
        let board = Arc::new(Board {
            name: config.name.clone(),
            data_dir: config.data_dir.clone(),
            health: supervisor.health(),
            outbox: outbox.clone(),
            state: state.clone(),
            uploads: uploads.clone(),
            started: std::time::Instant::now(),
            mended,
        });
        board.register(&metrics);
        let mut greeting = vec![
            format!(
                "MQTT      {}",
                listener.local_addrs().iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
            ),
            format!("data      {}", config.data_dir.display()),
        ];
        let engine = config.engine.enabled.then(|| engine_api::Api::new(&config.engine));
        let node = config.node.clone().filter(|_| engine.is_some());
        let node = node.map(|options| Node::new(options, state.clone(), outbox.clock().clone(), metrics.clone()));
        let routes = engine.as_ref().map(engine_api::Api::routes).unwrap_or_default();
        let routes = routes.merge(node.clone().map(node_api::routes).unwrap_or_default());
        let control = control::Server::bind(&config.socket(), ingest.clone(), board.clone(), Some(routes))?;
        let socket = Socket::bind(&config.readings_socket(), ingest.clone(), &metrics)?;
        greeting.push(format!("socket    {}", config.readings_socket().display()));
        if let Some(address) = config.http_listen {
            let routes = http::routes(&ingest, &config.http, &metrics, board.clone());
            let server = HttpServer::bind(address, routes).await?;
            greeting.insert(1, format!("HTTP      http://{}/", server.local_addr()));
            supervisor.service("http", move |context| server.clone().run(context));
        }
        // Sources stop first, the outbox last: what was accepted is stored and acknowledged.
        let keeper = outbox.clone();
        supervisor.service("outbox", move |context| keeper.clone().run(context));
        supervisor.service("clock", move |context| clock.clone().run(context));
        greeting.extend(add_relays(config, &outbox, &router, &metrics, &mut supervisor));
        let saved = state.clone();
        supervisor.service("sessions", move |context| router.clone().run(saved.clone(), context));
        if let Some(uploads) = uploads {
            supervisor.service("uploads", move |context| uploads.clone().run(context));
        }
        if let Some(options) = &config.board_metrics {
            let source = BoardMetrics::new(options.clone(), ingest.clone());
            supervisor.service("board_metrics", move |context| source.clone().run(context));
        }
        if let Some(api) = engine {
            let for_node = api.clone();
            let service = engine_api::service::Service::new(api, config, state.clone(), metrics.clone());
            supervisor.service("engine", move |context| service.clone().run(context));
            if let Some(node) = node {
                supervisor.service("node", move |context| node_api::run(node.clone(), for_node.clone(), context));
            }
        }
        supervisor.service("socket", move |context| socket.clone().run(context));
        supervisor.service("control", move |context| control.clone().run(context));
        supervisor.service("mqtt", move |context| listener.clone().run(context));
        Ok(Self { supervisor, outbox, state, greeting, mqtt_port, _lock: lock })
    }

    /// Serves until `stop` is cancelled; then everything that was accepted is on disk.
    pub async fn run(self, stop: CancellationToken) {
        self.supervisor.run(stop, GRACE).await;
        let closed = tokio::task::spawn_blocking(move || {
            self.outbox.close();
            self.state.close();
        });
        if let Err(error) = closed.await {
            tracing::error!(%error, "closing the store panicked");
        }
    }
}
