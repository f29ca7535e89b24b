//! Limits, devices and control groups as the engine gives them to containers, on both versions of control groups.
//! `EDGE_AGENT_RUNTIME` chooses the runtime; needs root and a disk.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use container_engine::{
    cgroup::Mode,
    container::*,
    event::{Filter, Next},
    owner::Owner,
};
use tests::engine::Bench;

/// Longer than anything takes, in the guest of `cargo xtask guest` too.
const PATIENCE: Duration = Duration::from_secs(60);

/// A whole disk, and its number.
fn disk() -> Result<(PathBuf, String)> {
    for entry in std::fs::read_dir("/sys/block")?.flatten().filter(|entry| entry.path().join("device").exists()) {
        let node = PathBuf::from("/dev").join(entry.file_name());
        if node.exists() {
            return Ok((node, std::fs::read_to_string(entry.path().join("dev"))?.trim().to_owned()));
        }
    }
    anyhow::bail!("this machine has no disk")
}

/// What the kernel says of a container.
fn kernel(bench: &Bench, id: &ContainerId, v1: &str, v2: &str) -> Result<String> {
    let file = if bench.engine.cgroups().mode() == Mode::V2 { v2 } else { v1 };
    let dirs = tests::cgroup_dirs(&format!("{}/edge.slice/local/{id}", bench.cgroup()));
    let text = dirs.iter().find_map(|dir| std::fs::read_to_string(dir.join(file)).ok());
    Ok(text.with_context(|| format!("{file} is not in {dirs:?}"))?.trim().to_owned())
}

/// `(file of version 1, of version 2, its value on 1, on 2)`.
fn holds(bench: &Bench, id: &ContainerId, want: &[(&str, &str, &str, &str)]) -> Result<()> {
    for (v1, v2, on_1, on_2) in want {
        let want = if bench.engine.cgroups().mode() == Mode::V2 { on_2 } else { on_1 };
        let got = kernel(bench, id, v1, v2)?;
        ensure!(got == *want, "{v2}: {got:?}, not {want:?}");
    }
    Ok(())
}

async fn started(bench: &Bench, spec: ContainerSpec) -> Result<ContainerId> {
    let id = bench.engine.containers().create(spec).await?.id;
    bench.engine.containers().start(&id).await?;
    Ok(id)
}

/// Runs a command in it; what it says, and its code.
async fn say(bench: &Bench, id: &ContainerId, script: &str) -> Result<(String, i32)> {
    use container_engine::shim::Output;
    let exec = ExecSpec { command: vec!["sh".into(), "-c".into(), script.into()], ..ExecSpec::default() };
    let (_, mut session) = bench.engine.containers().exec(id, exec).await?;
    let mut text = Vec::new();
    loop {
        match tokio::time::timeout(PATIENCE, session.output.next()).await?? {
            Some(Output::Stdout(bytes) | Output::Stderr(bytes)) => text.extend_from_slice(&bytes),
            Some(Output::Exit(exit)) => return Ok((String::from_utf8(text)?.trim().to_owned(), exit.code)),
            None => anyhow::bail!("no exit"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_reach_the_kernel_and_change_while_it_runs() -> Result<()> {
    let bench = Bench::new().await?;
    let (device, number) = disk()?;
    let blkio = |read_bps, write_iops| {
        vec![BlkioLimit {
            device: device.clone(),
            read_bps: Some(read_bps),
            write_iops: Some(write_iops),
            ..BlkioLimit::default()
        }]
    };
    let resources = Resources {
        memory: Some(64 << 20),
        memory_reservation: Some(32 << 20),
        cpu_milli: Some(250),
        cpu_shares: Some(512),
        cpuset_cpus: Some("0".into()),
        pids: Some(50),
        blkio: blkio(1 << 20, 500),
        ..Resources::default()
    };
    let id = started(&bench, ContainerSpec { resources, ..Bench::shell("exec sleep 1000") }).await?;
    let rates = format!("{number} rbps=1048576 wbps=max riops=max wiops=500");
    let read = format!("{number} 1048576");
    let want = [
        ("memory.limit_in_bytes", "memory.max", "67108864", "67108864"),
        ("memory.soft_limit_in_bytes", "memory.low", "33554432", "33554432"),
        ("cpu.cfs_quota_us", "cpu.max", "25000", "25000 100000"),
        ("cpu.shares", "cpu.weight", "512", "20"),
        ("cpuset.cpus", "cpuset.cpus", "0", "0"),
        ("pids.max", "pids.max", "50", "50"),
        ("blkio.throttle.read_bps_device", "io.max", read.as_str(), rates.as_str()),
    ];
    holds(&bench, &id, &want)?;
    let changed =
        Resources { cpu_milli: Some(1500), pids: Some(-1), blkio: blkio(2 << 20, 600), ..Resources::default() };
    bench.engine.containers().update(&id, changed).await?;
    let rates = format!("{number} rbps=2097152 wbps=max riops=max wiops=600");
    let read = format!("{number} 2097152");
    let want = [
        ("memory.limit_in_bytes", "memory.max", "67108864", "67108864"),
        ("cpu.cfs_quota_us", "cpu.max", "150000", "150000 100000"),
        ("pids.max", "pids.max", "max", "max"),
        ("blkio.throttle.read_bps_device", "io.max", read.as_str(), rates.as_str()),
    ];
    // The `update` of runc 1.1 knows weights alone.
    let other = std::env::var("EDGE_AGENT_RUNTIME").is_ok_and(|runtime| runtime != "embedded");
    holds(&bench, &id, if other { &want[..3] } else { &want })?;
    let none = vec![BlkioLimit { device: "/dev/null".into(), read_bps: Some(1), ..BlkioLimit::default() }];
    let refused = bench.engine.containers().update(&id, Resources { blkio: none, ..Resources::default() }).await;
    let refused = refused.err().context("a limit of what is no disk was taken")?;
    ensure!(refused.to_string().contains("/dev/null") && refused.code() == "invalid", "{refused}");
    bench.clear().await
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_statistics_and_the_end_for_want_of_memory() -> Result<()> {
    let bench = Bench::new().await?;
    let containers = bench.engine.containers();
    let resources = Resources { memory: Some(64 << 20), pids: Some(50), cpu_milli: Some(500), ..Resources::default() };
    let spec = ContainerSpec { resources: resources.clone(), ..Bench::shell("exec sleep 100") };
    let id = containers.create(spec).await?.id;
    containers.start(&id).await?;
    let stats = containers.stats(&id, false).await?;
    if bench.engine.cgroups().has("memory") {
        ensure!(stats.cgroup.memory.limit == Some(64 << 20) && stats.cgroup.memory.usage > 0, "{stats:?}");
    }
    ensure!(stats.cgroup.pids.limit == Some(50) && stats.cgroup.pids.current == 1, "{stats:?}");
    containers.update(&id, Resources { memory: Some(96 << 20), pids: Some(60), ..Resources::default() }).await?;
    let stats = containers.stats(&id, false).await?;
    ensure!(stats.cgroup.memory.limit == Some(96 << 20) && stats.cgroup.pids.limit == Some(60), "{stats:?}");
    ensure!(containers.inspect(&id)?.spec.resources.cpu_milli == Some(500));
    let mut stream = containers.stats_stream(&id, Duration::from_millis(100));
    ensure!(stream.next().await.is_some() && stream.next().await.is_some());
    containers.stop(&id, Some("KILL"), None).await?;
    ensure!(stream.next().await.is_none(), "statistics of one that has ended go on");

    let hungry = ContainerSpec {
        resources: Resources { memory: Some(16 << 20), memory_swap: Some(16 << 20), ..Resources::default() },
        ..Bench::shell("exec tail /dev/zero")
    };
    let id = containers.create(hungry).await?.id;
    containers.start(&id).await?;
    let exit = tokio::time::timeout(PATIENCE, containers.wait(&id, WaitFor::NotRunning)).await??;
    ensure!(exit.code == 137 && exit.oom_killed, "{exit:?}");
    ensure!(containers.inspect(&id)?.state.oom_killed);
    bench.clear().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_needs_to_be_given() -> Result<()> {
    let bench = Bench::new().await?;
    let security = Security { cap_add: vec!["SYSLOG".into()], ..Security::default() };
    let spec = ContainerSpec { security, ..Bench::shell("exec sleep 1000") };
    let tries = |node: &str| format!("(: < {node}) && echo read; (: >> {node}) && echo written");
    // Docker's default lets a container make any node; opening it is another matter.
    let id = started(&bench, spec.clone()).await?;
    let (text, _) = say(&bench, &id, &format!("mknod /tmp/kmsg c 1 11 && echo made; {}", tries("/tmp/kmsg"))).await?;
    ensure!(text.starts_with("made") && text.contains("Operation not permitted"), "{text}");
    ensure!(!text.contains("read") && !text.contains("written"), "{text}");
    let device = Device { source: "/dev/kmsg".into(), target: "/dev/given".into(), access: "r".into() };
    let id = started(&bench, ContainerSpec { devices: vec![device], ..spec }).await?;
    let (text, _) = say(&bench, &id, &tries("/dev/given")).await?;
    ensure!(text.starts_with("read") && !text.contains("written"), "{text}");
    bench.clear().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limit_of_an_owner_ends_what_is_below_it() -> Result<()> {
    let bench = Bench::new().await?;
    let job = Owner::Job("7".into());
    let limits = Resources { memory: Some(24 << 20), memory_swap: Some(24 << 20), ..Resources::default() };
    bench.engine.limit_owner(&job, limits).await?;
    let mut events = bench.engine.events().subscribe(Filter::default(), None);
    let spec = ContainerSpec { owner: job.clone(), ..Bench::shell("exec tail /dev/zero") };
    let id = started(&bench, spec).await?;
    let waiting = bench.engine.containers().wait(&id, WaitFor::NotRunning);
    let exit = tokio::time::timeout(PATIENCE, waiting).await??;
    ensure!(exit.code == 137 && exit.oom_killed, "{exit:?}");
    let mut seen = Vec::new();
    while let Some(Next::Event(event)) = events.try_next() {
        seen.push(event.action.name());
    }
    ensure!(seen.contains(&"oom"), "{seen:?}");
    let usage = bench.engine.owner_usage(&job).await?;
    ensure!(usage.memory.limit == Some(24 << 20), "{usage:?}");
    bench.clear().await
}

/// What a container does that is an engine or an init system itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_privileged_container_divides_its_own_group() -> Result<()> {
    let bench = Bench::new().await?;
    if bench.engine.cgroups().mode() != Mode::V2 {
        ensure!(std::env::var_os("EDGE_AGENT_GUEST").is_none(), "the guest has no control groups v2");
        // Version 1 has no such rule.
        return bench.clear().await;
    }
    let security = Security { privileged: true, ..Security::default() };
    let id = started(&bench, ContainerSpec { security, ..Bench::shell("exec sleep 1000") }).await?;
    let script = "cd /sys/fs/cgroup && mkdir inner && for pid in $(cat cgroup.procs); do echo $pid > inner/cgroup.procs; done 2>/dev/null; \
        echo +memory +pids > cgroup.subtree_control && mkdir limited && echo 33554432 > limited/memory.max && cat limited/memory.max";
    let (text, code) = say(&bench, &id, script).await?;
    ensure!(text == "33554432" && code == 0, "{text} {code}");
    // It is still one that can be entered, measured, paused and removed.
    let (text, _) = say(&bench, &id, "cat /proc/self/cgroup").await?;
    ensure!(text == "0::/inner", "{text}");
    let stats = bench.engine.containers().stats(&id, false).await?;
    ensure!(stats.cgroup.pids.current == 1 && stats.cgroup.memory.usage > 0, "{stats:?}");
    bench.engine.containers().pause(&id).await?;
    ensure!(kernel(&bench, &id, "", "inner/cgroup.events")?.contains("frozen 1"));
    bench.engine.containers().unpause(&id).await?;
    bench.engine.containers().remove(&id, RemoveOptions { force: true, volumes: false }).await?;
    ensure!(kernel(&bench, &id, "", "cgroup.procs").is_err(), "its control group is left");
    bench.clear().await
}
