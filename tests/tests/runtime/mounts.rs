//! Mounts, masked and read-only paths, id-mapped mounts and user namespaces.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
};

use serde_json::json;

use crate::bundle::{Bundle, check, kinds, text};

#[test]
fn mounts_of_all_kinds() {
    let masked = |bundle: Bundle| {
        bundle
            .with("/linux/maskedPaths", json!(["/proc/kcore", "/proc/irq", "/none"]))
            .with("/linux/readonlyPaths", json!(["/proc/sys"]))
    };
    check(
        "masked",
        "ls /proc/irq; head -c1 /proc/kcore; echo 1 2>/dev/null >/proc/sys/kernel/hostname || echo ro",
        masked,
        "ro",
    );
    check(
        "root",
        "touch /x 2>&1; touch /tmp/y && echo rw",
        |bundle| {
            bundle
                .with("/root/readonly", json!(true))
                .mount(json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"}))
        },
        "touch: /x: Read-only file system\nrw",
    );
    check(
        "bind",
        "touch /data/x 2>&1; ls -d /data/.",
        |bundle| bundle.mount(json!({"destination": "/data", "source": "/tmp", "options": ["rbind", "ro"]})),
        "touch: /data/x: Read-only file system\n/data/.",
    );
    let copy = |bundle: Bundle| {
        fs::write(bundle.root().join("data/old"), "kept").unwrap();
        bundle.mount(json!({"destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]}))
    };
    for kind in kinds().into_iter().filter(|kind| kind.name != "crun") {
        let bundle = copy(Bundle::new(&kind, &["sh", "-c", "cat /data/old; echo new >/data/new"]));
        assert_eq!(text(&bundle.run()), "kept", "{}", kind.name);
        assert!(!bundle.root().join("data/new").exists());
    }
    check(
        "shared",
        "grep -q ' /data .* shared:' /proc/self/mountinfo && echo shared",
        |bundle| {
            bundle
                .mount(json!({"destination": "/data", "source": "/tmp", "options": ["rbind", "rshared"]}))
                .with("/linux/rootfsPropagation", json!("shared"))
        },
        "shared",
    );
}

/// `ro` leaves what is mounted below writable, `rro` does not.
#[test]
fn read_only_as_a_whole_or_at_the_top() {
    let source = tempfile::tempdir().unwrap();
    let below = source.path().join("below");
    fs::create_dir(&below).unwrap();
    rustix::mount::mount("tmpfs", &below, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
    let judged = std::panic::catch_unwind(|| {
        for (option, want) in [("ro", "no yes"), ("rro", "no no"), ("rw", "yes yes")] {
            check(
                option,
                "for dir in /data /data/below; do (: > $dir/file) 2>/dev/null && echo -n 'yes ' || echo -n 'no '; done",
                |bundle| {
                    let mount = json!({"destination": "/data", "source": source.path(), "options": ["rbind", option]});
                    let caps = json!(["CAP_DAC_OVERRIDE"]);
                    let caps = json!({"bounding": caps, "effective": caps, "permitted": caps});
                    bundle.mount(mount).with("/process/capabilities", caps)
                },
                want,
            );
        }
    });
    rustix::mount::unmount(&below, rustix::mount::UnmountFlags::DETACH).unwrap();
    judged.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

#[test]
fn id_mapped_mounts_and_user_namespaces() {
    let kind = &kinds()[0];
    let source = tempfile::tempdir().unwrap();
    fs::set_permissions(source.path(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(source.path().join("file"), "x").unwrap();
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 1000}, {"containerID": 1000, "hostID": 200_000, "size": 1000}]);
    let mapped = |bundle: Bundle| {
        bundle.mount(json!({"destination": "/data", "source": source.path(), "options": ["rbind"], "uidMappings": map, "gidMappings": map}))
            .mount(json!({"destination": "/data/below", "type": "tmpfs", "source": "tmpfs"}))
    };
    fs::create_dir(source.path().join("below")).unwrap();
    let bundle =
        mapped(Bundle::new(kind, &["sh", "-c", "stat -c %u /data/file; grep -c ' /data/below ' /proc/self/mountinfo"]));
    assert_eq!(text(&bundle.run()), "100000\n1");
    // In a user namespace of the same mapping, the owner is root again, and what is made belongs to root outside.
    let inside = mapped(Bundle::new(
        kind,
        &["sh", "-c", "stat -c %u /data/file; touch /data/new; cat /proc/self/uid_map | head -n1; id -u"],
    ))
    .with("/linux/uidMappings", map.clone())
    .with("/linux/gidMappings", map.clone());
    let mut inside = inside;
    inside.config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    let output = inside.run();
    let lines: Vec<String> =
        text(&output).lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(lines, ["0", "0 100000 1000", "0"], "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fs::metadata(source.path().join("new")).unwrap().uid(), 0);
}
