//! `SenML`, RFC 8428: base fields, relative times, JSON names and CBOR labels.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::Value as Json;

use super::{MAX_MEASUREMENTS, MAX_TEXT, Measurement, Value, cbor};

/// Times below this many seconds are relative to now (section 4.5.3).
const RELATIVE: f64 = 268_435_456.0;
/// The version that this understands (section 4.4).
const VERSION: f64 = 10.0;

/// One record, whichever form it came in.
#[derive(Default)]
struct Record {
    base_name: Option<String>,
    base_time: Option<f64>,
    base_unit: Option<String>,
    base_value: Option<f64>,
    name: Option<String>,
    unit: Option<String>,
    value: Option<Value>,
    has_sum: bool,
    time: Option<f64>,
}

/// Reads a pack, JSON or CBOR; `None` where it is not one.
pub fn senml(payload: &[u8], received_us: i64) -> Option<Vec<Measurement>> {
    let is_json = payload.trim_ascii_start().first() == Some(&b'[');
    let records = if is_json { from_json(payload)? } else { from_cbor(payload)? };
    if records.is_empty() { None } else { resolve(records, received_us) }
}

/// Section 4.6: base fields apply from their record on.
fn resolve(records: Vec<Record>, received_us: i64) -> Option<Vec<Measurement>> {
    let (mut base_name, mut base_time, mut base_unit, mut base_value) = (String::new(), 0.0, None, None);
    let mut all = Vec::with_capacity(records.len());
    let mut room = MAX_TEXT;
    for record in records {
        base_name = record.base_name.unwrap_or(base_name);
        base_time = record.base_time.unwrap_or(base_time);
        base_unit = record.base_unit.or(base_unit);
        base_value = record.base_value.or(base_value);
        let (name, unit) = (record.name.unwrap_or_default(), record.unit.as_ref().or(base_unit.as_ref()));
        room = room.checked_sub(base_name.len() + name.len() + unit.map_or(0, String::len))?;
        let (name, unit) = (format!("{base_name}{name}"), unit.cloned());
        let value = match (record.value, base_value) {
            (Some(Value::Number(number)), base) => Some(Value::Number(number + base.unwrap_or(0.0))),
            (None, Some(base)) if !record.has_sum => Some(Value::Number(base)),
            (other, _) => other,
        };
        // CBOR has a form for them and sums can overflow, but they are no measurements.
        if matches!(value, Some(Value::Number(number)) if !number.is_finite()) {
            return None;
        }
        if value.is_none() && !record.has_sum {
            continue; // A record of base fields alone.
        }
        if name.is_empty() {
            return None; // Section 4.1: a name there must be.
        }
        let time = base_time + record.time.unwrap_or(0.0);
        all.push(Measurement { name, value, unit, time_us: absolute(time, received_us) });
    }
    Some(all)
}

/// Seconds to µs; 0 is "now", which the reading's own time says better.
fn absolute(time: f64, received_us: i64) -> Option<i64> {
    if time == 0.0 || !time.is_finite() || time.abs() > 1e12 {
        return None;
    }
    // In range by the check above.
    #[allow(clippy::cast_possible_truncation)]
    let us = (time * 1e6).round() as i64;
    Some(if time < RELATIVE { received_us.saturating_add(us) } else { us })
}

fn from_json(payload: &[u8]) -> Option<Vec<Record>> {
    let Json::Array(items) = serde_json::from_slice(payload).ok()? else { return None };
    if items.len() > MAX_MEASUREMENTS { None } else { items.into_iter().map(json_record).collect() }
}

fn json_record(item: Json) -> Option<Record> {
    let Json::Object(fields) = item else { return None };
    let mut record = Record::default();
    for (label, value) in fields {
        let text = |value: &Json| value.as_str().map(str::to_owned);
        match label.as_str() {
            "bn" => record.base_name = Some(text(&value)?),
            "bt" => record.base_time = Some(value.as_f64()?),
            "bu" => record.base_unit = Some(text(&value)?),
            "bv" => record.base_value = Some(value.as_f64()?),
            "bver" if value.as_f64()? > VERSION => return None,
            "n" => record.name = Some(text(&value)?),
            "u" => record.unit = Some(text(&value)?),
            "v" => record.value = Some(Value::Number(value.as_f64()?)),
            "vs" => record.value = Some(Value::Text(text(&value)?)),
            "vb" => record.value = Some(Value::Bool(value.as_bool()?)),
            "vd" => {
                record.value = Some(Value::Data(URL_SAFE_NO_PAD.decode(value.as_str()?.trim_end_matches('=')).ok()?));
            }
            "s" => record.has_sum = true,
            "t" => record.time = Some(value.as_f64()?),
            // Section 4.4: a label that ends in _ must be understood, others may be passed over.
            other if other.ends_with('_') => return None,
            _ => {}
        }
    }
    Some(record)
}

fn from_cbor(payload: &[u8]) -> Option<Vec<Record>> {
    let items: Vec<BTreeMap<Label, Item>> = cbor::from_slice(payload)?;
    if items.len() > MAX_MEASUREMENTS { None } else { items.into_iter().map(cbor_record).collect() }
}

#[derive(PartialEq, Eq, PartialOrd, Ord, serde::Deserialize)]
#[serde(untagged)]
enum Label {
    Number(i64),
    Text(String),
}

#[derive(serde::Deserialize)]
#[serde(untagged)]
enum Item {
    Bool(bool),
    Integer(i64),
    Float(f64),
    // Before `Text`, which takes byte strings too where they happen to be UTF-8.
    Data(Bytes),
    Text(String),
}

/// A byte string; `Vec<u8>` alone would be read as an array.
struct Bytes(Vec<u8>);

impl<'de> serde::Deserialize<'de> for Bytes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Bytes;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a byte string")
            }
            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Bytes, E> {
                Ok(Bytes(bytes.to_vec()))
            }
        }
        deserializer.deserialize_bytes(Visitor)
    }
}

impl Item {
    fn number(&self) -> Option<f64> {
        match self {
            // Sensors do not count beyond 2^53.
            #[allow(clippy::cast_precision_loss)]
            Self::Integer(number) => Some(*number as f64),
            Self::Float(number) => Some(*number),
            _ => None,
        }
    }

    fn text(self) -> Option<String> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }
}

/// Labels of section 6, table 4.
fn cbor_record(fields: BTreeMap<Label, Item>) -> Option<Record> {
    let mut record = Record::default();
    for (label, item) in fields {
        let label = match label {
            Label::Number(label) => label,
            Label::Text(label) if label.ends_with('_') => return None,
            Label::Text(_) => continue,
        };
        match label {
            -2 => record.base_name = Some(item.text()?),
            -3 => record.base_time = Some(item.number()?),
            -4 => record.base_unit = Some(item.text()?),
            -5 => record.base_value = Some(item.number()?),
            -1 if item.number()? > VERSION => return None,
            0 => record.name = Some(item.text()?),
            1 => record.unit = Some(item.text()?),
            2 => record.value = Some(Value::Number(item.number()?)),
            3 => record.value = Some(Value::Text(item.text()?)),
            4 => record.value = if let Item::Bool(truth) = item { Some(Value::Bool(truth)) } else { return None },
            5 => record.has_sum = true,
            6 => record.time = Some(item.number()?),
            8 => record.value = if let Item::Data(data) = item { Some(Value::Data(data.0)) } else { return None },
            _ => {}
        }
    }
    Some(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of RFC 8428, section 5.1.
    #[test]
    fn the_rfcs_examples() {
        let one = senml(br#"[{"n":"urn:dev:ow:10e2073a01080063","u":"Cel","v":23.1}]"#, 0).unwrap();
        assert_eq!(one[0].value, Some(Value::Number(23.1)));
        assert_eq!((one[0].unit.as_deref(), one[0].time_us), (Some("Cel"), None));
        let pack = br#"[{"bn":"urn:dev:ow:10e2073a0108006:","bt":1.276020076001e+09,"bu":"A","bver":5,
            "n":"voltage","u":"V","v":120.1},{"n":"current","t":-5,"v":1.2},{"n":"current","t":-4,"v":1.3}]"#;
        let pack = senml(pack, 0).unwrap();
        assert_eq!(pack[0].name, "urn:dev:ow:10e2073a0108006:voltage");
        assert_eq!(pack[0].unit.as_deref(), Some("V"));
        assert_eq!(pack[1].unit.as_deref(), Some("A"));
        assert_eq!(pack[1].time_us, Some(1_276_020_071_001_000));
        let kinds = br#"[{"bn":"urn:dev:ow:10e2073a01080063:","n":"temp","u":"Cel","v":23.1},
            {"n":"label","vs":"Machine Room"},{"n":"open","vb":false},{"n":"nfc-reader","vd":"aGkgCg"}]"#;
        let values: Vec<_> = senml(kinds, 0).unwrap().into_iter().filter_map(|it| it.value).collect();
        assert_eq!(
            values[1..],
            [Value::Text("Machine Room".into()), Value::Bool(false), Value::Data(b"hi \n".to_vec())]
        );
    }

    /// RFC 8428, section 6, in CBOR.
    #[test]
    fn cbor_labels() {
        let hex = "87a721781b75726e3a6465763a6f773a3130653230373361303130383030363a22fb41d303a15b00106223614120050067766f6c7461676501615602fb405e066666666666a3006763757272656e74062402fb3ff3333333333333a3006763757272656e74062302fb3ff4cccccccccccda3006763757272656e74062202fb3ff6666666666666a3006763757272656e74062102f93e00a3006763757272656e74062002fb3ff999999999999aa3006763757272656e74060002fb3ffb333333333333";
        let bytes: Vec<_> =
            (0..hex.len() / 2).map(|n| u8::from_str_radix(&hex[2 * n..2 * n + 2], 16).unwrap()).collect();
        let pack = senml(&bytes, 0).unwrap();
        assert_eq!(pack.len(), 7);
        assert_eq!(pack[0].name, "urn:dev:ow:10e2073a0108006:voltage");
        assert_eq!(pack[4].value, Some(Value::Number(1.5)));
        // Bytes that are UTF-8 are still bytes: {0: "a", 8: 'hi'}.
        let data = senml(b"\x81\xa2\x00\x61a\x08\x42hi", 0).unwrap();
        assert_eq!(data[0].value, Some(Value::Data(b"hi".to_vec())));
    }

    #[test]
    fn relative_times_count_from_receipt_and_bad_packs_are_none() {
        let pack = senml(br#"[{"n":"a","v":1,"t":-10}]"#, 50_000_000).unwrap();
        assert_eq!(pack[0].time_us, Some(40_000_000));
        for bad in [
            &b"[]"[..],
            b"[{\"v\":1}]",
            b"[{\"n\":\"a\",\"v\":\"1\"}]",
            b"[{\"n\":\"a\",\"v\":1,\"x_\":1}]",
            b"[1]",
            b"[{\"bver\":11,\"n\":\"a\",\"v\":1}]",
            b"[{\"n\":\"a\",\"bv\":1.7e308,\"v\":1.7e308}]",
            b"\x81\xa2\x00\x61a\x02\xf9\x7e\x00", // NaN
        ] {
            assert_eq!(senml(bad, 0), None, "{}", String::from_utf8_lossy(bad));
        }
    }
}
