//! What a segment holds, read block by block: at open for the newest segment, and what was damaged in it.
//!
//! Only one commit is ever in flight, and it starts with a block marked so. A bad place with a commit's first block
//! after it therefore lies in data that was durable: it is damage, and what is readable on both sides is kept. A bad
//! place with no such block after it is the end: nothing, or a commit that a power cut tore and nobody was told of.

use std::{collections::BTreeMap, io, ops::Range, path::Path};

use super::{
    block::{self, Header},
    segment::{BlockFile, DATA_START, Segment},
};

/// The newest segment after a look at every block of it.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// One past the last readable record.
    pub end_seq: u64,
    /// Where the next block goes.
    pub end_at: u64,
    /// Damaged numbers.
    pub lost: Vec<Range<u64>>,
    /// Remains of a torn commit lie after the end: write no more into this file.
    pub sealed: bool,
    /// Bytes of that torn commit, as far as its headers tell.
    pub torn_bytes: u64,
    /// The last checkpoints.
    pub checkpoints: BTreeMap<String, Vec<u8>>,
}

/// Scans one segment.
pub(super) fn scan(dir: &Path, segment: Segment) -> io::Result<Scan> {
    let file = BlockFile::open(dir, segment)?;
    let mut scan = Scan { end_seq: segment.first_seq, end_at: DATA_START, ..Scan::default() };
    let mut at = DATA_START;
    loop {
        if let Some((header, body)) = intact(&file, at, scan.end_seq)? {
            take(&mut scan, &header, &body);
            at += header.size();
            scan.end_at = at;
            continue;
        }
        match next_commit(&file, at + 1, scan.end_seq)? {
            Next::Commit(place, header) => {
                if header.first_seq > scan.end_seq {
                    scan.lost.push(scan.end_seq..header.first_seq);
                    scan.end_seq = header.first_seq;
                }
                at = place;
            }
            Next::Remains => {
                scan.sealed = true;
                scan.torn_bytes += file.header(at)?.map_or(0, |header| header.size());
                return Ok(scan);
            }
            Next::Nothing => {
                // A header of ours with a bad body: the first block of a torn commit.
                if let Some(header) = file.header(at)? {
                    scan.sealed = true;
                    scan.torn_bytes += header.size();
                }
                return Ok(scan);
            }
        }
    }
}

fn intact(file: &BlockFile, at: u64, expected: u64) -> io::Result<Option<(Header, Vec<u8>)>> {
    let Some(header) = file.header(at)?.filter(|header| header.first_seq == expected) else { return Ok(None) };
    Ok(file.body(at, &header)?.map(|body| (header, body)))
}

enum Next {
    Commit(u64, Header),
    Remains,
    Nothing,
}

fn next_commit(file: &BlockFile, from: u64, expected: u64) -> io::Result<Next> {
    let mut from = from;
    let mut remains = false;
    while let Some((place, header)) = file.resync(from)? {
        if header.starts_commit() && header.first_seq >= expected {
            return Ok(Next::Commit(place, header));
        }
        remains = true;
        from = place + header.size();
    }
    Ok(if remains { Next::Remains } else { Next::Nothing })
}

fn take(scan: &mut Scan, header: &Header, body: &[u8]) {
    if header.is_checkpoint() {
        scan.checkpoints = read_checkpoints(body);
    } else {
        scan.end_seq = header.end_seq();
    }
}

/// Checkpoints as records: name and value alternate.
pub(super) fn write_checkpoints(checkpoints: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    let mut raw = Vec::new();
    for (name, value) in checkpoints {
        for body in [name.as_bytes(), value] {
            block::push_varint(&mut raw, body.len() as u64);
            raw.push(0);
            raw.extend_from_slice(body);
        }
    }
    raw
}

fn read_checkpoints(raw: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut checkpoints = BTreeMap::new();
    let mut records = block::records(raw);
    while let (Some(name), Some(value)) = (records.next(), records.next()) {
        if let Ok(name) = String::from_utf8(name.body) {
            checkpoints.insert(name, value.body);
        }
    }
    checkpoints
}
