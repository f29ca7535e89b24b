//! The configuration as it is written: sections and keys, every one with a default.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};
use telemetry::{outbox::OnFull, relay::mqtt::Mode};

use super::units::{Size, Span};

/// The whole file.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Raw {
    /// The agent itself.
    pub agent: Agent,
    /// The MQTT listener.
    pub mqtt: Mqtt,
    /// Status page, metrics and readings by HTTP.
    pub http: Http,
    /// What is kept until relayed.
    pub outbox: Outbox,
    /// Where readings go.
    pub relay: Relay,
    /// Large files.
    pub uploads: Uploads,
    /// The board's own figures as readings.
    pub board_metrics: BoardMetrics,
    /// Containers and images.
    pub engine: Engine,
    /// The board as a Kubernetes node.
    pub node: Node,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// `[agent]`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Agent {
    /// Name of the board; the host name where it is not set.
    pub name: Option<String>,
    /// Where everything lasting is.
    pub data_dir: Option<PathBuf>,
    /// Where sockets are.
    pub run_dir: Option<PathBuf>,
    /// How log lines look.
    pub log_format: LogFormat,
}

/// `[mqtt]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mqtt {
    /// Plain addresses.
    pub listen: Vec<String>,
    /// TLS addresses.
    pub listen_tls: Vec<String>,
    /// PEM chain of the server.
    pub tls_cert: Option<PathBuf>,
    /// PEM key of the server.
    pub tls_key: Option<PathBuf>,
    /// PEM; client certificates of this CA are let in.
    pub client_ca: Option<PathBuf>,
    /// Who may connect by name.
    pub users: BTreeMap<String, User>,
    /// Largest packet.
    pub max_packet: Size,
    /// Connections at the same time.
    pub max_connections: usize,
    /// Longest life of an absent client's session.
    pub max_session: Span,
}

impl Default for Mqtt {
    fn default() -> Self {
        Self {
            listen: vec!["127.0.0.1:1883".into()],
            listen_tls: Vec::new(),
            tls_cert: None,
            tls_key: None,
            client_ca: None,
            users: BTreeMap::new(),
            max_packet: Size(256 << 10),
            max_connections: 256,
            max_session: Span(Duration::from_secs(7 * 86_400)),
        }
    }
}

/// `[mqtt.users.NAME]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// The password, or `pbkdf2-sha256$ROUNDS$SALT$HASH`.
    pub password: Option<String>,
    /// Filters of topics that may be published to.
    #[serde(default = "everything")]
    pub publish: Vec<String>,
    /// Filters that may be subscribed to.
    #[serde(default = "everything")]
    pub subscribe: Vec<String>,
}

fn everything() -> Vec<String> {
    vec!["#".into()]
}

/// `[http]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Http {
    /// The address; empty switches it off.
    pub listen: String,
    /// Bearer tokens for readings; needed off loopback.
    pub tokens: Vec<String>,
    /// Largest body.
    pub max_body: Size,
}

impl Default for Http {
    fn default() -> Self {
        Self { listen: "127.0.0.1:9250".into(), tokens: Vec::new(), max_body: Size(1 << 20) }
    }
}

/// `[outbox]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outbox {
    /// Bytes on disk.
    pub max_bytes: Size,
    /// Older readings go even if they were not relayed.
    pub max_age: Option<Span>,
    /// What happens when it is full.
    pub on_full: OnFull,
    /// Longest wait of a reading for company before its flush.
    pub linger: Span,
    /// What is kept.
    pub topics: Vec<String>,
    /// What overtakes the rest.
    pub urgent: Vec<String>,
}

impl Default for Outbox {
    fn default() -> Self {
        let it = telemetry::outbox::Options::default();
        Self {
            max_bytes: Size(it.max_bytes),
            max_age: None,
            on_full: it.on_full,
            linger: Span(it.linger),
            topics: it.topics,
            urgent: it.urgent,
        }
    }
}

/// `[uploads]`; they go where `[relay.s3]` says.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Uploads {
    /// Where files wait; `spool` in the data directory where it is not set.
    pub spool: Option<PathBuf>,
    /// Size of a part.
    pub part_bytes: Size,
}

impl Default for Uploads {
    fn default() -> Self {
        Self { spool: None, part_bytes: Size(16 << 20) }
    }
}

/// `[board_metrics]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BoardMetrics {
    /// Whether they are published.
    pub enabled: bool,
    /// Time between two readings.
    pub interval: Span,
    /// Where they are published.
    pub topic: String,
}

impl Default for BoardMetrics {
    fn default() -> Self {
        Self { enabled: true, interval: Span(Duration::from_secs(60)), topic: "board/metrics".into() }
    }
}

/// `[engine]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Engine {
    /// Whether there is one.
    pub enabled: bool,
    /// `embedded`, `runc`, `crun`, or the path of a program with runc's command line.
    pub runtime: String,
    /// Bytes that images may take; what the disk has where it is not set.
    pub quota: Option<Size>,
    /// Per cent of the quota or disk at which unused images are removed, the longest unused first.
    pub high_water: u8,
    /// Per cent at which that ends.
    pub low_water: u8,
    /// Layers of one pull on their way at once.
    pub parallel_downloads: usize,
    /// Instead of a registry, in this order; the registry itself comes last.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// Registries that may speak plain HTTP or show any certificate.
    pub insecure: Vec<String>,
    /// Folders `HOST[:PORT]/ca.crt` of registries' CAs.
    pub certs_dir: PathBuf,
    /// Bytes a second at the most, of all that is pulled and pushed.
    pub bandwidth: Option<Size>,
    /// Docker's API on `docker.sock`.
    pub docker_socket: bool,
    /// Control group above `edge.slice`.
    pub cgroup_parent: Option<String>,
    /// Device of the default network; `edge0`, or a name made of `data_dir` where that is another than usual.
    pub bridge: Option<String>,
    /// Where addresses of the default network come from; `10.88.0.0/16`, or another where `data_dir` is not the usual.
    pub subnet: Option<String>,
    /// IPv6 addresses of the default network; none where it is not set.
    pub ipv6_subnet: Option<String>,
    /// Size after which a container's log is rotated.
    pub log_max_size: Size,
    /// Files of a container's log, the current one included.
    pub log_max_files: u32,
    /// CNI configuration lists of the host, instead of the default network.
    pub cni_conf_dir: Option<PathBuf>,
    /// Folders of the host's CNI plugins.
    pub cni_bin_dir: Vec<PathBuf>,
    /// A profile in Docker's JSON form, instead of the default one.
    pub seccomp_profile: Option<PathBuf>,
}

impl Default for Engine {
    fn default() -> Self {
        let water = container_engine::image::Water::default();
        let log = container_engine::container::LogOptions::default();
        Self {
            enabled: true,
            runtime: "embedded".into(),
            quota: None,
            high_water: water.high,
            low_water: water.low,
            parallel_downloads: container_engine::image::PARALLEL_DOWNLOADS,
            mirrors: BTreeMap::new(),
            insecure: Vec::new(),
            certs_dir: "/etc/docker/certs.d".into(),
            bandwidth: None,
            docker_socket: false,
            cgroup_parent: None,
            bridge: None,
            subnet: None,
            ipv6_subnet: None,
            log_max_size: Size(log.max_bytes),
            log_max_files: log.max_files,
            cni_conf_dir: None,
            cni_bin_dir: container_engine::network::CniOptions::default().bin_dirs,
            seccomp_profile: None,
        }
    }
}

/// `[node]`; without a cluster to join it does nothing.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Whether the board is a node once it has joined.
    pub enabled: bool,
    /// Its name in the cluster; `agent.name` where it is not set.
    pub name: Option<String>,
    /// The address that the cluster reaches it by; that of the default route's interface where it is not set.
    pub address: Option<String>,
    /// Labels that it registers with.
    pub labels: BTreeMap<String, String>,
    /// `KEY=VALUE:EFFECT`, in force from its registration.
    pub taints: Vec<String>,
    /// What pods do not get, as quantities of `cpu`, `memory`, `ephemeral-storage` and `pid`.
    pub reserved: BTreeMap<String, String>,
    /// Addresses of pods; what the cluster says where it is not set.
    pub pod_cidr: Option<String>,
    /// The kubelet's API.
    pub listen: String,
    /// `/healthz` of the kubelet; empty switches it off.
    pub healthz: String,
    /// The kubelet's folder: volumes of pods, sockets of device plugins.
    pub kubelet_dir: PathBuf,
    /// `pods` and `containers` in it have the logs.
    pub log_dir: PathBuf,
    /// Static pods.
    pub manifests: PathBuf,
    /// Time between two renewals of the node's lease.
    pub lease_renew: Span,
    /// Pods at the most.
    pub max_pods: u32,
}

impl Default for Node {
    fn default() -> Self {
        Self {
            enabled: true,
            name: None,
            address: None,
            labels: BTreeMap::new(),
            taints: Vec::new(),
            reserved: BTreeMap::new(),
            pod_cidr: None,
            listen: "0.0.0.0:10250".into(),
            healthz: "127.0.0.1:10248".into(),
            kubelet_dir: "/var/lib/kubelet".into(),
            log_dir: "/var/log".into(),
            manifests: "/etc/edge-agent/manifests".into(),
            lease_renew: Span(Duration::from_secs(10)),
            max_pods: 110,
        }
    }
}

/// `[relay.…]`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Relay {
    /// To the core's broker.
    pub mqtt: RelayMqtt,
    /// To S3.
    pub s3: RelayS3,
}

/// `[relay.mqtt]`; off without a `url`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RelayMqtt {
    /// The core's broker.
    pub url: Option<String>,
    /// How readings are sent.
    pub mode: Mode,
    /// Put before every topic.
    pub prefix: String,
    /// Quality of service.
    pub qos: u8,
    /// PEM; the broker's CA.
    pub ca_file: Option<PathBuf>,
    /// PEM; the board's certificate.
    pub cert_file: Option<PathBuf>,
    /// PEM; the board's key.
    pub key_file: Option<PathBuf>,
    /// User name at the broker.
    pub username: Option<String>,
    /// Password at the broker.
    pub password: Option<String>,
    /// Bytes a second at the most.
    pub bandwidth: Option<Size>,
    /// Messages on their way at the same time.
    pub inflight: u16,
    /// The core's topics that local subscribers hear.
    pub downlink: Vec<String>,
}

impl Default for RelayMqtt {
    fn default() -> Self {
        Self {
            url: None,
            mode: Mode::Bridge,
            prefix: String::new(),
            qos: 1,
            ca_file: None,
            cert_file: None,
            key_file: None,
            username: None,
            password: None,
            bandwidth: None,
            inflight: 100,
            downlink: Vec::new(),
        }
    }
}

/// `[relay.s3]`; off without an `endpoint`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RelayS3 {
    /// The endpoint.
    pub endpoint: Option<String>,
    /// The bucket.
    pub bucket: String,
    /// Put before every object name.
    pub prefix: String,
    /// The region.
    pub region: String,
    /// Access key.
    pub access_key_id: Option<String>,
    /// Secret key.
    pub secret_access_key: Option<String>,
    /// A file in the form of `~/.aws/credentials`.
    pub credentials_file: Option<PathBuf>,
    /// A token that is exchanged for keys that run out.
    pub web_identity_token_file: Option<PathBuf>,
    /// The role to ask for with that token.
    pub role_arn: Option<String>,
    /// Where the token is exchanged; the endpoint itself where it is not set.
    pub sts_endpoint: Option<String>,
    /// PEM; the endpoint's CA.
    pub ca_file: Option<PathBuf>,
    /// Longest wait of a reading for its object.
    pub flush_interval: Span,
    /// Payload of one object.
    pub flush_bytes: Size,
    /// Bytes a second at the most.
    pub bandwidth: Option<Size>,
}

impl Default for RelayS3 {
    fn default() -> Self {
        Self {
            endpoint: None,
            bucket: String::new(),
            prefix: String::new(),
            region: "us-east-1".into(),
            access_key_id: None,
            secret_access_key: None,
            credentials_file: None,
            web_identity_token_file: None,
            role_arn: None,
            sts_endpoint: None,
            ca_file: None,
            flush_interval: Span(Duration::from_secs(60)),
            flush_bytes: Size(1 << 20),
            bandwidth: None,
        }
    }
}
