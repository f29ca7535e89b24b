//! Signals, waiting, pausing, renaming, limits, removal.

use std::{sync::Arc, time::Duration};

use super::{
    ContainerError, ContainerId, Containers, Exit, ListFilter, Pruned, RemoveOptions, Resources, Status, TtySize,
    WaitFor, devices, id, oci,
    record::{Entry, Seen, lock},
    signal,
};
use crate::{
    event::Action,
    shim::{Attach, Session, ShimClient},
};

/// Grace where nothing is asked for, seconds.
const GRACE_S: u32 = 10;
/// How long SIGKILL may take.
const DEATH: Duration = Duration::from_secs(30);

/// The stdio of a container, now or when it starts.
pub enum Attaching {
    /// It runs.
    Now(Box<Session>),
    /// It will be there from the first byte when the container starts.
    Later(ContainerId, tokio::sync::oneshot::Receiver<Session>),
}

impl Attaching {
    /// The session; waits for the start. Fails where the start fails, or the container is removed.
    pub async fn session(self) -> Result<Session, ContainerError> {
        match self {
            Self::Now(session) => Ok(*session),
            Self::Later(id, later) => {
                let need = "it was to be started, and could not be";
                later.await.map_err(|_| ContainerError::State { id, status: Status::Created, need })
            }
        }
    }
}

impl Containers {
    /// Asks the container to end and, after `grace` (the container's own, or 10 s, where absent), kills it. Returns its
    /// end; one that does not run is left alone.
    ///
    /// * Cancelled: the signal is sent, nobody is killed.
    pub async fn stop(
        &self,
        id: &ContainerId,
        signal_name: Option<&str>,
        grace: Option<Duration>,
    ) -> Result<Option<Exit>, ContainerError> {
        let entry = self.entry(id)?;
        let mut seen = entry.seen.subscribe();
        self.stay_down(&entry);
        if !entry.status().is_alive() {
            return Ok(seen.borrow_and_update().last.clone());
        }
        let timeout = entry.with(|record| record.spec.stop_timeout_s.unwrap_or(GRACE_S));
        let number = match signal_name {
            Some(name) => signal::parse(name)?,
            None => stop_signal(&entry)?,
        };
        let grace = grace.unwrap_or(Duration::from_secs(timeout.into()));
        self.tell(&entry, Action::Stopping);
        if !grace.is_zero() {
            self.send(&entry, number, false).await?;
            if let Some(exit) = ended(&mut seen, grace).await {
                return Ok(exit);
            }
        }
        self.put_down(&entry, &mut seen).await
    }

    /// SIGKILL, and the wait for its effect.
    async fn put_down(
        &self,
        entry: &Arc<Entry>,
        seen: &mut tokio::sync::watch::Receiver<Seen>,
    ) -> Result<Option<Exit>, ContainerError> {
        match self.send(entry, signal::KILL, true).await {
            Ok(()) | Err(ContainerError::Ended(_)) => {}
            Err(error) => return Err(error),
        }
        ended(seen, DEATH).await.ok_or_else(|| ContainerError::Immortal(entry.id.clone()))
    }

    /// Sends a signal to the first process.
    pub async fn kill(&self, id: &ContainerId, signal_name: &str) -> Result<(), ContainerError> {
        let number = signal::parse(signal_name)?;
        let entry = self.alive(id, "only a running container can be sent a signal")?;
        if number == signal::KILL || stop_signal(&entry).is_ok_and(|stop| stop == number) {
            self.stay_down(&entry);
        }
        self.send(&entry, number, false).await?;
        self.tell(&entry, Action::Killed { signal: number });
        Ok(())
    }

    /// A frozen container hears no signal: it is thawed for one that may end it.
    async fn send(&self, entry: &Arc<Entry>, number: i32, all: bool) -> Result<(), ContainerError> {
        let shim = self.shim(entry);
        let told = |error| ContainerError::shim(&entry.id, error);
        let paused = entry.status() == Status::Paused;
        match shim.signal(None, number, all).await.map_err(told) {
            Ok(_) | Err(ContainerError::Ended(_)) => {}
            Err(error) => return Err(error),
        }
        if paused && matches!(number, signal::KILL | signal::TERM) {
            match shim.resume().await.map_err(told) {
                Ok(_) => self.stands(entry, Status::Running),
                // On version 2 SIGKILL ends what is frozen: then there is nothing to thaw.
                Err(error) if error.code() == "conflict" => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Freezes all its processes.
    pub async fn pause(&self, id: &ContainerId) -> Result<(), ContainerError> {
        let entry = self.in_state(id, Status::Running, "only a running container can be paused")?;
        self.shim(&entry).pause().await.map_err(|error| ContainerError::shim(id, error))?;
        self.stands(&entry, Status::Paused);
        Ok(())
    }

    /// Thaws them.
    pub async fn unpause(&self, id: &ContainerId) -> Result<(), ContainerError> {
        let entry = self.in_state(id, Status::Paused, "only a paused container can be unpaused")?;
        self.shim(&entry).resume().await.map_err(|error| ContainerError::shim(id, error))?;
        self.stands(&entry, Status::Running);
        Ok(())
    }

    /// Waits, as long as it takes. Cancel-safe. `Removed` answers with the last end, or code 0 where there was none.
    pub async fn wait(&self, id: &ContainerId, until: WaitFor) -> Result<Exit, ContainerError> {
        let entry = self.entry(id)?;
        let mut seen = entry.seen.subscribe();
        let ends = seen.borrow_and_update().ends;
        drop(entry);
        let done = seen.wait_for(|seen| {
            seen.removed
                || match until {
                    WaitFor::NotRunning => !seen.status.is_alive(),
                    WaitFor::NextExit => seen.ends > ends,
                    WaitFor::Removed => false,
                }
        });
        // The entry is dropped with the removal, which is told before.
        let last = done.await.ok().and_then(|seen| seen.last.clone());
        Ok(last.unwrap_or(Exit { code: 0, oom_killed: false, finished_ns: 0, error: None }))
    }

    /// The container's stdio. One that does not run yet can be attached to: see [`Attaching::Later`].
    pub async fn attach(&self, id: &ContainerId, attach: Attach) -> Result<Attaching, ContainerError> {
        let entry = self.entry(id)?;
        // A start that is under way has taken the list or will: the gate tells which.
        let gate = entry.gate.lock().await;
        let attaching = if entry.status().is_alive() {
            drop(gate);
            let session = self.shim(&entry).attach(attach).await.map_err(|error| ContainerError::shim(id, error))?;
            Attaching::Now(Box::new(session))
        } else {
            let (answer, later) = tokio::sync::oneshot::channel();
            lock(&entry.waiting).retain(|waiting| !waiting.answer.is_closed());
            lock(&entry.waiting).push(super::record::Waiting { attach, answer });
            Attaching::Later(id.clone(), later)
        };
        self.tell(&entry, Action::Attached);
        Ok(attaching)
    }

    /// Size of its terminal.
    pub async fn resize(&self, id: &ContainerId, size: TtySize) -> Result<(), ContainerError> {
        let entry = self.alive(id, "only a running container's terminal can be resized")?;
        if !entry.with(|record| record.spec.tty) {
            return Err(ContainerError::NoTerminal(id.clone()));
        }
        self.shim(&entry)
            .resize(None, size.rows, size.columns)
            .await
            .map_err(|error| ContainerError::shim(id, error))?;
        self.tell(&entry, Action::Resized);
        Ok(())
    }

    /// Gives it another name.
    pub async fn rename(&self, id: &ContainerId, name: &str) -> Result<(), ContainerError> {
        if !id::is_name(name) {
            return Err(ContainerError::Name(name.to_owned()));
        }
        let entry = self.entry(id)?;
        let taken = |holder| ContainerError::NameTaken { name: name.to_owned(), holder };
        let from = lock(&self.0.book).rename(&entry, name).map_err(taken)?;
        self.write_all(&entry).await?;
        self.tell(&entry, Action::Renamed { from });
        Ok(())
    }

    /// Changes limits, also while it runs; what `limits` leaves out stays as it is.
    pub async fn update(&self, id: &ContainerId, limits: Resources) -> Result<(), ContainerError> {
        let entry = self.entry(id)?;
        let merged = entry.with(|record| merge(&record.spec.resources, &limits));
        // Device nodes are in memory: looking at them does not block.
        let numbers = devices::blkio(&limits).map_err(|path| oci::no_block_device(&path))?;
        oci::resources(&merged, true, &[])?;
        if entry.status().is_alive() {
            let swap = self.0.parts.cgroups.limits_swap();
            // Memory and swap bound each other, so both are told whenever one changes.
            let told = Resources { memory: merged.memory, memory_swap: merged.memory_swap, ..limits.clone() };
            let mut value = oci::resources(&told, swap, &numbers)?;
            if limits.memory.is_none() && limits.memory_swap.is_none() && limits.memory_reservation.is_none() {
                value.as_object_mut().map(|value| value.remove("memory"));
            }
            self.shim(&entry).update(value).await.map_err(|error| ContainerError::shim(id, error))?;
        }
        entry.change(|record| record.spec.resources = merged);
        self.write_all(&entry).await?;
        self.tell(&entry, Action::Updated);
        Ok(())
    }

    /// Removes a container. One that runs is refused, or with `force` killed first.
    ///
    /// * Cancelled: carried to its end all the same.
    pub async fn remove(&self, id: &ContainerId, options: RemoveOptions) -> Result<(), ContainerError> {
        let entry = self.entry(id)?;
        let this = self.clone();
        let gone = || ContainerError::Ended(id.clone());
        self.whole(async move { this.remove_whole(entry, options).await }).await.ok_or_else(gone)?
    }

    async fn remove_whole(&self, entry: Arc<Entry>, options: RemoveOptions) -> Result<(), ContainerError> {
        let mut tries = 0;
        loop {
            let mut seen = entry.seen.subscribe();
            if entry.status().is_alive() {
                if !options.force {
                    let need = "stop it first, or remove it by force";
                    return Err(ContainerError::State { id: entry.id.clone(), status: entry.status(), need });
                }
                self.stay_down(&entry);
                // The one that follows it takes it down, which needs the gate.
                self.put_down(&entry, &mut seen).await?;
            }
            let gate = entry.gate.lock().await;
            // Somebody may have started it again before the gate was ours.
            if entry.status().is_alive() && tries < 3 {
                tries += 1;
                continue;
            }
            let removed = entry.seen.borrow().going;
            if !removed {
                self.discard(&entry, options.volumes).await;
            }
            drop(gate);
            return Ok(());
        }
    }

    /// Takes a container that has ended out of the world. The gate is held.
    pub(super) async fn discard(&self, entry: &Arc<Entry>, volumes: bool) {
        entry.change(|record| record.state.status = Status::Removing);
        lock(&entry.waiting).clear();
        let record = entry.record();
        self.forget(entry).await;
        if volumes {
            for mount in record.mounts.iter().filter(|mount| mount.anonymous) {
                let Some(name) = &mount.name else { continue };
                if let Err(error) = self.0.parts.roots.remove_volume(&record.owner, name).await {
                    tracing::warn!(%error, volume = %name, "the volume of a removed container stays");
                }
            }
        }
        self.tell(entry, Action::Removed);
    }

    /// Removes all containers without processes that the filter wants.
    pub async fn prune(&self, filter: &ListFilter) -> Result<Pruned, ContainerError> {
        let mut pruned = Pruned::default();
        for one in self.list(filter).into_iter().filter(|one| !one.state.status.is_alive()) {
            let bytes = self.0.parts.roots.usage(one.id.as_str()).await.unwrap_or(0);
            match self.remove(&one.id, RemoveOptions { force: false, volumes: true }).await {
                Ok(()) => {
                    pruned.removed.push(one.id);
                    pruned.freed_bytes += bytes;
                }
                // Started or removed meanwhile by somebody else.
                Err(ContainerError::State { .. } | ContainerError::Resolve(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(pruned)
    }

    pub(super) fn shim(&self, entry: &Entry) -> ShimClient {
        ShimClient::at(&self.places(&entry.id).run)
    }

    /// The container, which must have processes.
    pub(super) fn alive(&self, id: &ContainerId, need: &'static str) -> Result<Arc<Entry>, ContainerError> {
        let entry = self.entry(id)?;
        match entry.status() {
            status if status.is_alive() => Ok(entry),
            status => Err(ContainerError::State { id: id.clone(), status, need }),
        }
    }

    pub(super) fn in_state(
        &self,
        id: &ContainerId,
        want: Status,
        need: &'static str,
    ) -> Result<Arc<Entry>, ContainerError> {
        let entry = self.entry(id)?;
        match entry.status() {
            status if status == want => Ok(entry),
            status => Err(ContainerError::State { id: id.clone(), status, need }),
        }
    }
}

/// The signal that asks it to end.
fn stop_signal(entry: &Entry) -> Result<i32, ContainerError> {
    let own =
        entry.with(|record| record.spec.stop_signal.clone().or_else(|| record.facts.defaults.stop_signal.clone()));
    Ok(own.map_or(Ok(signal::TERM), |name| signal::parse(&name))?)
}

/// Waits for the end of this life; `None` where the time is up.
async fn ended(seen: &mut tokio::sync::watch::Receiver<Seen>, within: Duration) -> Option<Option<Exit>> {
    let over = seen.wait_for(|seen| !seen.status.is_alive() || seen.removed);
    let seen = tokio::time::timeout(within, over).await.ok()?;
    Some(seen.ok().and_then(|seen| seen.last.clone()))
}

/// The limits of `old` with those that `new` names.
fn merge(old: &Resources, new: &Resources) -> Resources {
    let new = new.clone();
    let old = old.clone();
    Resources {
        memory: new.memory.or(old.memory),
        memory_swap: new.memory_swap.or(old.memory_swap),
        memory_reservation: new.memory_reservation.or(old.memory_reservation),
        cpu_milli: new.cpu_milli.or(old.cpu_milli),
        cpu_period_us: new.cpu_period_us.or(old.cpu_period_us),
        cpu_shares: new.cpu_shares.or(old.cpu_shares),
        cpuset_cpus: new.cpuset_cpus.or(old.cpuset_cpus),
        cpuset_mems: new.cpuset_mems.or(old.cpuset_mems),
        pids: new.pids.or(old.pids),
        blkio_weight: new.blkio_weight.or(old.blkio_weight),
        blkio: if new.blkio.is_empty() { old.blkio } else { new.blkio },
        hugepages: old.hugepages.into_iter().chain(new.hugepages).collect(),
        oom_score_adj: new.oom_score_adj.or(old.oom_score_adj),
        unified: old.unified.into_iter().chain(new.unified).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_merged() {
        let old = Resources {
            memory: Some(1),
            pids: Some(5),
            unified: [("a.b".into(), "1".into())].into(),
            ..Resources::default()
        };
        let new = Resources { memory: Some(2), unified: [("c.d".into(), "2".into())].into(), ..Resources::default() };
        let merged = merge(&old, &new);
        assert_eq!((merged.memory, merged.pids, merged.unified.len()), (Some(2), Some(5), 2));
        assert_eq!(merge(&old, &Resources::default()), old);
    }
}
