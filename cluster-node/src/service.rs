//! The node as a service of the agent: makes the rooms of this crate, hands them to each other, and runs them.
//!
//! Always true:
//! - A board that has joined starts with what it has on disk; nothing here waits for the API server.
//! - A board that has not joined runs its static pods all the same.
//! - Joining and leaving begin everything here anew; containers go on meanwhile.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use board::{
    clock::Clock,
    metrics::Metrics,
    tasks::{Context, PartEnded, Parts},
};
use container_engine::engine::Engine;
use rustls_pki_types::{CertificateDer, pem::PemObject};
use store::state::State;
use tokio::sync::{Notify, watch};

mod ground;

use crate::{
    api::{Api, Identity, Link, Wire, tls::TlsError},
    event::Recorder,
    housekeeping::eviction::Eviction,
    join::{self, Credentials, CredentialsError, JoinError, JoinOptions, Rotation, Serving},
    node::NodeObject,
    object::{Cache, CacheError, Objects},
    options::Options,
    pod::{self, Made, Making, Pods},
    server::{self, Server, ServerError},
    volume::Volumes,
};

/// How long the parts have to finish what they have begun.
const GRACE: Duration = Duration::from_secs(8);
/// How long `join` waits for the node to be Ready before it says what it waits for.
const READY_WITHIN: Duration = Duration::from_secs(120);

/// The node does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// Its identity.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// Its copies of the cluster's objects.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// Keys and certificates.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// Its connection.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Its own API.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// A part.
    #[error(transparent)]
    Part(#[from] PartEnded),
    /// Its folders.
    #[error("cannot prepare {path}: {source}", path = path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// What runs now.
#[derive(Clone)]
pub struct Live {
    /// The API server.
    pub api: Api,
    /// The Node object.
    pub node: NodeObject,
    /// Pods.
    pub pods: Pods,
}

/// How the node is, for `status` and the status page.
#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
pub struct Standing {
    /// Its name.
    pub name: String,
    /// `https://HOST:PORT` of the cluster; absent where it has not joined.
    pub server: Option<String>,
    /// Whether the API server answered the last time.
    pub connected: bool,
    /// Whether the cluster knows the node as Ready.
    pub ready: bool,
    /// Pods that are here.
    pub pods: usize,
    /// When its certificate runs out, RFC 3339: the board must be online before.
    pub certificate_expires: Option<String>,
    /// Whether it comes back by itself after that.
    pub renews: bool,
    /// Bytes sent to and received from the API server.
    pub sent_bytes: u64,
    /// Bytes received.
    pub received_bytes: u64,
}

/// The node; cheap to clone.
#[derive(Clone)]
pub struct Node(Arc<Inner>);

struct Inner {
    options: Options,
    state: State,
    clock: Clock,
    wire: Wire,
    metrics: Metrics,
    live: watch::Sender<Option<Live>>,
    /// The identity on disk is another now.
    again: Notify,
    /// One at a time joins or leaves.
    gate: tokio::sync::Mutex<()>,
    credentials: Mutex<Option<Credentials>>,
}

impl Node {
    /// Nothing runs yet.
    pub fn new(options: Options, state: State, clock: Clock, metrics: Metrics) -> Self {
        Self(Arc::new(Inner {
            options,
            state,
            clock,
            wire: Wire::default(),
            metrics,
            live: watch::Sender::new(None),
            again: Notify::new(),
            gate: tokio::sync::Mutex::default(),
            credentials: Mutex::default(),
        }))
    }

    /// What runs now, if it does.
    pub fn live(&self) -> Option<Live> {
        self.0.live.borrow().clone()
    }

    /// How it is.
    pub fn standing(&self) -> Standing {
        let live = self.live();
        let credentials = self.0.credentials.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let name = credentials.as_ref().map_or(&self.0.options.name, |it| &it.cluster.node).clone();
        let link = live.as_ref().map(|live| live.api.link().borrow().clone());
        Standing {
            name,
            server: credentials.as_ref().map(|it| it.cluster.server.clone()),
            connected: link == Some(Link::Up),
            ready: live.as_ref().is_some_and(|live| *live.node.is_ready().borrow()),
            pods: live.as_ref().map_or(0, |live| live.pods.all().len()),
            certificate_expires: credentials.as_ref().and_then(|it| it.not_after().ok()).map(|it| it.to_string()),
            renews: join::renews(&self.identity()),
            sent_bytes: self.0.wire.sent(),
            received_bytes: self.0.wire.received(),
        }
    }

    fn identity(&self) -> PathBuf {
        self.0.options.data_dir.join("identity")
    }

    /// Joins a cluster and waits until the node is Ready; `said` is told of each step.
    ///
    /// Errors: nothing is half-joined. A node that is joined but not Ready in time is no error: `said` hears what it waits
    /// for.
    pub async fn join(&self, how: &JoinOptions, said: &(dyn Fn(String) + Send + Sync)) -> Result<(), JoinError> {
        {
            let _one = self.0.gate.lock().await;
            join::join(&self.0.options, how, &self.identity(), &self.0.clock, &self.0.wire, said).await?;
        }
        self.0.again.notify_one();
        said("waiting for the node to be Ready".to_owned());
        match tokio::time::timeout(READY_WITHIN, self.ready()).await {
            Ok(()) => said(format!("node {} is Ready", self.standing().name)),
            Err(_) => said(format!(
                "the board has joined, but the node is not Ready after {} s: see `edge-agent status`",
                READY_WITHIN.as_secs()
            )),
        }
        Ok(())
    }

    async fn ready(&self) {
        let mut live = self.0.live.subscribe();
        loop {
            let now = live.borrow_and_update().clone().filter(|it| it.api.is_somewhere());
            let Some(now) = now else {
                // The sender lives as long as `self`.
                let _ = live.changed().await;
                continue;
            };
            let mut is_ready = now.node.is_ready();
            tokio::select! {
                ready = is_ready.wait_for(|ready| *ready) => if ready.is_ok() { return },
                _ = live.changed() => {}
            }
        }
    }

    /// Leaves the cluster; with `purge` without asking it: no new pods, those that are here are evicted and end, the identity is forgotten.
    pub async fn leave(&self, purge: bool, said: &(dyn Fn(String) + Send + Sync)) -> Result<(), JoinError> {
        let _one = self.0.gate.lock().await;
        let live = self.live().filter(|it| it.api.is_somewhere());
        if let Some(live) = &live {
            if !purge {
                join::leave(&live.api, &self.standing().name, said).await?;
            }
            live.pods.end_all().await;
        }
        join::forget(&self.identity())?;
        self.0.again.notify_one();
        Ok(())
    }

    /// Runs until it is told to stop. Pods go on.
    pub async fn run(self, engine: Engine, context: Context) -> Result<(), ServiceError> {
        loop {
            let credentials = Credentials::load(&self.identity())?;
            self.0.credentials.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&credentials);
            let parts = self.parts(&engine, credentials, &context).await?;
            let stop = context.stop.child_token();
            let run = parts.run(&stop, GRACE);
            tokio::pin!(run);
            let ended = tokio::select! {
                ended = &mut run => ended,
                () = self.0.again.notified() => {
                    stop.cancel();
                    run.await
                }
            };
            self.0.live.send_replace(None);
            ended?;
            if context.stop.is_cancelled() {
                return Ok(());
            }
        }
    }

    async fn parts(
        &self,
        engine: &Engine,
        credentials: Option<Credentials>,
        context: &Context,
    ) -> Result<Parts, ServiceError> {
        let inner = &self.0;
        let mut options = inner.options.clone();
        let api = match &credentials {
            Some(it) => {
                options.name.clone_from(&it.cluster.node);
                self.api(it)?
            }
            None => Api::nowhere(inner.clock.clone(), inner.wire.clone()),
        };
        let options = Arc::new(options);
        let cluster = credentials.as_ref().map(|it| it.cluster.clone()).unwrap_or_default();
        for dir in [&options.kubelet_dir, &options.log_dir.join("pods"), &options.log_dir.join("containers")] {
            board::durable::create_dir_all(dir, 0o755)
                .map_err(|source| ServiceError::Folder { path: dir.clone(), source })?;
        }
        let cache = Cache::open(inner.state.clone(), &self.identity())?;
        if credentials.is_none() {
            // What a cluster wanted that this board has left.
            let all: Vec<String> = cache.pods().into_iter().filter_map(|pod| pod.metadata.uid).collect();
            cache.change_pods(&[], &all).await?;
        }
        let objects = Objects::new(Arc::new(api.clone()), cache.clone(), inner.clock.clone());
        let recorder = Recorder::new(api.clone(), inner.state.clone(), &options.name, inner.clock.clone());
        let node = NodeObject::new(
            &options,
            api.clone(),
            cache,
            engine.clone(),
            inner.clock.clone(),
            recorder.clone(),
            &cluster.configuration,
        );
        let volumes = Volumes::new(&options.kubelet_dir, objects.clone(), engine.clone(), ground::volumes(&node));
        let made = pod::make(Making {
            options: options.clone(),
            api: api.clone(),
            state: inner.state.clone(),
            objects: objects.clone(),
            volumes,
            engine: engine.clone(),
            recorder: recorder.clone(),
            clock: inner.clock.clone(),
            surroundings: ground::surroundings(&options, &cluster, &node),
            ground: ground::of(&cluster, &node),
        });
        let mut parts = Parts::of(context);
        parts.start("node.objects", |context| async move { objects.run(context).await });
        if let Some(credentials) = credentials {
            self.start_joined(&mut parts, &options, engine, &api, &node, &made, credentials).await?;
        } else {
            parts.start("node.join", |context| self.clone().first_boot(context));
            let looker = node.clone();
            parts.start("node.status", |context| looker.register_and_report(context));
        }
        parts.start("node.events", |context| recorder.run(context));
        parts.start("node.statuses", |context| made.statuses.run(context));
        parts.start("node.pods", |context| made.manager.run(context));
        parts.start("node.source", |context| made.source.run(context));
        self.0.live.send_replace(Some(Live { api, node, pods: made.pods }));
        context.healthy(self.words());
        Ok(parts)
    }

    fn api(&self, credentials: &Credentials) -> Result<Api, ServiceError> {
        let identity = Identity::Certificate { chain: credentials.chain.clone(), key: credentials.key.clone() };
        let server = credentials.server()?;
        Ok(Api::new(server, &credentials.ca, identity, self.0.clock.clone(), self.0.wire.clone())?)
    }

    /// What only a node of a cluster has.
    #[allow(clippy::too_many_arguments)] // It is the wiring.
    async fn start_joined(
        &self,
        parts: &mut Parts,
        options: &Arc<Options>,
        engine: &Engine,
        api: &Api,
        node: &NodeObject,
        made: &Made,
        credentials: Credentials,
    ) -> Result<(), ServiceError> {
        let identity = self.identity();
        let serving = Serving::new(&identity, &options.name, node.addresses())?;
        let cas = CertificateDer::pem_slice_iter(&credentials.ca).flatten().collect();
        let probes = made.prober.clone();
        let config = server::Config::of(
            options,
            serving.resolver(),
            cas,
            credentials.cluster.configuration.clone(),
            self.0.metrics.clone(),
            Arc::new(move || pod::probe::metrics(&probes.counts())),
        );
        let server = Server::bind(config, Arc::new(made.pods.clone()), engine.clone(), Arc::new(api.clone())).await?;
        let for_serving = api.clone();
        // A board in no cluster keeps its images: nobody else could give a pod another place.
        let eviction = Eviction::new(
            ground::eviction(options, &credentials.cluster, &options.data_dir),
            Arc::new(made.pods.clone()),
            Arc::new(node.clone()),
            Arc::new(engine.clone()),
        );
        parts.start("node.eviction", |context| eviction.run(context));
        parts.start("node.serving", |context| serving.run(for_serving, context));
        let rotation = Rotation::new(api.clone(), identity, self.0.clock.clone(), options.clone());
        parts.start("node.certificate", |context| rotation.run(context));
        let (identity, registered) = (self.identity(), node.clone());
        parts.start("node.join", |context| blank_join_toml(identity, registered, context));
        let reporter = node.clone();
        parts.start("node.status", |context| reporter.register_and_report(context));
        let leaser = node.clone();
        parts.start("node.lease", |context| leaser.lease(context));
        parts.start("node.server", |context| server.run(context));
        Ok(())
    }

    /// Joins by `join.toml`, tried until it works.
    async fn first_boot(self, context: Context) -> Result<(), std::convert::Infallible> {
        let mut tries = 0;
        loop {
            match join::toml::find(&self.identity()) {
                Ok(None) => context.healthy("in no cluster; `edge-agent join` makes it a node of one"),
                Ok(Some(how)) => {
                    let said = |words: String| tracing::info!("{words}");
                    let joined = {
                        let _one = self.0.gate.lock().await;
                        join::join(&self.0.options, &how, &self.identity(), &self.0.clock, &self.0.wire, &said).await
                    };
                    match joined {
                        Ok(_) => {
                            self.0.again.notify_one();
                            context.stop.cancelled().await;
                            return Ok(());
                        }
                        Err(error) => {
                            context.degraded(board::tasks::chain(&error), "mend join.toml; it is tried again");
                        }
                    }
                    tries += 1;
                }
                Err(error) => context.degraded(board::tasks::chain(&error), "mend join.toml"),
            }
            let wait = board::tasks::backoff(tries + 1, Duration::from_secs(2), Duration::from_secs(60));
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = context.stop.cancelled() => return Ok(()),
            }
        }
    }

    fn words(&self) -> String {
        let standing = self.standing();
        match standing.server {
            Some(server) => format!("{} in the cluster at {server}", standing.name),
            None => "in no cluster: `edge-agent join` makes it a node of one".to_owned(),
        }
    }
}

/// Once the node is registered, `join.toml` has served: its secrets are blanked.
async fn blank_join_toml(
    identity: PathBuf,
    node: NodeObject,
    context: Context,
) -> Result<(), std::convert::Infallible> {
    let mut uid = node.uid_changes();
    let mut tries = 0;
    let work = async {
        if uid.wait_for(Option::is_some).await.is_err() {
            return;
        }
        loop {
            let identity = identity.clone();
            let done = tokio::task::spawn_blocking(move || join::toml::done(&identity)).await;
            match done {
                Ok(Ok(())) => return context.healthy("the board has joined"),
                Ok(Err(error)) => context.degraded(
                    format!("the token is still in join.toml: {}", board::tasks::chain(&error)),
                    "delete that file, or make its file system writable",
                ),
                Err(_) => return,
            }
            tries += 1;
            tokio::time::sleep(board::tasks::backoff(tries, Duration::from_secs(10), Duration::from_secs(3600))).await;
        }
    };
    tokio::select! {
        () = work => context.stop.cancelled().await,
        () = context.stop.cancelled() => {}
    }
    Ok(())
}
