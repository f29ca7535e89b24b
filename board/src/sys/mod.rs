//! System calls that rustix has no safe wrapper for. The only `unsafe` of this crate.
#![allow(unsafe_code)]

pub mod allocator;
pub mod powercut;

use std::{fs, io, path::Path};

/// Whether the kernel says that its clock is synchronised (`adjtimex(2)`, `STA_UNSYNC` clear).
pub fn clock_is_synchronised() -> bool {
    // SAFETY: all-zero is a valid `timex` (`modes` 0 reads only), and the kernel writes no more than the struct.
    let status = unsafe {
        let mut timex: libc::timex = std::mem::zeroed();
        if libc::adjtimex(&raw mut timex) < 0 {
            return false;
        }
        timex.status
    };
    status & libc::STA_UNSYNC == 0
}

/// Memory of this process in bytes, from `/proc/self/smaps_rollup`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// Proportional set size.
    pub pss: u64,
    /// Its anonymous part.
    pub anonymous: u64,
    /// Its file-backed part.
    pub file: u64,
}

/// Memory of this process; zeros where the kernel does not tell.
pub fn memory() -> Memory {
    fs::read_to_string("/proc/self/smaps_rollup").map(|text| parse_memory(&text)).unwrap_or_default()
}

fn parse_memory(text: &str) -> Memory {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
    };
    Memory {
        pss: field("Pss:").unwrap_or(0),
        anonymous: field("Pss_Anon:").unwrap_or(0),
        file: field("Pss_File:").unwrap_or(0),
    }
}

/// Room on a file system, bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Disk {
    /// In all.
    pub total: u64,
    /// For unprivileged users.
    pub free: u64,
}

/// Room on the file system of `path`.
pub fn disk(path: &Path) -> io::Result<Disk> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(Disk { total: stat.f_blocks * stat.f_frsize, free: stat.f_bavail * stat.f_frsize })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_the_kernels_words() {
        let text = "5581-7ffe ---p 00000000 00:00 0 [rollup]\nRss:    2048 kB\nPss:    1024 kB\nPss_Anon:  512 kB\nPss_File: 256 kB\n";
        assert_eq!(parse_memory(text), Memory { pss: 1 << 20, anonymous: 512 << 10, file: 256 << 10 });
        assert!(memory().pss > 0);
    }
}
