//! What is left of a container, told from its run directory alone: for the engine's start, and for when a shim's socket
//! has gone silent.

use std::{
    io,
    path::{Path, PathBuf},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, PidfdFlags, pidfd_open},
    time::Timespec,
};

use super::{
    record::{ExitRecord, Reason, ShimRecord, now_ns},
    server::cgroups,
};

/// What [`recover`] found.
#[derive(Debug)]
pub enum Recovered {
    /// The shim lives: connect to it.
    Alive(ShimRecord),
    /// The container has ended, and its record says how.
    Exited(ExitRecord),
    /// The shim was killed. The container may still run, with nobody to read its output: end it.
    Lost(Lost),
    /// No shim got as far as creating a container here.
    Nothing,
}

/// A container whose shim was killed.
#[derive(Debug)]
pub struct Lost {
    /// What the shim left.
    pub record: ShimRecord,
    /// Whether its first process still runs.
    pub container_lives: bool,
}

/// Looks into `run_dir`. `exit_file` is where the exit record would be.
///
/// Errors: a file that is there cannot be read. Blocking, briefly.
pub fn recover(run_dir: &Path, exit_file: &Path) -> io::Result<Recovered> {
    let record = ShimRecord::read(run_dir)?;
    if let Some(record) = &record
        && record.shim_start.lives(record.shim_pid)
    {
        return Ok(Recovered::Alive(record.clone()));
    }
    // In this order: a shim that was just ending wrote the record before it went.
    // In the run directory it lies when the disk was full.
    for path in [exit_file, &run_dir.join("exit.json")] {
        if let Some(exit) = ExitRecord::read(path)? {
            return Ok(Recovered::Exited(exit));
        }
    }
    Ok(record.map_or(Recovered::Nothing, |record| {
        let container_lives = record.start.lives(record.pid);
        Recovered::Lost(Lost { record, container_lives })
    }))
}

/// The same for a shim that has just broken off: one that is being killed closes its socket a moment before it is gone,
/// and is waited for. Blocking, for two seconds at most.
pub fn recover_broken(run_dir: &Path, exit_file: &Path) -> io::Result<Recovered> {
    let found = recover(run_dir, exit_file)?;
    let Recovered::Alive(record) = &found else { return Ok(found) };
    if let Some(pid) = Pid::from_raw(record.shim_pid)
        && let Ok(process) = pidfd_open(pid, PidfdFlags::empty())
        && record.shim_start.lives(record.shim_pid)
    {
        let mut fds = [PollFd::new(&process, PollFlags::IN)];
        // Whether it is gone, the second look tells.
        let _ = poll(&mut fds, Some(&Timespec { tv_sec: 2, tv_nsec: 0 }));
    }
    recover(run_dir, exit_file)
}

impl Lost {
    /// Kills what is left of the container and writes its exit record: code 137, reason `shim_lost`.
    ///
    /// Errors: processes would not die within five seconds, or the record could not be written; then call it again.
    /// Blocking. The runtime's own state and the mounts stay: `delete --force` and the engine see to those.
    pub fn end(&self) -> io::Result<ExitRecord> {
        if self.record.start.lives(self.record.pid) {
            cgroups::kill_process(self.record.pid);
        }
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while cgroups::kill_all(&self.record.cgroups) || self.record.start.lives(self.record.pid) {
            if std::time::Instant::now() > deadline {
                let paths: Vec<PathBuf> = self.record.cgroups.clone();
                return Err(io::Error::other(format!("processes in {paths:?} do not die")));
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let exit = ExitRecord {
            code: 137,
            signal: Some(9),
            oom_killed: false,
            started_at_ns: self.record.started_at_ns,
            finished_at_ns: now_ns(),
            reason: Reason::ShimLost,
        };
        exit.write(&self.record.exit_file)?;
        Ok(exit)
    }
}
