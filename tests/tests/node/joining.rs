//! Joining, what goes wrong with it, and leaving.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::cluster::{Cluster, on_a_cluster};

use super::{SOON, phase, pod};

#[test]
fn a_board_joins_and_leaves() -> Result<()> {
    on_a_cluster(|cluster| {
        let core = &cluster.control_plane;
        core.apply(&daemon_set(&cluster.busybox, "1"))?;
        mistakes(cluster)?;
        let board =
            cluster.joined("board", "labels = { site = \"field\" }\ntaints = [\"edge=true:PreferNoSchedule\"]")?;
        // The DaemonSet from before is there, with no further step.
        core.wait_for(&["daemonset", "probe"], SOON, |it| it["status"]["numberReady"] == 1)?;
        let node = core.get(&["node", "board"])?;
        ensure!(node["metadata"]["labels"]["site"] == "field", "{node:#}");
        ensure!(node["metadata"]["labels"]["kubernetes.io/hostname"] == "board", "{node:#}");
        ensure!(node["spec"]["taints"].to_string().contains("PreferNoSchedule"), "{node:#}");
        for (name, least) in [("cpu", 1), ("memory", 1), ("pods", 110), ("ephemeral-storage", 1)] {
            let text = node["status"]["capacity"][name].as_str().context(name)?;
            let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
            ensure!(digits.parse::<u64>()? >= least, "{name}: {text}");
        }
        lease(cluster)?;
        serving_certificate(cluster)?;
        rolling_update(cluster)?;
        taken(cluster)?;
        leave(cluster, &board)
    })
}

fn daemon_set(image: &str, version: &str) -> String {
    format!(
        "{{apiVersion: apps/v1, kind: DaemonSet, metadata: {{name: probe}}, spec: {{selector: {{matchLabels: {{app: probe}}}}, \
         template: {{metadata: {{labels: {{app: probe}}, annotations: {{version: \"{version}\"}}}}, spec: {{hostNetwork: true, \
         terminationGracePeriodSeconds: 1, containers: [{{name: main, image: \"{image}\", command: [sleep, \"100000\"], \
         securityContext: {{privileged: true}}}}]}}}}}}}}"
    )
}

/// Each is named, exit 1, and leaves nothing behind.
fn mistakes(cluster: &Cluster) -> Result<()> {
    let mut board = cluster.board("mistaken", "")?;
    board.agent.start()?;
    let arguments = cluster.control_plane.join_arguments()?;
    let (server, pin) = (arguments[0].as_str(), arguments[4].as_str());
    let token = arguments[2].as_str();
    let other = "sha256:0000000000000000000000000000000000000000000000000000000000000000";
    for (server, token, pin, words) in [
        (server, "abcdef.ffffffffffffffff", pin, "secret part of the token abcdef"),
        (server, "zzzzzz.0123456789abcdef", pin, "does not know the token zzzzzz"),
        (server, token, other, "is not the pinned one"),
        (server, "short", pin, "wrong form"),
        (server, token, "sha256:12", "no pin"),
        ("127.0.0.1:1", token, pin, "cannot be reached"),
    ] {
        let args = ["join", server, "--token", token, "--discovery-token-ca-cert-hash", pin];
        let output = board.agent.command(&args)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(1) && said.contains(words), "{args:?}: {}: {said}", output.status);
        ensure!(!said.contains("0123456789abcdef"), "the token is shown: {said}");
        ensure!(!board.agent.data().join("identity/node.pem").exists(), "{args:?} left something");
    }
    let output = board.agent.command(&["join", server, "--token", token])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(1) && said.contains("not pinned"), "{said}");
    ensure!(cluster.control_plane.k(&["get", "nodes", "-o", "name"])?.is_empty(), "a node was made");
    Ok(())
}

fn lease(cluster: &Cluster) -> Result<()> {
    let renewed = || -> Result<String> {
        let lease = cluster.control_plane.get(&["lease", "board", "-n", "kube-node-lease"])?;
        Ok(lease["spec"]["renewTime"].as_str().unwrap_or_default().to_owned())
    };
    let first = renewed()?;
    tests::wait_until("the lease is renewed", SOON, || renewed().is_ok_and(|now| now > first))
}

/// Its own until the cluster has signed one.
fn serving_certificate(cluster: &Cluster) -> Result<()> {
    let core = &cluster.control_plane;
    let pending = || -> Result<Option<String>> {
        let all = core.get(&["csr"])?;
        let mut items = all["items"].as_array().into_iter().flatten();
        let serving = items.find(|it| it["spec"]["signerName"] == "kubernetes.io/kubelet-serving");
        Ok(serving.and_then(|it| it["metadata"]["name"].as_str().map(str::to_owned)))
    };
    tests::wait_until("a request for a serving certificate", SOON, || pending().is_ok_and(|it| it.is_some()))?;
    let name = pending()?.context("no request")?;
    core.k(&["certificate", "approve", &name])?;
    let file = cluster.dir.join("board/data/identity/serving.pem");
    tests::wait_until("the serving certificate", Duration::from_secs(120), || file.exists())
}

fn rolling_update(cluster: &Cluster) -> Result<()> {
    let core = &cluster.control_plane;
    core.apply(&daemon_set(&cluster.busybox, "2"))?;
    core.wait_for(&["daemonset", "probe"], SOON, |it| {
        it["status"]["observedGeneration"] == it["metadata"]["generation"]
            && it["status"]["updatedNumberScheduled"] == 1
            && it["status"]["numberReady"] == 1
    })?;
    Ok(())
}

/// The same board once more, or another of its name, is told so.
fn taken(cluster: &Cluster) -> Result<()> {
    let mut other = cluster.board("other", "")?;
    other.agent.start()?;
    let arguments = cluster.control_plane.join_arguments()?;
    let mut args = vec!["join", "--node-name", "board"];
    args.extend(arguments.iter().map(String::as_str));
    let output = other.agent.command(&args)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(1) && said.contains("node board, and Ready"), "{said}");
    Ok(())
}

fn leave(cluster: &Cluster, board: &tests::cluster::Board) -> Result<()> {
    let core = &cluster.control_plane;
    core.apply(&pod(&cluster.busybox, "stays", "sleep 100000", "", ""))?;
    phase(core, "stays", "Running")?;
    let output = board.agent.command(&["leave"])?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success() && said.contains("kubectl delete node board"), "{said}{}", board.agent.log());
    ensure!(core.get(&["pod", "stays"]).is_err(), "the pod was not evicted");
    ensure!(core.get(&["node", "board"])?["spec"]["unschedulable"] == true);
    ensure!(!board.agent.data().join("identity/node.pem").exists());
    let left = board.agent.command(&["pod", "ls", "-q"])?;
    ensure!(left.stdout.is_empty(), "{}", String::from_utf8_lossy(&left.stdout));
    Ok(())
}
