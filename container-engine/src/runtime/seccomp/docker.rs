//! Docker's default profile: what moby's `default.json` says for the machines this program is made for.
//!
//! Everything is refused with EPERM but what is listed. A test compares it with moby's file where that is at hand.

use oci_spec::runtime::{Arch, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompOperator};

use super::profile::{ArchMap, Condition, Profile, Rule};

/// The profile that containers get which ask for none.
pub fn docker_default() -> Profile {
    let map = |architecture, sub: &[Arch]| ArchMap { architecture, sub_architectures: Some(sub.to_vec()) };
    let argument = |operator, value, second| Some(vec![argument(operator, value, second)]);
    let mut rules: Vec<Rule> = GROUPS.iter().map(Group::rule).collect();
    rules.push(allowed("socket", argument(LinuxSeccompOperator::ScmpCmpLt, 3, None)));
    let equal = |value: &u64| argument(LinuxSeccompOperator::ScmpCmpEq, *value, None);
    rules.extend(SOCKETS.iter().map(|family| allowed("socket", equal(family))));
    rules.extend(PERSONALITIES.iter().map(|persona| allowed("personality", equal(persona))));
    Profile {
        default_action: LinuxSeccompAction::ScmpActErrno,
        default_errno_ret: Some(1),
        architectures: None,
        arch_map: Some(vec![
            map(Arch::ScmpArchX86_64, &[Arch::ScmpArchX86, Arch::ScmpArchX32]),
            map(Arch::ScmpArchAarch64, &[Arch::ScmpArchArm]),
            map(Arch::ScmpArchRiscv64, &[]),
        ]),
        flags: None,
        listener_path: None,
        listener_metadata: None,
        syscalls: Some(rules),
    }
}

fn allowed(name: &str, args: Option<Vec<LinuxSeccompArg>>) -> Rule {
    Rule {
        name: None,
        names: Some(vec![name.to_owned()]),
        action: LinuxSeccompAction::ScmpActAllow,
        errno_ret: None,
        args,
        includes: None,
        excludes: None,
    }
}

fn argument(operator: LinuxSeccompOperator, value: u64, second: Option<u64>) -> LinuxSeccompArg {
    let builder = LinuxSeccompArgBuilder::default().index(0_usize).value(value).op(operator);
    let builder = if let Some(second) = second { builder.value_two(second) } else { builder };
    // Every field that has no default is set.
    builder.build().unwrap_or_else(|error| unreachable!("an argument without {error}"))
}

/// Calls that are allowed (or, with `errno`, refused in another way) on conditions.
struct Group {
    caps: &'static [&'static str],
    arches: &'static [&'static str],
    without: &'static [&'static str],
    kernel: Option<&'static str>,
    errno: Option<u32>,
    /// Only without new namespaces: the flags of `clone`.
    namespaces: bool,
    names: &'static str,
}

impl Group {
    fn rule(&self) -> Rule {
        let list = |items: &[&str]| -> Option<Vec<String>> {
            (!items.is_empty()).then(|| items.iter().map(|&item| item.to_owned()).collect())
        };
        let includes =
            Condition { caps: list(self.caps), arches: list(self.arches), min_kernel: self.kernel.map(str::to_owned) };
        let excludes = Condition { caps: list(self.without), arches: None, min_kernel: None };
        let flags = || vec![argument(LinuxSeccompOperator::ScmpCmpMaskedEq, NEW_NAMESPACES, None)];
        Rule {
            name: None,
            names: Some(self.names.split_ascii_whitespace().map(str::to_owned).collect()),
            action: if self.errno.is_some() {
                LinuxSeccompAction::ScmpActErrno
            } else {
                LinuxSeccompAction::ScmpActAllow
            },
            errno_ret: self.errno,
            args: self.namespaces.then(flags),
            includes: (includes != Condition::default()).then_some(includes),
            excludes: (excludes != Condition::default()).then_some(excludes),
        }
    }
}

/// The flags of `clone` that make namespaces (`CLONE_NEWNS` to `CLONE_NEWNET`, `CLONE_NEWCGROUP`).
const NEW_NAMESPACES: u64 = 0x7e02_0000;
/// Families of sockets besides the first three: not `AF_ALG`, not `AF_VSOCK`.
const SOCKETS: &[u64] =
    &[7, 8, 9, 10, 13, 14, 15, 16, 17, 18, 21, 22, 24, 26, 27, 28, 29, 30, 31, 32, 33, 35, 36, 39, 41, 42, 43, 44, 45];
/// `personality`: the plain ones, and asking.
const PERSONALITIES: &[u64] = &[0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];

#[rustfmt::skip]
const GROUPS: &[Group] = &[
    Group {
        caps: &[],
        arches: &[],
        without: &[],
        kernel: None,
        errno: None,
        namespaces: false,
        names: "_llseek _newselect accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown \
         chown32 clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 \
         clock_nanosleep clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2 dup3 \
         epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd \
         eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark \
         fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock \
         fork fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex \
         futex_requeue futex_time64 futex_wait futex_waitv futex_wake futimesat get_robust_list get_thread_area getcpu \
         getcwd getdents getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer \
         getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresgid32 getresuid getresuid32 \
         getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid getuid32 getxattr getxattrat \
         inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents \
         io_pgetevents_time64 io_setup io_submit ioctl ioprio_get ioprio_set ipc kill landlock_add_rule \
         landlock_create_ruleset landlock_restrict_self lchown lchown32 lgetxattr link linkat listen listmount listxattr \
         listxattrat llistxattr lremovexattr lseek lsetxattr lstat lstat64 madvise map_shadow_stack membarrier \
         memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mmap2 mprotect \
         mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 \
         mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep \
         newfstatat open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect \
         poll ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64 process_mrelease pselect6 pselect6_time64 \
         pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 \
         recvmsg remap_file_pages removexattr removexattrat rename renameat renameat2 restart_syscall riscv_hwprobe rmdir \
         rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait \
         rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity \
         sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 \
         sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop \
         semtimedop semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto set_robust_list set_thread_area \
         set_tid_address setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid \
         setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid \
         setsockopt setuid setuid32 setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 \
         sigprocmask sigreturn socketcall socketpair splice stat stat64 statfs statfs64 statmount statx symlink symlinkat \
         sync sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime \
         timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime \
         timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat uretprobe utime \
         utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write writev",
    },
    Group {
        caps: &[],
        arches: &[],
        without: &[],
        kernel: Some("4.8"),
        errno: None,
        namespaces: false,
        names: "process_vm_readv process_vm_writev ptrace",
    },
    Group {
        caps: &[],
        arches: &["arm", "arm64"],
        without: &[],
        kernel: None,
        errno: None,
        namespaces: false,
        names: "arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls sync_file_range2",
    },
    Group {
        caps: &[],
        arches: &["amd64", "x32"],
        without: &[],
        kernel: None,
        errno: None,
        namespaces: false,
        names: "arch_prctl",
    },
    Group {
        caps: &[],
        arches: &["amd64", "x32", "x86"],
        without: &[],
        kernel: None,
        errno: None,
        namespaces: false,
        names: "modify_ldt",
    },
    Group {
        caps: &["CAP_DAC_READ_SEARCH"],
        arches: &[],
        without: &[],
        kernel: None,
        errno: None,
        namespaces: false,
        names: "open_by_handle_at",
    },
    Group {
        caps: &["CAP_SYS_ADMIN"],
        arches: &[],
        without: &[],
        kernel: None,
        errno: None,
        namespaces: false,
        names: "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr lsm_list_modules \
         lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname \
         sethostname setns syslog umount umount2 unshare",
    },
    Group {
        caps: &[],
        arches: &[],
        without: &["CAP_SYS_ADMIN"],
        kernel: None,
        errno: None,
        namespaces: true,
        names: "clone",
    },
    Group {
        caps: &[],
        arches: &[],
        without: &["CAP_SYS_ADMIN"],
        kernel: None,
        errno: Some(38),
        namespaces: false,
        names: "clone3",
    },
    Group {
        caps: &["CAP_SYS_BOOT"],
        arches: &[],
        without: &[],
        kernel: None,
        errno: None,
        namespaces: false,
        names: "reboot",
    },
    Group {
        caps: &["CAP_SYS_CHROOT"],
        arches: &[],
        without: &[],
        kernel: None,
        errno: None,
        namespaces: false,
        names: "chroot",
    },
    Group {
        caps: &["CAP_SYS_MODULE"],
        arches: &[],
        without: &[],
        kernel: None,
        errno: None,
        namespaces: false,
        names: "delete_module finit_module init_module",
    },
    Group {
        caps: &["CAP_SYS_PACCT"],
        arches: &[],
        without: &[],
        kernel: None,
        errno: None,
        namespaces: false,
        names: "acct",
    },
    Group {
        caps: &["CAP_SYS_PTRACE"],
        arches: &[],
        without: &[],
        kernel: None,
        errno: None,
        namespaces: false,
        names: "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace",
    },
    Group {
        caps: &["CAP_SYS_RAWIO"],
        arches: &[],
        without: &[],
        kernel: None,
        errno: None,
        namespaces: false,
        names: "ioperm iopl",
    },
    Group {
        caps: &["CAP_SYS_TIME"],
        arches: &[],
        without: &[],
        kernel: None,
        errno: None,
        namespaces: false,
        names: "clock_settime clock_settime64 settimeofday stime",
    },
    Group {
        caps: &["CAP_SYS_TTY_CONFIG"],
        arches: &[],
        without: &[],
        kernel: None,
        errno: None,
        namespaces: false,
        names: "vhangup",
    },
    Group {
        caps: &["CAP_SYS_NICE"],
        arches: &[],
        without: &[],
        kernel: None,
        errno: None,
        namespaces: false,
        names: "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    },
    Group {
        caps: &["CAP_SYSLOG"],
        arches: &[],
        without: &[],
        kernel: None,
        errno: None,
        namespaces: false,
        names: "syslog",
    },
    Group {
        caps: &["CAP_BPF"],
        arches: &[],
        without: &[],
        kernel: None,
        errno: None,
        namespaces: false,
        names: "bpf",
    },
    Group {
        caps: &["CAP_PERFMON"],
        arches: &[],
        without: &[],
        kernel: None,
        errno: None,
        namespaces: false,
        names: "perf_event_open",
    },
];
