//! Payloads that can be read as measurements become rows.
/// A value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value { /// Number.
    Number(f64), /// Text.
    Text(String), /// Truth.
    Bool(bool), /// Bytes (SenML `vd`).
    Data(Vec<u8>) }
/// One measurement of a payload.
#[derive(Debug, Clone, PartialEq)]
pub struct Measurement { /// Name; empty for a plain number.
    pub name: String, /// Value; `None` for a SenML record that carries only a sum or nothing.
    pub value: Option<Value>, /// Unit.
    pub unit: Option<String>, /// The measurement's own absolute time (SenML `t`), µs since 1970; relative times are resolved against `received_us`.
    pub time_us: Option<i64> }
/// The measurements of `payload`, at most 10,000; empty where it cannot be read as measurements (it is kept as bytes then).
pub fn measurements(_payload: &[u8], _received_us: i64) -> Vec<Measurement> { todo!() }
