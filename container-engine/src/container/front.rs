//! [`Containers`]: what the rooms above call. Each file beside this one has one part of a container's life.

use std::{
    collections::BTreeSet,
    future::Future,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use store::state::{Batch, State as Store, StateError};
use tokio::{sync::oneshot, task::JoinSet};

use super::{
    ContainerId, Inspect, ListFilter, Places, ResolveError, Summary,
    book::Book,
    kept,
    record::{Entry, Record, lock},
    roots::Roots,
};
use crate::{
    cgroup::Cgroups,
    event::{Action, Events, Kind, has_label},
    ledger::Ledger,
    network::Networks,
    owner::Owner,
    runtime::{Runtime, SealedExe},
    shim::RuntimeSpec,
};

/// What containers stand on.
pub(crate) struct Parts {
    pub data_dir: PathBuf,
    pub run_dir: PathBuf,
    /// How shims call the runtime.
    pub runtime: RuntimeSpec,
    /// The same, for what no shim is left to do.
    pub own_runtime: Arc<Runtime>,
    /// The program that shims are started from.
    pub exe: SealedExe,
    /// Its file, for containers that mount it as their init.
    pub program: PathBuf,
    /// Above `edge.slice`; empty: the root of the hierarchies.
    pub cgroup_parent: String,
    pub state: Store,
    pub events: Events,
    pub ledger: Ledger,
    pub cgroups: Cgroups,
    pub networks: Networks,
    pub roots: Arc<dyn Roots>,
}

pub(crate) struct Inner {
    pub parts: Parts,
    pub(super) book: Mutex<Book>,
    /// Followers of shims, and operations that outlive whoever asked for them. Aborted when the engine closes: shims and
    /// containers go on, and the next start of the agent finds them.
    tasks: Mutex<JoinSet<()>>,
    /// Owners whose cgroup is there.
    pub(super) owners: Mutex<BTreeSet<String>>,
    /// Which database the records are in; empty until `recover` has looked.
    pub(super) database: Mutex<String>,
}

/// All containers; cheap to clone.
#[derive(Clone)]
pub struct Containers(pub(crate) Arc<Inner>);

impl Containers {
    pub(crate) fn new(parts: Parts) -> Self {
        let (owners, database) = (Mutex::default(), Mutex::default());
        Self(Arc::new(Inner { parts, book: Mutex::default(), tasks: Mutex::default(), owners, database }))
    }

    /// The id of the one container that `text` names: its id, its name, or the beginning of its id. With `owner` only
    /// that owner's containers are there.
    pub fn resolve(&self, owner: Option<&Owner>, text: &str) -> Result<ContainerId, ResolveError> {
        lock(&self.0.book).resolve(owner, text).map(|entry| entry.id.clone())
    }

    /// The owner of a container.
    pub fn owner(&self, id: &ContainerId) -> Result<Owner, ResolveError> {
        self.entry(id).map(|entry| entry.owner.clone())
    }

    /// Everything about one container.
    pub fn inspect(&self, id: &ContainerId) -> Result<Inspect, ResolveError> {
        let entry = self.entry(id)?;
        Ok(entry.inspect(self.log_path(&entry), self.cgroup(&entry)))
    }

    /// Containers that the filter wants, the youngest first.
    pub fn list(&self, filter: &ListFilter) -> Vec<Summary> {
        let entries = lock(&self.0.book).all();
        // Whose it is shows without a summary, which takes time where there are many.
        let owned = entries.iter().filter(|entry| filter.owner.as_ref().is_none_or(|owner| *owner == entry.owner));
        let mut list: Vec<Summary> =
            owned.map(|entry| entry.summary()).filter(|summary| wanted(filter, summary)).collect();
        list.sort_by_key(|summary| std::cmp::Reverse(summary.created_ns));
        list
    }

    /// How many containers there are, and how many of them have processes.
    pub fn count(&self) -> (usize, usize) {
        let entries = lock(&self.0.book).all();
        (entries.len(), entries.iter().filter(|entry| entry.status().is_alive()).count())
    }

    /// Digests of the images of all containers: garbage collection leaves those alone.
    pub fn images_in_use(&self) -> BTreeSet<String> {
        lock(&self.0.book).all().iter().map(|entry| entry.with(|record| record.image.id.clone())).collect()
    }

    pub(crate) fn entry(&self, id: &ContainerId) -> Result<Arc<Entry>, ResolveError> {
        lock(&self.0.book).get(id).ok_or_else(|| ResolveError::NotFound(id.to_string()))
    }

    pub(super) fn places(&self, id: &ContainerId) -> Places {
        Places::new(&self.0.parts.data_dir, &self.0.parts.run_dir, id)
    }

    pub(super) fn log_path(&self, entry: &Entry) -> PathBuf {
        entry.with(|record| record.spec.log.path.clone()).unwrap_or_else(|| self.places(&entry.id).log())
    }

    /// The container's group below the root of the hierarchy.
    pub(super) fn cgroup(&self, entry: &Entry) -> String {
        format!("{}/{}", self.owner_cgroup(&entry.owner), entry.id)
    }

    pub(crate) fn owner_cgroup(&self, owner: &Owner) -> String {
        match self.0.parts.cgroup_parent.trim_matches('/') {
            "" => owner.cgroup(),
            parent => format!("{parent}/{}", owner.cgroup()),
        }
    }

    /// Where shims live.
    pub(super) fn shim_cgroup(&self) -> String {
        match self.0.parts.cgroup_parent.trim_matches('/') {
            "" => "edge.slice/shims".to_owned(),
            parent => format!("{parent}/edge.slice/shims"),
        }
    }

    pub(super) fn tell(&self, entry: &Entry, action: Action) {
        let attributes = entry.with(Record::attributes);
        self.0.parts.events.publish(&entry.owner, Kind::Container, entry.id.as_str(), action, attributes);
    }

    /// Writes the record as it is by the time it is written; a container that was removed meanwhile is left alone. For
    /// one that removes itself nobody waits for the disk: a power cut takes it away, and until then there is its copy.
    pub(super) async fn write(&self, entry: &Entry) -> Result<(), StateError> {
        let _turn = entry.writing.lock().await;
        if entry.seen.borrow().going {
            return Ok(());
        }
        let record = entry.record();
        let mut batch = Batch::default();
        batch.put(entry.id.as_str(), &record)?;
        let state = &self.0.parts.state;
        if record.spec.auto_remove { state.commit_relaxed(batch).await } else { state.commit(batch).await }
    }

    /// Writes the record and its copy: for changes of what was asked for.
    pub(super) async fn write_all(&self, entry: &Entry) -> Result<(), StateError> {
        self.write(entry).await?;
        if !entry.seen.borrow().going {
            self.keep_copy(entry, &self.places(&entry.id).data);
        }
        Ok(())
    }

    /// Keeps a copy of the record in one of the container's folders. One that cannot be written is missed only when the
    /// database is lost as well.
    pub(super) fn keep_copy(&self, entry: &Entry, folder: &Path) {
        let database = lock(&self.0.database).clone();
        if let Err(error) = kept::write(folder, &database, &entry.record()) {
            tracing::warn!(%error, container = %entry.id, "a copy of a container's record cannot be written");
        }
    }

    /// The same, later: for what the shim or its exit record could tell again.
    pub(super) fn write_soon(&self, entry: &Arc<Entry>) {
        let (this, entry) = (self.clone(), entry.clone());
        self.task(async move {
            if let Err(error) = this.write(&entry).await {
                tracing::warn!(%error, container = %entry.id, "the state of a container could not be recorded");
            }
        });
    }

    /// Starts a task that the engine owns.
    pub(super) fn task(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = lock(&self.0.tasks);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(work);
    }

    /// Carries `work` to its end, also when whoever asked for it has gone. `None`: the engine closed, or it panicked.
    pub(super) async fn whole<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Option<T> {
        let (done, answer) = oneshot::channel();
        self.task(async move {
            // Whoever asked may be gone.
            let _ = done.send(work.await);
        });
        answer.await.ok()
    }

    /// Ends all tasks; containers and their shims go on.
    pub(crate) async fn close(&self) {
        let mut tasks = std::mem::take(&mut *lock(&self.0.tasks));
        tasks.shutdown().await;
    }
}

/// Removes a container's run directory. A root file system that is still mounted in it stays untouched, with an error.
pub(super) fn clear_run_dir(run: &Path) -> std::io::Result<()> {
    let entries = match std::fs::read_dir(run) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        if !entry.file_type()?.is_dir() {
            std::fs::remove_file(&path)?;
        } else if matches!(entry.file_name().to_str(), Some("rootfs" | "shm")) {
            // Never what lies below: behind a mount those are the container's own files.
            std::fs::remove_dir(&path)?;
        } else {
            remove_dir(&path)?;
        }
    }
    remove_empty(run)
}

fn remove_empty(dir: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Removes a folder and what is in it. What is not there is no error.
pub(super) fn remove_dir(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn wanted(filter: &ListFilter, one: &Summary) -> bool {
    let labels = |want: &String| has_label(&one.labels, want);
    let image =
        |want: &String| one.image.name == *want || (!want.is_empty() && hex(&one.image.id).starts_with(hex(want)));
    let network = |want: &String| {
        one.network.iter().flat_map(|network| &network.interfaces).any(|interface| interface.network == *want)
    };
    let volume =
        |want: &String| one.mounts.iter().any(|mount| mount.name.as_ref() == Some(want) || mount.target == *want);
    let any = |empty: bool, hit: bool| empty || hit;
    filter.owner.as_ref().is_none_or(|owner| *owner == one.owner)
        && any(
            filter.ids.is_empty(),
            filter.ids.iter().any(|id| !id.is_empty() && one.id.as_str().starts_with(id.as_str())),
        )
        && any(filter.names.is_empty(), filter.names.iter().any(|name| one.name.contains(name.as_str())))
        && filter.labels.iter().all(labels)
        && any(filter.statuses.is_empty(), filter.statuses.contains(&one.state.status))
        && any(filter.images.is_empty(), filter.images.iter().any(image))
        && any(filter.networks.is_empty(), filter.networks.iter().any(network))
        && any(filter.volumes.is_empty(), filter.volumes.iter().any(volume))
        && any(filter.exit_codes.is_empty(), one.state.exit_code.is_some_and(|code| filter.exit_codes.contains(&code)))
}

fn hex(digest: &str) -> &str {
    digest.strip_prefix("sha256:").unwrap_or(digest)
}
