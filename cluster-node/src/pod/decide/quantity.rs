//! Kubernetes quantities: `250m`, `1.5Gi`, `1e3`; exact, within what a signed 128-bit number of nanos holds.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Nanos in one.
const NANO: i128 = 1_000_000_000;
/// Longest text that is read, bytes.
const MAX_LEN: usize = 64;
/// Larger amounts are cut to this, as Kubernetes does: 2^63 - 1.
const MAX: i128 = i64::MAX as i128 * NANO;

/// An amount, in thousandths of millionths; parts smaller than that round up, away from zero.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Amount(i128);

impl Amount {
    /// Of whole units.
    pub fn units(units: i64) -> Self {
        Self(i128::from(units) * NANO)
    }

    /// Reads a quantity; `None` where it is none.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() > MAX_LEN || !text.is_ascii() {
            return None;
        }
        let (negative, rest) = match text.as_bytes().first()? {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return None;
        }
        let amount = scaled(whole, fraction, suffix)?;
        Some(Self(if negative { -amount } else { amount }))
    }

    /// As an object has it: an amount that cannot be read is none.
    pub fn of(quantity: &Quantity) -> Option<Self> {
        Self::parse(&quantity.0)
    }

    /// Whole units, rounded up.
    pub fn value(self) -> i64 {
        self.in_units_of(NANO)
    }

    /// Thousandths, rounded up.
    pub fn milli(self) -> i64 {
        self.in_units_of(NANO / 1000)
    }

    /// How many of `divisor` it is, rounded up; a divisor that is not above zero counts as one.
    pub fn divided(self, divisor: Self) -> i64 {
        self.in_units_of(if divisor.0 > 0 { divisor.0 } else { NANO })
    }

    /// The sum, within bounds.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self((self.0 + other.0).clamp(-MAX, MAX))
    }

    /// Whether it is zero.
    pub fn is_zero(self) -> bool {
        self.0 == 0
    }

    fn in_units_of(self, unit: i128) -> i64 {
        let up = self.0.div_euclid(unit) + i128::from(self.0.rem_euclid(unit) != 0);
        i64::try_from(up).unwrap_or(if up > 0 { i64::MAX } else { i64::MIN })
    }
}

/// The absolute amount.
fn scaled(whole: &str, fraction: &str, suffix: &str) -> Option<i128> {
    let (binary, decimal) = scale_of(suffix)?;
    // 2^60 times 19 digits of whole and 18 of fraction stays within 128 bits, taken apart.
    let whole = whole.trim_start_matches('0');
    let fraction = fraction.trim_end_matches('0');
    let digits = format!("{whole}{fraction}");
    let mut exponent = decimal.saturating_add(9).checked_sub(i32::try_from(fraction.len()).ok()?)?;
    let mut number: i128 = 0;
    for digit in digits.bytes() {
        number = number.checked_mul(10).and_then(|n| n.checked_add(i128::from(digit - b'0'))).unwrap_or(i128::MAX);
    }
    if number == 0 {
        return Some(0);
    }
    number = number.checked_mul(1 << binary).unwrap_or(i128::MAX);
    let mut inexact = false;
    while exponent > 0 && number <= MAX {
        number = number.saturating_mul(10);
        exponent -= 1;
    }
    while exponent < 0 && number > 0 {
        inexact |= number % 10 != 0;
        number /= 10;
        exponent += 1;
    }
    Some((number + i128::from(inexact && number < MAX)).min(MAX))
}

/// Powers of two and of ten that a suffix stands for.
fn scale_of(suffix: &str) -> Option<(u32, i32)> {
    Some(match suffix {
        "" => (0, 0),
        "n" => (0, -9),
        "u" => (0, -6),
        "m" => (0, -3),
        "k" => (0, 3),
        "M" => (0, 6),
        "G" => (0, 9),
        "T" => (0, 12),
        "P" => (0, 15),
        "E" => (0, 18),
        "Ki" => (10, 0),
        "Mi" => (20, 0),
        "Gi" => (30, 0),
        "Ti" => (40, 0),
        "Pi" => (50, 0),
        "Ei" => (60, 0),
        _ => {
            let digits = suffix.strip_prefix(['e', 'E'])?;
            (0, digits.parse::<i32>().ok().filter(|exponent| (-100..=100).contains(exponent))?)
        }
    })
}
