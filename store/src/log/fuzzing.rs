//! A door for the targets in `fuzz/`: blocks written, read, and sealed again after they were changed.
//!
//! Checksums keep random bytes out of everything behind them; sealing lets a target test that too, as if a writer of ours
//! had been wrong.

use super::{
    Record,
    block::{self, Encoder, HEADER, Header},
};

/// Where blocks start in a segment.
pub const DATA_START: u64 = super::segment::DATA_START;

/// A block that was read.
#[derive(Debug, PartialEq, Eq)]
pub struct Block {
    /// Its first number.
    pub first_seq: u64,
    /// One past its last number.
    pub end_seq: u64,
    /// Bytes to the next block.
    pub size: u64,
    /// What it holds.
    pub records: Vec<Record>,
}

/// Writes a block of records.
pub fn encode(generation: u64, first_seq: u64, records: &[Record]) -> Vec<u8> {
    let mut raw = Vec::new();
    records.iter().for_each(|record| block::push_record(&mut raw, record));
    let marks = records.iter().fold(0, |marks, record| marks | record.mark);
    let count = u16::try_from(records.len()).unwrap_or(u16::MAX);
    let mut encoder = Encoder::default();
    encoder.block(generation, block::FIRST_OF_COMMIT, marks, count, first_seq, &raw);
    encoder.bytes
}

/// Reads the block at the beginning, as readers and recovery do.
pub fn decode(generation: u64, bytes: &[u8]) -> Option<Block> {
    let header = Header::parse(bytes, generation)?;
    let stored = bytes.get(HEADER..HEADER + header.stored_len as usize)?;
    let raw = header.unpack(generation, stored)?;
    let records = block::records(&raw).collect();
    Some(Block { first_seq: header.first_seq, end_seq: header.end_seq(), size: header.size(), records })
}

/// Gives every block in `bytes` the checksums that fit its content.
pub fn seal(generation: u64, bytes: &mut [u8]) {
    let mut from = 0;
    while let Some(at) = block::find_magic(bytes, from) {
        from = at + block::seal(generation, &mut bytes[at..]);
    }
}
