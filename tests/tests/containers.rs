//! The life of containers, in an engine in this process. `EDGE_AGENT_RUNTIME` chooses the runtime; needs root.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use container_engine::{
    container::*,
    event::{Filter, Next},
    logs::ReadOptions,
    shim::Output,
};
use tests::engine::{BOTH, Bench, PATIENCE, is_mounted, output, read_only, run};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test(flavor = "multi_thread")]
async fn a_container_runs_from_its_creation_to_its_removal() -> Result<()> {
    let bench = Bench::new().await?;
    let containers = bench.engine.containers();
    let mut events = bench.engine.events().subscribe(Filter::default(), None);
    let spec = ContainerSpec {
        name: Some("web".into()),
        hostname: Some("box".into()),
        env: vec!["GREETING=hello".into()],
        labels: [("tier".to_owned(), "front".to_owned())].into(),
        ..Bench::shell("echo $GREETING from $(hostname) $HOME $(pwd); echo oops >&2; exit 7")
    };
    let (id, out, err, code) = run(&bench, spec.clone()).await?;
    ensure!((out.as_str(), err.as_str(), code) == ("hello from box /root /\n", "oops\n", 7), "{out:?} {err:?} {code}");

    let inspect = containers.inspect(&id)?;
    ensure!(inspect.state.status == Status::Exited && inspect.state.exit_code == Some(7), "{:?}", inspect.state);
    ensure!(inspect.state.started_ns < inspect.state.finished_ns && inspect.state.starts == 1);
    // The name is taken as long as it is there.
    let taken = containers.create(spec).await.err().context("the name was given twice")?;
    ensure!(taken.code() == "conflict" && taken.to_string().contains(id.short()), "{taken}");
    // And again, from the same writable part.
    containers.start(&id).await?;
    ensure!(containers.wait(&id, WaitFor::NotRunning).await?.code == 7);
    ensure!(containers.inspect(&id)?.state.starts == 2);
    containers.remove(&id, RemoveOptions::default()).await?;
    ensure!(containers.inspect(&id).is_err());
    ensure!(!bench.dir().join("run/containers").join(id.as_str()).exists(), "its run directory stays");
    ensure!(!bench.dir().join("data/containers").join(id.as_str()).exists(), "its folder stays");
    let mut seen = Vec::new();
    while let Some(Next::Event(event)) = events.try_next() {
        seen.push(event.action.name());
    }
    let want = ["created", "attached", "started", "exited", "started", "exited", "removed"];
    ensure!(seen == want, "{seen:?}");
    bench.clear().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_run_is_told_as_docker_tells_it() -> Result<()> {
    let bench = Bench::new().await?;
    let containers = bench.engine.containers();
    for (command, code) in [("/no/such", 127), ("nonesuch", 127), ("/etc/not-executable", 126), ("/etc", 126)] {
        let spec = ContainerSpec { command: Some(vec![command.into()]), ..Bench::shell("") };
        let id = containers.create(spec).await?.id;
        let error = containers.start(&id).await.err().with_context(|| format!("{command} ran"))?;
        ensure!(error.exit_code() == code, "{command}: {} for {error}", error.exit_code());
        let state = containers.inspect(&id)?.state;
        ensure!(state.status == Status::Created && state.error.is_some() && state.exit_code == Some(code), "{state:?}");
        ensure!(!bench.dir().join("run/containers").join(id.as_str()).exists(), "{command} leaves its run directory");
        containers.remove(&id, RemoveOptions::default()).await?;
    }
    let user = ContainerSpec { user: Some("nobody-here".into()), ..Bench::shell("true") };
    let id = containers.create(user).await?.id;
    let error = containers.start(&id).await.err().context("an unknown user ran")?;
    ensure!(error.to_string().contains("nobody-here") && error.exit_code() == 125, "{error}");
    let absent = containers.create(ContainerSpec { image: "absent".into(), ..Bench::shell("") }).await;
    ensure!(absent.err().is_some_and(|error| error.code() == "not_found"));
    bench.clear().await
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_grace_and_pausing() -> Result<()> {
    let bench = Bench::new().await?;
    let containers = bench.engine.containers();
    let trap = "trap 'exit 3' TERM; trap 'echo usr' USR1; echo ready; while :; do sleep 0.05; done";
    let id = containers.create(Bench::shell(trap)).await?.id;
    let attaching = containers.attach(&id, BOTH).await?;
    let started = containers.start(&id).await?;
    ensure!(containers.start(&id).await? == started, "a second start is the first one");
    let (_input, mut output) = attaching.session().await?.split();
    ensure!(matches!(output.next().await?, Some(Output::Stdout(bytes)) if bytes.as_ref() == b"ready\n"));
    containers.kill(&id, "USR1").await?;
    ensure!(matches!(output.next().await?, Some(Output::Stdout(bytes)) if bytes.as_ref() == b"usr\n"));
    containers.pause(&id).await?;
    ensure!(containers.inspect(&id)?.state.status == Status::Paused);
    ensure!(containers.pause(&id).await.is_err() && containers.exec_create(&id, ExecSpec::default()).is_err());
    containers.unpause(&id).await?;
    let refused =
        containers.remove(&id, RemoveOptions::default()).await.err().context("it was removed while running")?;
    ensure!(refused.code() == "conflict", "{refused}");
    let exit = containers.stop(&id, None, None).await?.context("no end")?;
    ensure!(exit.code == 3, "{exit:?}");
    ensure!(containers.stop(&id, None, None).await?.is_some_and(|again| again.code == 3), "stopping twice is no error");

    // One that does not listen.
    let deaf = containers.create(Bench::shell("trap '' TERM; echo deaf; while :; do sleep 0.05; done")).await?.id;
    let attaching = containers.attach(&deaf, BOTH).await?;
    containers.start(&deaf).await?;
    let (_input, mut output) = attaching.session().await?.split();
    ensure!(matches!(output.next().await?, Some(Output::Stdout(bytes)) if bytes.as_ref() == b"deaf\n"));
    let begun = Instant::now();
    let exit = containers.stop(&deaf, None, Some(Duration::from_millis(500))).await?.context("no end")?;
    ensure!(exit.code == 137 && begun.elapsed() > Duration::from_millis(450), "{exit:?}");
    // A paused one ends too.
    containers.start(&deaf).await?;
    containers.pause(&deaf).await?;
    let exit = containers.stop(&deaf, None, Some(Duration::ZERO)).await?.context("no end")?;
    ensure!(exit.code == 137, "{exit:?}");
    // By force, while it runs; who waits for that is told.
    containers.start(&deaf).await?;
    let mut waiting = std::pin::pin!(containers.wait(&deaf, WaitFor::Removed));
    ensure!(tokio::time::timeout(Duration::ZERO, &mut waiting).await.is_err(), "it was waited for, and is there");
    containers.remove(&deaf, RemoveOptions { force: true, volumes: false }).await?;
    let end = waiting.await?;
    ensure!(end.code == 137, "{end:?}");
    bench.clear().await
}

#[tokio::test(flavor = "multi_thread")]
async fn executions_and_their_streams() -> Result<()> {
    let bench = Bench::new().await?;
    let containers = bench.engine.containers();
    let spec = ContainerSpec { env: vec!["FROM=container".into()], ..Bench::shell("exec sleep 100") };
    let id = containers.create(spec).await?.id;
    containers.start(&id).await?;
    let words =
        |script: &str| ExecSpec { command: vec!["sh".into(), "-c".into(), script.into()], ..ExecSpec::default() };
    let (exec, session) = containers.exec(&id, words("echo $FROM; echo e >&2; exit 5")).await?;
    ensure!(output(session).await? == ("container\n".into(), "e\n".into(), 5));
    tests::wait_until("the execution to be over", PATIENCE, || {
        containers.exec_inspect(&exec).is_ok_and(|info| info.exit_code == Some(5) && !info.running)
    })?;
    ensure!(containers.exec_start(&exec, None).await.is_err(), "it ran twice");
    let as_user = ExecSpec {
        user: Some("app".into()),
        working_dir: Some("/tmp".into()),
        ..words("id -u; id -G; pwd; echo $HOME")
    };
    let (out, _, _) = output(containers.exec(&id, as_user).await?.1).await?;
    ensure!(out == "1000\n1000 10\n/tmp\n/home/app\n", "{out:?}");
    // Standard input to its end.
    let (_, session) = containers.exec(&id, ExecSpec { stdin: true, ..words("cat; echo done") }).await?;
    let (mut input, mut from) = session.split();
    input.write_all(b"through\n").await?;
    input.shutdown().await?;
    let mut text = Vec::new();
    while let Some(piece) = from.next().await? {
        if let Output::Stdout(bytes) = piece {
            text.extend_from_slice(&bytes);
        }
    }
    ensure!(text == b"through\ndone\n", "{:?}", String::from_utf8_lossy(&text));
    // A terminal of its own size.
    let info = containers.exec_create(&id, ExecSpec { tty: true, ..words("stty size; tty") })?;
    let session = containers.exec_start(&info.id, Some(TtySize { rows: 33, columns: 77 })).await?;
    let (out, _, code) = output(session).await?;
    ensure!(out.contains("33 77") && out.contains("/dev/pts/") && code == 0, "{out:?}");
    let missing = containers.exec(&id, ExecSpec { command: vec!["nonesuch".into()], ..ExecSpec::default() }).await;
    let error = missing.err().context("a missing command ran")?;
    ensure!(error.exit_code() == 127, "{error}");
    let top = containers.top(&id).await?;
    ensure!(top.len() == 1 && top[0].command == ["sleep", "100"], "{top:?}");
    bench.clear().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_defaults_are_dockers() -> Result<()> {
    let bench = Bench::new().await?;
    let script = "grep Cap.*f /proc/self/status | tr -d '\\t'; grep Seccomp: /proc/self/status | tr -d '\\t'; \
        cat /proc/1/cmdline | tr '\\0' ' '; echo; wc -c < /proc/kcore; touch /proc/sys/kernel/x 2>&1 | grep -c -i 'read-only'; \
        mount | grep -c 'on /sys type sysfs (ro'; ls /dev | tr '\\n' ' '";
    let (_, out, err, _) = run(&bench, Bench::shell(script)).await?;
    let want = "00000000a80425fb";
    ensure!(out.contains(&format!("CapEff:{want}")), "{out} {err}");
    ensure!(out.contains("Seccomp:2"), "{out}");
    for line in ["\n0\n", "null", "zero", "urandom", "ptmx", "shm", "mqueue"] {
        ensure!(out.contains(line), "{line:?} is missing: {out} {err}");
    }
    let user = ContainerSpec {
        user: Some("app".into()),
        ..Bench::shell("id; grep CapEff /proc/self/status; grep CapBnd /proc/self/status")
    };
    let (_, out, ..) = run(&bench, user).await?;
    ensure!(out.contains("uid=1000(app) gid=1000(app)") && out.contains("10(wheel)"), "{out}");
    ensure!(out.contains("0000000000000000") && out.contains(want), "{out}");
    let security = Security {
        read_only_rootfs: true,
        cap_drop: vec!["ALL".into()],
        no_new_privileges: true,
        ..Security::default()
    };
    let script = "touch /x 2>&1; grep -E 'CapBnd|NoNewPrivs' /proc/self/status | tr -d '\\t'; ulimit -n";
    let limited = ContainerSpec {
        security,
        rlimits: vec![Rlimit { name: "nofile".into(), soft: 99, hard: 100 }],
        ..Bench::shell(script)
    };
    let (_, out, ..) = run(&bench, limited).await?;
    for text in ["Read-only", "CapBnd:0000000000000000", "NoNewPrivs:1", "\n99\n"] {
        ensure!(out.contains(text), "{text:?} is missing: {out}");
    }
    let privileged = Security { privileged: true, ..Security::default() };
    let (_, out, ..) = run(
        &bench,
        ContainerSpec {
            security: privileged,
            ..Bench::shell("grep Seccomp: /proc/self/status; mount | grep 'on /sys '")
        },
    )
    .await?;
    ensure!(out.contains('0') && out.contains("(rw"), "{out}");
    bench.clear().await
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts_volumes_and_files_in_and_out() -> Result<()> {
    let bench = Bench::new().await?;
    let containers = bench.engine.containers();
    let host = bench.dir().join("shared");
    std::fs::create_dir_all(&host)?;
    std::fs::write(host.join("file"), "of the host")?;
    let mount = |target: &str, source: MountSource, read_only: bool| Mount {
        target: target.into(),
        source,
        read_only,
        recursive_read_only: false,
        propagation: Propagation::default(),
    };
    let bind = |create: bool, name: &str| MountSource::Bind { source: bench.dir().join(name), create };
    let spec = ContainerSpec {
        mounts: vec![
            mount("/host", bind(false, "shared"), true),
            mount("/made", bind(true, "made"), false),
            mount("/scratch/deeper", MountSource::Tmpfs { size: Some(1 << 20), mode: Some(0o700) }, false),
            mount("/named", MountSource::Volume { name: "v1".into() }, false),
            mount("/data", MountSource::Volume { name: String::new() }, false),
        ],
        shm_size: Some(8 << 20),
        ..Bench::shell(
            "cat /host/file /data/seed; touch /host/x 2>&1; echo y > /made/y; echo n > /named/n; stat -c %a /scratch/deeper; \
             df -k /dev/shm | tail -1; echo in-container > /root/written",
        )
    };
    let (id, out, err, _) = run(&bench, spec).await?;
    for text in ["of the hostfrom the image", "Read-only", "\n700\n", "8192"] {
        ensure!(out.contains(text), "{text:?} is missing: {out} {err}");
    }
    ensure!(std::fs::read_to_string(bench.dir().join("made/y"))? == "y\n");
    let mounts = containers.inspect(&id)?.mounts;
    let anonymous = mounts.iter().find(|mount| mount.target == "/data").context("the image's volume is not there")?;
    ensure!(anonymous.anonymous && anonymous.source.is_dir(), "{anonymous:?}");

    // Out of one that rests, into it, and out of one that runs.
    let (stat, mut stream) = containers.archive_get(&id, "/root/written").await?;
    ensure!(stat.size == 13, "{stat:?}");
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await?;
    ensure!(bytes.windows(12).any(|window| window == b"in-container"));
    containers.archive_put(&id, "/tmp", std::io::Cursor::new(bytes.clone()), PutOptions::default()).await?;
    ensure!(containers.stat_path(&id, "/tmp/written").await?.size == 13);
    ensure!(containers.stat_path(&id, "/named/n").await?.size == 2, "a volume of one that rests");
    ensure!(!is_mounted(&bench.dir().join("run/containers").join(id.as_str()).join("rootfs")));
    let live = containers.create(Bench::shell("exec sleep 100")).await?.id;
    containers.start(&live).await?;
    containers.archive_put(&live, "/data", std::io::Cursor::new(bytes), PutOptions::default()).await?;
    let (_, session) = containers
        .exec(&live, ExecSpec { command: vec!["cat".into(), "/data/written".into()], ..ExecSpec::default() })
        .await?;
    ensure!(output(session).await?.0 == "in-container\n");

    let missing = ContainerSpec { mounts: vec![mount("/x", bind(false, "absent"), false)], ..Bench::shell("true") };
    let id2 = containers.create(missing).await?.id;
    let error = containers.start(&id2).await.err().context("a missing source was mounted")?;
    ensure!(error.to_string().contains("absent"), "{error}");
    let source = anonymous.source.clone();
    containers.remove(&id, RemoveOptions { force: false, volumes: true }).await?;
    ensure!(!source.exists(), "{} stays", source.display());
    ensure!(
        bench.engine.volumes().get(&container_engine::owner::Owner::Local, "v1").is_ok(),
        "the named volume is gone"
    );
    bench.clear().await
}

#[tokio::test(flavor = "multi_thread")]
async fn shared_namespaces_and_user_namespaces() -> Result<()> {
    let bench = Bench::new().await?;
    let containers = bench.engine.containers();
    let first =
        ContainerSpec { name: Some("first".into()), ..Bench::shell("echo shared > /dev/shm/x; exec sleep 100") };
    let id = containers.create(first).await?.id;
    containers.start(&id).await?;
    tests::wait_until("the first to write", PATIENCE, || {
        containers.inspect(&id).is_ok_and(|it| {
            let pid = it.state.pid.unwrap_or(0);
            std::path::Path::new(&format!("/proc/{pid}/root/dev/shm/x")).exists()
        })
    })?;
    let joined = ContainerSpec {
        pid: NamespaceMode::Container("first".into()),
        ipc: NamespaceMode::Container("first".into()),
        network: NetworkMode::Container("first".into()),
        ..Bench::shell("cat /dev/shm/x; ps | grep -c '[s]leep 100'; readlink /proc/self/ns/net")
    };
    let (_, out, err, _) = run(&bench, joined.clone()).await?;
    let pid = containers.inspect(&id)?.state.pid.context("no pid")?;
    let net = std::fs::read_link(format!("/proc/{pid}/ns/net"))?;
    ensure!(out == format!("shared\n1\n{}\n", net.display()), "{out} {err}");
    containers.stop(&id, Some("KILL"), None).await?;
    let late = containers.create(joined).await?.id;
    let error = containers.start(&late).await.err().context("it joined one that has ended")?;
    ensure!(error.code() == "conflict" && error.is_transient(), "{error}");
    bench.clear().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_init_reaps_and_hands_signals_on() -> Result<()> {
    let bench = Bench::new().await?;
    let containers = bench.engine.containers();
    // The program under test may need the host's C library.
    let library = |path: &str| read_only(path.as_ref(), path);
    let mounts =
        ["/lib", "/lib64"].into_iter().filter(|path| std::path::Path::new(path).exists()).map(library).collect();
    let script = "(sleep 0.2 & exec sleep 0.1) & trap 'exit 4' TERM; sleep 0.6; ps -o stat,comm | grep -c '^Z'; echo ready; \
        while :; do sleep 0.05; done";
    let spec = ContainerSpec { init: true, mounts, ..Bench::shell(script) };
    let id = containers.create(spec).await?.id;
    let attaching = containers.attach(&id, BOTH).await?;
    containers.start(&id).await?;
    let (_input, mut output) = attaching.session().await?.split();
    let mut text = String::new();
    while !text.contains("ready") {
        match tokio::time::timeout(PATIENCE, output.next()).await?? {
            Some(Output::Stdout(bytes) | Output::Stderr(bytes)) => text.push_str(&String::from_utf8_lossy(&bytes)),
            end => anyhow::bail!("{text} {end:?}"),
        }
    }
    ensure!(text == "0\nready\n", "{text:?}");
    let exit = containers.stop(&id, None, None).await?.context("no end")?;
    ensure!(exit.code == 4, "{exit:?}");
    bench.clear().await
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_kept_and_followed() -> Result<()> {
    let bench = Bench::new().await?;
    let containers = bench.engine.containers();
    let id = containers.create(Bench::shell("echo one; echo two >&2; sleep 1; echo three")).await?.id;
    let mut silent = containers.logs(&id, ReadOptions { follow: true, ..ReadOptions::default() }).await?;
    ensure!(silent.next().await?.is_none(), "one that was never started has said something");
    containers.start(&id).await?;
    let mut reader = containers.logs(&id, ReadOptions { follow: true, ..ReadOptions::default() }).await?;
    let mut lines = Vec::new();
    while let Some(entry) = tokio::time::timeout(PATIENCE, reader.next()).await?? {
        lines.push(format!("{:?} {}", entry.stream, String::from_utf8_lossy(&entry.text).trim_end()));
    }
    lines.sort();
    ensure!(lines == ["Stderr two", "Stdout one", "Stdout three"], "{lines:?}");
    let mut tail = containers.logs(&id, ReadOptions { tail: Some(1), ..ReadOptions::default() }).await?;
    ensure!(tail.next().await?.is_some_and(|entry| entry.text.starts_with(b"three")) && tail.next().await?.is_none());
    bench.clear().await
}

#[tokio::test(flavor = "multi_thread")]
async fn user_namespaces_of_their_own() -> Result<()> {
    let bench = Bench::new().await?;
    let containers = bench.engine.containers();
    let script = "id -u; cat /proc/self/uid_map | tr -s ' '; stat -c %u /etc/passwd /etc/hosts /data; touch /data/x /root/y && echo written";
    let spec = ContainerSpec {
        userns: UserNamespace::Auto,
        mounts: vec![Mount {
            target: "/data".into(),
            source: MountSource::Volume { name: "shared".into() },
            read_only: false,
            recursive_read_only: false,
            propagation: Propagation::default(),
        }],
        ..Bench::shell(script)
    };
    let (id, out, err, code) = run(&bench, spec.clone()).await?;
    let (host, size) = containers.inspect(&id)?.userns.context("no range of ids")?;
    ensure!(code == 0 && out == format!("0\n 0 {host} {size}\n0\n0\n0\nwritten\n"), "{out} {err}");
    let other =
        containers.create(ContainerSpec { command: Some(vec!["sleep".into(), "100".into()]), ..spec }).await?.id;
    ensure!(containers.inspect(&other)?.userns != Some((host, size)), "two have the same ids");
    // The network was made outside of the user namespace, and a further process gets there too.
    containers.start(&other).await?;
    if std::env::var("EDGE_AGENT_RUNTIME").is_ok_and(|runtime| runtime != "embedded") {
        // runc 1.1 enters the user namespace first and then has no right to the network's.
        return bench.clear().await;
    }
    let id_inside = ExecSpec { command: vec!["id".into(), "-u".into()], ..ExecSpec::default() };
    let (_, session) = containers.exec(&other, id_inside).await?;
    ensure!(output(session).await? == ("0\n".into(), String::new(), 0));
    let pid = containers.inspect(&other)?.state.pid.context("no pid")?;
    let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(format!("/proc/{pid}"))?);
    ensure!(containers.inspect(&other)?.userns.is_some_and(|(host, _)| host == owner), "it runs as {owner}");
    bench.clear().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_of_its_own() -> Result<()> {
    let bench = Bench::new().await?;
    let containers = bench.engine.containers();
    let on = |script: &str| ContainerSpec { network: NetworkMode::Bridge, ..Bench::shell(script) };
    let server = containers
        .create(ContainerSpec { hostname: Some("server".into()), ..on("while :; do echo hello | nc -l -p 80; done") })
        .await?
        .id;
    containers.start(&server).await?;
    let network = containers.inspect(&server)?.network.context("no network")?;
    let address = addresses(Some(&network)).first().copied().context("no address")?;
    let (_, out, err, _) = run(&bench, on(&format!("for n in 1 2 3 4 5; do nc {address} 80 </dev/null && break; sleep 0.2; done; cat /etc/hosts; ls /sys/class/net"))).await?;
    ensure!(out.contains("hello") && out.contains("eth0"), "{out} {err}");
    let (_, session) = containers
        .exec(&server, ExecSpec { command: vec!["cat".into(), "/etc/hosts".into()], ..ExecSpec::default() })
        .await?;
    let (hosts, ..) = output(session).await?;
    ensure!(hosts.contains(&format!("{address}\tserver")), "{hosts}");
    let stats = containers.stats(&server, false).await?;
    let pid = containers.inspect(&server)?.state.pid;
    ensure!(
        stats.network.get("eth0").is_some_and(|eth0| eth0.rx_bytes > 0),
        "{pid:?} {:?} {stats:?}",
        pid.map(|pid| std::fs::read_to_string(format!("/proc/{pid}/net/dev")))
    );
    bench.clear().await
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_found_again() -> Result<()> {
    let mut bench = Bench::new().await?;
    let gate = bench.dir().join("gate");
    std::fs::create_dir(&gate)?;
    let spec = |script: &str, name: &str| ContainerSpec {
        name: Some(name.into()),
        mounts: vec![read_only(&gate, "/gate")],
        ..Bench::shell(script)
    };
    let containers = bench.engine.containers().clone();
    let mut ids = Vec::new();
    for (script, name) in [
        ("exec sleep 100", "stays"),
        ("until [ -e /gate/open ]; do sleep 0.1; done; exit 9", "ends"),
        ("exec sleep 100", "orphan"),
        ("exec sleep 100", "paused"),
        ("true", "rests"),
    ] {
        let id = containers.create(spec(script, name)).await?.id;
        containers.start(&id).await?;
        ids.push(id);
    }
    containers.pause(&ids[3]).await?;
    containers.wait(&ids[4], WaitFor::NotRunning).await?;
    let created = containers.create(spec("true", "created")).await?.id;
    let pid = containers.inspect(&ids[0])?.state.pid;
    bench.engine.close().await;
    // While nobody looks, one ends, and the shim of another is killed.
    let record = std::fs::read(bench.dir().join("run/containers").join(ids[2].as_str()).join("shim.json"))?;
    let record: serde_json::Value = serde_json::from_slice(&record)?;
    let shim = record["shim_pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).context("no shim")?;
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(shim).context("no pid")?,
        rustix::process::Signal::KILL,
    )?;
    std::fs::write(gate.join("open"), "")?;
    let ended = bench.dir().join("data/containers").join(ids[1].as_str()).join("exit.json");
    tests::wait_until("the second has ended", PATIENCE, || ended.exists())?;
    bench.restart().await?;
    let containers = bench.engine.containers().clone();
    let recovered = bench.engine.recovered();
    ensure!(recovered.problems.is_empty(), "{recovered:?}");
    ensure!(recovered.running.len() == 2 && recovered.ended.len() == 2, "{recovered:?}");
    let state = |id: &ContainerId| containers.inspect(id).map(|it| it.state);
    ensure!(state(&ids[0])?.status == Status::Running && state(&ids[0])?.pid == pid);
    ensure!(state(&ids[1])?.exit_code == Some(9), "{:?}", state(&ids[1])?);
    ensure!(state(&ids[2])?.exit_code == Some(137) && state(&ids[2])?.error.is_some(), "{:?}", state(&ids[2])?);
    ensure!(state(&ids[3])?.status == Status::Paused);
    ensure!(state(&ids[4])?.exit_code == Some(0));
    ensure!(state(&created)?.status == Status::Created);
    // What was found is in hand.
    containers.unpause(&ids[3]).await?;
    ensure!(containers.stop(&ids[3], Some("KILL"), None).await?.is_some_and(|exit| exit.code == 137));
    containers.start(&ids[2]).await?;
    let left = std::fs::read_dir(bench.dir().join("run/containers"))?.count();
    ensure!(left == 2, "{left} run directories");

    // The board loses power: processes and RUN are gone, DATA stays.
    bench.engine.close().await;
    for id in [&ids[0], &ids[2]] {
        let run = bench.dir().join("run/containers").join(id.as_str());
        let record: serde_json::Value = serde_json::from_slice(&std::fs::read(run.join("shim.json"))?)?;
        for pid in ["shim_pid", "pid"] {
            let pid =
                record[pid].as_i64().and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw);
            rustix::process::kill_process(pid.context("no pid")?, rustix::process::Signal::KILL)?;
        }
        let _ = rustix::mount::unmount(run.join("rootfs"), rustix::mount::UnmountFlags::DETACH);
    }
    std::fs::remove_dir_all(bench.dir().join("run/containers"))?;
    bench.restart().await?;
    for one in bench.engine.containers().list(&ListFilter::default()) {
        ensure!(!one.state.status.is_alive(), "{one:?}");
    }
    let state = bench.engine.containers().inspect(&ids[0])?.state;
    ensure!(state.exit_code == Some(137) && state.error.is_some(), "{state:?}");
    bench.engine.containers().start(&ids[0]).await?;
    bench.clear().await?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    ensure!(!mounts.contains(bench.dir().to_str().unwrap_or("?")), "mounts are left:\n{mounts}");
    ensure!(!bench.engine.cgroups().exists(bench.cgroup()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_at_once() -> Result<()> {
    let bench = Bench::new().await?;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..50 {
        let containers = bench.engine.containers().clone();
        tasks.spawn(async move {
            let spec =
                ContainerSpec { name: Some(format!("n{n}")), auto_remove: true, ..Bench::shell("exec sleep 100") };
            let id = containers.create(spec).await?.id;
            containers.start(&id).await?;
            anyhow::Ok(id)
        });
    }
    let ids: Vec<_> = tasks.join_all().await.into_iter().collect::<Result<_>>()?;
    ensure!(bench.engine.containers().count() == (50, 50));
    for id in &ids {
        bench.engine.containers().kill(id, "KILL").await?;
    }
    for id in &ids {
        let _ = bench.engine.containers().wait(id, WaitFor::Removed).await;
    }
    ensure!(bench.engine.containers().count() == (0, 0), "they were to remove themselves");
    bench.clear().await
}

#[tokio::test(flavor = "multi_thread")]
async fn names_lists_and_pruning() -> Result<()> {
    let bench = Bench::new().await?;
    let containers = bench.engine.containers();
    let job = container_engine::owner::Owner::Job("7".into());
    let one = containers.create(ContainerSpec { name: Some("one".into()), ..Bench::shell("true") }).await?.id;
    let two = ContainerSpec {
        owner: job.clone(),
        labels: [("a".into(), "1".into())].into(),
        ..Bench::shell("exec sleep 100")
    };
    let two = containers.create(two).await?.id;
    containers.start(&two).await?;
    ensure!(containers.resolve(Some(&job), "one").is_err() && containers.resolve(None, "one")? == one);
    let list = |filter: ListFilter| containers.list(&filter).into_iter().map(|it| it.id).collect::<Vec<_>>();
    ensure!(list(ListFilter { owner: Some(job.clone()), ..ListFilter::default() }) == vec![two.clone()]);
    ensure!(list(ListFilter { labels: vec!["a=1".into()], ..ListFilter::default() }) == vec![two.clone()]);
    ensure!(list(ListFilter { statuses: vec![Status::Created], ..ListFilter::default() }) == vec![one.clone()]);
    containers.rename(&one, "uno").await?;
    ensure!(containers.resolve(None, "uno")? == one && containers.resolve(None, "one").is_err());
    ensure!(containers.rename(&one, "-bad").await.is_err());
    let usage = bench.engine.owner_usage(&job).await?;
    ensure!(usage.pids.current == 1, "{usage:?}");
    let pruned = containers.prune(&ListFilter::default()).await?;
    ensure!(pruned.removed == [one.clone()], "{pruned:?}");
    bench.clear().await
}
