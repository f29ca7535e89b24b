//! One pattern: literals, `?`, `*`, `**`, brackets, escapes. Matched by the set of tokens that can be reached.

/// One part of a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Char(char),
    /// `?`: any but `/`.
    One,
    /// `*`: any number of those.
    Many,
    /// `**/`: nothing, or anything up to a `/`, which are the next two.
    Folders,
    /// Anything.
    FoldersIn,
    /// `/`.
    FoldersEnd,
    /// `**` at the end: anything.
    All,
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

/// A pattern, ready to match.
#[derive(Debug, Clone)]
pub struct Glob {
    tokens: Vec<Token>,
    /// `**suffix`, without other signs: the end of the path, wherever a component begins or not.
    suffix: Option<String>,
}

impl Glob {
    /// Reads a pattern; `None` where brackets or escapes are not closed.
    pub fn new(pattern: &str) -> Option<Self> {
        let mut tokens = Vec::new();
        let mut chars = pattern.chars().peekable();
        let mut leading = false;
        while let Some(ch) = chars.next() {
            let first = tokens.is_empty();
            match ch {
                '*' if chars.next_if_eq(&'*').is_some() => {
                    let slash = chars.next_if_eq(&'/').is_some();
                    if chars.peek().is_none() {
                        tokens.push(Token::All);
                        continue;
                    }
                    leading |= first && slash;
                    // Without a slash behind it there is one all the same: `**x` is `**/x`, or what ends in x (below).
                    tokens.extend([Token::Folders, Token::FoldersIn, Token::FoldersEnd]);
                }
                '*' => tokens.push(Token::Many),
                '?' => tokens.push(Token::One),
                '\\' => tokens.push(Token::Char(chars.next()?)),
                '[' => tokens.push(class(&mut chars)?),
                other => tokens.push(Token::Char(other)),
            }
        }
        let plain = |rest: &[Token]| {
            rest.iter().map(|it| if let Token::Char(ch) = it { Some(*ch) } else { None }).collect::<Option<String>>()
        };
        // A leading `**` with nothing but literals behind it: the path ends so.
        let suffix = match &*tokens {
            [Token::Folders, Token::FoldersIn, Token::FoldersEnd, rest @ ..] if !leading && !pattern.contains('\\') => {
                plain(rest)
            }
            _ => None,
        };
        Some(Self { tokens, suffix })
    }

    /// Whether the whole path fits.
    pub fn fits(&self, path: &str) -> bool {
        if let Some(suffix) = &self.suffix {
            return path.ends_with(suffix.as_str());
        }
        let end = self.run(path);
        end.last() == Some(&true)
    }

    /// Whether something that begins with `start` could fit.
    pub fn may_fit_below(&self, start: &str) -> bool {
        self.suffix.is_some() || self.run(start).contains(&true)
    }

    /// Which tokens can be reached when all of `text` was read; the last one is the end.
    fn run(&self, text: &str) -> Vec<bool> {
        let count = self.tokens.len();
        let mut reached = vec![false; count + 1];
        reached[0] = true;
        self.skip(&mut reached);
        for ch in text.chars() {
            let mut next = vec![false; count + 1];
            for (at, token) in self.tokens.iter().enumerate().filter(|(at, _)| reached[*at]) {
                match token {
                    Token::Char(it) if *it == ch => next[at + 1] = true,
                    Token::FoldersEnd if ch == '/' => next[at + 1] = true,
                    Token::One if ch != '/' => next[at + 1] = true,
                    Token::Many if ch != '/' => next[at] = true,
                    Token::FoldersIn | Token::All if ch != '\n' => next[at] = true,
                    Token::Class { negated, ranges }
                        if ranges.iter().any(|it| (it.0..=it.1).contains(&ch)) != *negated =>
                    {
                        next[at + 1] = true;
                    }
                    _ => {}
                }
            }
            if !next.contains(&true) {
                return next;
            }
            self.skip(&mut next);
            reached = next;
        }
        reached
    }

    /// Marks what is reached without reading anything.
    fn skip(&self, reached: &mut [bool]) {
        for (at, token) in self.tokens.iter().enumerate() {
            if reached[at] {
                match token {
                    Token::Many | Token::All | Token::FoldersIn => reached[at + 1] = true,
                    Token::Folders => {
                        reached[at + 1] = true;
                        reached[at + 3] = true;
                    }
                    _ => {}
                }
            }
        }
    }
}

/// Behind `[`: single characters and ranges, negated by `^`.
fn class(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<Token> {
    let negated = chars.next_if_eq(&'^').is_some();
    let mut ranges = Vec::new();
    loop {
        if !ranges.is_empty() && chars.next_if_eq(&']').is_some() {
            return Some(Token::Class { negated, ranges });
        }
        let low = member(chars)?;
        let high = if chars.next_if_eq(&'-').is_some() { member(chars)? } else { low };
        if high < low {
            return None;
        }
        ranges.push((low, high));
    }
}

fn member(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<char> {
    match chars.next()? {
        '-' | ']' => None,
        '\\' => chars.next(),
        other => Some(other),
    }
}
