//! Compression of rotated files: the agent's work, so that shims stay small.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use flate2::{Compression, write::GzEncoder};

use super::chain;

/// Compresses every rotated file of the log at `path` that is not compressed; returns how many were. Blocking.
///
/// Atomic: at every moment one whole file of the two is there under a name that readers look for. A file that the shim
/// removes meanwhile stays removed.
pub fn compress_rotated(path: &Path) -> io::Result<usize> {
    let mut done = 0;
    for file in chain::rotated(path)? {
        if file.gzip {
            // An earlier compression may have been cut off just before it removed the plain one.
            let _ = fs::remove_file(chain::rotated_path(path, &file.stamp));
            continue;
        }
        match compress(&file.path) {
            Ok(()) => done += 1,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

fn compress(plain: &Path) -> io::Result<()> {
    let mut source = File::open(plain)?;
    let times = fs::FileTimes::new().set_modified(source.metadata()?.modified()?);
    let mut gzip = plain.as_os_str().to_owned();
    gzip.push(".gz");
    let mut beside = gzip.clone();
    beside.push(".tmp");
    let result = (|| {
        let target = OpenOptions::new().write(true).create(true).truncate(true).mode(0o640).open(&beside)?;
        let mut encoder = GzEncoder::new(target, Compression::new(4));
        io::copy(&mut source, &mut encoder)?;
        let target = encoder.finish()?;
        // Readers skip files by the time of their last record.
        target.set_times(times)?;
        target.sync_all()?;
        // Still there? Else the shim has removed it, and it must not come back.
        fs::metadata(plain)?;
        fs::rename(&beside, &gzip)?;
        fs::remove_file(plain)
    })();
    if result.is_err() {
        let _ = fs::remove_file(&beside);
    }
    result
}
