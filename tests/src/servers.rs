//! Real servers: Debian's mosquitto as the core's broker, Ceph's RADOS Gateway as S3, and Python for what users run.

use std::{
    collections::BTreeMap,
    fs,
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{Certificates, free_port, wait_until};

/// The core's broker, durable across a SIGTERM, with a subscriber that keeps all it hears.
pub struct Mosquitto {
    dir: PathBuf,
    /// TLS port; it wants a client certificate.
    pub tls_port: u16,
    plain_port: u16,
    child: Option<Child>,
    subscriber: Option<Child>,
}

impl Mosquitto {
    /// Starts a broker and a subscriber to everything.
    pub fn start(dir: &Path, certificates: &Certificates) -> Result<Self> {
        Self::start_with(dir, certificates, "")
    }

    /// The same, with more settings, for all of its ports.
    pub fn start_with(dir: &Path, certificates: &Certificates, more: &str) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let (tls_port, plain_port) = (free_port()?, free_port()?);
        let config = format!(
            "user root\nlog_type error\nlog_type subscribe\npersistence true\npersistence_location {dir}/\nmax_queued_messages 0\nmax_inflight_messages 200\n\
             per_listener_settings false\nallow_anonymous true\n{more}\nlistener {plain_port} 127.0.0.1\n\
             listener {tls_port} 127.0.0.1\ncafile {ca}\ncertfile {cert}\nkeyfile {key}\nrequire_certificate true\n\
             tls_version tlsv1.3\n",
            dir = dir.display(),
            ca = certificates.ca.display(),
            cert = certificates.server.0.display(),
            key = certificates.server.1.display(),
        );
        fs::write(dir.join("mosquitto.conf"), config)?;
        let mut it = Self { dir: dir.to_owned(), tls_port, plain_port, child: None, subscriber: None };
        it.resume()?;
        let heard = fs::File::create(dir.join("heard"))?;
        let port = plain_port.to_string();
        let subscriber = Command::new("mosquitto_sub")
            .args(["-p", &port, "-t", "#", "-q", "1", "-c", "-i", "core", "-F", "%r %x %t"])
            .stdout(heard)
            .stderr(Stdio::null())
            .spawn()
            .context("mosquitto_sub is missing: install mosquitto-clients")?;
        it.subscriber = Some(subscriber);
        let log = it.dir.join("log");
        // From then on the session outlives the broker.
        let subscribed = || fs::read_to_string(&log).is_ok_and(|text| text.contains("core 1 #"));
        wait_until("the subscriber is there", Duration::from_secs(10), subscribed)?;
        Ok(it)
    }

    /// Starts the broker again after `pause`.
    pub fn resume(&mut self) -> Result<()> {
        let log = fs::File::options().create(true).append(true).open(self.dir.join("log"))?;
        let config = self.dir.join("mosquitto.conf");
        let child = Command::new("/usr/sbin/mosquitto").arg("-c").arg(config).stdout(Stdio::null()).stderr(log).spawn();
        self.child = Some(child.context("mosquitto is missing: install it")?);
        let port = self.plain_port;
        wait_until("mosquitto listens", Duration::from_secs(10), || TcpStream::connect(("127.0.0.1", port)).is_ok())
    }

    /// Stops the broker; it writes down what it has. To the agent the link is down.
    pub fn pause(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            Command::new("kill").args(["-TERM", &child.id().to_string()]).status()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Starts it unless it runs.
    pub fn ensure_running(&mut self) -> Result<()> {
        if self.child.is_some() { Ok(()) } else { self.resume() }
    }

    /// Its port without TLS.
    pub fn plain_port(&self) -> u16 {
        self.plain_port
    }

    /// The payloads heard so far.
    pub fn heard(&self) -> Result<Vec<Vec<u8>>> {
        Ok(self.messages()?.into_iter().map(|message| message.payload).collect())
    }

    /// The messages heard so far, in order.
    pub fn messages(&self) -> Result<Vec<Heard>> {
        let text = fs::read_to_string(self.dir.join("heard"))?;
        Ok(text.lines().filter_map(Heard::parse).collect())
    }

    /// Sends SIGHUP: it reads its users, rules and (in new connections) certificates again.
    pub fn reload(&self) -> Result<()> {
        let pid = self.child.as_ref().map_or(0, Child::id);
        ensure!(pid > 0 && Command::new("kill").args(["-HUP", &pid.to_string()]).status()?.success(), "kill -HUP");
        Ok(())
    }
}

/// A message as the core's subscriber hears it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// Where.
    pub topic: String,
    /// What.
    pub payload: Vec<u8>,
    /// Whether it was kept for later subscribers.
    pub retained: bool,
}

impl Heard {
    /// A line of `mosquitto_sub -F '%r %x %t'`, unless it is half written.
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.splitn(3, ' ');
        let (retained, payload, topic) = (words.next()?, words.next()?, words.next()?);
        Some(Self { topic: topic.to_owned(), payload: from_hex(payload)?, retained: retained == "1" })
    }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let pair = |n: usize| u8::from_str_radix(text.get(2 * n..2 * n + 2)?, 16).ok();
    (0..text.len() / 2).map(pair).collect()
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        for child in [&mut self.child, &mut self.subscriber].into_iter().flatten() {
            let _ = child.kill(); // It may be gone already.
            let _ = child.wait();
        }
    }
}

/// A Ceph cluster of one monitor, one OSD and one gateway.
pub struct Ceph {
    dir: PathBuf,
    disk_mb: u32,
    /// `CEPH_RGW_…` settings of the script.
    settings: Vec<(&'static str, String)>,
    /// `AWS_…` settings.
    pub env: BTreeMap<String, String>,
}

impl Ceph {
    /// Starts it, with a bucket `sensors`.
    pub fn start(dir: &Path) -> Result<Self> {
        Self::start_with(dir, 8192)
    }

    /// The same, with another size of its disk.
    pub fn start_with(dir: &Path, disk_mb: u32) -> Result<Self> {
        Self::begin(Self { dir: dir.to_owned(), disk_mb, settings: Vec::new(), env: BTreeMap::new() })
    }

    /// The same, serving HTTPS too: `CEPH_RGW_HTTPS_URL` is among its settings.
    pub fn start_with_tls(dir: &Path, certificates: &Certificates) -> Result<Self> {
        let (cert, key) = &certificates.server;
        let settings =
            vec![("CEPH_RGW_TLS_CERT", cert.display().to_string()), ("CEPH_RGW_TLS_KEY", key.display().to_string())];
        Self::begin(Self { dir: dir.to_owned(), disk_mb: 8192, settings, env: BTreeMap::new() })
    }

    fn begin(mut it: Self) -> Result<Self> {
        // Temporary keys: the key that seals them has 16 characters.
        let sts = "[client.rgw]\nrgw_sts_key = sixteen-bytes-16\nrgw_s3_auth_use_sts = true\n";
        // With them, Ceph calls every wrong key AccessDenied: the cluster with TLS goes without.
        let more = if it.settings.is_empty() { sts } else { "" };
        fs::write(it.dir.with_extension("conf"), more)?;
        it.script("start")?;
        let settings = it.script("env")?;
        it.env = settings.lines().filter_map(|line| line.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect();
        python(
            "import boto3, os; boto3.client('s3', endpoint_url=os.environ['AWS_ENDPOINT_URL']).create_bucket(Bucket='sensors')",
            &it.env,
        )?;
        Ok(it)
    }

    fn script(&self, verb: &str) -> Result<String> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("ceph-rgw.sh");
        let output = Command::new(script)
            .env("CEPH_RGW_DISK_MB", self.disk_mb.to_string())
            .env("CEPH_RGW_EXTRA_CONF", self.dir.with_extension("conf"))
            .envs(self.settings.iter().map(|(name, value)| (name, value)))
            .arg(verb)
            .arg(&self.dir)
            .stdin(Stdio::null())
            .output()?;
        ensure!(output.status.success(), "ceph-rgw.sh {verb}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// One of its settings.
    pub fn setting(&self, name: &str) -> &str {
        self.env.get(name).map_or("", String::as_str)
    }

    /// kill -9 of the gateway.
    pub fn kill_gateway(&self) -> Result<()> {
        let pid = fs::read_to_string(self.dir.join("run/rgw.pid"))?;
        let killed = Command::new("kill").args(["-KILL", pid.trim()]).status()?;
        ensure!(killed.success(), "cannot kill the gateway, process {}", pid.trim());
        Ok(())
    }

    /// Starts what was killed, with the same data, port and keys.
    pub fn revive(&self) -> Result<()> {
        self.script("start").map(drop)
    }
}

impl Drop for Ceph {
    fn drop(&mut self) {
        let _ = self.script("purge"); // The folder is temporary; processes end with their folder's script or not at all.
    }
}

/// A port of its own that leads to another one of this machine, with TLS if told so, or with no way back for answers.
pub struct Forwarder(Child);

const FORWARDER: &str = r"
import socket, ssl, sys, threading
port, target, answers, cert, key = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == 'answers', sys.argv[4], sys.argv[5]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if cert else None
if cert: context.load_cert_chain(cert, key)
def pump(a, b):
    try:
        while data := a.recv(65536):
            if b: b.sendall(data)
        if b: b.shutdown(socket.SHUT_RDWR)
    except OSError: pass
def serve(client):
    try:
        if context: client = context.wrap_socket(client, server_side=True)
        server = socket.create_connection(('127.0.0.1', target))
    except OSError: return
    threading.Thread(target=pump, args=(client, server), daemon=True).start()
    pump(server, client if answers else None)
listener = socket.create_server(('127.0.0.1', port))
while True: threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
";

impl Forwarder {
    /// Starts it; with a certificate and its key it speaks TLS.
    pub fn start(port: u16, target: u16, answers: bool, tls: Option<&(PathBuf, PathBuf)>) -> Result<Self> {
        let answers = if answers { "answers" } else { "none" };
        let (cert, key) = tls.cloned().unwrap_or_default();
        let mut command = python_program(FORWARDER, &BTreeMap::new());
        command.args([&port.to_string(), &target.to_string(), answers]).arg(cert).arg(key);
        let it = Self(command.stderr(Stdio::null()).spawn().context("python does not start: run `cargo xtask setup`")?);
        wait_until("the forwarder listens", Duration::from_secs(20), || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        })?;
        Ok(it)
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        let _ = self.0.kill(); // It may be gone already.
        let _ = self.0.wait();
    }
}

/// A Python script with the packages that `cargo xtask setup` installs, not yet running.
pub fn python_program(script: &str, env: &BTreeMap<String, String>) -> Command {
    let home = std::env::var("HOME").unwrap_or_else(|_| "/root".into());
    let default = format!("{home}/.cache/edge-agent/venv-3/bin/python");
    let python = std::env::var("EDGE_AGENT_PYTHON").unwrap_or(default);
    let mut command = Command::new(python);
    command.args(["-c", script]).envs(env).stdin(Stdio::null());
    command
}

/// Runs a Python script; returns what it prints.
pub fn python(script: &str, env: &BTreeMap<String, String>) -> Result<String> {
    let mut command = python_program(script, env);
    let output = command.output().with_context(|| format!("{command:?} does not start: run `cargo xtask setup`"))?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
