//! The engine opened: by the agent, or by one command for itself where no agent runs.
//!
//! Always true: one process at a time has the store and so the engine. A command that finds the store taken waits for the
//! agent that may be starting, and then says who has it.

use std::time::Duration;

use anyhow::Context;
use axum::Router;
use container_engine::engine::Engine;
use store::{
    lock::{Lock, LockError},
    state::State,
};

use super::Api;
use crate::{config::Config, control};

/// How long a command waits for the store.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(100);

/// What a command found where no agent answered.
pub enum OneShot {
    /// An agent has come up meanwhile.
    Agent(control::Engine),
    /// The engine is this command's own.
    Here(Box<Open>),
}

/// An engine of a command's own.
pub struct Open {
    engine: Engine,
    api: Api,
    state: State,
    _lock: Lock,
}

impl OneShot {
    /// Takes the store, or finds the agent that has taken it.
    pub async fn open(config: &Config) -> anyhow::Result<Self> {
        if !config.engine.enabled {
            anyhow::bail!("there is no engine: engine.enabled is false in the configuration");
        }
        let data = config.data_dir.clone();
        board::durable::create_dir_all(&data, 0o711).with_context(|| {
            format!("cannot create the data directory {}: choose another with --data-dir", data.display())
        })?;
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let lock = loop {
            let dir = data.clone();
            match tokio::task::spawn_blocking(move || Lock::take(&dir, Duration::ZERO)).await? {
                Ok(lock) => break lock,
                Err(LockError::Held { path, holder }) if tokio::time::Instant::now() > deadline => {
                    anyhow::bail!(
                        "no agent answers, and {} is in use by {holder}: wait for it to end, or start the agent with \
                         `edge-agent run` so that commands can work at the same time",
                        path.display()
                    );
                }
                Err(LockError::Held { .. }) => {
                    if let Ok(engine) = control::Engine::connect(config.socket()).await {
                        return Ok(Self::Agent(engine));
                    }
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => return Err(error.into()),
            }
        };
        let dir = data.join("state");
        let (state, _) = tokio::task::spawn_blocking(move || State::open(&dir)).await??;
        let engine = Engine::open(config.engine.options(&data, &config.run_dir), state.clone()).await?;
        let api = Api::new(&config.engine);
        api.set(engine.clone());
        Ok(Self::Here(Box::new(Open { engine, api, state, _lock: lock })))
    }
}

impl Open {
    /// What is served.
    pub fn routes(&self) -> Router {
        self.api.routes()
    }

    /// Containers go on; the next engine finds them.
    pub async fn close(self) {
        self.api.unset("the command is at its end").await;
        self.engine.close().await;
        let state = self.state.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || state.close()).await {
            tracing::error!(%error, "closing the store panicked");
        }
    }
}
