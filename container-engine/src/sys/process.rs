//! Becoming another program: what `std::process` cannot say (an environment in its own order, a path that was found
//! before), and namespaces that need a process to be made.
//!
//! Everything here is for processes with a single thread.

use std::{
    ffi::CString,
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        raw::c_char,
    },
};

/// Replaces this process; returns only if that fails.
pub fn execute(path: &CString, args: &[CString], environment: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| -> Vec<*const c_char> {
        strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (args, environment) = (pointers(args), pointers(environment));
    // SAFETY: both are arrays of terminated strings that end with a null pointer and outlive the call.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error()
}

/// Every signal to its default and none blocked: Rust ignores SIGPIPE, which the next program would inherit.
pub fn reset_signals() {
    for signal in 1..=64 {
        // SAFETY: SIG_DFL is a valid disposition; signals that cannot be set are refused by the kernel.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: an all-zero set is made valid by `sigemptyset`, and lives for the call.
    unsafe {
        let mut none = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// What the command starts has every signal at its default and none blocked.
pub fn with_default_signals(command: &mut std::process::Command) -> &mut std::process::Command {
    let reset = || {
        reset_signals();
        Ok(())
    };
    // SAFETY: between fork and exec only `signal` and `sigprocmask` are called, which are safe there.
    unsafe { std::os::unix::process::CommandExt::pre_exec(command, reset) }
}

/// Blocks every signal, so that they can be taken from a `signalfd`.
pub fn signals_as_file() -> io::Result<OwnedFd> {
    // SAFETY: the set is made valid by `sigfillset`, and lives for the calls; the result is a new descriptor or -1.
    unsafe {
        let mut all = std::mem::zeroed::<libc::sigset_t>();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut());
        let fd = libc::signalfd(-1, &raw const all, libc::SFD_CLOEXEC);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

/// The next signal of a `signalfd`.
pub fn next_signal(signals: &OwnedFd) -> io::Result<i32> {
    let mut record = [0_u8; size_of::<libc::signalfd_siginfo>()];
    let read = rustix::io::read(signals, &mut record)?;
    if read != record.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let number = u32::from_ne_bytes([record[0], record[1], record[2], record[3]]);
    i32::try_from(number).map_err(io::Error::other)
}

/// Joins (or makes) the session keyring of this name, so that the host's keys are out of reach. A kernel without keys
/// has none to hide.
pub fn join_keyring(name: &CString) -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: the name is a terminated string that outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) };
    let error = io::Error::last_os_error();
    if result >= 0 || error.raw_os_error() == Some(libc::ENOSYS) { Ok(()) } else { Err(error) }
}

/// Sets the size of the terminal behind `fd`.
pub fn set_terminal_size(fd: impl AsFd, columns: u16, rows: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one `winsize`, which lives for the call.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets a limit of a process; 0 is this one. `resource` is the kernel's number.
pub fn set_limit(pid: i32, resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    let nothing = std::ptr::null_mut::<libc::rlimit64>();
    // SAFETY: the new limit lives for the call; the old one is not asked for.
    let result = unsafe { libc::syscall(libc::SYS_prlimit64, pid, resource, &raw const limit, nothing) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes a user namespace with these mappings (lines of `/proc/PID/uid_map`), held by the descriptor alone.
pub fn user_namespace(uids: &str, gids: &str) -> io::Result<OwnedFd> {
    let (mut ready_read, mut ready_write) = io::pipe()?;
    let (mut done_read, done_write) = io::pipe()?;
    // SAFETY: one thread only, so the child may do what it likes; it makes system calls and ends.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    if pid == 0 {
        drop((ready_read, done_write));
        // SAFETY: no memory is involved.
        let result = unsafe { libc::unshare(libc::CLONE_NEWUSER) };
        let code = if result == 0 { 0 } else { io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL) };
        let _ = ready_write.write_all(&code.to_ne_bytes());
        // The parent closes its end when the namespace is held.
        let _ = done_read.read(&mut [0]);
        // SAFETY: ends the child with nothing of the parent's run.
        unsafe { libc::_exit(0) };
    }
    drop((ready_write, done_read));
    let result = (|| {
        let mut code = [0; 4];
        ready_read.read_exact(&mut code)?;
        match i32::from_ne_bytes(code) {
            0 => {}
            code => return Err(io::Error::from_raw_os_error(code)),
        }
        std::fs::write(format!("/proc/{pid}/uid_map"), uids)?;
        std::fs::write(format!("/proc/{pid}/gid_map"), gids)?;
        Ok(File::open(format!("/proc/{pid}/ns/user"))?.into())
    })();
    drop(done_write);
    // SAFETY: waits for the child made above; its status is not asked for.
    unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
    result
}

/// Sends a signal that has no name (a real-time one).
pub fn kill(pid: i32, signal: i32) -> rustix::io::Result<()> {
    // SAFETY: no memory is involved.
    let result = unsafe { libc::kill(pid, signal) };
    if result == 0 {
        Ok(())
    } else {
        Err(rustix::io::Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(rustix::io::Errno::INVAL))
    }
}
