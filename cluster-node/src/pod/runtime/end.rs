//! Stopping, changing and removing containers of pods.

use std::{io, sync::PoisonError, time::Duration};

use container_engine::{
    container::{ContainerError, ContainerId, ListFilter, RemoveOptions, Resources},
    owner::Owner,
};
use k8s_openapi::api::core::v1::Pod;

use super::{Runtime, of_error, problem};
use crate::{
    event::Type,
    pod::{
        model::{KillReason, PodKey, Problem},
        probe::{field_path, hook},
        spec::{self, paths},
    },
};

/// What a container has at least between its signals.
const MIN_STOP: Duration = Duration::from_secs(2);

impl Runtime {
    /// Stops an instance: its hook before the end, its signal, and SIGKILL once `grace_s` are over.
    pub async fn kill(
        &self,
        pod: &Pod,
        id: &str,
        container: &str,
        reason: KillReason,
        message: &str,
        grace_s: i64,
    ) -> Result<(), Problem> {
        let parsed = parse(id)?;
        let path = Some(field_path(pod, container));
        self.0.recorder.pod(pod, Type::Normal, "Killing", message.to_owned(), path.clone());
        tracing::info!(pod = %PodKey::of(pod), container, ?reason, grace_s, "a container is stopped");
        let grace = Duration::from_secs(u64::try_from(grace_s).unwrap_or(0));
        let begun = tokio::time::Instant::now();
        if let Some((_, declared)) = spec::find(pod, container)
            && let Some(handler) = declared.lifecycle.as_ref().and_then(|it| it.pre_stop.as_ref())
            && !grace.is_zero()
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

    /// Changes the limits of an instance that runs.
    pub async fn resize(&self, pod: &Pod, id: &str, container: &str, limits: Resources) -> Result<(), Problem> {
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

    /// Removes an instance that is over, its link for collectors of logs included; its log stays with the pod.
    pub async fn remove(&self, id: &str) -> Result<(), Problem> {
        let parsed = parse(id)?;
        self.0.messages.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        if let Some(link) = self.log_link(&parsed) {
            // Another can have been quicker.
            let _ = std::fs::remove_file(link);
        }
        let options = RemoveOptions { force: true, volumes: true };
        match self.0.engine.containers().remove(&parsed, options).await {
            Ok(()) => Ok(()),
            Err(error) if is_gone(&error) => Ok(()),
            Err(error) => Err(of_error("KillContainerError", &error)),
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
        if pod.name.is_empty() {
            return Ok(());
        }
        let logs = paths::pod_logs(&(self.0.surroundings)().log_dir, pod);
        let removed = tokio::task::spawn_blocking(move || match std::fs::remove_dir_all(&logs) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        });
        let removed = removed.await.unwrap_or_else(|error| Err(io::Error::other(error)));
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

fn parse(id: &str) -> Result<ContainerId, Problem> {
    id.parse().map_err(|_| problem("KillContainerError", format!("{id:?} is no container of the engine")))
}

fn is_gone(error: &ContainerError) -> bool {
    error.code() == "not_found"
}
