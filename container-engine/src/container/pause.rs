//! The hidden verb `shared-namespaces`: makes what the containers of one owner share, and leaves a first process in a pid
//! namespace that is shared. That one does nothing but reap what nobody else does.
//!
//! Always true: the process that stays has no file but an empty folder, no network, no rights and nobody's user: who looks
//! at it from a container finds nothing of the host there.
//!
//! Elsewhere: who calls it, and what it left (`shared`).

use std::{
    ffi::OsString,
    fs::File,
    io::{self, PipeWriter, Read, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use rustix::{
    fs::{Mode, OFlags},
    mount::{MountFlags, MountPropagationFlags, UnmountFlags},
    process::{Pid, WaitOptions},
    thread::{CapabilitySet, CapabilitySets, Gid, Uid, UnshareFlags},
};
use serde::{Deserialize, Serialize};

use super::shared::{self, IPC, PAUSE, PIDS, SHM};
use crate::sys::{confine, fork, netns, process};

/// Longest order and answer.
const MAX: u64 = 64 << 10;
/// Nobody's.
const NOBODY: u32 = 65_535;
/// Killed after everything of the containers.
const OOM_SCORE: &str = "-998";

/// What is to be made in `dir`, which exists.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Order {
    /// Where.
    pub dir: PathBuf,
    /// Process ids too.
    pub pids: bool,
    /// Bytes of `/dev/shm`.
    pub shm_bytes: u64,
    /// Control groups of the process that stays.
    pub cgroups: Vec<PathBuf>,
}

/// Reads an [`Order`] on standard input; nothing on standard output means that it is done.
pub(crate) fn main(_args: &[OsString]) -> ExitCode {
    let mut json = Vec::new();
    let read = io::stdin().take(MAX).read_to_end(&mut json);
    let order = read.and_then(|_| serde_json::from_slice::<Order>(&json).map_err(io::Error::other));
    match order.map_err(|error| format!("the order is unreadable: {error}")).and_then(|order| make(&order)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            // Whoever asked sees the exit code at least.
            let _ = io::stdout().write_all(problem.as_bytes());
            ExitCode::FAILURE
        }
    }
}

fn make(order: &Order) -> Result<(), String> {
    let failed = |what: &str| {
        let place = order.dir.display().to_string();
        let what = what.to_owned();
        move |error: io::Error| format!("cannot {what} of {place}: {error}")
    };
    let at = |name: &str| order.dir.join(name);
    if !netns::is_held(&at(IPC)) {
        confine::unshare(UnshareFlags::NEWIPC).map_err(|error| failed("make the IPC namespace")(error.into()))?;
        hold(Path::new("/proc/self/ns/ipc"), &at(IPC)).map_err(failed("hold the IPC namespace"))?;
    }
    if !shared::is_memory(&at(SHM)) {
        shm(&at(SHM), order.shm_bytes).map_err(failed("mount /dev/shm"))?;
    }
    if order.pids && !shared::has_pause(&order.dir) {
        pids(order).map_err(failed("make the pid namespace"))?;
    }
    Ok(())
}

fn hold(namespace: &Path, at: &Path) -> io::Result<()> {
    netns::release(at)?;
    File::create_new(at)?;
    rustix::mount::mount_bind(namespace, at).inspect_err(|_| {
        let _ = std::fs::remove_file(at); // The first error is the one to report.
    })?;
    Ok(())
}

fn shm(at: &Path, bytes: u64) -> io::Result<()> {
    match std::fs::create_dir(at) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let options = std::ffi::CString::new(format!("mode=1777,size={bytes}")).map_err(io::Error::other)?;
    Ok(rustix::mount::mount("shm", at, "tmpfs", flags, options.as_c_str())?)
}

/// Leaves the first process of a new pid namespace.
fn pids(order: &Order) -> io::Result<()> {
    for dir in &order.cgroups {
        std::fs::write(dir.join("cgroup.procs"), "0")?;
    }
    let _ = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE); // Refused where the agent itself may not.
    let empty = order.dir.join("root");
    std::fs::create_dir_all(&empty)?;
    let (mut heard, told) = io::pipe()?;
    confine::unshare(UnshareFlags::NEWPID)?;
    let pid = match fork::fork()? {
        fork::Fork::Child => {
            drop(heard);
            fork::exit_now(stay(&empty, told));
        }
        fork::Fork::Parent(pid) => pid,
    };
    drop(told);
    let mut problem = String::new();
    heard.read_to_string(&mut problem)?;
    let held = if problem == "ok" {
        hold(Path::new(&format!("/proc/{pid}/ns/pid")), &order.dir.join(PIDS))
            .and_then(|()| std::fs::write(order.dir.join(PAUSE), pid.to_string()))
    } else {
        Err(io::Error::other(problem))
    };
    held.inspect_err(|_| {
        let _ = fork::kill(pid, libc::SIGKILL); // The first error is the one to report.
    })
}

/// The first process of the namespace; returns only where that is not to be.
fn stay(empty: &Path, mut told: PipeWriter) -> i32 {
    let signals = match confine_self(empty).and_then(|()| process::signals_as_file()) {
        Ok(signals) => signals,
        Err(error) => {
            let _ = told.write_all(format!("the first process cannot be confined: {error}").as_bytes());
            return 1;
        }
    };
    if told.write_all(b"ok").is_err() {
        return 1;
    }
    drop(told);
    loop {
        match process::next_signal(&signals) {
            Ok(libc::SIGCHLD) => while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {},
            // Whoever means it sends SIGKILL from outside; nobody inside ends the others.
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return 1,
        }
    }
}

fn confine_self(empty: &Path) -> io::Result<()> {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    drop(null);
    rustix::process::setsid()?;
    confine::unshare(UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWUTS)?;
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("none", empty, "tmpfs", flags, c"size=4k,mode=555")?;
    rustix::process::chdir(empty)?;
    match rustix::process::pivot_root(".", ".") {
        Ok(()) => rustix::mount::unmount(".", UnmountFlags::DETACH)?,
        // The root is an initramfs, which cannot be left: it is covered.
        Err(rustix::io::Errno::INVAL) => {
            rustix::mount::mount_move(".", "/")?;
            rustix::process::chroot(".")?;
        }
        Err(error) => return Err(error.into()),
    }
    rustix::process::chdir("/")?;
    for one in CapabilitySet::all().iter() {
        let _ = rustix::thread::remove_capability_from_bounding_set(one); // Newer than this kernel.
    }
    let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    rustix::thread::set_capabilities(None, sets)?;
    rustix::thread::set_no_new_privs(true)?;
    Ok(())
}

/// Ends the first process, and with it everything in its namespace.
pub(super) fn end(pid: i32) {
    let _ = fork::kill(pid, libc::SIGKILL); // It has ended by itself.
    if let Some(pid) = Pid::from_raw(pid) {
        // Ours only where we inherit what has no parent.
        let _ = rustix::process::waitpid(Some(pid), WaitOptions::empty());
    }
}
