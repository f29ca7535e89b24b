//! Signals by name and number.

/// Names without `SIG` and their numbers; those of Linux on x86-64, arm and arm64 are the same.
const NAMES: [(&str, i32); 31] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
    ("SYS", 31),
];
/// First and last real-time signal.
const RT: (i32, i32) = (34, 64);

/// SIGKILL.
pub const KILL: i32 = 9;
/// SIGTERM.
pub const TERM: i32 = 15;

/// No signal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no signal: write a name such as TERM or SIGTERM, RTMIN+3, or a number from 1 to 64")]
pub struct SignalError(pub String);

/// `TERM`, `SIGTERM`, `sigterm`, `15`, `RTMIN+3`, `RTMAX-1`.
pub fn parse(text: &str) -> Result<i32, SignalError> {
    let wrong = || SignalError(text.chars().take(32).collect());
    if let Ok(number) = text.parse::<i32>() {
        return if (1..=RT.1).contains(&number) { Ok(number) } else { Err(wrong()) };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((_, number)) = NAMES.iter().find(|(known, _)| *known == name) {
        return Ok(*number);
    }
    let offset = |text: &str, sign: char| match text {
        "" => Some(0),
        _ => text.strip_prefix(sign)?.parse::<i32>().ok().filter(|offset| (0..=RT.1 - RT.0).contains(offset)),
    };
    let real_time = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(rest), _) => offset(rest, '+').map(|offset| RT.0 + offset),
        (_, Some(rest)) => offset(rest, '-').map(|offset| RT.1 - offset),
        _ => None,
    };
    real_time.ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        #[track_caller]
        fn check(text: &str, want: Option<i32>) {
            assert_eq!(parse(text).ok(), want, "{text:?}");
        }
        check("TERM", Some(15));
        check("sigkill", Some(9));
        check("SIGWINCH", Some(28));
        check("1", Some(1));
        check("64", Some(64));
        check("RTMIN", Some(34));
        check("SIGRTMIN+3", Some(37));
        check("RTMAX-1", Some(63));
        for wrong in ["", "0", "65", "-9", "FOO", "RTMIN+99", "RTMIN-1", "SIG", "99999999999"] {
            check(wrong, None);
        }
    }
}
