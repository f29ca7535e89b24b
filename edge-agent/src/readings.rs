//! Readings as the commands show them: one JSON object a line, or one line of text.

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use telemetry::{
    decode::{self, Value},
    reading::Reading,
};

/// One row of `telemetry query --json`. A reading with several measurements has one row for each.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Row {
    /// The store's epoch.
    pub epoch: u64,
    /// The reading's number.
    pub seq: u64,
    /// RFC 3339, µs.
    pub time: String,
    /// Topic.
    pub topic: String,
    /// The payload, if it is UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<String>,
    /// The payload in base64, if it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload_b64: Option<String>,
    /// Name of the measurement.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Value of the measurement.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<serde_json::Value>,
    /// Unit of the measurement.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
}

/// The rows of one reading.
pub fn rows(epoch: u64, reading: &Reading, time_us: i64) -> Vec<Row> {
    let text = std::str::from_utf8(&reading.payload).ok();
    let bare = Row {
        epoch,
        seq: reading.seq,
        time: rfc3339(time_us),
        topic: reading.topic.clone(),
        payload: text.map(str::to_owned),
        payload_b64: text.is_none().then(|| STANDARD.encode(&reading.payload)),
        name: None,
        value: None,
        unit: None,
    };
    let measurements = decode::measurements(&reading.payload, time_us);
    if measurements.is_empty() {
        return vec![bare];
    }
    let row = |measurement: decode::Measurement| Row {
        time: measurement.time_us.map_or_else(|| bare.time.clone(), rfc3339),
        name: (!measurement.name.is_empty()).then_some(measurement.name),
        value: measurement.value.map(json),
        unit: measurement.unit,
        ..bare.clone()
    };
    measurements.into_iter().map(row).collect()
}

fn json(value: Value) -> serde_json::Value {
    match value {
        Value::Number(number) => number.into(),
        Value::Text(text) => text.into(),
        Value::Bool(truth) => truth.into(),
        Value::Data(data) => STANDARD.encode(data).into(),
    }
}

impl Row {
    /// For people.
    pub fn line(&self) -> String {
        let payload = self.payload.as_deref().map_or_else(|| "(bytes)".to_owned(), printable);
        match (&self.name, &self.value) {
            (Some(name), Some(value)) => {
                format!("{} {} {name} = {value} {}", self.time, self.topic, self.unit.as_deref().unwrap_or_default())
            }
            _ => format!("{} {} {payload}", self.time, self.topic),
        }
    }
}

/// Text from outside, with nothing in it that steers a terminal.
fn printable(text: &str) -> String {
    text.chars().take(400).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// RFC 3339 in UTC with µs.
pub fn rfc3339(time_us: i64) -> String {
    Timestamp::from_microsecond(time_us).map_or_else(|_| format!("{time_us}us"), |time| format!("{time:.6}"))
}

/// A point in time on the command line: RFC 3339, or how long ago (`10m`). In µs.
pub fn parse_time(text: &str) -> Result<i64, String> {
    if let Some(ago) = crate::config::parse_span(text) {
        let then = Timestamp::now().checked_sub(ago).map_err(|_| "that is too long ago".to_owned())?;
        return Ok(then.as_microsecond());
    }
    let time: Timestamp =
        text.parse().map_err(|_| "write it like 2026-11-24T10:00:00Z, or like 10m for ten minutes ago".to_owned())?;
    Ok(time.as_microsecond())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(payload: &'static [u8]) -> Reading {
        let stamp = board::clock::Stamp { wall_us: 0, boot: 1, uptime_us: 0, trusted: true };
        Reading { seq: 3, stamp, topic: "a".into(), payload: payload.into() }
    }

    #[test]
    fn rows_have_what_the_contract_names() {
        let row = &rows(7, &reading(b"21.5"), 1_500_000)[0];
        let json = serde_json::to_string(row).unwrap();
        assert_eq!(
            json,
            r#"{"epoch":7,"seq":3,"time":"1970-01-01T00:00:01.500000Z","topic":"a","payload":"21.5","value":21.5}"#
        );
        assert_eq!(rows(7, &reading(b"{\"t\":1,\"h\":2}"), 0).len(), 2);
        let bytes = &rows(7, &reading(&[0xff, 0xfe]), 0)[0];
        assert_eq!((bytes.payload.as_ref(), bytes.payload_b64.as_deref()), (None, Some("//4=")));
    }

    #[test]
    fn times_are_absolute_or_ago() {
        assert_eq!(parse_time("1970-01-01T00:00:02Z"), Ok(2_000_000));
        assert!(parse_time("10m").unwrap() > 1_700_000_000_000_000);
        assert!(parse_time("yesterday").is_err());
    }
}
