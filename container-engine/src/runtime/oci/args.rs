//! runc's command line, read by hand: a full parser would cost more than the rest of this process.

use std::{ffi::OsString, path::PathBuf};

use super::Failure;

/// Flags and the words between them.
#[derive(Debug, Default)]
pub(super) struct Args {
    flags: Vec<(String, Option<String>)>,
    pub words: Vec<String>,
}

impl Args {
    /// Reads until the first word (`until_word`) or to the end; `valued` names the flags that take a value.
    pub fn read<'a>(
        args: &'a [OsString],
        valued: &[&str],
        plain: &[&str],
        until_word: Option<usize>,
    ) -> Result<(Self, &'a [OsString]), Failure> {
        let mut read = Self::default();
        let mut at = 0;
        while at < args.len() {
            let arg = args[at].to_str().ok_or_else(|| Failure::usage("an argument is not valid UTF-8"))?;
            if until_word.is_some_and(|words| read.words.len() >= words) {
                break;
            }
            at += 1;
            if arg == "--" {
                let rest = args[at..].iter().map(|word| word.to_string_lossy().into_owned());
                read.words.extend(rest);
                return Ok((read, &[]));
            }
            let flag = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-').filter(|rest| !rest.is_empty()));
            let Some(flag) = flag else {
                read.words.push(arg.to_owned());
                continue;
            };
            let (name, value) = flag.split_once('=').map_or((flag, None), |(name, value)| (name, Some(value)));
            let name = long(name);
            if valued.contains(&name) {
                let value = if let Some(value) = value {
                    value.to_owned()
                } else {
                    let value = args.get(at).and_then(|value| value.to_str());
                    at += 1;
                    value.ok_or_else(|| Failure::usage(format!("flag needs an argument: --{name}")))?.to_owned()
                };
                read.flags.push((name.to_owned(), Some(value)));
            } else if plain.contains(&name) {
                let on = value.is_none_or(|value| value == "true");
                if on {
                    read.flags.push((name.to_owned(), None));
                }
            } else {
                return Err(Failure::usage(format!("flag provided but not defined: --{name}")));
            }
        }
        Ok((read, &args[at..]))
    }

    pub fn has(&self, name: &str) -> bool {
        self.flags.iter().any(|(flag, _)| flag == name)
    }

    pub fn value(&self, name: &str) -> Option<&str> {
        self.flags.iter().rev().find(|(flag, _)| flag == name).and_then(|(_, value)| value.as_deref())
    }

    pub fn values(&self, name: &str) -> impl Iterator<Item = &str> {
        self.flags.iter().filter(move |(flag, _)| flag == name).filter_map(|(_, value)| value.as_deref())
    }

    pub fn path(&self, name: &str) -> Option<PathBuf> {
        self.value(name).map(PathBuf::from)
    }

    pub fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, Failure> {
        let parse = |value: &str| value.parse().map_err(|_| Failure::usage(format!("--{name} {value:?} is no number")));
        self.value(name).map(parse).transpose()
    }
}

/// runc's short names.
fn long(name: &str) -> &str {
    match name {
        "b" => "bundle",
        "p" => "process",
        "d" => "detach",
        "t" => "tty",
        "u" => "user",
        "e" => "env",
        "g" => "additional-gids",
        "c" => "cap",
        "f" => "force",
        "a" => "all",
        "q" => "quiet",
        "r" => "resources",
        "v" => "version",
        "h" => "help",
        other => other,
    }
}

/// A signal by number or name.
pub(super) fn signal(text: &str) -> Result<i32, Failure> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM",
        "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF",
        "WINCH", "IO", "PWR", "SYS",
    ];
    let unknown = || Failure::new(format!("unknown signal {text:?}"));
    if let Ok(number) = text.parse::<i32>() {
        return if (0..=64).contains(&number) { Ok(number) } else { Err(unknown()) };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(at) = NAMES.iter().position(|known| *known == name) {
        return i32::try_from(at + 1).map_err(|_| unknown());
    }
    let real_time = name.strip_prefix("RTMIN+").and_then(|plus| plus.parse::<i32>().ok()).map(|plus| 34 + plus);
    real_time.filter(|number| (34..=64).contains(number)).ok_or_else(unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_and_words_are_told_apart() {
        let args: Vec<OsString> =
            ["--pid-file", "/p", "-d", "--env=A=b", "id", "sh", "-c", "x"].map(OsString::from).into();
        let (read, rest) = Args::read(&args, &["pid-file", "env"], &["detach"], Some(1)).unwrap();
        assert_eq!(read.value("pid-file"), Some("/p"));
        assert!(read.has("detach"));
        assert_eq!(read.values("env").collect::<Vec<_>>(), ["A=b"]);
        assert_eq!((read.words, rest.len()), (vec!["id".to_owned()], 3));
        assert!(Args::read(&args, &[], &[], None).is_err());
    }

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, want) in
            [("9", Some(9)), ("KILL", Some(9)), ("sigterm", Some(15)), ("RTMIN+3", Some(37)), ("X", None), ("99", None)]
        {
            assert_eq!(signal(text).ok(), want, "{text}");
        }
    }
}
