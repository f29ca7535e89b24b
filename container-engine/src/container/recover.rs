//! Finding everything again when the agent starts.
//!
//! Records say which containers there should be, run directories which have a shim, exit records how those ended whose
//! shim has gone. Where the database was lost, copies beside the containers' files say the same. What nobody knows is
//! removed.

use std::{collections::BTreeSet, path::Path, sync::Arc};

use store::state::{Batch, StateError};

use super::{
    ContainerId, Containers, State, Status,
    end::{lost, why},
    front::{clear_run_dir, remove_dir},
    kept::{self, Database},
    record::{Entry, Record, lock},
};
use crate::{
    cgroup::CgroupError,
    shim::{ExitRecord, Phase, Recovered, ShimClient, recover, recover_broken},
};

/// Containers that are looked after at once.
const AT_ONCE: usize = 16;

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct RecoveryReport {
    /// Containers that still run, with their shims.
    pub running: Vec<String>,
    /// Containers that ended while nobody looked.
    pub ended: Vec<String>,
    /// Containers whose removal was under way, now removed.
    pub removed: Vec<String>,
    /// Containers that were known only from the copies beside their files: the database was lost.
    pub adopted: Vec<String>,
    /// Groups and folders that belonged to nobody.
    pub cleared: Vec<String>,
    /// What could not be done.
    pub problems: Vec<String>,
}

/// What to do about a container, from what its record and its shim say.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fate {
    /// Nothing: it does not run and nothing of it is left.
    Rest,
    /// Follow its shim.
    Follow,
    /// Note this end and take the remains away.
    End(Box<ExitRecord>),
    /// Take the remains of a start away that never came to be.
    Clear,
    /// Go on removing it.
    Discard,
}

/// What its shim says.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Found {
    /// It answers: it runs, or stands still.
    Alive,
    /// It answers: set up, and not started.
    Idle,
    /// It has ended so.
    Ended(Box<ExitRecord>),
    /// There is none, and no trace of one.
    Nothing,
}

/// Decides; does nothing.
fn fate(state: &State, found: Found, run_dir: bool) -> Fate {
    let later = |at: u64, than: Option<i64>| than.is_none_or(|than| i64::try_from(at).is_ok_and(|at| at > than));
    match (state.status, found) {
        (Status::Removing, _) => Fate::Discard,
        (_, Found::Alive) => Fate::Follow,
        // An end before the start is that of a former life, which a power cut brought back.
        (Status::Running | Status::Paused, Found::Ended(exit)) if later(exit.finished_at_ns, state.started_ns) => {
            Fate::End(exit)
        }
        // The board restarted: the run directory went with its memory.
        (Status::Running | Status::Paused, _) => Fate::End(Box::new(lost())),
        // It was started, which was not yet in its record when the agent ended.
        (Status::Created | Status::Exited, Found::Ended(exit)) => {
            if exit.started_at_ns > 0 && later(exit.finished_at_ns, state.finished_ns) {
                Fate::End(exit)
            } else if run_dir {
                Fate::Clear
            } else {
                Fate::Rest
            }
        }
        (Status::Created | Status::Exited, Found::Idle) => Fate::Clear,
        (Status::Created | Status::Exited, Found::Nothing) => {
            if run_dir {
                Fate::Clear
            } else {
                Fate::Rest
            }
        }
    }
}

impl Containers {
    /// Reads the records and brings them and the board together. Called once, before anything else.
    pub(crate) async fn recover(&self) -> RecoveryReport {
        let mut report = RecoveryReport::default();
        let mut damaged = BTreeSet::new();
        for item in self.0.parts.state.scan::<Record>("") {
            match item {
                Ok((_, mut record)) => {
                    record.state.restarting = false; // By an agent that has ended: see `resume`.
                    lock(&self.0.book).restore(record);
                }
                Err(error) => {
                    if let StateError::Value { key, .. } = &error {
                        damaged.insert(key.clone());
                    }
                    report.problems.push(format!("a container's record cannot be read: {error}"));
                }
            }
        }
        self.adopt(&damaged, &mut report).await;
        let mut entries = lock(&self.0.book).all().into_iter();
        let mut running = tokio::task::JoinSet::new();
        loop {
            while running.len() < AT_ONCE
                && let Some(entry) = entries.next()
            {
                let this = self.clone();
                running.spawn(async move { (entry.id.to_string(), this.look_after(entry).await) });
            }
            match running.join_next().await {
                Some(Ok((id, fate))) => match fate {
                    Fate::Follow => report.running.push(id),
                    Fate::End(_) => report.ended.push(id),
                    Fate::Discard => report.removed.push(id),
                    Fate::Rest | Fate::Clear => {}
                },
                Some(Err(error)) => report.problems.push(error.to_string()),
                None => break,
            }
        }
        self.clear(&mut report).await;
        report
    }

    /// Takes up containers that have files and no record, because the database that had it was lost. What their shims say
    /// is asked afterwards, as of all others.
    async fn adopt(&self, damaged: &BTreeSet<String>, report: &mut RecoveryReport) {
        // Without a number every copy counts: rather something that was being removed comes back than that a full disk ends
        // what runs.
        let database = self.database().await.unwrap_or_else(|error| {
            report.problems.push(board::tasks::chain(&error));
            String::new()
        });
        lock(&self.0.database).clone_from(&database);
        let (known, parts) = (lock(&self.0.book).ids(), &self.0.parts);
        let mut lost: BTreeSet<String> = stray(&parts.data_dir.join("containers"), &known).into_iter().collect();
        lost.extend(stray(&parts.run_dir.join("containers"), &known));
        for id in lost {
            let Ok(id) = id.parse::<ContainerId>() else { continue };
            let places = self.places(&id);
            let Ok(Some(copy)) = tokio::task::spawn_blocking(move || kept::read(&places)).await else { continue };
            // Beside the present database: it was being removed.
            if copy.record.id != id || (copy.database == database && !damaged.contains(id.as_str())) {
                continue;
            }
            let entry = lock(&self.0.book).restore(copy.record);
            if let Err(error) = self.write_all(&entry).await {
                report.problems.push(format!("the record of {id} cannot be written again: {error}"));
            }
            report.adopted.push(id.to_string());
        }
        if !report.adopted.is_empty() {
            tracing::warn!(containers = ?report.adopted, "records of containers were lost; they were taken from the copies beside their files");
        }
    }

    /// The number of the database, which gets one where it is new.
    async fn database(&self) -> Result<String, StateError> {
        let state = &self.0.parts.state;
        // One that cannot be read is no better than a new one: copies beside it count.
        if let Ok(Some(Database { number })) = state.get::<Database>("it") {
            return Ok(number);
        }
        let number = ContainerId::random().map_err(|_| StateError::Db("the kernel has no random bytes".to_owned()))?;
        let mut batch = Batch::default();
        batch.put("it", &Database { number: number.to_string() })?;
        state.commit(batch).await?;
        Ok(number.to_string())
    }

    async fn look_after(&self, entry: Arc<Entry>) -> Fate {
        let places = self.places(&entry.id);
        let found = self.find(&entry).await;
        let state = entry.with(|record| record.state.clone());
        let fate = fate(&state, found, places.run.exists());
        match &fate {
            Fate::Rest => {}
            Fate::Follow => self.follow_again(&entry).await,
            Fate::End(exit) => {
                if !state.status.is_alive() {
                    // Its start was not in its record yet.
                    entry.change(|record| {
                        record.state.starts = record.state.starts.saturating_add(1);
                        record.state.started_ns = i64::try_from(exit.started_at_ns).ok().filter(|at| *at > 0);
                    });
                }
                let _gate = entry.gate.lock().await;
                self.set_ended(&entry, exit);
                if why(exit.reason).is_some() && !places.run.exists() {
                    let text = "the board restarted or lost power while it ran";
                    entry.change(|record| record.state.error = Some(text.to_owned()));
                }
                self.take_down(&entry, true).await;
                if entry.with(|record| record.spec.auto_remove) {
                    self.discard(&entry, true).await;
                }
            }
            Fate::Clear => {
                let _gate = entry.gate.lock().await;
                self.take_down(&entry, true).await;
            }
            Fate::Discard => {
                let _gate = entry.gate.lock().await;
                self.take_down(&entry, true).await;
                self.discard(&entry, true).await;
            }
        }
        fate
    }

    /// What its shim, or what its shim left, says.
    async fn find(&self, entry: &Entry) -> Found {
        let places = self.places(&entry.id);
        let look = async |look: fn(&Path, &Path) -> std::io::Result<Recovered>| {
            let places = places.clone();
            tokio::task::spawn_blocking(move || look(&places.run, &places.exit())).await
        };
        let mut found = look(recover).await;
        if let Ok(Ok(Recovered::Alive(_))) = found {
            match ShimClient::at(&places.run).state().await {
                Ok(status) => {
                    return match (status.exit, status.phase) {
                        (Some(exit), _) => Found::Ended(Box::new(exit)),
                        (None, Phase::Created) => Found::Idle,
                        (None, _) => Found::Alive,
                    };
                }
                Err(error) => {
                    tracing::debug!(%error, container = %entry.id, "a shim does not answer");
                    found = look(recover_broken).await;
                }
            }
        }
        match found {
            Ok(Ok(Recovered::Alive(_))) => {
                tracing::error!(container = %entry.id, "a shim lives and does not answer; its container is ended");
                Found::Ended(Box::new(lost()))
            }
            Ok(Ok(Recovered::Exited(exit))) => Found::Ended(Box::new(exit)),
            Ok(Ok(Recovered::Lost(shim))) => {
                let ended = tokio::task::spawn_blocking(move || shim.end()).await;
                match ended {
                    Ok(Ok(exit)) => Found::Ended(Box::new(exit)),
                    Ok(Err(error)) => {
                        tracing::error!(%error, container = %entry.id, "what a killed shim left does not die");
                        Found::Ended(Box::new(lost()))
                    }
                    Err(_) => Found::Ended(Box::new(lost())),
                }
            }
            Ok(Ok(Recovered::Nothing)) | Err(_) => Found::Nothing,
            Ok(Err(error)) => {
                tracing::warn!(%error, container = %entry.id, "what a shim left cannot be read");
                Found::Nothing
            }
        }
    }

    /// Takes up a container that runs.
    async fn follow_again(&self, entry: &Arc<Entry>) {
        let places = self.places(&entry.id);
        let (status, events) = match ShimClient::at(&places.run).events().await {
            Ok(followed) => followed,
            Err(error) => {
                // It has ended just now.
                tracing::debug!(%error, container = %entry.id, "a shim went while it was found");
                entry.change(|record| record.state.status = Status::Running);
                let exit = ExitRecord::read(&places.exit()).ok().flatten().unwrap_or_else(lost);
                return self.ended(entry, exit, None).await;
            }
        };
        let paused = status.phase == Phase::Paused;
        let changed = entry.change(|record| {
            let before = record.state.clone();
            let state = &mut record.state;
            state.status = if paused { Status::Paused } else { Status::Running };
            state.pid = u32::try_from(status.pid).ok();
            let started = i64::try_from(status.started_at_ns).ok().filter(|at| *at > 0);
            if started.is_some() && state.started_ns != started {
                // Its start was not in its record yet.
                state.started_ns = started;
                state.starts = state.starts.saturating_add(1);
                (state.exit_code, state.finished_ns, state.error) = (None, None, None);
            }
            *state != before
        });
        entry.set_network(self.0.parts.networks.attached(entry.id.as_str()));
        // Free where the ledger has it; what a lost database took with it is granted again.
        if let Err(error) = self.admit(entry).await {
            tracing::warn!(%error, container = %entry.id, "a container that runs is more than the board has");
        }
        if changed {
            self.write_soon(entry);
        }
        let (this, followed) = (self.clone(), entry.clone());
        self.task(async move {
            match status.exit {
                Some(exit) => this.ended(&followed, exit, None).await,
                None => this.follow(followed, events).await,
            }
        });
    }

    /// Removes what belongs to no container: networks, root file systems, run directories, groups.
    async fn clear(&self, report: &mut RecoveryReport) {
        let parts = &self.0.parts;
        let entries = lock(&self.0.book).all();
        let alive =
            entries.iter().filter(|entry| entry.status().is_alive()).map(|entry| entry.id.to_string()).collect();
        match parts.networks.recover(&alive).await {
            Ok(networks) => report.problems.extend(networks.problems),
            Err(error) => report.problems.push(board::tasks::chain(&error)),
        }
        // What recovery made again is what it is now.
        for entry in entries.iter().filter(|entry| entry.status().is_alive()) {
            entry.set_network(parts.networks.attached(entry.id.as_str()));
        }
        let known = lock(&self.0.book).ids();
        for id in stray(&parts.run_dir.join("containers"), &known) {
            self.clear_stray(&id, report).await;
        }
        for id in stray(&parts.runtime.root, &known) {
            self.forget_in_runtime(&id).await;
            report.cleared.push(format!("runtime state of {id}"));
        }
        let existing: Vec<String> = known.iter().cloned().collect();
        if let Err(error) = parts.roots.recover(&existing).await {
            report.problems.push(board::tasks::chain(&error));
        }
        let (this, data) = (self.clone(), parts.data_dir.join("containers"));
        let swept = tokio::task::spawn_blocking(move || {
            let mut cleared = Vec::new();
            let mut problems = Vec::new();
            for id in stray(&data, &known) {
                match remove_dir(&data.join(&id)) {
                    Ok(()) => cleared.push(format!("files of {id}")),
                    Err(error) => problems.push(format!("files of {id} stay: {error}")),
                }
            }
            for (group, result) in this.sweep_groups(&known) {
                match result {
                    Ok(()) => cleared.push(format!("control group {group}")),
                    Err(error) => problems.push(board::tasks::chain(&error)),
                }
            }
            (cleared, problems)
        });
        if let Ok((cleared, problems)) = swept.await {
            report.cleared.extend(cleared);
            report.problems.extend(problems);
        }
    }

    /// A run directory whose container has no record and no copy of it: it was being removed.
    async fn clear_stray(&self, id: &str, report: &mut RecoveryReport) {
        let run = self.0.parts.run_dir.join("containers").join(id);
        let exit = self.0.parts.data_dir.join("containers").join(id).join("exit.json");
        let shim = ShimClient::at(&run);
        if let Err(error) = shim.shutdown(true).await {
            tracing::debug!(%error, container = id, "the shim of an unknown container");
        }
        self.forget_in_runtime(id).await;
        let rootfs = run.join("rootfs");
        if let Err(error) = self.0.parts.roots.unmount(id, &rootfs).await {
            tracing::debug!(%error, container = id, "the root file system of an unknown container");
        }
        let cleared = tokio::task::spawn_blocking({
            let run = run.clone();
            move || {
                if let Ok(Recovered::Lost(lost)) = recover(&run, &exit) {
                    lost.end()?;
                }
                for inside in ["rootfs", "shm"] {
                    let _ = rustix::mount::unmount(run.join(inside), rustix::mount::UnmountFlags::DETACH);
                }
                clear_run_dir(&run)
            }
        });
        match cleared.await {
            Ok(Ok(())) => report.cleared.push(format!("unknown container {id}")),
            Ok(Err(error)) => report.problems.push(format!("unknown container {id} stays: {error}")),
            Err(error) => report.problems.push(error.to_string()),
        }
    }

    /// Groups of containers that are none of `known`. Blocking.
    fn sweep_groups(&self, known: &BTreeSet<String>) -> Vec<(String, Result<(), CgroupError>)> {
        let cgroups = &self.0.parts.cgroups;
        let parent = match self.0.parts.cgroup_parent.trim_matches('/') {
            "" => String::new(),
            parent => format!("{parent}/"),
        };
        let mut owners = vec![format!("{parent}edge.slice/local")];
        for kind in ["kubepods", "jobs"] {
            let slice = format!("{parent}edge.slice/{kind}");
            owners.extend(cgroups.children(&slice).into_iter().map(|id| format!("{slice}/{id}")));
        }
        let mut swept = Vec::new();
        for owner in owners {
            // Only what looks like a container of ours.
            let strays = cgroups.children(&owner).into_iter().filter(|id| is_id(id) && !known.contains(id));
            for id in strays {
                let group = format!("{owner}/{id}");
                let result = cgroups.remove(&group);
                swept.push((group, result));
            }
        }
        swept
    }
}

fn is_id(name: &str) -> bool {
    name.parse::<super::ContainerId>().is_ok()
}

/// Folders named like containers that are none of `known`.
fn stray(dir: &Path, known: &BTreeSet<String>) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| is_id(name) && !known.contains(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(started: u64, finished: u64) -> ExitRecord {
        ExitRecord { started_at_ns: started, finished_at_ns: finished, ..lost() }
    }

    #[test]
    fn fates() {
        #[track_caller]
        fn check(status: Status, known: Option<i64>, found: Found, run_dir: bool, want: Fate) {
            let started_ns = (status != Status::Created).then_some(2);
            let state = State { status, started_ns, finished_ns: known, ..State::default() };
            assert_eq!(fate(&state, found.clone(), run_dir), want, "{status:?} {found:?} {run_dir}");
        }
        let ended = || Found::Ended(Box::new(exit(5, 10)));
        let end = || Fate::End(Box::new(exit(5, 10)));
        check(Status::Running, None, Found::Alive, true, Fate::Follow);
        check(Status::Paused, None, Found::Alive, true, Fate::Follow);
        check(Status::Running, None, ended(), true, end());
        // The start was not recorded before the agent was killed.
        check(Status::Created, None, Found::Alive, true, Fate::Follow);
        check(Status::Created, None, ended(), true, end());
        check(Status::Exited, Some(3), ended(), true, end());
        // An old end is not told twice.
        check(Status::Exited, Some(10), ended(), true, Fate::Clear);
        check(Status::Exited, Some(10), ended(), false, Fate::Rest);
        // Set up, not started: whoever wanted it is gone.
        check(Status::Created, None, Found::Idle, true, Fate::Clear);
        check(Status::Created, None, Found::Nothing, true, Fate::Clear);
        check(Status::Created, None, Found::Nothing, false, Fate::Rest);
        check(Status::Exited, Some(1), Found::Nothing, false, Fate::Rest);
        check(Status::Created, None, Found::Ended(Box::new(exit(0, 10))), true, Fate::Clear);
        // After a power cut nothing is left.
        let running = State { status: Status::Running, started_ns: Some(20), ..State::default() };
        assert!(matches!(fate(&running, Found::Nothing, false), Fate::End(exit) if exit.code == 137));
        // An exit record of the life before is not the end of this one.
        assert!(matches!(fate(&running, ended(), false), Fate::End(exit) if exit.code == 137));
        check(Status::Removing, None, Found::Alive, true, Fate::Discard);
        check(Status::Removing, None, Found::Nothing, false, Fate::Discard);
    }
}
