//! Sizes and times in Docker's words.

use jiff::Timestamp;

/// How long ago, such as `About an hour`; seconds.
pub fn span(seconds: i64) -> String {
    let s = seconds.max(0);
    let (minutes, hours) = (s / 60, (s + 1800) / 3600);
    match s {
        0 => "Less than a second".to_owned(),
        1 => "1 second".to_owned(),
        2..60 => format!("{s} seconds"),
        _ if minutes == 1 => "About a minute".to_owned(),
        _ if minutes < 60 => format!("{minutes} minutes"),
        _ if hours == 1 => "About an hour".to_owned(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        _ if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        _ if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

/// Between a moment and now, both nanoseconds since 1970.
pub fn since(moment_ns: i64, now_ns: i64) -> String {
    span((now_ns - moment_ns) / 1_000_000_000)
}

/// Now, nanoseconds since 1970.
pub fn now_ns() -> i64 {
    i64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}

/// RFC 3339 with nanoseconds, as Docker's JSON has it; year 1 where there is no moment.
pub fn rfc3339(moment_ns: Option<i64>) -> String {
    let at = moment_ns.and_then(|ns| Timestamp::from_nanosecond(i128::from(ns)).ok());
    at.map_or_else(|| "0001-01-01T00:00:00Z".to_owned(), |at| format!("{at:.9}"))
}

/// As in Docker's lists: `2026-05-01 12:00:00 +0000 UTC`.
pub fn list_time(moment_ns: i64) -> String {
    let at = Timestamp::from_nanosecond(i128::from(moment_ns)).unwrap_or(Timestamp::UNIX_EPOCH);
    let text = format!("{at:.0}");
    format!("{} +0000 UTC", text.trim_end_matches('Z').replace('T', " "))
}

/// Powers of ten: `7.67MB`.
pub fn size(bytes: u64) -> String {
    scaled(bytes, 1000.0, &["B", "kB", "MB", "GB", "TB", "PB"])
}

/// Powers of 1024: `12.5MiB`.
pub fn binary_size(bytes: u64) -> String {
    scaled(bytes, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB"])
}

fn scaled(bytes: u64, base: f64, units: &[&str]) -> String {
    #[allow(clippy::cast_precision_loss)] // Four digits are shown.
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= base && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    format!("{}{}", four_digits(value), units[unit])
}

/// Four significant digits with no zeros at the end, as C's `%.4g` below 10000.
fn four_digits(value: f64) -> String {
    let decimals = match value {
        v if v >= 1000.0 => 0,
        v if v >= 100.0 => 1,
        v if v >= 10.0 => 2,
        _ => 3,
    };
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// At most `width` characters; cut ones end with `…`.
pub fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans() {
        #[track_caller]
        fn check(seconds: i64, want: &str) {
            assert_eq!(span(seconds), want, "{seconds} s");
        }
        check(-5, "Less than a second");
        check(0, "Less than a second");
        check(1, "1 second");
        check(59, "59 seconds");
        check(61, "About a minute");
        check(180, "3 minutes");
        check(3600, "About an hour");
        check(3 * 3600, "3 hours");
        check(47 * 3600, "47 hours");
        check(3 * 86_400, "3 days");
        check(21 * 86_400, "3 weeks");
        check(90 * 86_400, "3 months");
        check(800 * 86_400, "2 years");
    }

    #[test]
    fn sizes() {
        for (bytes, want) in [(0, "0B"), (999, "999B"), (1000, "1kB"), (7_670_000, "7.67MB"), (123_456_789, "123.5MB")]
        {
            assert_eq!(size(bytes), want);
        }
        for (bytes, want) in [(0, "0B"), (1023, "1023B"), (12 << 20, "12MiB"), (1_610_612_736, "1.5GiB")] {
            assert_eq!(binary_size(bytes), want);
        }
    }

    #[test]
    fn times() {
        assert_eq!(rfc3339(None), "0001-01-01T00:00:00Z");
        assert_eq!(rfc3339(Some(1_500_000_000)), "1970-01-01T00:00:01.500000000Z");
        assert_eq!(list_time(1_500_000_000), "1970-01-01 00:00:01 +0000 UTC");
        assert_eq!(cut("abcdef", 4), "abc…");
        assert_eq!(cut("abcd", 4), "abcd");
    }
}
