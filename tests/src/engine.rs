//! An engine in this process, on folders, control groups and a network device of its own, with busybox as its one image.

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use container_engine::{
    container::{
        ContainerId, ContainerSpec, ListFilter, Mount, MountSource, NetworkMode, Propagation, RemoveOptions, WaitFor,
    },
    engine::{Engine, Options},
    image::LoadRequest,
    shim::{Attach, Output, Session},
};
use store::state::State;

use crate::{agent::agent_binary, images};

/// Whether something is mounted at `path`.
pub fn is_mounted(path: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').nth(4) == path.to_str())
}

/// The engine and its folders.
pub struct Bench {
    /// Containers and all the rest.
    pub engine: Engine,
    state: State,
    options: Options,
    dir: tempfile::TempDir,
}

impl Bench {
    /// A new one, with the runtime that `EDGE_AGENT_RUNTIME` names.
    pub async fn new() -> Result<Self> {
        Self::with(|_| {}).await
    }

    /// The same, with other options.
    pub async fn with(change: impl FnOnce(&mut Options)) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // Installed already where another test of this process came first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::Builder::new().prefix("eng").tempdir_in("/tmp")?;
        // Ids of user namespaces have to get through.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711))?;
        let mut options = Options::new(dir.path().join("data"), dir.path().join("run"));
        options.program = Some(agent_binary()?);
        options.runtime = std::env::var("EDGE_AGENT_RUNTIME").unwrap_or_else(|_| "embedded".to_owned());
        let tag = format!("{:x}x{:x}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        options.cgroup_parent = format!("edge-test-{tag}");
        options.network.device = format!("et{tag}");
        change(&mut options);
        let (state, _) = State::open(&dir.path().join("state"))?;
        let engine = Engine::open(options.clone(), state.clone()).await?;
        let bench = Self { engine, state, options, dir };
        bench.load().await?;
        Ok(bench)
    }

    /// Makes the image `busybox` and loads it.
    async fn load(&self) -> Result<()> {
        let tree = self.dir().join("busybox-tree");
        for folder in ["etc", "data"] {
            std::fs::create_dir_all(tree.join(folder))?;
        }
        std::fs::write(tree.join("data/seed"), "from the image")?;
        std::fs::write(tree.join("etc/not-executable"), "text")?;
        images::busybox(self.dir())?;
        let archive = images::archive(&self.dir().join("busybox"))?;
        let request = LoadRequest { name: Some("busybox".parse()?), ..LoadRequest::default() };
        let (events, _) = tokio::sync::mpsc::channel(64);
        self.engine.images().load(&request, std::fs::File::open(archive)?, &events).await?;
        Ok(())
    }

    /// The engine ends and another begins, as when the agent restarts.
    pub async fn restart(&mut self) -> Result<()> {
        self.engine.close().await;
        self.engine = Engine::open(self.options.clone(), self.state.clone()).await?;
        Ok(())
    }

    /// `DATA`, `RUN` and the rest.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The control group above all of this engine's.
    pub fn cgroup(&self) -> &str {
        &self.options.cgroup_parent
    }

    /// What runs this shell script, without a network.
    pub fn shell(script: &str) -> ContainerSpec {
        ContainerSpec {
            image: "busybox".into(),
            command: Some(vec!["sh".into(), "-c".into(), script.into()]),
            network: NetworkMode::None,
            ..ContainerSpec::default()
        }
    }

    /// Removes all containers, and what they had.
    pub async fn clear(&self) -> Result<()> {
        let containers = self.engine.containers();
        for one in containers.list(&ListFilter::default()) {
            containers.remove(&one.id, RemoveOptions { force: true, volumes: true }).await?;
        }
        self.engine.close().await;
        let _ = self.engine.cgroups().remove(self.cgroup());
        Ok(())
    }
}

impl Drop for Bench {
    /// After a failure this ends what still runs; after [`Bench::clear`] there is only its device.
    fn drop(&mut self) {
        let _ = self.engine.cgroups().remove(self.cgroup());
        for mount in mounts_below(self.dir()).iter().rev() {
            let _ = rustix::mount::unmount(mount, rustix::mount::UnmountFlags::DETACH);
        }
        // There where a container was on the default network; else there is nothing to delete.
        let _ = std::process::Command::new("ip").args(["link", "delete", &self.options.network.device]).output();
    }
}

fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    points.filter(|point| point.starts_with(dir)).collect()
}

/// Everything that a container prints.
pub const BOTH: Attach = Attach { stdin: false, stdout: true, stderr: true, wait: true };

/// Longer than anything takes, in the guest of `cargo xtask guest` too.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Runs to the end; returns standard output, standard error and exit code.
pub async fn output(session: Session) -> Result<(String, String, i32)> {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let (_input, mut output) = session.split();
    loop {
        match tokio::time::timeout(PATIENCE, output.next()).await.context("no more output")?? {
            Some(Output::Stdout(bytes)) => out.extend_from_slice(&bytes),
            Some(Output::Stderr(bytes)) => err.extend_from_slice(&bytes),
            Some(Output::Exit(exit)) => {
                return Ok((String::from_utf8(out)?, String::from_utf8(err)?, exit.code));
            }
            None => anyhow::bail!("the session ended without an exit"),
        }
    }
}

/// Something of the host's, shown at `target`.
pub fn read_only(source: &Path, target: &str) -> Mount {
    Mount {
        target: target.into(),
        source: MountSource::Bind { source: source.to_owned(), create: false },
        read_only: true,
        recursive_read_only: false,
        propagation: Propagation::default(),
    }
}

/// Creates, attaches, starts, and waits for the end.
pub async fn run(bench: &Bench, spec: ContainerSpec) -> Result<(ContainerId, String, String, i32)> {
    let containers = bench.engine.containers();
    let id = containers.create(spec).await?.id;
    let attaching = containers.attach(&id, BOTH).await?;
    containers.start(&id).await?;
    let (out, err, code) = output(attaching.session().await?).await?;
    let exit = containers.wait(&id, WaitFor::NotRunning).await?;
    ensure!(exit.code == code, "the session says {code}, the record {}", exit.code);
    Ok((id, out, err, code))
}
