//! How the MQTT relay is set up, checked.

use std::sync::Arc;

use board::tls::{self, ClientFiles};
use url::Url;

use crate::topic;

/// How readings are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Each on its own topic.
    #[default]
    Bridge,
    /// Many in one message.
    Batch,
}

/// How the relay is set up.
#[derive(Debug, Clone)]
pub struct Options {
    /// `mqtt://` or `mqtts://`.
    pub url: Url,
    /// How readings are sent.
    pub mode: Mode,
    /// Put before every topic, with a `/`; may be empty in bridge mode.
    pub prefix: String,
    /// 1 or 2; 0 only in bridge mode, and then nothing is promised.
    pub qos: u8,
    /// CA, certificate and key.
    pub tls: ClientFiles,
    /// User name.
    pub username: Option<String>,
    /// Password.
    pub password: Option<Secret>,
    /// Bytes a second at the most.
    pub bandwidth: Option<u64>,
    /// Messages on their way at the same time.
    pub inflight: u16,
    /// Filters of the core's topics that are delivered to local subscribers.
    pub downlink: Vec<String>,
    /// Name of the board.
    pub board: String,
}

/// A password that no log shows.
#[derive(Clone)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// A key of `[relay.mqtt]` and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("relay.mqtt.{key}: {problem}")]
pub struct ConfigError {
    /// The key.
    pub key: &'static str,
    /// What is wrong.
    pub problem: String,
}

impl Options {
    /// Checks what types cannot.
    pub fn check(&self) -> Result<(), ConfigError> {
        let wrong = |key, problem: &str| Err(ConfigError { key, problem: problem.to_owned() });
        if !matches!(self.url.scheme(), "mqtt" | "mqtts") || self.url.host_str().is_none() {
            return wrong("url", "write it like mqtts://core.example.org:8883 or mqtt://core:1883");
        }
        if !self.prefix.is_empty() && topic::check_name(&self.prefix).is_err() {
            return wrong("prefix", "is not a valid topic");
        }
        if self.qos > 2 || (self.qos == 0 && self.mode == Mode::Batch) {
            return wrong("qos", "1 or 2 (0 only in bridge mode, and then nothing is promised)");
        }
        if self.inflight == 0 || self.inflight > 1000 {
            return wrong("inflight", "from 1 to 1000");
        }
        let login = [self.username.as_deref(), self.password.as_ref().map(|password| password.0.as_str())];
        if login.into_iter().flatten().any(|text| text.len() > 1024) {
            return wrong("password", "it and username have at most 1024 bytes each");
        }
        if self.password.is_some() && self.username.is_none() {
            return wrong("password", "needs username: MQTT 3.1.1 has no password without one");
        }
        match self.downlink.iter().find(|filter| topic::check_filter(filter).is_err()) {
            Some(_) => wrong("downlink", "holds an invalid topic filter"),
            None => Ok(()),
        }
    }

    /// For a new connection: files are read now. Blocking, short.
    pub(super) fn tls_config(&self) -> Result<Option<Arc<rustls::ClientConfig>>, tls::TlsError> {
        if self.url.scheme() == "mqtts" { tls::client(&self.tls).map(Some) } else { Ok(None) }
    }

    /// Host and port.
    pub(super) fn address(&self) -> (String, u16) {
        let host = self.url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        (host, self.url.port().unwrap_or(if self.url.scheme() == "mqtts" { 8883 } else { 1883 }))
    }

    /// The broker, for people.
    pub(super) fn place(&self) -> String {
        let (host, port) = self.address();
        format!("{host}:{port}")
    }

    /// User name and password.
    pub(super) fn login(&self) -> Option<(&str, Option<&str>)> {
        Some((self.username.as_deref()?, self.password.as_ref().map(|password| password.0.as_str())))
    }

    /// What stands before a reading's topic at the core.
    pub(super) fn prefix(&self) -> [&str; 2] {
        [&self.prefix, if self.prefix.is_empty() { "" } else { "/" }]
    }
}
