//! `identity/`: what makes this board this board. Small files of mode 0600, each replaced durably.
use std::{path::{Path, PathBuf}, io};
/// The open identity folder.
#[derive(Debug, Clone)]
pub struct Identity { dir: PathBuf, epoch: u64 }
impl Identity {
    /// Opens or creates `dir`; makes the epoch at first use.
    pub fn open(_dir: &Path) -> io::Result<Self> { todo!() }
    /// The store's random epoch: 1 ..= 2^53 - 1, so that JSON and int64 both hold it exactly.
    pub fn epoch(&self) -> u64 { self.epoch }
    /// The folder.
    pub fn dir(&self) -> &Path { &self.dir }
}
