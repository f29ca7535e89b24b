//! A template cut into text and actions, and actions into tokens.

use serde_json::Value;

use super::template::{Result, fault};

/// What a template is made of.
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    /// Printed as it is.
    Text(String),
    /// What was between `{{` and `}}`.
    Action(Vec<Token>),
}

/// What an action is made of.
#[derive(Debug, Clone, PartialEq)]
pub enum Token {
    /// A keyword, a function, or `$` with the name of a variable.
    Word(String),
    /// `.name`; a lone `.` has no name. The second part: it sticks to what is before it.
    Field(String, bool),
    /// A string, number or truth value.
    Literal(Value),
    /// `|`, `(`, `)`, `,`.
    Sign(char),
    /// `:=` or `=`.
    Assign,
}

/// Cuts `text` at its actions; comments are gone, and so are spaces beside `{{-` and `-}}`.
pub fn pieces(text: &str) -> Result<Vec<Piece>> {
    let mut pieces = Vec::new();
    let (mut rest, mut trim) = (text, false);
    loop {
        let (plain, action) = rest.split_once("{{").map_or((rest, None), |(plain, inner)| (plain, Some(inner)));
        let plain = if trim { plain.trim_start() } else { plain };
        let trims_left = action.is_some_and(|inner| inner.starts_with("- "));
        let plain = if trims_left { plain.trim_end() } else { plain };
        if !plain.is_empty() {
            pieces.push(Piece::Text(plain.to_owned()));
        }
        let Some(inner) = action else { return Ok(pieces) };
        let Some(end) = closing(inner) else { return fault("a {{ has no }}") };
        let body = &inner[..end];
        trim = body.ends_with(" -");
        let body = body.strip_prefix("- ").unwrap_or(body);
        let body = body.strip_suffix(" -").unwrap_or(body).trim();
        if !body.starts_with("/*") {
            pieces.push(Piece::Action(tokens(body)?));
        }
        rest = &inner[end + 2..];
    }
}

/// Where the `}}` of an action is; one in quotes does not count.
fn closing(text: &str) -> Option<usize> {
    let mut quote = None;
    let mut is_escaped = false;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            _ if is_escaped => is_escaped = false,
            (Some('"'), '\\') => is_escaped = true,
            (Some(open), c) if c == open => quote = None,
            (None, '"' | '`') => quote = Some(c),
            (None, '}') if text[at..].starts_with("}}") => return Some(at),
            _ => {}
        }
    }
    None
}

fn tokens(text: &str) -> Result<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let (token, len) = match c {
            c if c.is_whitespace() => {
                rest = rest.trim_start();
                continue;
            }
            '"' => quoted(rest)?,
            '`' => {
                let Some(end) = rest[1..].find('`') else { return fault(format!("a quote is not closed in {text:?}")) };
                (Token::Literal(rest[1..=end].into()), end + 2)
            }
            '.' => {
                let len = 1 + word_len(&rest[1..]);
                let before = text[..text.len() - rest.len()].chars().next_back();
                let is_glued = before.is_some_and(|c| !c.is_whitespace() && c != '(' && c != '|');
                (Token::Field(rest[1..len].to_owned(), is_glued), len)
            }
            ':' if rest.starts_with(":=") => (Token::Assign, 2),
            '=' => (Token::Assign, 1),
            '|' | '(' | ')' | ',' => (Token::Sign(c), 1),
            '-' | '0'..='9' => {
                let len = 1 + word_len(&rest[1..]);
                let Ok(number) = rest[..len].parse::<i64>() else {
                    return fault(format!("{:?} is no number", &rest[..len]));
                };
                (Token::Literal(number.into()), len)
            }
            '$' => {
                let len = 1 + word_len(&rest[1..]);
                (Token::Word(rest[..len].to_owned()), len)
            }
            c if c.is_alphabetic() || c == '_' => {
                let len = word_len(rest);
                let token = match &rest[..len] {
                    "true" => Token::Literal(true.into()),
                    "false" => Token::Literal(false.into()),
                    "nil" => Token::Literal(Value::Null),
                    word => Token::Word(word.to_owned()),
                };
                (token, len)
            }
            c => return fault(format!("{c:?} means nothing in {text:?}")),
        };
        tokens.push(token);
        rest = &rest[len..];
    }
    Ok(tokens)
}

fn word_len(text: &str) -> usize {
    text.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(text.len())
}

/// A string in double quotes at the beginning of `text`, and its length with the quotes.
fn quoted(text: &str) -> Result<(Token, usize)> {
    let (mut value, mut is_escaped) = (String::new(), false);
    for (at, c) in text.char_indices().skip(1) {
        match c {
            'n' if is_escaped => value.push('\n'),
            't' if is_escaped => value.push('\t'),
            c if is_escaped => value.push(c),
            '\\' => {}
            '"' => return Ok((Token::Literal(value.into()), at + 1)),
            c => value.push(c),
        }
        is_escaped = c == '\\' && !is_escaped;
    }
    fault(format!("a quote is not closed in {text:?}"))
}
