//! What the targets share: what holds of measurements, whatever they were read from.

use std::collections::BTreeMap;

use telemetry::decode::{Measurement, Value, cbor, senml};

/// When the payload came, µs since 1970.
pub const RECEIVED_US: i64 = 1_800_000_000_000_000;
/// Times before this are relative in `SenML`, µs.
const RELATIVE_US: i64 = 268_435_456_000_000;
/// Beyond this a time in seconds is not exact to the µs any more.
const EXACT_US: i64 = 1 << 50;

/// Few, finite, and not much larger than the largest payload.
pub fn check(all: &[Measurement]) {
    assert!(all.len() <= 10_000, "{} measurements", all.len());
    let text: usize = all.iter().map(|it| it.name.len() + it.unit.as_ref().map_or(0, String::len)).sum();
    assert!(text <= 4 << 20, "{text} bytes of names and units");
    for it in all {
        assert!(!matches!(it.value, Some(Value::Number(number)) if !number.is_finite()), "{it:?}");
    }
}

/// Written as a pack without base fields, in CBOR, they read back the same.
pub fn read_back(mut all: Vec<Measurement>) {
    if all.is_empty() || all.iter().any(|it| it.name.is_empty()) {
        return; // A plain number: `SenML` wants names.
    }
    for it in &mut all {
        it.time_us = it.time_us.filter(|us| (RELATIVE_US..EXACT_US).contains(us));
    }
    let pack: Vec<_> = all.iter().map(record).collect();
    // Over the reader's limit on documents.
    let Some(bytes) = cbor::to_vec(&pack).filter(|bytes| bytes.len() <= 256 << 10) else { return };
    assert_eq!(senml(&bytes, RECEIVED_US), Some(all));
}

#[derive(serde::Serialize)]
#[serde(untagged)]
enum Field {
    Text(String),
    Number(f64),
    Bool(bool),
    #[serde(serialize_with = "as_bytes")]
    Data(Vec<u8>),
}

fn as_bytes<S: serde::Serializer>(data: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bytes(data)
}

/// Labels of RFC 8428, section 6.
fn record(it: &Measurement) -> BTreeMap<i64, Field> {
    let value = match &it.value {
        None => (5, Field::Number(0.0)),
        Some(Value::Number(number)) => (2, Field::Number(*number)),
        Some(Value::Text(text)) => (3, Field::Text(text.clone())),
        Some(Value::Bool(truth)) => (4, Field::Bool(*truth)),
        Some(Value::Data(data)) => (8, Field::Data(data.clone())),
    };
    let unit = it.unit.clone().map(|unit| (1, Field::Text(unit)));
    // Below EXACT_US, so the division and its inverse lose nothing.
    #[allow(clippy::cast_precision_loss)]
    let time = it.time_us.map(|us| (6, Field::Number(us as f64 / 1e6)));
    [Some((0, Field::Text(it.name.clone()))), Some(value), unit, time].into_iter().flatten().collect()
}
