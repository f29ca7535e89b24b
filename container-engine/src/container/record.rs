//! A container as it is kept: its record on disk, and its entry in memory.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use store::state::Entity;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::{
    ContainerId, ContainerSpec, ExecInfo, Exit, ImageOf, Inspect, MountPoint, State, Status, Summary, oci,
    roots::{IdRange, ImageFacts},
};
use crate::{
    network::Attached,
    owner::Owner,
    shim::{Attach, Session},
};

/// What is durable of a container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub id: ContainerId,
    pub name: String,
    pub owner: Owner,
    pub spec: ContainerSpec,
    pub image: ImageOf,
    pub facts: ImageFacts,
    pub created_ns: i64,
    pub hostname: String,
    /// Sources are found at creation: volumes made, binds as asked for.
    #[serde(default)]
    pub mounts: Vec<MountPoint>,
    #[serde(default)]
    pub ids: Option<IdRange>,
    #[serde(default)]
    pub state: State,
}

impl Entity for Record {
    const TREE: &'static str = "engine.containers";
    const VERSION: u16 = 1;
}

impl Record {
    /// What its first process runs.
    pub fn args(&self) -> Vec<String> {
        self.facts.defaults.args(self.spec.entrypoint.as_deref(), self.spec.command.as_deref())
    }

    /// The image's labels, and over them its own.
    pub fn labels(&self) -> BTreeMap<String, String> {
        let mut labels = self.facts.defaults.labels.clone();
        labels.extend(self.spec.labels.clone());
        labels
    }

    /// What an event about it says besides: name, image, labels.
    pub fn attributes(&self) -> BTreeMap<String, String> {
        let mut attributes = self.labels();
        attributes.insert("name".to_owned(), self.name.clone());
        attributes.insert("image".to_owned(), self.image.name.clone());
        attributes
    }

    /// How it ended, where it did.
    pub fn exit(&self) -> Option<Exit> {
        let state = &self.state;
        Some(Exit {
            code: state.exit_code?,
            oom_killed: state.oom_killed,
            finished_ns: state.finished_ns.unwrap_or_default(),
            error: state.error.clone(),
        })
    }
}

/// What those who wait look at.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Seen {
    pub status: Status,
    /// Lives that have ended since the agent started.
    pub ends: u64,
    pub last: Option<Exit>,
    /// Its record is deleted, or about to be: nothing is written any more.
    pub going: bool,
    /// It is gone.
    pub removed: bool,
}

/// One that attached before the start.
pub(super) struct Waiting {
    pub attach: Attach,
    pub answer: oneshot::Sender<Session>,
}

/// One container in memory.
pub(crate) struct Entry {
    pub id: ContainerId,
    pub owner: Owner,
    record: Mutex<Record>,
    pub(super) seen: watch::Sender<Seen>,
    /// Held by what sets up or takes apart: start, the end of a life, removal. Never while waiting for the container.
    pub(super) gate: tokio::sync::Mutex<()>,
    /// Held while the record is written, so that an older state never overwrites a newer one.
    pub(super) writing: tokio::sync::Mutex<()>,
    pub(super) execs: Mutex<BTreeMap<String, ExecInfo>>,
    pub(super) waiting: Mutex<Vec<Waiting>>,
    network: Mutex<Option<Attached>>,
    /// The last pause before it was started again by its policy.
    pub(super) pause: Mutex<Option<Duration>>,
    /// Cancelled when the present life ends.
    life: Mutex<CancellationToken>,
}

/// A lock whose critical sections are single assignments: a panic inside leaves nothing half-done.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Entry {
    pub fn new(record: Record) -> Self {
        let seen = Seen { status: record.state.status, last: record.exit(), ..Seen::default() };
        let life = CancellationToken::new();
        if !record.state.status.is_alive() {
            life.cancel();
        }
        Self {
            id: record.id.clone(),
            owner: record.owner.clone(),
            record: Mutex::new(record),
            seen: watch::Sender::new(seen),
            gate: tokio::sync::Mutex::default(),
            writing: tokio::sync::Mutex::default(),
            execs: Mutex::default(),
            waiting: Mutex::default(),
            network: Mutex::default(),
            pause: Mutex::default(),
            life: Mutex::new(life),
        }
    }

    /// The record as it is now.
    pub fn record(&self) -> Record {
        lock(&self.record).clone()
    }

    /// Looks at the record without a copy.
    pub fn with<T>(&self, look: impl FnOnce(&Record) -> T) -> T {
        look(&lock(&self.record))
    }

    pub fn status(&self) -> Status {
        lock(&self.record).state.status
    }

    /// Changes the record and tells those who wait.
    pub fn change<T>(&self, change: impl FnOnce(&mut Record) -> T) -> T {
        let mut record = lock(&self.record);
        let before = record.state.status;
        let value = change(&mut record);
        let (status, last) = (record.state.status, record.exit());
        drop(record);
        match (before.is_alive(), status.is_alive()) {
            (true, false) => lock(&self.life).cancel(),
            (false, true) => *lock(&self.life) = CancellationToken::new(),
            _ => {}
        }
        self.seen.send_if_modified(|seen| {
            let ended = before.is_alive() && !status.is_alive();
            let news = seen.status != status || ended;
            seen.ends += u64::from(ended);
            seen.status = status;
            seen.last = last;
            news
        });
        value
    }

    /// Cancelled when the present life ends; already cancelled where there is none.
    pub fn life(&self) -> CancellationToken {
        lock(&self.life).clone()
    }

    pub fn set_network(&self, network: Option<Attached>) {
        *lock(&self.network) = network;
    }

    pub fn network(&self) -> Option<Attached> {
        lock(&self.network).clone()
    }

    pub fn summary(&self) -> Summary {
        let record = self.record();
        Summary {
            id: record.id.clone(),
            name: record.name.clone(),
            owner: record.owner.clone(),
            image: record.image.clone(),
            command: record.args(),
            created_ns: record.created_ns,
            labels: record.labels(),
            network: self.network(),
            mounts: record.mounts,
            state: record.state,
        }
    }

    pub fn inspect(&self, log_path: PathBuf, cgroup: String) -> Inspect {
        let record = self.record();
        let mut args = record.args().into_iter();
        let running = lock(&self.execs).values().filter(|exec| exec.running).map(|exec| exec.id.clone()).collect();
        Inspect {
            id: record.id.clone(),
            name: record.name.clone(),
            owner: record.owner.clone(),
            image: record.image.clone(),
            created_ns: record.created_ns,
            path: args.next().unwrap_or_default(),
            args: args.collect(),
            network: self.network(),
            userns: record.ids.map(|ids| (ids.host, ids.size)),
            log_path,
            cgroup,
            execs: running,
            mounts: record.mounts,
            state: record.state,
            spec: record.spec,
        }
    }
}

/// Whether a mount of the list lies at `target`.
pub(super) fn has_mount(mounts: &[MountPoint], target: &str) -> bool {
    mounts.iter().any(|mount| oci::same_path(&mount.target, target))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// One of no account.
    pub(crate) fn record() -> Record {
        Record {
            id: "0f".repeat(32).parse().unwrap(),
            name: "box".into(),
            owner: Owner::Local,
            spec: ContainerSpec { image: "busybox".into(), ..ContainerSpec::default() },
            image: ImageOf { name: "busybox".into(), id: "sha256:00".into() },
            facts: ImageFacts::default(),
            created_ns: 7,
            hostname: "box".into(),
            mounts: Vec::new(),
            ids: Some(IdRange { host: 524_288, size: 65_536 }),
            state: State::default(),
        }
    }
}
