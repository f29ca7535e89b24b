//! Doors for the fuzz targets.

use std::path::Path;

use rustix::fs::{Mode, OFlags};

use super::{Limits, Marks, archive::Archive, error::FaultKind, tree::Tree};

/// Gives the headers of an archive the checksums that fit.
pub fn seal(archive: &mut [u8]) {
    for header in archive.chunks_exact_mut(512).filter(|block| block[257..262] == *b"ustar") {
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

/// Writes an archive's tree into `root` as the child does, but in this process; bytes and inodes, or what was wrong.
pub fn unpack(archive: &[u8], root: &Path, limits: Limits) -> Result<(u64, u64), FaultKind> {
    rustix::process::umask(Mode::empty());
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, flags, Mode::empty()).map_err(|_| FaultKind::Io)?;
    let mut tree = Tree::new(root, Marks::User, limits, Vec::new()).map_err(|fault| fault.kind)?;
    let written = tree.write_all(&mut Archive::new(archive)).map_err(|fault| fault.kind)?;
    Ok((written.bytes, written.inodes))
}

/// Removes a tree.
pub fn remove(path: &Path) -> std::io::Result<()> {
    super::remove::tree(path)
}
