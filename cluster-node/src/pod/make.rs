//! The parts of this room, made and handed to each other.

use std::sync::Arc;

use board::clock::Clock;
use container_engine::engine::Engine;
use store::state::State;

use super::{
    Manager, Pods,
    decide::admission::NodeFacts,
    model::Facts,
    probe::Prober,
    runtime::{Look, Runtime},
    source::Source,
    status_manager::StatusManager,
    worker::Shared,
};
use crate::{api::Api, event::Recorder, object::Objects, options::Options, volume::Volumes};

/// What the node offers pods, as it is now.
#[derive(Debug, Clone, Default)]
pub struct Ground {
    /// For statuses.
    pub facts: Facts,
    /// For admission.
    pub admission: NodeFacts,
}

/// What pods are made with.
pub struct Making {
    /// Configuration; the name is that of the Node object.
    pub options: Arc<Options>,
    /// The API server.
    pub api: Api,
    /// Records.
    pub state: State,
    /// What pods refer to.
    pub objects: Objects,
    /// Volumes.
    pub volumes: Volumes,
    /// Containers.
    pub engine: Engine,
    /// Events.
    pub recorder: Recorder,
    /// Time.
    pub clock: Clock,
    /// What pods see of the node.
    pub surroundings: Look,
    /// What the node offers.
    pub ground: Arc<dyn Fn() -> Ground + Send + Sync>,
}

/// What comes of it; each is a service that runs once.
pub struct Made {
    /// All pods.
    pub pods: Pods,
    /// Where they come from.
    pub source: Source,
    /// How their status goes back.
    pub statuses: StatusManager,
    /// Who gives them workers.
    pub manager: Manager,
    /// Probes.
    pub prober: Prober,
}

/// Makes the parts; nothing runs yet.
pub fn make(with: Making) -> Made {
    let Making { options, api, state, objects, volumes, engine, recorder, clock, surroundings, ground } = with;
    let source = Source::new(api.clone(), objects.cache().clone(), &options, clock.clone());
    let changes = source.desired();
    let statuses = StatusManager::new(&api, state, source.known());
    let prober = Prober::new(Arc::new(engine.clone()), Arc::new(recorder.clone()));
    let (pods, requests) = Pods::new(engine.clone(), volumes.clone());
    let runtime = Runtime::new(
        engine.clone(),
        volumes.clone(),
        objects.clone(),
        recorder.clone(),
        surroundings,
        &options.run_dir.join("node"),
    );
    let shared = Shared {
        runtime,
        volumes,
        objects,
        statuses: statuses.clone(),
        prober: prober.clone(),
        recorder,
        ground,
        pods: pods.clone(),
        clock,
        known: source.known(),
    };
    let manager = Manager::new(Arc::new(shared), engine, changes, requests);
    Made { pods, source, statuses, manager, prober }
}
