//! The engine's promise: whatever is killed, no container, mount, control group, address or finished byte is lost or left behind.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use container_engine::{engine::instance, lease::Lease, ledger::Grant};
use store::state::State;
use tests::{
    Agent, Dice, images,
    registry::{Fault, Proxy, Registry},
    rounds, wait_until,
};

/// Containers that run through the kill.
const RUNNING: usize = 20;
/// Pulls that the kill finds under way.
const PULLS: usize = 5;
/// What is under way in the network and in pipes when an agent is killed, of one answer: it never reached the disk.
const UNDER_WAY: u64 = 512 << 10;
/// Writes `line 0`, `line 1` and so on for ever.
const COUNT: &str = "n=0; while :; do echo line $n; n=$((n+1)); usleep 20000; done";

fn run(agent: &Agent, args: &[&str]) -> Result<String> {
    let output = agent.command(args)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{args:?}: {}\n{said}\n{}", output.status, agent.log());
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn with_busybox(dir: &Path, more: &str) -> Result<Agent> {
    let mut agent = Agent::new(dir, more)?;
    agent.start()?;
    let archive = images::archive(&images::busybox(dir)?)?;
    run(&agent, &["image", "load", "--input", &archive.display().to_string(), "--name", "busybox"])?;
    Ok(agent)
}

/// `container run -d` of a shell script; its id.
fn begin(agent: &Agent, name: &str, options: &[&str], script: &str) -> Result<String> {
    let begin: &[&str] = &["container", "run", "-d", "--name", name];
    run(agent, &[begin, options, &["busybox", "sh", "-c", script]].concat())
}

fn inspect(agent: &Agent, name: &str, field: &str) -> Result<String> {
    run(agent, &["container", "inspect", "--format", field, name])
}

/// Waits for a container to have ended with this code.
fn ended(agent: &Agent, name: &str, code: i32) -> Result<()> {
    let want = format!("exited {code}");
    wait_until(&format!("{name} is known to have {want}"), Duration::from_secs(20), || {
        inspect(agent, name, "{{.State.Status}} {{.State.ExitCode}}").is_ok_and(|it| it == want)
    })
    .with_context(|| format!("{:?}\n{}", inspect(agent, name, "{{json .State}}"), agent.log()))
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

/// Whether a process runs; one that has ended and that nobody has asked for does not.
fn lives(pid: &str) -> bool {
    let stat = fs::read_to_string(Path::new("/proc").join(pid).join("stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

fn kill(pid: &str) {
    let _ = Command::new("kill").args(["-KILL", pid]).stderr(Stdio::null()).status(); // It may be gone.
}

/// Devices of an engine's: the first digits of its instance are in their names.
fn devices(instance: &str) -> Result<Vec<String>> {
    let names = fs::read_dir("/sys/class/net")?.flatten().map(|it| it.file_name().to_string_lossy().into_owned());
    Ok(names.filter(|name| name.contains(&instance[..5])).collect())
}

fn entries(folder: PathBuf) -> Vec<String> {
    let names = fs::read_dir(&folder).into_iter().flatten().flatten();
    names.map(|it| it.path().display().to_string()).collect()
}

/// The end of a test whose containers were all removed: with the agent nothing of the engine's is left on the machine.
fn nothing_left(agent: &mut Agent, dir: &Path, ids: &[String]) -> Result<()> {
    let on_networks = run(agent, &["network", "inspect", "--format", "{{len .Containers}}", "bridge"])?;
    ensure!(on_networks == "0", "{on_networks} addresses are still taken");
    agent.stop(Duration::from_secs(30))?;
    let name = dir.display().to_string();
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let mut left: Vec<_> = mounts.lines().filter(|line| line.contains(&name)).map(str::to_owned).collect();
    for entry in fs::read_dir("/proc")?.flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if ids.iter().any(|id| line.contains(id.as_str())) {
            left.push(format!("process {line}"));
        }
    }
    let instance = instance(agent.data());
    let groups =
        Command::new("find").args(["/sys/fs/cgroup", "-type", "d", "-path", &format!("*{instance}*")]).output()?;
    left.extend(String::from_utf8_lossy(&groups.stdout).lines().map(|it| format!("group {it}")));
    let tables = Command::new("nft").args(["list", "tables"]).output()?;
    let tables = String::from_utf8_lossy(&tables.stdout).into_owned();
    left.extend(tables.lines().filter(|it| it.contains(&instance)).map(str::to_owned));
    left.extend(devices(&instance)?.iter().map(|it| format!("device {it}")));
    for folder in ["run/containers", "run/netns", "run/oci", "run/network/sandbox-network"] {
        left.extend(entries(dir.join(folder)));
    }
    for folder in ["containers", "snapshots"] {
        left.extend(entries(agent.data().join(folder)));
    }
    let (state, _) = State::open(&agent.data().join("state"))?;
    left.extend(state.scan::<Lease>("").map(|it| format!("lease {it:?}")));
    left.extend(state.scan::<Grant>("").map(|it| format!("grant {it:?}")));
    state.close();
    ensure!(left.is_empty(), "left behind: {left:#?}\n{}", agent.log());
    Ok(())
}

/// Blobs that are whole.
fn blobs(agent: &Agent) -> BTreeSet<String> {
    let names = fs::read_dir(agent.data().join("images/blobs/sha256")).into_iter().flatten().flatten();
    names.map(|it| format!("sha256:{}", it.file_name().to_string_lossy())).collect()
}

#[test]
fn engine_crash_containers_and_pulls_go_on() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let registry = Registry::start(dir.path())?;
    let proxy = Proxy::start(&dir.path().join("proxy"), registry.port())?;
    let mut names = Vec::new();
    for n in 0..PULLS {
        let layout = images::random(dir.path(), &format!("image{n}"), 2, 6)?;
        registry.push(&layout, &format!("image{n}:latest"))?;
        names.push(format!("{}/image{n}:latest", proxy.address));
    }
    proxy.fault(&Fault::Slow(1_500_000))?;
    let mut agent = with_busybox(dir.path(), &format!("[engine]\ninsecure = [\"{}\"]\n", proxy.address))?;
    let mut ids = Vec::new();
    let mut pids = BTreeMap::new();
    for n in 0..RUNNING {
        let name = format!("c{n}");
        ids.push(begin(&agent, &name, &["--memory-reservation", "1m"], COUNT)?);
        pids.insert(name.clone(), inspect(&agent, &name, "{{.State.Pid}}")?);
    }
    let gates = dir.path().join("gates");
    fs::create_dir(&gates)?;
    let bind = format!("{}:/gates", gates.display());
    let (mut dice, mut whole) = (Dice::new(), BTreeMap::new());
    let kills = rounds(4);
    for round in 0..kills {
        let name = format!("short{round}");
        let script = format!("until [ -e /gates/{round} ]; do usleep 10000; done; echo done; exit 7");
        ids.push(begin(&agent, &name, &["-v", &bind], &script)?);
        let short = inspect(&agent, &name, "{{.State.Pid}}")?;
        let mut pulls = Vec::new();
        for name in &names {
            pulls.push(agent.spawn(&["image", "pull", "--quiet", name])?);
        }
        dice.pause(Duration::from_millis(2500));
        agent.kill()?;
        for mut pull in pulls {
            let _ = pull.wait(); // It failed, or had ended before.
        }
        for blob in blobs(&agent) {
            whole.entry(blob).or_insert(u64::from(round));
        }
        fs::write(gates.join(round.to_string()), "")?;
        wait_until("the short one ends by itself", Duration::from_secs(20), || !lives(&short))?;
        agent.start()?;
        for (name, pid) in &pids {
            let state = inspect(&agent, name, "{{.State.Status}} {{.State.Pid}}")?;
            ensure!(state == format!("running {pid}") && lives(pid), "{name} was {pid}, is {state}\n{}", agent.log());
        }
        ended(&agent, &name, 7)?;
        ensure!(run(&agent, &["container", "logs", &name])? == "done", "the last words of {name} are lost");
    }
    for n in 0..RUNNING {
        complete(&agent, &format!("c{n}"))?;
    }
    proxy.fault(&Fault::None)?;
    for name in &names {
        run(&agent, &["image", "pull", "--quiet", name])?;
    }
    let listed = run(&agent, &["image", "ls", "--quiet"])?;
    ensure!(listed.lines().count() == PULLS + 1, "images: {listed}");
    ensure!(entries(agent.data().join("images/ingest")).is_empty(), "files of unfinished pulls are left");
    for (blob, seen) in proxy.seen() {
        let file = agent.data().join("images/blobs/sha256").join(blob.trim_start_matches("sha256:"));
        let size = fs::metadata(&file).with_context(|| file.display().to_string())?.len();
        // Each kill that found it under way cost what was in the network; one that found it whole cost nothing.
        let cut = whole.get(&blob).copied().unwrap_or(u64::from(kills));
        ensure!(seen.bytes <= size + cut * UNDER_WAY, "{blob} of {size} bytes, cut {cut} times: {seen:?}");
    }
    let all = pids.keys().cloned().chain((0..kills).map(|round| format!("short{round}")));
    for name in all {
        run(&agent, &["container", "rm", "--force", &name])?;
    }
    nothing_left(&mut agent, dir.path(), &ids)
}

/// The process that stays with a container.
fn shim_of(dir: &Path, id: &str) -> Result<String> {
    let record = fs::read(dir.join("run/containers").join(id).join("shim.json"))?;
    let record: serde_json::Value = serde_json::from_slice(&record)?;
    Ok(record["shim_pid"].as_i64().context("no shim")?.to_string())
}

#[test]
fn engine_crash_a_killed_shim_takes_its_container_with_it() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut agent = with_busybox(dir.path(), "")?;
    let mut ids = Vec::new();
    // With an agent that sees it, and with one that comes later.
    for (name, there) in [("seen", true), ("unseen", false)] {
        let id = begin(&agent, name, &["-p", "127.0.0.1::80"], "sleep 1000 & echo here; sleep 1000")?;
        let pid = inspect(&agent, name, "{{.State.Pid}}")?;
        let shim = shim_of(dir.path(), &id)?;
        if !there {
            agent.kill()?;
        }
        kill(&shim);
        if !there {
            wait_until("the shim is gone", Duration::from_secs(20), || !lives(&shim))?;
            agent.start()?;
        }
        ended(&agent, name, 137)?;
        ensure!(!lives(&pid), "its process still runs");
        ensure!(!inspect(&agent, name, "{{.State.Error}}")?.is_empty(), "nobody says what happened");
        ensure!(run(&agent, &["container", "logs", name])? == "here", "its log is lost");
        // It can be started again.
        run(&agent, &["container", "start", name])?;
        ids.push(id);
    }
    for name in ["seen", "unseen"] {
        run(&agent, &["container", "rm", "--force", name])?;
    }
    nothing_left(&mut agent, dir.path(), &ids)
}

/// Everything that lives in memory goes at once: the agent, the shims, the containers, mounts, sockets, namespaces.
fn power_cut(agent: &mut Agent, dir: &Path) -> Result<()> {
    agent.kill()?;
    let name = dir.display().to_string();
    let mut gone = Vec::new();
    for folder in entries(dir.join("run/containers")) {
        let Ok(record) = fs::read(Path::new(&folder).join("shim.json")) else { continue };
        let record: serde_json::Value = serde_json::from_slice(&record)?;
        for pid in [&record["shim_pid"], &record["pid"]] {
            let pid = pid.as_i64().context("no process")?.to_string();
            kill(&pid);
            gone.push(pid);
        }
    }
    wait_until("all processes are gone", Duration::from_secs(20), || !gone.iter().any(|pid| lives(pid)))?;
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
    let mut agent = with_busybox(dir.path(), "")?;
    let mut ids = Vec::new();
    let names: Vec<_> = (0..5).map(|n| format!("c{n}")).collect();
    for name in &names {
        ids.push(begin(&agent, name, &[], "echo here; sleep 1000")?);
    }
    let mut dice = Dice::new();
    for _ in 0..rounds(2) {
        for name in &names {
            wait_until("it says something", Duration::from_secs(20), || {
                run(&agent, &["container", "logs", name]).is_ok_and(|it| it.starts_with("here"))
            })?;
        }
        dice.pause(Duration::from_millis(700));
        power_cut(&mut agent, dir.path())?;
        agent.start()?;
        let running = run(&agent, &["container", "ls", "--quiet"])?;
        ensure!(running.is_empty(), "something runs that cannot: {running}");
        for name in &names {
            let state = inspect(&agent, name, "{{.State.Status}}")?;
            ensure!(state == "exited", "{name} is {state}");
            ensure!(run(&agent, &["container", "logs", name])?.starts_with("here"), "{name} lost its log");
            run(&agent, &["container", "start", name])?;
        }
    }
    for name in &names {
        run(&agent, &["container", "rm", "--force", name])?;
    }
    nothing_left(&mut agent, dir.path(), &ids)
}

/// How the database of an agent that does not run is lost.
fn lose_database(agent: &Agent, removed: bool) -> Result<()> {
    let state = agent.data().join("state");
    if removed {
        return Ok(fs::remove_dir_all(state)?);
    }
    let file = state.join("db");
    let noise: Vec<u8> = (0..fs::metadata(&file)?.len()).map(|n| n.to_le_bytes()[0].wrapping_mul(31)).collect();
    Ok(fs::write(file, noise)?)
}

#[test]
fn engine_crash_a_lost_database_loses_no_container() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut agent = with_busybox(dir.path(), "")?;
    let gates = dir.path().join("gates");
    fs::create_dir(&gates)?;
    let bind = format!("{}:/gates", gates.display());
    let mut ids = vec![begin(&agent, "gone", &[], "true")?];
    ended(&agent, "gone", 0)?;
    run(&agent, &["container", "rm", "gone"])?;
    ids.push(begin(&agent, "before", &["--label", "a=b"], "echo kept; exit 3")?);
    ended(&agent, "before", 3)?;
    ids.push(run(&agent, &["container", "create", "--name", "never", "busybox", "true"])?);
    ids.push(begin(&agent, "renamed", &["--memory", "64m", "-p", "127.0.0.1::80", "-v", "named:/data"], COUNT)?);
    run(&agent, &["container", "rename", "renamed", "counts"])?;
    run(&agent, &["container", "update", "--memory", "32m", "counts"])?;
    ids.push(begin(&agent, "frozen", &["--network", "none"], COUNT)?);
    run(&agent, &["container", "pause", "frozen"])?;
    let fields = "{{.Id}} {{.Image}} {{.Config.Image}} {{.Config.Labels}} {{.HostConfig.Memory}} {{.Created}} \
                  {{.State.Status}} {{.State.Pid}} {{.State.ExitCode}} {{.State.StartedAt}} {{.State.FinishedAt}} \
                  {{.NetworkSettings.IPAddress}} {{.NetworkSettings.Ports}} {{json .Mounts}}";
    for removed in [true, false] {
        let short = format!("short{removed}");
        let script = format!("until [ -e /gates/{removed} ]; do usleep 10000; done; echo done; exit 9");
        ids.push(begin(&agent, &short, &["-v", &bind], &script)?);
        let pid = inspect(&agent, &short, "{{.State.Pid}}")?;
        let mut told = BTreeMap::new();
        for name in ["before", "never", "counts", "frozen"] {
            told.insert(name, inspect(&agent, name, fields)?);
        }
        agent.kill()?;
        fs::write(gates.join(removed.to_string()), "")?;
        wait_until("the short one ends by itself", Duration::from_secs(20), || !lives(&pid))?;
        lose_database(&agent, removed)?;
        agent.start()?;
        for (name, told) in told {
            let now = inspect(&agent, name, fields)?;
            ensure!(now == told, "{name} was\n{told}\nand is\n{now}\n{}", agent.log());
        }
        ended(&agent, &short, 9)?;
        ensure!(run(&agent, &["container", "logs", &short])? == "done", "the last words of {short} are lost");
        ensure!(run(&agent, &["container", "logs", "before"])? == "kept", "a log is lost");
        ensure!(run(&agent, &["container", "exec", "counts", "echo", "inside"])? == "inside");
        complete(&agent, "counts")?;
        let listed = run(&agent, &["container", "ls", "--all", "--format", "{{.Names}}"])?;
        ensure!(!listed.contains("gone"), "what was removed has come back: {listed}");
    }
    // From here on it is as with all others: also when the agent is killed once more.
    agent.kill()?;
    agent.start()?;
    run(&agent, &["container", "unpause", "frozen"])?;
    run(&agent, &["container", "start", "before"])?;
    ended(&agent, "before", 3)?;
    let names = run(&agent, &["container", "ls", "--all", "--format", "{{.Names}}"])?;
    ensure!(names.lines().count() == 6, "{names}");
    for name in names.lines() {
        run(&agent, &["container", "rm", "--force", name])?;
    }
    run(&agent, &["volume", "rm", "named"])?;
    nothing_left(&mut agent, dir.path(), &ids)
}
