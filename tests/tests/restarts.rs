//! `container run --restart`: what has ended is started again as its policy says, by this agent and by the next.

use std::{path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use tests::{Agent, images, wait_until};

const PATIENCE: Duration = Duration::from_secs(30);

fn run(agent: &Agent, args: &[&str]) -> Result<String> {
    let output = agent.command(args)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{args:?}: {}\n{said}\n{}", output.status, agent.log());
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn started(dir: &Path) -> Result<Agent> {
    let mut agent = Agent::new(dir, "")?;
    agent.start()?;
    let archive = images::archive(&images::busybox(dir)?)?;
    run(&agent, &["image", "load", "--input", &archive.display().to_string(), "--name", "busybox"])?;
    Ok(agent)
}

fn begin(agent: &Agent, name: &str, policy: &str, script: &str) -> Result<()> {
    let args = ["container", "run", "-d", "--network", "none", "--name", name, "--restart", policy, "busybox"];
    run(agent, &[&args[..], &["sh", "-c", script]].concat()).map(drop)
}

fn inspect(agent: &Agent, name: &str, field: &str) -> Result<String> {
    run(agent, &["container", "inspect", "--format", field, name])
}

const STATE: &str = "{{.State.Status}} {{.State.ExitCode}} {{.State.Restarting}} {{.RestartCount}}";

/// Waits for a container to be in this state: status, exit code, whether it is about to be started, how often it was.
fn becomes(agent: &Agent, name: &str, want: &str) -> Result<()> {
    let mut last = String::new();
    wait_until(&format!("{name} is {want}"), PATIENCE, || {
        last = inspect(agent, name, STATE).unwrap_or_default();
        last == want
    })
    .with_context(|| format!("it is {last}\n{}", agent.log()))
}

fn kill(pid: &str) -> Result<()> {
    ensure!(Command::new("kill").args(["-KILL", pid]).status()?.success(), "no process {pid}");
    // One that nobody has asked for yet has ended all the same.
    let gone = || {
        let stat = std::fs::read_to_string(Path::new("/proc").join(pid).join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
    };
    wait_until("it is gone", PATIENCE, gone)
}

#[test]
fn restarts_end_where_the_policy_says() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let agent = started(dir.path())?;
    begin(&agent, "fails", "on-failure:2", "echo life; exit 4")?;
    becomes(&agent, "fails", "exited 4 false 2")?;
    ensure!(run(&agent, &["container", "logs", "fails"])? == "life\nlife\nlife", "its log is of three lives");
    begin(&agent, "succeeds", "on-failure", "exit 0")?;
    begin(&agent, "plain", "no", "exit 4")?;
    becomes(&agent, "succeeds", "exited 0 false 0")?;
    becomes(&agent, "plain", "exited 4 false 0")?;
    let policy =
        inspect(&agent, "fails", "{{.HostConfig.RestartPolicy.Name}} {{.HostConfig.RestartPolicy.MaximumRetryCount}}")?;
    ensure!(policy == "on-failure 2", "{policy}");
    // Whoever starts it gives it all its tries again.
    run(&agent, &["container", "start", "fails"])?;
    becomes(&agent, "fails", "exited 4 false 2")?;
    // One that comes up again and again is stopped in between.
    begin(&agent, "loops", "always", "exit 5")?;
    wait_until("it has come up again", PATIENCE, || {
        inspect(&agent, "loops", "{{.RestartCount}}").is_ok_and(|it| it != "0")
    })?;
    run(&agent, &["container", "stop", "loops"])?;
    let stopped = inspect(&agent, "loops", STATE)?;
    ensure!(stopped.contains(" false "), "{stopped}");
    run(&agent, &["container", "start", "fails"])?;
    becomes(&agent, "fails", "exited 4 false 2")?;
    ensure!(inspect(&agent, "loops", STATE)? == stopped, "it was {stopped} and has come up again");
    // What is removed by force does not come back, whenever that happens.
    begin(&agent, "goes", "always", "exit 5")?;
    run(&agent, &["container", "rm", "--force", "goes"])?;
    let output = agent.command(&["container", "run", "--rm", "--restart", "always", "busybox", "true"])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(125) && said.contains("--restart"), "{output:?}");
    Ok(())
}

#[test]
fn restarts_go_on_with_the_next_agent() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut agent = started(dir.path())?;
    for (name, policy) in [
        ("always", "always"),
        ("unless", "unless-stopped"),
        ("failure", "on-failure"),
        ("down", "unless-stopped"),
        ("up", "always"),
    ] {
        begin(&agent, name, policy, "sleep 1000")?;
    }
    let pid = |agent: &Agent, name: &str| inspect(agent, name, "{{.State.Pid}}");
    // Its process is killed while the agent looks.
    kill(&pid(&agent, "always")?)?;
    becomes(&agent, "always", "running 0 false 1")?;
    // Two are stopped by somebody, one by its signal, and stay down for now.
    run(&agent, &["container", "stop", "--time", "0", "down"])?;
    run(&agent, &["container", "kill", "up"])?;
    for name in ["down", "up"] {
        becomes(&agent, name, "exited 137 false 0")?;
    }
    // The others are killed while no agent looks.
    let mut pids = Vec::new();
    for name in ["always", "unless", "failure"] {
        pids.push(pid(&agent, name)?);
    }
    agent.kill()?;
    for pid in &pids {
        kill(pid)?;
    }
    agent.start()?;
    becomes(&agent, "always", "running 0 false 2")?;
    becomes(&agent, "unless", "running 0 false 1")?;
    becomes(&agent, "failure", "running 0 false 1")?;
    // As with Docker, `always` comes back with the agent even where somebody had stopped it.
    becomes(&agent, "up", "running 0 false 1")?;
    becomes(&agent, "down", "exited 137 false 0")?;
    // A restart of the agent alone restarts nothing that runs.
    let before = pid(&agent, "always")?;
    agent.stop(PATIENCE)?;
    agent.start()?;
    becomes(&agent, "always", "running 0 false 2")?;
    ensure!(pid(&agent, "always")? == before, "another process than before");
    Ok(())
}
