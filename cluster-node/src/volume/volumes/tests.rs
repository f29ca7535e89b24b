//! Whole pods' volumes, made and taken away, in a mount namespace of their own. The link is down: all comes from the cache.

use std::{fs, os::unix::fs::MetadataExt, sync::atomic::Ordering};

use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Secret},
};
use serde_json::{Value, json};

use super::*;
use crate::{object::testing::Bench, volume::testing::in_own_mounts};

struct Node {
    bench: Bench,
    kubelet: PathBuf,
    volumes: Volumes,
}

async fn node() -> Node {
    let bench = Bench::new();
    bench.server.is_down.store(true, Ordering::SeqCst);
    let cache = bench.cache();
    let map: ConfigMap = serde_json::from_value(json!({ "metadata": { "name": "c", "namespace": "ns" },
        "data": { "a": "1", "b": "2" } }))
    .unwrap();
    cache.put_config_map("ns", "c", &map).await.unwrap();
    let data = Some([("k".to_owned(), ByteString(b"hush".to_vec()))].into());
    cache.put_secret("ns", "s", &Secret { data, ..Secret::default() }).await.unwrap();
    let kubelet = bench.dir.path().join("kubelet");
    let volumes = start(&bench);
    Node { bench, kubelet, volumes }
}

/// As after a start of the agent.
fn start(bench: &Bench) -> Volumes {
    Volumes::with(&bench.dir.path().join("kubelet"), bench.objects(), None, Facts::default())
}

fn pod(volumes: Value, mounts: Value, more: Value) -> Pod {
    let mut pod = json!({ "metadata": { "name": "p", "namespace": "ns", "uid": "uid-1", "labels": { "x": "y" } },
        "spec": { "volumes": volumes, "containers": [{ "name": "c", "volumeMounts": mounts }] } });
    for (key, value) in more.as_object().unwrap() {
        pod["spec"][key] = value.clone();
    }
    serde_json::from_value(pod).unwrap()
}

fn mount(name: &str) -> Value {
    json!({ "name": name, "mountPath": format!("/mnt/{name}") })
}

async fn mounts(node: &Node, pod: &Pod) -> Result<Vec<Mount>, VolumeError> {
    let ready = node.volumes.prepare(pod).await?;
    let container = &pod.spec.as_ref().unwrap().containers[0];
    let env = [("POD".to_owned(), "p-1".to_owned())].into();
    Ok(node.volumes.mounts_of(pod, &ready, Wanted::from(container), &env).await?.mounts)
}

fn source(mount: &Mount) -> &Path {
    match &mount.source {
        MountSource::Bind { source, .. } => source,
        other => panic!("{other:?}"),
    }
}

fn everything() -> (Value, Value) {
    let volumes = json!([
        { "name": "map", "configMap": { "name": "c" } },
        { "name": "secret", "secret": { "secretName": "s", "defaultMode": 0o400 } },
        { "name": "down", "downwardAPI": { "items": [{ "path": "labels", "fieldRef": { "fieldPath": "metadata.labels" } }] } },
        { "name": "all", "projected": { "sources": [{ "configMap": { "name": "c", "items": [{ "key": "a", "path": "x/a" }] } },
            { "secret": { "name": "none", "optional": true } }, { "secret": { "name": "s" } }] } },
        { "name": "disk", "emptyDir": {} },
        { "name": "memory", "emptyDir": { "medium": "Memory", "sizeLimit": "1Mi" } },
        { "name": "unused", "secret": { "secretName": "no-such" } },
    ]);
    let mounts = ["map", "secret", "down", "all", "disk", "memory"].map(mount);
    (volumes, json!(mounts))
}

#[tokio::test]
async fn every_kind_is_made_kept_and_taken_away() {
    if !in_own_mounts("volume::volumes::tests::every_kind_is_made_kept_and_taken_away") {
        return;
    }
    let node = node().await;
    let (volumes, wanted) = everything();
    // An optional secret is left out only where it is known not to exist; offline nobody knows.
    let pod = pod(volumes, wanted, json!({ "securityContext": { "fsGroup": 77 } }));
    let error = mounts(&node, &pod).await.unwrap_err();
    assert!(error.is_transient() && error.reason() == "FailedMount", "{error}");
    assert!(error.to_string().starts_with("MountVolume.SetUp failed for volume \"all\" : "), "{error}");
    node.bench.cache().put_secret("ns", "none", &Secret::default()).await.unwrap();
    let found = mounts(&node, &pod).await.unwrap();
    let read = |n: usize, path: &str| fs::read_to_string(source(&found[n]).join(path)).unwrap();
    assert_eq!((read(0, "a"), read(0, "b"), read(1, "k")), ("1".into(), "2".into(), "hush".into()));
    assert_eq!((read(2, "labels"), read(3, "x/a"), read(3, "k")), ("x=\"y\"".into(), "1".into(), "hush".into()));
    assert_eq!(found.iter().map(|it| it.read_only).collect::<Vec<_>>(), [true, true, true, true, false, false]);
    let base = node.kubelet.join("pods/uid-1/volumes");
    assert_eq!(source(&found[1]), base.join("kubernetes.io~secret/secret"));
    let kinds: Vec<_> = mount::list().unwrap().into_iter().filter(|it| it.target.starts_with(&base)).collect();
    assert_eq!(kinds.len(), 4, "{kinds:?}");
    assert!(kinds.iter().all(|it| it.kind == "tmpfs"));
    let stat = |path: PathBuf| {
        let stat = fs::metadata(path).unwrap();
        (stat.mode() & 0o7777, stat.gid())
    };
    assert_eq!(stat(source(&found[1]).join("k")), (0o440, 77));
    assert_eq!(stat(source(&found[4]).to_owned()), (0o2777, 77));
    assert_eq!(stat(source(&found[5]).to_owned()), (0o2777, 77));
    assert!(fs::write(source(&found[5]).join("big"), vec![0; 2 << 20]).is_err(), "over its limit");
    fs::write(source(&found[4]).join("mine"), "x").unwrap();
    // A start of the agent finds it all as it is.
    let again = Node { volumes: start(&node.bench), ..node };
    assert_eq!(mounts(&again, &pod).await.unwrap(), found);
    assert_eq!(mount::list().unwrap().iter().filter(|it| it.target.starts_with(&base)).count(), 4);
    assert!(source(&found[4]).join("mine").exists());
    // A change comes into the same files.
    let map = serde_json::from_value(json!({ "data": { "a": "new" } })).unwrap();
    again.bench.cache().put_config_map("ns", "c", &map).await.unwrap();
    again.volumes.refresh(&pod).await.unwrap();
    assert_eq!(fs::read_to_string(source(&found[0]).join("a")).unwrap(), "new");
    assert!(!source(&found[0]).join("b").exists());
    let usage = again.volumes.usage(&pod).await.volumes;
    assert_eq!(usage["memory"].capacity, 1 << 20);
    assert!(usage["disk"].is_ephemeral && !usage["memory"].is_ephemeral && usage["disk"].inodes == 2, "{usage:?}");
    assert_eq!(again.volumes.orphans(&BTreeSet::new()).await, ["uid-1"]);
    again.volumes.teardown("uid-1").await.unwrap();
    again.volumes.teardown("uid-1").await.unwrap();
    assert!(!again.kubelet.join("pods/uid-1").exists());
    assert!(mount::list().unwrap().iter().all(|it| !it.target.starts_with(&again.kubelet)));
}

#[tokio::test]
async fn after_a_reboot_mounts_come_back_and_the_disk_is_as_it_was() {
    if !in_own_mounts("volume::volumes::tests::after_a_reboot_mounts_come_back_and_the_disk_is_as_it_was") {
        return;
    }
    let node = node().await;
    node.bench.cache().put_secret("ns", "none", &Secret::default()).await.unwrap();
    let (volumes, wanted) = everything();
    let pod = pod(volumes, wanted, json!({}));
    let found = mounts(&node, &pod).await.unwrap();
    fs::write(source(&found[4]).join("mine"), "x").unwrap();
    mount::unmount_below(&node.kubelet).unwrap();
    // Torn by the power cut: named, and empty.
    fs::write(source(&found[0]).join("a"), "").unwrap();
    assert_eq!(mounts(&node, &pod).await.unwrap(), found);
    assert_eq!(fs::read_to_string(source(&found[0]).join("a")).unwrap(), "1");
    assert_eq!(fs::read_to_string(source(&found[1]).join("k")).unwrap(), "hush");
    assert!(source(&found[4]).join("mine").exists());
    node.volumes.teardown("uid-1").await.unwrap();
}

#[tokio::test]
async fn claims_sub_paths_and_paths_of_the_host() {
    if !in_own_mounts("volume::volumes::tests::claims_sub_paths_and_paths_of_the_host") {
        return;
    }
    let node = node().await;
    let data = node.bench.dir.path().join("data");
    fs::create_dir_all(data.join("logs")).unwrap();
    fs::write(data.join("logs/precious"), "x").unwrap();
    let claim: PersistentVolumeClaim = serde_json::from_value(json!({
        "metadata": { "name": "claim", "namespace": "ns", "uid": "cu" }, "spec": { "volumeName": "pv" },
        "status": { "phase": "Bound" } }))
    .unwrap();
    let pv: PersistentVolume = serde_json::from_value(json!({ "metadata": { "name": "pv" },
        "spec": { "claimRef": { "uid": "cu" }, "local": { "path": data } } }))
    .unwrap();
    node.bench.cache().put_claim("ns", "claim", &claim).await.unwrap();
    node.bench.cache().put_volume("pv", &pv).await.unwrap();
    let volumes = json!([{ "name": "v", "persistentVolumeClaim": { "claimName": "claim" } },
        { "name": "host", "hostPath": { "path": data.join("made"), "type": "" } },
        { "name": "map", "configMap": { "name": "c" } }, { "name": "empty", "emptyDir": {} }]);
    let wanted = json!([
        { "name": "v", "mountPath": "/v", "subPath": "logs", "mountPropagation": "HostToContainer" },
        { "name": "v", "mountPath": "/w", "subPathExpr": "$(POD)/new", "readOnly": true, "recursiveReadOnly": "IfPossible" },
        { "name": "host", "mountPath": "/host" },
        { "name": "map", "mountPath": "/etc/a", "subPath": "a" },
        { "name": "map", "mountPath": "/etc/map" },
        { "name": "empty", "mountPath": "/etc/map/inner/dir" },
    ]);
    let pod = pod(volumes, wanted, json!({}));
    let found = mounts(&node, &pod).await.unwrap();
    assert_eq!(fs::read_to_string(source(&found[0]).join("precious")).unwrap(), "x");
    assert_eq!(source(&found[0]), node.kubelet.join("pods/uid-1/volume-subpaths/v/c/0"));
    assert_eq!(found[0].propagation, Propagation::Rslave);
    assert!(data.join("p-1/new").is_dir());
    assert!(found[1].read_only && found[1].recursive_read_only);
    assert_eq!(found[2].source, MountSource::Bind { source: data.join("made"), create: true });
    assert_eq!(fs::read_to_string(source(&found[3])).unwrap(), "1");
    assert!(source(&found[4]).join("inner/dir").is_dir(), "for the mount inside");
    assert_eq!(mounts(&node, &pod).await.unwrap(), found);
    node.volumes.teardown("uid-1").await.unwrap();
    assert_eq!(fs::read_to_string(data.join("logs/precious")).unwrap(), "x", "the claim's data stays");
    assert!(!node.kubelet.join("pods/uid-1").exists());
}

#[tokio::test]
async fn what_cannot_be_is_said() {
    #[track_caller]
    fn assert_says(error: &VolumeError, want: &str, is_transient: bool) {
        assert!(error.to_string().contains(want), "{error}");
        assert_eq!(error.is_transient(), is_transient, "{error}");
    }
    let node = node().await;
    for (source, want, is_transient) in [
        (
            json!({ "csi": { "driver": "d.io" } }),
            "driver name d.io not found in the list of registered CSI drivers",
            false,
        ),
        (
            json!({ "hostPath": { "path": "/no/such", "type": "Directory" } }),
            "hostPath type check failed: /no/such is not a directory",
            true,
        ),
        (json!({ "emptyDir": { "medium": "Floppy" } }), "unknown storage medium", false),
        (
            json!({ "projected": { "sources": [{ "clusterTrustBundle": { "path": "x", "name": "b" } }] } }),
            "clusterTrustBundle",
            false,
        ),
        (json!({ "iscsi": { "iqn": "i", "lun": 0, "targetPortal": "t" } }), "no volume plugin matched", false),
        (
            json!({ "configMap": { "name": "c", "items": [{ "key": "zz", "path": "x" }] } }),
            "non-existent config key: zz",
            true,
        ),
        (json!({ "configMap": { "name": "other" } }), "configmap \"other\" could not be fetched", true),
        (json!({ "image": { "reference": "busybox" } }), "no container engine", false),
    ] {
        let mut volume = source;
        volume["name"] = json!("v");
        let pod = pod(json!([volume]), json!([mount("v")]), json!({}));
        assert_says(&mounts(&node, &pod).await.unwrap_err(), want, is_transient);
    }
    let strange = pod(json!([{ "name": "v", "emptyDir": {} }]), json!([mount("w")]), json!({}));
    assert_says(&mounts(&node, &strange).await.unwrap_err(), "not among the pod's volumes", false);
    for (more, want) in [
        (json!({ "mountPropagation": "Sideways" }), "mountPropagation"),
        (json!({ "recursiveReadOnly": "Enabled" }), "needs readOnly: true"),
        (json!({ "subPath": "../x" }), "must not contain"),
        (json!({ "subPathExpr": "$(NO)" }), "missing value for"),
    ] {
        let mut wanted = mount("v");
        wanted.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let pod = pod(json!([{ "name": "v", "emptyDir": {} }]), json!([wanted]), json!({}));
        let error = mounts(&node, &pod).await.unwrap_err();
        assert!(error.to_string().contains(want), "{error}");
    }
    for uid in ["..", "", "a/b", "."] {
        node.volumes.teardown(uid).await.unwrap_err();
    }
    let mut hostile = pod(json!([{ "name": "v", "emptyDir": {} }]), json!([mount("v")]), json!({}));
    hostile.metadata.uid = Some("../../etc".into());
    mounts(&node, &hostile).await.unwrap_err();
}

#[tokio::test]
async fn huge_pages_and_file_systems_that_a_kernel_may_lack() {
    if !in_own_mounts("volume::volumes::tests::huge_pages_and_file_systems_that_a_kernel_may_lack") {
        return;
    }
    let node = node().await;
    let has = |kind: &str| {
        let all = fs::read_to_string("/proc/filesystems").unwrap();
        all.lines().any(|line| line.split_whitespace().last() == Some(kind))
    };
    let mut huge = pod(
        json!([{ "name": "v", "emptyDir": { "medium": "HugePages" } }]),
        json!([mount("v")]),
        json!({ "securityContext": { "fsGroup": 77 } }),
    );
    let requests = json!({ "requests": { "hugepages-2Mi": "4Mi" } });
    huge.spec.as_mut().unwrap().containers[0].resources = Some(serde_json::from_value(requests).unwrap());
    let made = mounts(&node, &huge).await;
    if has("hugetlbfs") && Path::new("/sys/kernel/mm/hugepages/hugepages-2048kB").exists() {
        let path = source(&made.unwrap()[0]).to_owned();
        assert!(mount::list().unwrap().iter().any(|it| it.target == path && it.kind == "hugetlbfs"));
        let stat = fs::metadata(&path).unwrap();
        assert_eq!((stat.mode() & 0o7777, stat.gid()), (0o2777, 77));
    } else {
        made.unwrap_err();
    }
    node.volumes.teardown("uid-1").await.unwrap();
    let export = json!([{ "name": "v", "nfs": { "server": "127.0.0.1", "path": "/none" } }]);
    if !has("nfs4") {
        let error = mounts(&node, &pod(export, json!([mount("v")]), json!({}))).await.unwrap_err();
        assert!(error.to_string().contains("no file system \"nfs4\"") && !error.is_transient(), "{error}");
    }
    node.volumes.teardown("uid-1").await.unwrap();
    assert!(!node.kubelet.join("pods/uid-1").exists());
}

#[tokio::test]
async fn what_a_container_mounted_inside_goes_with_the_pod_and_nothing_else() {
    if !in_own_mounts("volume::volumes::tests::what_a_container_mounted_inside_goes_with_the_pod_and_nothing_else") {
        return;
    }
    let node = node().await;
    let outside = node.bench.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("precious"), "x").unwrap();
    let pod = pod(json!([{ "name": "v", "emptyDir": {} }]), json!([mount("v")]), json!({}));
    let path = source(&mounts(&node, &pod).await.unwrap()[0]).to_owned();
    // Bidirectional mounts, one on the other, and a link where a folder was.
    fs::create_dir(path.join("in")).unwrap();
    mount::bind(&mount::open(&outside).unwrap(), &path.join("in"), false).unwrap();
    mount::tmpfs(&path.join("in"), None, "mode=755").unwrap();
    std::os::unix::fs::symlink(&outside, path.join("link")).unwrap();
    // As another agent's or a user's own mount beside it, whose name begins alike.
    let beside = node.kubelet.join("pods/uid-12/x");
    fs::create_dir_all(&beside).unwrap();
    mount::tmpfs(&beside, None, "mode=755").unwrap();
    node.volumes.teardown("uid-1").await.unwrap();
    assert!(!node.kubelet.join("pods/uid-1").exists());
    assert_eq!(fs::read_to_string(outside.join("precious")).unwrap(), "x");
    assert!(mount::is_mounted(&beside).unwrap());
    mount::unmount_below(&node.kubelet).unwrap();
}
