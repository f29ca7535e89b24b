//! The same archives through other people's programs: GNU tar makes them and unpacks them, umoci unpacks images of them.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::json;

use super::make::{Facts, Place, Tar, describe, gzip};
use crate::{
    content::Digest,
    snapshot::{CommitOptions, PrepareOptions},
};

fn run(program: &str, args: &[&str], dir: &Path) {
    let output = Command::new(program).args(args).current_dir(dir).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}; `cargo xtask test` installs it"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn source(dir: &Path) -> PathBuf {
    let script = "mkdir -p src/sub/deep && cd src && echo hello > file && ln file hard && ln -s file soft \
        && chmod 4755 file && chown 3000000:70000 sub && chmod 1777 sub && mkfifo fifo && mknod null c 1 3 \
        && truncate -s 3M sparse && printf end >> sparse && printf mid | dd of=sparse bs=1 seek=1000000 conv=notrunc status=none \
        && head -c 3000000 /dev/urandom > random && touch -d '2001-02-03 04:05:06.789012345' file \
        && mkdir -p \"$(printf 'n%.0s' $(seq 120))/$(printf 'm%.0s' $(seq 120))\" && touch -d @1000000000 sub/deep \
        && setfattr -n user.test -v value random 2>/dev/null; true";
    run("sh", &["-c", script], dir);
    dir.join("src")
}

/// What formats without fractions of a second keep.
fn whole_seconds(mut all: BTreeMap<PathBuf, Facts>) -> BTreeMap<PathBuf, Facts> {
    for facts in all.values_mut() {
        facts.mtime.1 = 0;
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_of_gnu_tar_in_every_format() {
    let place = Place::new();
    let src = source(place.dir.path());
    let want = describe(&src);
    for (name, args) in [
        ("gnu", &["--format=gnu"][..]),
        ("gnu sparse", &["--format=gnu", "-S"]),
        ("pax", &["--format=pax", "--xattrs"]),
        ("pax 0.0", &["--format=pax", "--xattrs", "-S", "--sparse-version=0.0"]),
        ("pax 0.1", &["--format=pax", "--xattrs", "-S", "--sparse-version=0.1"]),
        ("pax 1.0", &["--format=pax", "--xattrs", "-S", "--sparse-version=1.0"]),
    ] {
        let args = [&["-cf", "a.tar", "-C", "src"], args, &["."]].concat();
        run("tar", &args, place.dir.path());
        let bytes = fs::read(place.dir.path().join("a.tar")).unwrap();
        let layer = place.unpack(&gzip(&bytes)).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        let found = describe(&place.snapshots.layer_path(&layer));
        let (mut want, mut found) = if name.starts_with("gnu") {
            (whole_seconds(want.clone()), whole_seconds(found))
        } else {
            (want.clone(), found)
        };
        if name.starts_with("gnu") {
            want.values_mut().chain(found.values_mut()).for_each(|facts| facts.xattrs.clear());
        }
        // Which of several names is the first depends on the order of the archive, and is compared by `describe` alike.
        for (path, facts) in &want {
            assert_eq!(found.get(path), Some(facts), "{name}: {}", path.display());
        }
        assert_eq!(want.len(), found.len(), "{name}");
        place.snapshots.remove_layer(&layer.key).unwrap();
    }
}

/// What a snapshot gives as its layer is read by GNU tar without a word, and is the same tree.
#[tokio::test(flavor = "multi_thread")]
async fn gnu_tar_reads_what_we_write() {
    let place = Place::new();
    let src = source(place.dir.path());
    let root = place.target("root");
    place.snapshots.prepare("one", &[], &root, PrepareOptions::default()).await.unwrap();
    run("cp", &["-a", &format!("{}/.", src.display()), root.to_str().unwrap()], place.dir.path());
    let mut blob = Vec::new();
    place.snapshots.commit("one", CommitOptions::default(), &mut blob).await.unwrap();
    fs::write(place.dir.path().join("out.tar.gz"), &blob).unwrap();
    let out = place.target("out");
    run("tar", &["--xattrs", "-xpzf", "out.tar.gz", "-C", "out"], place.dir.path());
    // New folders in a root without layers are opaque, which is a file to others.
    let mut found = describe(&out);
    found.retain(|path, _| path.file_name().is_none_or(|name| name != ".wh..wh..opq"));
    let want = describe(&root);
    for (path, facts) in &want {
        let mut other = found.get(path).cloned().unwrap_or_else(|| panic!("{} is missing", path.display()));
        if facts.kind == 0o040_000 {
            other.mtime = facts.mtime; // GNU tar sets it before it writes the mark.
        }
        assert_eq!(&other, facts, "{}", path.display());
    }
    assert_eq!(found.len(), want.len());
    place.snapshots.remove("one").await.unwrap();
}

/// Three layers with all sorts of changes: what umoci makes of the image is what the overlay shows.
#[tokio::test(flavor = "multi_thread")]
async fn umoci_sees_the_same_image() {
    let place = Place::new();
    let one = Tar::new()
        .folder("etc", 0o755)
        .file("etc/a", b"a")
        .file("etc/b", b"b")
        .folder("dir", 0o1777)
        .file("dir/x", b"x")
        .mode("suid", 0o4755, b"s")
        .hard("suid-too", "suid")
        .symbolic("lib", "usr/lib")
        .folder("usr", 0o755)
        .folder("usr/lib", 0o755)
        .file("usr/lib/so", b"so")
        .end();
    let two = Tar::new()
        .folder("etc", 0o750)
        .file("etc/.wh.a", b"")
        .folder("dir", 0o755)
        .file("dir/.wh..wh..opq", b"")
        .file("dir/y", b"y")
        .folder("suid", 0o700)
        .file("suid/in", b"in")
        .end();
    let three = Tar::new().folder("etc", 0o755).file("etc/a", b"again").file(".wh.lib", b"").folder("lib", 0o711).end();
    let oci = place.target("oci");
    let (layers, diff_ids) = (image(&oci, &[&one, &two, &three]), [&one, &two, &three].map(|it| Digest::of(it)));
    run("umoci", &["raw", "unpack", "--image", "oci:latest", "peer"], place.dir.path());
    let mut stack = Vec::new();
    for (blob, diff_id) in layers.iter().zip(diff_ids) {
        let layer = place.unpack(blob).await.unwrap();
        assert_eq!(layer.diff_id, diff_id);
        stack.push(layer);
    }
    let root = place.target("root");
    place.snapshots.prepare("one", &stack, &root, PrepareOptions::default()).await.unwrap();
    let (mut ours, mut theirs) = (describe(&root), describe(&place.dir.path().join("peer")));
    // A name left of several: the overlay counts the names of the layer, umoci those of the tree.
    for all in [&mut ours, &mut theirs] {
        for facts in all.values_mut() {
            facts.same_as = None;
        }
    }
    for (path, facts) in &theirs {
        assert_eq!(ours.get(path), Some(facts), "{}", path.display());
    }
    assert_eq!(ours.len(), theirs.len());
    place.snapshots.remove("one").await.unwrap();
}

/// Writes an OCI layout; the layers' blobs.
fn image(oci: &Path, layers: &[&Vec<u8>]) -> Vec<Vec<u8>> {
    let blobs = oci.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8], media_type: &str| {
        let digest = Digest::of(bytes);
        fs::write(blobs.join(digest.hex()), bytes).unwrap();
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    };
    let packed: Vec<_> = layers.iter().map(|layer| gzip(layer)).collect();
    let descriptors: Vec<_> =
        packed.iter().map(|blob| put(blob, "application/vnd.oci.image.layer.v1.tar+gzip")).collect();
    let diff_ids: Vec<_> = layers.iter().map(|layer| Digest::of(layer)).collect();
    let config = json!({"architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let config = put(config.to_string().as_bytes(), "application/vnd.oci.image.config.v1+json");
    let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config, "layers": descriptors});
    let mut manifest = put(manifest.to_string().as_bytes(), "application/vnd.oci.image.manifest.v1+json");
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "latest"});
    fs::write(oci.join("index.json"), json!({"schemaVersion": 2, "manifests": [manifest]}).to_string()).unwrap();
    fs::write(oci.join("oci-layout"), json!({"imageLayoutVersion": "1.0.0"}).to_string()).unwrap();
    packed
}
