//! One logical line taken apart: name, flags, and arguments in the form that the instruction has.

use super::error::{Result, syntax};
use super::source::quote;

/// `[\t\v\f\r ]`: what separates words that are not quoted.
pub fn is_blank(ch: char) -> bool {
    matches!(ch, '\t' | '\u{b}' | '\u{c}' | '\r' | ' ')
}

/// The first word, and what follows its blanks.
pub fn first_word(text: &str) -> (&str, Option<&str>) {
    match text.find(is_blank) {
        Some(at) => (&text[..at], Some(text[at..].trim_start_matches(is_blank))),
        None => (text, None),
    }
}

/// Name, flags and the rest of a line.
pub fn split(line: &str, escape: char) -> (&str, Vec<String>, &str) {
    let (name, rest) = first_word(line.trim());
    let (flags, rest) = flags(rest.unwrap_or_default(), escape);
    (name, flags, rest.trim())
}

/// Leading words with `--`; `--` alone ends them.
fn flags(line: &str, escape: char) -> (Vec<String>, &str) {
    let mut found = Vec::new();
    let mut rest = line;
    loop {
        let start = rest.trim_start();
        if !start.starts_with("--") {
            return (found, start);
        }
        let (word, end) = flag(start, escape);
        rest = &start[end..];
        if word == "--" {
            return (found, rest);
        }
        found.push(word);
    }
}

/// A word with quotes and escapes removed, and where it ends.
fn flag(text: &str, escape: char) -> (String, usize) {
    let mut word = String::new();
    let mut quote = None;
    let mut chars = text.char_indices();
    while let Some((at, ch)) = chars.next() {
        match quote {
            None if ch.is_whitespace() => return (word, at),
            None if ch == '\'' || ch == '"' => quote = Some(ch),
            Some(open) if ch == open => quote = None,
            _ if ch == escape => word.extend(chars.next().map(|(_, next)| next)),
            _ => word.push(ch),
        }
    }
    (word, text.len())
}

/// Words separated by space, with their quotes and escapes still there.
pub fn words(rest: &str, escape: char) -> Vec<String> {
    let mut all = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = rest.chars();
    while let Some(ch) = chars.next() {
        if quote.is_none() && ch.is_whitespace() {
            all.extend(word.take());
            continue;
        }
        // An escape character at the very end is dropped.
        if ch == escape && quote != Some('\'') {
            if let Some(next) = chars.next() {
                let word = word.get_or_insert_default();
                word.push(ch);
                word.push(next);
            }
            continue;
        }
        match quote {
            Some(open) if ch == open => quote = None,
            None if ch == '\'' || ch == '"' => quote = Some(ch),
            _ => {}
        }
        word.get_or_insert_default().push(ch);
    }
    all.extend(word);
    all
}

/// A name with its value; `legacy`: they were separated by space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// Left of the `=`.
    pub name: String,
    /// Right of it.
    pub value: String,
    /// Written as `ENV name value`.
    pub legacy: bool,
}

/// `name=value …`, or `name value with spaces`.
pub fn pairs(rest: &str, instruction: &str, escape: char) -> Result<Vec<Pair>> {
    let words = words(rest, escape);
    let Some(first) = words.first() else { return Ok(Vec::new()) };
    if !first.contains('=') {
        let (name, value) = first_word(rest);
        let Some(value) = value else {
            return Err(syntax(format!("{instruction} must have two arguments")));
        };
        return Ok(vec![Pair { name: name.to_owned(), value: value.to_owned(), legacy: true }]);
    }
    let pair = |word: &String| match word.split_once('=') {
        Some((name, value)) => Ok(Pair { name: name.to_owned(), value: value.to_owned(), legacy: false }),
        None => Err(syntax(format!("Syntax error - can't find = in {}. Must be of the form: name=value", quote(word)))),
    };
    words.iter().map(pair).collect()
}

/// Words separated by blanks; nothing is quoted.
pub fn blank_separated(rest: &str) -> Vec<String> {
    if rest.is_empty() {
        return Vec::new();
    }
    let mut all = vec![String::new()];
    let mut in_blank = false;
    for ch in rest.chars() {
        if is_blank(ch) {
            in_blank = true;
            continue;
        }
        if std::mem::take(&mut in_blank) {
            all.push(String::new());
        }
        if let Some(last) = all.last_mut() {
            last.push(ch);
        }
    }
    if in_blank {
        all.push(String::new());
    }
    all
}

/// A JSON array of strings; `None` where it is no array, so that it is meant for the shell.
pub fn json(rest: &str) -> Result<Option<Vec<String>>> {
    let rest = rest.trim_start();
    if !rest.starts_with('[') {
        return Ok(None);
    }
    let Ok(values) = serde_json::from_str::<Vec<serde_json::Value>>(rest) else { return Ok(None) };
    let strings = values.into_iter().map(|it| match it {
        serde_json::Value::String(text) => Some(text),
        _ => None,
    });
    match strings.collect::<Option<Vec<_>>>() {
        Some(strings) => Ok(Some(strings)),
        None => Err(syntax("when using JSON array syntax, arrays must be comprised of strings only")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits() {
        let cases: [(&str, &str, &[&str], &str); 10] = [
            ("FROM a AS b ", "FROM", &[], "a AS b"),
            ("RUN\t--a --b=c  d --e", "RUN", &["--a", "--b=c"], "d --e"),
            ("COPY --x='a b' --y=\"c\\\" d\" e", "COPY", &["--x=a b", "--y=c\" d"], "e"),
            ("RUN -- --a b", "RUN", &[], "--a b"),
            ("RUN --a", "RUN", &["--a"], ""),
            ("RUN --a\\", "RUN", &["--a"], ""),
            ("RUN --a\\ b c", "RUN", &["--a b"], "c"),
            ("RUN", "RUN", &[], ""),
            ("RUN -x", "RUN", &[], "-x"),
            ("RUN --\u{e4}=\u{fc} x", "RUN", &["--\u{e4}=\u{fc}"], "x"),
        ];
        for (line, name, flags, rest) in cases {
            let got = split(line, '\\');
            assert_eq!(
                (got.0, got.1.as_slice(), got.2),
                (name, &*flags.iter().map(ToString::to_string).collect::<Vec<_>>(), rest)
            );
        }
    }

    #[test]
    fn words_keep_quotes() {
        for (text, expected) in [
            ("a=b c", &["a=b", "c"][..]),
            ("a=\"b c\" d='e f'", &["a=\"b c\"", "d='e f'"]),
            (r"a=b\ c", &[r"a=b\ c"]),
            (r#"a="b\" c""#, &[r#"a="b\" c""#]),
            (r"a='b\' c", &[r"a='b\'", "c"]),
            ("a=\"\"", &["a=\"\""]),
            ("a\\", &["a"]),
            ("  ", &[]),
        ] {
            assert_eq!(words(text, '\\'), expected, "{text}");
        }
    }

    #[test]
    fn names_with_values() {
        let all = |rest: &str| {
            pairs(rest, "ENV", '\\')
                .map(|it| it.into_iter().map(|it| (it.name, it.value, it.legacy)).collect::<Vec<_>>())
        };
        assert_eq!(
            all("a=b c=\"d e\"").unwrap(),
            [("a".into(), "b".into(), false), ("c".into(), "\"d e\"".into(), false)]
        );
        assert_eq!(all("a  b c=d").unwrap(), [("a".into(), "b c=d".into(), true)]);
        assert_eq!(all("").unwrap(), []);
        assert_eq!(all("a").unwrap_err().to_string(), "ENV must have two arguments");
        let error = all("a=b c").unwrap_err().to_string();
        assert_eq!(error, "Syntax error - can't find = in \"c\". Must be of the form: name=value");
    }

    #[test]
    fn arrays() {
        assert_eq!(json(r#" ["a", "b\n"]"#).unwrap(), Some(vec!["a".into(), "b\n".into()]));
        assert_eq!(json("[]").unwrap(), Some(vec![]));
        for text in ["a", "['a']", r#"["a""#, r#"["a"] b"#, ""] {
            assert_eq!(json(text).unwrap(), None, "{text}");
        }
        for text in ["[1]", r#"["a", ["b"]]"#, "[null]"] {
            assert!(json(text).is_err(), "{text}");
        }
    }
}
