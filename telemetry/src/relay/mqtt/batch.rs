//! `mode = "batch"`: many readings in one message, CBOR compressed with zstd.
//!
//! `{v: 1, board, epoch, first, last, readings: [[seq, time_us, topic, payload], …]}` on `PREFIX/BOARD/batch`. `seq`
//! ascends from `first` to `last`, with gaps where readings went another way; `time_us` counts from 1970, UTC; `payload` is
//! a byte string always, text too: a reader need not guess which of two types it will meet.

use std::io;

use serde::{Serialize, Serializer, ser::SerializeTuple};

use crate::{decode::cbor, reading::Reading};

/// Fast, and half the way to the best ratio for such data.
const LEVEL: i32 = 3;

#[derive(Serialize)]
struct Batch<'a> {
    v: u8,
    board: &'a str,
    epoch: u64,
    first: u64,
    last: u64,
    readings: Vec<Row<'a>>,
}

struct Row<'a>(&'a Reading, i64);

struct Blob<'a>(&'a [u8]);

impl Serialize for Blob<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

impl Serialize for Row<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut row = serializer.serialize_tuple(4)?;
        row.serialize_element(&self.0.seq)?;
        row.serialize_element(&self.1)?;
        row.serialize_element(&self.0.topic)?;
        row.serialize_element(&Blob(&self.0.payload))?;
        row.end()
    }
}

/// Makes messages. Holds what zstd works in, some hundred KiB: to be dropped when there is nothing to send.
pub(super) struct Packer(zstd::bulk::Compressor<'static>);

impl Packer {
    pub fn new() -> io::Result<Self> {
        zstd::bulk::Compressor::new(LEVEL).map(Self)
    }

    /// The message for these readings, of which there is at least one, with their times.
    pub fn pack(&mut self, board: &str, epoch: u64, readings: &[(Reading, i64)]) -> io::Result<Vec<u8>> {
        let number = |reading: Option<&(Reading, i64)>| reading.map_or(0, |(reading, _)| reading.seq);
        let (first, last) = (number(readings.first()), number(readings.last()));
        let readings = readings.iter().map(|(reading, time_us)| Row(reading, *time_us)).collect();
        let cbor = cbor::to_vec(&Batch { v: 1, board, epoch, first, last, readings });
        self.0.compress(&cbor.ok_or_else(|| io::Error::other("a batch has no form in CBOR"))?)
    }
}
