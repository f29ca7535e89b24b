//! How a value lies in the database: framed, checked, and split where it is large.
//!
//! A value is `version u16, crc32c u32, JSON`, little endian. Over 8 KiB it is cut into parts under keys of their own
//! (`TREE 0 KEY 0xff N`), and the main key holds an index; so no leaf of sled's tree exceeds a quarter of a segment, above
//! which sled would keep it in a file that it never syncs.

use super::{Entity, StateError};

/// Largest value in one piece.
pub(super) const PART: usize = 8 << 10;
/// Largest value at all.
const MAX_VALUE: usize = 16 << 20;
/// Longest key.
const MAX_KEY: usize = 512;
const WHOLE: u8 = 0;
const SPLIT: u8 = 1;

/// The database's key of `key` in `tree`.
pub(super) fn key_of(tree: &'static str, key: &str) -> Result<Vec<u8>, StateError> {
    let bad = |problem: &str| StateError::Value { tree, key: key.chars().take(64).collect(), problem: problem.into() };
    if key.len() > MAX_KEY {
        return Err(bad("the key is over 512 bytes"));
    }
    if key.as_bytes().contains(&0xff) || key.contains('\0') {
        return Err(bad("the key has a NUL"));
    }
    Ok([tree.as_bytes(), &[0], key.as_bytes()].concat())
}

/// The key of part `n` of a split value. 0xff is in no UTF-8, so it collides with no key.
pub(super) fn part_key(key: &[u8], n: u32) -> Vec<u8> {
    [key, &[0xff], &n.to_be_bytes()].concat()
}

/// Whether this is a part's key.
pub(super) fn is_part(key: &[u8]) -> bool {
    key.contains(&0xff)
}

/// A value as it is written: what goes under its own key, and its parts.
pub(super) struct Encoded {
    pub head: Vec<u8>,
    pub parts: Vec<Vec<u8>>,
}

pub(super) fn encode<E: Entity>(key: &str, value: &E) -> Result<Encoded, StateError> {
    let bad = |problem: String| StateError::Value { tree: E::TREE, key: key.to_owned(), problem };
    let json = serde_json::to_vec(value).map_err(|error| bad(error.to_string()))?;
    if json.len() > MAX_VALUE {
        return Err(bad(format!("the value has {} bytes, over the limit of 16 MiB", json.len())));
    }
    let mut framed = Vec::with_capacity(json.len() + 6);
    framed.extend_from_slice(&E::VERSION.to_le_bytes());
    framed.extend_from_slice(&crc32c::crc32c(&json).to_le_bytes());
    framed.extend_from_slice(&json);
    if framed.len() <= PART {
        return Ok(Encoded { head: [&[WHOLE], &framed[..]].concat(), parts: Vec::new() });
    }
    let parts: Vec<_> = framed.chunks(PART).map(<[u8]>::to_vec).collect();
    let count = u32::try_from(parts.len()).unwrap_or(u32::MAX);
    Ok(Encoded { head: [&[SPLIT][..], &count.to_le_bytes()].concat(), parts })
}

/// How many parts the value under this head has.
pub(super) fn part_count(head: &[u8]) -> u32 {
    match head {
        [SPLIT, count @ ..] => {
            count.try_into().map_or(0, u32::from_le_bytes).min(u32::try_from(MAX_VALUE / PART).unwrap_or(0) + 1)
        }
        _ => 0,
    }
}

/// Reads a value back; `parts` fetches part `n`.
pub(super) fn decode<E: Entity>(
    key: &str,
    head: &[u8],
    mut parts: impl FnMut(u32) -> Result<Option<Vec<u8>>, StateError>,
) -> Result<E, StateError> {
    let bad = |problem: String| StateError::Value { tree: E::TREE, key: key.to_owned(), problem };
    let mut framed = Vec::new();
    if let [WHOLE, whole @ ..] = head {
        framed.extend_from_slice(whole);
    } else {
        for n in 0..part_count(head) {
            framed.extend(parts(n)?.ok_or_else(|| bad(format!("part {n} is missing")))?);
        }
    }
    let Some((frame, json)) = framed.split_at_checked(6) else { return Err(bad("the value is cut off".into())) };
    let version = u16::from_le_bytes([frame[0], frame[1]]);
    if crc32c::crc32c(json).to_le_bytes() != frame[2..] {
        return Err(bad("the value is damaged (checksum)".into()));
    }
    let parsed = |error: serde_json::Error| bad(format!("version {version}: {error}"));
    match version.cmp(&E::VERSION) {
        std::cmp::Ordering::Equal => serde_json::from_slice(json).map_err(parsed),
        std::cmp::Ordering::Less => E::migrate(version, serde_json::from_slice(json).map_err(parsed)?).map_err(bad),
        std::cmp::Ordering::Greater => {
            Err(bad(format!("has version {version}, this program knows {}: use a newer edge-agent", E::VERSION)))
        }
    }
}
