//! Layers on disk: `layers/KEY/{fs,layer.json}`, each the tree of one archive in overlayfs form.
//!
//! Always true:
//! - A folder under its key is whole: it is unpacked in `layers/.new-…` and renamed.
//! - It is believed after a crash of the machine only if its files were synced before: `layer.json` says in which boot it
//!   was made and whether a sync has ended since. One that might have lost bytes is removed at open; its blob is still
//!   there, and unpacking it again costs less than waiting for the disk at every pull.
//! - KEY is the diff id. A layer with hard links into lower layers holds copies of their files, so it is good above those
//!   layers only: its key has the chain of them behind.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::content::Digest;

/// Largest `layer.json`.
const MAX_RECORD: u64 = 64 << 10;
/// Unfinished layers begin with it.
pub(super) const UNFINISHED: &str = ".new-";

/// A layer that is unpacked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Name of its folder.
    pub key: String,
    /// Digest of the uncompressed archive.
    pub diff_id: Digest,
    /// Of its files, in blocks of the file system: about what it takes on disk.
    pub bytes: u64,
    /// Files, folders and the like.
    pub inodes: u64,
    /// Which attributes say that a folder hides what is below.
    pub marks: Marks,
}

/// Name space of overlayfs' attributes. One form serves every mount: `user.overlay.` with the option `userxattr`, which
/// needs no privilege of the unpacking child; `trusted.overlay.` where the file system has no `user.` attributes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Marks {
    /// `user.overlay.`
    #[default]
    User,
    /// `trusted.overlay.`
    Trusted,
}

impl Marks {
    /// The attribute of an opaque folder.
    pub fn opaque(self) -> &'static str {
        match self {
            Self::User => "user.overlay.opaque",
            Self::Trusted => "trusted.overlay.opaque",
        }
    }

    /// As on the child's command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Trusted => "trusted",
        }
    }
}

/// `layer.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    #[serde(flatten)]
    pub layer: Layer,
    /// Boot in which it was unpacked.
    pub boot: String,
    /// Whether its files were synced.
    pub synced: bool,
}

impl Record {
    pub(super) fn read(folder: &Path) -> io::Result<Self> {
        let bytes = board::durable::read(&folder.join("layer.json"), MAX_RECORD)?;
        serde_json::from_slice(&bytes).map_err(io::Error::from)
    }

    pub(super) fn write(&self, folder: &Path) -> io::Result<()> {
        board::durable::write(&folder.join("layer.json"), &serde_json::to_vec(self)?, 0o600)
    }

    /// Whether every byte of it is on the disk, or in this kernel's memory.
    pub(super) fn is_whole(&self, boot: &str) -> bool {
        self.synced || self.boot == boot
    }
}

/// This boot of the machine.
pub(super) fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

/// The folder's name of a layer; `below` are the diff ids under it, lowest first, where its content depends on them.
pub(super) fn key(diff_id: &Digest, below: Option<&[Digest]>) -> String {
    let Some(below) = below else { return diff_id.hex() };
    let chain: String = below.iter().map(|digest| format!("{digest}\n")).collect();
    format!("{}-{}", diff_id.hex(), &Digest::of(chain.as_bytes()).hex()[..16])
}

/// A folder for a layer on its way, with `fs` in it.
pub(super) fn unfinished(layers: &Path) -> io::Result<PathBuf> {
    use std::{
        os::unix::fs::DirBuilderExt,
        sync::atomic::{AtomicU64, Ordering},
    };
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = layers.join(format!("{UNFINISHED}{}-{number}", std::process::id()));
        match std::fs::DirBuilder::new().mode(0o700).create(&folder) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
            Ok(()) => {
                let made = std::fs::DirBuilder::new().mode(0o755).create(folder.join("fs"));
                return made.map(|()| folder);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_that_stands_on_others_has_another_key() {
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        assert_eq!(key(&one, None), one.hex());
        assert_ne!(key(&one, Some(&[two])), key(&one, Some(&[two, two])));
        assert!(key(&one, Some(&[two])).starts_with(&one.hex()));
    }

    #[test]
    fn a_layer_is_believed_in_its_boot_or_once_synced() {
        let layer = Layer { key: "k".into(), diff_id: Digest::of(b""), bytes: 0, inodes: 0, marks: Marks::User };
        let record = |synced| Record { layer: layer.clone(), boot: "one".into(), synced };
        assert!(record(false).is_whole("one"));
        assert!(!record(false).is_whole("two"));
        assert!(record(true).is_whole("two"));
    }
}
