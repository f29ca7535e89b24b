//! What containers share that outlives each of them: namespaces and memory, as those of a pod do. Needs root.

use anyhow::{Result, ensure};
use container_engine::container::*;
use tests::engine::{Bench, PATIENCE, is_mounted, read_only, run};

#[tokio::test(flavor = "multi_thread")]
async fn containers_share_what_outlives_each_of_them() -> Result<()> {
    let mut bench = Bench::new().await?;
    let options = ShareOptions { pids: true, shm_bytes: Some(1 << 20) };
    for wrong in ["", ".", "../x", "a/b", &"n".repeat(129)] {
        ensure!(bench.engine.containers().share(wrong, options).await.is_err(), "{wrong:?}");
    }
    let shared = bench.engine.containers().share("pod-1", options).await?;
    ensure!(bench.engine.containers().share("pod-1", options).await? == shared, "made twice");
    let with = |script: &str, userns: UserNamespace| ContainerSpec {
        ipc: NamespaceMode::Path(shared.ipc.clone()),
        pid: shared.pids.clone().map_or(NamespaceMode::Private, NamespaceMode::Path),
        mounts: vec![Mount { read_only: false, ..read_only(&shared.shm, "/dev/shm") }],
        userns,
        ..Bench::shell(script)
    };
    // The first process is in an empty folder, without rights, and nobody ends it from inside.
    let look = "readlink /proc/self/ns/ipc; readlink /proc/self/ns/pid; echo said > /dev/shm/word; kill -9 1; kill 1; \
        grep -E '^(Uid|CapEff|CapBnd|NoNewPrivs):' /proc/1/status; ls /proc/1/root/ /proc/1/cwd 2>&1; (sleep 0.1 &) ; sleep 0.5; exit 0";
    let (_, out, err, code) = run(&bench, with(look, UserNamespace::Host)).await?;
    let lines: Vec<&str> = out.lines().collect();
    ensure!(code == 0 && lines.len() > 5, "{out} {err} {code}");
    ensure!(out.contains("Uid:\t65535\t65535\t65535\t65535") && out.contains("CapEff:\t0000000000000000"), "{out}");
    ensure!(out.contains("CapBnd:\t0000000000000000") && out.contains("NoNewPrivs:\t1"), "{out}");
    ensure!(!out.contains("bin") && !out.contains("etc"), "something of the host is seen: {out}");
    // The next one is in the same, also after the agent restarted.
    bench.restart().await?;
    ensure!(bench.engine.containers().shared("pod-1", options) == Some(shared.clone()), "it is gone with the agent");
    let again = "readlink /proc/self/ns/ipc; readlink /proc/self/ns/pid; cat /dev/shm/word; ps | grep -c '[Z]ombie'; df -k /dev/shm";
    let (_, next, err, _) = run(&bench, with(again, UserNamespace::Host)).await?;
    let seen: Vec<&str> = next.lines().collect();
    ensure!(seen.get(..3) == Some(&[lines[0], lines[1], "said"][..]), "{next} after {out}: {err}");
    ensure!(next.contains(" 1024 "), "{next}");
    // Taken away, it takes those along that are still in it.
    let containers = bench.engine.containers();
    let id = containers.create(with("exec sleep 1000", UserNamespace::Host)).await?.id;
    containers.start(&id).await?;
    ensure!(containers.all_shared() == ["pod-1"]);
    containers.unshare("pod-1").await?;
    let end = tokio::time::timeout(PATIENCE, containers.wait(&id, WaitFor::NotRunning)).await??;
    ensure!(end.code == 137, "{end:?}");
    containers.unshare("pod-1").await?;
    ensure!(containers.all_shared().is_empty() && containers.shared("pod-1", options).is_none());
    ensure!(!is_mounted(&shared.ipc) && !is_mounted(&shared.shm));
    bench.clear().await
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_in_one_range_of_ids_share_memory() -> Result<()> {
    let bench = Bench::new().await?;
    let shared = bench.engine.containers().share("pod-2", ShareOptions::default()).await?;
    ensure!(shared.pids.is_none(), "{shared:?}");
    let with = |script: &str| ContainerSpec {
        ipc: NamespaceMode::Path(shared.ipc.clone()),
        mounts: vec![Mount { read_only: false, ..read_only(&shared.shm, "/dev/shm") }],
        userns: UserNamespace::Mapped { host: 300_000, size: 65_536 },
        ..Bench::shell(script)
    };
    let (_, _, err, code) = run(&bench, with("echo said > /dev/shm/word; id -u")).await?;
    ensure!(code == 0, "{err}");
    let (_, out, err, _) = run(&bench, with("cat /dev/shm/word; stat -c %u /dev/shm/word")).await?;
    ensure!(out == "said\n0\n", "{out} {err}");
    // Volumes belong to the same ids inside as outside.
    let volume = bench.dir().join("volume");
    std::fs::create_dir(&volume)?;
    std::os::unix::fs::chown(&volume, Some(1000), Some(0))?;
    let mut mapped = with("stat -c %u /volume; echo x > /volume/made");
    mapped.map_mounts = true;
    mapped.mounts.push(Mount { read_only: false, ..read_only(&volume, "/volume") });
    let (_, out, err, _) = run(&bench, mapped).await?;
    let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(volume.join("made"))?);
    ensure!(out == "1000\n" && owner == 0, "{out} {err} {owner}");
    bench.engine.containers().unshare("pod-2").await?;
    bench.clear().await
}
