//! Durations as Go writes and reads them: `1m30s`, `1.5h`, `100ms`.

use super::error::{Result, argument};
use super::source::quote;

/// Nanoseconds of a duration.
pub fn parse(text: &str) -> Result<i64> {
    let invalid = || argument(format!("time: invalid duration {}", quote(text)));
    let (negative, mut rest) = match text.strip_prefix(['-', '+']) {
        Some(rest) => (text.starts_with('-'), rest),
        None => (false, text),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total = 0f64;
    let mut exact: i128 = 0;
    while !rest.is_empty() {
        let end = rest.find(|it: char| !it.is_ascii_digit() && it != '.').unwrap_or(rest.len());
        let (number, behind) = rest.split_at(end);
        if !number.contains(|it: char| it.is_ascii_digit()) || number.matches('.').count() > 1 {
            return Err(invalid());
        }
        let end = behind.find(|it: char| it.is_ascii_digit() || it == '.').unwrap_or(behind.len());
        let (unit, next) = behind.split_at(end);
        let scale: i64 = match unit {
            "ns" => 1,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            "" => return Err(argument(format!("time: missing unit in duration {}", quote(text)))),
            _ => {
                let (unit, text) = (quote(unit), quote(text));
                return Err(argument(format!("time: unknown unit {unit} in duration {text}")));
            }
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| invalid())? };
        let fraction: f64 = format!("0.{fraction}0").parse().map_err(|_| invalid())?;
        // Below one unit, so the product is exact enough.
        #[allow(clippy::cast_precision_loss)]
        (total += fraction * scale as f64);
        exact = exact.saturating_add(whole.saturating_mul(i128::from(scale)));
        rest = next;
    }
    #[allow(clippy::cast_possible_truncation)]
    let all = exact.saturating_add(total as i128);
    i64::try_from(if negative { -all } else { all }).map_err(|_| invalid())
}

/// As Go prints it.
pub fn show(nanoseconds: i64) -> String {
    let sign = if nanoseconds < 0 { "-" } else { "" };
    let all = nanoseconds.unsigned_abs();
    let part = |value: u64, unit: u64| {
        let fraction = format!("{:0width$}", value % unit, width = unit.ilog10() as usize);
        let fraction = fraction.trim_end_matches('0');
        if unit == 1 || fraction.is_empty() {
            format!("{}", value / unit)
        } else {
            format!("{}.{fraction}", value / unit)
        }
    };
    match all {
        0 => "0s".to_owned(),
        1..1_000 => format!("{sign}{all}ns"),
        1_000..1_000_000 => format!("{sign}{}\u{b5}s", part(all, 1_000)),
        1_000_000..1_000_000_000 => format!("{sign}{}ms", part(all, 1_000_000)),
        _ => {
            let (minutes, rest) = (all / 60_000_000_000, all % 60_000_000_000);
            let seconds = part(rest, 1_000_000_000);
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{sign}{seconds}s"),
                (0, minutes) => format!("{sign}{minutes}m{seconds}s"),
                (hours, minutes) => format!("{sign}{hours}h{minutes}m{seconds}s"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_and_shown() {
        for (text, nanoseconds, shown) in [
            ("0", 0, "0s"),
            ("30s", 30_000_000_000, "30s"),
            ("1m30s", 90_000_000_000, "1m30s"),
            ("1.5h", 5_400_000_000_000, "1h30m0s"),
            ("100ms", 100_000_000, "100ms"),
            ("1.5ms", 1_500_000, "1.5ms"),
            ("2us", 2_000, "2\u{b5}s"),
            ("7ns", 7, "7ns"),
            ("-1s", -1_000_000_000, "-1s"),
            (".5s", 500_000_000, "500ms"),
        ] {
            assert_eq!(parse(text), Ok(nanoseconds), "{text}");
            assert_eq!(show(nanoseconds), shown);
        }
        for (text, expected) in [
            ("5", "time: missing unit in duration \"5\""),
            ("5x", "time: unknown unit \"x\" in duration \"5x\""),
            ("", "time: invalid duration \"\""),
            ("1..2s", "time: invalid duration \"1..2s\""),
            ("s", "time: invalid duration \"s\""),
            ("9999999999999h", "time: invalid duration \"9999999999999h\""),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), expected);
        }
    }
}
