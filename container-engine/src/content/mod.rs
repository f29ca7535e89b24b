//! Content-addressed blobs on disk: verified on every write, resumable, whole or absent after a power cut.
//!
//! `DATA/images/blobs/sha256/HEX` is a whole blob; `DATA/images/ingest/HEX` a part of one, with `HEX.json` beside it,
//! which says how much of it a power cut leaves; `DATA/images/ingest/new-N` one whose digest is not known yet.
//!
//! Always true:
//! - A file gets its name in `blobs/` only after its bytes hashed to that name and were synced.
//! - Bytes that hash to something else are thrown away, so that the next try does not build on them.
//! - Everything here blocks; callers on the runtime use `spawn_blocking`.
//!
//! Elsewhere: which blobs are still wanted (`image::gc`), who may write one at a time (`image::flight`).

mod digest;
mod ingest;
#[cfg(test)]
mod tests;

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

pub use digest::{Digest, DigestError};
pub use ingest::{Checkpoint, Ingest, Partial};

/// Bytes hashed or copied at a time.
pub(crate) const CHUNK: usize = 64 << 10;
/// Damaged blobs kept for a look.
const MAX_SET_ASIDE: usize = 4;
/// A part nobody went on with for so long is thrown away at the next start.
const PARTIAL_AGE: Duration = Duration::from_secs(14 * 24 * 3600);

/// Why a blob could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// It is not here.
    #[error("there is no blob {0} here: pull the image that it belongs to")]
    NotFound(Digest),
    /// Its bytes are not what its name says.
    #[error("what came as {want} is {got}: it was thrown away; pull again, and if that repeats look at the registry")]
    Mismatch {
        /// The name.
        want: Digest,
        /// What the bytes hash to.
        got: Digest,
    },
    /// A blob on disk whose bytes have changed.
    #[error("blob {want} is damaged on disk (it is now {got}): pull its image again")]
    Damaged {
        /// The name.
        want: Digest,
        /// What the bytes hash to.
        got: Digest,
    },
    /// More or fewer bytes than were announced.
    #[error("blob {digest} was announced with {want} bytes and has {got}")]
    Size {
        /// Which.
        digest: String,
        /// Announced.
        want: u64,
        /// Came.
        got: u64,
    },
    /// More than a caller is ready to hold in memory.
    #[error("blob {digest} has {size} bytes, over the limit of {max} for what it is used as")]
    TooLarge {
        /// Which.
        digest: Digest,
        /// Its size.
        size: u64,
        /// The limit.
        max: u64,
    },
    /// The file system is full.
    #[error("{path} has no room left ({free} bytes free): remove images, or grow the disk")]
    NoSpace {
        /// Where.
        path: PathBuf,
        /// Bytes free.
        free: u64,
    },
    /// Reading or writing failed.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl ContentError {
    /// An I/O error on `path`; a full disk is told apart.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                let dir = path.parent().unwrap_or(path);
                let free = board::sys::disk(dir).map_or(0, |disk| disk.free);
                Self::NoSpace { path: dir.to_owned(), free }
            }
            _ => Self::Io { action, path: path.to_owned(), source },
        }
    }

    /// Whether the same call may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Mismatch { .. } | Self::NoSpace { .. })
    }

    /// For the control socket.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotFound(_) => "not_found",
            Self::NoSpace { .. } => "no_space",
            Self::Mismatch { .. } | Self::Size { .. } | Self::TooLarge { .. } => "invalid",
            Self::Damaged { .. } | Self::Io { .. } => "internal",
        }
    }
}

/// A whole blob in a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blob {
    /// Its name.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
    /// When it was written.
    pub written: SystemTime,
}

#[derive(Debug)]
struct Inner {
    blobs: PathBuf,
    ingest: PathBuf,
    aside: PathBuf,
    boot: String,
    next: AtomicU64,
}

/// The blob store; cheap to clone.
#[derive(Debug, Clone)]
pub struct Content(Arc<Inner>);

impl Content {
    /// Opens or creates the store below the data directory `data`, and throws away what a crash left behind: parts with no
    /// known digest, records with no part, parts that nobody went on with for two weeks.
    pub fn open(data: &Path) -> Result<Self, ContentError> {
        let images = data.join("images");
        let inner = Inner {
            blobs: images.join("blobs/sha256"),
            ingest: images.join("ingest"),
            aside: data.join("set-aside"),
            boot: boot_id(),
            next: AtomicU64::new(0),
        };
        for dir in [&inner.blobs, &inner.ingest] {
            board::durable::create_dir_all(dir, 0o700).map_err(ContentError::io("create", dir))?;
        }
        let content = Self(Arc::new(inner));
        content.clean()?;
        Ok(content)
    }

    /// Where a whole blob lies, or would.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.0.blobs.join(digest.hex())
    }

    /// The folder whose file system holds the blobs.
    pub fn dir(&self) -> &Path {
        &self.0.blobs
    }

    /// Bytes of a whole blob; `None` where it is not here.
    pub fn size(&self, digest: &Digest) -> Option<u64> {
        fs::metadata(self.path(digest)).ok().filter(fs::Metadata::is_file).map(|meta| meta.len())
    }

    /// Opens a whole blob; its bytes are not checked.
    pub fn reader(&self, digest: &Digest) -> Result<File, ContentError> {
        let path = self.path(digest);
        File::open(&path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => ContentError::NotFound(*digest),
            _ => ContentError::io("open", &path)(source),
        })
    }

    /// Reads a blob of at most `max` bytes and checks them.
    pub fn read(&self, digest: &Digest, max: u64) -> Result<Vec<u8>, ContentError> {
        let file = self.reader(digest)?;
        let path = self.path(digest);
        let size = file.metadata().map_err(ContentError::io("read", &path))?.len();
        if size > max {
            return Err(ContentError::TooLarge { digest: *digest, size, max });
        }
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        file.take(max).read_to_end(&mut bytes).map_err(ContentError::io("read", &path))?;
        let got = Digest::of(&bytes);
        if got == *digest { Ok(bytes) } else { Err(ContentError::Damaged { want: *digest, got }) }
    }

    /// Hashes a whole blob anew; its size, or `Damaged`.
    pub fn verify(&self, digest: &Digest) -> Result<u64, ContentError> {
        let mut file = self.reader(digest)?;
        let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
        let mut buffer = vec![0; CHUNK];
        let mut size = 0;
        loop {
            let n = file.read(&mut buffer).map_err(ContentError::io("read", &self.path(digest)))?;
            if n == 0 {
                break;
            }
            hash.update(&buffer[..n]);
            size += n as u64;
        }
        let got = Digest::finish(hash);
        if got == *digest { Ok(size) } else { Err(ContentError::Damaged { want: *digest, got }) }
    }

    /// Moves a damaged blob out of the way, so that the next pull fetches it; a few are kept for a look.
    pub fn set_aside(&self, digest: &Digest) -> Result<(), ContentError> {
        let aside = &self.0.aside;
        board::durable::create_dir_all(aside, 0o700).map_err(ContentError::io("create", aside))?;
        let mut old: Vec<_> = entries(aside)?.into_iter().filter(|(name, _)| name.starts_with("blob-")).collect();
        old.sort_by_key(|(_, meta)| meta.modified().unwrap_or(SystemTime::UNIX_EPOCH));
        for (name, _) in old.iter().take((old.len() + 1).saturating_sub(MAX_SET_ASIDE)) {
            let path = aside.join(name);
            fs::remove_file(&path).map_err(ContentError::io("remove", &path))?;
        }
        let from = self.path(digest);
        match fs::rename(&from, aside.join(format!("blob-{}", digest.hex()))) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(ContentError::io("set aside", &from))?,
        }
        tracing::warn!(%digest, set_aside = %aside.display(), "a blob was damaged; it was set aside and will be fetched again");
        board::durable::sync_dir(&self.0.blobs).map_err(ContentError::io("sync", &self.0.blobs))
    }

    /// Removes a blob; one that is not here is no error. What it was is gone for good only after a sync.
    pub fn remove(&self, digest: &Digest) -> Result<(), ContentError> {
        let path = self.path(digest);
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(ContentError::io("remove", &path)),
        }
    }

    /// Every whole blob.
    pub fn list(&self) -> Result<Vec<Blob>, ContentError> {
        let blobs = entries(&self.0.blobs)?.into_iter().filter_map(|(name, meta)| {
            let digest = format!("sha256:{name}").parse().ok()?;
            let written = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            Some(Blob { digest, size: meta.len(), written })
        });
        Ok(blobs.collect())
    }

    /// Writes a small blob whole, durably; its name.
    pub fn put(&self, bytes: &[u8]) -> Result<Digest, ContentError> {
        let digest = Digest::of(bytes);
        if self.size(&digest) == Some(bytes.len() as u64) {
            return Ok(digest);
        }
        let mut ingest = self.ingest_new()?;
        ingest.append(bytes)?;
        ingest.commit(None)
    }

    fn clean(&self) -> Result<(), ContentError> {
        let found = entries(&self.0.ingest)?;
        let now = SystemTime::now();
        for (name, meta) in &found {
            let age = meta.modified().ok().and_then(|at| now.duration_since(at).ok()).unwrap_or_default();
            let part = name.strip_suffix(".json").unwrap_or(name);
            let known = format!("sha256:{part}").parse::<Digest>().is_ok();
            let orphan = part.len() != name.len() && !found.iter().any(|(other, _)| other == part);
            if !known || orphan || age > PARTIAL_AGE {
                let path = self.0.ingest.join(name);
                match fs::remove_file(&path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    other => other.map_err(ContentError::io("remove", &path))?,
                }
            }
        }
        Ok(())
    }

    /// A name in `ingest/` that no other has.
    fn new_part(&self) -> PathBuf {
        let n = self.0.next.fetch_add(1, Ordering::Relaxed);
        self.0.ingest.join(format!("new-{}-{n}", std::process::id()))
    }
}

fn entries(dir: &Path) -> Result<Vec<(String, fs::Metadata)>, ContentError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(ContentError::io("list", dir))? {
        let entry = entry.map_err(ContentError::io("list", dir))?;
        // What vanished in between is not there.
        if let (Ok(name), Ok(meta)) = (entry.file_name().into_string(), entry.metadata())
            && meta.is_file()
        {
            found.push((name, meta));
        }
    }
    Ok(found)
}

/// Tells one boot from another; empty where the kernel does not say, which is then never the same boot.
fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}
