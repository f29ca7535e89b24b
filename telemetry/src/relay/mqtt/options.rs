//! What the relay is told, checked once into what cannot be wrong later.

use board::tls::ClientFiles;
use rumqttc::QoS;
use url::Url;

use crate::topic;

/// How readings are put into messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Each reading on its own mapped topic, as a mosquitto bridge does.
    #[default]
    Bridge,
    /// Many readings in one compressed message on `PREFIX/BOARD/batch`.
    Batch,
}

/// The relay's settings, as configured. It has no `Debug`: the password is in here.
#[derive(Clone)]
pub struct Options {
    /// `mqtt://HOST[:1883]` or `mqtts://HOST[:8883]`.
    pub url: String,
    /// How readings are put into messages.
    pub mode: Mode,
    /// In front of every topic. Without it `edge/BOARD` in bridge mode and `edge` in batch mode; empty leaves the topics
    /// of bridge mode as they are.
    pub prefix: Option<String>,
    /// 0, 1 or 2. With 0 a reading counts as delivered when it was handed to the network.
    pub qos: u8,
    /// CA, client certificate and its key, for `mqtts`.
    pub tls: ClientFiles,
    /// Login name.
    pub username: Option<String>,
    /// Its password.
    pub password: Option<String>,
    /// Most bytes a second sent.
    pub bandwidth: Option<u64>,
    /// Messages sent and not yet acknowledged, at most.
    pub inflight: u16,
    /// Filters subscribed to at the core; what comes is delivered to local subscribers and never kept or sent back.
    pub downlink: Vec<String>,
    /// Bytes of readings in one batch, before compression.
    pub batch_bytes: usize,
    /// The board's name.
    pub board: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            url: String::new(),
            mode: Mode::default(),
            prefix: None,
            qos: 1,
            tls: ClientFiles::default(),
            username: None,
            password: None,
            bandwidth: None,
            inflight: 100,
            downlink: Vec::new(),
            batch_bytes: 64 << 10,
            board: String::new(),
        }
    }
}

/// Which setting is wrong, and what would be right.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The address.
    #[error("relay.mqtt.url = {url:?}: {problem}; write mqtt://HOST:PORT or mqtts://HOST:PORT")]
    Url {
        /// As given, without user and password.
        url: String,
        /// Why it is refused.
        problem: String,
    },
    /// A level that MQTT does not have.
    #[error("relay.mqtt.qos = {0}: MQTT has 0, 1 and 2")]
    Qos(u8),
    /// A window of nothing.
    #[error("relay.mqtt.inflight = {0}: give a number from 1 to 16000")]
    Inflight(u16),
    /// A batch too small to be one, or too large for the memory of a board.
    #[error("relay.mqtt.batch_bytes = {0}: give a number from 1024 to 1048576")]
    BatchBytes(usize),
    /// A prefix that is no topic, or a board's name that is no part of one.
    #[error("relay.mqtt.prefix: {0}")]
    Prefix(topic::TopicError),
    /// A downlink filter that is none.
    #[error("relay.mqtt.downlink: {0}")]
    Downlink(topic::TopicError),
    /// A downlink that would bring back what was sent up.
    #[error("relay.mqtt.downlink = {filter:?} would bring back what is sent up to {uplink:?}: keep the two apart by relay.mqtt.prefix")]
    Loop {
        /// The filter.
        filter: String,
        /// What is sent to.
        uplink: String,
    },
    /// A key that only makes sense with TLS.
    #[error("relay.mqtt has certificates but its url is mqtt://: write mqtts://, or leave ca_file, cert_file and key_file out")]
    TlsWithoutMqtts,
    /// A password for nobody.
    #[error("relay.mqtt.password is given without username")]
    PasswordWithoutUser,
}

/// Settings that were checked.
pub(super) struct Checked {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) tls: Option<ClientFiles>,
    pub(super) login: Option<(String, String)>,
    pub(super) mode: Mode,
    /// In front of topics in bridge mode, `/` included; the whole topic in batch mode.
    pub(super) uplink: String,
    pub(super) qos: QoS,
    pub(super) bandwidth: Option<u64>,
    pub(super) window: usize,
    pub(super) downlink: Vec<String>,
    pub(super) batch_bytes: usize,
    pub(super) board: String,
}

/// Batches on their way at most: they are large, and a few fill any link.
const MAX_BATCHES: u16 = 8;

impl TryFrom<Options> for Checked {
    type Error = ConfigError;

    fn try_from(options: Options) -> Result<Self, ConfigError> {
        let (host, port, secure) = address(&options.url)?;
        if !secure && options.tls != ClientFiles::default() {
            return Err(ConfigError::TlsWithoutMqtts);
        }
        let login = match (options.username, options.password) {
            (Some(name), password) => Some((name, password.unwrap_or_default())),
            (None, None) => None,
            (None, Some(_)) => return Err(ConfigError::PasswordWithoutUser),
        };
        let qos = rumqttc::qos(options.qos).map_err(|_| ConfigError::Qos(options.qos))?;
        if !(1..=16_000).contains(&options.inflight) {
            return Err(ConfigError::Inflight(options.inflight));
        }
        if !(1024..=1 << 20).contains(&options.batch_bytes) {
            return Err(ConfigError::BatchBytes(options.batch_bytes));
        }
        let uplink = uplink(options.mode, options.prefix.as_deref(), &options.board)?;
        for filter in &options.downlink {
            topic::check_filter(filter).map_err(ConfigError::Downlink)?;
            if brings_back(filter, &uplink) {
                return Err(ConfigError::Loop { filter: filter.clone(), uplink });
            }
        }
        Ok(Self {
            host,
            port,
            tls: secure.then_some(options.tls),
            login,
            mode: options.mode,
            uplink,
            qos,
            bandwidth: options.bandwidth,
            window: match options.mode {
                Mode::Bridge => options.inflight,
                Mode::Batch => options.inflight.min(MAX_BATCHES),
            }
            .into(),
            downlink: options.downlink,
            batch_bytes: options.batch_bytes,
            board: options.board,
        })
    }
}

/// Host, port, and whether TLS is spoken.
fn address(text: &str) -> Result<(String, u16, bool), ConfigError> {
    let refuse = |shown: &str, problem: &str| ConfigError::Url { url: shown.to_owned(), problem: problem.to_owned() };
    let url = Url::parse(text).map_err(|error| refuse("…", &error.to_string()))?;
    let mut shown = url.clone();
    // Fails only for addresses that cannot have a login; those have nothing to hide.
    let _ = shown.set_password(None);
    let _ = shown.set_username("");
    let shown = shown.as_str();
    let secure = match url.scheme() {
        "mqtt" | "tcp" => false,
        "mqtts" | "ssl" | "tls" => true,
        _ => return Err(refuse(shown, "is not an MQTT address")),
    };
    if !url.username().is_empty() || url.password().is_some() {
        return Err(refuse(shown, "has a login inside, which would show in logs: use relay.mqtt.username and password"));
    }
    let host = url.host_str().filter(|host| !host.is_empty()).ok_or_else(|| refuse(shown, "names no host"))?;
    if !matches!(url.path(), "" | "/") {
        return Err(refuse(shown, "has a path, which MQTT has no use for"));
    }
    Ok((host.to_owned(), url.port().unwrap_or(if secure { 8883 } else { 1883 }), secure))
}

fn uplink(mode: Mode, prefix: Option<&str>, board: &str) -> Result<String, ConfigError> {
    topic::check_name(board).map_err(ConfigError::Prefix)?;
    let prefix = prefix.map(|prefix| prefix.trim_end_matches('/').to_owned());
    if let Some(prefix) = prefix.as_deref().filter(|prefix| !prefix.is_empty()) {
        topic::check_name(prefix).map_err(ConfigError::Prefix)?;
    }
    Ok(match (mode, prefix.as_deref()) {
        (Mode::Bridge, None) => format!("edge/{board}/"),
        (Mode::Bridge, Some("")) => String::new(),
        (Mode::Bridge, Some(prefix)) => format!("{prefix}/"),
        (Mode::Batch, None) => format!("edge/{board}/batch"),
        (Mode::Batch, Some("")) => format!("{board}/batch"),
        (Mode::Batch, Some(prefix)) => format!("{prefix}/{board}/batch"),
    })
}

/// Whether `filter` can match a topic that begins with `uplink`, or is it.
fn brings_back(filter: &str, uplink: &str) -> bool {
    let (open, levels) = match uplink.strip_suffix('/') {
        Some(prefix) => (true, prefix),
        None => (uplink.is_empty(), uplink),
    };
    if levels.is_empty() {
        return true;
    }
    let mut filter = filter.split('/');
    for level in levels.split('/') {
        match filter.next() {
            Some("#") => return true,
            Some("+") => {}
            Some(want) if want == level => {}
            _ => return false,
        }
    }
    // More levels of the filter match deeper topics, where there are any; `#` matches this one too.
    match filter.next() {
        None => !open,
        Some("#") => true,
        Some(_) => open,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Options {
        Options { url: "mqtts://core".into(), board: "b7".into(), ..Options::default() }
    }

    #[test]
    fn addresses() {
        #[track_caller]
        fn check(url: &str, want: Option<(&str, u16, bool)>) {
            let got = address(url).ok();
            assert_eq!(got.as_ref().map(|(host, port, tls)| (host.as_str(), *port, *tls)), want, "{url}");
        }
        check("mqtts://core", Some(("core", 8883, true)));
        check("mqtt://10.0.0.1:77/", Some(("10.0.0.1", 77, false)));
        check("mqtt://[::1]", Some(("[::1]", 1883, false)));
        check("https://core", None);
        check("mqtt://", None);
        check("core:1883", None);
        check("mqtt://core/path", None);
    }

    #[test]
    fn a_login_in_the_address_is_refused_and_not_shown() {
        let error = address("mqtt://joe:secret@core").unwrap_err().to_string();
        assert!(error.contains("relay.mqtt.username") && !error.contains("secret"), "{error}");
        let error = address("mqtt:/joe:secret@core:port").unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
    }

    #[test]
    fn topics_sent_to() {
        #[track_caller]
        fn check(mode: Mode, prefix: Option<&str>, want: &str) {
            assert_eq!(uplink(mode, prefix, "b7").unwrap(), want);
        }
        check(Mode::Bridge, None, "edge/b7/");
        check(Mode::Bridge, Some(""), "");
        check(Mode::Bridge, Some("site/"), "site/");
        check(Mode::Batch, None, "edge/b7/batch");
        check(Mode::Batch, Some("site"), "site/b7/batch");
        assert!(uplink(Mode::Bridge, Some("a/#"), "b7").is_err());
    }

    #[test]
    fn downlinks_that_bring_the_uplink_back() {
        #[track_caller]
        fn check(filter: &str, uplink: &str, want: bool) {
            assert_eq!(brings_back(filter, uplink), want, "{filter} and {uplink}");
        }
        check("cmd/#", "edge/b7/", false);
        check("edge/b7/cmd/#", "edge/b7/", true);
        check("edge/b8/#", "edge/b7/", false);
        check("edge/+/x", "edge/b7/", true);
        check("edge/b7", "edge/b7/", false);
        check("#", "edge/b7/", true);
        check("cmd/#", "", true);
        check("edge/+/batch", "edge/b7/batch", true);
        check("edge/b7/batch/x", "edge/b7/batch", false);
        check("edge/b7/cmd", "edge/b7/batch", false);
    }

    #[test]
    fn settings_that_are_refused_name_their_key() {
        #[track_caller]
        fn check(change: impl FnOnce(&mut Options), key: &str) {
            let mut options = options();
            change(&mut options);
            let error = Checked::try_from(options).err().expect("refused").to_string();
            assert!(error.contains(key), "{error}");
        }
        check(|o| o.qos = 3, "relay.mqtt.qos");
        check(|o| o.inflight = 0, "relay.mqtt.inflight");
        check(|o| o.batch_bytes = 1, "relay.mqtt.batch_bytes");
        check(|o| o.downlink = vec!["a/#/b".into()], "relay.mqtt.downlink");
        check(|o| o.downlink = vec!["edge/#".into()], "relay.mqtt.prefix");
        check(|o| o.password = Some("x".into()), "relay.mqtt.password");
        check(|o| { o.url = "mqtt://core".into(); o.tls.ca_file = Some("ca.pem".into()); }, "mqtts://");
        assert!(Checked::try_from(options()).is_ok());
    }
}
