//! Sealing of what must not lie readable on the disk: ChaCha20-Poly1305 under a key of the board's own.
//!
//! Always true:
//! - The key is `identity/cache.key`, 32 random bytes, mode 0600; it never leaves the board.
//! - What is sealed is bound to its place: a record copied to another key or tree does not open.
//!
//! Elsewhere: what is sealed (`cache`).

use std::{fmt, io, path::Path};

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use ring::{
    aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand::{SecureRandom, SystemRandom},
};

const KEY_LEN: usize = 32;
const FILE: &str = "cache.key";

/// Seals and opens. The key is in no message and no `Debug`.
pub struct Sealer(LessSafeKey);

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealer(***)")
    }
}

/// Why something could not be sealed or opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// No randomness, or more bytes than the cipher takes.
    #[error("it could not be sealed")]
    Seal,
    /// Damaged, of another place, or under another key.
    #[error("it does not open: it is damaged, of another place, or sealed with another key")]
    Open,
}

impl Sealer {
    /// Reads the key in `identity`, or makes it. One of a wrong length is set aside: what it had sealed is lost, and comes
    /// again from the cluster. Blocking.
    pub fn open(identity: &Path) -> io::Result<Self> {
        let path = identity.join(FILE);
        let bytes = match board::durable::read(&path, KEY_LEN as u64) {
            Ok(bytes) if bytes.len() == KEY_LEN => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => make(&path)?,
            Err(error) if error.kind() != io::ErrorKind::InvalidData => return Err(error),
            Ok(_) | Err(_) => {
                tracing::error!(path = %path.display(), "the key of the cached secrets is damaged; it was set aside and a new one made");
                std::fs::rename(&path, identity.join("cache.key.damaged"))?;
                make(&path)?
            }
        };
        let key = UnboundKey::new(&CHACHA20_POLY1305, &bytes);
        key.map(LessSafeKey::new).map(Self).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
    }

    /// Seals `plain` for the place `tree`/`key`: base64 of nonce and ciphertext.
    pub fn seal(&self, tree: &str, key: &str, plain: &[u8]) -> Result<String, SealError> {
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).map_err(|_| SealError::Seal)?;
        let mut boxed = plain.to_vec();
        let sealed = self.0.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), place(tree, key), &mut boxed);
        sealed.map_err(|_| SealError::Seal)?;
        Ok(STANDARD_NO_PAD.encode([nonce.as_slice(), &boxed].concat()))
    }

    /// Opens what was sealed for the same place.
    pub fn unseal(&self, tree: &str, key: &str, sealed: &str) -> Result<Vec<u8>, SealError> {
        let mut bytes = STANDARD_NO_PAD.decode(sealed).map_err(|_| SealError::Open)?;
        if bytes.len() < NONCE_LEN {
            return Err(SealError::Open);
        }
        let mut boxed = bytes.split_off(NONCE_LEN);
        let nonce = Nonce::try_assume_unique_for_key(&bytes).map_err(|_| SealError::Open)?;
        let plain = self.0.open_in_place(nonce, place(tree, key), &mut boxed).map_err(|_| SealError::Open)?;
        Ok(plain.to_vec())
    }
}

/// A tree's name has no zero byte, so no two places read alike.
fn place(tree: &str, key: &str) -> Aad<Vec<u8>> {
    Aad::from([tree.as_bytes(), &[0], key.as_bytes()].concat())
}

fn make(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; KEY_LEN];
    SystemRandom::new().fill(&mut bytes).map_err(|_| io::Error::other("the system gave no random bytes"))?;
    board::durable::write(path, &bytes, 0o600)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_is_sealed_opens_at_its_place_alone() {
        let dir = tempfile::tempdir().unwrap();
        let sealer = Sealer::open(dir.path()).unwrap();
        let sealed = sealer.seal("tree", "ns/name", b"secret").unwrap();
        assert!(!sealed.contains("secret"));
        assert_eq!(sealer.unseal("tree", "ns/name", &sealed).unwrap(), b"secret");
        for (tree, key) in [("tree", "ns/other"), ("tre", "ens/name"), ("other", "ns/name"), ("", "")] {
            assert_eq!(sealer.unseal(tree, key, &sealed), Err(SealError::Open), "{tree} {key}");
        }
        assert_ne!(sealed, sealer.seal("tree", "ns/name", b"secret").unwrap(), "a nonce is used once");
    }

    #[test]
    fn every_damage_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let sealer = Sealer::open(dir.path()).unwrap();
        let sealed = sealer.seal("t", "k", b"value").unwrap();
        for at in 0..sealed.len() {
            let mut bytes = sealed.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let damaged = String::from_utf8(bytes).unwrap();
            assert_eq!(sealer.unseal("t", "k", &damaged), Err(SealError::Open), "character {at}");
            assert_eq!(sealer.unseal("t", "k", &sealed[..at]), Err(SealError::Open), "cut at {at}");
        }
    }

    #[test]
    fn the_key_stays_is_private_and_a_damaged_one_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let sealed = Sealer::open(dir.path()).unwrap().seal("t", "k", b"v").unwrap();
        assert_eq!(Sealer::open(dir.path()).unwrap().unseal("t", "k", &sealed).unwrap(), b"v");
        let mode = std::fs::metadata(dir.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        for damage in [&b"short"[..], &[7; 100], b""] {
            std::fs::write(dir.path().join(FILE), damage).unwrap();
            assert_eq!(Sealer::open(dir.path()).unwrap().unseal("t", "k", &sealed), Err(SealError::Open));
            assert_eq!(std::fs::read(dir.path().join("cache.key.damaged")).unwrap(), damage);
        }
    }
}
