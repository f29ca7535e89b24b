//! What is kept of a container between two calls: `ROOT/ID/state.json`, beside the socket that `start` knocks on.
//!
//! Written whole and renamed. Where a container stands is not written down but looked up: the socket is there until it
//! was started, the process is alive or not, the control group is frozen or not.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::Failure;
use crate::runtime::{Status, cgroup::Cgroup};

/// The socket on which a created container waits.
pub(super) const SOCKET: &str = "notify.sock";

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Record {
    pub id: String,
    /// 0 until there is a process.
    pub pid: i32,
    /// When that process began, in ticks since boot: with the id it names the process for good.
    pub started: u64,
    pub bundle: PathBuf,
    pub rootfs: PathBuf,
    pub cgroup: PathBuf,
    pub created: String,
    pub owner: u32,
    #[serde(default)]
    pub annotations: HashMap<String, String>,
}

impl Record {
    pub fn folder(root: &Path, id: &str) -> Result<PathBuf, Failure> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'+' | b'-' | b'.');
        if id.is_empty() || id.len() > 1024 || id == "." || id == ".." || !id.bytes().all(plain) {
            return Err(Failure::new(format!("invalid container ID format: {id:?}")));
        }
        Ok(root.join(id))
    }

    pub fn load(root: &Path, id: &str) -> Result<Self, Failure> {
        let path = Self::folder(root, id)?.join("state.json");
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| Failure::at(&path, error)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Failure::new("container does not exist")),
            Err(error) => Err(Failure::at(&path, error)),
        }
    }

    pub fn save(&self, root: &Path) -> Result<(), Failure> {
        let folder = Self::folder(root, &self.id)?;
        let (new, path) = (folder.join("state.json.new"), folder.join("state.json"));
        let bytes = serde_json::to_vec(self).map_err(|error| Failure::at(&path, error))?;
        fs::write(&new, bytes).and_then(|()| fs::rename(&new, &path)).map_err(|error| Failure::at(&path, error))
    }

    pub fn is_alive(&self) -> bool {
        self.pid > 0 && process_start(self.pid) == Some(self.started)
    }

    pub fn status(&self, root: &Path) -> Status {
        if self.pid == 0 {
            return Status::Creating;
        }
        if !self.is_alive() {
            return Status::Stopped;
        }
        if root.join(&self.id).join(SOCKET).exists() {
            return Status::Created;
        }
        let frozen = Cgroup::new(&self.cgroup).is_ok_and(|cgroup| cgroup.is_frozen());
        if frozen { Status::Paused } else { Status::Running }
    }

    pub fn cgroup(&self) -> Result<Cgroup, Failure> {
        Cgroup::new(&self.cgroup).map_err(Failure::from_error)
    }

    /// The state as the OCI has it, with what runc adds.
    pub fn json(&self, root: &Path) -> serde_json::Value {
        let status = self.status(root);
        serde_json::json!({
            "ociVersion": super::OCI_VERSION,
            "id": self.id,
            "pid": if status == Status::Stopped { 0 } else { self.pid },
            "status": name(status),
            "bundle": self.bundle,
            "rootfs": self.rootfs,
            "created": self.created,
            "annotations": self.annotations,
            "owner": if self.owner == 0 { "root".to_owned() } else { self.owner.to_string() },
        })
    }
}

pub(super) fn name(status: Status) -> &'static str {
    match status {
        Status::Creating => "creating",
        Status::Created => "created",
        Status::Running => "running",
        Status::Paused => "paused",
        Status::Stopped => "stopped",
    }
}

/// When a process began; `None` when it is gone or has only to be reaped.
pub(super) fn process_start(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in brackets and may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_names_of_folders() {
        for (id, good) in [("a", true), ("A.b_c+d-1", true), ("", false), ("..", false), ("a/b", false), ("a b", false)]
        {
            assert_eq!(Record::folder(Path::new("/r"), id).is_ok(), good, "{id:?}");
        }
    }

    #[test]
    fn this_process_is_alive() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(process_start(own).is_some_and(|start| start > 0));
        assert_eq!(process_start(i32::MAX), None);
    }
}
