//! Whether the kernel killed a process of the container for want of memory.
//!
//! On v2 the file `memory.events` itself is polled: the kernel raises `EPOLLPRI` on it at each change (cgroup-v2.rst), so
//! no inotify instance is needed, of which a user has 128. On v1 an eventfd is registered (memcg-v1, section 10).

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::event::{EventfdFlags, epoll::EventFlags, eventfd};

/// Watches one cgroup.
#[derive(Debug)]
pub(super) struct OomWatch {
    fd: OwnedFd,
    counter: PathBuf,
    pub(super) flags: EventFlags,
    /// As counted last.
    pub(super) kills: u64,
    before: u64,
}

impl OomWatch {
    /// Watches whichever of these has the memory controller.
    pub(super) fn new(cgroups: &[PathBuf]) -> io::Result<Self> {
        for dir in cgroups {
            let (v2, v1) = (dir.join("memory.events"), dir.join("memory.oom_control"));
            if let Ok(file) = File::open(&v2) {
                let mut watch = Self { fd: file.into(), counter: v2, flags: EventFlags::PRI, kills: 0, before: 0 };
                watch.before = watch.count();
                return Ok(watch);
            }
            if let Ok(control) = File::open(&v1) {
                let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
                let line = format!("{} {}", fd.as_raw_fd(), control.as_raw_fd());
                fs::write(dir.join("cgroup.event_control"), line)?;
                let mut watch = Self { fd, counter: v1, flags: EventFlags::IN, kills: 0, before: 0 };
                watch.before = watch.count();
                return Ok(watch);
            }
        }
        Err(io::ErrorKind::NotFound.into())
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Counts anew; whether there were more.
    pub(super) fn look(&mut self) -> bool {
        if self.flags == EventFlags::IN {
            let _ = rustix::io::read(&self.fd, &mut [0; 8]);
        } else {
            // What makes the descriptor quiet again is a read of it.
            let _ = rustix::io::pread(&self.fd, &mut [0; 256], 0);
        }
        // A cgroup that is gone counts nothing.
        let kills = self.count().saturating_sub(self.before).max(self.kills);
        std::mem::replace(&mut self.kills, kills) < kills
    }

    fn count(&self) -> u64 {
        oom_kills(&self.counter)
    }
}

fn oom_kills(path: &Path) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let count = text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok());
    count.unwrap_or(0)
}
