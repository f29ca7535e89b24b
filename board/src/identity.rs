//! `identity/`: what makes this board this board. Small files of mode 0600, each replaced durably.

use std::{
    io,
    path::{Path, PathBuf},
};

use ring::rand::SecureRandom;

use crate::durable;

/// Largest epoch: JSON numbers and doubles hold it exactly.
const MAX_EPOCH: u64 = (1 << 53) - 1;

/// The open identity folder.
#[derive(Debug, Clone)]
pub struct Identity {
    dir: PathBuf,
    epoch: u64,
}

impl Identity {
    /// Opens or creates `dir`; makes the epoch at first use. A damaged epoch is set aside for a new one: numbers under
    /// a new epoch repeat nothing.
    pub fn open(dir: &Path) -> io::Result<Self> {
        durable::create_dir_all(dir, 0o700)?;
        let path = dir.join("epoch");
        let known = match durable::read(&path, 64) {
            Ok(bytes) => parse_epoch(&bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Self::create(dir, &path),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => None,
            Err(error) => return Err(error),
        };
        if let Some(epoch) = known {
            return Ok(Self { dir: dir.to_owned(), epoch });
        }
        tracing::error!(path = %path.display(), "the store's epoch is damaged; it was set aside and a new one made");
        std::fs::rename(&path, dir.join("epoch.damaged"))?;
        Self::create(dir, &path)
    }

    fn create(dir: &Path, path: &Path) -> io::Result<Self> {
        let mut bytes = [0; 8];
        let random = ring::rand::SystemRandom::new();
        random.fill(&mut bytes).map_err(|_| io::Error::other("the system gave no random bytes"))?;
        let epoch = (u64::from_le_bytes(bytes) & MAX_EPOCH).max(1);
        durable::write(path, format!("{epoch}\n").as_bytes(), 0o600)?;
        Ok(Self { dir: dir.to_owned(), epoch })
    }

    /// Reads the epoch without making one: for commands that only look.
    pub fn peek_epoch(dir: &Path) -> Option<u64> {
        parse_epoch(&durable::read(&dir.join("epoch"), 64).ok()?)
    }

    /// The store's random epoch, 1 ..= 2^53 - 1.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

fn parse_epoch(bytes: &[u8]) -> Option<u64> {
    let epoch = std::str::from_utf8(bytes).ok()?.trim().parse().ok()?;
    (1..=MAX_EPOCH).contains(&epoch).then_some(epoch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_epoch_stays_and_a_damaged_one_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let first = Identity::open(dir.path()).unwrap().epoch();
        assert!((1..=MAX_EPOCH).contains(&first));
        assert_eq!(Identity::open(dir.path()).unwrap().epoch(), first);
        assert_eq!(Identity::peek_epoch(dir.path()), Some(first));
        std::fs::write(dir.path().join("epoch"), "no number").unwrap();
        assert_ne!(Identity::open(dir.path()).unwrap().epoch(), first);
        assert!(dir.path().join("epoch.damaged").exists());
    }
}
