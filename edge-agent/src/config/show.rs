//! `config show`: every key in force, and where its value came from.

use figment::{Figment, value::Value};

use super::{DEFAULT_FILE, ENV_PREFIX};

/// Keys whose values are never shown.
pub(super) const SECRETS: &[&str] = &["password", "tokens", "secret_access_key", "session_token"];

/// One key in force.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Entry {
    /// `section.key`.
    pub key: String,
    /// As it would be written; `***` for a secret.
    pub value: String,
    /// `default`, a file or a variable.
    pub from: String,
}

/// Every key in force, by name.
pub fn entries(figment: &Figment) -> Vec<Entry> {
    let mut all = Vec::new();
    for section in ["agent", "mqtt", "http", "outbox", "relay", "uploads", "board_metrics", "engine"] {
        if let Ok(value) = figment.find_value(section) {
            walk(figment, section, &value, &mut all);
        }
    }
    all
}

fn walk(figment: &Figment, key: &str, value: &Value, all: &mut Vec<Entry>) {
    if let Value::Dict(_, dict) = value {
        for (name, value) in dict {
            walk(figment, &format!("{key}.{name}"), value, all);
        }
        return;
    }
    let name = key.rsplit('.').next().unwrap_or(key);
    let text = if SECRETS.contains(&name) && !is_empty(value) { "***".to_owned() } else { text(value) };
    all.push(Entry { key: key.to_owned(), value: text, from: origin(figment, key) });
}

fn is_empty(value: &Value) -> bool {
    matches!(value, Value::Empty(..))
        || value.as_str() == Some("")
        || matches!(value, Value::Array(_, items) if items.is_empty())
}

fn text(value: &Value) -> String {
    match value {
        Value::Empty(..) => "(not set)".to_owned(),
        Value::Array(_, items) => format!("[{}]", items.iter().map(text).collect::<Vec<_>>().join(", ")),
        other => serde_json::to_string(other).unwrap_or_default(),
    }
}

fn origin(figment: &Figment, key: &str) -> String {
    let Some(metadata) = figment.find_metadata(key) else { return "default".to_owned() };
    match &metadata.source {
        Some(figment::Source::File(path)) => path.display().to_string(),
        _ if metadata.name.contains("environment") => {
            format!("{ENV_PREFIX}{}", key.to_uppercase().replace('.', "__"))
        }
        _ if metadata.name.contains(DEFAULT_FILE) => DEFAULT_FILE.to_owned(),
        _ if metadata.name.contains("Raw") => "default".to_owned(),
        _ => "command line".to_owned(),
    }
}
