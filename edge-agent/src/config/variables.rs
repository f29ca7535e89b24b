//! Values of variables that look like numbers or truth values where a text is wanted: a bucket called `2026`, a secret of
//! digits. Figment reads them as what they look like; a shell has no quotes to tell.

use figment::{
    Error, Metadata, Profile, Provider,
    error::Kind,
    value::{Dict, Map, Value},
};

use super::variable;

/// One key, its variable taken as text.
pub(super) struct Text {
    key: String,
    value: String,
}

/// The remedy for an error that comes from such a value; `None` for any other.
pub(super) fn as_text(error: &Error) -> Option<Text> {
    let error = error.clone().into_iter().next()?;
    let wants_text = matches!(&error.kind, Kind::InvalidType(_, expected) if expected == "a string");
    let is_variable = error.metadata.as_ref().is_some_and(|metadata| metadata.name.contains("environment"));
    let key = error.path.join(".");
    // A value that is taken as text already is not taken so again.
    let is_text = matches!(&error.kind, Kind::InvalidType(figment::error::Actual::Str(_), _));
    let value = std::env::var(variable(&key)).ok().filter(|_| wants_text && is_variable && !is_text)?;
    Some(Text { key, value })
}

impl Provider for Text {
    fn metadata(&self) -> Metadata {
        Metadata::named("environment variable")
    }

    fn data(&self) -> Result<Map<Profile, Dict>, Error> {
        let nested = figment::util::nest(&self.key, Value::from(self.value.clone()));
        Ok(nested.into_dict().into_iter().map(|dict| (Profile::Default, dict)).collect())
    }
}
