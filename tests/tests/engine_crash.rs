//! The engine's promise: whatever is killed, no container, mount, control group, address or finished byte is lost or left behind.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use tests::{Agent, Dice, images, registry::Registry, rounds, wait_until};

/// Containers that run through the kill.
const RUNNING: usize = 20;

fn run(agent: &Agent, args: &[&str]) -> Result<String> {
    let output = agent.command(args)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{args:?}: {}\n{said}\n{}", output.status, agent.log());
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn with_busybox(dir: &Path) -> Result<Agent> {
    let mut agent = Agent::new(dir, "")?;
    agent.start()?;
    let archive = images::archive(&images::busybox(dir)?)?;
    run(&agent, &["image", "load", "--input", &archive.display().to_string(), "--name", "busybox"])?;
    Ok(agent)
}

fn inspect(agent: &Agent, name: &str, field: &str) -> Result<String> {
    run(agent, &["container", "inspect", "--format", field, name])
}

/// Everything of the engine's that the machine holds below this agent's folders.
fn left_behind(dir: &Path) -> Result<Vec<String>> {
    let name = dir.display().to_string();
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let mut found: Vec<_> =
        mounts.lines().filter(|line| line.contains(&name)).map(|it| format!("mount {it}")).collect();
    for entry in fs::read_dir("/proc")?.flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(&name) && (line.contains(" shim ") || line.contains("oci-runtime")) {
            found.push(format!("process {line}"));
        }
    }
    Ok(found)
}

/// Control groups of containers, by their ids, wherever the hierarchies are.
fn groups(ids: &[String]) -> Vec<String> {
    let output = Command::new("find").args(["/sys/fs/cgroup", "-type", "d", "-path", "*edge.slice*"]).output();
    let text = output.map(|it| String::from_utf8_lossy(&it.stdout).into_owned()).unwrap_or_default();
    text.lines().filter(|line| ids.iter().any(|id| line.contains(id.as_str()))).map(str::to_owned).collect()
}

fn interfaces() -> Result<BTreeSet<String>> {
    Ok(fs::read_dir("/sys/class/net")?.flatten().map(|it| it.file_name().to_string_lossy().into_owned()).collect())
}

#[test]
fn engine_crash_containers_outlive_the_agent() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let before = interfaces()?;
    let mut agent = with_busybox(dir.path())?;
    let count = "n=0; while :; do echo line $n; n=$((n+1)); usleep 20000; done";
    let mut ids = Vec::new();
    for n in 0..RUNNING {
        ids.push(run(&agent, &["container", "run", "-d", "--name", &format!("c{n}"), "busybox", "sh", "-c", count])?);
    }
    let short = "sleep 2; echo done; exit 7";
    ids.push(run(&agent, &["container", "run", "-d", "--name", "short", "busybox", "sh", "-c", short])?);
    let mut dice = Dice::new();
    for _ in 0..rounds(3) {
        dice.pause(Duration::from_millis(1500));
        agent.kill()?;
        std::thread::sleep(Duration::from_millis(800));
        agent.start()?;
        let running =
            run(&agent, &["container", "ls", "--quiet", "--filter", "status=running", "--filter", "name=^c"])?;
        ensure!(running.lines().count() == RUNNING, "{} of {RUNNING} still run: {running}", running.lines().count());
    }
    wait_until("the one that ended is known to have", Duration::from_secs(20), || {
        inspect(&agent, "short", "{{.State.Status}} {{.State.ExitCode}}").is_ok_and(|it| it == "exited 7")
    })?;
    for n in 0..RUNNING {
        complete(&agent, &format!("c{n}"))?;
    }
    for name in (0..RUNNING).map(|n| format!("c{n}")).chain(["short".to_owned()]) {
        run(&agent, &["container", "rm", "--force", &name])?;
    }
    agent.stop(Duration::from_secs(30))?;
    let left = left_behind(dir.path())?;
    ensure!(left.is_empty(), "left behind: {left:#?}");
    ensure!(groups(&ids).is_empty(), "left behind: {:#?}", groups(&ids));
    let new: Vec<_> = interfaces()?.difference(&before).filter(|name| *name != "edge0").cloned().collect();
    ensure!(new.is_empty(), "interfaces left behind: {new:?}");
    Ok(())
}

/// The log of a container that counts has every number once, in order.
fn complete(agent: &Agent, name: &str) -> Result<()> {
    let log = run(agent, &["container", "logs", name])?;
    ensure!(!log.is_empty(), "{name} has no log");
    for (n, line) in log.lines().enumerate() {
        ensure!(line == format!("line {n}"), "{name}: line {n} is {line:?}");
    }
    Ok(())
}

#[test]
fn engine_crash_a_killed_shim_takes_its_container_with_it() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let agent = with_busybox(dir.path())?;
    let id = run(&agent, &["container", "run", "-d", "--name", "orphan", "busybox", "sleep", "1000"])?;
    let pid: u32 = inspect(&agent, "orphan", "{{.State.Pid}}")?.parse()?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let shim = stat.rsplit_once(')').and_then(|(_, it)| it.split_whitespace().nth(1)).context("no parent")?.to_owned();
    ensure!(Command::new("kill").args(["-KILL", &shim]).status()?.success(), "no shim");
    wait_until("the container is known to have ended", Duration::from_secs(20), || {
        inspect(&agent, "orphan", "{{.State.Status}} {{.State.ExitCode}}").is_ok_and(|it| it == "exited 137")
    })?;
    ensure!(!Path::new(&format!("/proc/{pid}")).exists(), "its process still runs");
    run(&agent, &["container", "rm", "orphan"])?;
    ensure!(groups(&[id]).is_empty(), "its control group is left behind");
    Ok(())
}

/// Everything that lives in memory goes at once: the agent, the shims, the containers, mounts, sockets, namespaces.
fn power_cut(agent: &mut Agent, dir: &Path) -> Result<()> {
    agent.kill()?;
    let name = dir.display().to_string();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|it| it.parse::<u32>().ok()) else { continue };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(&name) && line.contains(" shim ") {
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            for pid in children.split_whitespace().map(str::to_owned).chain([pid.to_string()]) {
                let _ = Command::new("kill").args(["-KILL", &pid]).stderr(Stdio::null()).status(); // It may be gone.
            }
        }
    }
    std::thread::sleep(Duration::from_millis(300));
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    for line in mounts.lines().rev().filter(|line| line.contains(&name)) {
        if let Some(target) = line.split(' ').nth(4).filter(|target| target.contains(&name)) {
            let _ = Command::new("umount").args(["-l", target]).stderr(Stdio::null()).status(); // With another one, perhaps.
        }
    }
    match fs::remove_dir_all(dir.join("run")) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

#[test]
fn engine_crash_after_a_power_cut_everything_is_known() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut agent = with_busybox(dir.path())?;
    for n in 0..5 {
        let name = format!("c{n}");
        run(&agent, &["container", "run", "-d", "--name", &name, "busybox", "sh", "-c", "echo here; sleep 1000"])?;
    }
    let mut dice = Dice::new();
    for _ in 0..rounds(2) {
        dice.pause(Duration::from_millis(700));
        power_cut(&mut agent, dir.path())?;
        agent.start()?;
        let running = run(&agent, &["container", "ls", "--quiet"])?;
        ensure!(running.is_empty(), "something runs that cannot: {running}");
        for n in 0..5 {
            let name = format!("c{n}");
            let state = inspect(&agent, &name, "{{.State.Status}}")?;
            ensure!(state == "exited", "{name} is {state}");
            ensure!(run(&agent, &["container", "logs", &name])?.starts_with("here"), "{name} lost its log");
            run(&agent, &["container", "start", &name])?;
        }
    }
    for n in 0..5 {
        run(&agent, &["container", "rm", "--force", &format!("c{n}")])?;
    }
    agent.stop(Duration::from_secs(30))?;
    let left = left_behind(dir.path())?;
    ensure!(left.is_empty(), "left behind: {left:#?}");
    Ok(())
}

#[test]
fn engine_crash_pulls_end_whole() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let registry = Registry::start(dir.path())?;
    let mut names = Vec::new();
    for n in 0..5 {
        let layout = images::random(dir.path(), &format!("image{n}"), 2, 12)?;
        names.push(registry.push(&layout, &format!("image{n}:latest"))?);
    }
    let engine = format!("[engine]\nbandwidth = \"12MiB\"\ninsecure = [\"{}\"]\n", registry.address);
    let mut agent = Agent::new(dir.path(), &engine)?;
    agent.start()?;
    let mut dice = Dice::new();
    for _ in 0..rounds(4) {
        let mut pulls = Vec::new();
        for name in &names {
            pulls.push(agent.spawn(&["image", "pull", "--quiet", name])?);
        }
        dice.pause(Duration::from_millis(2500));
        agent.kill()?;
        for mut pull in pulls {
            let _ = pull.wait(); // It failed, or had ended before.
        }
        agent.start()?;
    }
    for name in &names {
        run(&agent, &["image", "pull", "--quiet", name])?;
    }
    let listed = run(&agent, &["image", "ls", "--quiet"])?;
    ensure!(listed.lines().count() == 5, "images: {listed}");
    let partial = fs::read_dir(agent.data().join("images/ingest")).map_or(0, Iterator::count);
    ensure!(partial == 0, "{partial} files of unfinished pulls are left");
    Ok(())
}
