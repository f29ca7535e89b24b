//! The kinds of programs a kernel runs, with the numbers of their system calls.

use std::str::FromStr;

use oci_spec::runtime::Arch;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Architecture {
    X86_64,
    X32,
    X86,
    Aarch64,
    Arm,
}

/// Set in the numbers of the x32 kind, which shares everything else with `x86_64`.
pub(super) const X32_BIT: u32 = 0x4000_0000;

impl Architecture {
    /// This machine's own.
    pub fn native() -> Option<Self> {
        match std::env::consts::ARCH {
            "x86_64" => Some(Self::X86_64),
            "aarch64" => Some(Self::Aarch64),
            "x86" => Some(Self::X86),
            "arm" => Some(Self::Arm),
            _ => None,
        }
    }

    /// `None`: a kind that none of the machines this program is made for can run.
    pub fn of(arch: Arch) -> Option<Self> {
        match arch {
            Arch::ScmpArchNative => Self::native(),
            Arch::ScmpArchX86_64 => Some(Self::X86_64),
            Arch::ScmpArchX32 => Some(Self::X32),
            Arch::ScmpArchX86 => Some(Self::X86),
            Arch::ScmpArchAarch64 => Some(Self::Aarch64),
            Arch::ScmpArchArm => Some(Self::Arm),
            _ => None,
        }
    }

    /// The kernel's `AUDIT_ARCH_…`.
    pub fn token(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => 0xc000_003e,
            Self::X86 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
            Self::Arm => 0x4000_0028,
        }
    }

    /// Whether arguments have 64 bits that are looked at.
    pub fn is_wide(self) -> bool {
        matches!(self, Self::X86_64 | Self::Aarch64)
    }

    /// The number of a system call, if this kind has it.
    pub fn number(self, name: &str) -> Option<u32> {
        let number = match self {
            Self::X86_64 | Self::X32 => syscalls::x86_64::Sysno::from_str(name).ok().map(|call| call.id()),
            Self::X86 => syscalls::x86::Sysno::from_str(name).ok().map(|call| call.id()),
            Self::Aarch64 => syscalls::aarch64::Sysno::from_str(name).ok().map(|call| call.id()),
            Self::Arm => syscalls::arm::Sysno::from_str(name).ok().map(|call| call.id()).or(match name {
                "breakpoint" => Some(0xf_0001),
                "cacheflush" => Some(0xf_0002),
                "usr26" => Some(0xf_0003),
                "usr32" => Some(0xf_0004),
                "set_tls" => Some(0xf_0005),
                _ => None,
            }),
        };
        let number = u32::try_from(number?).ok()?;
        if self != Self::X32 {
            return Some(number);
        }
        // Calls that pass pointers to structures have numbers of their own for x32, from 512.
        let own = X32_OWN.iter().position(|own| *own == name).and_then(|at| u32::try_from(at).ok());
        Some(X32_BIT | own.map_or(number, |at| 512 + at))
    }

    /// 32-bit x86 has also one call for all of sockets and one for all of System V's: `(call, number of the part)`.
    pub fn multiplexed(self, name: &str) -> Option<(&'static str, u32)> {
        if self != Self::X86 {
            return None;
        }
        let part = |list: &[&str]| list.iter().position(|part| *part == name).and_then(|at| u32::try_from(at + 1).ok());
        part(&SOCKETS).map(|part| ("socketcall", part)).or_else(|| {
            let at = IPC.iter().find(|(part, _)| *part == name)?;
            Some(("ipc", at.1))
        })
    }
}

const SOCKETS: [&str; 20] = [
    "socket",
    "bind",
    "connect",
    "listen",
    "accept",
    "getsockname",
    "getpeername",
    "socketpair",
    "send",
    "recv",
    "sendto",
    "recvfrom",
    "shutdown",
    "setsockopt",
    "getsockopt",
    "sendmsg",
    "recvmsg",
    "accept4",
    "recvmmsg",
    "sendmmsg",
];

const IPC: [(&str, u32); 12] = [
    ("semop", 1),
    ("semget", 2),
    ("semctl", 3),
    ("semtimedop", 4),
    ("msgsnd", 11),
    ("msgrcv", 12),
    ("msgget", 13),
    ("msgctl", 14),
    ("shmat", 21),
    ("shmdt", 22),
    ("shmget", 23),
    ("shmctl", 24),
];

const X32_OWN: [&str; 36] = [
    "rt_sigaction",
    "rt_sigreturn",
    "ioctl",
    "readv",
    "writev",
    "recvfrom",
    "sendmsg",
    "recvmsg",
    "execve",
    "ptrace",
    "rt_sigpending",
    "rt_sigtimedwait",
    "rt_sigqueueinfo",
    "sigaltstack",
    "timer_create",
    "mq_notify",
    "kexec_load",
    "waitid",
    "set_robust_list",
    "get_robust_list",
    "vmsplice",
    "move_pages",
    "preadv",
    "pwritev",
    "rt_tgsigqueueinfo",
    "recvmmsg",
    "sendmmsg",
    "process_vm_readv",
    "process_vm_writev",
    "setsockopt",
    "getsockopt",
    "io_setup",
    "io_submit",
    "execveat",
    "preadv2",
    "pwritev2",
];
