//! What a shim leaves on disk: the exit record, and which processes are its own.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// Name of a shim's record in the container's run directory.
pub(super) const SHIM_RECORD: &str = "shim.json";
/// Name of its socket.
pub(super) const SOCKET: &str = "shim.sock";
/// Largest record, bytes.
const MAX_RECORD: u64 = 64 << 10;

/// Why a container ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Its first process returned, or a signal killed it.
    Exited,
    /// The kernel killed some process of it for want of memory.
    OomKilled,
    /// Nobody started it within the limit.
    NeverStarted,
    /// Its shim was killed, so its exit code is not known.
    ShimLost,
    /// Of a newer version.
    #[serde(other)]
    Unknown,
}

/// How a container ended: `exit.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Exit code; 128 and the signal's number where a signal killed it.
    pub code: i32,
    /// The signal that killed it.
    #[serde(default)]
    pub signal: Option<i32>,
    /// Whether the kernel killed any process of it for want of memory.
    #[serde(default)]
    pub oom_killed: bool,
    /// When it was started, ns since 1970 by the host's clock; 0 if it never was.
    pub started_at_ns: u64,
    /// When it ended, likewise.
    pub finished_at_ns: u64,
    /// Why.
    pub reason: Reason,
}

impl ExitRecord {
    /// Reads `path`; `None` where the container has not ended or the file is damaged beyond reading.
    pub fn read(path: &Path) -> io::Result<Option<Self>> {
        match board::durable::read(path, MAX_RECORD) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        }
    }

    /// Writes it durably: afterwards it is on disk, whole.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        board::durable::write(path, &serde_json::to_vec(self)?, 0o600)
    }
}

/// When a process was started, in ticks since boot, and the boot: with the process id it names one process for ever.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartTime {
    /// Field 22 of `/proc/PID/stat`.
    pub ticks: u64,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot: String,
}

impl StartTime {
    /// Of a process that is there now.
    pub fn of(pid: i32) -> io::Result<Self> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        let stat = fs::read(format!("/proc/{pid}/stat"))?;
        let (ticks, _) = parse_stat(&stat).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
        Ok(Self { ticks, boot })
    }

    /// Whether this very process is still there and not a zombie.
    pub fn lives(&self, pid: i32) -> bool {
        pid > 0
            && Self::of(pid).is_ok_and(|now| now == *self)
            && fs::read(format!("/proc/{pid}/stat"))
                .is_ok_and(|stat| parse_stat(&stat).is_some_and(|(_, state)| !matches!(state, b'Z' | b'X')))
    }
}

/// Start time and state. The command's name stands in parentheses and may hold any byte, parentheses too.
fn parse_stat(stat: &[u8]) -> Option<(u64, u8)> {
    let after = stat.iter().rposition(|byte| *byte == b')')?;
    let mut fields = stat.get(after + 1..)?.split(|byte| *byte == b' ').filter(|field| !field.is_empty());
    let state = *fields.next()?.first()?;
    // The state is field 3.
    let ticks = std::str::from_utf8(fields.nth(18)?).ok()?.parse().ok()?;
    Some((ticks, state))
}

/// Which processes and cgroups belong to a container: `shim.json`, for whoever comes after a shim that was killed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimRecord {
    /// The container.
    pub id: String,
    /// The shim's process.
    pub shim_pid: i32,
    /// When it was started.
    pub shim_start: StartTime,
    /// The container's first process, in the host's namespace.
    pub pid: i32,
    /// When it was started.
    pub start: StartTime,
    /// When the container was started, ns since 1970; 0 before.
    pub started_at_ns: u64,
    /// The container's cgroup, in each hierarchy that matters.
    pub cgroups: Vec<PathBuf>,
    /// Where its exit record goes.
    pub exit_file: PathBuf,
}

impl ShimRecord {
    /// Reads the one in `run_dir`.
    pub fn read(run_dir: &Path) -> io::Result<Option<Self>> {
        match board::durable::read(&run_dir.join(SHIM_RECORD), MAX_RECORD) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        }
    }

    /// Replaces the one in `run_dir`, whole or not at all. Not synced: processes do not outlive a power cut either.
    pub(super) fn write(&self, run_dir: &Path) -> io::Result<()> {
        let beside = run_dir.join("shim.json.new");
        fs::write(&beside, serde_json::to_vec(self)?)?;
        fs::rename(beside, run_dir.join(SHIM_RECORD))
    }
}

/// Now, ns since 1970.
pub(crate) fn now_ns() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |it| u64::try_from(it.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_by_its_start_time() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let start = StartTime::of(pid).unwrap();
        assert!(start.lives(pid));
        assert!(!StartTime { ticks: start.ticks + 1, ..start.clone() }.lives(pid));
        assert!(!StartTime { boot: "another".into(), ..start }.lives(pid));
    }

    #[test]
    fn the_name_of_a_command_may_be_anything() {
        #[track_caller]
        fn check(stat: &str, want: Option<(u64, u8)>) {
            assert_eq!(parse_stat(stat.as_bytes()), want, "{stat:?}");
        }
        let rest = "S 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 777 22";
        check(&format!("1 (sh) {rest}"), Some((777, b'S')));
        check(&format!("1 (a) R 9 (b) {rest}"), Some((777, b'S')));
        check("1 (sh) S 2 3", None);
        check("", None);
    }

    #[test]
    fn records_are_written_and_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("exit.json");
        assert_eq!(ExitRecord::read(&path).unwrap(), None);
        let record = ExitRecord {
            code: 137,
            signal: Some(9),
            oom_killed: true,
            started_at_ns: 1,
            finished_at_ns: 2,
            reason: Reason::OomKilled,
        };
        record.write(&path).unwrap();
        assert_eq!(ExitRecord::read(&path).unwrap(), Some(record));
        fs::write(&path, b"{").unwrap();
        assert_eq!(ExitRecord::read(&path).unwrap(), None);
        let newer = br#"{"code":1,"started_at_ns":1,"finished_at_ns":2,"reason":"struck_by_lightning","new":1}"#;
        fs::write(&path, newer).unwrap();
        assert_eq!(ExitRecord::read(&path).unwrap().unwrap().reason, Reason::Unknown);
    }
}
