//! Further processes in a running container.

use std::{path::PathBuf, sync::Arc};

use super::{
    ContainerError, ContainerId, Containers, ExecInfo, ExecSpec, Status, TtySize, oci,
    record::{Entry, lock},
    signal, user,
};
use crate::shim::{ExecRequest, Session};

/// Executions remembered of one container, running ones included.
const MAX_EXECS: usize = 256;

impl Containers {
    /// Notes what is to be run; it runs when [`Containers::exec_start`] is called. The container must run.
    pub fn exec_create(&self, id: &ContainerId, spec: ExecSpec) -> Result<ExecInfo, ContainerError> {
        let entry = self.in_state(id, Status::Running, "a process can be started in a running container only")?;
        if spec.command.first().is_none_or(String::is_empty) {
            return Err(oci::ConfigError::NoCommand.into());
        }
        let random = |_| ContainerError::Io {
            what: "read",
            path: PathBuf::from("/dev/urandom"),
            source: std::io::Error::other("the kernel has no random bytes"),
        };
        let exec = ContainerId::random().map_err(random)?.to_string();
        let info =
            ExecInfo { id: exec.clone(), container: id.clone(), spec, running: false, pid: None, exit_code: None };
        let mut execs = lock(&entry.execs);
        if execs.len() >= MAX_EXECS {
            // Those that have ended are remembered only as long as there is room.
            execs.retain(|_, exec| exec.running || exec.exit_code.is_none());
        }
        if execs.len() >= MAX_EXECS {
            return Err(ContainerError::TooManyExecs(MAX_EXECS));
        }
        execs.insert(exec, info.clone());
        Ok(info)
    }

    /// Runs it; its stdio is the session. Dropping the session leaves the process running, its output discarded.
    pub async fn exec_start(&self, exec: &str, size: Option<TtySize>) -> Result<Session, ContainerError> {
        let (entry, info) = self.exec_of(exec)?;
        if entry.status() != Status::Running {
            let need = "a process can be started in a running container only";
            return Err(ContainerError::State { id: entry.id.clone(), status: entry.status(), need });
        }
        {
            // Claimed before anything slow: of two that start it at once, one is refused.
            let mut execs = lock(&entry.execs);
            let info = execs.get_mut(exec).ok_or_else(|| ContainerError::NoExec(exec.to_owned()))?;
            if info.running || info.exit_code.is_some() {
                return Err(ContainerError::ExecStarted(exec.to_owned()));
            }
            info.running = true;
        }
        let started = self.launch(&entry, &info, size).await;
        match &started {
            Ok((_, pid)) => {
                if let Some(info) = lock(&entry.execs).get_mut(exec).filter(|info| info.running) {
                    info.pid = *pid;
                }
            }
            Err(error) => {
                if let Some(info) = lock(&entry.execs).get_mut(exec) {
                    info.running = false;
                    info.exit_code = Some(error.exit_code());
                }
            }
        }
        started.map(|(session, _)| session)
    }

    /// Both at once.
    pub async fn exec(&self, id: &ContainerId, spec: ExecSpec) -> Result<(String, Session), ContainerError> {
        let info = self.exec_create(id, spec)?;
        let session = self.exec_start(&info.id, None).await?;
        Ok((info.id, session))
    }

    async fn launch(
        &self,
        entry: &Arc<Entry>,
        info: &ExecInfo,
        size: Option<TtySize>,
    ) -> Result<(Session, Option<u32>), ContainerError> {
        let (this, asked, at) = (self.clone(), info.spec.clone(), entry.clone());
        let process = tokio::task::spawn_blocking(move || this.process(&at, &asked)).await;
        let failed = |error| ContainerError::Io {
            what: "look up the user in",
            path: PathBuf::from("/etc/passwd"),
            source: std::io::Error::other(error),
        };
        let request = ExecRequest {
            id: info.id.clone(),
            process: process.map_err(failed)??,
            tty: info.spec.tty,
            stdin: info.spec.stdin,
            terminal_size: size.map(|size| (size.rows, size.columns)),
        };
        let shim = self.shim(entry);
        let (session, status) = shim.exec(request).await.map_err(|error| ContainerError::shim(&entry.id, error))?;
        let pid = status.execs.iter().find(|exec| exec.id == info.id).and_then(|exec| u32::try_from(exec.pid).ok());
        Ok((session, pid.filter(|pid| *pid > 0)))
    }

    /// The `process` object, from the container's own. Blocking.
    fn process(&self, entry: &Entry, spec: &ExecSpec) -> Result<serde_json::Value, ContainerError> {
        let run = self.places(&entry.id).run;
        let failed = |source| ContainerError::Io { what: "read", path: run.join("config.json"), source };
        let config = self.config_of(&entry.id).map_err(failed)?;
        let who = match &spec.user {
            Some(name) if !name.is_empty() => {
                let (groups, how) = entry.with(|record| (record.spec.groups.clone(), record.spec.user_lookup));
                Some(user::lookup(&self.root_of(entry), name, &groups, how)?)
            }
            _ => None,
        };
        Ok(oci::exec_process(&config, spec, who.as_ref())?)
    }

    /// The root file system as the container's first process sees it, mounts included; the bare one where it does not
    /// run.
    pub(super) fn root_of(&self, entry: &Entry) -> PathBuf {
        let pid = entry.with(|record| record.state.pid.filter(|_| record.state.status.is_alive()));
        pid.map_or_else(|| self.places(&entry.id).rootfs(), |pid| PathBuf::from(format!("/proc/{pid}/root")))
    }

    /// How an execution is.
    pub fn exec_inspect(&self, exec: &str) -> Result<ExecInfo, ContainerError> {
        self.exec_of(exec).map(|(_, info)| info)
    }

    /// Size of its terminal.
    pub async fn exec_resize(&self, exec: &str, size: TtySize) -> Result<(), ContainerError> {
        let (entry, info) = self.exec_of(exec)?;
        if !info.spec.tty {
            return Err(ContainerError::NoTerminal(entry.id.clone()));
        }
        let resized = self.shim(&entry).resize(Some(exec), size.rows, size.columns).await;
        resized.map(drop).map_err(|error| ContainerError::shim(&entry.id, error))
    }

    /// Sends it a signal.
    pub async fn exec_kill(&self, exec: &str, signal_name: &str) -> Result<(), ContainerError> {
        let number = signal::parse(signal_name)?;
        let (entry, _) = self.exec_of(exec)?;
        let sent = self.shim(&entry).signal(Some(exec), number, false).await;
        sent.map(drop).map_err(|error| ContainerError::shim(&entry.id, error))
    }

    fn exec_of(&self, exec: &str) -> Result<(Arc<Entry>, ExecInfo), ContainerError> {
        let entries = lock(&self.0.book).all();
        let found = entries.into_iter().find_map(|entry| {
            let info = lock(&entry.execs).get(exec).cloned();
            info.map(|info| (entry, info))
        });
        found.ok_or_else(|| ContainerError::NoExec(exec.chars().take(64).collect()))
    }
}
