//! One record of a log, written and read.

/// Most bytes of text in one record that we write.
pub const MAX_TEXT: usize = 16 << 10;

/// Where output came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output, or the terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// When it was written, ns since 1970.
    pub time_ns: u64,
    /// Where it came from.
    pub stream: Stream,
    /// The text, without a line break.
    pub text: Vec<u8>,
    /// Whether the line goes on in the stream's next record (or ended without a line break).
    pub partial: bool,
}

/// Cuts a line of a log, without its line break, into its parts; `None` if it is not in CRI's format.
pub fn parse(line: &[u8]) -> Option<Entry> {
    let mut fields = line.splitn(4, |byte| *byte == b' ');
    let time_ns = parse_time(fields.next()?)?;
    let stream = match fields.next()? {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    // Tags are separated by colons; the first is the one with a meaning.
    let partial = match fields.next()?.split(|byte| *byte == b':').next()? {
        b"P" => true,
        b"F" => false,
        _ => return None,
    };
    Some(Entry { time_ns, stream, text: fields.next().unwrap_or_default().to_vec(), partial })
}

/// `2006-01-02T15:04:05[.999999999](Z|±hh:mm)` as ns since 1970.
fn parse_time(text: &[u8]) -> Option<u64> {
    let number = |range: std::ops::Range<usize>| {
        text.get(range)?
            .iter()
            .try_fold(0_i64, |sum, digit| digit.is_ascii_digit().then(|| sum * 10 + i64::from(digit - b'0')))
    };
    let marks = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    if marks.iter().any(|(at, mark)| text.get(*at) != Some(mark)) {
        return None;
    }
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let mut at = 19;
    let mut nanos = 0;
    if text.get(at) == Some(&b'.') {
        let digits = text[at + 1..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        if digits == 0 || digits > 9 {
            return None;
        }
        nanos = number(at + 1..at + 1 + digits)? * 10_i64.pow(9 - u32::try_from(digits).ok()?);
        at += 1 + digits;
    }
    let offset_s = match text.get(at..)? {
        b"Z" => 0,
        [sign @ (b'+' | b'-'), _, _, b':', _, _] => {
            let seconds = number(at + 1..at + 3)? * 3600 + number(at + 4..at + 6)? * 60;
            if *sign == b'+' { seconds } else { -seconds }
        }
        _ => return None,
    };
    let seconds = days_since_1970(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset_s;
    u64::try_from(seconds).ok()?.checked_mul(1_000_000_000)?.checked_add(u64::try_from(nanos).ok()?)
}

/// Proleptic Gregorian calendar, by counting years from March (Howard Hinnant, "chrono-compatible low-level date
/// algorithms").
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// The inverse: year, month, day.
fn date(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day_of_year - (153 * shifted + 2) / 5 + 1)
}

/// Year, month, day, hour, minute and second, UTC.
pub(super) fn civil(time_ns: u64) -> [i64; 6] {
    let seconds = i64::try_from(time_ns / 1_000_000_000).unwrap_or(0);
    let (year, month, day) = date(seconds.div_euclid(86_400));
    let rest = seconds.rem_euclid(86_400);
    [year, month, day, rest / 3600, rest / 60 % 60, rest % 60]
}

/// `2026-11-25T16:20:13.000000001Z`: always nine digits, so that times sort as text.
pub fn rfc3339(time_ns: u64) -> String {
    let [year, month, day, hour, minute, second] = civil(time_ns);
    let nanos = time_ns % 1_000_000_000;
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_are_cut_into_their_parts() {
        #[track_caller]
        fn check(line: &str, want: Option<(u64, Stream, bool, &str)>) {
            let got = parse(line.as_bytes());
            let want =
                want.map(|(time_ns, stream, partial, text)| Entry { time_ns, stream, partial, text: text.into() });
            assert_eq!(got, want, "{line:?}");
        }
        let second = 1_000_000_000;
        check("1970-01-01T00:00:01Z stdout F hello you", Some((second, Stream::Stdout, false, "hello you")));
        check("1970-01-01T00:00:00.5Z stderr P ", Some((second / 2, Stream::Stderr, true, "")));
        check("1970-01-01T01:00:00.000000001+01:00 stderr F x", Some((1, Stream::Stderr, false, "x")));
        check("1970-01-01T00:00:00-00:01 stdout F:more x", Some((60 * second, Stream::Stdout, false, "x")));
        check("2024-02-29T23:59:59Z stdout F", Some((1_709_251_199 * second, Stream::Stdout, false, "")));
        check("1969-12-31T23:59:59Z stdout F x", None);
        check("1970-01-01T00:00:01 stdout F x", None);
        check("1970-13-01T00:00:01Z stdout F x", None);
        check("1970-01-01T00:00:01.Z stdout F x", None);
        check("1970-01-01T00:00:01.0000000000Z stdout F x", None);
        check("1970-01-01T00:00:01Z stdin F x", None);
        check("1970-01-01T00:00:01Z stdout X x", None);
        check("{\"log\":\"x\"}", None);
        check("", None);
    }

    proptest! {
        #[test]
        fn times_are_written_and_read(time_ns in 0_u64..u64::MAX) {
            let text = rfc3339(time_ns);
            prop_assert_eq!(parse_time(text.as_bytes()), Some(time_ns));
            let jiff = jiff::Timestamp::from_nanosecond(i128::from(time_ns)).unwrap();
            prop_assert_eq!(text.parse::<jiff::Timestamp>().unwrap(), jiff);
        }

        #[test]
        fn no_bytes_are_too_odd(line in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = parse(&line);
        }
    }
}
