//! The engine as pods need it: what it has of a pod, and how to change that.
//!
//! Always true:
//! - Nothing is remembered here that the engine, by its labels, or the pod's folder can tell again.
//! - Every call can be cancelled and made again; what is half done is seen, and gone on with or cleared away.
//! - No value of a secret or of an environment is in a message or a log.
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

pub use end::Why;

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    io,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use container_engine::engine::Engine;
use k8s_openapi::api::core::v1::{Container, Pod};
use tokio::{sync::Semaphore, time::Instant};

use super::{
    model::Problem,
    spec::{Granted, SpecError, Surroundings},
};
use crate::{event::Recorder, object::Objects, volume::Volumes};

/// Images that are pulled at the same time.
const PULLS: usize = 3;

/// How the node is now.
pub type Look = Arc<dyn Fn() -> Surroundings + Send + Sync>;

/// The answer of [`Grants::grant`].
pub type Granting<'a> = Pin<Box<dyn Future<Output = Result<Granted, Problem>> + Send + 'a>>;

/// Who gives devices and the like to containers: the device manager.
pub trait Grants: Send + Sync + 'static {
    /// What a container that is about to be made gets; what it was given before, again.
    fn grant<'a>(&'a self, pod: &'a Pod, container: &'a Container) -> Granting<'a>;
}

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
    /// Below that the kernel lets this agent set no process's place in the order in which they are killed for memory.
    least_oom_score: i32,
    /// Termination messages, by instance: files are read once.
    messages: Mutex<BTreeMap<String, message::Last>>,
    /// Instances whose `preStop` hook has begun: it runs once, also where less grace is given meanwhile.
    hooked: Mutex<BTreeSet<String>>,
    /// Registries that did not answer, and until when they are not asked for what is here.
    silent: Mutex<BTreeMap<String, Instant>>,
    grants: OnceLock<Arc<dyn Grants>>,
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
            least_oom_score: least_oom_score(),
            messages: Mutex::default(),
            hooked: Mutex::default(),
            silent: Mutex::default(),
            grants: OnceLock::new(),
        }))
    }

    /// Says who gives devices, before the first container is started. Only the first call counts.
    pub fn set_grants(&self, grants: Arc<dyn Grants>) {
        let _ = self.0.grants.set(grants);
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every critical section is one look-up or change.
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs what blocks apart from the runtime; a panic there is an error here.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// Without `CAP_SYS_RESOURCE`, as in a container, it is this process's own.
fn least_oom_score() -> i32 {
    let may = rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::SYS_RESOURCE));
    if may {
        return -1000;
    }
    let own = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    own.trim().parse().unwrap_or(0)
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
