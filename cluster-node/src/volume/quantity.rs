//! Quantities as far as volumes need them: read exactly, rounded up; pure.

/// Billionths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Amount(i128);

/// A whole number of some unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Units(i128);

const NANO: i128 = 1_000_000_000;

impl Amount {
    /// None.
    pub const ZERO: Self = Self(0);
    /// One.
    pub const ONE: Self = Self(NANO);

    /// Reads a quantity that is not negative: `1.5Gi`, `250m`, `1e3`. Finer than a billionth is rounded up.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.strip_prefix('+').unwrap_or(text);
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, suffix) = text.split_at(end);
        let (whole, part) = number.split_once('.').unwrap_or((number, ""));
        if whole.len() + part.len() == 0 || whole.len() + part.len() > 30 || part.contains('.') {
            return None;
        }
        let digits: i128 = format!("{whole}{part}").parse().ok()?;
        let (factor, exponent) = scale(suffix)?;
        // digits * factor * 10^(exponent - places) * 10^9, and nothing lost before the last step.
        let power = exponent + 9 - i32::try_from(part.len()).ok()?;
        let scaled = digits.checked_mul(factor)?;
        let value = match u32::try_from(power) {
            Ok(power) => scaled.checked_mul(10i128.checked_pow(power)?)?,
            Err(_) => match 10i128.checked_pow(power.unsigned_abs()) {
                Some(divisor) => scaled.saturating_add(divisor - 1) / divisor,
                None => i128::from(scaled > 0),
            },
        };
        Some(Self(value))
    }

    /// In whole units, rounded up.
    pub fn whole(self) -> Units {
        Units(self.0.saturating_add(NANO - 1) / NANO)
    }

    /// In thousandths, rounded up.
    pub fn milli(self) -> Units {
        Units(self.0.saturating_add(NANO / 1000 - 1) / (NANO / 1000))
    }

    /// Bytes, as many as there can be.
    pub fn bytes(self) -> u64 {
        u64::try_from(self.whole().0).unwrap_or(u64::MAX)
    }
}

impl Units {
    /// Divided, rounded up; by nothing: undivided.
    pub fn ceil_div(self, by: Self) -> i128 {
        let by = by.0.max(1);
        self.0.saturating_add(by - 1) / by
    }
}

/// Factor and power of ten of a suffix.
fn scale(suffix: &str) -> Option<(i128, i32)> {
    let binary = |power: u32| Some((1024i128.pow(power), 0));
    match suffix {
        "n" => Some((1, -9)),
        "u" => Some((1, -6)),
        "m" => Some((1, -3)),
        "" => Some((1, 0)),
        "k" => Some((1, 3)),
        "M" => Some((1, 6)),
        "G" => Some((1, 9)),
        "T" => Some((1, 12)),
        "P" => Some((1, 15)),
        "E" => Some((1, 18)),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            (-40..=40).contains(&exponent).then_some((1, exponent))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities() {
        #[track_caller]
        fn check(text: &str, want: Option<u64>) {
            assert_eq!(Amount::parse(text).map(Amount::bytes), want, "{text:?}");
        }
        check("0", Some(0));
        check("1", Some(1));
        check("1Ki", Some(1024));
        check("1.5Gi", Some(1_610_612_736));
        check("1k", Some(1000));
        check("1e3", Some(1000));
        check("1E3", Some(1000));
        check("1E", Some(1_000_000_000_000_000_000));
        check("100m", Some(1)); // Rounded up.
        check(".5", Some(1));
        check("5.", Some(5));
        check("1n", Some(1));
        check("0.0000000000000001", Some(1));
        check("8Ei", Some(1 << 63));
        check("99999999999Ei", Some(u64::MAX)); // As many as there can be.
        check("1e40", None);
        check("1e-40", Some(1));
        check("", None);
        check("-1", None);
        check("1.2.3", None);
        check("1KB", None);
        check("Mi", None);
        check(&"9".repeat(1000), None);
    }
}
