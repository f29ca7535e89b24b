//! Small files that survive a power cut: written beside, synced, renamed, folder synced.
use std::{io, path::Path};
/// Replaces `path` with `bytes`, mode `mode`; afterwards either the old or the new content is there, whatever happens.
pub fn write(_path: &Path, _bytes: &[u8], _mode: u32) -> io::Result<()> { todo!() }
/// Makes entries of `dir` (creations, renames, removals) durable.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    std::fs::File::open(dir)?.sync_all()
}
/// `create_dir_all` whose every new level is durable.
pub fn create_dir_all(_dir: &Path, _mode: u32) -> io::Result<()> { todo!() }
