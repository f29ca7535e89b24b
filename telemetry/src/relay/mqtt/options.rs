//! How the MQTT relay is set up, checked.

use board::tls::{self, ClientFiles};
use rumqttc::{MqttOptions, TlsConfiguration, Transport};
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
        match self.downlink.iter().find(|filter| topic::check_filter(filter).is_err()) {
            Some(_) => wrong("downlink", "holds an invalid topic filter"),
            None => Ok(()),
        }
    }

    /// For a new connection: certificate files are read now, so a renewed one counts. Blocking, short.
    pub(super) fn client(&self, epoch: u64) -> Result<MqttOptions, tls::TlsError> {
        let host = self.url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let secure = self.url.scheme() == "mqtts";
        let port = self.url.port().unwrap_or(if secure { 8883 } else { 1883 });
        let mut options = MqttOptions::new(format!("edge-agent-{}-{epoch}", self.board), host, port);
        options.set_keep_alive(std::time::Duration::from_secs(30));
        options.set_clean_session(true);
        options.set_inflight(self.inflight);
        options.set_max_packet_size(256 << 10, 4 << 20);
        if let Some(name) = &self.username {
            options.set_credentials(name, self.password.as_ref().map_or("", |password| &password.0));
        }
        if secure {
            let config = tls::client(&self.tls)?;
            options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(config)));
        }
        Ok(options)
    }

    /// The core's topic for a reading's topic.
    pub(super) fn map(&self, topic: &str) -> String {
        if self.prefix.is_empty() { topic.to_owned() } else { format!("{}/{topic}", self.prefix) }
    }

    /// The core's topic for batches.
    pub(super) fn batch_topic(&self) -> String {
        self.map(&format!("{}/batch", self.board))
    }
}
