//! mosquitto as an edge bridge, in its usual and its most durable usable setting, and as the core.

use std::{
    fs::{self, File},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};
use tests::{free_port, wait_until};

/// A mosquitto.
pub struct Broker {
    dir: PathBuf,
    /// Where it listens.
    pub port: u16,
    child: Option<Child>,
}

/// How a mosquitto keeps what it has acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeps {
    /// `persistence true`, otherwise default: written down every 30 minutes.
    Default,
    /// Written down after every 100 changes.
    Durable,
}

impl Broker {
    /// A core: takes everything.
    pub fn core(dir: &Path) -> Result<Self> {
        Self::core_on(dir, free_port()?)
    }

    /// The same, on a port that was chosen before.
    pub fn core_on(dir: &Path, port: u16) -> Result<Self> {
        Self::start(dir, port, "max_queued_messages 0\nmax_inflight_messages 1000\n")
    }

    /// An edge that bridges everything to the core.
    pub fn edge(dir: &Path, core: u16, keeps: Keeps) -> Result<Self> {
        let settings = match keeps {
            Keeps::Default => "",
            Keeps::Durable => "autosave_on_changes true\nautosave_interval 100\nmax_queued_messages 0\n",
        };
        let settings = format!(
            "persistence true\npersistence_location {}/\n{settings}\
             connection core\naddress 127.0.0.1:{core}\ntopic # out 1\ncleansession false\nremote_clientid edge\n\
             restart_timeout 1\nnotifications false\n",
            dir.display()
        );
        Self::start(dir, free_port()?, &settings)
    }

    fn start(dir: &Path, port: u16, settings: &str) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let (general, bridge) = settings.split_once("connection ").unwrap_or((settings, ""));
        let bridge = if bridge.is_empty() { String::new() } else { format!("connection {bridge}") };
        let config = format!("user root\nallow_anonymous true\n{general}listener {port} 127.0.0.1\n{bridge}");
        fs::write(dir.join("mosquitto.conf"), config)?;
        let mut it = Self { dir: dir.to_owned(), port, child: None };
        it.resume()?;
        Ok(it)
    }

    /// Starts it (again).
    pub fn resume(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.dir.join("log"))?;
        let config = self.dir.join("mosquitto.conf");
        let child = Command::new("/usr/sbin/mosquitto").arg("-c").arg(config).stdout(Stdio::null()).stderr(log).spawn();
        self.child = Some(child.context("mosquitto is missing: run `cargo xtask setup`")?);
        let port = self.port;
        wait_until("mosquitto listens", Duration::from_secs(30), || TcpStream::connect(("127.0.0.1", port)).is_ok())
    }

    /// SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.kill(); // It may be gone already.
    }
}
