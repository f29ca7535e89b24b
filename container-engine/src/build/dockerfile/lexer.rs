//! From the bytes of a Dockerfile to its instructions, each with flags, arguments, heredocs, comments and lines.

use super::directive::Directives;
use super::error::{DockerfileError, Kind, Result, syntax};
use super::heredoc::{self, Heredoc};
use super::line::{self, Pair};
use super::source::Lines;

/// Largest Dockerfile, bytes.
pub const MAX_FILE: usize = 4 << 20;
/// Longest line of it, bytes: BuildKit's limit.
const MAX_LINE: usize = 65_535;
/// Most instructions.
pub const MAX_INSTRUCTIONS: usize = 20_000;

/// What follows the name of an instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Arguments {
    /// Words, or the one string that the shell gets.
    Words(Vec<String>),
    /// The JSON form. Behind the type for HEALTHCHECK.
    Json(Vec<String>),
    /// Names with values.
    Pairs(Vec<Pair>),
    /// What ONBUILD keeps.
    Trigger(Option<Box<Node>>),
}

/// An instruction as it stands in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name, as written.
    pub name: String,
    /// The logical line, continuations joined.
    pub original: String,
    /// Words with `--` behind the name.
    pub flags: Vec<String>,
    /// The rest.
    pub arguments: Arguments,
    /// For `HEALTHCHECK`: the word before the command.
    pub kind: Option<String>,
    /// In the order of the line.
    pub heredocs: Vec<Heredoc>,
    /// Comments directly above it.
    pub comments: Vec<String>,
    /// Its lines.
    pub lines: Lines,
}

/// A file taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    /// In order.
    pub nodes: Vec<Node>,
    /// `\`, or what `# escape=` says.
    pub escape: char,
    /// Lines in whose instructions an empty line stands.
    pub empty_continuations: Vec<Lines>,
}

/// Takes a Dockerfile apart. Bytes that are no UTF-8 become U+FFFD.
pub fn parse(text: &str) -> Result<Parsed> {
    if text.len() > MAX_FILE {
        let what = format!("the Dockerfile is larger than {MAX_FILE} bytes");
        return Err(DockerfileError::new(Kind::TooLarge, what));
    }
    let mut reader =
        Reader { lines: text.split_inclusive('\n'), number: 0, escape: '\\', directives: Directives::new("#") };
    let mut parsed = Parsed { nodes: Vec::new(), escape: '\\', empty_continuations: Vec::new() };
    let mut comments = Vec::new();
    while let Some(raw) = reader.next()? {
        let raw = if reader.number == 1 { raw.strip_prefix('\u{feff}').unwrap_or(raw) } else { raw };
        if is_comment(raw) {
            let mut chars = raw.chars();
            chars.next();
            match chars.as_str().trim() {
                "" => comments.clear(),
                comment => comments.push(comment.to_owned()),
            }
        }
        let line = raw.trim_end_matches(['\r', '\n']).trim_start();
        if reader.directive(line)? {
            comments.pop();
        }
        let line = if is_comment(line) { "" } else { line };
        let start = reader.number;
        let (line, ended) = reader.continued(line);
        if ended && line.is_empty() {
            continue;
        }
        let (line, empty) = reader.logical(line, ended)?;
        if empty {
            parsed.empty_continuations.push(Lines::new(reader.number, reader.number));
        }
        let here = |error: DockerfileError, end: u32| error.at(Lines::new(start, end));
        let mut node = node(&line, reader.escape, 0).map_err(|it| here(it, reader.number))?;
        if takes_heredoc(&node) && line.contains("<<") {
            for mut found in heredoc::in_line(&line).map_err(|it| here(it, reader.number))? {
                found.content = reader.heredoc(&found, start)?;
                node.heredocs.push(found);
            }
        }
        node.lines = Lines::new(start, reader.number);
        node.comments = std::mem::take(&mut comments);
        parsed.nodes.push(node);
        if parsed.nodes.len() > MAX_INSTRUCTIONS {
            let what = format!("the Dockerfile has more than {MAX_INSTRUCTIONS} instructions");
            return Err(here(DockerfileError::new(Kind::TooLarge, what), reader.number));
        }
    }
    if parsed.nodes.is_empty() {
        return Err(syntax("file with no instructions"));
    }
    parsed.escape = reader.escape;
    Ok(parsed)
}

struct Reader<'a> {
    lines: std::str::SplitInclusive<'a, char>,
    /// Of the line that was read last, from 1.
    number: u32,
    escape: char,
    directives: Directives,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<Option<&'a str>> {
        let Some(line) = self.lines.next() else { return Ok(None) };
        self.number = self.number.saturating_add(1);
        if line.trim_end_matches('\n').len() > MAX_LINE {
            let what = format!("dockerfile line greater than max allowed size of {MAX_LINE}");
            let here = Lines::new(self.number, self.number);
            return Err(DockerfileError::new(Kind::TooLarge, what).at(here));
        }
        Ok(Some(line))
    }

    /// Whether the line is a directive; `escape` counts from here on.
    fn directive(&mut self, line: &str) -> Result<bool> {
        let here = Lines::new(self.number, self.number);
        let Some(found) = self.directives.line(line).map_err(|it| it.at(here))? else { return Ok(false) };
        if found.name == "escape" {
            self.escape = match &*found.value {
                "\\" => '\\',
                "`" => '`',
                other => {
                    return Err(syntax(format!("invalid escape token '{other}' does not match ` or \\")).at(here));
                }
            };
        }
        Ok(true)
    }

    /// Without the escape character that its end has, and whether the instruction ends here. Two of them are a character.
    fn continued<'t>(&self, line: &'t str) -> (&'t str, bool) {
        match line.trim_end_matches([' ', '\t']).strip_suffix(self.escape) {
            Some(rest) if !rest.ends_with(self.escape) => (rest, false),
            _ => (line, true),
        }
    }

    /// The line with what continues it, and whether an empty line is among that. Comments between are left out.
    fn logical(&mut self, first: &str, mut ended: bool) -> Result<(String, bool)> {
        let mut line = first.to_owned();
        let mut empty = false;
        while !ended {
            let Some(raw) = self.next()? else { break };
            let text = raw.trim_end_matches(['\r', '\n']);
            self.directive(text)?;
            if is_comment(raw) {
                continue;
            }
            if text.trim_start().is_empty() {
                empty = true;
                continue;
            }
            let (text, end) = self.continued(text);
            ended = end;
            line.push_str(text);
        }
        Ok((line, empty))
    }

    fn heredoc(&mut self, wanted: &Heredoc, start: u32) -> Result<String> {
        let mut content = String::new();
        while let Some(raw) = self.next()? {
            let line = raw.trim_end_matches(['\r', '\n']);
            let line = if wanted.chomp { line.trim_start_matches('\t') } else { line };
            if line == wanted.name {
                return Ok(content);
            }
            content.push_str(raw);
        }
        Err(syntax("unterminated heredoc").at(Lines::new(start, self.number)))
    }
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with('#')
}

fn takes_heredoc(node: &Node) -> bool {
    if let Arguments::Trigger(inner) = &node.arguments {
        return inner.as_ref().is_some_and(|it| takes_heredoc(it));
    }
    let fitting = ["add", "copy", "run"].iter().any(|it| node.name.eq_ignore_ascii_case(it));
    fitting && !matches!(node.arguments, Arguments::Json(_))
}

/// One logical line. A trigger in a trigger is never right, so it is not taken apart.
fn node(line: &str, escape: char, depth: u8) -> Result<Node> {
    let (name, flags, rest) = line::split(line, escape);
    let mut kind = None;
    let one = || if rest.is_empty() { Vec::new() } else { vec![rest.to_owned()] };
    let arguments = match &*name.to_ascii_lowercase() {
        "add" | "copy" | "volume" => match line::json(rest)? {
            Some(words) => Arguments::Json(words),
            None => Arguments::Words(line::blank_separated(rest)),
        },
        "cmd" | "entrypoint" | "run" | "shell" => json_or(rest, one)?,
        "healthcheck" => {
            let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
            kind = (end > 0).then(|| rest[..end].to_owned());
            let rest = rest[end..].trim_start();
            json_or(rest, || if rest.is_empty() { Vec::new() } else { vec![rest.to_owned()] })?
        }
        "arg" => Arguments::Words(line::words(rest, escape)),
        "env" => Arguments::Pairs(line::pairs(rest, "ENV", escape)?),
        "label" => Arguments::Pairs(line::pairs(rest, "LABEL", escape)?),
        "expose" | "from" => Arguments::Words(line::blank_separated(rest)),
        "onbuild" if depth == 0 && !rest.is_empty() => Arguments::Trigger(Some(Box::new(node(rest, escape, 1)?))),
        "onbuild" => Arguments::Trigger(None),
        "maintainer" | "stopsignal" | "user" | "workdir" => Arguments::Words(one()),
        _ => Arguments::Words(Vec::new()),
    };
    Ok(Node {
        name: name.to_owned(),
        original: line.to_owned(),
        flags,
        arguments,
        kind,
        heredocs: Vec::new(),
        comments: Vec::new(),
        lines: Lines::new(0, 0),
    })
}

fn json_or(rest: &str, plain: impl FnOnce() -> Vec<String>) -> Result<Arguments> {
    Ok(match line::json(rest)? {
        Some(words) => Arguments::Json(words),
        None => Arguments::Words(plain()),
    })
}

#[cfg(test)]
#[path = "lexer_tests.rs"]
mod tests;
