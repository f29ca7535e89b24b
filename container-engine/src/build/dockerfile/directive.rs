//! Parser directives: `# syntax=`, `# escape=`, `# check=` in the first lines, before anything else.

use super::error::{DockerfileError, syntax};

/// A directive that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directive {
    /// `syntax`, `escape` or `check`.
    pub name: &'static str,
    /// What is behind the `=`, trimmed.
    pub value: String,
    /// Its line, from 1.
    pub line: u32,
}

/// Reads lines until one is no directive; from there on nothing is.
#[derive(Debug)]
pub struct Directives {
    mark: &'static str,
    line: u32,
    done: bool,
    seen: Vec<&'static str>,
}

const NAMES: [&str; 3] = ["syntax", "escape", "check"];

impl Directives {
    /// For lines that begin with `mark`: `#`.
    pub fn new(mark: &'static str) -> Self {
        Self { mark, line: 0, done: false, seen: Vec::new() }
    }

    /// The directive in the next line, which has no line end any more.
    pub fn line(&mut self, line: &str) -> Result<Option<Directive>, DockerfileError> {
        self.line = self.line.saturating_add(1);
        if self.done {
            return Ok(None);
        }
        let found = line.strip_prefix(self.mark).and_then(|rest| split(rest.trim_start()));
        let known = found.and_then(|(name, value)| {
            let name = NAMES.into_iter().find(|it| it.eq_ignore_ascii_case(name))?;
            Some((name, value))
        });
        let Some((name, value)) = known else {
            self.done = true;
            return Ok(None);
        };
        if self.seen.contains(&name) {
            return Err(syntax(format!("only one {name} parser directive can be used")));
        }
        self.seen.push(name);
        Ok(Some(Directive { name, value: value.to_owned(), line: self.line }))
    }
}

/// `name = value`: a name of letters and digits that begins with a letter, and a value that is not empty.
fn split(line: &str) -> Option<(&str, &str)> {
    let (name, value) = line.split_once('=')?;
    let (name, value) = (name.trim_end_matches([' ', '\t', '\n', '\r', '\u{c}']), value.trim());
    let plain =
        name.starts_with(|it: char| it.is_ascii_alphabetic()) && name.chars().all(|it| it.is_ascii_alphanumeric());
    (plain && !value.is_empty()).then_some((name, value))
}

/// The value of the directive `name` in a Dockerfile.
pub fn find(name: &str, text: &str) -> Option<Directive> {
    marked(name, text, "#")
}

/// What `syntax` names, in any of the forms that BuildKit reads: `# syntax=`, `// syntax=`, `{"syntax": …}`; a first line
/// with `#!` is passed over.
pub fn syntax_of(text: &str) -> Option<String> {
    let found = marked("syntax", text, "#").or_else(|| marked("syntax", text, "//"));
    if let Some(found) = found {
        return found.value.split(' ').next().map(str::to_owned);
    }
    let (text, _) = without_shebang(text.trim_start_matches('\u{feff}'));
    // A document of another kind, with a key for this.
    let document: serde_json::Value = text.trim_start().starts_with('{').then(|| serde_json::from_str(text).ok())??;
    document.get("syntax")?.as_str().map(str::to_owned)
}

fn without_shebang(text: &str) -> (&str, bool) {
    if !text.starts_with("#!") {
        return (text, false);
    }
    (text.split_once('\n').map_or("", |(_, rest)| rest), true)
}

fn marked(name: &str, text: &str, mark: &'static str) -> Option<Directive> {
    let (text, shebang) = without_shebang(text.strip_prefix('\u{feff}').unwrap_or(text));
    let mut directives = Directives { line: u32::from(shebang), ..Directives::new(mark) };
    for line in text.lines() {
        let found = directives.line(line).ok()?;
        if directives.done {
            return None;
        }
        if let Some(found) = found.filter(|it| it.name == name) {
            return Some(found);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values() {
        for (text, expected) in [
            ("# syntax=docker/dockerfile:1\nFROM a", Some("docker/dockerfile:1")),
            ("#SYNTAX = a:b  more\r\n", Some("a:b")),
            ("# escape=`\n# syntax=x", Some("x")),
            ("#!/usr/bin/env x\n# syntax=y", Some("y")),
            ("\u{feff}# syntax=z", Some("z")),
            ("// syntax=c", Some("c")),
            (r#"{"syntax": "j", "a": 1}"#, Some("j")),
            ("# a comment\n# syntax=x", None),
            ("\n# syntax=x", None),
            ("# unknown=1\n# syntax=x", None),
            ("FROM a\n# syntax=x", None),
            ("# syntax=", None),
            ("# 1syntax=x", None),
        ] {
            assert_eq!(syntax_of(text).as_deref(), expected, "{text:?}");
        }
        assert_eq!(find("check", "# check=skip=all\n").map(|it| (it.value, it.line)), Some(("skip=all".into(), 1)));
        assert_eq!(find("check", "#!x\n# syntax=a\n# check=error=true").map(|it| it.line), Some(3));
    }

    #[test]
    fn twice() {
        let mut directives = Directives::new("#");
        assert!(directives.line("# escape=`").unwrap().is_some());
        let error = directives.line("# Escape=`").unwrap_err();
        assert_eq!(error.to_string(), "only one escape parser directive can be used");
    }
}
