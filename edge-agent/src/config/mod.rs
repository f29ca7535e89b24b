//! The configuration in force: defaults, then the file, then `EDGE_AGENT_SECTION__KEY` from the environment.
//!
//! Checked once, at start, into the modules' own `Options`, which cannot be wrong later. Every mistake names the key, the
//! file and line or the variable, and what would be accepted.

mod checked;
mod engine;
mod node;
pub mod raw;
mod relays;
mod show;
mod units;
mod variables;

use std::{
    env,
    path::{Path, PathBuf},
};

use figment::{
    Figment,
    providers::{Env, Format, Serialized, Toml},
};

pub use checked::{Config, is_root};
pub use engine::EngineConfig;
use raw::Raw;
pub use show::entries;
pub use units::{Span, parse_span};

/// Where the configuration is looked for.
pub const DEFAULT_FILE: &str = "/etc/edge-agent/config.toml";
const ENV_PREFIX: &str = "EDGE_AGENT_";

/// A mistake in the configuration: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct ConfigError {
    place: String,
    problem: String,
}

impl ConfigError {
    /// A mistake at `place` (key, file and line).
    pub fn new(place: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { place: place.into(), problem: problem.into() }
    }
}

/// Where to read from, and what the command line says over it.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// `--config`; without it the default file, if it exists.
    pub file: Option<PathBuf>,
    /// `--data-dir`.
    pub data_dir: Option<PathBuf>,
    /// `--run-dir`.
    pub run_dir: Option<PathBuf>,
    /// `--log-format`.
    pub log_format: Option<raw::LogFormat>,
}

/// What was read, with its origin.
pub struct Loaded {
    /// The checked configuration.
    pub config: Config,
    /// For `config show`.
    pub figment: Figment,
    /// The file, if one was read.
    pub file: Option<PathBuf>,
}

impl Sources {
    /// Reads and checks.
    pub fn load(&self) -> Result<Loaded, ConfigError> {
        let file = self.file.clone().or_else(|| Some(PathBuf::from(DEFAULT_FILE)).filter(|path| path.exists()));
        let mut figment = Figment::from(Serialized::defaults(Raw::default()));
        let mut text = String::new();
        if let Some(path) = &file {
            text = read(path)?;
            // Syntax errors of TOML have a line; figment would lose it.
            toml::from_str::<toml::Table>(&text).map_err(|error| {
                let line = error.span().map_or(1, |span| line_at(&text, span.start));
                ConfigError::new(format!("{}:{line}", path.display()), error.message().replace('\n', ", "))
            })?;
            figment = figment.merge(Toml::file_exact(path));
        }
        figment = figment.merge(Env::prefixed(ENV_PREFIX).filter(|key| key.as_str().contains("__")).split("__"));
        for (key, value) in [("agent.data_dir", &self.data_dir), ("agent.run_dir", &self.run_dir)] {
            if let Some(value) = value {
                figment = figment.merge(Serialized::default(key, value));
            }
        }
        if let Some(format) = self.log_format {
            figment = figment.merge(Serialized::default("agent.log_format", format));
        }
        let raw: Raw = loop {
            let error = match figment.extract() {
                Ok(raw) => break raw,
                Err(error) => error,
            };
            match variables::as_text(&error) {
                Some(text) => figment = figment.merge(text),
                None => return Err(explain(error, file.as_deref(), &text)),
            }
        };
        let place = |key: &str| place_of(&figment, key, file.as_deref(), &text);
        let config = Config::check(raw).map_err(|(key, problem)| ConfigError::new(place(&key), problem))?;
        Ok(Loaded { config, figment, file })
    }
}

fn read(path: &Path) -> Result<String, ConfigError> {
    let bytes = board::durable::read(path, 1 << 20)
        .map_err(|error| ConfigError::new(path.display().to_string(), format!("cannot be read: {error}")))?;
    String::from_utf8(bytes).map_err(|_| ConfigError::new(path.display().to_string(), "is not UTF-8"))
}

/// The first mistake figment found, in our words.
fn explain(error: figment::Error, file: Option<&Path>, text: &str) -> ConfigError {
    use figment::error::Kind;
    let Some(error) = error.into_iter().next() else { return ConfigError::new("configuration", "is not valid") };
    let mut path = error.path.clone();
    let is_secret = path.iter().any(|part| show::SECRETS.contains(&part.as_str()));
    let problem = match &error.kind {
        Kind::UnknownField(name, known) => {
            if path.last() != Some(name) {
                path.push(name.clone());
            }
            let nearest = known.iter().max_by(|a, b| strsim::jaro(a, name).total_cmp(&strsim::jaro(b, name)));
            let hint = nearest.map_or_else(String::new, |nearest| format!("; did you mean `{nearest}`?"));
            format!("unknown key `{name}`{hint}")
        }
        // What was found stays unsaid where it may be a password without its quotes.
        Kind::InvalidType(_, expected) | Kind::InvalidValue(_, expected) if is_secret => {
            let form = if expected == "a sequence" { "[\"…\", \"…\"]" } else { "\"…\"" };
            format!("is not of the form {form}")
        }
        Kind::InvalidType(found, expected) if expected.starts_with("struct ") => {
            format!("is a section: write [{}] above its keys, not {found}", path.join("."))
        }
        Kind::UnknownVariant(found, known) => format!("unknown value {found:?}; use {}", quoted(known)),
        kind => kind.to_string(),
    };
    // An item of a list is found where the list is.
    while path.last().is_some_and(|part| part.bytes().all(|byte| byte.is_ascii_digit())) {
        path.pop();
    }
    let key = path.join(".");
    let from_env = error.metadata.as_ref().is_some_and(|metadata| metadata.name.contains("environment"));
    let place = if from_env { variable(&key) } else { in_file(&key, file, text) };
    ConfigError::new(place, problem)
}

fn quoted(words: &[&str]) -> String {
    words.iter().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(" or ")
}

fn variable(key: &str) -> String {
    format!("{ENV_PREFIX}{}", key.to_uppercase().replace('.', "__"))
}

/// Where a key in force comes from, for a message.
fn place_of(figment: &Figment, key: &str, file: Option<&Path>, text: &str) -> String {
    let origin = figment.find_metadata(key).map(|metadata| metadata.name.to_string()).unwrap_or_default();
    match () {
        () if origin.contains("environment") => variable(key),
        () if env::var_os(variable(key)).is_some() => variable(key),
        () => in_file(key, file, text),
    }
}

fn in_file(key: &str, file: Option<&Path>, text: &str) -> String {
    match (file, line_of(text, key)) {
        (Some(file), Some(line)) => format!("{}:{line}: {key}", file.display()),
        _ => key.to_owned(),
    }
}

/// The line where `section.key` is set, from 1. Looks at the text: figment keeps no lines.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let (section, name) = key.rsplit_once('.').unwrap_or(("", key));
    let mut current = String::new();
    let mut section_line = None;
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if let Some(header) = line.strip_prefix('[') {
            let name = header.trim_start_matches('[').split(']').next().unwrap_or_default();
            name.trim().clone_into(&mut current);
            if current == section || current == key {
                section_line.get_or_insert(number);
            }
        } else if let Some((left, _)) = line.split_once('=') {
            let left = left.trim().trim_matches('"');
            let full = if current.is_empty() { left.to_owned() } else { format!("{current}.{left}") };
            if full == key || (current == section && left == name) {
                return Some(number);
            }
        }
    }
    section_line
}

fn line_at(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

#[cfg(test)]
mod tests;
