//! Without the cluster: the agent is restarted, the power is cut, the API server is away.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::{
    ControlPlane,
    cluster::{Board, Cluster, on_a_cluster},
};

use super::{SOON, container, pod, ready};

const PODS: usize = 5;

#[test]
fn a_board_goes_on_without_its_cluster() -> Result<()> {
    on_a_cluster(|cluster| {
        let mut board = cluster.joined("board", "")?;
        let core = &cluster.control_plane;
        core.k(&["create", "configmap", "files", "--from-literal=a=one"])?;
        core.k(&["create", "secret", "generic", "hidden", "--from-literal=key=hush"])?;
        for number in 0..PODS {
            core.apply(&wanted(cluster, &format!("pod-{number}")))?;
        }
        for number in 0..PODS {
            ready(core, &format!("pod-{number}"))?;
        }
        restarted(core, &mut board)?;
        power_cut(cluster, &mut board)
    })
}

fn wanted(cluster: &Cluster, name: &str) -> String {
    let more = "volumes: [{name: files, configMap: {name: files}}, {name: hidden, secret: {secretName: hidden}}], \
                tolerations: [{operator: Exists}],";
    let own = "env: [{name: KEY, valueFrom: {secretKeyRef: {name: hidden, key: key}}}], \
               volumeMounts: [{name: files, mountPath: /files}, {name: hidden, mountPath: /hidden}]";
    pod(&cluster.busybox, name, "cat /files/a /hidden/key; echo $KEY; exec sleep 100000", more, own)
}

/// Container ids, addresses and restarts by pod, as the API has them.
fn seen(core: &ControlPlane) -> Result<BTreeMap<String, (Value, Value, u64)>> {
    let pods = core.get(&["pods"])?;
    let all = pods["items"].as_array().context("no list")?;
    let one = |pod: &Value| {
        let main = container(pod, "main");
        let restarts = main["restartCount"].as_u64().unwrap_or(0);
        let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        (name, (main["containerID"].clone(), pod["status"]["podIP"].clone(), restarts))
    };
    Ok(all.iter().map(one).collect())
}

/// The agent ends in every way there is; containers do not notice.
fn restarted(core: &ControlPlane, board: &mut Board) -> Result<()> {
    let before = seen(core)?;
    board.agent.kill()?;
    board.agent.start()?;
    tests::wait_until("the agent knows its pods", SOON, || running(board).is_ok_and(|count| count == PODS))?;
    board.agent.stop(Duration::from_secs(20))?;
    board.agent.start()?;
    tests::wait_until("the agent knows its pods", SOON, || running(board).is_ok_and(|count| count == PODS))?;
    std::thread::sleep(Duration::from_secs(3));
    let after = seen(core)?;
    ensure!(before == after, "something was started again: {before:#?}\n{after:#?}");
    Ok(())
}

/// Pods that run, as the board itself says.
fn running(board: &Board) -> Result<usize> {
    let output = board.agent.command(&["pod", "ls"])?;
    ensure!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.lines().filter(|line| line.contains("1/1") && line.contains("Running")).count())
}

fn power_cut(cluster: &Cluster, board: &mut Board) -> Result<()> {
    let core = &cluster.control_plane;
    let before = seen(core)?;
    core.api_down()?;
    board.cut_power()?;
    board.agent.start()?;
    tests::wait_until("all pods run again, with no API server", SOON, || {
        running(board).is_ok_and(|count| count == PODS)
    })?;
    for number in 0..PODS {
        let output = board.agent.command(&["pod", "logs", &format!("pod-{number}")])?;
        ensure!(output.stdout == b"onehushhush\n", "{output:?}");
    }
    // What was wanted before nobody could say otherwise is still wanted, and what is asked for meanwhile waits.
    std::fs::write(board.dir.join("manifests/offline.yaml"), pod(&cluster.busybox, "offline", "sleep 100000", "", ""))?;
    tests::wait_until("a static pod starts offline", SOON, || running(board).is_ok_and(|count| count == PODS + 1))?;
    let local = board.agent.command(&["pod", "ls", "--json"])?;
    core.api_up()?;
    cluster.ready("board")?;
    ready(core, "offline-board")?;
    for number in 0..PODS {
        ready(core, &format!("pod-{number}"))?;
    }
    let after = seen(core)?;
    for (name, (id, address, restarts)) in before {
        let (new_id, new_address, new_restarts) = after.get(&name).context("a pod is gone")?;
        ensure!(id != *new_id && *new_restarts == restarts + 1, "{name}: {id} {restarts}, {new_id} {new_restarts}");
        ensure!(address == *new_address, "{name} has another address: {address}, {new_address}");
        // The life that it had offline is the one that it has now: nothing was started again on reconnection.
        let bare = new_id.as_str().and_then(|id| id.rsplit('/').next()).unwrap_or_default();
        ensure!(String::from_utf8_lossy(&local.stdout).contains(bare), "{name} was started again on reconnection");
    }
    Ok(())
}
