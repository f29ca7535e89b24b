//! CBOR, the one module that calls `serde_cbor` (no longer maintained, RUSTSEC-2021-0127): only after a look at the bytes
//! that bounds their size, depth and promised lengths.

use serde::{Serialize, de::DeserializeOwned};

/// Largest document read.
const MAX_BYTES: usize = 256 << 10;
/// Deepest nesting read.
const MAX_DEPTH: usize = 16;

/// Reads a document; `None` where it is over the limits or does not parse.
pub fn from_slice<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    if bytes.len() > MAX_BYTES || skip(bytes, 0)? != bytes.len() {
        return None;
    }
    serde_cbor::from_slice(bytes).ok()
}

/// Writes a document; `None` only for values that CBOR has no form for.
pub fn to_vec<T: Serialize>(value: &T) -> Option<Vec<u8>> {
    serde_cbor::to_vec(value).ok()
}

/// Bytes of the data item at the beginning; `None` where it is cut off, too deep or of an indefinite length (which
/// `SenML` has no use for).
fn skip(bytes: &[u8], depth: usize) -> Option<usize> {
    if depth > MAX_DEPTH {
        return None;
    }
    let first = *bytes.first()?;
    let extra = match first & 0x1f {
        0..=23 => 0,
        24 => 1,
        25 => 2,
        26 => 4,
        27 => 8,
        _ => return None,
    };
    let argument = bytes.get(1..1 + extra)?.iter().fold(0u64, |all, byte| all << 8 | u64::from(*byte));
    let argument = if extra == 0 { u64::from(first & 0x1f) } else { argument };
    let mut at = 1 + extra;
    let items = match first >> 5 {
        2 | 3 => {
            at = at.checked_add(usize::try_from(argument).ok()?)?;
            0
        }
        4 => argument,
        5 => argument.checked_mul(2)?,
        6 => 1,
        _ => 0,
    };
    // An item has at least one byte, so a promise beyond the end is found before it costs anything.
    for _ in 0..items {
        at += skip(bytes.get(at..)?, depth + 1)?;
    }
    (at <= bytes.len()).then_some(at)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn deep_and_lying_documents_are_refused() {
        assert_eq!(from_slice::<Vec<u8>>(&to_vec(&vec![1u8, 2]).unwrap()), Some(vec![1, 2]));
        assert!(from_slice::<serde_json::Value>(&vec![0x81; 1000]).is_none());
        assert!(from_slice::<serde_json::Value>(&[0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]).is_none());
        assert!(from_slice::<serde_json::Value>(&[0x5b, 0, 0, 0, 1, 0, 0, 0, 0]).is_none());
        assert!(from_slice::<u8>(&[1, 1]).is_none(), "something after the end");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _ = from_slice::<serde_json::Value>(&bytes);
        }
    }
}
