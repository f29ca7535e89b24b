//! A door for the target in `fuzz/` that reads values of the state database.

use super::{Entity, StateError, value};

/// What lies under a value's own key, and its parts.
pub fn encode<E: Entity>(value: &E) -> Result<(Vec<u8>, Vec<Vec<u8>>), StateError> {
    let encoded = value::encode("key", value)?;
    Ok((encoded.head, encoded.parts))
}

/// Reads a value back.
pub fn decode<E: Entity>(head: &[u8], parts: &[Vec<u8>]) -> Result<E, StateError> {
    value::decode("key", head, |n| Ok(usize::try_from(n).ok().and_then(|n| parts.get(n)).cloned()))
}

/// Gives a value in one piece the checksum that fits its content.
pub fn seal(head: &mut [u8]) {
    if let [_kind, _version, _also, rest @ ..] = head
        && let Some((crc, json)) = rest.split_at_mut_checked(4)
    {
        crc.copy_from_slice(&crc32c::crc32c(json).to_le_bytes());
    }
}
