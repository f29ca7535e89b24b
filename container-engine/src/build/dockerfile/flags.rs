//! `--flag=value` of instructions: which there are, of which type, given once or often.

use std::collections::BTreeMap;

use super::error::{DockerfileError, Kind, Result};

/// What a flag takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// Nothing, `true` or `false`.
    Bool,
    /// One value.
    Value,
    /// A value, and it may be given again.
    Values,
}

/// Flags that were given.
#[derive(Debug, Default)]
pub struct Flags(BTreeMap<&'static str, Vec<String>>);

/// Reads `given`, of which only those in `known` are allowed.
pub fn parse(given: &[String], known: &[(&'static str, Takes)]) -> Result<Flags> {
    let wrong = |message: String| DockerfileError::new(Kind::Flag, message);
    let mut flags = Flags::default();
    for flag in given {
        let (shown, value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (flag.as_str(), None),
        };
        let name = shown.strip_prefix("--").ok_or_else(|| wrong(format!("arg should start with -- : {flag}")))?;
        let Some((key, takes)) = known.iter().find(|(it, _)| *it == name) else {
            return Err(wrong(format!("unknown flag: {shown}")).near(name, known.iter().map(|it| it.0), true));
        };
        if flags.0.contains_key(key) && *takes != Takes::Values {
            return Err(wrong(format!("duplicate flag specified: {shown}")));
        }
        let missing = || wrong(format!("missing a value on flag: {shown}"));
        let value = match takes {
            Takes::Values | Takes::Value => value.ok_or_else(missing)?.to_owned(),
            Takes::Bool => match value.map(str::to_lowercase).as_deref() {
                Some("") => return Err(missing()),
                None | Some("true") => "true".to_owned(),
                Some("false") => "false".to_owned(),
                Some(_) => {
                    let value = value.unwrap_or_default();
                    return Err(wrong(format!("expecting boolean value for flag {shown}, not: {value}")));
                }
            },
        };
        flags.0.entry(key).or_default().push(value);
    }
    Ok(flags)
}

impl Flags {
    /// The value; empty where it was not given.
    pub fn value(&self, name: &str) -> String {
        self.0.get(name).and_then(|it| it.first()).cloned().unwrap_or_default()
    }

    /// All values, in order.
    pub fn values(&self, name: &str) -> Vec<String> {
        self.0.get(name).cloned().unwrap_or_default()
    }

    /// Whether it was given, and which way.
    pub fn choice(&self, name: &str) -> Option<bool> {
        self.0.get(name).and_then(|it| it.first()).map(|it| it == "true")
    }

    /// Whether it was given and is true.
    pub fn is_set(&self, name: &str) -> bool {
        self.choice(name) == Some(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &[(&str, Takes)] = &[("link", Takes::Bool), ("chown", Takes::Value), ("exclude", Takes::Values)];

    #[test]
    fn read() {
        let given = ["--link", "--chown=a=b", "--exclude=x", "--exclude="].map(str::to_owned);
        let flags = parse(&given, KNOWN).unwrap();
        assert_eq!((flags.is_set("link"), flags.value("chown")), (true, "a=b".to_owned()));
        assert_eq!(flags.values("exclude"), ["x", ""]);
        assert_eq!(parse(&["--link=FALSE".to_owned()], KNOWN).unwrap().choice("link"), Some(false));
    }

    #[test]
    fn refused() {
        for (given, expected) in [
            (&["--chonw=a"][..], "unknown flag: --chonw (did you mean chown?)"),
            (&["--nothing"], "unknown flag: --nothing"),
            (&["--chown=a", "--chown=b"], "duplicate flag specified: --chown"),
            (&["--chown"], "missing a value on flag: --chown"),
            (&["--exclude"], "missing a value on flag: --exclude"),
            (&["--link="], "missing a value on flag: --link"),
            (&["--link=yes"], "expecting boolean value for flag --link, not: yes"),
            (&["link"], "arg should start with -- : link"),
        ] {
            let given: Vec<String> = given.iter().map(ToString::to_string).collect();
            assert_eq!(parse(&given, KNOWN).unwrap_err().to_string(), expected);
        }
    }
}
