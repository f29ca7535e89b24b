//! Shims with real containers: output, exits, terminals, executions, readers of every speed, and sudden deaths.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.
#![allow(clippy::print_stderr)] // Measured figures, for whoever runs it with --nocapture.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use container_engine::{
    container::LogOptions,
    logs,
    shim::{
        Attach, Event, ExecRequest, ExitStatus, Output, Phase, ProblemCode, Reason, Recovered, RuntimeSpec, Session,
        ShimClient, ShimSpec, SpawnError, Status, recover,
    },
};
use serde_json::{Value, json};
use tests::Bundle;
use tokio::{io::AsyncWriteExt, time::timeout};

const PATIENCE: Duration = Duration::from_secs(60);
const EXE: &str = env!("CARGO_BIN_EXE_verbs");

/// A container with its folders; killed when dropped.
struct Container {
    dir: tempfile::TempDir,
    spec: ShimSpec,
    cgroup: String,
}

impl Container {
    fn new(args: &[&str], change: impl FnOnce(&mut Value)) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let bundle = Bundle::new(&dir.path().join("bundle"), args, change)?;
        let run = dir.path().join("run");
        fs::create_dir_all(&run)?;
        let runtime = std::env::var("EDGE_AGENT_RUNTIME").unwrap_or_else(|_| "embedded".into());
        let spec = ShimSpec {
            id: format!("shim-{}", bundle.cgroup.trim_start_matches('/').replace('/', "-")),
            runtime: RuntimeSpec {
                program: (runtime != "embedded").then(|| PathBuf::from(runtime)),
                root: dir.path().join("oci"),
                no_pivot: false,
            },
            bundle: bundle.path,
            run_dir: run,
            exit_file: dir.path().join("exit.json"),
            log: LogOptions { path: Some(dir.path().join("0.log")), ..LogOptions::default() },
            tty: false,
            stdin: false,
            stdin_once: false,
            terminal_size: None,
            cgroups: Vec::new(),
            start_within_s: 60,
        };
        Ok(Self { dir, spec, cgroup: bundle.cgroup })
    }

    fn sh(script: &str) -> Result<Self> {
        Self::new(&["/bin/sh", "-c", script], |_| {})
    }

    async fn spawn(&self) -> Result<ShimClient> {
        let (client, status) = ShimClient::spawn(EXE.as_ref(), &self.spec).await?;
        assert_eq!(status.phase, Phase::Created);
        Ok(client)
    }

    /// Runs it to its end.
    async fn run(&self) -> Result<Status> {
        let client = self.spawn().await?;
        let (_, mut events) = client.events().await?;
        client.start().await?;
        timeout(PATIENCE, async {
            while !matches!(events.next().await?, Some(Event::Deleted)) {}
            anyhow::Ok(())
        })
        .await??;
        client.shutdown(false).await?.context("the shim has gone")
    }

    fn log(&self) -> Result<Vec<logs::Entry>> {
        let text = fs::read(self.dir.path().join("0.log"))?;
        let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| logs::parse(line).with_context(|| format!("{:?}", String::from_utf8_lossy(line)))).collect()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if let Ok(Recovered::Alive(record)) = recover(&self.spec.run_dir, &self.spec.exit_file) {
            // First the shim: it would otherwise go on in a folder that is gone.
            kill(record.shim_pid);
        }
        if let Ok(Recovered::Lost(lost)) = recover(&self.spec.run_dir, &self.spec.exit_file) {
            let _ = lost.end();
        }
        tests::remove_cgroup(self.cgroup.trim_end_matches("/box"));
    }
}

fn kill(pid: i32) {
    let Some(pid) = rustix::process::Pid::from_raw(pid) else { return };
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL); // It may have gone already.
    let stat = format!("/proc/{}/stat", pid.as_raw_nonzero());
    let alive = || fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z "));
    tests::wait_until("a killed process ends", PATIENCE, || !alive()).unwrap();
}

/// Reads until the container has said so.
async fn until(session: &mut Session, words: &str) -> Result<()> {
    let mut out = Vec::new();
    while !String::from_utf8_lossy(&out).contains(words) {
        match timeout(PATIENCE, session.output.next()).await?? {
            Some(Output::Stdout(bytes) | Output::Stderr(bytes)) => out.extend_from_slice(&bytes),
            end => bail!("{end:?} after {:?}", String::from_utf8_lossy(&out)),
        }
    }
    Ok(())
}

/// Everything a session says.
async fn all(session: &mut Session) -> Result<(Vec<u8>, Vec<u8>, ExitStatus)> {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    loop {
        match timeout(PATIENCE, session.output.next()).await?? {
            Some(Output::Stdout(bytes)) => out.extend_from_slice(&bytes),
            Some(Output::Stderr(bytes)) => err.extend_from_slice(&bytes),
            Some(Output::Exit(exit)) => return Ok((out, err, exit)),
            None => bail!("no exit"),
        }
    }
}

fn exec(id: &str, args: &[&str], tty: bool, stdin: bool) -> ExecRequest {
    ExecRequest { id: id.into(), process: Bundle::process(args, tty), tty, stdin, terminal_size: None }
}

const READ: Attach = Attach { stdin: false, stdout: true, stderr: true, wait: true };

#[tokio::test]
async fn output_and_exit_codes() -> Result<()> {
    for (script, code, signal) in
        [("echo out; echo err >&2; exit 7", 7, None), ("echo out; echo err >&2; kill -9 $$", 137, Some(9))]
    {
        let container = Container::new(&["/bin/sh", "-c", script], |config| {
            // As first process of a pid namespace it could not kill itself.
            config["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "ipc"}, {"type": "uts"}]);
        })?;
        let exit = container.run().await?.exit.context("no exit")?;
        assert_eq!((exit.code, exit.signal, exit.oom_killed, exit.reason), (code, signal, false, Reason::Exited));
        assert!(exit.started_at_ns > 0 && exit.finished_at_ns >= exit.started_at_ns);
        let mut log: Vec<_> = container.log()?.into_iter().map(|it| (it.stream, it.text)).collect();
        log.sort();
        assert_eq!(log, [(logs::Stream::Stdout, b"out".to_vec()), (logs::Stream::Stderr, b"err".to_vec())]);
        // It may take a moment to go after its last word.
        let look = || recover(&container.spec.run_dir, &container.spec.exit_file);
        tests::wait_until("the shim has gone", PATIENCE, || !matches!(look(), Ok(Recovered::Alive(_))))?;
        let Recovered::Exited(found) = look()? else { bail!("no record") };
        assert_eq!(found, exit);
        assert_eq!(tests::cgroup_dirs(&container.cgroup), Vec::<PathBuf>::new());
    }
    Ok(())
}

#[tokio::test]
async fn a_million_lines_are_complete() -> Result<()> {
    let mut container = Container::sh("seq 1 1000000")?;
    container.spec.log.max_bytes = 0;
    let begun = Instant::now();
    let exit = container.run().await?.exit.context("no exit")?;
    eprintln!("a million lines: {:?}", begun.elapsed());
    assert_eq!(exit.code, 0);
    let log = container.log()?;
    assert_eq!(log.len(), 1_000_000);
    for (n, entry) in log.iter().enumerate() {
        assert_eq!(entry.text, (n + 1).to_string().as_bytes());
        assert!(!entry.partial);
    }
    Ok(())
}

#[tokio::test]
async fn a_command_that_is_not_there() -> Result<()> {
    for (args, code) in [(["/nothing"], ProblemCode::CommandNotFound), (["/etc"], ProblemCode::CommandNotExecutable)] {
        let container = Container::new(&args, |_| {})?;
        let told = match ShimClient::spawn(EXE.as_ref(), &container.spec).await {
            Err(SpawnError::Create(problem)) => problem,
            Err(error) => return Err(error.into()),
            // Some runtimes notice at the start.
            Ok((client, _)) => match client.start().await {
                Err(container_engine::shim::ShimError::Refused(problem)) => {
                    client.shutdown(true).await?;
                    problem
                }
                other => bail!("{other:?}"),
            },
        };
        assert_eq!(told.code, code, "{told}");
        assert!(fs::read_dir(container.dir.path().join("oci")).map_or(true, |mut dir| dir.next().is_none()));
    }
    Ok(())
}

#[tokio::test]
async fn a_terminal() -> Result<()> {
    let mut container = Container::new(&["/bin/sh", "-c", "stty size; read line; echo got $line; exit 3"], |config| {
        config["process"]["terminal"] = json!(true);
    })?;
    (container.spec.tty, container.spec.stdin, container.spec.terminal_size) = (true, true, Some((33, 99)));
    let client = container.spawn().await?;
    let mut session = client.attach(Attach { stdin: true, ..READ }).await?;
    client.start().await?;
    session.input.write_all(b"hello\n").await?;
    let (out, err, exit) = all(&mut session).await?;
    let out = String::from_utf8(out)?;
    assert!(out.contains("33 99\r\n") && out.contains("got hello\r\n"), "{out:?}");
    assert_eq!((err.len(), exit.code), (0, 3));
    client.shutdown(false).await?;
    Ok(())
}

#[tokio::test]
async fn standard_input_to_its_end() -> Result<()> {
    let mut container = Container::sh("wc -c")?;
    (container.spec.stdin, container.spec.stdin_once) = (true, true);
    let client = container.spawn().await?;
    let (mut input, output) = client.attach(Attach { stdin: true, ..READ }).await?.split();
    client.start().await?;
    input.write_all(&vec![b'x'; 3 << 20]).await?;
    input.shutdown().await?;
    let (out, _, exit) = all(&mut Session { input, output }).await?;
    assert_eq!((String::from_utf8(out)?.trim(), exit.code), ("3145728", 0));
    client.shutdown(false).await?;
    Ok(())
}

#[tokio::test]
async fn executions() -> Result<()> {
    let container = Container::sh("sleep 1000")?;
    let client = container.spawn().await?;
    client.start().await?;
    let (_, mut events) = client.events().await?;

    let (mut session, _) = client.exec(exec("a", &["sh", "-c", "cat; echo err >&2; exit 5"], false, true)).await?;
    session.input.write_all(b"to and fro").await?;
    session.input.shutdown().await?;
    assert_eq!(
        all(&mut session).await?,
        (b"to and fro".to_vec(), b"err\n".to_vec(), ExitStatus { code: 5, signal: None })
    );

    let sized = "until [ \"$(stty size)\" = '24 80' ]; do sleep 0.1; done; stty size; exit 6";
    let (mut session, _) = client
        .exec(ExecRequest { terminal_size: Some((24, 80)), ..exec("t", &["sh", "-c", sized], true, true) })
        .await?;
    let (out, _, exit) = all(&mut session).await?;
    assert!(String::from_utf8_lossy(&out).contains("24 80"), "{out:?}");
    assert_eq!(exit.code, 6);

    let refused = client.exec(exec("n", &["nothing-of-that-name"], false, false)).await.err().context("it ran")?;
    assert_eq!(refused.code(), Some(ProblemCode::CommandNotFound), "{refused}");

    // Many at once, each with its own output and code.
    let many = (0..16).map(|n| {
        let client = client.clone();
        async move {
            let script = format!("seq 1 5000 | tail -n 1; echo {n}; exit {n}");
            let (mut session, _) = client.exec(exec(&format!("m{n}"), &["sh", "-c", &script], false, false)).await?;
            let (out, _, exit) = all(&mut session).await.context("one of many")?;
            assert_eq!((String::from_utf8(out)?, exit.code), (format!("5000\n{n}\n"), n));
            anyhow::Ok(())
        }
    });
    let mut set = tokio::task::JoinSet::new();
    many.for_each(|one| drop(set.spawn(one)));
    while let Some(one) = set.join_next().await {
        one??;
    }

    let (mut session, _) = client.exec(exec("s", &["sleep", "1000"], false, false)).await?;
    client.signal(Some("s"), 15, false).await?;
    assert_eq!(all(&mut session).await?.2, ExitStatus { code: 143, signal: Some(15) });
    let mut exits = 0;
    while exits < 19 {
        exits += usize::from(matches!(timeout(PATIENCE, events.next()).await??, Some(Event::ExecExited { .. })));
    }
    client.shutdown(true).await?;
    Ok(())
}

#[tokio::test]
async fn readers_of_every_speed() -> Result<()> {
    let container = Container::sh("seq 1 300000")?;
    let client = container.spawn().await?;
    let mut patient = client.attach(READ).await?;
    let mut other = client.attach(READ).await?;
    // It never reads, and is cut; the container and the others go on.
    let slow = client.attach(Attach { wait: false, ..READ }).await?;
    client.start().await?;
    let want: String = (1..=300_000).map(|n| format!("{n}\n")).collect();
    let (one, two) = tokio::join!(all(&mut patient), all(&mut other));
    assert_eq!(String::from_utf8(one?.0)?, want);
    assert_eq!(String::from_utf8(two?.0)?, want);
    let mut slow = slow;
    assert!(all(&mut slow).await.is_err(), "the slow reader was not cut");
    assert_eq!(client.shutdown(false).await?.context("gone")?.exit.context("no exit")?.code, 0);
    Ok(())
}

#[tokio::test]
async fn out_of_memory() -> Result<()> {
    let container = Container::new(&["/bin/sh", "-c", "x=a; while true; do x=$x$x; done"], |config| {
        config["linux"]["resources"]["memory"] = json!({"limit": 16 << 20, "swap": 16 << 20});
    })?;
    let exit = container.run().await?.exit.context("no exit")?;
    assert!(exit.oom_killed, "{exit:?}");
    assert_eq!((exit.code, exit.reason), (137, Reason::OomKilled));
    Ok(())
}

#[tokio::test]
async fn what_outlives_the_first_process_is_killed() -> Result<()> {
    let container = Container::new(&["/bin/sh", "-c", "sleep 1000 & echo done; exit 0"], |config| {
        config["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "ipc"}, {"type": "uts"}]);
    })?;
    // In time, that is: long before the sleep is over.
    assert_eq!(container.run().await?.exit.context("no exit")?.code, 0);
    Ok(())
}

#[tokio::test]
async fn an_agent_that_comes_back_misses_nothing() -> Result<()> {
    let container = Container::sh("until [ -e /tmp/go ]; do sleep 0.1; done; echo more; exit 9")?;
    let client = container.spawn().await?;
    client.start().await?;
    drop(client); // Nothing of the agent's is left.
    let Recovered::Alive(record) = recover(&container.spec.run_dir, &container.spec.exit_file)? else {
        bail!("not alive")
    };
    assert!(record.pid > 0 && record.started_at_ns > 0);
    let (client, status) = ShimClient::connect(&container.spec.run_dir).await?;
    assert_eq!((status.phase, status.pid), (Phase::Running, record.pid));
    let (_, mut events) = client.events().await?;
    fs::write(container.spec.bundle.join("rootfs/tmp/go"), "")?;
    let Some(Event::Exited(exit)) = timeout(PATIENCE, events.next()).await?? else { bail!("no exit") };
    assert_eq!(exit.code, 9);
    assert!(!fs::read(&container.spec.exit_file)?.is_empty());
    while timeout(PATIENCE, events.next()).await??.is_some() {
        client.shutdown(false).await?;
    }
    assert!(client.state().await.unwrap_err().is_gone());
    Ok(())
}

#[tokio::test]
async fn a_shim_that_is_killed() -> Result<()> {
    let container = Container::sh("sleep 1000")?;
    let client = container.spawn().await?;
    client.start().await?;
    let (status, mut events) = client.events().await?;
    kill(status.shim_pid);
    assert!(timeout(PATIENCE, events.next()).await?.is_err());
    let Recovered::Lost(lost) = recover(&container.spec.run_dir, &container.spec.exit_file)? else { bail!("not lost") };
    assert!(lost.container_lives);
    let exit = lost.end()?;
    assert_eq!((exit.code, exit.reason), (137, Reason::ShimLost));
    assert!(
        !std::path::Path::new(&format!("/proc/{}", status.pid)).exists()
            || fs::read_to_string(format!("/proc/{}/stat", status.pid))?.contains(") Z ")
    );
    Ok(())
}

#[tokio::test]
async fn a_container_that_nobody_starts() -> Result<()> {
    let mut container = Container::sh("true")?;
    container.spec.start_within_s = 1;
    let client = container.spawn().await?;
    let deadline = Instant::now() + PATIENCE;
    while client.state().await?.exit.is_none() {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let exit = client.shutdown(false).await?.context("gone")?.exit.context("no exit")?;
    assert_eq!(exit.reason, Reason::NeverStarted);
    Ok(())
}

#[tokio::test]
async fn pause_resume_update_and_signals() -> Result<()> {
    let container = Container::sh("trap 'exit 4' USR1; echo ready; while true; do sleep 0.1; done")?;
    let client = container.spawn().await?;
    let mut session = client.attach(READ).await?;
    client.start().await?;
    until(&mut session, "ready").await?;
    assert_eq!(client.pause().await?.phase, Phase::Paused);
    assert_eq!(client.pause().await.unwrap_err().code(), Some(ProblemCode::Conflict));
    assert_eq!(client.resume().await?.phase, Phase::Running);
    client.update(json!({"memory": {"limit": 64 << 20}})).await?;
    assert_eq!(client.shutdown(false).await.unwrap_err().code(), Some(ProblemCode::Conflict));
    let (_, mut events) = client.events().await?;
    client.signal(None, 10, false).await?;
    let Some(Event::Exited(exit)) = timeout(PATIENCE, events.next()).await?? else { bail!("no exit") };
    assert_eq!(exit.code, 4);
    client.shutdown(false).await?;

    let container = Container::sh("sleep 1000")?;
    let client = container.spawn().await?;
    client.start().await?;
    client.pause().await?;
    let exit = client.shutdown(true).await?.context("gone")?.exit.context("no exit")?;
    assert_eq!(exit.code, 137);
    Ok(())
}

#[tokio::test]
async fn fifty_at_once_and_their_memory() -> Result<()> {
    let containers: Vec<_> = (0..50).map(|_| Container::sh("echo up; sleep 1000")).collect::<Result<_>>()?;
    let begun = Instant::now();
    let mut clients = Vec::new();
    for container in &containers {
        let client = container.spawn().await?;
        client.start().await?;
        clients.push(client);
    }
    eprintln!("50 containers: {:?}", begun.elapsed());
    let mut pids = Vec::new();
    for client in &clients {
        pids.push(client.state().await?.shim_pid);
    }
    // Sooner or later they go back to sleep, for good: one that wakes up by itself would in any two seconds.
    let used = || pids.iter().map(|pid| cpu(*pid)).collect::<Result<Vec<_>>>();
    let deadline = Instant::now() + PATIENCE;
    let mut before = used()?;
    loop {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let after = used()?;
        if after == before {
            break;
        }
        assert!(Instant::now() < deadline, "an idle shim uses CPU");
        before = after;
    }
    let mut private = pids.iter().map(|pid| private_kib(*pid)).collect::<Result<Vec<_>>>()?;
    private.sort_unstable();
    eprintln!("private memory of a shim: median {} KiB, most {} KiB", private[25], private[49]);
    for client in &clients {
        client.shutdown(true).await?;
    }
    Ok(())
}

fn private_kib(pid: i32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let lines = text.lines().filter(|line| line.starts_with("Private_"));
    Ok(lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum())
}

/// Context switches: an idle process has none.
fn cpu(pid: i32) -> Result<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    Ok(text.lines().filter(|line| line.contains("ctxt_switches")).collect())
}
