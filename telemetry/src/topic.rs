//! Topic names and filters (MQTT 3.1.1 section 4.7).
/// Deepest topic accepted, in levels.
pub const MAX_LEVELS: usize = 32;
/// Longest topic accepted, bytes.
pub const MAX_BYTES: usize = 1024;
/// Why a topic is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("topic {topic:?}: {problem}")]
pub struct TopicError { /// As given, cut to 128 bytes.
    pub topic: String, /// Why.
    pub problem: &'static str }
/// Checks a topic name.
pub fn check_name(_topic: &str) -> Result<(), TopicError> { todo!() }
/// Checks a filter.
pub fn check_filter(_filter: &str) -> Result<(), TopicError> { todo!() }
/// Whether `filter` matches `topic`; `$…` topics are matched only by filters that start with `$`.
pub fn matches(_filter: &str, _topic: &str) -> bool { todo!() }
