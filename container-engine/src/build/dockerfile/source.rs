//! Lines of a Dockerfile, and how a problem in them is shown: the name of the file, the line, and an excerpt with marks.

use std::fmt::Write as _;

use serde::Serialize;

/// Lines of the file, counted from 1, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Lines {
    /// The first line.
    pub first: u32,
    /// The last line.
    pub last: u32,
}

impl Lines {
    /// From `first` to `last`; a `last` before `first` counts as `first`.
    pub fn new(first: u32, last: u32) -> Self {
        Self { first, last: last.max(first) }
    }

    /// Whether `line` is one of them.
    pub fn contains(self, line: u32) -> bool {
        (self.first..=self.last).contains(&line)
    }
}

/// The lines `marked` of the file called `name`, with a few around them: BuildKit's form, which people and editors know.
pub fn excerpt(name: &str, text: &str, marked: &[Lines]) -> Option<String> {
    let lines: Vec<&str> = text.split('\n').collect();
    let count = u32::try_from(lines.len()).unwrap_or(u32::MAX);
    let start = marked.iter().map(|it| it.first).min()?;
    let mut end = marked.iter().map(|it| it.last).max()?;
    if start > count || start < 1 {
        return None;
    }
    end = end.min(count);
    let pad = if end == start { 4 } else { 2 };
    let (mut from, mut shown) = (start, 0);
    while shown < pad {
        if from > 1 {
            from -= 1;
            shown += 1;
        }
        if end != count {
            end += 1;
            shown += 1;
        }
        shown += 1;
    }
    let mut out = format!("{name}:{start}\n--------------------\n");
    for number in from..=end {
        let mark = if marked.iter().any(|it| it.contains(number)) { ">>>" } else { "   " };
        let line = lines.get(number as usize - 1).unwrap_or(&"").trim_end_matches('\r');
        let _ = writeln!(out, " {number:3} | {mark} {line}");
    }
    out.push_str("--------------------\n");
    Some(out)
}

/// A string as Go's `%q` writes it: what BuildKit's messages and history have.
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for ch in text.chars() {
        match ch {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\u{b}' => out.push_str("\\v"),
            it if (it as u32) < 0x20 || it as u32 == 0x7f => {
                let _ = write!(out, "\\x{:02x}", it as u32);
            }
            // Go: not printable.
            it if it != ' ' && (it.is_control() || it.is_whitespace()) || it == '\u{feff}' => {
                let _ = write!(out, "\\u{:04x}", it as u32);
            }
            it => out.push(it),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excerpts() {
        let text = "FROM a\nRUN b\nCOPY c d\nRUN e\nRUN f\nRUN g";
        let one = excerpt("Dockerfile", text, &[Lines::new(3, 3)]).unwrap();
        let expected = "Dockerfile:3\n--------------------\n   1 |     FROM a\n   2 |     RUN b\n   3 | >>> COPY c d\n   4 |     \
                        RUN e\n   5 |     RUN f\n--------------------\n";
        assert_eq!(one, expected);
        let first = excerpt("x", "FROM a\r\nRUN b", &[Lines::new(1, 2)]).unwrap();
        assert_eq!(first, "x:1\n--------------------\n   1 | >>> FROM a\n   2 | >>> RUN b\n--------------------\n");
        assert_eq!(excerpt("x", "a", &[Lines::new(7, 7)]), None);
        assert_eq!(excerpt("x", "a", &[Lines::new(0, 0)]), None);
        assert_eq!(excerpt("x", "a", &[]), None);
    }

    #[test]
    fn quoted() {
        for (text, expected) in [
            ("a b", r#""a b""#),
            ("a\"\\\n\t", r#""a\"\\\n\t""#),
            ("\u{1}\u{7f}", r#""\x01\x7f""#),
            ("\u{a0}\u{feff}\u{e4}", "\"\\u00a0\\ufeff\u{e4}\""),
        ] {
            assert_eq!(quote(text), expected);
        }
    }
}
