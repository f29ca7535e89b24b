//! How pods live and end: order, restarts, probes, hooks, rights, what the node refuses.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::{
    ControlPlane,
    cluster::{Board, Cluster, condition, on_a_cluster},
};

use super::{SOON, container, phase, pod, printed, ready};

#[test]
fn pods_live_as_kubernetes_says() -> Result<()> {
    on_a_cluster(|cluster| {
        let board = cluster.joined("board", "")?;
        order(cluster)?;
        ends(cluster)?;
        crashes(cluster)?;
        probes(cluster)?;
        hooks(cluster)?;
        environment(cluster)?;
        rights(cluster)?;
        namespaces(cluster)?;
        images(cluster)?;
        refused(cluster)?;
        resized(cluster)?;
        workloads(cluster)?;
        static_pod(cluster, &board)
    })
}

/// Init containers in their order, a sidecar beside all that comes after it, and its end after the others'.
fn order(cluster: &Cluster) -> Result<()> {
    let core = &cluster.control_plane;
    let image = &cluster.busybox;
    let step = |name: &str, more: &str| {
        format!(
            "{{name: {name}, image: \"{image}\", volumeMounts: [{{name: all, mountPath: /all}}], {more} \
             command: [sh, -c, \"echo {name} >> /all/order; {}\"]}}",
            if more.is_empty() { "true" } else { "while true; do sleep 0.1; done" }
        )
    };
    let manifest = format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: order}}, spec: {{restartPolicy: Never, volumes: [{{name: all, emptyDir: {{}}}}], \
         initContainers: [{}, {}, {}], containers: [{{name: main, image: \"{image}\", volumeMounts: [{{name: all, mountPath: /all}}], \
         command: [sh, -c, \"cat /all/order\"]}}]}}}}",
        step("first", ""),
        step("side", "restartPolicy: Always,"),
        step("second", "")
    );
    core.apply(&manifest)?;
    let pod = phase(core, "order", "Succeeded")?;
    ensure!(core.k(&["logs", "order", "-c", "main"])? == "first\nside\nsecond\n");
    ensure!(container(&pod, "side")["state"]["terminated"].is_object(), "{:#}", pod["status"]);
    ensure!(condition(&pod, "Initialized") == Some("True") && condition(&pod, "Ready") == Some("False"));
    Ok(())
}

/// Exit codes, reasons and messages.
fn ends(cluster: &Cluster) -> Result<()> {
    let core = &cluster.control_plane;
    let image = &cluster.busybox;
    let script = "echo why > /dev/termination-log; exit 3";
    core.apply(&pod(image, "fails", script, "restartPolicy: Never,", ""))?;
    let failed = phase(core, "fails", "Failed")?;
    let end = &container(&failed, "main")["state"]["terminated"];
    ensure!(end["exitCode"] == 3 && end["reason"] == "Error" && end["message"] == "why\n", "{end:#}");
    let own = "terminationMessagePolicy: FallbackToLogsOnError";
    core.apply(&pod(image, "tells", "echo from-log; exit 1", "restartPolicy: Never,", own))?;
    let failed = phase(core, "tells", "Failed")?;
    ensure!(container(&failed, "main")["state"]["terminated"]["message"] == "from-log\n", "{:#}", failed["status"]);
    let own = "resources: {limits: {memory: 16Mi}}";
    core.apply(&pod(image, "greedy", "head -c 100m /dev/zero | tail", "restartPolicy: Never,", own))?;
    let failed = phase(core, "greedy", "Failed")?;
    ensure!(container(&failed, "main")["state"]["terminated"]["reason"] == "OOMKilled", "{:#}", failed["status"]);
    core.apply(&pod(image, "late", "sleep 1000", "activeDeadlineSeconds: 2,", ""))?;
    let failed = phase(core, "late", "Failed")?;
    ensure!(failed["status"]["reason"] == "DeadlineExceeded", "{:#}", failed["status"]);
    core.apply(&pod(image, "lost", "true", "restartPolicy: Never,", "").replace("[sh, -c, \"true\"]", "[/not/there]"))?;
    let failed = phase(core, "lost", "Failed")?;
    ensure!(container(&failed, "main")["state"]["terminated"]["reason"] == "StartError", "{:#}", failed["status"]);
    Ok(())
}

fn crashes(cluster: &Cluster) -> Result<()> {
    let core = &cluster.control_plane;
    core.apply(&pod(&cluster.busybox, "crashes", "exit 1", "", ""))?;
    let crashed = core.wait_for(&["pod", "crashes"], SOON, |pod| {
        container(pod, "main")["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    })?;
    let main = container(&crashed, "main");
    ensure!(main["lastState"]["terminated"]["exitCode"] == 1 && crashed["status"]["phase"] == "Running", "{main:#}");
    let message = main["state"]["waiting"]["message"].as_str().unwrap_or_default();
    ensure!(message.starts_with("back-off 10s restarting failed container=main pod=crashes_default("), "{message}");
    core.wait_for(&["pod", "crashes"], SOON, |pod| container(pod, "main")["restartCount"].as_u64() >= Some(2))?;
    core.k(&["logs", "crashes", "--previous"])?;
    core.k(&["delete", "pod", "crashes"])?;
    Ok(())
}

fn probes(cluster: &Cluster) -> Result<()> {
    let core = &cluster.control_plane;
    let image = &cluster.busybox;
    let script = "touch /ready; mkdir /www; echo x > /www/i; httpd -p 8080 -h /www; sleep 100000";
    let own = "startupProbe: {tcpSocket: {port: 8080}, periodSeconds: 1, failureThreshold: 30}, \
               readinessProbe: {exec: {command: [cat, /ready]}, periodSeconds: 1}, \
               livenessProbe: {httpGet: {path: /i, port: 8080}, periodSeconds: 1, failureThreshold: 2}";
    core.apply(&pod(image, "probed", script, "", own))?;
    ready(core, "probed")?;
    core.k(&["exec", "probed", "--", "rm", "/ready"])?;
    core.wait_for(&["pod", "probed"], SOON, |pod| condition(pod, "Ready") == Some("False"))?;
    core.k(&["exec", "probed", "--", "touch", "/ready"])?;
    let before = ready(core, "probed")?;
    ensure!(container(&before, "main")["restartCount"] == 0, "{:#}", before["status"]);
    core.k(&["exec", "probed", "--", "rm", "/www/i"])?;
    core.wait_for(&["pod", "probed"], SOON, |pod| container(pod, "main")["restartCount"] == 1)?;
    ready(core, "probed")?;
    let events = core.k(&["get", "events", "--field-selector=involvedObject.name=probed"])?;
    ensure!(events.contains("Liveness probe failed: HTTP probe failed with statuscode: 404"), "{events}");
    ensure!(events.contains("Container main failed liveness probe, will be restarted"), "{events}");
    killed_with_zero(core, image)
}

/// One that ends with 0 because its probe failed runs again under `OnFailure`, and the API server is never told of an end
/// that it would not take back.
fn killed_with_zero(core: &ControlPlane, image: &str) -> Result<()> {
    let script = "touch /fine; trap 'exit 0' TERM; while :; do sleep 0.1; done";
    let own = "livenessProbe: {exec: {command: [cat, /fine]}, periodSeconds: 1, failureThreshold: 3}";
    core.apply(&pod(image, "killed-with-zero", script, "restartPolicy: OnFailure,", own))?;
    ready(core, "killed-with-zero")?;
    core.k(&["exec", "killed-with-zero", "--", "rm", "/fine"])?;
    let again = core.wait_for(&["pod", "killed-with-zero"], SOON, |pod| {
        let main = container(pod, "main");
        main["restartCount"].as_u64() >= Some(1) && main["state"]["running"].is_object()
    })?;
    let last = &container(&again, "main")["lastState"]["terminated"];
    ensure!(last["exitCode"] == 0 && again["status"]["phase"] == "Running", "{:#}", again["status"]);
    core.k(&["delete", "pod", "killed-with-zero"])?;
    Ok(())
}

fn hooks(cluster: &Cluster) -> Result<()> {
    let core = &cluster.control_plane;
    let image = &cluster.busybox;
    let more = "volumes: [{name: out, hostPath: {path: DIR, type: DirectoryOrCreate}}],";
    let dir = cluster.dir.join("hooks");
    let more = more.replace("DIR", &dir.display().to_string());
    let own = "volumeMounts: [{name: out, mountPath: /out}], lifecycle: {\
               postStart: {exec: {command: [sh, -c, \"echo began > /out/start\"]}}, \
               preStop: {exec: {command: [sh, -c, \"echo ends > /out/stop\"]}}}";
    core.apply(&pod(image, "hooked", "sleep 100000", &more, own))?;
    ready(core, "hooked")?;
    ensure!(std::fs::read_to_string(dir.join("start"))? == "began\n");
    core.k(&["delete", "pod", "hooked"])?;
    ensure!(std::fs::read_to_string(dir.join("stop"))? == "ends\n");
    let own = "lifecycle: {postStart: {exec: {command: [\"false\"]}}}";
    core.apply(&pod(image, "unhooked", "sleep 100000", "restartPolicy: Never,", own))?;
    tests::wait_until("the failed hook is told", SOON, || {
        core.k(&["get", "events"]).is_ok_and(|events| events.contains("FailedPostStartHook"))
    })?;
    core.k(&["delete", "pod", "unhooked"])?;
    Ok(())
}

fn environment(cluster: &Cluster) -> Result<()> {
    let core = &cluster.control_plane;
    core.k(&["create", "configmap", "settings", "--from-literal=color=green", "--from-literal=size=big"])?;
    core.k(&["create", "secret", "generic", "keys", "--from-literal=word=hush"])?;
    let own = "envFrom: [{prefix: S_, configMapRef: {name: settings}}], env: [\
        {name: WORD, valueFrom: {secretKeyRef: {name: keys, key: word}}}, \
        {name: ABSENT, valueFrom: {secretKeyRef: {name: none, key: x, optional: true}}}, \
        {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}, \
        {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}, \
        {name: LIMIT, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}, \
        {name: MADE, value: \"$(WORD)-$(S_color)-$(NONE)-$$(X)\"}], resources: {limits: {memory: 64Mi}}";
    let script = "echo \"$S_size $WORD ${ABSENT-none} $NODE $LIMIT $MADE $KUBERNETES_SERVICE_PORT\"; test \"$IP\" = \"$(hostname -i)\"";
    let text = printed(core, &pod(&cluster.busybox, "env", script, "restartPolicy: Never,", own), "env")?;
    ensure!(text == "big hush none board 64 hush-green-$(NONE)-$(X) 443\n", "{text}");
    let own = "env: [{name: WORD, valueFrom: {secretKeyRef: {name: none, key: x}}}]";
    core.apply(&pod(&cluster.busybox, "waits", "true", "restartPolicy: Never,", own))?;
    core.wait_for(&["pod", "waits"], SOON, |pod| {
        container(pod, "main")["state"]["waiting"]["reason"] == "CreateContainerConfigError"
    })?;
    core.k(&["create", "secret", "generic", "none", "--from-literal=x=y"])?;
    phase(core, "waits", "Succeeded")?;
    Ok(())
}

fn rights(cluster: &Cluster) -> Result<()> {
    let core = &cluster.control_plane;
    let image = &cluster.busybox;
    let own = "securityContext: {runAsUser: 1234, runAsGroup: 2345, readOnlyRootFilesystem: true, \
               allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}, seccompProfile: {type: RuntimeDefault}}";
    let more = "restartPolicy: Never, securityContext: {supplementalGroups: [3456]},";
    let script = "id -u; id -g; id -G; touch /x 2>/dev/null || echo read-only; grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status";
    let text = printed(core, &pod(image, "rights", script, more, own), "rights")?;
    let words: Vec<&str> = text.split_whitespace().collect();
    ensure!(words[..2] == ["1234", "2345"] && words.contains(&"3456") && words.contains(&"read-only"), "{text}");
    ensure!(text.contains("CapEff:\t0000000000000000") && text.contains("NoNewPrivs:\t1"), "{text}");
    ensure!(text.contains("Seccomp:\t2"), "{text}");
    core.apply(&pod(image, "root", "true", "restartPolicy: Never,", "securityContext: {runAsNonRoot: true}"))?;
    let waits = core.wait_for(&["pod", "root"], SOON, |pod| {
        container(pod, "main")["state"]["waiting"]["reason"] == "CreateContainerConfigError"
    })?;
    ensure!(waits.to_string().contains("runAsNonRoot and image will run as root"), "{:#}", waits["status"]);
    core.k(&["delete", "pod", "root"])?;
    Ok(())
}

fn namespaces(cluster: &Cluster) -> Result<()> {
    let core = &cluster.control_plane;
    let image = &cluster.busybox;
    let more = "restartPolicy: Never, hostname: custom, subdomain: sub, hostAliases: [{ip: 10.1.2.3, hostnames: [other]}], \
                dnsConfig: {searches: [my.search]},";
    let script = "hostname; grep other /etc/hosts; cat /etc/resolv.conf; sysctl -n net.ipv4.ip_unprivileged_port_start 2>/dev/null || true";
    let text = printed(core, &pod(image, "names", script, more, ""), "names")?;
    ensure!(text.starts_with("custom\n10.1.2.3\tother\n"), "{text}");
    ensure!(text.contains("nameserver 10.96.0.10") && text.contains("cluster.local my.search"), "{text}");
    let more = "restartPolicy: Never, hostNetwork: true, hostPID: true, dnsPolicy: Default,";
    let text = printed(core, &pod(image, "hosts", "hostname -i; ps | wc -l", more, ""), "hosts")?;
    let processes: usize = text.split_whitespace().last().context("no count")?.parse()?;
    ensure!(processes > 10, "{text}");
    let more = "shareProcessNamespace: true, restartPolicy: Never,";
    let two = pod(image, "shared", "sleep 1; ps", more, "").replace(
        "containers: [",
        &format!("containers: [{{name: other, image: \"{image}\", command: [sleep, \"3\"]}}, "),
    );
    core.apply(&two)?;
    phase(core, "shared", "Succeeded")?;
    let text = core.k(&["logs", "shared", "-c", "main"])?;
    ensure!(text.contains("sleep 3") && text.contains("ps"), "{text}");
    Ok(())
}

/// Pull policies and what goes wrong.
fn images(cluster: &Cluster) -> Result<()> {
    let core = &cluster.control_plane;
    let waits = |name: &str, reasons: &[&str]| -> Result<Value> {
        core.wait_for(&["pod", name], SOON, |pod| {
            let reason = container(pod, "main")["state"]["waiting"]["reason"].as_str().unwrap_or_default();
            reasons.contains(&reason)
        })
    };
    let missing = cluster.busybox.replace("busybox:1", "nothing:1");
    core.apply(&pod(&missing, "missing", "true", "", ""))?;
    waits("missing", &["ImagePullBackOff"])?;
    core.apply(&pod(&missing, "never", "true", "", "imagePullPolicy: Never"))?;
    waits("never", &["ErrImageNeverPull"])?;
    core.apply(&pod("Not An Image", "invalid", "true", "", ""))?;
    waits("invalid", &["InvalidImageName"])?;
    let text = printed(
        core,
        &pod(&cluster.busybox, "always", "echo y", "restartPolicy: Never,", "imagePullPolicy: Always"),
        "always",
    )?;
    ensure!(text == "y\n");
    let pod = core.get(&["pod", "always"])?;
    let id = container(&pod, "main")["imageID"].as_str().unwrap_or_default();
    ensure!(id.contains("busybox@sha256:"), "{id}");
    core.k(&["delete", "pod", "missing", "never", "invalid"])?;
    Ok(())
}

fn refused(cluster: &Cluster) -> Result<()> {
    let core = &cluster.control_plane;
    let image = &cluster.busybox;
    for (name, more, own, reason) in [
        ("fat", "nodeName: board,", "resources: {requests: {cpu: \"1000\"}}", "OutOfcpu"),
        ("choosy", "nodeName: board, nodeSelector: {no: such},", "", "NodeAffinity"),
        (
            "unsafe",
            "nodeName: board, securityContext: {sysctls: [{name: kernel.msgmax, value: \"1\"}]},",
            "",
            "SysctlForbidden",
        ),
    ] {
        core.apply(&pod(image, name, "true", more, own))?;
        let failed = phase(core, name, "Failed")?;
        ensure!(failed["status"]["reason"] == reason, "{name}: {:#}", failed["status"]);
        let message = failed["status"]["message"].as_str().unwrap_or_default();
        ensure!(message.starts_with("Pod was rejected: "), "{message}");
        core.k(&["delete", "pod", name, "--timeout=30s"])?;
    }
    Ok(())
}

fn resized(cluster: &Cluster) -> Result<()> {
    let core = &cluster.control_plane;
    let own = "resources: {limits: {memory: 64Mi, cpu: 200m}, requests: {memory: 64Mi, cpu: 200m}}";
    core.apply(&pod(&cluster.busybox, "grows", "sleep 100000", "", own))?;
    let before = ready(core, "grows")?;
    ensure!(before["status"]["qosClass"] == "Guaranteed");
    let patch = r#"{"spec":{"containers":[{"name":"main","resources":{"limits":{"memory":"96Mi","cpu":"300m"},"requests":{"memory":"96Mi","cpu":"300m"}}}]}}"#;
    core.k(&["patch", "pod", "grows", "--subresource", "resize", "-p", patch])?;
    tests::wait_until("the limits are changed in place", SOON, || {
        let cat = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; true";
        core.k(&["exec", "grows", "--", "sh", "-c", cat]).is_ok_and(|text| text.contains("100663296"))
    })?;
    let after = core.get(&["pod", "grows"])?;
    ensure!(container(&after, "main")["restartCount"] == 0, "{:#}", after["status"]);
    Ok(())
}

/// What controllers make of it: a Job, a stateful set, a Deployment that is updated.
fn workloads(cluster: &Cluster) -> Result<()> {
    let core = &cluster.control_plane;
    let image = &cluster.busybox;
    core.apply(&format!(
        "{{apiVersion: batch/v1, kind: Job, metadata: {{name: work}}, spec: {{completions: 3, parallelism: 2, template: {{spec: \
         {{restartPolicy: Never, containers: [{{name: main, image: \"{image}\", command: [\"true\"]}}]}}}}}}}}"
    ))?;
    core.wait_for(&["job", "work"], SOON, |job| job["status"]["succeeded"] == 3)?;
    let template = |version: &str| {
        format!(
            "template: {{metadata: {{labels: {{app: set}}, annotations: {{version: \"{version}\"}}}}, spec: {{terminationGracePeriodSeconds: 1, \
             containers: [{{name: main, image: \"{image}\", command: [sleep, \"100000\"]}}]}}}}"
        )
    };
    core.apply(&format!(
        "{{apiVersion: apps/v1, kind: StatefulSet, metadata: {{name: state}}, spec: {{serviceName: state, replicas: 2, \
         selector: {{matchLabels: {{app: set}}}}, {}}}}}",
        template("1")
    ))?;
    core.wait_for(&["statefulset", "state"], SOON, |it| it["status"]["readyReplicas"] == 2)?;
    ensure!(core.k(&["exec", "state-1", "--", "hostname"])? == "state-1\n");
    core.k(&["delete", "statefulset", "state"])?;
    Ok(())
}

/// A manifest on the board: a pod without the cluster, shown there as its mirror.
fn static_pod(cluster: &Cluster, board: &Board) -> Result<()> {
    let core = &cluster.control_plane;
    let file = board.dir.join("manifests/static.yaml");
    std::fs::write(&file, pod(&cluster.busybox, "fixed", "sleep 100000", "", ""))?;
    let mirror = ready(core, "fixed-board")?;
    ensure!(mirror["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_string(), "{mirror:#}");
    ensure!(core.k(&["exec", "fixed-board", "--", "echo", "in"])? == "in\n");
    // Who deletes the mirror does not end the pod.
    let id = container(&mirror, "main")["containerID"].clone();
    core.k(&["delete", "pod", "fixed-board"])?;
    let again = ready(core, "fixed-board")?;
    ensure!(container(&again, "main")["containerID"] == id, "it was started again");
    std::fs::remove_file(&file)?;
    tests::wait_until("the static pod is gone", SOON, || core.get(&["pod", "fixed-board"]).is_err())
}
