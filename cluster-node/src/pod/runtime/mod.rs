//! The engine as pods need it: what it has of a pod, and how to change that.
//!
//! Always true: nothing is remembered here that the engine, by its labels, or the pod's folder can tell again.
//!
//! The way of a container: `image` brings its image, `start` puts together what it is made of and runs it, `end` stops and
//! removes it; `sandbox` is the network and what else belongs to the pod as a whole.
//!
//! Elsewhere: what is to be done (`pod::decide`), when (`pod::worker`), what a container is (`pod::spec`).

mod end;
mod image;
mod message;
mod observe;
mod sandbox;
mod start;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use container_engine::engine::Engine;
use tokio::sync::Semaphore;

use super::{
    model::Problem,
    spec::{SpecError, Surroundings},
};
use crate::{event::Recorder, object::Objects, volume::Volumes};

/// Images that are pulled at the same time.
const PULLS: usize = 3;

/// How the node is now.
pub type Look = Arc<dyn Fn() -> Surroundings + Send + Sync>;

/// The engine for pods; cheap to clone.
#[derive(Clone)]
pub struct Runtime(Arc<Inner>);

struct Inner {
    engine: Engine,
    volumes: Volumes,
    objects: Objects,
    recorder: Recorder,
    surroundings: Look,
    pulls: Semaphore,
    /// Marks of networks that were made since the machine was started.
    marks: PathBuf,
    /// Of the present start of the machine.
    boot: String,
    /// Termination messages, by instance: files are read once.
    messages: Mutex<BTreeMap<String, String>>,
}

impl Runtime {
    /// Over the engine; `run_dir` is gone after a reboot.
    pub fn new(
        engine: Engine,
        volumes: Volumes,
        objects: Objects,
        recorder: Recorder,
        surroundings: Look,
        run_dir: &std::path::Path,
    ) -> Self {
        // Where it cannot be read, no container is taken for one of an earlier start.
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
        Self(Arc::new(Inner {
            engine,
            volumes,
            objects,
            recorder,
            surroundings,
            pulls: Semaphore::new(PULLS),
            marks: run_dir.join("pods"),
            boot,
            messages: Mutex::default(),
        }))
    }
}

fn problem(reason: &str, message: impl Into<String>) -> Problem {
    Problem { reason: reason.to_owned(), message: message.into(), retry: None }
}

fn of_error(reason: &str, error: &(dyn std::error::Error + 'static)) -> Problem {
    problem(reason, board::tasks::chain(error))
}

impl From<SpecError> for Problem {
    fn from(error: SpecError) -> Self {
        problem(error.reason, error.message)
    }
}
