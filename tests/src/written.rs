//! What `store-writer` writes, so that a test can tell whether it reads back the same.

use serde::{Deserialize, Serialize};
use store::state::Entity;

/// The body of record `id`: up to some kilobytes, all of it decided by `id`.
pub fn body(id: u64) -> Vec<u8> {
    let mut mixed = id.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^= mixed >> 29;
    let len = 16 + usize::try_from(mixed % 500).unwrap_or(0) * if mixed.is_multiple_of(50) { 16 } else { 1 };
    let mut body = id.to_le_bytes().to_vec();
    while body.len() < len {
        mixed = mixed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        body.extend_from_slice(&mixed.to_le_bytes());
    }
    body
}

/// One half of a pair that is always written together; now and then large enough to be split.
#[derive(Debug, Serialize, Deserialize)]
pub struct Left {
    /// How often it was written.
    pub count: u64,
    /// As many letters as `count` says.
    pub text: String,
}

impl Left {
    /// The value for `count`.
    pub fn new(count: u64) -> Self {
        Self { count, text: Self::text(count) }
    }

    /// Whether it is whole.
    pub fn is_whole(&self) -> bool {
        self.text == Self::text(self.count)
    }

    fn text(count: u64) -> String {
        let len = usize::try_from(count % 13).unwrap_or(0) * if count.is_multiple_of(17) { 8 << 10 } else { 20 };
        char::from(b'a' + u8::try_from(count % 26).unwrap_or(0)).to_string().repeat(len)
    }
}

/// The other half.
#[derive(Debug, Serialize, Deserialize)]
pub struct Right {
    /// Equal to the left one's.
    pub count: u64,
}

impl Entity for Left {
    const TREE: &'static str = "left";
    const VERSION: u16 = 1;
}

impl Entity for Right {
    const TREE: &'static str = "right";
    const VERSION: u16 = 1;
}
