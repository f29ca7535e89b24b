//! The MQTT listener.
/// The properties of a PUBLISH that are forwarded unchanged (MQTT 5 section 3.3.2.3).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PublishProperties {}
