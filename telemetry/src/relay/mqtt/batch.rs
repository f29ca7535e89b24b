//! `mode = "batch"`: many readings in one message, CBOR compressed with zstd.
//!
//! `{v: 1, board, epoch, first, last, readings: [[seq, time_us, topic, payload], …]}`, payloads as byte strings.

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

/// The message for these readings with their times; `None` for no readings.
pub(super) fn encode(board: &str, epoch: u64, readings: &[(Reading, i64)]) -> Option<Vec<u8>> {
    let (first, last) = (readings.first()?.0.seq, readings.last()?.0.seq);
    let readings = readings.iter().map(|(reading, time_us)| Row(reading, *time_us)).collect();
    let cbor = cbor::to_vec(&Batch { v: 1, board, epoch, first, last, readings })?;
    zstd::bulk::compress(&cbor, LEVEL).ok()
}
