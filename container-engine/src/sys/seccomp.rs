//! `seccomp(2)`: installing a filter on this process.

use std::io;

/// One instruction of classic BPF, as `struct sock_filter` lays it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Distance when the test holds.
    pub jump_true: u8,
    /// Distance when it does not.
    pub jump_false: u8,
    /// Constant.
    pub constant: u32,
}

/// A program with the flags that it is installed with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// What runs at every system call.
    pub program: Vec<Instruction>,
    /// `SECCOMP_FILTER_FLAG_…`
    pub flags: u64,
}

#[repr(C)]
struct Program {
    length: u16,
    instructions: *const Instruction,
}

impl Filter {
    /// Installs it for good. Needs `no_new_privs` or `CAP_SYS_ADMIN`.
    pub fn install(&self) -> io::Result<()> {
        let length = u16::try_from(self.program.len()).map_err(io::Error::other)?;
        let program = Program { length, instructions: self.program.as_ptr() };
        // SAFETY: the program is an array of the length given and outlives the call, which copies it.
        let result =
            unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, self.flags, &raw const program) };
        match result {
            0 => Ok(()),
            thread if thread > 0 => Err(io::Error::other("another thread has other filters")),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
