//! Processes: a fork that goes on in this program, and signals as a descriptor.

use std::{
    io,
    os::fd::{FromRawFd, OwnedFd},
};

/// Forks this process. `true` in the child.
///
/// Refused where there are threads: their locks would stay locked in the child, where only the caller's thread exists.
pub fn fork() -> io::Result<Fork> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("this process has threads, and a fork would lose them"));
    }
    // SAFETY: with one thread, as just checked, the child has all that the parent had, and may go on as it likes.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(pid)),
    }
}

/// Which of the two goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    /// The new process.
    Child,
    /// The old one, and the new one's id.
    Parent(i32),
}

/// Ends this process at once, without the destructors and handlers that belong to the one it was forked from.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit(2) takes an integer and does not come back.
    unsafe { libc::_exit(code) }
}

/// Has this process killed by SIGALRM unless it has ended by then.
pub fn end_within(limit: std::time::Duration) {
    let seconds = libc::c_uint::try_from(limit.as_secs().max(1)).unwrap_or(libc::c_uint::MAX);
    // SAFETY: alarm(2) takes an integer; nobody in a process that is to end has another use for the one alarm.
    unsafe { libc::alarm(seconds) };
}

/// Holds back SIGCHLD and gives a descriptor that is readable when there was one. Not inherited by what is executed;
/// the holding back is: see [`unblock_signals`].
pub fn child_signals() -> io::Result<OwnedFd> {
    // SAFETY: an all-zero set is valid memory for sigemptyset to fill; the calls read and write that set alone.
    let fd = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) < 0 {
            return Err(io::Error::last_os_error());
        }
        libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made `fd` for us, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Lets every signal through, as a program expects at its start.
pub fn unblock_signals() {
    // SAFETY: an all-zero set is valid memory for sigemptyset to fill; the calls read and write that set alone.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// Sends any signal, real-time ones too, to one process.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    if pid <= 0 {
        return Err(io::ErrorKind::InvalidInput.into()); // Would mean a group, or everybody.
    }
    // SAFETY: kill(2) takes two integers.
    if unsafe { libc::kill(pid, signal) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
