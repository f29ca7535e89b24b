//! The agent under test.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{Raw, free_port, wait_until};

/// A running (or killed) agent with a data directory of its own.
pub struct Agent {
    dir: PathBuf,
    data: PathBuf,
    config: PathBuf,
    env: Vec<(String, String)>,
    /// Port of the MQTT listener.
    pub mqtt: u16,
    /// Port of the HTTP server.
    pub http: u16,
    child: Option<Child>,
}

/// The binary: `EDGE_AGENT_BIN`, or the one that cargo built beside this test.
pub fn agent_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("EDGE_AGENT_BIN") {
        return Ok(path.into());
    }
    let test = std::env::current_exe()?;
    let dir = test.parent().and_then(Path::parent).context("the test is not in a target folder")?;
    let path = dir.join("edge-agent");
    ensure!(path.exists(), "{} is missing: `cargo build --workspace` first", path.display());
    Ok(path)
}

impl Agent {
    /// Prepares an agent under `dir` with more configuration; not yet running.
    pub fn new(dir: &Path, more: &str) -> Result<Self> {
        Self::with_data(dir, &dir.join("data"), more)
    }

    /// The same, with its data elsewhere.
    pub fn with_data(dir: &Path, data: &Path, more: &str) -> Result<Self> {
        let (mqtt, http) = (free_port()?, free_port()?);
        let config = dir.join("config.toml");
        let (data, run) = (data.to_owned(), dir.join("run"));
        let text = format!(
            "[agent]\nname = \"board-1\"\ndata_dir = \"{}\"\nrun_dir = \"{}\"\n\
             [mqtt]\nlisten = [\"127.0.0.1:{mqtt}\"]\n[http]\nlisten = \"127.0.0.1:{http}\"\n\
             [board_metrics]\nenabled = false\n{more}",
            data.display(),
            run.display()
        );
        fs::write(&config, text)?;
        Ok(Self { dir: dir.to_owned(), data, config, env: Vec::new(), mqtt, http, child: None })
    }

    /// Gives it a variable, and to every command.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Changes its configuration, from its next start on.
    pub fn reconfigure(&self, change: impl FnOnce(&str) -> String) -> Result<()> {
        let text = fs::read_to_string(&self.config)?;
        Ok(fs::write(&self.config, change(&text))?)
    }

    /// Adds lines to its `[mqtt]`; for an agent that does not run.
    pub fn mqtt_options(self, lines: &str) -> Result<Self> {
        let text = fs::read_to_string(&self.config)?;
        fs::write(&self.config, text.replace("[mqtt]\n", &format!("[mqtt]\n{lines}\n")))?;
        Ok(self)
    }

    /// Takes the place of all that `new` was given; for an agent that does not run.
    pub fn configure_anew(&self, more: &str) -> Result<()> {
        let text = fs::read_to_string(&self.config)?;
        let (begin, _) = text.split_once("enabled = false\n").context("not a configuration of `new`")?;
        Ok(fs::write(&self.config, format!("{begin}enabled = false\n{more}"))?)
    }

    /// Starts it and waits until it is ready.
    pub fn start(&mut self) -> Result<()> {
        self.start_within(Duration::from_secs(20))
    }

    /// The same, with less or more patience.
    pub fn start_within(&mut self, patience: Duration) -> Result<()> {
        self.start_unready()?;
        let url = format!("http://127.0.0.1:{}/readyz", self.http);
        let ready =
            || Command::new("curl").args(["-sf", "-o", "/dev/null", &url]).status().is_ok_and(|it| it.success());
        wait_until("the agent is ready", patience, ready).with_context(|| self.log())
    }

    /// Starts it.
    pub fn start_unready(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.dir.join("agent.log"))?;
        let child = Command::new(agent_binary()?)
            .arg("--config")
            .arg(&self.config)
            .arg("run")
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        self.child = Some(child);
        Ok(())
    }

    /// SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// SIGTERM; fails unless it ends well within `patience`.
    pub fn stop(&mut self, patience: Duration) -> Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        Command::new("kill").args(["-TERM", &child.id().to_string()]).status()?;
        let mut status = None;
        wait_until("the agent stops", patience, || {
            status = child.try_wait().ok().flatten();
            status.is_some()
        })?;
        ensure!(status.is_some_and(|it| it.success()), "the agent ended with {status:?}\n{}", self.log());
        Ok(())
    }

    /// Runs a command of the same binary with the same configuration.
    pub fn command(&self, args: &[&str]) -> Result<Output> {
        let mut command = Command::new(agent_binary()?);
        command.arg("--config").arg(&self.config).args(args).stdin(Stdio::null());
        Ok(command.envs(self.env.iter().map(|(name, value)| (name, value))).output()?)
    }

    /// Starts a command of the same binary and does not wait for it; what it says is dropped.
    pub fn spawn(&self, args: &[&str]) -> Result<Child> {
        let mut command = Command::new(agent_binary()?);
        command.arg("--config").arg(&self.config).args(args).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        Ok(command.envs(self.env.iter().map(|(name, value)| (name, value))).spawn()?)
    }

    /// Program and arguments of such a command, for whoever starts it in another way.
    pub fn argv(&self, args: &[&str]) -> Result<Vec<String>> {
        let begin = [agent_binary()?.display().to_string(), "--config".to_owned(), self.config.display().to_string()];
        Ok(begin.into_iter().chain(args.iter().map(|it| (*it).to_owned())).collect())
    }

    /// `status --json`.
    pub fn status(&self) -> Result<serde_json::Value> {
        let output = self.command(&["status", "--json"])?;
        serde_json::from_slice(&output.stdout).with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// The words of one service's state, problem and remedy together.
    pub fn service(&self, name: &str) -> Result<String> {
        let status = self.status()?;
        let services = status["services"].as_array().cloned().unwrap_or_default();
        let service = services.iter().find(|it| it["name"] == name).with_context(|| format!("no service {name}"))?;
        Ok(service.to_string())
    }

    /// The rows of `telemetry query --json`.
    pub fn query(&self) -> Result<Vec<serde_json::Value>> {
        let output = self.command(&["telemetry", "query", "--json"])?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output
            .stdout
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| Ok(serde_json::from_slice(line)?))
            .collect()
    }

    /// Publishes readings on its MQTT port and waits until all are acknowledged.
    pub fn put<'a>(&self, readings: impl IntoIterator<Item = (&'a str, Vec<u8>)>) -> Result<()> {
        Raw::connect(self.mqtt, 4, "sensor", 0x02, 60, &[])?.put(readings)
    }

    /// Waits until no reading waits for any relay.
    pub fn drained(&self, patience: Duration) -> Result<()> {
        let done = wait_until("the relays have everything", patience, || {
            self.status().is_ok_and(|status| {
                let waiting = status["outbox"]["waiting"].as_array().cloned().unwrap_or_default();
                !waiting.is_empty() && waiting.iter().all(|it| it["readings"] == 0)
            })
        });
        done.with_context(|| format!("{:?}\n{}", self.status(), self.log()))
    }

    /// Its process; 0 while it does not run.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// `/metrics`: the value of one line, by its name and labels; 0 while it is not there.
    pub fn metric(&self, name: &str) -> Result<u64> {
        let url = format!("http://127.0.0.1:{}/metrics", self.http);
        let output = Command::new("curl").args(["-sf", &url]).output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(value.map(str::parse).transpose()?.unwrap_or(0))
    }

    /// Bytes of memory that its process has resident.
    pub fn resident(&self) -> Result<usize> {
        let pid = self.child.as_ref().context("the agent does not run")?.id();
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim_end_matches("kB").trim().parse::<usize>()? << 10)
    }

    /// Where its data are.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// All of its log.
    pub fn whole_log(&self) -> String {
        fs::read_to_string(self.dir.join("agent.log")).unwrap_or_default()
    }

    /// The end of its log.
    pub fn log(&self) -> String {
        let text = fs::read_to_string(self.dir.join("agent.log")).unwrap_or_default();
        text.lines().rev().take(30).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// Names of control groups, rules and devices of its engine end so.
    pub fn instance(&self) -> String {
        container_engine::engine::instance(&self.data)
    }

    /// Whether its engine has something on this machine that outlives the agent.
    fn has_left_something(&self) -> bool {
        let containers = fs::read_dir(self.dir.join("run/containers")).is_ok_and(|mut it| it.next().is_some());
        let parent = format!("edge-{}", self.instance());
        let mut hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        containers || hierarchies.any(|it| it.path().join(&parent).is_dir())
    }

    /// Removes all containers of a test that failed, or forgot them, and has the agent end as it should: then it takes
    /// along what it made on this machine.
    fn clear(&mut self) -> Result<()> {
        if self.child.is_none() {
            self.start()?;
        }
        let all = ["container", "ls", "--all", "--all-owners", "--no-trunc", "--format", "{{.Owner}} {{.ID}}"];
        let listed = self.command(&all)?;
        for (owner, id) in String::from_utf8_lossy(&listed.stdout).lines().filter_map(|line| line.split_once(' ')) {
            self.command(&["container", "rm", "--force", "--owner", owner, id])?;
        }
        self.stop(Duration::from_secs(30))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if self.has_left_something() {
            // The test has said already what went wrong, where something did.
            let _ = self.clear();
        }
        let _ = self.kill(); // It may be gone already.
    }
}
