//! Stopping, changing and removing containers of pods.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use container_engine::{
    container::{ContainerError, ContainerId, Inspect, ListFilter, RemoveOptions, Resources},
    owner::Owner,
};
use k8s_openapi::api::core::v1::Pod;

use super::{Runtime, blocking, lock, of_error, problem};
use crate::{
    event::Type,
    pod::{
        model::{KillReason, PodKey, Problem, label},
        probe::{field_path, hook},
        spec::{self, paths},
    },
};

/// What a container has at least between its signals.
const MIN_STOP: Duration = Duration::from_secs(2);

/// Why an instance is stopped.
#[derive(Debug, Clone, Copy)]
pub struct Why<'a> {
    /// Of the log.
    pub reason: KillReason,
    /// Of the event.
    pub message: &'a str,
    /// It is to be started again, whatever it ends with; that is on disk before it is stopped.
    pub is_due: bool,
}

impl Runtime {
    /// Stops an instance: its hook before the end, its signal, and SIGKILL once `grace_s` are over. One that does not run
    /// is left alone.
    ///
    /// * Cancelled, and called again with less grace: the hook is not run again.
    pub async fn kill(&self, pod: &Pod, id: &str, container: &str, why: Why<'_>, grace_s: i64) -> Result<(), Problem> {
        let parsed = parse(id)?;
        let path = Some(field_path(pod, container));
        let inspect = self.0.engine.containers().inspect(&parsed);
        let Some(inspect) = inspect.ok().filter(|inspect| inspect.state.status.is_alive()) else { return Ok(()) };
        if why.is_due {
            self.mark_due(pod, container, &inspect).await?;
        }
        let reason = why.reason;
        self.0.recorder.pod(pod, Type::Normal, "Killing", why.message.to_owned(), path.clone());
        tracing::info!(pod = %PodKey::of(pod), container, ?reason, grace_s, "a container is stopped");
        let grace = Duration::from_secs(u64::try_from(grace_s).unwrap_or(0));
        let begun = tokio::time::Instant::now();
        if let Some((_, declared)) = spec::find(pod, container)
            && let Some(handler) = declared.lifecycle.as_ref().and_then(|it| it.pre_stop.as_ref())
            && !grace.is_zero()
            && lock(&self.0.hooked).insert(id.to_owned())
        {
            let ip = self.address(pod);
            let name = PodKey::of(pod).to_string();
            let run = hook::run(&self.0.engine, handler, &declared, id, &name, ip.as_deref());
            match tokio::time::timeout(grace, run).await {
                Ok(Ok(done)) => {
                    if let Some(warning) = done.fallback {
                        self.0.recorder.pod(pod, Type::Warning, "LifecycleHTTPFallback", warning, path);
                    }
                }
                Ok(Err(error)) => {
                    self.0.recorder.pod(pod, Type::Warning, "FailedPreStopHook", error.to_string(), path);
                }
                Err(_) => {
                    let message = format!("PreStopHook did not end within {grace_s} s");
                    self.0.recorder.pod(pod, Type::Warning, "FailedPreStopHook", message, path);
                }
            }
        }
        let left = grace.saturating_sub(begun.elapsed()).max(MIN_STOP);
        match self.0.engine.containers().stop(&parsed, None, Some(left)).await {
            Ok(_) => Ok(()),
            Err(error) if is_gone(&error) => Ok(()),
            Err(error) => Err(of_error("KillContainerError", &error)),
        }
    }

    /// Writes down that an instance is started again after its end.
    async fn mark_due(&self, pod: &Pod, container: &str, inspect: &Inspect) -> Result<(), Problem> {
        let mark = self.due_mark(&PodKey::of(pod), container, inspect);
        let written = blocking(move || {
            if let Some(dir) = mark.parent() {
                std::fs::create_dir_all(dir)?;
            }
            board::durable::write(&mark, b"", 0o600)
        });
        written.await.map_err(|error| of_error("KillContainerError", &error))
    }

    /// Where that is written.
    pub(super) fn due_mark(&self, pod: &PodKey, container: &str, inspect: &Inspect) -> PathBuf {
        let attempt = inspect.spec.labels.get(label::ATTEMPT).and_then(|text| text.parse().ok()).unwrap_or(0);
        paths::due_mark(&(self.0.surroundings)().kubelet_dir, &pod.uid, container, attempt)
    }

    /// Changes the limits of an instance that runs.
    pub async fn resize(&self, pod: &Pod, id: &str, container: &str, mut limits: Resources) -> Result<(), Problem> {
        limits.oom_score_adj = limits.oom_score_adj.map(|score| score.max(self.0.least_oom_score));
        let parsed = parse(id)?;
        let path = Some(field_path(pod, container));
        self.0.recorder.pod(
            pod,
            Type::Normal,
            "ResizeStarted",
            format!("Container {container} resize started"),
            path.clone(),
        );
        let node = (self.0.surroundings)();
        let owner = spec::owner(pod)?;
        let failed = |error: &(dyn std::error::Error + 'static)| of_error("ResizeError", error);
        let resized = async {
            let whole = spec::pod_resources(pod, &node);
            self.0.engine.limit_owner(&owner, whole).await.map_err(|it| failed(&it))?;
            self.0.engine.containers().update(&parsed, limits).await.map_err(|it| failed(&it))
        };
        match resized.await {
            Ok(()) => {
                self.0.recorder.pod(
                    pod,
                    Type::Normal,
                    "ResizeCompleted",
                    format!("Container {container} resize completed"),
                    path,
                );
                Ok(())
            }
            Err(problem) => {
                self.0.recorder.pod(pod, Type::Warning, "ResizeError", problem.message.clone(), path);
                Err(problem)
            }
        }
    }

    /// Removes an instance that is over, with its log and what it said at its end.
    pub async fn remove(&self, id: &str) -> Result<(), Problem> {
        let parsed = parse(id)?;
        let inspect = self.0.engine.containers().inspect(&parsed).ok();
        let options = RemoveOptions { force: true, volumes: true };
        match self.0.engine.containers().remove(&parsed, options).await {
            Ok(()) => {}
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(of_error("KillContainerError", &error)),
        }
        lock(&self.0.messages).remove(id);
        lock(&self.0.hooked).remove(id);
        if let Some(inspect) = inspect {
            self.remove_files(&inspect).await;
        }
        Ok(())
    }

    /// Of an instance that is gone. What stays goes with the pod.
    async fn remove_files(&self, inspect: &Inspect) {
        let labels = &inspect.spec.labels;
        let named = |name: &str| labels.get(name).cloned().unwrap_or_default();
        let pod =
            PodKey { namespace: named(label::POD_NAMESPACE), name: named(label::POD_NAME), uid: named(label::POD_UID) };
        let (Some(name), Some(attempt)) = (
            labels.get(label::CONTAINER_NAME),
            labels.get(label::ATTEMPT).and_then(|attempt| attempt.parse::<u32>().ok()),
        ) else {
            return;
        };
        let node = (self.0.surroundings)();
        let link = paths::log_link(&node.log_dir, &pod, name, &inspect.id.to_string());
        let message = paths::termination_log(&node.kubelet_dir, &pod.uid, name, attempt);
        let due = paths::due_mark(&node.kubelet_dir, &pod.uid, name, attempt);
        let log = paths::log(&node.log_dir, &pod, name, attempt);
        let removed = blocking(move || {
            // Each for itself: another can have been quicker.
            let _ = (std::fs::remove_file(link), std::fs::remove_file(message), std::fs::remove_file(due));
            remove_log(&log)
        });
        if let Err(error) = removed.await {
            tracing::debug!(%error, container = %inspect.id, "a part of the log of a removed container stays");
        }
    }

    /// Removes everything of a pod: nothing of it runs any more. Twice is as once.
    pub async fn remove_pod(&self, pod: &PodKey) -> Result<(), Problem> {
        let owner = Owner::Pod(pod.uid.clone());
        let filter = ListFilter { owner: Some(owner.clone()), ..ListFilter::default() };
        for summary in self.0.engine.containers().list(&filter) {
            self.remove(&summary.id.to_string()).await?;
        }
        self.remove_sandbox(pod).await?;
        let volumes = self.0.volumes.teardown(&pod.uid).await;
        volumes.map_err(|error| of_error("FailedKillPod", &error))?;
        let group = self.0.engine.remove_owner(&owner).await;
        group.map_err(|error| of_error("FailedKillPod", &error))?;
        let (dir, pod) = ((self.0.surroundings)().log_dir, pod.clone());
        let removed = blocking(move || remove_pod_logs(&dir, &pod)).await;
        removed.map_err(|error| problem("FailedKillPod", format!("its logs were not removed: {error}")))
    }

    /// Where hooks and probes go that name no host.
    pub(super) fn address(&self, pod: &Pod) -> Option<String> {
        let sandbox = self.sandbox(&PodKey::of(pod))?;
        let address = if sandbox.host_network {
            (self.0.surroundings)().host_addresses.first().copied()
        } else {
            sandbox.addresses.first().copied()
        };
        address.map(|it| it.to_string())
    }
}

/// The log of one life of a container, what was rotated of it included: `N.log`, `N.log.STAMP`, `N.log.STAMP.gz`.
fn remove_log(log: &Path) -> io::Result<()> {
    let (Some(dir), Some(name)) = (log.parent(), log.file_name().and_then(|name| name.to_str())) else { return Ok(()) };
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let rotated = format!("{name}.");
    for entry in entries.flatten() {
        let found = entry.file_name();
        if found.to_str().is_some_and(|found| found == name || found.starts_with(&rotated)) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// All logs of a pod. Of one that is known only by its uid, the folder is looked for.
fn remove_pod_logs(log_dir: &Path, pod: &PodKey) -> io::Result<()> {
    let mut folders = Vec::new();
    if !pod.name.is_empty() {
        folders.push(paths::pod_logs(log_dir, pod));
    } else if !pod.uid.is_empty() {
        let end = format!("_{}", pod.uid);
        let entries = std::fs::read_dir(log_dir.join("pods")).into_iter().flatten().flatten();
        let named = entries.filter(|entry| entry.file_name().to_str().is_some_and(|name| name.ends_with(&end)));
        folders.extend(named.map(|entry| entry.path()));
    }
    for folder in folders {
        match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn parse(id: &str) -> Result<ContainerId, Problem> {
    id.parse().map_err(|_| problem("KillContainerError", format!("{id:?} is no container of the engine")))
}

fn is_gone(error: &ContainerError) -> bool {
    error.code() == "not_found"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_of_one_life_and_of_one_pod() {
        let dir = tempfile::tempdir().unwrap();
        let key = |name: &str, uid: &str| PodKey { namespace: "ns".into(), name: name.into(), uid: uid.into() };
        for (pod, attempt) in [(key("a", "1"), 1), (key("a", "1"), 11), (key("b", "2"), 1), (key("c", "3"), 1)] {
            let log = paths::log(dir.path(), &pod, "app", attempt);
            std::fs::create_dir_all(log.parent().unwrap()).unwrap();
            std::fs::write(&log, "x").unwrap();
            std::fs::write(log.with_extension("log.20261126-100000.gz"), "x").unwrap();
        }
        let count = |pod: &PodKey| {
            let log = paths::log(dir.path(), pod, "app", 1);
            std::fs::read_dir(log.parent().unwrap()).map_or(0, Iterator::count)
        };
        for _ in 0..2 {
            remove_log(&paths::log(dir.path(), &key("a", "1"), "app", 1)).unwrap();
            assert_eq!(count(&key("a", "1")), 2, "the eleventh life is another");
            remove_pod_logs(dir.path(), &key("b", "2")).unwrap();
            remove_pod_logs(dir.path(), &PodKey { uid: "3".into(), ..PodKey::default() }).unwrap();
            remove_pod_logs(dir.path(), &PodKey::default()).unwrap();
            let left: Vec<_> = std::fs::read_dir(dir.path().join("pods")).unwrap().flatten().collect();
            assert!(left.len() == 1 && left[0].file_name() == "ns_a_1", "{left:?}");
        }
    }
}
