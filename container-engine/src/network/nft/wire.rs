//! Netlink attributes: length, type, value, filled up to four bytes; numbers of nf_tables are big-endian.

use std::collections::BTreeMap;

const NESTED: u16 = 0x8000;

/// Attributes being written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attrs(Vec<u8>);

impl Attrs {
    /// A value as it is.
    #[must_use]
    pub fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        // Callers keep below 64 KiB: names are short, lists are cut into parts.
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// A number.
    #[must_use]
    pub fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// A text with its NUL.
    #[must_use]
    pub fn text(self, kind: u16, value: &str) -> Self {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat())
    }

    /// Attributes within one.
    #[must_use]
    pub fn nest(self, kind: u16, inner: Self) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }

    /// Attributes within one, as they were read.
    #[must_use]
    pub fn nested(self, kind: u16, inner: &[u8]) -> Self {
        self.bytes(kind | NESTED, inner)
    }

    /// The body of a message: nfnetlink's header and the attributes.
    pub fn message(self, family: u8) -> Vec<u8> {
        [&[family, 0, 0, 0], self.0.as_slice()].concat()
    }
}

/// Attributes of one level by type; of repeated ones the last. Whatever is cut off is left out.
pub fn parse(mut bytes: &[u8]) -> BTreeMap<u16, &[u8]> {
    let mut attrs = BTreeMap::new();
    while let Some((header, _)) = bytes.split_at_checked(4) {
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let Some(value) = bytes.get(4..length) else { break };
        attrs.insert(u16::from_ne_bytes([header[2], header[3]]) & !NESTED, value);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    attrs
}
