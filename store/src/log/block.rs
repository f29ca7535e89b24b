//! The unit of the log: a block of records with its checksums.
//!
//! On disk, little endian: `magic u32, flags u8, marks u8, count u16, first_seq u64, stored_len u32, raw_len u32,
//! body_crc u32, header_crc u32`, then `stored_len` bytes of body. The body, after LZ4 where the flag says so, is a
//! sequence of `length varint, mark u8, bytes`; in a checkpoint block it is JSON-free `name`, `value` pairs in the same form.
//!
//! Always true: both checksums (CRC32C) start from the segment's generation, so what an earlier use of a recycled file
//! left behind never passes as a block of the present one.

use super::Record;

/// Bytes of a block header.
pub(super) const HEADER: usize = 32;
/// Raw body size at which a block is closed: small enough that a damaged block costs little, large enough to compress.
pub(super) const TARGET_RAW: usize = 16 << 10;
/// Most bytes one record may have.
pub(super) const MAX_RECORD: usize = 3 << 20;
/// Sequence numbers and generations end below this: a log that says otherwise is damaged, and sums cannot overflow.
pub(super) const MAX_NUMBER: u64 = 1 << 62;
const MAGIC: [u8; 4] = *b"EBLK";
/// Below this compressing gains nothing that a 4 KiB disk block would notice.
const MIN_COMPRESS: usize = 512;

/// This block starts a commit: all commits before it were durable when it was written.
pub(super) const FIRST_OF_COMMIT: u8 = 1;
/// The body is LZ4.
const LZ4: u8 = 2;
/// The body holds checkpoints, not records.
pub(super) const CHECKPOINT: u8 = 4;

/// A header that passed its checksum and is within limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub flags: u8,
    pub marks: u8,
    pub count: u16,
    pub first_seq: u64,
    pub stored_len: u32,
    raw_len: u32,
    body_crc: u32,
}

fn seeded(generation: u64, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&generation.to_le_bytes()), bytes)
}

impl Header {
    /// Reads a header; `None` where this is not an intact header of that generation.
    pub fn parse(bytes: &[u8], generation: u64) -> Option<Self> {
        let bytes: &[u8; HEADER] = bytes.get(..HEADER)?.try_into().ok()?;
        if bytes[..4] != MAGIC || seeded(generation, &bytes[..28]) != le32(&bytes[28..]) {
            return None;
        }
        let header = Self {
            flags: bytes[4],
            marks: bytes[5],
            count: u16::from_le_bytes([bytes[6], bytes[7]]),
            first_seq: u64::from_le_bytes(bytes[8..16].try_into().ok()?),
            stored_len: le32(&bytes[16..]),
            raw_len: le32(&bytes[20..]),
            body_crc: le32(&bytes[24..]),
        };
        let limit = MAX_RECORD + TARGET_RAW + 64;
        let fits = header.raw_len as usize <= limit && header.stored_len <= header.raw_len;
        (fits && header.first_seq < MAX_NUMBER && (header.is_checkpoint() || header.count > 0)).then_some(header)
    }

    pub fn is_checkpoint(&self) -> bool {
        self.flags & CHECKPOINT != 0
    }

    pub fn starts_commit(&self) -> bool {
        self.flags & FIRST_OF_COMMIT != 0
    }

    /// One past the last sequence number; `first_seq` for a checkpoint.
    pub fn end_seq(&self) -> u64 {
        if self.is_checkpoint() { self.first_seq } else { self.first_seq + u64::from(self.count) }
    }

    /// Bytes from this header to the next.
    pub fn size(&self) -> u64 {
        HEADER as u64 + u64::from(self.stored_len)
    }

    /// Checks the body and unpacks it; `None` where it is damaged.
    pub fn unpack(&self, generation: u64, stored: &[u8]) -> Option<Vec<u8>> {
        if stored.len() != self.stored_len as usize || seeded(generation, stored) != self.body_crc {
            return None;
        }
        if self.flags & LZ4 == 0 {
            return (stored.len() == self.raw_len as usize).then(|| stored.to_vec());
        }
        let raw = lz4_flex::block::decompress(stored, self.raw_len as usize).ok()?;
        (raw.len() == self.raw_len as usize).then_some(raw)
    }
}

fn le32(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// Where the next byte that could start a header is, at or after `from`.
pub(super) fn find_magic(bytes: &[u8], from: usize) -> Option<usize> {
    let rest = bytes.get(from..)?;
    rest.windows(MAGIC.len()).position(|window| window == MAGIC).map(|at| from + at)
}

/// Appends one record to a raw body.
pub(super) fn push_record(raw: &mut Vec<u8>, record: &Record) {
    push_varint(raw, record.body.len() as u64);
    raw.push(record.mark);
    raw.extend_from_slice(&record.body);
}

/// The records of a raw body; stops at the first that does not fit (which the checksum rules out).
pub(super) fn records(raw: &[u8]) -> impl Iterator<Item = Record> + '_ {
    let mut rest = raw;
    std::iter::from_fn(move || {
        let len = usize::try_from(take_varint(&mut rest)?).ok()?;
        let (&mark, tail) = rest.split_first()?;
        let body = tail.get(..len)?.to_vec();
        rest = &tail[len..];
        Some(Record { mark, body })
    })
}

/// What is written: blocks, one after the other.
#[derive(Default)]
pub(super) struct Encoder {
    pub bytes: Vec<u8>,
    compressed: Vec<u8>,
}

impl Encoder {
    /// Appends a block. `flags` of `FIRST_OF_COMMIT` and `CHECKPOINT`; the rest is decided here.
    pub fn block(&mut self, generation: u64, flags: u8, marks: u8, count: u16, first_seq: u64, raw: &[u8]) {
        let mut flags = flags;
        let mut stored = raw;
        if raw.len() >= MIN_COMPRESS {
            self.compressed.resize(lz4_flex::block::get_maximum_output_size(raw.len()), 0);
            if let Ok(len) = lz4_flex::block::compress_into(raw, &mut self.compressed)
                && len < raw.len() - raw.len() / 16
            {
                flags |= LZ4;
                stored = &self.compressed[..len];
            }
        }
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&MAGIC);
        self.bytes.extend_from_slice(&[flags, marks]);
        self.bytes.extend_from_slice(&count.to_le_bytes());
        self.bytes.extend_from_slice(&first_seq.to_le_bytes());
        // Both lengths are below `MAX_RECORD + TARGET_RAW + 64`.
        #[allow(clippy::cast_possible_truncation)]
        for len in [stored.len() as u32, raw.len() as u32] {
            self.bytes.extend_from_slice(&len.to_le_bytes());
        }
        self.bytes.extend_from_slice(&seeded(generation, stored).to_le_bytes());
        let crc = seeded(generation, &self.bytes[start..]);
        self.bytes.extend_from_slice(&crc.to_le_bytes());
        self.bytes.extend_from_slice(stored);
    }
}

/// Gives the block at the beginning the checksums that fit its content; returns how many bytes it covers.
#[cfg(fuzzing)]
pub(super) fn seal(generation: u64, bytes: &mut [u8]) -> usize {
    let Some((header, rest)) = bytes.split_at_mut_checked(HEADER) else { return bytes.len() };
    let stored = (le32(&header[16..]) as usize).min(rest.len());
    header[24..28].copy_from_slice(&seeded(generation, &rest[..stored]).to_le_bytes());
    let crc = seeded(generation, &header[..28]);
    header[28..].copy_from_slice(&crc.to_le_bytes());
    HEADER + stored
}

/// LEB128.
pub(super) fn push_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push((value & 0x7f) as u8);
}

/// LEB128; `None` where it is cut off, over 64 bits, or longer than it needs to be: a number has one form.
pub(super) fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let bits = u64::from(byte & 0x7f);
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return (bits << shift >> shift == bits && (byte > 0 || shift == 0)).then_some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_reads_back_and_only_in_its_generation() {
        let record = Record { mark: 2, body: b"reading ".repeat(200) };
        let mut raw = Vec::new();
        push_record(&mut raw, &record);
        let mut encoder = Encoder::default();
        encoder.block(7, FIRST_OF_COMMIT, 2, 1, 42, &raw);
        let header = Header::parse(&encoder.bytes, 7).unwrap();
        assert_eq!((header.first_seq, header.end_seq(), header.marks), (42, 43, 2));
        assert!(u64::from(header.stored_len) < raw.len() as u64 / 4, "repeated text compresses");
        let body = header.unpack(7, &encoder.bytes[HEADER..]).unwrap();
        assert_eq!(records(&body).collect::<Vec<_>>(), [record]);
        assert_eq!(Header::parse(&encoder.bytes, 8), None);
        assert_eq!(header.unpack(8, &encoder.bytes[HEADER..]), None);
    }

    #[test]
    fn numbers_that_no_log_reaches_are_damage() {
        for (first_seq, ok) in [(MAX_NUMBER - 1, true), (MAX_NUMBER, false), (u64::MAX, false)] {
            let mut encoder = Encoder::default();
            encoder.block(1, 0, 0, 1, first_seq, &[0, 0]);
            assert_eq!(Header::parse(&encoder.bytes, 1).is_some(), ok, "{first_seq}");
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let mut raw = Vec::new();
        push_record(&mut raw, &Record { mark: 0, body: b"21.5".to_vec() });
        let mut encoder = Encoder::default();
        encoder.block(1, 0, 0, 1, 1, &raw);
        for bit in 0..encoder.bytes.len() * 8 {
            let mut bytes = encoder.bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let body = Header::parse(&bytes, 1).and_then(|header| header.unpack(1, bytes.get(HEADER..)?));
            assert_eq!(body, None, "bit {bit}");
        }
    }
}
