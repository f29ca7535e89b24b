//! An engine in this process, on folders, control groups and a network device of its own, with busybox as its one image.

use std::{
    collections::BTreeSet,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::Result;
use container_engine::{
    container::{
        Answer, ContainerSpec, IdRange, ImageDefaults, ImageFacts, NetworkMode, RootError, Roots, VolumeWanted,
    },
    engine::{Engine, Options},
    owner::Owner,
};
use store::state::State;

use crate::{agent::agent_binary, images};

/// Root file systems over one folder with busybox: what the engine's own images and snapshots are to containers, so that
/// containers can be tested without them.
pub struct Folders {
    tree: PathBuf,
    data: PathBuf,
    /// What the image says; tests change it.
    pub defaults: Mutex<ImageDefaults>,
    /// Its platform; tests change it.
    pub platform: Mutex<String>,
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> RootError {
    RootError::new("internal", error)
}

impl Folders {
    fn new(dir: &Path) -> Result<Self> {
        images::busybox(dir)?;
        let tree = dir.join("busybox-tree");
        std::fs::create_dir_all(tree.join("data"))?;
        std::fs::write(tree.join("data/seed"), "from the image")?;
        std::fs::write(
            tree.join("etc/passwd"),
            "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/home/app:/bin/sh\n",
        )?;
        std::fs::write(tree.join("etc/group"), "root:x:0:\nwheel:x:10:app\napp:x:1000:\n")?;
        std::fs::write(tree.join("etc/not-executable"), "text")?;
        std::fs::set_permissions(tree.join("tmp"), std::fs::Permissions::from_mode(0o1777))?;
        let defaults = ImageDefaults { command: vec!["sh".into()], ..ImageDefaults::default() };
        Ok(Self { tree, data: dir.join("roots"), defaults: Mutex::new(defaults), platform: Mutex::default() })
    }

    fn place(&self, id: &str) -> PathBuf {
        self.data.join("snapshots").join(id)
    }

    fn mount_now(&self, id: &str, target: &Path) -> std::io::Result<()> {
        let place = self.place(id);
        if is_mounted(target) {
            return Ok(());
        }
        for part in ["upper", "work"] {
            std::fs::create_dir_all(place.join(part))?;
        }
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            self.tree.display(),
            place.join("upper").display(),
            place.join("work").display()
        );
        let options = std::ffi::CString::new(options)?;
        Ok(rustix::mount::mount("overlay", target, "overlay", rustix::mount::MountFlags::empty(), options.as_c_str())?)
    }
}

/// Whether something is mounted at `path`.
pub fn is_mounted(path: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').nth(4) == path.to_str())
}

impl Roots for Folders {
    fn image<'a>(&'a self, _: &'a Owner, name: &'a str) -> Answer<'a, ImageFacts> {
        Box::pin(async move {
            if name != "busybox" {
                return Err(RootError::new("not_found", format!("there is no image {name}: pull it")));
            }
            let (defaults, platform) = (self.defaults.lock().unwrap().clone(), self.platform.lock().unwrap().clone());
            Ok(ImageFacts { id: format!("sha256:{}", "b".repeat(64)), platform, layers: Vec::new(), defaults })
        })
    }

    fn mount<'a>(&'a self, id: &'a str, _: &'a ImageFacts, _: Option<IdRange>, target: &'a Path) -> Answer<'a, ()> {
        Box::pin(async move { self.mount_now(id, target).map_err(failed) })
    }

    fn unmount<'a>(&'a self, _: &'a str, target: &'a Path) -> Answer<'a, ()> {
        Box::pin(async move {
            if is_mounted(target) {
                rustix::mount::unmount(target, rustix::mount::UnmountFlags::DETACH).map_err(failed)?;
            }
            Ok(())
        })
    }

    fn remove<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            let _ = std::fs::remove_dir_all(self.place(id));
            Ok(())
        })
    }

    fn usage<'a>(&'a self, id: &'a str) -> Answer<'a, u64> {
        Box::pin(async move { Ok(u64::from(self.place(id).exists())) })
    }

    fn volume<'a>(&'a self, wanted: VolumeWanted<'a>) -> Answer<'a, PathBuf> {
        Box::pin(async move {
            let path = self.data.join("volumes").join(wanted.name);
            if !path.exists() {
                std::fs::create_dir_all(&path).map_err(failed)?;
                if let Some((root, target)) = wanted.fill_from
                    && let Ok(seed) = std::fs::read(root.join(target.trim_start_matches('/')).join("seed"))
                {
                    std::fs::write(path.join("seed"), seed).map_err(failed)?;
                }
            }
            Ok(path)
        })
    }

    fn remove_volume<'a>(&'a self, _: &'a Owner, name: &'a str) -> Answer<'a, ()> {
        Box::pin(async move { std::fs::remove_dir_all(self.data.join("volumes").join(name)).map_err(failed) })
    }

    fn recover<'a>(&'a self, existing: &'a [String]) -> Answer<'a, ()> {
        Box::pin(async move {
            let existing: BTreeSet<&str> = existing.iter().map(String::as_str).collect();
            for entry in std::fs::read_dir(self.data.join("snapshots")).into_iter().flatten().flatten() {
                if !existing.contains(entry.file_name().to_str().unwrap_or_default()) {
                    std::fs::remove_dir_all(entry.path()).map_err(failed)?;
                }
            }
            Ok(())
        })
    }
}

/// The engine and its folders.
pub struct Bench {
    /// Containers and all the rest.
    pub engine: Engine,
    /// Images and snapshots.
    pub roots: Arc<Folders>,
    state: State,
    options: Options,
    dir: tempfile::TempDir,
}

impl Bench {
    /// A new one, with the runtime that `EDGE_AGENT_RUNTIME` names.
    pub async fn new() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("eng").tempdir_in("/tmp")?;
        // Ids of user namespaces have to get through.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711))?;
        let roots = Arc::new(Folders::new(dir.path())?);
        let mut options = Options::new(dir.path().join("data"), dir.path().join("run"));
        options.program = Some(agent_binary()?);
        options.runtime = std::env::var("EDGE_AGENT_RUNTIME").unwrap_or_else(|_| "embedded".to_owned());
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let tag = format!("{:x}{:x}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        options.cgroup_parent = format!("edge-test-{tag}");
        options.network.device = format!("et{tag}");
        let (state, _) = State::open(&dir.path().join("state"))?;
        let engine = Engine::open_over(options.clone(), state.clone(), roots.clone()).await?;
        Ok(Self { engine, roots, state, options, dir })
    }

    /// The engine ends and another begins, as when the agent restarts.
    pub async fn restart(&mut self) -> Result<()> {
        self.engine.close().await;
        self.engine = Engine::open_over(self.options.clone(), self.state.clone(), self.roots.clone()).await?;
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
        for one in containers.list(&Default::default()) {
            let options = container_engine::container::RemoveOptions { force: true, volumes: true };
            containers.remove(&one.id, options).await?;
        }
        self.engine.close().await;
        let _ = self.engine.cgroups().remove(self.cgroup());
        Ok(())
    }
}
