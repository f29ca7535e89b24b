//! Topic names and filters (MQTT 3.1.1 and 5, section 4.7).

/// Deepest topic accepted, in levels.
pub const MAX_LEVELS: usize = 32;
/// Longest topic accepted, bytes.
pub const MAX_BYTES: usize = 1024;

/// Why a topic is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("topic {topic:?}: {problem}")]
pub struct TopicError {
    /// As given, cut to 64 characters.
    pub topic: String,
    /// Why.
    pub problem: &'static str,
}

fn refuse(topic: &str, problem: &'static str) -> Result<(), TopicError> {
    Err(TopicError { topic: topic.chars().take(64).collect(), problem })
}

fn check_shape(topic: &str) -> Result<(), TopicError> {
    if topic.is_empty() {
        return refuse(topic, "is empty");
    }
    if topic.len() > MAX_BYTES {
        return refuse(topic, "is longer than 1024 bytes");
    }
    if topic.contains('\0') {
        return refuse(topic, "has a NUL");
    }
    if topic.split('/').count() > MAX_LEVELS {
        return refuse(topic, "has more than 32 levels");
    }
    Ok(())
}

/// Checks a topic name: what is published to.
pub fn check_name(topic: &str) -> Result<(), TopicError> {
    check_shape(topic)?;
    if topic.contains(['+', '#']) { refuse(topic, "has a wildcard; name one topic") } else { Ok(()) }
}

/// Checks a filter: what is subscribed to.
pub fn check_filter(filter: &str) -> Result<(), TopicError> {
    check_shape(filter)?;
    let mut levels = filter.split('/').peekable();
    while let Some(level) = levels.next() {
        match level {
            "#" if levels.peek().is_some() => return refuse(filter, "has # before its last level"),
            "#" | "+" => {}
            _ if level.contains(['+', '#']) => return refuse(filter, "has a wildcard that is not a whole level"),
            _ => {}
        }
    }
    Ok(())
}

/// Whether `filter` matches `topic`; a topic that starts with `$` is matched only by a filter that names that level.
pub fn matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && !filter.starts_with('$') {
        return false;
    }
    let (mut filter, mut topic) = (filter.split('/'), topic.split('/'));
    loop {
        match (filter.next(), topic.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(_)) => {}
            (Some(want), Some(level)) if want == level => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matching_follows_the_specification() {
        #[track_caller]
        fn check(filter: &str, topic: &str, want: bool) {
            assert_eq!(check_filter(filter), Ok(()));
            assert_eq!(matches(filter, topic), want, "{filter} on {topic}");
        }
        check("sport/tennis/player1/#", "sport/tennis/player1", true);
        check("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", true);
        check("sport/#", "sport", true);
        check("sport/tennis/+", "sport/tennis/player1", true);
        check("sport/tennis/+", "sport/tennis/player1/ranking", false);
        check("sport/+", "sport", false);
        check("sport/+", "sport/", true);
        check("+/+", "/finance", true);
        check("/+", "/finance", true);
        check("+", "/finance", false);
        check("#", "$SYS/x", false);
        check("+/monitor", "$SYS/monitor", false);
        check("$SYS/#", "$SYS/x", true);
        check("a", "a", true);
        check("a", "a/b", false);
    }

    #[test]
    fn bad_names_and_filters_are_refused() {
        for filter in ["", "a/#/b", "a#", "+a", "a\0b", &"a".repeat(1025), &"/".repeat(40)] {
            assert!(check_filter(filter).is_err(), "{filter:?}");
        }
        for name in ["", "a/+", "#", "a\0"] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        assert!(check_name("$x/ä b//").is_ok());
    }
}
