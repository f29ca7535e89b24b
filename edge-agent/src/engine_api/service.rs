//! The engine as a service of the agent: opened, served, and closed in order.
//!
//! Always true: an engine that cannot be opened holds up nothing else; it is tried again, and requests are told why.

use std::{path::PathBuf, sync::Once};

use board::{metrics::Metrics, tasks::Context};
use container_engine::{
    engine::{Engine, OpenError},
    event::{Filter, Kind},
};
use store::state::State;

use super::Api;
use crate::config::{Config, EngineConfig};

/// What the service is made of.
#[derive(Clone)]
pub struct Service {
    api: Api,
    config: EngineConfig,
    data_dir: PathBuf,
    run_dir: PathBuf,
    state: State,
    metrics: Metrics,
    /// An engine that is opened again is counted by the same figures.
    registered: std::sync::Arc<Once>,
}

impl Service {
    /// Not yet open.
    pub fn new(api: Api, config: &Config, state: State, metrics: Metrics) -> Self {
        Self {
            api,
            config: config.engine.clone(),
            data_dir: config.data_dir.clone(),
            run_dir: config.run_dir.clone(),
            state,
            metrics,
            registered: std::sync::Arc::new(Once::new()),
        }
    }

    /// Serves until stopped. Containers go on.
    pub async fn run(self, context: Context) -> Result<(), OpenError> {
        if !crate::config::is_root() {
            let problem = "containers need root, and the agent has another user";
            let remedy = "run the agent as root, or set engine.enabled = false; readings are taken either way";
            self.api.unset(format!("{problem}: {remedy}")).await;
            context.degraded(problem, remedy);
            context.stop.cancelled().await;
            return Ok(());
        }
        let options = self.config.options(&self.data_dir, &self.run_dir);
        let engine = match Engine::open(options, self.state.clone()).await {
            Ok(engine) => engine,
            Err(error) => {
                self.api.unset(format!("the engine did not start: {}", board::tasks::chain(&error))).await;
                return Err(error);
            }
        };
        self.registered.call_once(|| engine.register(&self.metrics));
        self.api.set(engine.clone());
        engine.containers().resume();
        watch(&engine, &context).await;
        self.api.unset("the agent is stopping").await;
        engine.close().await;
        Ok(())
    }
}

/// Says how the engine is, whenever something happened to a container, until the agent stops.
async fn watch(engine: &Engine, context: &Context) {
    let filter = Filter { kinds: vec![Kind::Container], ..Filter::default() };
    let mut events = engine.events().subscribe(filter, None);
    loop {
        match (engine.networks().problem(), engine.recovered().problems.first()) {
            (Some(problem), _) => context.degraded(problem, "see `edge-agent doctor`"),
            (None, Some(problem)) => context.degraded(problem.clone(), "see the log of the agent's start"),
            (None, None) => {
                let (all, alive) = engine.containers().count();
                context.healthy(format!("{alive} of {all} containers run"));
            }
        }
        tokio::select! {
            event = events.next() => if event.is_none() { return },
            () = context.stop.cancelled() => return,
        }
    }
}
