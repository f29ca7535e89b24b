//! `container`, `image`, `network` and `volume` as Docker users type them, with an agent running and with none.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::Path,
    process::{Output, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::{
    Agent, images, python,
    registry::{Login, Registry, USER},
    wait_until,
};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a command, which must succeed; its output.
#[track_caller]
fn run(agent: &Agent, args: &[&str]) -> Result<String> {
    let output = agent.command(args)?;
    let said = text(&output.stderr);
    ensure!(output.status.success(), "{args:?}: {}\n{said}\n{}", output.status, agent.log());
    Ok(text(&output.stdout).trim_end().to_owned())
}

/// Runs a command, which must end with this code; what it said on standard error.
#[track_caller]
fn fails(agent: &Agent, code: i32, args: &[&str]) -> Result<String> {
    let output = agent.command(args)?;
    ensure!(output.status.code() == Some(code), "{args:?}: {output:?} instead of {code}\n{}", agent.log());
    Ok(text(&output.stderr))
}

fn with_input(agent: &Agent, args: &[&str], input: &[u8]) -> Result<Output> {
    let argv = agent.argv(args)?;
    let mut command = std::process::Command::new(&argv[0]);
    command.args(&argv[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    child.stdin.take().context("no input")?.write_all(input)?;
    Ok(child.wait_with_output()?)
}

/// A person at a terminal: `("expect", …)`, `("type", …)`, `("size", …)`.
fn at_a_terminal(agent: &Agent, args: &[&str], steps: &[(&str, Value)]) -> Result<Value> {
    let env = BTreeMap::from([
        ("ARGV".to_owned(), serde_json::to_string(&agent.argv(args)?)?),
        ("STEPS".to_owned(), serde_json::to_string(steps)?),
    ]);
    Ok(serde_json::from_str(&python(include_str!("containers_cli.py"), &env)?)?)
}

fn load(agent: &Agent, dir: &Path) -> Result<()> {
    let archive = images::archive(&images::busybox(dir)?)?;
    let said = run(agent, &["image", "load", "--input", &archive.display().to_string(), "--name", "busybox"])?;
    ensure!(said == "Loaded image: busybox:latest", "{said}");
    Ok(())
}

/// One engine at a time: two on one machine would share the table of the network's rules.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn started(dir: &Path) -> Result<Agent> {
    let mut agent = Agent::new(dir, "")?;
    agent.start()?;
    load(&agent, dir)?;
    Ok(agent)
}

/// `container run` of something that ends, with no network.
fn run_of<'a>(rest: &[&'a str]) -> Vec<&'a str> {
    [&["container", "run", "--rm", "--network", "none"], rest].concat()
}

fn remove_all(agent: &Agent) -> Result<()> {
    let all = run(agent, &["container", "ls", "-aq"])?;
    let ids: Vec<_> = all.split_whitespace().collect();
    if !ids.is_empty() {
        run(agent, &[&["container", "rm", "--force", "--volumes"][..], &ids].concat())?;
    }
    Ok(())
}

#[test]
fn exit_codes_and_output_of_run() -> Result<()> {
    let _alone = alone();
    let dir = tempfile::tempdir()?;
    let agent = started(dir.path())?;
    let output = agent.command(&run_of(&["busybox", "sh", "-c", "echo out; echo err >&2"]))?;
    ensure!(text(&output.stdout) == "out\n" && text(&output.stderr) == "err\n", "{output:?}");
    fails(&agent, 3, &run_of(&["busybox", "sh", "-c", "exit 3"]))?;
    fails(&agent, 137, &run_of(&["busybox", "sh", "-c", "sh -c 'kill -9 $$'; exit $?"]))?;
    let said = fails(&agent, 127, &run_of(&["busybox", "no-such-command"]))?;
    ensure!(said.contains("no-such-command"), "{said}");
    let said = fails(&agent, 126, &run_of(&["busybox", "/etc/passwd"]))?;
    ensure!(said.contains("/etc/passwd"), "{said}");
    let said = fails(&agent, 125, &run_of(&["--pull", "never", "no-such-image", "true"]))?;
    ensure!(said.contains("no-such-image"), "{said}");
    fails(&agent, 125, &run_of(&["--memory", "lots", "busybox", "true"]))?;
    // Everything behind the image is the command's, and no failed container stays.
    ensure!(run(&agent, &run_of(&["busybox", "echo", "--rm", "-e", "x"]))? == "--rm -e x");
    ensure!(run(&agent, &["container", "ls", "-aq"])?.is_empty());
    let sorted = with_input(&agent, &run_of(&["-i", "busybox", "sort"]), b"b\na\n")?;
    ensure!(text(&sorted.stdout) == "a\nb\n", "{sorted:?}");
    let large = vec![b'x'; 3 << 20];
    let counted = with_input(&agent, &run_of(&["-i", "busybox", "wc", "-c"]), &large)?;
    ensure!(text(&counted.stdout).trim() == large.len().to_string(), "{counted:?}");
    Ok(())
}

#[test]
fn what_run_sets_up() -> Result<()> {
    let _alone = alone();
    let dir = tempfile::tempdir()?;
    let agent = started(dir.path())?;
    let data = dir.path().join("shared");
    fs::create_dir(&data)?;
    fs::write(data.join("file"), "from the host")?;
    fs::write(dir.path().join("env"), "# comment\nA=1\nB=two words\n")?;
    let bind = format!("{}:/data:ro", data.display());
    let file = dir.path().join("env").display().to_string();
    let shown = run(
        &agent,
        &[
            "container",
            "run",
            "--rm",
            "--network",
            "none",
            "-v",
            &bind,
            "--env-file",
            &file,
            "-e",
            "C=3",
            "-w",
            "/tmp",
            "-u",
            "nobody",
            "-h",
            "box",
            "--tmpfs",
            "/scratch:size=1m",
            "--read-only",
            "busybox",
            "sh",
            "-c",
            "cat /data/file; echo; echo $A/$B/$C; pwd; id -un; hostname; touch /data/x 2>&1 || echo read-only",
        ],
    )?;
    let lines: Vec<_> = shown.lines().collect();
    ensure!(lines[..5] == ["from the host", "1/two words/3", "/tmp", "nobody", "box"], "{shown}");
    ensure!(shown.ends_with("read-only"), "{shown}");
    let limited =
        run_of(&["--ulimit", "nofile=100:200", "--ulimit", "core=0", "busybox", "sh", "-c", "ulimit -n; ulimit -c"]);
    ensure!(run(&agent, &limited)? == "100\n0");
    // Of another user's process, which only `CAP_SYS_RESOURCE` may limit from outside.
    let others = ["--ulimit", "nofile=100:200", "-u", "nobody", "busybox", "sh", "-c", "ulimit -n; ulimit -Hn"];
    ensure!(run(&agent, &run_of(&others))? == "100\n200");
    let id_file = dir.path().join("id").display().to_string();
    let id = run(&agent, &["container", "create", "--cidfile", &id_file, "--name", "made", "busybox", "true"])?;
    ensure!(fs::read_to_string(&id_file)? == id && id.len() == 64, "{id}");
    let said = fails(&agent, 1, &["container", "create", "--cidfile", &id_file, "busybox", "true"])?;
    ensure!(said.contains("is there already"), "{said}");
    let said = fails(&agent, 125, &["container", "run", "--name", "made", "busybox", "true"])?;
    ensure!(said.contains("made"), "{said}");
    remove_all(&agent)
}

#[test]
fn a_container_and_everything_that_is_asked_of_it() -> Result<()> {
    let _alone = alone();
    let dir = tempfile::tempdir()?;
    let agent = started(dir.path())?;
    let loop_of = "trap 'exit 9' TERM; echo begun; echo oops >&2; while :; do sleep 0.1; done";
    let id = run(
        &agent,
        &[
            "container",
            "run",
            "-d",
            "--name",
            "web",
            "-l",
            "team=lab",
            "--memory",
            "64m",
            "--pids-limit",
            "50",
            "busybox",
            "sh",
            "-c",
            loop_of,
        ],
    )?;
    ensure!(id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit()), "{id}");
    listed(&agent, &id)?;
    inspected(&agent, &id)?;
    executed(&agent)?;
    logged(&agent)?;
    let stats =
        run(&agent, &["container", "stats", "--no-stream", "--format", "{{.Name}} {{.PIDs}} {{.MemUsage}}", "web"])?;
    ensure!(stats.starts_with("web ") && stats.ends_with("/ 64MiB"), "{stats}");
    ensure!(run(&agent, &["container", "top", "web"])?.contains("begun"));
    run(&agent, &["container", "pause", "web"])?;
    ensure!(run(&agent, &["container", "ls", "--format", "{{.Status}}"])?.ends_with("(Paused)"));
    run(&agent, &["container", "unpause", "web"])?;
    run(&agent, &["container", "update", "--memory", "128m", "--memory-swap", "-1", "web"])?;
    ensure!(run(&agent, &["container", "inspect", "-f", "{{.HostConfig.Memory}}", "web"])? == (128 << 20).to_string());
    copied(&agent, dir.path())?;
    run(&agent, &["container", "rename", "web", "site"])?;
    let said = fails(&agent, 1, &["container", "rm", "site"])?;
    ensure!(said.contains("stop it first"), "{said}");
    ensure!(run(&agent, &["container", "stop", "site"])? == "site");
    ensure!(run(&agent, &["container", "wait", "site"])? == "9");
    let status = run(&agent, &["container", "ls", "-a", "--format", "{{.Names}} {{.Status}}"])?;
    ensure!(status.starts_with("site Exited (9) "), "{status}");
    let events = run(&agent, &["container", "events", "--since", "10m", "--until", "0s", "--format", "{{.Action}}"])?;
    for action in ["create", "start", "pause", "rename", "die"] {
        ensure!(events.lines().any(|line| line == action), "{action} is not in {events}");
    }
    ensure!(run(&agent, &["container", "rm", "site"])? == "site");
    let said = fails(&agent, 1, &["container", "inspect", "site"])?;
    ensure!(said.contains("site"), "{said}");
    run(&agent, &["container", "rm", "--force", "site"])?;
    Ok(())
}

fn listed(agent: &Agent, id: &str) -> Result<()> {
    let table = run(agent, &["container", "ls"])?;
    let (head, row) = table.split_once('\n').context("no row")?;
    ensure!(head.split_whitespace().eq("CONTAINER ID IMAGE COMMAND CREATED STATUS PORTS NAMES".split(' ')), "{head}");
    ensure!(row.starts_with(&id[..12]) && row.ends_with("web") && row.contains(" Up "), "{row}");
    for (args, want) in [
        (&["-q"][..], &id[..12]),
        (&["-q", "--no-trunc"], id),
        (&["--format", "{{.ID}} {{.Names}}"], &format!("{} web", &id[..12])),
        (&["--format", "{{.State}}/{{.Label \"team\"}}"], "running/lab"),
        (&["--format", "{{json .Names}}"], "\"web\""),
        (&["-q", "--filter", "name=^web$"], &id[..12]),
        (&["-q", "--filter", "name=^eb"], ""),
        (&["-q", "--filter", "label=team=lab", "--filter", "status=running"], &id[..12]),
        (&["-q", "--filter", "ancestor=busybox"], &id[..12]),
        (&["-q", "--filter", "status=exited"], ""),
    ] {
        let all = [&["container", "ls"], args].concat();
        let got = run(agent, &all)?;
        ensure!(got == want, "{args:?}: {got}");
    }
    let line: Value = serde_json::from_str(&run(agent, &["container", "ls", "--json"])?)?;
    ensure!(line["id"] == id && line["state"]["status"] == "running", "{line}");
    let said = fails(agent, 1, &["container", "ls", "--format", "{{.Nmaes}}"])?;
    ensure!(said.contains(".Names"), "{said}");
    let said = fails(agent, 1, &["container", "ls", "--filter", "colour=red"])?;
    ensure!(said.contains("label"), "{said}");
    Ok(())
}

fn inspected(agent: &Agent, id: &str) -> Result<()> {
    let all: Value = serde_json::from_str(&run(agent, &["container", "inspect", "web"])?)?;
    ensure!(all[0]["Id"] == id && all[0]["Name"] == "/web" && all[0]["State"]["Running"] == true, "{all}");
    let pid = run(agent, &["container", "inspect", "--format", "{{.State.Pid}}", "web"])?;
    ensure!(Path::new("/proc").join(&pid).exists(), "{pid}");
    let address = run(agent, &["container", "inspect", "-f", "{{.NetworkSettings.IPAddress}}", &id[..8]])?;
    ensure!(address.parse::<std::net::Ipv4Addr>().is_ok(), "{address}");
    let range = "{{range $k, $v := .Config.Labels}}{{$k}}={{$v}} {{end}}{{.HostConfig.Memory}}";
    ensure!(run(agent, &["container", "inspect", "-f", range, "web"])? == format!("team=lab {}", 64 << 20));
    Ok(())
}

fn executed(agent: &Agent) -> Result<()> {
    let exec = |rest: &[&str]| agent.command(&[&["container", "exec"], rest].concat());
    let shown = exec(&["-e", "A=1", "-w", "/tmp", "-u", "nobody", "web", "sh", "-c", "echo $A $(pwd) $(id -un)"])?;
    ensure!(text(&shown.stdout) == "1 /tmp nobody\n", "{shown:?}");
    for (command, want) in [(&["sh", "-c", "exit 5"][..], 5), (&["nothing"], 127), (&["/etc/passwd"], 126)] {
        let ended = exec(&[&["web"], command].concat())?;
        ensure!(ended.status.code() == Some(want), "{command:?}: {ended:?}");
    }
    let ended = exec(&["nobody-there", "true"])?;
    ensure!(ended.status.code() == Some(125), "{ended:?}");
    let piped = with_input(agent, &["container", "exec", "-i", "web", "cat"], b"through")?;
    ensure!(text(&piped.stdout) == "through", "{piped:?}");
    run(agent, &["container", "exec", "-d", "web", "touch", "/tmp/detached"])?;
    wait_until("the command in the background has run", Duration::from_secs(10), || {
        agent.command(&["container", "exec", "web", "test", "-e", "/tmp/detached"]).is_ok_and(|it| it.status.success())
    })
}

fn logged(agent: &Agent) -> Result<()> {
    let output = agent.command(&["container", "logs", "web"])?;
    ensure!(text(&output.stdout) == "begun\n" && text(&output.stderr) == "oops\n", "{output:?}");
    let output = agent.command(&["container", "logs", "--tail", "0", "web"])?;
    ensure!(output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
    let stamped = run(agent, &["container", "logs", "-t", "web"])?;
    let (time, rest) = stamped.split_once(' ').context("no time")?;
    ensure!(time.ends_with('Z') && time.contains('T') && rest == "begun", "{stamped}");
    ensure!(run(agent, &["container", "logs", "--since", "1h", "web"])? == "begun");
    ensure!(run(agent, &["container", "logs", "--until", "1h", "web"])?.is_empty());
    Ok(())
}

fn copied(agent: &Agent, dir: &Path) -> Result<()> {
    let inward = dir.join("inward");
    fs::create_dir_all(inward.join("sub"))?;
    fs::write(inward.join("sub/file"), "into the container")?;
    let (from, out) = (inward.display().to_string(), dir.join("out").display().to_string());
    run(agent, &["container", "cp", &from, "web:/tmp"])?;
    ensure!(run(agent, &["container", "exec", "web", "cat", "/tmp/inward/sub/file"])? == "into the container");
    run(agent, &["container", "cp", &format!("{from}/sub/file"), "web:/tmp/renamed"])?;
    ensure!(run(agent, &["container", "exec", "web", "cat", "/tmp/renamed"])? == "into the container");
    run(agent, &["container", "cp", "web:/tmp/inward", &out])?;
    ensure!(fs::read_to_string(dir.join("out/sub/file"))? == "into the container");
    let archive = agent.command(&["container", "cp", "web:/etc/passwd", "-"])?;
    ensure!(archive.status.success() && archive.stdout.starts_with(b"passwd"), "{archive:?}");
    let said = fails(agent, 1, &["container", "cp", "web:/nothing", &out])?;
    ensure!(said.contains("/nothing"), "{said}");
    Ok(())
}

#[test]
fn ports_networks_and_volumes() -> Result<()> {
    let _alone = alone();
    let dir = tempfile::tempdir()?;
    let agent = started(dir.path())?;
    run(&agent, &["network", "create", "--subnet", "10.213.7.0/24", "--label", "a=b", "lab"])?;
    ensure!(run(&agent, &["network", "ls", "--format", "{{.Name}}", "--filter", "label=a"])? == "lab");
    run(&agent, &["volume", "create", "data"])?;
    let port = tests::free_port()?;
    let publish = format!("127.0.0.1:{port}:80");
    let serve = "echo served > /data/index.html; exec httpd -f -p 80 -h /data";
    let web = ["container", "run", "-d", "--name", "web", "--network", "lab", "-p", &publish, "-v", "data:/data"];
    run(&agent, &[&web[..], &["busybox", "sh", "-c", serve]].concat())?;
    let ports = run(&agent, &["container", "port", "web"])?;
    ensure!(ports == format!("80/tcp -> 127.0.0.1:{port}"), "{ports}");
    ensure!(run(&agent, &["container", "ls", "--format", "{{.Ports}}"])? == format!("127.0.0.1:{port}->80/tcp"));
    wait_until("the page is served", Duration::from_secs(20), || {
        let url = format!("http://127.0.0.1:{port}/");
        let got = std::process::Command::new("curl").args(["-s", "--max-time", "2", &url]).output();
        got.is_ok_and(|got| text(&got.stdout) == "served\n")
    })
    .with_context(|| agent.log())?;
    let got = run(&agent, &["container", "run", "--rm", "--network", "lab", "busybox", "wget", "-qO-", "http://web/"])?;
    ensure!(got == "served", "{got}");
    let said = fails(&agent, 1, &["network", "rm", "lab"])?;
    ensure!(said.contains("web"), "{said}");
    let said = fails(&agent, 1, &["volume", "rm", "data"])?;
    ensure!(said.contains("web"), "{said}");
    run(&agent, &["container", "rm", "-f", "web"])?;
    run(&agent, &["network", "rm", "lab"])?;
    let again = run(
        &agent,
        &["container", "run", "--rm", "--network", "none", "-v", "data:/d", "busybox", "cat", "/d/index.html"],
    )?;
    ensure!(again == "served", "{again}");
    run(&agent, &["volume", "prune", "--all", "--force"])?;
    ensure!(run(&agent, &["volume", "ls", "-q"])?.is_empty());
    Ok(())
}

#[test]
fn at_a_terminal_with_its_size_and_the_keys_that_leave() -> Result<()> {
    let _alone = alone();
    let dir = tempfile::tempdir()?;
    let agent = started(dir.path())?;
    let args = ["container", "run", "--rm", "-it", "--network", "none", "busybox", "sh"];
    let seen = at_a_terminal(
        &agent,
        &args,
        &[
            ("expect", json!("# ")),
            ("type", json!("stty size\n")),
            ("expect", json!("33 101")),
            ("size", json!([40, 120])),
            ("type", json!("sleep 1; stty size\n")),
            ("expect", json!("40 120")),
            ("type", json!("exit 7\n")),
        ],
    )?;
    ensure!(seen == json!({ "code": 7, "raw": true, "restored": true }), "{seen}");
    let args = ["container", "run", "--name", "shell", "-it", "--network", "none", "busybox", "sh"];
    let seen = at_a_terminal(&agent, &args, &[("expect", json!("# ")), ("type", json!("\u{10}\u{11}"))])?;
    ensure!(seen["code"] == 0 && seen["restored"] == true, "{seen}");
    ensure!(run(&agent, &["container", "ls", "--format", "{{.Names}}"])? == "shell");
    let args = ["container", "exec", "-it", "shell", "sh"];
    let seen = at_a_terminal(
        &agent,
        &args,
        &[
            ("expect", json!("# ")),
            ("type", json!("tty\n")),
            ("expect", json!("/dev/pts/")),
            ("type", json!("exit 4\n")),
        ],
    )?;
    ensure!(seen == json!({ "code": 4, "raw": true, "restored": true }), "{seen}");
    let seen = at_a_terminal(
        &agent,
        &["container", "attach", "shell"],
        &[("type", json!("echo a$((1+1))b\n")), ("expect", json!("a2b")), ("type", json!("exit 6\n"))],
    )?;
    ensure!(seen["code"] == 6, "{seen}");
    let said = fails(&agent, 125, &["container", "run", "--rm", "-it", "busybox", "sh"])?;
    ensure!(said.contains("not a TTY"), "{said}");
    remove_all(&agent)
}

#[test]
fn signals_reach_the_container() -> Result<()> {
    let _alone = alone();
    let dir = tempfile::tempdir()?;
    let agent = started(dir.path())?;
    let script = "trap 'exit 33' TERM; echo ready; while :; do sleep 0.1; done";
    let argv = agent.argv(&["container", "run", "--rm", "--network", "none", "busybox", "sh", "-c", script])?;
    let mut command = std::process::Command::new(&argv[0]);
    let mut child = command.args(&argv[1..]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    let output = child.stdout.as_mut().context("no output")?;
    std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line)?;
    ensure!(line == "ready\n", "{line}");
    std::process::Command::new("kill").args(["-TERM", &child.id().to_string()]).status()?;
    let status = child.wait()?;
    ensure!(status.code() == Some(33), "{status}");
    ensure!(run(&agent, &["container", "ls", "-aq"])?.is_empty());
    Ok(())
}

#[test]
fn with_no_agent_running() -> Result<()> {
    let _alone = alone();
    let dir = tempfile::tempdir()?;
    let mut agent = Agent::new(dir.path(), "")?;
    load(&agent, dir.path())?;
    ensure!(run(&agent, &["image", "ls", "--format", "{{.Repository}}:{{.Tag}}"])? == "busybox:latest");
    let shown = run(&agent, &["container", "run", "--rm", "--network", "none", "busybox", "echo", "alone"])?;
    ensure!(shown == "alone", "{shown}");
    fails(&agent, 3, &["container", "run", "--rm", "--network", "none", "busybox", "sh", "-c", "exit 3"])?;
    // A container outlives the command that started it, and every command finds it again, the agent too.
    let script = "echo here; while :; do sleep 0.1; done";
    let args = ["container", "run", "-d", "--name", "kept", "--network", "none", "busybox", "sh", "-c", script];
    let id = run(&agent, &args)?;
    ensure!(run(&agent, &["container", "ls", "-q", "--no-trunc"])? == id);
    ensure!(run(&agent, &["container", "exec", "kept", "echo", "inside"])? == "inside");
    ensure!(run(&agent, &["container", "logs", "kept"])? == "here");
    let pid = run(&agent, &["container", "inspect", "-f", "{{.State.Pid}}", "kept"])?;
    agent.start()?;
    ensure!(run(&agent, &["container", "inspect", "-f", "{{.State.Pid}}", "kept"])? == pid);
    agent.stop(Duration::from_secs(20))?;
    ensure!(run(&agent, &["container", "stop", "-t", "1", "kept"])? == "kept");
    run(&agent, &["container", "rm", "kept"])?;
    ensure!(run(&agent, &["container", "ls", "-aq"])?.is_empty());
    Ok(())
}

#[test]
fn pull_push_and_login() -> Result<()> {
    let _alone = alone();
    let dir = tempfile::tempdir()?;
    let registry = Registry::start_with(&dir.path().join("registry"), Login::Basic, None)?;
    let config = dir.path().join("docker");
    let more = format!("[engine]\ninsecure = [\"{}\"]\n", registry.address);
    let mut agent = Agent::new(dir.path(), &more)?.env("DOCKER_CONFIG", &config.display().to_string());
    agent.start()?;
    load(&agent, dir.path())?;
    let name = format!("{}/team/busybox:1", registry.address);
    run(&agent, &["image", "tag", "busybox", &name])?;
    let said = fails(&agent, 1, &["image", "push", &name])?;
    ensure!(said.contains(&registry.address) && said.contains("login"), "{said}");
    let login = |password: &str| -> Result<Output> {
        let argv = agent.argv(&["image", "login", "-u", USER.0, "--password-stdin", &registry.address])?;
        let mut command = std::process::Command::new(&argv[0]);
        command.args(&argv[1..]).env("DOCKER_CONFIG", &config);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        child.stdin.take().context("no input")?.write_all(password.as_bytes())?;
        Ok(child.wait_with_output()?)
    };
    let refused = login("wrong pass")?;
    ensure!(refused.status.code() == Some(1) && !text(&refused.stderr).contains("wrong pass"), "{refused:?}");
    ensure!(!config.join("config.json").exists(), "a login that was refused was kept");
    let accepted = login(USER.1)?;
    ensure!(text(&accepted.stdout) == "Login Succeeded\n", "{accepted:?}");
    let pushed = run(&agent, &["image", "push", &name])?;
    ensure!(pushed.starts_with("The push refers to repository [") && pushed.contains("1: digest: sha256:"), "{pushed}");
    run(&agent, &["image", "rm", &name, "busybox"])?;
    ensure!(run(&agent, &["image", "ls", "-q"])?.is_empty());
    let pulled = run(&agent, &["image", "pull", &name])?;
    let tail: Vec<_> = pulled.lines().rev().take(3).collect();
    ensure!(tail[0] == name && tail[1].starts_with("Status: Downloaded newer image for "), "{pulled}");
    ensure!(tail[2].starts_with("Digest: sha256:") && pulled.contains(": Complete"), "{pulled}");
    let again = run(&agent, &["image", "pull", &name])?;
    ensure!(again.contains("Status: Image is up to date for "), "{again}");
    ensure!(run(&agent, &["image", "pull", "--quiet", &name])? == name);
    let digest = run(&agent, &["image", "inspect", "-f", "{{index .RepoDigests 0}}", &name])?;
    ensure!(digest.starts_with(&format!("{}/team/busybox@sha256:", registry.address)), "{digest}");
    run(&agent, &["image", "rm", &name])?;
    // What run says while it pulls is not the container's output.
    let output = agent.command(&["container", "run", "--rm", "--network", "none", &name, "echo", "pulled"])?;
    ensure!(text(&output.stdout) == "pulled\n" && text(&output.stderr).contains("Digest: "), "{output:?}");
    let said = fails(&agent, 1, &["image", "pull", &format!("{}/team/nothing:1", registry.address)])?;
    ensure!(said.contains("team/nothing"), "{said}");
    run(&agent, &["image", "logout", &registry.address])?;
    let said = fails(&agent, 1, &["image", "push", &name])?;
    ensure!(!said.contains(USER.1), "{said}");
    ensure!(!agent.whole_log().contains(USER.1), "the password is in the log");
    Ok(())
}

#[test]
fn images_are_saved_and_loaded() -> Result<()> {
    let _alone = alone();
    let dir = tempfile::tempdir()?;
    let agent = started(dir.path())?;
    let id = run(&agent, &["image", "inspect", "-f", "{{.Id}}", "busybox"])?;
    run(&agent, &["image", "tag", "busybox", "other/name:2"])?;
    let table = run(&agent, &["image", "ls"])?;
    let head = table.lines().next().context("no heading")?;
    ensure!(head.split_whitespace().eq("REPOSITORY TAG IMAGE ID CREATED SIZE".split(' ')), "{head}");
    ensure!(run(&agent, &["image", "ls", "-q"])? == id["sha256:".len()..][..12]);
    ensure!(run(&agent, &["image", "ls", "--format", "{{.Tag}}", "other/name"])? == "2");
    let file = dir.path().join("saved.tar").display().to_string();
    run(&agent, &["image", "save", "-o", &file, "busybox", "other/name:2"])?;
    let piped = agent.command(&["image", "save", "busybox"])?;
    ensure!(piped.status.success() && piped.stdout.len() > 100_000, "{}", piped.stdout.len());
    let said = fails(&agent, 1, &["image", "save", "-o", &file, "missing"])?;
    ensure!(said.contains("missing") && Path::new(&file).exists(), "{said}");
    run(&agent, &["image", "rm", "busybox", "other/name:2"])?;
    let loaded = run(&agent, &["image", "load", "-i", &file])?;
    ensure!(loaded.contains("Loaded image: busybox:latest") && loaded.contains("other/name:2"), "{loaded}");
    ensure!(run(&agent, &["image", "inspect", "-f", "{{.Id}}", "other/name:2"])? == id);
    run(&agent, &["image", "rm", "busybox", "other/name:2"])?;
    let loaded = with_input(&agent, &["image", "load"], &piped.stdout)?;
    ensure!(text(&loaded.stdout) == "Loaded image: busybox:latest\n", "{loaded:?}");
    let cut = with_input(&agent, &["image", "load"], &piped.stdout[..50_000])?;
    ensure!(cut.status.code() == Some(1), "{cut:?}");
    let said = fails(&agent, 1, &["image", "rm", "nothing-there"])?;
    ensure!(said.contains("nothing-there"), "{said}");
    run(&agent, &["container", "create", "--name", "user", "busybox", "true"])?;
    let said = fails(&agent, 1, &["image", "rm", "busybox"])?;
    ensure!(said.contains("user"), "{said}");
    run(&agent, &["container", "rm", "user"])?;
    run(&agent, &["image", "prune", "--all", "--force"])?;
    ensure!(run(&agent, &["image", "ls", "-q"])?.is_empty());
    Ok(())
}

#[test]
fn commits_events_and_figures() -> Result<()> {
    let _alone = alone();
    let dir = tempfile::tempdir()?;
    let agent = started(dir.path())?;
    let made = ["container", "run", "--name", "maker", "--network", "none", "busybox", "sh", "-c", "echo made > /file"];
    run(&agent, &made)?;
    let id = run(
        &agent,
        &["container", "commit", "-a", "ann", "-m", "a file", "-c", "CMD [\"cat\", \"/file\"]", "maker", "made:1"],
    )?;
    ensure!(id.starts_with("sha256:") && run(&agent, &run_of(&["made:1"]))? == "made", "{id}");
    ensure!(run(&agent, &["image", "ls", "--format", "{{.Repository}}:{{.Tag}}"])?.lines().any(|it| it == "made:1"));
    let said = fails(&agent, 1, &["container", "commit", "-c", "RUN make", "maker"])?;
    ensure!(said.contains("RUN make"), "{said}");
    run(&agent, &["image", "tag", "made:1", "made:2"])?;
    run(&agent, &["image", "rm", "made:2"])?;
    run(&agent, &["volume", "create", "data"])?;
    run(&agent, &["volume", "rm", "data"])?;
    run(&agent, &["network", "create", "lab"])?;
    run(&agent, &["network", "rm", "lab"])?;
    let events = |filter: &[&str]| {
        let format =
            ["--since", "10m", "--until", "0s", "--format", "{{.Type}} {{.Action}} {{.Actor.Attributes.name}}"];
        run(&agent, &[&["container", "events"], &format[..], filter].concat())
    };
    let images = events(&["--filter", "type=image"])?;
    let want = "image load busybox:latest\nimage tag made:2\nimage untag made:2";
    ensure!(images == want, "{images}");
    ensure!(events(&["--filter", "volume=data"])? == "volume create data\nvolume destroy data");
    ensure!(events(&["--filter", "network=lab"])? == "network create lab\nnetwork destroy lab");
    ensure!(events(&["--filter", "event=commit"])? == "container commit maker");
    ensure!(events(&["--filter", "event=create", "--filter", "type=volume"])? == "volume create data");
    let line = run(&agent, &["container", "events", "--since", "10m", "--until", "0s", "-f", "event=tag", "--json"])?;
    let line: Value = serde_json::from_str(&line)?;
    ensure!(line["kind"] == "image" && line["action"] == "tagged" && line["id"] == id, "{line}");
    let url = format!("http://127.0.0.1:{}/metrics", agent.http);
    let figures = std::process::Command::new("curl").args(["-s", &url]).output()?;
    let figures = text(&figures.stdout);
    let stored = figures.lines().find_map(|line| line.strip_prefix("edge_agent_image_store_bytes "));
    ensure!(stored.and_then(|it| it.parse::<u64>().ok()).is_some_and(|bytes| bytes > 500_000), "{figures}");
    ensure!(figures.contains("edge_agent_image_pulls_total{result=\"failed\"} 0"), "{figures}");
    remove_all(&agent)
}
