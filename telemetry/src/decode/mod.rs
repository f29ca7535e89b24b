//! Payloads that can be read as measurements become rows: `SenML` (RFC 8428, JSON and CBOR), flat JSON objects, plain
//! numbers and truth values. Everything else is kept as bytes; nothing is refused for its form.
//!
//! Pure functions of hostile bytes: bounded, no panic.

pub mod cbor;
mod senml;

use serde_json::Value as Json;

pub use senml::senml;

/// Payloads over this are kept as bytes.
const MAX_PAYLOAD: usize = 256 << 10;
/// Most measurements of one payload.
const MAX_MEASUREMENTS: usize = 10_000;
/// Most bytes of names and units of one payload. Base fields and outer names are repeated in every measurement, so without
/// this a payload of 100 KiB could ask for a gigabyte.
const MAX_TEXT: usize = 4 << 20;

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Number.
    Number(f64),
    /// Text.
    Text(String),
    /// Truth.
    Bool(bool),
    /// Bytes: `vd` of `SenML`, or a part of a JSON object that is no single value.
    Data(Vec<u8>),
}

/// One measurement of a payload.
#[derive(Debug, Clone, PartialEq)]
pub struct Measurement {
    /// Name; empty for a plain number.
    pub name: String,
    /// Value; `None` for a `SenML` record that carries only a sum.
    pub value: Option<Value>,
    /// Unit.
    pub unit: Option<String>,
    /// The measurement's own time, µs since 1970.
    pub time_us: Option<i64>,
}

impl Measurement {
    fn of(name: &str, value: Value) -> Self {
        Self { name: name.to_owned(), value: Some(value), unit: None, time_us: None }
    }
}

/// The measurements of `payload`, at most 10,000; empty where it cannot be read as measurements. `received_us` is what
/// relative times of `SenML` count from.
pub fn measurements(payload: &[u8], received_us: i64) -> Vec<Measurement> {
    if payload.len() > MAX_PAYLOAD {
        return Vec::new();
    }
    // White space is none in CBOR: its last byte may be 0x20, which is the number -1.
    let text = payload.trim_ascii();
    match (payload.first(), text.first()) {
        (Some(0x80..=0x9b), _) | (_, Some(b'[')) => senml(payload, received_us).unwrap_or_default(),
        (_, Some(b'{')) => flat(text).unwrap_or_default(),
        (_, Some(_)) => plain(text).into_iter().collect(),
        (_, None) => Vec::new(),
    }
}

/// A flat JSON object: one measurement for each key, in order of their names; objects inside count one level, as
/// `outer.inner`. What is deeper, and arrays, are measurements whose bytes are that part in JSON: nothing is left out.
fn flat(text: &[u8]) -> Option<Vec<Measurement>> {
    let Json::Object(object) = serde_json::from_slice(text).ok()? else { return None };
    let mut all = Vec::new();
    let mut room = MAX_TEXT;
    for (name, value) in object {
        let Json::Object(inner) = value else {
            room = room.checked_sub(name.len())?;
            all.extend(scalar(&name, value));
            continue;
        };
        for (key, value) in inner {
            room = room.checked_sub(name.len() + 1 + key.len())?;
            all.extend(scalar(&format!("{name}.{key}"), value));
        }
    }
    if all.len() > MAX_MEASUREMENTS { None } else { Some(all) }
}

fn scalar(name: &str, value: Json) -> Option<Measurement> {
    let value = match value {
        Json::Number(number) => Value::Number(number.as_f64()?),
        Json::String(text) => Value::Text(text),
        Json::Bool(truth) => Value::Bool(truth),
        Json::Array(_) | Json::Object(_) => Value::Data(serde_json::to_vec(&value).ok()?),
        Json::Null => return None,
    };
    Some(Measurement::of(name, value))
}

fn plain(text: &[u8]) -> Option<Measurement> {
    let value = match text {
        b"true" => Value::Bool(true),
        b"false" => Value::Bool(false),
        _ if text.len() <= 64 && text.iter().any(u8::is_ascii_digit) => {
            Value::Number(std::str::from_utf8(text).ok()?.parse().ok().filter(|number: &f64| number.is_finite())?)
        }
        _ => return None,
    };
    Some(Measurement::of("", value))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_becomes_rows_and_what_stays_bytes() {
        #[track_caller]
        fn check(payload: &str, want: &[(&str, Value)]) {
            let got: Vec<_> = measurements(payload.as_bytes(), 0).into_iter().map(|it| (it.name, it.value)).collect();
            let want: Vec<_> = want.iter().map(|(name, value)| ((*name).to_owned(), Some(value.clone()))).collect();
            assert_eq!(got, want, "{payload}");
        }
        check("21.5", &[("", Value::Number(21.5))]);
        check(" -3e2\n", &[("", Value::Number(-300.0))]);
        check("true", &[("", Value::Bool(true))]);
        check("hello 1", &[]);
        check("nan", &[]);
        check("1e999", &[]);
        check("", &[]);
        check(
            "{\"t\": 1, \"ok\": false, \"s\": \"x\", \"n\": null, \"a\": [1], \"in\": {\"d\": 2, \"e\": {\"f\": 3}}}",
            &[
                ("a", Value::Data(b"[1]".to_vec())),
                ("in.d", Value::Number(2.0)),
                ("in.e", Value::Data(b"{\"f\":3}".to_vec())),
                ("ok", Value::Bool(false)),
                ("s", Value::Text("x".into())),
                ("t", Value::Number(1.0)),
            ],
        );
        check("{\"t\": 1", &[]);
        check("[1, 2]", &[]);
    }

    #[test]
    fn a_small_payload_does_not_become_a_large_result() {
        let name = "n".repeat(100_000);
        let inner: Vec<_> = (0..5_000).map(|n| format!("\"{n}\":1")).collect();
        let flat = format!("{{\"{name}\":{{{}}}}}", inner.join(","));
        assert_eq!(measurements(flat.as_bytes(), 0), []);
        for base in ["bn", "bu"] {
            let pack = format!("[{{\"n\":\"x\",\"{base}\":\"{name}\"}}{}]", ",{\"n\":\"x\",\"v\":1}".repeat(5_000));
            assert_eq!(measurements(pack.as_bytes(), 0), [], "{base}");
        }
    }

    #[test]
    fn white_space_is_around_json_and_inside_cbor() {
        let names = |payload: &[u8]| measurements(payload, 0).into_iter().map(|it| it.name).collect::<Vec<_>>();
        assert_eq!(names(b" \n[{\"n\":\"a\",\"v\":1}]\n"), ["a"]);
        assert_eq!(names(b"\t{\"a\": 1} "), ["a"]);
        // {0: "a", 2: -1} and {0: "a", 2: 10}: their last bytes look like a space and a line's end.
        assert_eq!(names(b"\x81\xa2\x00\x61a\x02\x20"), ["a"]);
        assert_eq!(names(b"\x81\xa2\x00\x61a\x02\x0a"), ["a"]);
    }

    #[test]
    fn an_object_of_too_many_keys_stays_bytes() {
        let keys: Vec<_> = (0..=MAX_MEASUREMENTS).map(|n| format!("\"{n}\":1")).collect();
        assert_eq!(measurements(format!("{{{}}}", keys.join(",")).as_bytes(), 0), []);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>, received: i64) {
            let _ = measurements(&bytes, received);
        }
    }
}
