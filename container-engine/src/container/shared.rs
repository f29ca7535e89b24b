//! What the containers of one owner share though none of them comes first, as those of a pod do: an IPC namespace with
//! `/dev/shm`, and where it is wanted a pid namespace, whose first process is the engine's.
//!
//! Always true: what is here outlives the agent and not the board; it is named by whoever asks, and taken away by them.
//!
//! Elsewhere: how it is made (`pause`), pods' networks (`network`).

use std::{
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{
    Containers,
    pause::{self, Order},
};
use crate::{cgroup::CgroupError, sys::netns};

/// `/dev/shm` where no size is asked for.
const SHM_BYTES: u64 = 64 << 20;
/// In the folder of each.
pub(super) const IPC: &str = "ipc";
pub(super) const SHM: &str = "shm";
pub(super) const PIDS: &str = "pids";
pub(super) const PAUSE: &str = "pause";

/// What is to be shared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ShareOptions {
    /// Process ids too.
    pub pids: bool,
    /// Bytes of `/dev/shm`; 64 MiB where absent.
    pub shm_bytes: Option<u64>,
}

/// Where it is: for [`NamespaceMode::Path`](super::NamespaceMode::Path), and a bind mount at `/dev/shm`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shared {
    /// The IPC namespace.
    pub ipc: PathBuf,
    /// The folder of `/dev/shm`.
    pub shm: PathBuf,
    /// The pid namespace.
    pub pids: Option<PathBuf>,
}

/// Why nothing can be shared.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// Not a name.
    #[error("{0:?} cannot be shared under this name: 1 to 128 letters, digits, '.', '_' or '-', the first no '.'")]
    Name(String),
    /// Control groups.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Files, mounts, or the program.
    #[error("cannot {what} {path}")]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A namespace.
    #[error("namespaces that containers share were not made: {0}")]
    Make(String),
}

impl Containers {
    /// Makes what containers of `name` share, such as a pod; what is there already stays as it is.
    ///
    /// * Errors: what was made stays for the next attempt, or for [`Containers::unshare`].
    /// * Cancelled: carried to its end all the same.
    pub async fn share(&self, name: &str, options: ShareOptions) -> Result<Shared, ShareError> {
        let dir = self.shared_dir(name)?;
        if let Some(found) = found(&dir, options.pids) {
            return Ok(found);
        }
        let this = self.clone();
        blocking(move || this.make_shared(&dir, options)).await
    }

    /// What is shared under this name, if all of it is there.
    pub fn shared(&self, name: &str, options: ShareOptions) -> Option<Shared> {
        found(&self.shared_dir(name).ok()?, options.pids)
    }

    /// Everything that is shared, by name.
    pub fn all_shared(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.parts.run_dir.join("shared")).into_iter().flatten();
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
    }

    /// Takes it away. What still runs in a shared pid namespace is killed. Twice is as once.
    pub async fn unshare(&self, name: &str) -> Result<(), ShareError> {
        let dir = self.shared_dir(name)?;
        blocking(move || take_away(&dir)).await
    }

    fn shared_dir(&self, name: &str) -> Result<PathBuf, ShareError> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if name.is_empty() || name.len() > 128 || name.starts_with('.') || !name.bytes().all(plain) {
            return Err(ShareError::Name(name.chars().take(200).collect()));
        }
        Ok(self.0.parts.run_dir.join("shared").join(name))
    }

    fn make_shared(&self, dir: &Path, options: ShareOptions) -> Result<Shared, ShareError> {
        let parts = &self.0.parts;
        let failed = |what| {
            let path = dir.to_owned();
            move |source| ShareError::Io { what, path, source }
        };
        // Ids of user namespaces have to get through to /dev/shm.
        std::fs::DirBuilder::new().recursive(true).mode(0o711).create(dir).map_err(failed("make"))?;
        let group = self.shim_cgroup();
        parts.cgroups.create_leaf(&group)?;
        let order = Order {
            dir: dir.to_owned(),
            pids: options.pids,
            shm_bytes: options.shm_bytes.unwrap_or(SHM_BYTES),
            cgroups: parts.cgroups.dirs(&group),
        };
        let mut child = Command::new(parts.exe.path())
            .arg("shared-namespaces")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .env_clear()
            .current_dir("/")
            .spawn()
            .map_err(failed("start the program for"))?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that fails early reads nothing; its answer says more than our broken pipe.
            let _ = stdin.write_all(&serde_json::to_vec(&order).unwrap_or_default());
        }
        let done = child.wait_with_output().map_err(failed("wait for the program for"))?;
        match found(dir, options.pids) {
            Some(found) if done.status.success() => Ok(found),
            _ => Err(ShareError::Make(format!("{} ({})", String::from_utf8_lossy(&done.stdout).trim(), done.status))),
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ShareError> + Send + 'static,
) -> Result<T, ShareError> {
    let panicked = |error: tokio::task::JoinError| ShareError::Make(error.to_string());
    tokio::task::spawn_blocking(work).await.map_err(panicked)?
}

/// What is in the folder, if all that is wanted is.
fn found(dir: &Path, pids: bool) -> Option<Shared> {
    let (ipc, shm) = (dir.join(IPC), dir.join(SHM));
    let whole = netns::is_held(&ipc) && is_memory(&shm) && (!pids || has_pause(dir));
    whole.then(|| Shared { ipc, shm, pids: pids.then(|| dir.join(PIDS)) })
}

/// Whether memory is mounted there, in a place that was on disk or not.
pub(super) fn is_memory(at: &Path) -> bool {
    let device = |path: &Path| std::fs::metadata(path).ok().map(|it| it.dev());
    let own = device(at);
    own.is_some() && own != at.parent().and_then(device)
}

/// Whether the first process of the shared pid namespace lives.
pub(super) fn has_pause(dir: &Path) -> bool {
    pause_of(dir).is_some()
}

/// Its id. Where another process has its number by now, that one is in another namespace.
fn pause_of(dir: &Path) -> Option<i32> {
    let held = dir.join(PIDS);
    if !netns::is_held(&held) {
        return None;
    }
    let pid: i32 = std::fs::read_to_string(dir.join(PAUSE)).ok()?.trim().parse().ok()?;
    let same = |path: &Path| std::fs::metadata(path).ok().map(|it| (it.dev(), it.ino()));
    let there = same(Path::new(&format!("/proc/{pid}/ns/pid")))?;
    (Some(there) == same(&held)).then_some(pid)
}

fn take_away(dir: &Path) -> Result<(), ShareError> {
    let failed = |what| {
        let path = dir.to_owned();
        move |source| ShareError::Io { what, path, source }
    };
    if let Some(pid) = pause_of(dir) {
        pause::end(pid);
    }
    for name in [PIDS, IPC] {
        netns::release(&dir.join(name)).map_err(failed("let go of a namespace of"))?;
    }
    let shm = dir.join(SHM);
    while is_memory(&shm) {
        let unmounted = rustix::mount::unmount(&shm, rustix::mount::UnmountFlags::DETACH);
        unmounted.map_err(|error| failed("unmount the memory of")(error.into()))?;
    }
    let gone = |result: io::Result<()>| match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    // Never what lies below: behind a mount that would be somebody's files.
    gone(std::fs::remove_file(dir.join(PAUSE))).map_err(failed("remove"))?;
    for path in [shm, dir.join("root"), dir.to_owned()] {
        gone(std::fs::remove_dir(path)).map_err(failed("remove"))?;
    }
    Ok(())
}
