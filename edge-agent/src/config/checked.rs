//! From what is written to what cannot be wrong: the modules' own options.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use telemetry::{
    mqtt::auth::{Password, User, Users},
    relay, topic,
};

use super::{
    EngineConfig, engine, node,
    raw::{self, LogFormat, Raw},
    relays,
};

/// Where a board has its data.
pub(super) const USUAL_DATA_DIR: &str = "/var/lib/edge-agent";

/// A key and what is wrong with its value.
pub(super) type Wrong = (String, String);

/// The configuration in force.
#[derive(Debug, Clone)]
pub struct Config {
    /// Name of the board.
    pub name: String,
    /// Where everything lasting is.
    pub data_dir: PathBuf,
    /// Where sockets are.
    pub run_dir: PathBuf,
    /// How log lines look.
    pub log_format: LogFormat,
    /// The MQTT listener.
    pub mqtt: telemetry::mqtt::Options,
    /// Where the HTTP server listens, if it does.
    pub http_listen: Option<SocketAddr>,
    /// Readings by HTTP.
    pub http: telemetry::http::Options,
    /// The outbox.
    pub outbox: telemetry::outbox::Options,
    /// The MQTT relay, if there is one.
    pub relay_mqtt: Option<relay::mqtt::Options>,
    /// The S3 relay, if there is one.
    pub relay_s3: Option<relay::s3::Options>,
    /// Where large files wait.
    pub spool: PathBuf,
    /// Uploads of large files, where there is an S3 to send them to.
    pub uploads: Option<telemetry::uploads::Options>,
    /// The board's own figures, if they are wanted.
    pub board_metrics: Option<telemetry::board_metrics::Options>,
    /// Containers and images.
    pub engine: EngineConfig,
    /// The board as a Kubernetes node, if it is to be one.
    pub node: Option<cluster_node::options::Options>,
}

pub(super) fn wrong<T>(key: &str, problem: impl Into<String>) -> Result<T, Wrong> {
    Err((key.to_owned(), problem.into()))
}

impl Config {
    /// Checks every value.
    pub fn check(raw: Raw) -> Result<Self, Wrong> {
        let name = raw.agent.name.unwrap_or_else(host_name);
        if name.is_empty() || name.len() > 63 || !name.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c)) {
            return wrong("agent.name", format!("{name:?}: use up to 63 letters, digits, '-', '.' and '_'"));
        }
        let (data_dir, run_dir) = directories(raw.agent.data_dir, raw.agent.run_dir);
        let http_listen = match raw.http.listen.as_str() {
            "" => None,
            text => Some(address("http.listen", text)?),
        };
        if http_listen.is_some_and(|address| !address.ip().is_loopback()) && raw.http.tokens.is_empty() {
            return wrong("http.listen", "off loopback needs http.tokens, or anybody could write readings");
        }
        if raw.http.tokens.iter().any(String::is_empty) {
            return wrong("http.tokens", "holds an empty token");
        }
        let http = telemetry::http::Options {
            max_body: usize::try_from(raw.http.max_body.0.clamp(1024, 2 << 20)).unwrap_or(1 << 20),
            tokens: raw.http.tokens,
            ..telemetry::http::Options::default()
        };
        let relay_s3 = relays::s3(raw.relay.s3, &name)?;
        let spool = raw.uploads.spool.unwrap_or_else(|| data_dir.join("spool"));
        Ok(Self {
            engine: engine::check(raw.engine)?,
            node: node::check(raw.node, &name, &data_dir, &run_dir)?,
            board_metrics: board_metrics(raw.board_metrics, &data_dir)?,
            uploads: relays::uploads(relay_s3.as_ref(), raw.uploads.part_bytes.0, &spool)?,
            spool,
            data_dir,
            run_dir,
            log_format: raw.agent.log_format,
            mqtt: mqtt(raw.mqtt)?,
            http_listen,
            http,
            outbox: outbox(raw.outbox)?,
            relay_mqtt: relays::mqtt(raw.relay.mqtt, &name)?,
            relay_s3,
            name,
        })
    }

    /// The socket that takes readings line by line.
    pub fn readings_socket(&self) -> PathBuf {
        self.run_dir.join("telemetry.sock")
    }

    /// The control socket.
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join("agent.sock")
    }
}

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").map_or_else(|_| "board".into(), |name| name.trim().to_owned())
}

/// Root uses the system's places; anybody else has their own.
fn directories(data: Option<PathBuf>, run: Option<PathBuf>) -> (PathBuf, PathBuf) {
    let env = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let (data_default, run_default) = if is_root() {
        (PathBuf::from(USUAL_DATA_DIR), PathBuf::from("/run/edge-agent"))
    } else {
        let home = env("HOME").unwrap_or_else(|| PathBuf::from("."));
        let data = env("XDG_STATE_HOME").unwrap_or_else(|| home.join(".local/state")).join("edge-agent");
        let run = env("XDG_RUNTIME_DIR").map_or_else(|| data.join("run"), |dir| dir.join("edge-agent"));
        (data, run)
    };
    // A data directory of one's own has its sockets inside, so that two agents do not meet.
    let run = run.unwrap_or_else(|| data.as_ref().map_or(run_default, |data| data.join("run")));
    (data.unwrap_or(data_default), run)
}

/// Whether this is the user who may run containers.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

pub(super) fn address(key: &str, text: &str) -> Result<SocketAddr, Wrong> {
    text.parse()
        .or_else(|_| wrong(key, format!("{text:?} is no address; write it like \"127.0.0.1:1883\" or \"[::]:8883\"")))
}

pub(super) fn readable(key: &str, path: Option<PathBuf>) -> Result<Option<PathBuf>, Wrong> {
    match path {
        Some(path) if !Path::exists(&path) => wrong(key, format!("{} does not exist", path.display())),
        path => Ok(path),
    }
}

fn filters(key: &str, filters: Vec<String>) -> Result<Vec<String>, Wrong> {
    for filter in &filters {
        topic::check_filter(filter).or_else(|error| wrong(key, error.to_string()))?;
    }
    Ok(filters)
}

fn mqtt(raw: raw::Mqtt) -> Result<telemetry::mqtt::Options, Wrong> {
    let listen: Vec<_> = raw.listen.iter().map(|text| address("mqtt.listen", text)).collect::<Result<_, _>>()?;
    let listen_tls =
        raw.listen_tls.iter().map(|text| address("mqtt.listen_tls", text)).collect::<Result<Vec<_>, _>>()?;
    let users = users(raw.users)?;
    if users.0.is_empty()
        && let Some(open) = listen.iter().find(|address| !address.ip().is_loopback())
    {
        let problem =
            format!("{open} is reachable from other machines: add [mqtt.users.NAME], or use listen_tls with client_ca");
        return wrong("mqtt.listen", problem);
    }
    let client_ca = readable("mqtt.client_ca", raw.client_ca)?;
    let tls = match (readable("mqtt.tls_cert", raw.tls_cert)?, readable("mqtt.tls_key", raw.tls_key)?) {
        (Some(cert_file), Some(key_file)) => {
            let client_optional = !users.0.is_empty();
            Some(board::tls::ServerFiles { cert_file, key_file, client_ca, client_optional })
        }
        (None, None) if listen_tls.is_empty() => None,
        (None, None) => return wrong("mqtt.listen_tls", "needs mqtt.tls_cert and mqtt.tls_key"),
        (Some(_), None) => return wrong("mqtt.tls_cert", "needs mqtt.tls_key"),
        (None, Some(_)) => return wrong("mqtt.tls_key", "needs mqtt.tls_cert"),
    };
    if tls.as_ref().is_some_and(|tls| tls.client_ca.is_none()) && users.0.is_empty() && !listen_tls.is_empty() {
        return wrong("mqtt.listen_tls", "lets nobody in: add mqtt.client_ca or [mqtt.users.NAME]");
    }
    let max_packet = raw.max_packet.0;
    if !(1024..=256 << 10).contains(&max_packet) {
        return wrong("mqtt.max_packet", format!("{max_packet} bytes; from 1KiB to 256KiB"));
    }
    if !(1..=4096).contains(&raw.max_connections) {
        return wrong("mqtt.max_connections", format!("{}; from 1 to 4096", raw.max_connections));
    }
    Ok(telemetry::mqtt::Options {
        listen,
        listen_tls,
        tls,
        users,
        max_packet: usize::try_from(max_packet).unwrap_or(256 << 10),
        max_connections: raw.max_connections,
        max_session: raw.max_session.0,
    })
}

fn users(raw: BTreeMap<String, raw::User>) -> Result<Users, Wrong> {
    let mut users = BTreeMap::new();
    for (name, user) in raw {
        let key = format!("mqtt.users.{name}");
        let password = match user.password.as_deref().map(Password::parse) {
            None => None,
            Some(Some(password)) => Some(password),
            Some(None) => {
                return wrong(
                    &format!("{key}.password"),
                    "is no pbkdf2-sha256$ROUNDS$SALT$HASH (base64, up to 1000000 rounds)",
                );
            }
        };
        let publish = filters(&format!("{key}.publish"), user.publish)?;
        let subscribe = filters(&format!("{key}.subscribe"), user.subscribe)?;
        users.insert(name, User { password, publish, subscribe });
    }
    Ok(Users(users))
}

fn board_metrics(raw: raw::BoardMetrics, data_dir: &Path) -> Result<Option<telemetry::board_metrics::Options>, Wrong> {
    if raw.interval.0 < Duration::from_secs(1) {
        return wrong("board_metrics.interval", "at least 1s");
    }
    topic::check_name(&raw.topic).or_else(|error| wrong("board_metrics.topic", error.to_string()))?;
    let options =
        telemetry::board_metrics::Options { interval: raw.interval.0, topic: raw.topic, data_dir: data_dir.to_owned() };
    Ok(raw.enabled.then_some(options))
}

fn outbox(raw: raw::Outbox) -> Result<telemetry::outbox::Options, Wrong> {
    if raw.max_bytes.0 < 32 << 20 {
        return wrong("outbox.max_bytes", format!("{} bytes; at least 32MiB", raw.max_bytes.0));
    }
    if raw.linger.0 > Duration::from_secs(60) {
        return wrong("outbox.linger", "at most 60s: a sender waits that long for its acknowledgement");
    }
    Ok(telemetry::outbox::Options {
        max_bytes: raw.max_bytes.0,
        max_age: raw.max_age.map(|span| span.0),
        on_full: raw.on_full,
        linger: raw.linger.0,
        topics: filters("outbox.topics", raw.topics)?,
        urgent: filters("outbox.urgent", raw.urgent)?,
    })
}
