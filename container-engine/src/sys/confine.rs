//! Giving up rights: namespaces of one's own and a system call filter that leaves files and memory.

use rustix::{io::Errno, thread::UnshareFlags};

/// Moves this process (of a single thread) into new namespaces.
pub fn unshare(flags: UnshareFlags) -> rustix::io::Result<()> {
    // SAFETY: no CLONE_FILES in `flags` of any caller: descriptors stay those that Rust's owners know.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

/// System calls that read, write, make and name files, handle memory, and end. Nothing opens a socket, sends a signal
/// to another process, starts a program, mounts, or looks at processes.
const ALLOWED: &[libc::c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_symlinkat,
    libc::SYS_linkat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_readlinkat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_utimensat,
    libc::SYS_ftruncate,
    libc::SYS_fsetxattr,
    libc::SYS_fgetxattr,
    libc::SYS_getdents64,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Allows the system calls above and new threads, for this process from now on; the others fail: `clone3` as unknown
/// (the C library then uses `clone`), the rest as not permitted. Needs `no_new_privs`. ENOSYS: the kernel has no filters.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub fn files_and_memory_only() -> rustix::io::Result<()> {
    let mut program = program();
    let filter = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| Errno::TOOBIG)?,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: `filter` names `program` and its length; both live for the call, which copies them.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const filter) };
    if result == 0 { Ok(()) } else { Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)) }
}

/// There is no list for this processor: better no unpacking than an unconfined one.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub fn files_and_memory_only() -> rustix::io::Result<()> {
    Err(Errno::NOTSUP)
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn program() -> Vec<libc::sock_filter> {
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const ANY_BIT: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    #[allow(clippy::cast_possible_truncation)] // Codes have 16 bits.
    let op = |code: u32, k: u32, jt, jf| libc::sock_filter { code: code as u16, jt, jf, k };
    let refuse = |error: i32| op(RETURN, libc::SECCOMP_RET_ERRNO | error.cast_unsigned(), 0, 0);
    let number = |call: libc::c_long| u32::try_from(call).unwrap_or(u32::MAX);
    // Offsets in `seccomp_data`: number 0, architecture 4, first argument 16.
    let mut program = vec![
        op(LOAD, 4, 0, 0),
        op(EQUAL, ARCHITECTURE, 1, 0),
        op(RETURN, libc::SECCOMP_RET_KILL_PROCESS, 0, 0),
        op(LOAD, 0, 0, 0),
        op(EQUAL, number(libc::SYS_clone3), 0, 1),
        refuse(libc::ENOSYS),
        op(EQUAL, number(libc::SYS_clone), 0, 4),
        op(LOAD, 16, 0, 0),
        op(ANY_BIT, libc::CLONE_THREAD.cast_unsigned(), 0, 1),
        op(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0),
        refuse(libc::EPERM),
    ];
    for call in ALLOWED {
        program.push(op(EQUAL, number(*call), 0, 1));
        program.push(op(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0));
    }
    program.push(refuse(libc::EPERM));
    program
}
