//! A user namespace without a process in it: only its mapping of ids, as id-mapped mounts want it.

use std::{
    fs::{self, File},
    io,
    os::fd::OwnedFd,
};

/// The namespace in which ids 0 to `size - 1` are `host` and up.
pub fn with_mapping(host: u32, size: u32) -> io::Result<OwnedFd> {
    let flags = libc::CLONE_NEWUSER | libc::SIGCHLD;
    let none = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: without CLONE_VM this is fork(2). The child makes no use of memory or locks: it waits and ends.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, none, none, none, none) };
    if pid == 0 {
        // SAFETY: both may be called between fork and exec; SIGKILL ends the wait.
        unsafe {
            libc::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
            loop {
                libc::pause();
            }
        }
    }
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    let map = format!("0 {host} {size}\n");
    let made = fs::write(format!("/proc/{pid}/uid_map"), &map)
        .and_then(|()| fs::write(format!("/proc/{pid}/gid_map"), &map))
        .and_then(|()| File::open(format!("/proc/{pid}/ns/user")));
    // SAFETY: `pid` is our child, not yet waited for, so the number is still its own.
    unsafe {
        let pid = libc::pid_t::try_from(pid).unwrap_or(0);
        if pid > 0 {
            libc::kill(pid, libc::SIGKILL);
            libc::waitpid(pid, std::ptr::null_mut(), 0);
        }
    }
    made.map(OwnedFd::from)
}
