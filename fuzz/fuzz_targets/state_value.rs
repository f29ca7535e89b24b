#![no_main]
//! Values of the state database. The first byte: 1 gives the value the checksum that fits, 2 makes parts of the second
//! half, 4 grows what was read until it is written in parts.

use libfuzzer_sys::fuzz_target;
use store::state::{
    Entity,
    fuzzing::{decode, encode, seal},
};

#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
struct Sample {
    name: String,
    numbers: Vec<i64>,
    inner: Option<Box<Sample>>,
}

impl Entity for Sample {
    const TREE: &'static str = "sample";
    const VERSION: u16 = 2;
    fn migrate(version: u16, old: serde_json::Value) -> Result<Self, String> {
        assert!(version < Self::VERSION);
        let name = old.as_str().ok_or("not a name")?.to_owned();
        Ok(Self { name, numbers: Vec::new(), inner: None })
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&mode, rest)) = data.split_first() else { return };
    let (head, tail) = if mode & 2 == 0 { (rest, &rest[..0]) } else { rest.split_at(rest.len() / 2) };
    let mut head = head.to_vec();
    if mode & 1 == 1 {
        seal(&mut head);
    }
    let parts: Vec<_> = tail.chunks(usize::from(mode >> 3) + 1).map(<[u8]>::to_vec).collect();
    let Ok(mut value) = decode::<Sample>(&head, &parts) else { return };
    if mode & 4 != 0 {
        value.name = value.name.repeat((64 << 10) / value.name.len().max(1));
    }
    there_and_back(&value, mode);
});

fn there_and_back(value: &Sample, mode: u8) {
    let (mut head, mut parts) = encode(value).expect("what was read can be written");
    assert!(parts.iter().all(|part| part.len() <= 32 << 10), "no piece is larger than sled syncs");
    assert_eq!(decode::<Sample>(&head, &parts).as_ref().ok(), Some(value));
    // Damage anywhere in the checked bytes is noticed.
    let pick = parts.len().max(1) * usize::from(mode) / 256;
    let piece = parts.get_mut(pick).unwrap_or(&mut head);
    let at = 7 + usize::from(mode) * 31 % (piece.len() - 7);
    piece[at] ^= 0x10;
    assert!(decode::<Sample>(&head, &parts).is_err(), "damage at {at} of part {pick}");
}
