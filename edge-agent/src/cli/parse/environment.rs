//! Variables and labels.

use std::{fs, io::Read, path::Path};

/// Largest file of variables.
const MAX_FILE: u64 = 1 << 20;

/// `NAME=VALUE`, or `NAME` alone for the value it has here; `None` where it has none here.
pub fn env_of(text: &str, here: impl Fn(&str) -> Option<String>) -> Result<Option<String>, String> {
    match text.split_once('=') {
        Some(("", _)) => Err(format!("{text:?} has no name: write NAME=VALUE")),
        Some(_) => Ok(Some(text.to_owned())),
        None if text.is_empty() => Err("a variable has no name: write NAME=VALUE".to_owned()),
        None => Ok(here(text).map(|value| format!("{text}={value}"))),
    }
}

/// A file of variables: one a line, `#` begins a comment.
pub fn env_file(path: &Path, here: impl Fn(&str) -> Option<String>) -> Result<Vec<String>, String> {
    let cannot = |error: String| format!("cannot read {}: {error}", path.display());
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(|error| cannot(error.to_string()))?;
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|error| cannot(error.to_string()))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(cannot(format!("it has more than {MAX_FILE} bytes")));
    }
    let text = String::from_utf8(bytes).map_err(|_| cannot("it is not UTF-8".to_owned()))?;
    env_lines(&text, here).map_err(|(line, problem)| format!("{}:{line}: {problem}", path.display()))
}

fn env_lines(text: &str, here: impl Fn(&str) -> Option<String>) -> Result<Vec<String>, (usize, String)> {
    let mut all = Vec::new();
    for (number, line) in (1..).zip(text.trim_start_matches('\u{feff}').lines()) {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let name = line.split('=').next().unwrap_or_default();
        if name.contains(char::is_whitespace) {
            return Err((number, format!("the name {name:?} has a space in it")));
        }
        all.extend(env_of(line, &here).map_err(|problem| (number, problem))?);
    }
    Ok(all)
}

/// `KEY=VALUE`, or `KEY` with an empty value.
pub fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    if key.is_empty() {
        return Err(format!("{text:?} has no key: write KEY=VALUE"));
    }
    Ok((key.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here(name: &str) -> Option<String> {
        (name == "HOME").then(|| "/root".to_owned())
    }

    #[test]
    fn variables() {
        #[track_caller]
        fn check(text: &str, want: Result<Option<&str>, ()>) {
            let got = env_of(text, here).map_err(drop);
            assert_eq!(got.as_ref().map(|it| it.as_deref()), want.as_ref().map(|it| *it), "{text:?}");
        }
        check("A=1", Ok(Some("A=1")));
        check("A=", Ok(Some("A=")));
        check("A=b=c", Ok(Some("A=b=c")));
        check("HOME", Ok(Some("HOME=/root")));
        check("MISSING", Ok(None));
        check("=x", Err(()));
        check("", Err(()));
    }

    #[test]
    fn files_of_variables() {
        let text = "# a comment\n\nA=1\n  B=two words  \nHOME\nMISSING\n";
        assert_eq!(env_lines(text, here).unwrap(), ["A=1", "B=two words  ", "HOME=/root"]);
        let (line, problem) = env_lines("A=1\nB C=2", here).unwrap_err();
        assert_eq!(line, 2);
        assert!(problem.contains("B C"), "{problem}");
    }

    #[test]
    fn labels() {
        assert_eq!(label("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(label("a"), Ok(("a".into(), String::new())));
        assert!(label("=b").is_err());
    }
}
