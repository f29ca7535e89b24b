//! Starting: the network and the root file system side by side, then the configuration, then a shim.

use std::{
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    ContainerId, Containers, MountKind, MountPoint, MountSource, NamespaceMode, NetworkMode, Seccomp, StartError,
    Started, State, Status, devices,
    front::clear_run_dir,
    oci,
    record::{Entry, Record, has_mount, lock},
    roots::IdRange,
    user,
};
use crate::{
    event::{Action, now_ns},
    ledger::{Amount, Holder},
    network::{AttachRequest, Attached, files},
    runtime::seccomp::{Host, Profile, docker_default},
    shim::{Events, ShimClient, ShimSpec},
};

/// Largest configuration that is read back, bytes.
const MAX_CONFIG: u64 = 4 << 20;

/// Who starts a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// Somebody.
    Hand,
    /// Its restart policy.
    Policy,
}

/// What was found while setting up.
struct Prepared {
    record: Record,
    user: user::User,
    mounts: Vec<MountPoint>,
    devices: Vec<oci::Node>,
    blkio: Vec<(usize, u32, u32)>,
}

impl Containers {
    /// Starts a created or ended container; returns once its first process runs the image's program.
    ///
    /// * One that runs already is left alone, and its present start returned.
    /// * Errors: nothing of the attempt remains but the reason in its record; [`StartError::exit_code`] is Docker's.
    /// * Cancelled: carried to its end all the same.
    pub async fn start(&self, id: &ContainerId) -> Result<Started, StartError> {
        let entry = self.entry(id)?;
        let this = self.clone();
        let closed = || StartError::Record(store::state::StateError::Closed);
        self.whole(async move { this.start_entry(entry, By::Hand).await }).await.ok_or_else(closed)?
    }

    pub(super) async fn start_entry(&self, entry: Arc<Entry>, by: By) -> Result<Started, StartError> {
        let _gate = entry.gate.lock().await;
        let state = entry.with(|record| record.state.clone());
        if by == By::Policy && !state.restarting {
            return Err(StartError::StaysDown(entry.id.clone()));
        }
        match state.status {
            Status::Running => {
                return Ok(Started { pid: state.pid.unwrap_or(0), at_ns: state.started_ns.unwrap_or(0) });
            }
            Status::Created | Status::Exited => {}
            status => return Err(StartError::State { id: entry.id.clone(), status }),
        }
        if entry.seen.borrow().going {
            return Err(super::ResolveError::NotFound(entry.id.to_string()).into());
        }
        let result = match self.admit(&entry).await {
            Ok(()) => self.bring_up(&entry, by).await,
            Err(error) => Err(error),
        };
        match result {
            Ok((started, events)) => {
                if by == By::Hand {
                    *lock(&entry.pause) = None;
                }
                self.tell(&entry, Action::Started { pid: started.pid });
                self.write_soon(&entry);
                let (this, followed) = (self.clone(), entry.clone());
                self.task(async move { this.follow(followed, events).await });
                Ok(started)
            }
            Err(error) => {
                self.take_down(&entry, true).await;
                entry.change(|record| {
                    record.state.error = Some(board::tasks::chain(&error));
                    record.state.exit_code = Some(error.exit_code());
                });
                lock(&entry.waiting).clear(); // Those who attached hear that nothing comes.
                self.write_soon(&entry);
                Err(error)
            }
        }
    }

    /// What a container without limits reserves is nothing; pods and jobs reserve as a whole.
    pub(super) async fn admit(&self, entry: &Entry) -> Result<(), StartError> {
        let ledger = &self.0.parts.ledger;
        if ledger.covers(&entry.owner) {
            return Ok(());
        }
        let (priority, memory) = entry.with(|record| (record.spec.priority, record.spec.resources.memory_reservation));
        let amount = Amount { memory: memory.unwrap_or(0), ..Amount::default() };
        if amount == Amount::default() {
            return Ok(());
        }
        Ok(ledger.admit(Holder::container(entry.owner.clone(), entry.id.as_str()), priority, amount).await?)
    }

    async fn bring_up(&self, entry: &Arc<Entry>, by: By) -> Result<(Started, Events), StartError> {
        let parts = &self.0.parts;
        let places = self.places(&entry.id);
        let record = entry.record();
        make_run_dir(&places.run, &places.data, record.ids).map_err(|(path, source)| StartError::Io {
            what: "make",
            path,
            source,
        })?;
        let (network, prepared) =
            tokio::join!(self.attach_network(&record), self.mount_root(record.clone(), places.rootfs()));
        let (network, prepared) = (network?, prepared?);
        entry.set_network(Some(network.clone()));
        let joined = self.joined(&record, &places.run).await?;
        let _ = std::fs::remove_file(places.exit()); // Of a former life.
        // What is removed at its end leaves nothing that a power cut could take.
        let exit_file = if record.spec.auto_remove { places.run.join("exit.json") } else { places.exit() };
        let config = self.configure(entry, &prepared, &network, joined)?;
        let moved = entry.change(|kept| {
            let moved = kept.mounts != prepared.mounts;
            kept.mounts.clone_from(&prepared.mounts);
            moved
        });
        if moved {
            self.keep_copy(entry, &places.data);
        }
        self.keep_copy(entry, &places.run);
        self.owner_group(entry).await?;
        let spec = self.shim_spec(entry, &places.run, exit_file);
        let write = |path: PathBuf, bytes: Vec<u8>| {
            write_private(&path, &bytes).map_err(|source| StartError::Io { what: "write", path, source })
        };
        write(places.run.join("config.json"), serde_json::to_vec(&config).unwrap_or_default())?;
        let (shim, _) =
            ShimClient::spawn(&parts.exe.path(), &spec).await.map_err(|error| StartError::spawn(&entry.id, error))?;
        let told = |error| StartError::shim(&entry.id, error);
        let (_, events) = shim.events().await.map_err(told)?;
        let waiting = std::mem::take(&mut *lock(&entry.waiting));
        for waiting in waiting {
            if let Ok(session) = shim.attach(waiting.attach).await {
                // Whoever attached may have gone.
                let _ = waiting.answer.send(session);
            }
        }
        let status = shim.start().await.map_err(told)?;
        let pid = u32::try_from(status.pid).unwrap_or(0);
        let at_ns = i64::try_from(status.started_at_ns).ok().filter(|at| *at > 0).unwrap_or_else(now_ns);
        entry.change(|record| {
            let starts = record.state.starts.saturating_add(1);
            let restarts = if by == By::Policy { record.state.restarts.saturating_add(1) } else { 0 };
            let (status, pid, started_ns) = (Status::Running, Some(pid), Some(at_ns));
            record.state = State { status, pid, started_ns, starts, restarts, ..State::default() };
        });
        Ok((Started { pid, at_ns }, events))
    }

    async fn attach_network(&self, record: &Record) -> Result<Attached, StartError> {
        let id = record.id.as_str();
        let mode = self.network_of(record)?;
        let request = AttachRequest {
            sandbox: id.to_owned(),
            owner: record.owner.clone(),
            mode,
            ports: record.spec.ports.clone(),
            hostname: record.hostname.clone(),
            names: vec![record.name.clone(), record.id.short().to_owned()],
            cni_args: std::collections::BTreeMap::new(),
            bandwidth: None,
        };
        let attached = self.0.parts.networks.attach(request).await;
        attached.map_err(|source| StartError::Network { id: record.id.clone(), source })
    }

    /// The network of a container that shares another's is whatever that one has.
    fn network_of(&self, record: &Record) -> Result<NetworkMode, StartError> {
        let mut mode = record.spec.network.clone();
        // A chain of containers that share has an end; a ring cannot be made, as each refers to one that was there.
        while let NetworkMode::Container(other) = &mode {
            let entry = lock(&self.0.book).resolve(Some(&record.owner), other)?;
            if !entry.status().is_alive() {
                return Err(StartError::NotJoinable(other.clone()));
            }
            let next = entry.with(|record| record.spec.network.clone());
            match next {
                NetworkMode::Host | NetworkMode::Path(_) | NetworkMode::Container(_) => mode = next,
                _ => return Ok(NetworkMode::Container(entry.id.to_string())),
            }
        }
        Ok(mode)
    }

    /// The root file system and all that has to be looked up in it or on the board.
    async fn mount_root(&self, record: Record, rootfs: PathBuf) -> Result<Prepared, StartError> {
        let roots = &self.0.parts.roots;
        let mounted = roots.mount(record.id.as_str(), &record.facts, record.ids, &rootfs, record.spec.auto_remove);
        mounted.await.map_err(StartError::Root)?;
        let mounts = self.volumes(&record, &rootfs).await.map_err(StartError::Root)?;
        let failed = |error: tokio::task::JoinError| StartError::Setup {
            id: record.id.clone(),
            message: format!("looking up its files failed: {error}"),
        };
        let asked = record.clone();
        tokio::task::spawn_blocking(move || {
            let spec = &asked.spec;
            let name = spec.user.as_deref().unwrap_or(&asked.facts.defaults.user);
            let user = user::lookup(&rootfs, name, &spec.groups, spec.user_lookup)?;
            sources(&asked)?;
            let devices = devices::of(spec)?;
            let blkio = devices::blkio(&spec.resources).map_err(StartError::NoDevice)?;
            Ok(Prepared { user, mounts, devices, blkio, record: asked })
        })
        .await
        .map_err(failed)?
    }

    /// Namespaces of other containers, which must run.
    async fn joined(&self, record: &Record, run_dir: &Path) -> Result<oci::Joined, StartError> {
        let find = |mode: &NamespaceMode, kind: &str| match mode {
            NamespaceMode::Path(path) => Ok(Some((path.clone(), None))),
            NamespaceMode::Container(other) => {
                let entry = lock(&self.0.book).resolve(Some(&record.owner), other)?;
                let pid = entry.with(|other| other.state.pid.filter(|_| other.state.status.is_alive()));
                let pid = pid.ok_or_else(|| StartError::NotJoinable(other.clone()))?;
                Ok(Some((PathBuf::from(format!("/proc/{pid}/ns/{kind}")), Some(pid))))
            }
            NamespaceMode::Private | NamespaceMode::Host => Ok::<_, StartError>(None),
        };
        let (pid, ipc, uts) =
            (find(&record.spec.pid, "pid")?, find(&record.spec.ipc, "ipc")?, find(&record.spec.uts, "uts")?);
        let mut joined = oci::Joined { pid: path(pid), ipc: path(ipc.clone()), uts: path(uts), shm: None };
        // Who shares System V IPC expects to share /dev/shm.
        if let Some((_, Some(pid))) = ipc
            && !has_mount(&record.mounts, "/dev/shm")
        {
            let target = run_dir.join("shm");
            let shared = target.clone();
            let done = tokio::task::spawn_blocking(move || devices::share_shm(pid, &shared)).await;
            let done = done.unwrap_or_else(|error| Err(std::io::Error::other(error)));
            done.map_err(|source| StartError::Io { what: "share /dev/shm at", path: target.clone(), source })?;
            joined.shm = Some(target);
        }
        Ok(joined)
    }

    fn configure(
        &self,
        entry: &Entry,
        prepared: &Prepared,
        network: &Attached,
        joined: oci::Joined,
    ) -> Result<serde_json::Value, StartError> {
        let (record, spec, parts) = (&prepared.record, &prepared.record.spec, &self.0.parts);
        let places = self.places(&entry.id);
        let files = self.name_files(record, network, &places.run)?;
        let capabilities = oci::capabilities_of(&spec.security)?;
        let seccomp =
            if spec.security.privileged { None } else { seccomp(&entry.id, &spec.security.seccomp, &capabilities)? };
        let input = oci::Input {
            id: entry.id.as_str(),
            spec,
            image: &record.facts.defaults,
            user: &prepared.user,
            rootfs: places.rootfs(),
            hostname: &record.hostname,
            files,
            mounts: &prepared.mounts,
            devices: prepared.devices.clone(),
            netns: network.netns.clone(),
            joined,
            userns: record.ids.map(|ids| (ids.host, ids.size)),
            cgroup: self.cgroup(entry),
            cgroup_mode: parts.cgroups.mode(),
            limits_swap: parts.cgroups.limits_swap(),
            init: spec.init.then(|| parts.program.clone()),
            seccomp,
            apparmor: spec.security.apparmor.clone().filter(|_| Path::new("/sys/kernel/security/apparmor").exists()),
            blkio: prepared.blkio.clone(),
        };
        Ok(oci::config(&input)?)
    }

    /// `/etc/hostname`, `/etc/hosts` and `/etc/resolv.conf`.
    fn name_files(
        &self,
        record: &Record,
        network: &Attached,
        run: &Path,
    ) -> Result<Vec<(PathBuf, &'static str)>, StartError> {
        let spec = &record.spec;
        let mut hosts = files::hosts(&record.hostname, spec.domainname.as_deref(), network, &spec.extra_hosts)?;
        if spec.network == NetworkMode::Host
            && let Ok(own) = std::fs::read_to_string("/etc/hosts")
        {
            let extra: String = hosts.lines().skip(6).map(|line| format!("{line}\n")).collect();
            hosts = own + &extra;
        }
        let texts = [
            ("hostname", "/etc/hostname", files::hostname(&record.hostname)),
            ("hosts", "/etc/hosts", hosts),
            ("resolv.conf", "/etc/resolv.conf", self.0.parts.networks.resolv_conf(network, &spec.dns)),
        ];
        let mut list = Vec::new();
        for (name, target, text) in texts {
            let path = run.join(name);
            let failed = |source| StartError::Io { what: "write", path: path.clone(), source };
            std::fs::write(&path, text).map_err(failed)?;
            if let Some(ids) = record.ids {
                std::os::unix::fs::chown(&path, Some(ids.host), Some(ids.host)).map_err(failed)?;
            }
            list.push((path, target));
        }
        Ok(list)
    }

    /// The groups above the container's own.
    async fn owner_group(&self, entry: &Entry) -> Result<(), StartError> {
        let path = self.owner_cgroup(&entry.owner);
        if lock(&self.0.owners).contains(&path) && self.0.parts.cgroups.exists(&path) {
            return Ok(());
        }
        let (cgroups, made, shims) = (self.0.parts.cgroups.clone(), path.clone(), self.shim_cgroup());
        let work = move || {
            cgroups.create(&made, &super::Resources::default())?;
            cgroups.create_leaf(&shims)
        };
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|error| StartError::Setup { id: entry.id.clone(), message: error.to_string() })??;
        lock(&self.0.owners).insert(path);
        Ok(())
    }

    fn shim_spec(&self, entry: &Entry, run_dir: &Path, exit_file: PathBuf) -> ShimSpec {
        let spec = entry.with(|record| record.spec.clone());
        let mut log = spec.log.clone();
        log.path = Some(self.log_path(entry));
        ShimSpec {
            id: entry.id.to_string(),
            runtime: self.0.parts.runtime.clone(),
            bundle: run_dir.to_owned(),
            run_dir: run_dir.to_owned(),
            exit_file,
            log,
            tty: spec.tty,
            stdin: spec.stdin,
            stdin_once: spec.stdin_once,
            terminal_size: None,
            cgroups: self.0.parts.cgroups.dirs(&self.shim_cgroup()),
            start_within_s: 120,
        }
    }

    /// The configuration that a running container was started with.
    pub(super) fn config_of(&self, id: &ContainerId) -> std::io::Result<serde_json::Value> {
        let bytes = board::durable::read(&self.places(id).run.join("config.json"), MAX_CONFIG)?;
        serde_json::from_slice(&bytes).map_err(std::io::Error::other)
    }

    /// Where a shim was killed, the runtime still knows its container.
    pub(super) async fn forget_in_runtime(&self, id: &str) {
        if !self.0.parts.runtime.root.join(id).exists() {
            return;
        }
        let (runtime, name) = (self.0.parts.own_runtime.clone(), id.to_owned());
        match tokio::task::spawn_blocking(move || runtime.delete(&name, true)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, container = id, "the runtime does not forget a container"),
            Err(error) => tracing::warn!(%error, container = id, "the runtime does not forget a container"),
        }
    }

    /// Takes away what a life needed: shim, runtime state, network, mounts, run directory. Goes on past what fails and
    /// logs it; the next start of the agent tries again. The gate is held.
    pub(super) async fn take_down(&self, entry: &Arc<Entry>, force: bool) {
        let places = self.places(&entry.id);
        match ShimClient::at(&places.run).shutdown(force).await {
            Ok(Some(_)) => {}
            Ok(None) => self.forget_in_runtime(entry.id.as_str()).await,
            Err(error) => {
                tracing::warn!(%error, container = %entry.id, "the shim of an ended container does not end");
                self.forget_in_runtime(entry.id.as_str()).await;
            }
        }
        let parts = &self.0.parts;
        let id = entry.id.as_str();
        let network = async {
            if let Err(error) = parts.networks.detach(id).await {
                tracing::warn!(%error, container = %entry.id, "the network of an ended container is not taken back");
            }
        };
        let rootfs = places.rootfs();
        let ledger = async {
            if let Err(error) = parts.ledger.release(&Holder::container(entry.owner.clone(), id)).await {
                tracing::warn!(%error, container = %entry.id, "what an ended container had reserved is not given back");
            }
        };
        let root = async {
            if let Err(error) = parts.roots.unmount(id, &rootfs).await {
                tracing::warn!(%error, container = %entry.id, "the root file system of an ended container stays mounted");
            }
        };
        tokio::join!(network, ledger, root);
        let (cgroups, cgroup) = (parts.cgroups.clone(), self.cgroup(entry));
        let cleared = tokio::task::spawn_blocking(move || {
            let _ = rustix::mount::unmount(places.run.join("shm"), rustix::mount::UnmountFlags::DETACH);
            if let Err(error) = cgroups.remove(&cgroup) {
                tracing::warn!(%error, cgroup, "the control group of an ended container stays");
            }
            clear_run_dir(&places.run)
        });
        if let Ok(Err(error)) = cleared.await {
            tracing::warn!(%error, container = %entry.id, "the run directory of an ended container stays");
        }
        entry.set_network(None);
    }
}

fn path(found: Option<(PathBuf, Option<u32>)>) -> Option<PathBuf> {
    found.map(|(path, _)| path)
}

/// Binds whose source is missing are made where that was asked for, and refused otherwise.
fn sources(record: &Record) -> Result<(), StartError> {
    for mount in record.mounts.iter().filter(|mount| mount.kind == MountKind::Bind && !mount.source.exists()) {
        let original = record.spec.mounts.iter().find(|original| original.target == mount.target);
        if !matches!(original.map(|original| &original.source), Some(MountSource::Bind { create: true, .. })) {
            return Err(StartError::NoSource(mount.source.clone()));
        }
        let failed = |source| StartError::Io { what: "make", path: mount.source.clone(), source };
        std::fs::create_dir_all(&mount.source).map_err(failed)?;
    }
    Ok(())
}

fn seccomp(
    id: &ContainerId,
    wanted: &Seccomp,
    capabilities: &[String],
) -> Result<Option<serde_json::Value>, StartError> {
    let failed = |error: &dyn std::error::Error| StartError::Setup { id: id.clone(), message: error.to_string() };
    let profile = match wanted {
        Seccomp::Unconfined => return Ok(None),
        Seccomp::Default => docker_default(),
        Seccomp::Custom(json) => {
            let text = serde_json::to_vec(json).map_err(|error| failed(&error))?;
            Profile::parse(&text).map_err(|error| failed(&error))?
        }
    };
    let filter = profile.resolve(capabilities, &Host::this()).map_err(|error| failed(&error))?;
    serde_json::to_value(filter).map(Some).map_err(|error| failed(&error))
}

/// The bundle's folder, empty, and the folder of its files. With a user namespace the container's root has to get
/// through to its mounts.
fn make_run_dir(run: &Path, data: &Path, ids: Option<IdRange>) -> Result<(), (PathBuf, std::io::Error)> {
    let mode = if ids.is_some() { 0o711 } else { 0o700 };
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error| (path, error)
    };
    let _ = rustix::mount::unmount(run.join("rootfs"), rustix::mount::UnmountFlags::DETACH);
    let _ = rustix::mount::unmount(run.join("shm"), rustix::mount::UnmountFlags::DETACH);
    clear_run_dir(run).map_err(failed(run))?;
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o711).create(run.parent().unwrap_or(run)).map_err(failed(run))?;
    std::fs::DirBuilder::new().mode(mode).create(run).map_err(failed(run))?;
    std::fs::DirBuilder::new().mode(0o755).create(run.join("rootfs")).map_err(failed(run))?;
    // A power cut may have taken it.
    std::fs::create_dir_all(data).map_err(failed(data))
}

fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    std::io::Write::write_all(&mut file, bytes)
}
