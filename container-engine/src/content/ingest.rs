//! A blob on its way to disk.
//!
//! `HEX.json` says how many bytes are **safe**: they were synced before it was written. After a power cut a part goes on
//! there; after a mere crash of the program (the same boot of the kernel) at its end, since what was written to a file
//! outlives the process. Either way the bytes taken over are hashed again, and the blob's digest judges them in the end.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{CHUNK, Content, ContentError, Digest, entries};

/// Largest `HEX.json`.
const MAX_RECORD: u64 = 16 << 10;

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    size: Option<u64>,
    safe: u64,
    boot: String,
    source: String,
}

impl Record {
    fn json(&self) -> Vec<u8> {
        // Strings and numbers always become JSON.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// A part of a blob in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partial {
    /// What it will be.
    pub digest: Digest,
    /// Bytes on disk.
    pub on_disk: u64,
    /// Bytes that a power cut leaves.
    pub safe: u64,
    /// Where it came from, for people.
    pub source: String,
}

/// One blob being written; one writer at a time, which the caller sees to. Dropped: what is there stays for the next try.
pub struct Ingest {
    content: Content,
    path: PathBuf,
    file: File,
    want: Option<Digest>,
    record: Record,
    hash: ring::digest::Context,
    hashed: u64,
    on_disk: u64,
    keep: bool,
}

/// Makes a checkpoint away from the writer, so that the download does not wait for the disk.
#[derive(Debug)]
pub struct Checkpoint {
    file: File,
    path: PathBuf,
    record: Record,
}

impl Content {
    /// Begins or goes on with the blob `digest`. What is on disk already is first given out by [`Ingest::replay`].
    pub fn ingest(&self, digest: Digest, size: Option<u64>, source: &str) -> Result<Ingest, ContentError> {
        let path = self.0.ingest.join(digest.hex());
        let file = open(&path)?;
        let length = file.metadata().map_err(ContentError::io("read", &path))?.len();
        let source = source.chars().take(1000).collect();
        let old = read_record(&path).filter(|old| old.size.is_none() || size.is_none() || old.size == size);
        let on_disk = old.map_or(0, |old| {
            let same_boot = !old.boot.is_empty() && old.boot == self.0.boot;
            if same_boot { length } else { old.safe.min(length) }
        });
        // More than the whole blob cannot be right.
        let on_disk = if size.is_some_and(|size| on_disk > size) { 0 } else { on_disk };
        file.set_len(on_disk).map_err(ContentError::io("cut", &path))?;
        let mut ingest = Ingest {
            content: self.clone(),
            path,
            file,
            want: Some(digest),
            record: Record { size, safe: 0, boot: self.0.boot.clone(), source },
            hash: sha256(),
            hashed: 0,
            on_disk,
            keep: true,
        };
        if on_disk > 0 {
            ingest.checkpoint()?.run()?;
        } else {
            // Not synced: torn or absent it means that nothing is safe, which is so.
            let record = record_path(&ingest.path);
            fs::write(&record, ingest.record.json()).map_err(ContentError::io("write", &record))?;
        }
        Ok(ingest)
    }

    /// Begins a blob whose digest is known only at its end; dropped, nothing of it stays.
    pub fn ingest_new(&self) -> Result<Ingest, ContentError> {
        let path = self.new_part();
        let file = open(&path)?;
        Ok(Ingest {
            content: self.clone(),
            path,
            file,
            want: None,
            record: Record { size: None, safe: 0, boot: String::new(), source: String::new() },
            hash: sha256(),
            hashed: 0,
            on_disk: 0,
            keep: false,
        })
    }

    /// Every part of a blob.
    pub fn partials(&self) -> Result<Vec<Partial>, ContentError> {
        let parts = entries(&self.0.ingest)?.into_iter().filter_map(|(name, meta)| {
            let digest = format!("sha256:{name}").parse().ok()?;
            let record = read_record(&self.0.ingest.join(&name));
            let (safe, source) = record.map_or((0, String::new()), |record| (record.safe, record.source));
            Some(Partial { digest, on_disk: meta.len(), safe: safe.min(meta.len()), source })
        });
        Ok(parts.collect())
    }

    /// Throws a part away.
    pub fn remove_partial(&self, digest: &Digest) -> Result<(), ContentError> {
        let path = self.0.ingest.join(digest.hex());
        throw_away(&path).map_err(ContentError::io("remove", &path))
    }
}

impl Ingest {
    /// Bytes so far, those to be replayed included: where a download goes on.
    pub fn offset(&self) -> u64 {
        self.on_disk
    }

    /// Bytes that were on disk at the start and have not yet been hashed and given out.
    pub fn to_replay(&self) -> u64 {
        self.on_disk - self.hashed
    }

    /// Whether as many bytes are here as were announced; also where nothing was.
    pub fn is_whole(&self) -> bool {
        self.record.size.is_none_or(|size| size == self.on_disk)
    }

    /// The folder it lies in.
    pub fn dir(&self) -> PathBuf {
        self.path.parent().unwrap_or(&self.path).to_owned()
    }

    /// What the bytes so far hash to: the name that `commit` would give, so that it can be pinned before.
    pub fn digest(&mut self) -> Result<Digest, ContentError> {
        self.replay_all()?;
        Ok(Digest::finish(self.hash.clone()))
    }

    /// Gives out and hashes what was on disk at the start, piece by piece; 0 when all was.
    pub fn replay(&mut self, buffer: &mut [u8]) -> Result<usize, ContentError> {
        let most = usize::try_from(self.to_replay()).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let n = self.file.read_at(&mut buffer[..most], self.hashed).map_err(ContentError::io("read", &self.path))?;
        if n == 0 {
            let source = io::Error::from(io::ErrorKind::UnexpectedEof);
            return Err(ContentError::Io { action: "read", path: self.path.clone(), source });
        }
        self.hash.update(&buffer[..n]);
        self.hashed += n as u64;
        Ok(n)
    }

    /// Appends. What was on disk at the start is hashed first, where that was not done yet.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), ContentError> {
        let after = self.on_disk + bytes.len() as u64;
        if let Some(want) = self.record.size.filter(|want| after > *want) {
            return Err(ContentError::Size { digest: self.name(), want, got: after });
        }
        self.replay_all()?;
        self.file.write_all_at(bytes, self.on_disk).map_err(ContentError::io("write", &self.path))?;
        self.hash.update(bytes);
        self.hashed = after;
        self.on_disk = after;
        Ok(())
    }

    /// What makes the bytes so far safe, to be run where waiting for the disk hurts nobody.
    pub fn checkpoint(&mut self) -> Result<Checkpoint, ContentError> {
        let file = self.file.try_clone().map_err(ContentError::io("open", &self.path))?;
        self.record.safe = self.on_disk;
        Ok(Checkpoint { file, path: self.path.clone(), record: self.record.clone() })
    }

    /// Checks the digest, syncs, and gives the blob its name. A wrong digest throws the part away.
    pub fn commit(mut self, expect: Option<Digest>) -> Result<Digest, ContentError> {
        self.replay_all()?;
        if let Some(want) = self.record.size.filter(|want| self.on_disk != *want) {
            return Err(ContentError::Size { digest: self.name(), want, got: self.on_disk });
        }
        let hash = std::mem::replace(&mut self.hash, sha256());
        let got = Digest::finish(hash);
        if let Some(want) = self.want.or(expect).filter(|want| *want != got) {
            self.keep = false;
            return Err(ContentError::Mismatch { want, got });
        }
        let to = self.content.path(&got);
        self.file.sync_all().map_err(ContentError::io("sync", &self.path))?;
        fs::rename(&self.path, &to).map_err(ContentError::io("rename", &self.path))?;
        let dir = &self.content.0.blobs;
        board::durable::sync_dir(dir).map_err(ContentError::io("sync", dir))?;
        self.keep = false; // Its record goes; the file itself has moved.
        Ok(got)
    }

    /// Throws the part away: nothing of it is of use to a next try.
    pub fn discard(mut self) {
        self.keep = false;
    }

    fn replay_all(&mut self) -> Result<(), ContentError> {
        if self.to_replay() > 0 {
            let mut buffer = vec![0; CHUNK];
            while self.replay(&mut buffer)? > 0 {}
        }
        Ok(())
    }

    fn name(&self) -> String {
        self.want.map_or_else(|| "of yet unknown digest".to_owned(), |want| want.to_string())
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        if !self.keep
            && let Err(error) = throw_away(&self.path)
        {
            tracing::warn!(%error, path = %self.path.display(), "a part of a blob is left; remove it by hand");
        }
    }
}

impl Checkpoint {
    /// Syncs the bytes, then says durably that they are safe.
    pub fn run(self) -> Result<(), ContentError> {
        if self.record.safe > 0 {
            self.file.sync_data().map_err(ContentError::io("sync", &self.path))?;
        }
        let path = record_path(&self.path);
        board::durable::write(&path, &self.record.json(), 0o600).map_err(ContentError::io("write", &path))
    }
}

fn sha256() -> ring::digest::Context {
    ring::digest::Context::new(&ring::digest::SHA256)
}

fn open(path: &Path) -> Result<File, ContentError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(ContentError::io("open", path))
}

fn record_path(path: &Path) -> PathBuf {
    path.with_extension("json")
}

fn read_record(path: &Path) -> Option<Record> {
    let bytes = board::durable::read(&record_path(path), MAX_RECORD).ok()?;
    serde_json::from_slice(&bytes).ok()
}

fn throw_away(path: &Path) -> io::Result<()> {
    for path in [path, &record_path(path)] {
        match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(())
}
