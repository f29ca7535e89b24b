//! The daemons that work for the contenders: the agent, containerd, dockerd.
//!
//! What they keep is on a disk; what they need while they run is in `/run`, in memory, as on any machine.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};
use tests::{free_port, wait_until};

/// A daemon, ended when dropped.
pub struct Daemon {
    child: Child,
    dir: PathBuf,
}

impl Daemon {
    fn start(dir: &Path, command: &mut Command) -> Result<Self> {
        let log = File::create(dir.join("log"))?;
        let words = format!("{command:?}");
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn().with_context(|| words)?;
        Ok(Self { child, dir: dir.to_owned() })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until a command succeeds.
    fn ready(self, mut probe: Command) -> Result<Self> {
        probe.stdout(Stdio::null()).stderr(Stdio::null());
        let up = || probe.status().is_ok_and(|it| it.success());
        wait_until("the daemon answers", Duration::from_secs(30), up)
            .with_context(|| fs::read_to_string(self.dir.join("log")).unwrap_or_default())?;
        Ok(self)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.child.id().to_string()).status(); // It may be gone already.
        let _ = self.child.wait();
    }
}

/// The agent; returns how its commands begin.
pub fn agent(dir: &Path) -> Result<(Daemon, Vec<String>)> {
    let binary = std::env::var("EDGE_AGENT_BIN").context("EDGE_AGENT_BIN names the binary to measure")?;
    let dir = dir.join("agent");
    fs::create_dir_all(&dir)?;
    let config = dir.join("config.toml");
    let text = format!(
        "[agent]\ndata_dir = \"{0}/data\"\nrun_dir = \"/run/bench-agent\"\n[mqtt]\nlisten = [\"127.0.0.1:{1}\"]\n[http]\nlisten = \
         \"127.0.0.1:{2}\"\n[board_metrics]\nenabled = false\n",
        dir.display(),
        free_port()?,
        free_port()?
    );
    fs::write(&config, text)?;
    let begin = vec![binary.clone(), "--config".to_owned(), config.display().to_string()];
    let daemon = Daemon::start(&dir, Command::new(&binary).arg("--config").arg(&config).arg("run"))?;
    let mut probe = Command::new(&binary);
    probe.arg("--config").arg(&config).args(["image", "ls"]);
    let socket = Path::new("/run/bench-agent/agent.sock");
    wait_until("the agent's socket is there", Duration::from_secs(30), || socket.exists())?;
    Ok((daemon.ready(probe)?, begin))
}

/// containerd; returns how `ctr` begins.
pub fn containerd(dir: &Path) -> Result<(Daemon, Vec<String>)> {
    let dir = dir.join("containerd");
    fs::create_dir_all(&dir)?;
    let (config, socket) = (dir.join("config.toml"), Path::new("/run/bench-containerd.sock"));
    let text = format!(
        "version = 2\nroot = \"{0}/root\"\nstate = \"/run/bench-containerd\"\ndisabled_plugins = \
         [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = \"{1}\"\n",
        dir.display(),
        socket.display()
    );
    fs::write(&config, text)?;
    let begin = vec!["ctr".to_owned(), "--address".to_owned(), socket.display().to_string()];
    let daemon = Daemon::start(&dir, Command::new("containerd").arg("-c").arg(&config))?;
    let mut probe = Command::new("ctr");
    probe.args(&begin[1..]).arg("version");
    Ok((daemon.ready(probe)?, begin))
}

/// dockerd, without networks; returns how `docker` begins. `None` where it is not installed.
pub fn dockerd(dir: &Path) -> Result<Option<(Daemon, Vec<String>)>> {
    if !Path::new("/usr/sbin/dockerd").exists() {
        return Ok(None);
    }
    let dir = dir.join("docker");
    fs::create_dir_all(&dir)?;
    let host = "unix:///run/bench-docker.sock".to_owned();
    let begin = vec!["docker".to_owned(), "--host".to_owned(), host.clone()];
    let at = |name: &str| format!("--{name}={}/{name}", dir.display());
    let daemon = Daemon::start(
        &dir,
        Command::new("/usr/sbin/dockerd")
            .args(["--bridge=none", "--iptables=false", "--ip6tables=false", "--host"])
            .args([host, at("data-root"), "--exec-root=/run/bench-docker".into(), at("pidfile")]),
    )?;
    let mut probe = Command::new("docker");
    probe.args(&begin[1..]).arg("version");
    Ok(Some((daemon.ready(probe)?, begin)))
}
