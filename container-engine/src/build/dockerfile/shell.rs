//! Words of a Dockerfile: quotes, escapes, variables and their modifiers, by the rules of BuildKit's shell lexer.
//!
//! `'` keeps everything; `"` keeps all but variables and escapes of `"`, `$` and the escape character; elsewhere the escape
//! character keeps the next one. One rule differs: a modifier in the middle of a word that is split (`EXPOSE 1${x:-2}`) does not
//! lose what stands before it. Depth and length of what comes out are bounded, whatever comes in.

use std::collections::BTreeSet;
use std::iter::Peekable;
use std::str::Chars;

use super::error::{Result, expansion};
use super::pattern::Pattern;
use super::source::quote;

/// How deep `${a:-${b:-…}}` may go.
const MAX_DEPTH: usize = 100;
/// How long a word may become, bytes: a few lines can double a variable again and again.
const MAX_WORD: usize = 1 << 20;

/// Variables by their name.
pub trait Variables {
    /// The value, where it is set.
    fn get(&self, name: &str) -> Option<&str>;
}

impl<F: Fn(&str) -> Option<&'static str>> Variables for F {
    fn get(&self, name: &str) -> Option<&str> {
        self(name)
    }
}

/// No variable is set.
#[derive(Debug, Clone, Copy, Default)]
pub struct Empty;

impl Variables for Empty {
    fn get(&self, _: &str) -> Option<&str> {
        None
    }
}

/// What a word became.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expanded {
    /// The whole, not split.
    pub text: String,
    /// Split at spaces that are not quoted; those of variables count.
    pub words: Vec<String>,
    /// Variables that were set.
    pub matched: BTreeSet<String>,
    /// Variables that were asked for and not set.
    pub unmatched: BTreeSet<String>,
}

/// The rules for one file, or one purpose.
#[allow(clippy::struct_excessive_bools)] // Each is a rule of its own.
#[derive(Debug, Clone, Copy)]
pub struct Shell {
    /// `\`, or what `# escape=` says.
    pub escape: char,
    /// Quotes stay.
    pub raw_quotes: bool,
    /// Escape characters stay.
    pub raw_escapes: bool,
    /// Quotes mean nothing.
    pub plain_quotes: bool,
    /// A variable that is not set stays as it is written.
    pub keep_unset: bool,
}

impl Shell {
    /// The usual rules with this escape character.
    pub fn new(escape: char) -> Self {
        Self { escape, raw_quotes: false, raw_escapes: false, plain_quotes: false, keep_unset: false }
    }

    /// Expands a word.
    pub fn expand(&self, word: &str, variables: &dyn Variables) -> Result<Expanded> {
        let mut lexer = Lexer {
            shell: *self,
            raw: self.raw_escapes,
            rest: word.chars().peekable(),
            variables,
            depth: 0,
            out: Expanded::default(),
        };
        let (text, words) = lexer.until(None, self.raw_escapes, false).map_err(|error| {
            let start: String = word.chars().take(2000).collect();
            error.prefixed(format_args!("failed to process {}", quote(&start)))
        })?;
        Ok(Expanded { text, words, ..lexer.out })
    }
}

/// Words as they grow.
#[derive(Default)]
struct Words {
    now: String,
    done: Vec<String>,
}

impl Words {
    /// A space that is not quoted ends a word.
    fn add(&mut self, ch: char) {
        if !ch.is_whitespace() {
            self.now.push(ch);
        } else if !self.now.is_empty() {
            self.done.push(std::mem::take(&mut self.now));
        }
    }

    fn finish(mut self) -> Vec<String> {
        if !self.now.is_empty() {
            self.done.push(self.now);
        }
        self.done
    }
}

struct Lexer<'a> {
    shell: Shell,
    /// Whether escape characters stay, for now.
    raw: bool,
    rest: Peekable<Chars<'a>>,
    variables: &'a dyn Variables,
    depth: usize,
    out: Expanded,
}

impl Lexer<'_> {
    /// Up to `stop`, or the end. `pattern`: a literal escape character in quotes is doubled, for [`Pattern`].
    fn until(&mut self, stop: Option<char>, raw: bool, pattern: bool) -> Result<(String, Vec<String>)> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(expansion(format!("substitutions are nested deeper than {MAX_DEPTH}")));
        }
        let before = std::mem::replace(&mut self.raw, raw);
        let result = self.parts(stop, pattern);
        self.raw = before;
        self.depth -= 1;
        result
    }

    fn parts(&mut self, stop: Option<char>, pattern: bool) -> Result<(String, Vec<String>)> {
        let mut text = String::new();
        let mut words = Words::default();
        while let Some(&ch) = self.rest.peek() {
            if Some(ch) == stop {
                self.rest.next();
                return Ok((text, words.finish()));
            }
            match ch {
                '$' => {
                    let value = self.dollar()?;
                    value.chars().for_each(|it| words.add(it));
                    text.push_str(&value);
                }
                '<' => {
                    let mark = self.arrows();
                    text.push_str(&mark);
                    words.now.push_str(&mark);
                }
                '\'' | '"' if !self.shell.plain_quotes => {
                    let part = if ch == '"' { self.double_quoted(pattern)? } else { self.single_quoted(pattern)? };
                    text.push_str(&part);
                    words.now.push_str(&part);
                }
                _ => {
                    self.rest.next();
                    if ch == self.shell.escape {
                        if self.raw {
                            words.now.push(ch);
                            text.push(ch);
                        }
                        // At the end it escapes nothing.
                        let Some(next) = self.rest.next() else { break };
                        words.now.push(next);
                        text.push(next);
                    } else {
                        words.add(ch);
                        text.push(ch);
                    }
                }
            }
            if text.len() > MAX_WORD {
                return Err(expansion(format!("the result is longer than {MAX_WORD} bytes")));
            }
        }
        match stop {
            Some(stop) => Err(expansion(format!("unexpected end of statement while looking for matching {stop}"))),
            None => Ok((text, words.finish())),
        }
    }

    fn single_quoted(&mut self, pattern: bool) -> Result<String> {
        let mut out = String::new();
        self.rest.next();
        if self.shell.raw_quotes {
            out.push('\'');
        }
        loop {
            match self.rest.next() {
                None => {
                    return Err(expansion("unexpected end of statement while looking for matching single-quote"));
                }
                Some('\'') => {
                    if self.shell.raw_quotes {
                        out.push('\'');
                    }
                    return Ok(out);
                }
                Some(ch) => {
                    if pattern && ch == self.shell.escape {
                        out.push(ch);
                    }
                    out.push(ch);
                }
            }
        }
    }

    fn double_quoted(&mut self, pattern: bool) -> Result<String> {
        let mut out = String::new();
        self.rest.next();
        if self.shell.raw_quotes {
            out.push('"');
        }
        loop {
            match self.rest.peek() {
                None => {
                    return Err(expansion("unexpected end of statement while looking for matching double-quote"));
                }
                Some('"') => {
                    self.rest.next();
                    if self.shell.raw_quotes {
                        out.push('"');
                    }
                    return Ok(out);
                }
                Some('$') => out.push_str(&self.dollar()?),
                Some(&ch) => {
                    self.rest.next();
                    if ch != self.shell.escape {
                        out.push(ch);
                        continue;
                    }
                    match self.rest.peek() {
                        None => {}
                        Some(&next) if next == '"' || next == '$' || next == self.shell.escape => {
                            if self.raw {
                                out.push(ch);
                            }
                            self.rest.next();
                            out.push(next);
                        }
                        Some(_) => {
                            // It stays; a pattern is read once more, and needs two for one.
                            if self.raw && (!self.shell.raw_quotes || pattern) {
                                out.push(ch);
                            }
                            out.push(ch);
                        }
                    }
                }
            }
            if out.len() > MAX_WORD {
                return Err(expansion(format!("the result is longer than {MAX_WORD} bytes")));
            }
        }
    }

    /// Behind `$`.
    fn dollar(&mut self) -> Result<String> {
        self.rest.next();
        if self.rest.peek() != Some(&'{') {
            let name = self.name();
            if name.is_empty() {
                return Ok("$".to_owned());
            }
            return Ok(match self.value(&name) {
                None if self.shell.keep_unset => format!("${name}"),
                value => value.unwrap_or_default(),
            });
        }
        self.rest.next();
        match self.rest.peek() {
            None => return Err(expansion("syntax error: missing '}'")),
            Some('{' | '}' | ':') => return Err(expansion("syntax error: bad substitution")),
            Some(_) => {}
        }
        let name = self.name();
        match self.rest.next() {
            Some('}') => Ok(match self.value(&name) {
                None if self.shell.keep_unset => format!("${{{name}}}"),
                value => value.unwrap_or_default(),
            }),
            Some(':') => {
                let modifier = self.rest.next();
                self.modified(&name, modifier, true)
            }
            Some('/') => self.replaced(&name),
            other => self.modified(&name, other, false),
        }
    }

    /// `-`, `+`, `?`, `#`, `%`; `colon`: an empty value counts as none.
    fn modified(&mut self, name: &str, modifier: Option<char>, colon: bool) -> Result<String> {
        let shown = modifier.map_or('\u{fffd}', |it| it);
        let sign = format!("{}{shown}", if colon { ":" } else { "" });
        let unsupported = || expansion(format!("unsupported modifier ({sign}) in substitution"));
        let cuts = matches!(shown, '#' | '%');
        if colon && cuts || !colon && !matches!(shown, '-' | '+' | '?' | '#' | '%') {
            return Err(unsupported());
        }
        let (mut word, _) = self.closed('}', cuts, cuts, "syntax error: missing '}'")?;
        let value = self.value(name);
        if self.shell.keep_unset && value.is_none() {
            return Ok(format!("${{{name}{sign}{word}}}"));
        }
        let usable = value.clone().filter(|it| !(colon && it.is_empty()));
        match shown {
            '-' => Ok(usable.unwrap_or(word)),
            '+' => Ok(usable.map(|_| word).unwrap_or_default()),
            '?' => {
                let state = if value.is_none() { "unset" } else { "empty" };
                usable.ok_or_else(|| {
                    let why = if word.is_empty() { format!("is not allowed to be {state}") } else { word };
                    expansion(format!("{name}: {why}"))
                })
            }
            '#' | '%' => {
                let longest = word.starts_with(shown);
                if longest {
                    word.remove(0);
                }
                let pattern = pattern(&word)?;
                let value = value.unwrap_or_default();
                Ok(if shown == '#' { pattern.cut_start(&value, longest) } else { pattern.cut_end(&value, longest) })
            }
            _ => Err(unsupported()),
        }
    }

    /// `${name/pattern/new}`, `${name//pattern/new}`.
    fn replaced(&mut self, name: &str) -> Result<String> {
        let all = self.rest.next_if_eq(&'/').is_some();
        let (from, _) = self.closed('/', true, true, "syntax error: missing '/' in ${}")?;
        let (new, _) = self.closed('}', true, false, "syntax error: missing '}'")?;
        let value = self.value(name);
        if self.shell.keep_unset && value.is_none() {
            return Ok(format!("${{{name}/{from}/{new}}}"));
        }
        let value = value.unwrap_or_default();
        let times = if all { value.len() + 1 } else { 1 };
        if times.saturating_mul(new.len()) > MAX_WORD && value.len().saturating_mul(new.len()) > MAX_WORD {
            return Err(expansion(format!("the result is longer than {MAX_WORD} bytes")));
        }
        Ok(pattern(&from)?.replace(&value, &new, all))
    }

    /// Up to `stop`; where the text ends before it, `missing` says so.
    fn closed(&mut self, stop: char, raw: bool, pattern: bool, missing: &str) -> Result<(String, Vec<String>)> {
        let result = self.until(Some(stop), raw, pattern);
        let at_end = result.is_err() && self.depth <= MAX_DEPTH && self.rest.peek().is_none();
        if at_end { Err(expansion(missing)) } else { result }
    }

    fn value(&mut self, name: &str) -> Option<String> {
        if let Some(value) = self.variables.get(name) {
            self.out.matched.insert(name.to_owned());
            return Some(value.to_owned());
        }
        self.out.unmatched.insert(name.to_owned());
        None
    }

    /// Letters, digits and `_`; or digits only, or one of the shell's special names.
    fn name(&mut self) -> String {
        let mut name = String::new();
        match self.rest.peek() {
            Some(first) if first.is_numeric() => {
                while let Some(digit) = self.rest.next_if(|it| it.is_numeric()) {
                    name.push(digit);
                }
            }
            Some('@' | '*' | '#' | '?' | '-' | '$' | '!') => name.extend(self.rest.next()),
            _ => {
                while let Some(ch) = self.rest.next_if(|it| it.is_alphanumeric() || *it == '_') {
                    name.push(ch);
                }
            }
        }
        name
    }

    /// `<`, or `<<` with the spaces behind it: they do not end the word, so that a heredoc is one.
    fn arrows(&mut self) -> String {
        self.rest.next();
        if self.rest.next_if_eq(&'<').is_none() {
            return "<".to_owned();
        }
        let mut out = "<<".to_owned();
        while let Some(space) = self.rest.next_if(|it| matches!(it, '\t' | '\r' | ' ')) {
            out.push(space);
        }
        out
    }
}

fn pattern(text: &str) -> Result<Pattern> {
    Pattern::new(text).map_err(|why| expansion(format!("invalid pattern ({text}) in substitution: {why}")))
}

#[cfg(test)]
#[path = "shell_tests.rs"]
mod tests;
