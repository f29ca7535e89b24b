//! The patterns of `${name#pattern}`, `${name%pattern}` and `${name/pattern/new}`: `*` and `?`, no brackets.
//!
//! Matched by remembering which tokens can be reached, so the time is at most the product of both lengths.

/// One part of a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Char(char),
    /// Any character but a line end.
    One,
    /// Any number of them.
    Many,
}

/// A pattern, ready to match.
#[derive(Debug, Clone)]
pub struct Pattern(Vec<Token>);

impl Pattern {
    /// Reads a pattern; the error is the text behind "invalid pattern (…) in substitution: ".
    pub fn new(pattern: &str) -> Result<Self, String> {
        let mut chars = pattern.chars().peekable();
        let mut tokens = Vec::new();
        while let Some(ch) = chars.next() {
            let token = match ch {
                '*' => Token::Many,
                '?' => Token::One,
                '\\' => match chars.peek() {
                    // These end the pattern in `${}`, so they are escaped without being part of it.
                    Some('}' | '/') => continue,
                    Some(next @ ('*' | '?' | '\\')) => {
                        let next = *next;
                        chars.next();
                        Token::Char(next)
                    }
                    Some(next) => return Err(format!("invalid escape '\\{next}'")),
                    None => return Err("invalid escape '\\\u{fffd}'".to_owned()),
                },
                other => Token::Char(other),
            };
            // Two stars say no more than one.
            if token != Token::Many || tokens.last() != Some(&Token::Many) {
                tokens.push(token);
            }
        }
        Ok(Self(tokens))
    }

    /// Where matches of `text` that begin at its start end; the shortest or the longest.
    fn end(&self, text: &[char], longest: bool) -> Option<usize> {
        let count = self.0.len();
        let mut reached = vec![false; count + 1];
        reached[0] = true;
        let mut found = None;
        for position in 0..=text.len() {
            for at in 0..count {
                if reached[at] && self.0[at] == Token::Many {
                    reached[at + 1] = true;
                }
            }
            if reached[count] {
                found = Some(position);
                if !longest {
                    return found;
                }
            }
            let Some(&ch) = text.get(position) else { break };
            let mut next = vec![false; count + 1];
            for at in 0..count {
                match self.0[at] {
                    Token::Char(it) if reached[at] && it == ch => next[at + 1] = true,
                    Token::One if reached[at] && ch != '\n' => next[at + 1] = true,
                    Token::Many if reached[at] && ch != '\n' => next[at] = true,
                    _ => {}
                }
            }
            if !next.contains(&true) {
                break;
            }
            reached = next;
        }
        found
    }

    /// `text` without the part at its start that matches.
    pub fn cut_start(&self, text: &str, longest: bool) -> String {
        let chars: Vec<char> = text.chars().collect();
        let end = self.end(&chars, longest).unwrap_or(0);
        chars[end..].iter().collect()
    }

    /// `text` without the part at its end that matches.
    pub fn cut_end(&self, text: &str, longest: bool) -> String {
        let backwards = Self(self.0.iter().rev().copied().collect());
        let chars: Vec<char> = text.chars().rev().collect();
        let end = backwards.end(&chars, longest).unwrap_or(0);
        chars[end..].iter().rev().collect()
    }

    /// `text` with the first match, or with `all`, replaced; longest matches, leftmost first.
    pub fn replace(&self, text: &str, new: &str, all: bool) -> String {
        let chars: Vec<char> = text.chars().collect();
        let mut out = String::new();
        let (mut at, mut after_match) = (0, false);
        while at <= chars.len() {
            match self.end(&chars[at..], true) {
                Some(0) if after_match => {}
                Some(length) => {
                    out.push_str(new);
                    at += length;
                    if !all {
                        out.extend(&chars[at..]);
                        return out;
                    }
                    after_match = length > 0;
                    if length > 0 {
                        continue;
                    }
                }
                None => {}
            }
            after_match = false;
            out.extend(chars.get(at));
            at += 1;
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts() {
        let cases = [
            ("*/", "a/b/c", "b/c", "c"),
            ("a", "abc", "bc", "bc"),
            ("?b", "abab", "ab", "ab"),
            ("x*", "abc", "abc", "abc"),
            (r"\*", "*a", "a", "a"),
            ("", "abc", "abc", "abc"),
            ("*", "abc", "abc", ""),
        ];
        for (pattern, text, short, long) in cases {
            let it = Pattern::new(pattern).unwrap();
            assert_eq!((it.cut_start(text, false), it.cut_start(text, true)), (short.into(), long.into()), "{pattern}");
        }
        let ends = [("/*", "a/b/c", "a/b", "a"), (".tar.*", "x.tar.gz", "x", "x"), ("?", "abc", "ab", "ab")];
        for (pattern, text, short, long) in ends {
            let it = Pattern::new(pattern).unwrap();
            assert_eq!((it.cut_end(text, false), it.cut_end(text, true)), (short.into(), long.into()), "{pattern}");
        }
    }

    #[test]
    fn replaces() {
        for (pattern, text, new, one, all) in [
            ("o", "foo boo", "0", "f0o boo", "f00 b00"),
            ("o*", "foo boo", "x", "fx", "fx"),
            ("?", "abc", "_", "_bc", "___"),
            ("", "ab", "-", "-ab", "-a-b-"),
            ("z", "ab", "-", "ab", "ab"),
            (r"\/", "a/b/c", "-", "a-b/c", "a-b-c"),
        ] {
            let it = Pattern::new(pattern).unwrap();
            assert_eq!(
                (it.replace(text, new, false), it.replace(text, new, true)),
                (one.into(), all.into()),
                "{pattern}"
            );
        }
        assert_eq!(Pattern::new(r"a\b").unwrap_err(), r"invalid escape '\b'");
        assert!(Pattern::new("a\\").is_err());
    }
}
