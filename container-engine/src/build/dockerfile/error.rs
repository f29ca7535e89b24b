//! What is wrong with a Dockerfile: BuildKit's words, the kind for programs, and the lines.

use std::fmt;

use super::source::{Lines, excerpt};
use super::suggest;

/// What kind of a problem it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Larger than what is read.
    TooLarge,
    /// Cannot be taken apart: directives, heredocs, quotes, JSON.
    Syntax,
    /// No instruction has this name.
    UnknownInstruction,
    /// A flag that is unknown, given twice, or has no or a bad value.
    Flag,
    /// Arguments that are missing, too many, or not what the instruction takes.
    Argument,
    /// A variable that cannot be expanded, or must be set and is not.
    Expansion,
    /// A stage that does not exist, or not yet.
    Stage,
    /// Stages that need each other.
    Circular,
    /// Rules of `--check` were violated, and `# check=error=true` asks for an error.
    Lint,
}

/// A problem in a Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct DockerfileError {
    kind: Kind,
    message: String,
    lines: Vec<Lines>,
}

/// What everything here returns.
pub type Result<T> = std::result::Result<T, DockerfileError>;

impl DockerfileError {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), lines: Vec::new() }
    }

    pub(crate) fn at(mut self, lines: Lines) -> Self {
        if !self.lines.contains(&lines) {
            self.lines.push(lines);
        }
        self
    }

    /// At `lines` and nowhere else.
    pub(crate) fn only_at(mut self, lines: Lines) -> Self {
        self.lines = vec![lines];
        self
    }

    /// With the nearest of `options`, where one is near to `value`.
    pub(crate) fn near<'a>(
        mut self,
        value: &str,
        options: impl IntoIterator<Item = &'a str>,
        exact_case: bool,
    ) -> Self {
        if let Some(option) = suggest::nearest(value, options, exact_case) {
            self.message = format!("{} (did you mean {option}?)", self.message);
        }
        self
    }

    pub(crate) fn prefixed(mut self, prefix: impl fmt::Display) -> Self {
        self.message = format!("{prefix}: {}", self.message);
        self
    }

    /// What kind of a problem it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Where it is; empty where it is about the file as a whole.
    pub fn lines(&self) -> &[Lines] {
        &self.lines
    }

    /// The lines in question, of the file called `name` with this `text`, and below them the message.
    pub fn show(&self, name: &str, text: &str) -> String {
        let excerpt = excerpt(name, text, &self.lines).unwrap_or_default();
        format!("{excerpt}ERROR: {}\n", self.message)
    }
}

pub(crate) fn syntax(message: impl Into<String>) -> DockerfileError {
    DockerfileError::new(Kind::Syntax, message)
}

pub(crate) fn argument(message: impl Into<String>) -> DockerfileError {
    DockerfileError::new(Kind::Argument, message)
}

pub(crate) fn expansion(message: impl Into<String>) -> DockerfileError {
    DockerfileError::new(Kind::Expansion, message)
}
