//! The spool directory: which of its files are ready to be sent, and how a file is put into it.
//!
//! Anybody who may write to the directory may put files into it, also while they are still being written: a file is ready
//! when two looks, two seconds apart, find the same size and times. Names that begin with a dot or end in `.tmp` or `.part`
//! are left alone; so are links and everything that is not a plain file.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use board::durable;

/// Files that one look takes in; the rest comes after them.
const MAX_FILES: usize = 10_000;
/// Folders inside folders.
const MAX_DEPTH: usize = 8;
/// Between two looks that are compared.
const SETTLE: Duration = Duration::from_millis(1900);

/// What tells one content of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Seen {
    pub size: u64,
    /// Of the last change, ns since 1970.
    pub modified_ns: i64,
    pub inode: u64,
}

impl Seen {
    pub fn of(metadata: &fs::Metadata) -> Self {
        let modified_ns = metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec());
        Self { size: metadata.len(), modified_ns, inode: metadata.ino() }
    }
}

/// A file in the spool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ready {
    pub path: PathBuf,
    /// Below the spool, with `/`.
    pub name: String,
    pub seen: Seen,
    /// Whether nobody writes to it any more.
    pub settled: bool,
}

/// The spool and what was seen in it.
#[derive(Default)]
pub(super) struct Spool {
    path: PathBuf,
    seen: HashMap<PathBuf, (Seen, Instant)>,
}

impl Spool {
    pub fn new(path: PathBuf) -> Self {
        Self { path, seen: HashMap::new() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files, the oldest first. Blocking.
    pub fn look(&mut self) -> io::Result<Vec<Ready>> {
        durable::create_dir_all(&self.path, 0o700)?;
        let mut found = Vec::new();
        walk(&self.path, &self.path, 0, &mut found)?;
        let now = Instant::now();
        let mut seen = HashMap::with_capacity(found.len());
        for file in &mut found {
            let since = match self.seen.get(&file.path) {
                Some((before, since)) if *before == file.seen => *since,
                _ => now,
            };
            file.settled = now.duration_since(since) >= SETTLE;
            seen.insert(file.path.clone(), (file.seen, since));
        }
        self.seen = seen;
        found.sort_by(|a, b| (a.seen.modified_ns, &a.name).cmp(&(b.seen.modified_ns, &b.name)));
        Ok(found)
    }
}

fn walk(spool: &Path, dir: &Path, depth: usize, found: &mut Vec<Ready>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        // Names that are no UTF-8 could not be told apart in S3.
        let Some(name) = path.strip_prefix(spool).ok().and_then(Path::to_str) else { continue };
        let hidden = entry.file_name().to_str().is_none_or(is_unfinished);
        if hidden || found.len() >= MAX_FILES {
            continue;
        }
        // Of the entry itself: a link is not followed.
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_dir() && depth < MAX_DEPTH {
            walk(spool, &path, depth + 1, found)?;
        } else if metadata.is_file() {
            let name = name.to_owned();
            found.push(Ready { name, seen: Seen::of(&metadata), path, settled: false });
        }
    }
    Ok(())
}

fn is_unfinished(name: &str) -> bool {
    name.starts_with('.') || Path::new(name).extension().is_some_and(|it| it == "tmp" || it == "part")
}

/// Why a file was not put into the spool.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// No plain file with a usable name.
    #[error("{path} cannot be queued: {problem}")]
    Unusable {
        /// Which.
        path: PathBuf,
        /// Why.
        problem: &'static str,
    },
    /// Reading it, or writing into the spool.
    #[error("cannot copy {path} into the spool {spool}")]
    Copy {
        /// Which.
        path: PathBuf,
        /// Where to.
        spool: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Puts a file into the spool under `name` (its own without one), durably; the file itself stays. Returns the name it got:
/// another number behind it where there is such a file already. Blocking; `copied` hears of progress in bytes.
pub fn queue(spool: &Path, path: &Path, name: Option<&str>, copied: impl FnMut(u64)) -> Result<String, QueueError> {
    let unusable = |problem| QueueError::Unusable { path: path.to_owned(), problem };
    let failed = |source| QueueError::Copy { path: path.to_owned(), spool: spool.to_owned(), source };
    let name = match name {
        Some(name) => name,
        None => path.file_name().and_then(|name| name.to_str()).ok_or_else(|| unusable("its name is not UTF-8"))?,
    };
    let parts: Vec<&str> = name.split('/').collect();
    if parts.iter().any(|part| part.is_empty() || is_unfinished(part)) || parts.len() > MAX_DEPTH || name.len() > 512 {
        return Err(unusable("names in the spool have no empty or hidden part and do not end in .tmp or .part"));
    }
    let metadata = fs::metadata(path).map_err(failed)?;
    if !metadata.is_file() {
        return Err(unusable("it is not a plain file"));
    }
    durable::create_dir_all(spool, 0o700).map_err(failed)?;
    let (folder, base) = name.rsplit_once('/').map_or((spool.to_owned(), name), |(dir, base)| (spool.join(dir), base));
    durable::create_dir_all(&folder, 0o700).map_err(failed)?;
    let beside = folder.join(format!(".{base}.{}", std::process::id()));
    let placed = copy(path, &beside, copied).and_then(|()| place(&beside, &folder, base));
    if placed.is_err() {
        let _ = fs::remove_file(&beside); // The first error is the one to report.
    }
    let base = placed.map_err(failed)?;
    Ok(name.rsplit_once('/').map_or_else(|| base.clone(), |(dir, _)| format!("{dir}/{base}")))
}

/// By reference where the file system can, else byte by byte; then to the disk.
fn copy(from: &Path, to: &Path, mut copied: impl FnMut(u64)) -> io::Result<()> {
    let mut source = File::open(from)?;
    let mut target = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(to)?;
    if rustix::fs::ioctl_ficlone(&target, &source).is_err() {
        let mut buffer = vec![0; 256 << 10];
        loop {
            let read = io::Read::read(&mut source, &mut buffer)?;
            if read == 0 {
                break;
            }
            io::Write::write_all(&mut target, &buffer[..read])?;
            copied(read as u64);
        }
    }
    let modified = source.metadata()?.modified()?;
    target.set_modified(modified)?; // The date in the object's name is that of the file.
    target.sync_all()
}

/// Gives the copy its name, without taking one that is in use.
fn place(beside: &Path, folder: &Path, base: &str) -> io::Result<String> {
    let (stem, extension) = base.rsplit_once('.').map_or((base, String::new()), |(s, e)| (s, format!(".{e}")));
    for again in 1..1000 {
        let name = if again == 1 { base.to_owned() } else { format!("{stem}-{again}{extension}") };
        match fs::hard_link(beside, folder.join(&name)) {
            Ok(()) => {
                fs::remove_file(beside)?;
                durable::sync_dir(folder)?;
                return Ok(name);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(io::ErrorKind::AlreadyExists, "a thousand files of that name wait"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_settled_plain_files_are_ready() {
        let dir = tempfile::tempdir().unwrap();
        let spool_dir = dir.path().join("spool");
        let mut spool = Spool::new(spool_dir.clone());
        assert!(spool.look().unwrap().is_empty());
        fs::create_dir(spool_dir.join("flight")).unwrap();
        for name in ["a.tif", ".hidden", "b.tmp", "c.part", "flight/d.tif"] {
            fs::write(spool_dir.join(name), name).unwrap();
        }
        std::os::unix::fs::symlink("/etc/passwd", spool_dir.join("link")).unwrap();
        let names =
            |found: &[Ready]| found.iter().map(|it| (it.name.clone(), it.settled)).collect::<Vec<(String, bool)>>();
        let found = spool.look().unwrap();
        assert_eq!(names(&found), [("a.tif".into(), false), ("flight/d.tif".into(), false)]);
        let long_ago = Instant::now().checked_sub(SETTLE * 2).unwrap();
        spool.seen.values_mut().for_each(|(_, since)| *since = long_ago);
        fs::write(spool_dir.join("flight/d.tif"), "more of it").unwrap();
        let mut found = names(&spool.look().unwrap());
        found.sort();
        assert_eq!(found, [("a.tif".into(), true), ("flight/d.tif".into(), false)]);
    }

    #[test]
    fn queueing_copies_and_never_replaces() {
        let dir = tempfile::tempdir().unwrap();
        let (file, spool) = (dir.path().join("photo.jpg"), dir.path().join("spool"));
        fs::write(&file, "one").unwrap();
        assert_eq!(queue(&spool, &file, None, |_| {}).unwrap(), "photo.jpg");
        fs::write(&file, "two").unwrap();
        assert_eq!(queue(&spool, &file, None, |_| {}).unwrap(), "photo-2.jpg");
        assert_eq!(queue(&spool, &file, Some("flight/7/x"), |_| {}).unwrap(), "flight/7/x");
        let read = |name: &str| fs::read_to_string(spool.join(name)).unwrap();
        assert_eq!(
            (read("photo.jpg"), read("photo-2.jpg"), read("flight/7/x")),
            ("one".into(), "two".into(), "two".into())
        );
        assert_eq!(fs::read_dir(&spool).unwrap().count(), 3);
        for bad in ["../x", "/x", "a//b", "x.tmp", ""] {
            assert!(queue(&spool, &file, Some(bad), |_| {}).is_err(), "{bad}");
        }
        assert!(queue(&spool, dir.path(), None, |_| {}).is_err());
    }
}
