//! Bytes and cores.

/// Bytes as Docker writes them: `512m`, `1.5g`, `64KiB`; units are powers of 1024, no unit means bytes.
pub fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no size: write it like 512m, 1.5g or 65536");
    let lower = text.trim().to_ascii_lowercase();
    let at = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let (number, unit) = (&lower[..at], lower[at..].trim());
    let shift = match unit {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        "p" | "pb" | "pib" => 50,
        _ => return Err(wrong()),
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(1 << shift).filter(|bytes| *bytes < 1 << 62).ok_or_else(wrong);
    }
    let number: f64 = number.parse().map_err(|_| wrong())?;
    #[allow(clippy::cast_precision_loss)] // A power of two.
    let bytes = number * (1_u64 << shift) as f64;
    // In range by the check; a fraction of a byte goes.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    (bytes.is_finite() && bytes < 1e18).then_some(bytes as u64).ok_or_else(wrong)
}

/// Memory and swap together: bytes, or `-1` for as much as there is.
pub fn swap(text: &str) -> Result<i64, String> {
    if text.trim() == "-1" {
        return Ok(-1);
    }
    bytes(text)?.try_into().map_err(|_| format!("{text:?} is more than there can be"))
}

/// Thousandths of a core: `1.5` is 1500.
pub fn cpus(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no number of cores: write it like 2, 0.5 or .25");
    let number: f64 = text.parse().ok().filter(|_| !text.contains(['e', 'E', 'n', 'N', '-', '+'])).ok_or_else(wrong)?;
    let milli = (number * 1000.0).round();
    // In range by the check.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    (1.0..=1e7).contains(&milli).then_some(milli as u64).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        #[track_caller]
        fn check(text: &str, want: Option<u64>) {
            assert_eq!(bytes(text).ok(), want, "{text:?}");
        }
        check("0", Some(0));
        check("65536", Some(65536));
        check("512m", Some(512 << 20));
        check("1.5g", Some(3 << 29));
        check("1.5", Some(1));
        check("64KiB", Some(64 << 10));
        check("10 MB", Some(10 << 20));
        check("2T", Some(2 << 40));
        check("8b", Some(8));
        for wrong in ["", "m", "-1", "1x", "1e3", "1..2m", "99999999999999999999", "99999999p", "١m"] {
            check(wrong, None);
        }
        assert_eq!(swap("-1"), Ok(-1));
        assert_eq!(swap("1g"), Ok(1 << 30));
        assert!(swap("-2").is_err());
    }

    #[test]
    fn cores() {
        #[track_caller]
        fn check(text: &str, want: Option<u64>) {
            assert_eq!(cpus(text).ok(), want, "{text:?}");
        }
        check("1", Some(1000));
        check("0.5", Some(500));
        check(".25", Some(250));
        check("1.0009", Some(1001));
        for wrong in ["", "0", "-1", "nan", "inf", "1e2", "0.0001", "two", "99999999"] {
            check(wrong, None);
        }
    }
}
