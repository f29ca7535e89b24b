//! Where the log ended when it was closed: `NEXT CRC32C` in a small file beside the segments.
//!
//! Damage at the very end of the newest segment looks like the torn tail of a crash, and is cut off like one; the numbers
//! in it must not be given out again. After a clean stop this file knows them. (After a crash nothing does, but for what a
//! relay has delivered; a crash and a flipped bit in its last commit would have to come together.)

use std::{io, path::Path};

const NAME: &str = "end";

/// Writes it down, durably.
pub(super) fn write(dir: &Path, next: u64) -> io::Result<()> {
    let number = next.to_string();
    board::durable::write(
        &dir.join(NAME),
        format!("{number} {:08x}\n", crc32c::crc32c(number.as_bytes())).as_bytes(),
        0o600,
    )
}

/// What was written down; `None` where nothing was, or where it is damaged itself.
pub(super) fn read(dir: &Path) -> Option<u64> {
    let bytes = board::durable::read(&dir.join(NAME), 64).ok()?;
    let (number, crc) = std::str::from_utf8(&bytes).ok()?.trim_end().split_once(' ')?;
    let whole = u32::from_str_radix(crc, 16) == Ok(crc32c::crc32c(number.as_bytes()));
    number.parse().ok().filter(|_| whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_end_is_none() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()), None);
        write(dir.path(), 1234).unwrap();
        assert_eq!(read(dir.path()), Some(1234));
        let path = dir.path().join(NAME);
        let whole = std::fs::read(&path).unwrap();
        for byte in 0..whole.len() - 1 {
            let mut bytes = whole.clone();
            bytes[byte] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            assert_ne!(read(dir.path()), Some(1235));
            assert!(read(dir.path()).is_none_or(|next| next == 1234), "byte {byte}");
        }
    }
}
