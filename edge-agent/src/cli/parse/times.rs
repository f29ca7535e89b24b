//! Moments and spans.

use jiff::Timestamp;

/// A moment, nanoseconds since 1970: RFC 3339, a date, seconds since 1970, or how long before `now` (`10m`, `1h30m`).
pub fn moment(text: &str, now: Timestamp) -> Result<i64, String> {
    let wrong = || format!("{text:?} is no time: write it like 10m, 1h30m, 2026-05-01T12:00:00Z or 1714564800");
    let ns = |at: Timestamp| i64::try_from(at.as_nanosecond()).map_err(|_| wrong());
    if let Some(span) = go_span(text) {
        return ns(now)?.checked_sub(span).ok_or_else(wrong);
    }
    if text.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        let (whole, part) = text.split_once('.').unwrap_or((text, ""));
        let seconds: i64 = whole.parse().map_err(|_| wrong())?;
        let part: i64 = format!("{part:0<9}").get(..9).and_then(|it| it.parse().ok()).ok_or_else(wrong)?;
        return seconds.checked_mul(1_000_000_000).and_then(|it| it.checked_add(part)).ok_or_else(wrong);
    }
    if let Ok(at) = text.parse::<Timestamp>() {
        return ns(at);
    }
    // Without a zone Docker means the client's; a board's is UTC.
    let full = if text.contains('T') { format!("{text}Z") } else { format!("{text}T00:00:00Z") };
    ns(full.parse::<Timestamp>().map_err(|_| wrong())?)
}

/// Whole seconds: a number, or `10s`, `2m`.
pub fn seconds(text: &str) -> Result<u32, String> {
    let wrong = || format!("{text:?} is no time span: write it like 10, 10s or 2m");
    if let Ok(seconds) = text.parse() {
        return Ok(seconds);
    }
    let span = go_span(text).ok_or_else(wrong)?;
    u32::try_from((span + 999_999_999) / 1_000_000_000).map_err(|_| wrong())
}

/// A span as Go writes it, such as `1h30m`, `1.5s`, `300ms`, in nanoseconds.
fn go_span(text: &str) -> Option<i64> {
    let mut rest = text;
    let mut total = 0_f64;
    if text.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let at = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..at].parse().ok()?;
        rest = &rest[at..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let factor = match &rest[..end] {
            "ns" => 1.0,
            "us" | "µs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            "d" => 86_400e9,
            _ => return None,
        };
        total += number * factor;
        rest = &rest[end..];
    }
    // In range by the check.
    #[allow(clippy::cast_possible_truncation)]
    (total < 9e18).then_some(total as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments() {
        const NOW: i64 = 1_000_000_000_000_000_000;
        #[track_caller]
        fn check(text: &str, want: Option<i64>) {
            let now = Timestamp::from_nanosecond(i128::from(NOW)).unwrap();
            assert_eq!(moment(text, now).ok(), want, "{text:?}");
        }
        check("10m", Some(NOW - 600_000_000_000));
        check("1h30m", Some(NOW - 5400 * 1_000_000_000));
        check("1.5s", Some(NOW - 1_500_000_000));
        check("1714564800", Some(1_714_564_800_000_000_000));
        check("1714564800.25", Some(1_714_564_800_250_000_000));
        check("1970-01-01T00:00:01Z", Some(1_000_000_000));
        check("1970-01-01T01:00:01+01:00", Some(1_000_000_000));
        check("1970-01-02", Some(86_400_000_000_000));
        for wrong in ["", "soon", "5 weeks", "1h30", "99999999999999999999", "1.2.3", "-1"] {
            check(wrong, None);
        }
    }

    #[test]
    fn spans() {
        assert_eq!(seconds("10"), Ok(10));
        assert_eq!(seconds("2m"), Ok(120));
        assert_eq!(seconds("1500ms"), Ok(2));
        assert!(seconds("-1").is_err() && seconds("").is_err() && seconds("x").is_err());
    }
}
