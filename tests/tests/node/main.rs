//! The board as a Kubernetes node, against a real control plane, driven with kubectl.
//!
//! Each file has a cluster of its own, in a network namespace of its own, and goes through many short scenes on it: a control
//! plane takes ten seconds to start.

mod joining;
mod kubectl;
mod offline;
mod pods;
mod volumes;

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;
use tests::ControlPlane;

/// Longest wait for something that a cluster does in a second or two.
const SOON: Duration = Duration::from_secs(60);

/// A pod with one container of busybox that runs `script`; `more` goes into its spec, `own` into its container.
fn pod(image: &str, name: &str, script: &str, more: &str, own: &str) -> String {
    let script = serde_json::to_string(script).unwrap_or_default();
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{app: {name}}}}}, spec: {{terminationGracePeriodSeconds: 2, {more} \
         containers: [{{name: main, image: \"{image}\", command: [sh, -c, {script}], {own}}}]}}}}"
    )
}

/// Waits for a phase.
fn phase(cluster: &ControlPlane, name: &str, wanted: &str) -> Result<Value> {
    cluster.wait_for(&["pod", name], SOON, |pod| pod["status"]["phase"] == wanted)
}

/// Waits until a pod is Ready.
fn ready(cluster: &ControlPlane, name: &str) -> Result<Value> {
    cluster.wait_for(&["pod", name], SOON, |pod| tests::cluster::condition(pod, "Ready") == Some("True"))
}

/// Runs a pod to its end, and gives what it printed.
fn printed(cluster: &ControlPlane, manifest: &str, name: &str) -> Result<String> {
    cluster.apply(manifest)?;
    let pod = cluster.wait_for(&["pod", name], SOON, |pod| {
        matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
    })?;
    let text = cluster.k(&["logs", name])?;
    ensure!(pod["status"]["phase"] == "Succeeded", "{name} failed: {text}\n{:#}", pod["status"]);
    Ok(text)
}

/// The state of a container in a pod's status.
fn container<'a>(pod: &'a Value, name: &str) -> &'a Value {
    let lists = ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"];
    let mut all = lists.iter().flat_map(|list| pod["status"][list].as_array().into_iter().flatten());
    all.find(|it| it["name"] == name).unwrap_or(&Value::Null)
}
