//! Making and starting a container of a pod.

use std::{collections::BTreeMap, io, path::PathBuf, sync::Arc};

use container_engine::container::ContainerId;
use k8s_openapi::api::core::v1::{Container, Pod};

use super::{
    Runtime, Why, blocking,
    image::{Asked, Ready},
    of_error, problem,
};
use crate::{
    event::Type,
    object::ObjectError,
    pod::{
        model::{KillReason, Kind, PodKey, Problem, label},
        probe::{field_path, hook},
        spec::{self, Env, Granted, Input, Sources, Surroundings, VolumeFile, paths},
    },
    volume::{PodMounts, Source, Wanted},
};

/// Largest file that variables are read from.
const MAX_ENV_FILE: u64 = 64 << 10;

impl Runtime {
    /// Makes and starts a container, its image and its `postStart` hook included; the engine's id of it.
    ///
    /// * Errors: the reason and message of its waiting state; what was made and not started is removed by the next plan.
    /// * Cancelled: the image goes on from where it was the next time.
    pub async fn start(
        &self,
        pod: &Pod,
        mounts: &PodMounts,
        name: &str,
        kind: Kind,
        attempt: u32,
    ) -> Result<String, Problem> {
        let path = Some(field_path(pod, name));
        let failed = |problem: Problem| {
            if problem.reason != "ErrImagePull" && !problem.reason.ends_with("NeverPull") {
                self.0.recorder.pod(pod, Type::Warning, "Failed", format!("Error: {}", problem.message), path.clone());
            }
            problem
        };
        let (_, container) = spec::find(pod, name)
            .ok_or_else(|| problem("CreateContainerConfigError", format!("the pod has no container {name:?}")))?;
        for asked in Asked::volumes(pod, &container) {
            self.image(pod, &asked).await?;
        }
        let image = self.image(pod, &Asked::of(&container)).await?;
        let made = self.make_container(pod, mounts, &container, kind, attempt, &image).await;
        let id = made.map_err(failed)?;
        let told = |what: &str, message: &str| {
            self.0.recorder.pod(pod, Type::Normal, what, message.to_owned(), path.clone());
        };
        told("Created", "Container created");
        let started = self.0.engine.containers().start(&id).await;
        started.map_err(|error| failed(of_error("RunContainerError", &error)))?;
        told("Started", "Container started");
        self.link_log(pod, name, attempt, &id).await;
        self.after_start(pod, &container, &id).await?;
        Ok(id.to_string())
    }

    async fn make_container(
        &self,
        pod: &Pod,
        mounts: &PodMounts,
        container: &Container,
        kind: Kind,
        attempt: u32,
        image: &Ready,
    ) -> Result<ContainerId, Problem> {
        let node = (self.0.surroundings)();
        let env = self.environment(pod, mounts, container, &node).await?;
        let wanted = Wanted::from(container);
        let own = self.0.volumes.mounts_of(pod, mounts, wanted, &env.0).await;
        let own = own.map_err(|error| of_error("CreateContainerConfigError", &error))?;
        let key = PodKey::of(pod);
        let (dns, warnings) = spec::dns::dns(pod, &node, &self.resolvers(pod));
        for warning in warnings {
            self.0.recorder.pod(pod, Type::Warning, warning.reason, warning.message, None);
        }
        let place = self.place(pod, &node);
        let seccomp = self.seccomp(pod, container, &node).await?;
        let target = self.target(pod, &container.name).await?;
        let granted = match self.0.grants.get() {
            Some(grants) => grants.grant(pod, container).await?,
            None => Granted::default(),
        };
        let input = Input {
            pod,
            container,
            kind,
            attempt,
            env: &env,
            mounts: &own,
            groups: &mounts.groups,
            image: &image.image.config,
            image_name: &image.name,
            place: &place,
            dns: &dns,
            termination_log: termination_log(&node, &key, container, attempt).await?,
            seccomp: seccomp.as_ref(),
            granted: &granted,
            target: target.as_deref(),
            node: &node,
        };
        let mut made = spec::container(&input)?;
        made.resources.oom_score_adj = made.resources.oom_score_adj.map(|score| score.max(self.0.least_oom_score));
        made.labels.insert(label::BOOT.to_owned(), self.0.boot.clone());
        made.labels.insert(label::SANDBOX.to_owned(), self.sandbox(&key).map(|it| it.id).unwrap_or_default());
        made.labels.insert(label::IMAGE.to_owned(), image.id.clone());
        if let Some(policy) = &container.termination_message_policy {
            made.labels.insert(label::MESSAGE_POLICY.to_owned(), policy.clone());
        }
        if let Some(dir) = made.log.path.as_ref().and_then(|path| path.parent()) {
            tokio::fs::create_dir_all(dir).await.map_err(|error| of_error("CreateContainerError", &error))?;
        }
        let created = self.0.engine.containers().create(made).await;
        created.map(|created| created.id).map_err(|error| of_error("CreateContainerError", &error))
    }

    async fn environment(
        &self,
        pod: &Pod,
        mounts: &PodMounts,
        container: &Container,
        node: &Surroundings,
    ) -> Result<Env, Problem> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        let needs = spec::needs(container);
        let objects = &self.0.objects;
        let (mut config_maps, mut secrets) = (BTreeMap::new(), BTreeMap::new());
        for name in needs.config_maps.keys() {
            config_maps.insert(name.clone(), found(objects.config_map(namespace, name).await)?);
        }
        for name in needs.secrets.keys() {
            secrets.insert(name.clone(), found(objects.secret(namespace, name).await)?);
        }
        let services = objects.services(pod).await.map_err(|error| of_error("CreateContainerConfigError", &error))?;
        let addresses = match self.sandbox(&PodKey::of(pod)) {
            Some(sandbox) if !sandbox.host_network => sandbox.addresses,
            _ => node.host_addresses.clone(),
        };
        let sources = Sources {
            config_maps,
            secrets,
            files: files(mounts, needs.files).await,
            services: &services,
            addresses: &addresses,
        };
        Ok(spec::environment(pod, container, &sources, node)?)
    }

    /// The filter that the pod names, from the node's folder.
    async fn seccomp(
        &self,
        pod: &Pod,
        container: &Container,
        node: &Surroundings,
    ) -> Result<Option<serde_json::Value>, Problem> {
        let Some(profile) = spec::seccomp_profile(pod, container) else { return Ok(None) };
        let failed = |message: String| problem("CreateContainerConfigError", message);
        let path = paths::seccomp(&node.kubelet_dir, profile)
            .ok_or_else(|| failed(format!("{profile:?} is no path below the node's seccomp folder")))?;
        let read = path.clone();
        let bytes = blocking(move || board::durable::read(&read, 1 << 20)).await;
        let bytes =
            bytes.map_err(|error| failed(format!("cannot load seccomp profile {}: {error}", path.display())))?;
        let parsed = serde_json::from_slice(&bytes);
        parsed.map(Some).map_err(|error| failed(format!("seccomp profile {}: {error}", path.display())))
    }

    /// The container whose processes an ephemeral one is to see.
    async fn target(&self, pod: &Pod, name: &str) -> Result<Option<String>, Problem> {
        let ephemeral = pod.spec.iter().flat_map(|spec| spec.ephemeral_containers.iter().flatten());
        let target = ephemeral.filter(|it| it.name == name).find_map(|it| it.target_container_name.clone());
        let Some(target) = target.filter(|it| !it.is_empty()) else { return Ok(None) };
        let observed = self.observe(&PodKey::of(pod)).await;
        let running = observed.latest(&target).filter(|latest| latest.is_running());
        let missing = || problem("CreateContainerConfigError", format!("unable to find target container {target:?}"));
        running.map(|latest| Some(latest.id.clone())).ok_or_else(missing)
    }

    /// Collectors find logs in one folder.
    async fn link_log(&self, pod: &Pod, name: &str, attempt: u32, id: &ContainerId) {
        let node = (self.0.surroundings)();
        let key = PodKey::of(pod);
        let link = paths::log_link(&node.log_dir, &key, name, &id.to_string());
        let log = paths::log(&node.log_dir, &key, name, attempt);
        let linked = blocking(move || {
            std::fs::create_dir_all(link.parent().unwrap_or(&link))?;
            std::os::unix::fs::symlink(&log, &link)
        });
        if let Err(error) = linked.await
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            tracing::debug!(%error, container = %id, "a log was not linked for collectors");
        }
    }

    /// Runs the `postStart` hook; where it fails, the container is stopped.
    async fn after_start(&self, pod: &Pod, container: &Container, id: &ContainerId) -> Result<(), Problem> {
        let Some(handler) = container.lifecycle.as_ref().and_then(|it| it.post_start.as_ref()) else { return Ok(()) };
        let (name, ip) = (PodKey::of(pod).to_string(), self.address(pod));
        let path = Some(field_path(pod, &container.name));
        let id = id.to_string();
        match hook::run(&self.0.engine, handler, container, &id, &name, ip.as_deref()).await {
            Ok(done) => {
                if let Some(warning) = done.fallback {
                    self.0.recorder.pod(pod, Type::Warning, "LifecycleHTTPFallback", warning, path);
                }
                Ok(())
            }
            Err(error) => {
                let message = format!("PostStartHook failed: {error}");
                self.0.recorder.pod(pod, Type::Warning, "FailedPostStartHook", message, path);
                let grace = crate::pod::decide::grace_s(pod, None);
                let why = "FailedPostStartHook";
                let why = Why { reason: KillReason::Hook, message: why, is_due: false };
                self.kill(pod, &id, &container.name, why, grace).await?;
                Err(problem("PostStartHookError", error.to_string()))
            }
        }
    }
}

/// `None` where there is no such object; anything else must be waited out.
fn found<T>(asked: Result<Arc<T>, ObjectError>) -> Result<Option<Arc<T>>, Problem> {
    match asked {
        Ok(object) => Ok(Some(object)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(of_error("CreateContainerConfigError", &error)),
    }
}

/// Files of volumes that variables come from.
async fn files(mounts: &PodMounts, wanted: impl IntoIterator<Item = VolumeFile>) -> BTreeMap<VolumeFile, String> {
    let mut found = BTreeMap::new();
    for file in wanted {
        let Some(Source::Path { path, .. }) = mounts.volumes.get(&file.volume).map(|it| &it.source) else { continue };
        let (path, inside) = (path.clone(), file.path.clone());
        if let Ok(bytes) = blocking(move || read_inside(&path, &inside)).await {
            found.insert(file, String::from_utf8_lossy(&bytes).into_owned());
        }
    }
    found
}

/// A small regular file of a volume. Containers write there: no link of theirs leads out of it.
fn read_inside(volume: &std::path::Path, path: &str) -> io::Result<Vec<u8>> {
    use rustix::fs::{Mode, OFlags, ResolveFlags};
    let root = rustix::fs::open(volume, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let file = std::fs::File::from(rustix::fs::openat2(&root, path, flags, Mode::empty(), resolve)?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, MAX_ENV_FILE + 1), &mut bytes)?;
    if bytes.len() as u64 > MAX_ENV_FILE { Err(io::Error::other("it is too large")) } else { Ok(bytes) }
}

/// The file into which a container writes why it ends.
async fn termination_log(
    node: &Surroundings,
    key: &PodKey,
    container: &Container,
    attempt: u32,
) -> Result<Option<PathBuf>, Problem> {
    if spec::termination_path(container).is_none() {
        return Ok(None);
    }
    let path = paths::termination_log(&node.kubelet_dir, &key.uid, &container.name, attempt);
    let made = path.clone();
    let made = blocking(move || {
        use std::os::unix::fs::PermissionsExt;
        if let Some(dir) = made.parent() {
            std::fs::create_dir_all(dir)?;
        }
        std::fs::File::create(&made)?;
        // Whoever the container runs as writes it.
        std::fs::set_permissions(&made, std::fs::Permissions::from_mode(0o666))
    });
    made.await.map(|()| Some(path)).map_err(|error| of_error("CreateContainerConfigError", &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_come_from_the_volume_alone() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("volume");
        std::fs::create_dir_all(volume.join("a")).unwrap();
        std::fs::write(dir.path().join("secret"), "K='host'").unwrap();
        std::fs::write(volume.join("a/env"), "K='v'").unwrap();
        std::fs::write(volume.join("large"), vec![b'#'; 65 << 10]).unwrap();
        std::os::unix::fs::symlink("..", volume.join("up")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("secret"), volume.join("away")).unwrap();
        std::os::unix::fs::symlink("a/env", volume.join("link")).unwrap();
        for good in ["a/env", "link"] {
            assert_eq!(read_inside(&volume, good).unwrap(), b"K='v'", "{good}");
        }
        for wrong in ["up/secret", "../secret", "away", "/etc/hostname", "a", "large", "none", ""] {
            assert!(read_inside(&volume, wrong).is_err(), "{wrong:?}");
        }
    }
}
