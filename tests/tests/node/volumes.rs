//! Volumes of pods.

use anyhow::{Result, ensure};
use tests::cluster::{Cluster, on_a_cluster};

use super::{SOON, container, pod, printed, ready};

#[test]
fn volumes_of_every_kind() -> Result<()> {
    on_a_cluster(|cluster| {
        let _board = cluster.joined("board", "")?;
        let core = &cluster.control_plane;
        core.k(&["create", "configmap", "files", "--from-literal=a=one", "--from-literal=b=two"])?;
        core.k(&["create", "secret", "generic", "hidden", "--from-literal=key=hush"])?;
        projected(cluster)?;
        empty(cluster)?;
        sub_paths(cluster)?;
        live(cluster)?;
        late(cluster)?;
        claim(cluster)?;
        images(cluster)
    })
}

fn once(cluster: &Cluster, name: &str, volumes: &str, mounts: &str, more: &str, script: &str) -> Result<String> {
    let more = format!("restartPolicy: Never, volumes: [{volumes}], {more}");
    printed(
        &cluster.control_plane,
        &pod(&cluster.busybox, name, script, &more, &format!("volumeMounts: [{mounts}]")),
        name,
    )
}

fn projected(cluster: &Cluster) -> Result<()> {
    let volumes = "{name: all, projected: {sources: [{configMap: {name: files, items: [{key: a, path: sub/a}]}}, \
                   {secret: {name: hidden}}, {downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}, \
                   {serviceAccountToken: {path: token, audience: me}}]}}, \
                   {name: secret, secret: {secretName: hidden, defaultMode: 0400}}";
    let mounts = "{name: all, mountPath: /all}, {name: secret, mountPath: /secret, readOnly: true}";
    let script = "cat /all/sub/a; echo; cat /all/key; echo; cat /all/labels; echo; cut -d. -f1 /all/token | wc -l; \
                  stat -L -c %a /secret/key; touch /secret/x 2>/dev/null || echo read-only; \
                  ls /var/run/secrets/kubernetes.io/serviceaccount";
    let text = once(cluster, "projected", volumes, mounts, "", script)?;
    let lines: Vec<&str> = text.lines().collect();
    let want = ["one", "hush", "app=\"projected\"", "1", "400", "read-only", "ca.crt", "namespace", "token"];
    ensure!(lines == want, "{text}");
    Ok(())
}

fn empty(cluster: &Cluster) -> Result<()> {
    let volumes = "{name: disk, emptyDir: {}}, {name: memory, emptyDir: {medium: Memory, sizeLimit: 1Mi}}";
    let mounts = "{name: disk, mountPath: /disk}, {name: memory, mountPath: /memory}";
    let script = "grep -c ' /memory tmpfs' /proc/mounts; head -c 2m /dev/zero > /memory/x 2>/dev/null || echo full; \
                  touch /disk/x && stat -c %g /disk";
    let text = once(cluster, "empty", volumes, mounts, "securityContext: {fsGroup: 777},", script)?;
    ensure!(text == "1\nfull\n777\n", "{text}");
    Ok(())
}

fn sub_paths(cluster: &Cluster) -> Result<()> {
    let dir = cluster.dir.join("host");
    std::fs::create_dir_all(dir.join("in"))?;
    std::fs::write(dir.join("in/file"), "from the host\n")?;
    std::os::unix::fs::symlink("/etc", dir.join("evil"))?;
    let volumes = format!("{{name: host, hostPath: {{path: \"{}\", type: Directory}}}}", dir.display());
    let mounts = "{name: host, mountPath: /f, subPath: in/file}, {name: host, mountPath: /d, subPathExpr: $(NAME)}";
    let own = format!(
        "volumeMounts: [{mounts}], env: [{{name: NAME, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}]"
    );
    let more = format!("restartPolicy: Never, volumes: [{volumes}],");
    let core = &cluster.control_plane;
    let text = printed(core, &pod(&cluster.busybox, "subs", "cat /f; touch /d/made", &more, &own), "subs")?;
    ensure!(text == "from the host\n" && dir.join("subs/made").exists(), "{text}");
    // Not out of the volume, whatever lies in it.
    let own = "volumeMounts: [{name: host, mountPath: /x, subPath: evil}]";
    core.apply(&pod(&cluster.busybox, "breaks-out", "cat /x/hostname", &more, own))?;
    core.wait_for(&["pod", "breaks-out"], SOON, |pod| {
        container(pod, "main")["state"]["waiting"]["reason"] == "CreateContainerConfigError"
    })?;
    core.k(&["delete", "pod", "breaks-out"])?;
    let missing = "volumes: [{name: host, hostPath: {path: /not/there/at/all, type: Directory}}],";
    core.apply(&pod(&cluster.busybox, "no-host", "true", missing, "volumeMounts: [{name: host, mountPath: /x}]"))?;
    tests::wait_until("what is wrong is told", SOON, || {
        let events = core.k(&["get", "events", "--field-selector=involvedObject.name=no-host"]);
        events.is_ok_and(|events| events.contains("FailedMount"))
    })?;
    core.k(&["delete", "pod", "no-host"])?;
    Ok(())
}

/// A change of a config map is seen by the running pod.
fn live(cluster: &Cluster) -> Result<()> {
    let core = &cluster.control_plane;
    let more = "volumes: [{name: files, configMap: {name: files}}],";
    core.apply(&pod(&cluster.busybox, "live", "sleep 100000", more, "volumeMounts: [{name: files, mountPath: /f}]"))?;
    ready(core, "live")?;
    core.k(&["patch", "configmap", "files", "-p", r#"{"data":{"a":"changed","c":"new"}}"#])?;
    tests::wait_until("the change is seen", SOON, || {
        core.k(&["exec", "live", "--", "cat", "/f/a", "/f/c"]).is_ok_and(|text| text == "changednew")
    })
}

/// What is missing is waited for.
fn late(cluster: &Cluster) -> Result<()> {
    let core = &cluster.control_plane;
    let more = "restartPolicy: Never, volumes: [{name: files, configMap: {name: later}}],";
    core.apply(&pod(&cluster.busybox, "late", "cat /f/x", more, "volumeMounts: [{name: files, mountPath: /f}]"))?;
    tests::wait_until("that it is missing is told", SOON, || {
        let events = core.k(&["get", "events", "--field-selector=involvedObject.name=late"]);
        events.is_ok_and(|events| events.contains("configmap \"later\" not found"))
    })?;
    core.k(&["create", "configmap", "later", "--from-literal=x=came"])?;
    super::phase(core, "late", "Succeeded")?;
    ensure!(core.k(&["logs", "late"])? == "came");
    Ok(())
}

fn claim(cluster: &Cluster) -> Result<()> {
    let core = &cluster.control_plane;
    let dir = cluster.dir.join("local-volume");
    std::fs::create_dir_all(&dir)?;
    core.apply(&format!(
        "{{apiVersion: v1, kind: PersistentVolume, metadata: {{name: disk}}, spec: {{capacity: {{storage: 1Gi}}, accessModes: [ReadWriteOnce], \
         storageClassName: manual, persistentVolumeReclaimPolicy: Retain, local: {{path: \"{}\"}}, nodeAffinity: {{required: {{nodeSelectorTerms: \
         [{{matchExpressions: [{{key: kubernetes.io/hostname, operator: In, values: [board]}}]}}]}}}}}}}}",
        dir.display()
    ))?;
    core.apply(
        "{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: mine}, spec: {accessModes: [ReadWriteOnce], storageClassName: manual, \
         resources: {requests: {storage: 1Gi}}}}",
    )?;
    let volumes = "{name: data, persistentVolumeClaim: {claimName: mine}}";
    once(cluster, "claims", volumes, "{name: data, mountPath: /data}", "", "echo kept > /data/file")?;
    ensure!(std::fs::read_to_string(dir.join("file"))? == "kept\n");
    Ok(())
}

fn images(cluster: &Cluster) -> Result<()> {
    let volumes = format!("{{name: files, image: {{reference: \"{}\", pullPolicy: IfNotPresent}}}}", cluster.busybox);
    let script = "ls /image/bin/busybox; touch /image/x 2>/dev/null || echo read-only";
    let text = once(cluster, "image-volume", &volumes, "{name: files, mountPath: /image}", "", script)?;
    ensure!(text == "/image/bin/busybox\nread-only\n", "{text}");
    Ok(())
}
