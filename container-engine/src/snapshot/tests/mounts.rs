//! Root file systems as containers see them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use tokio::io::AsyncReadExt;

use super::make::{Facts, Place, Tar, describe, gzip};
use crate::snapshot::{CommitOptions, Compression, IdMap, Layer, PrepareOptions, Snapshots, Way, overlay::mounted};

const MAP: IdMap = IdMap { host: 400_000, size: 65_536 };

async fn two_layers(place: &Place) -> Vec<Layer> {
    let below = Tar::new()
        .folder("./", 0o755)
        .folder("etc", 0o755)
        .file("etc/one", b"one")
        .file("etc/gone", b"x")
        .folder("opaque", 0o755)
        .file("opaque/below", b"x")
        .file("replaced", b"a file")
        .pax(&[("uid", b"1000"), ("gid", b"1001"), ("SCHILY.xattr.user.a", b"b")])
        .mode("owned", 0o4755, b"owned")
        .hard("owned-too", "owned")
        .end();
    let above = Tar::new()
        .file("etc/two", b"two")
        .file("etc/.wh.gone", b"")
        .folder("opaque", 0o700)
        .file("opaque/.wh..wh..opq", b"")
        .file("opaque/above", b"x")
        .folder("replaced", 0o755)
        .file("replaced/file", b"x")
        .end();
    vec![place.unpack(&below).await.unwrap(), place.unpack(&above).await.unwrap()]
}

/// Without what a mount changes by itself: the times of folders that were not made alike, and the copy's order of links.
fn view(root: &Path) -> BTreeMap<PathBuf, Facts> {
    describe(root)
}

async fn diff(snapshots: &Snapshots, id: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    snapshots.diff(id).await.unwrap().read_to_end(&mut bytes).await.unwrap();
    bytes
}

fn write_something(root: &Path) {
    fs::write(root.join("etc/one"), "changed").unwrap();
    fs::remove_file(root.join("etc/two")).unwrap();
    fs::remove_dir_all(root.join("replaced")).unwrap();
    fs::write(root.join("replaced"), "a file once more").unwrap();
    fs::remove_dir_all(root.join("opaque")).unwrap();
    fs::create_dir(root.join("opaque")).unwrap();
    fs::write(root.join("opaque/new"), "new").unwrap();
    fs::hard_link(root.join("opaque/new"), root.join("opaque/new-too")).unwrap();
    fs::set_permissions(root.join("opaque/new"), fs::Permissions::from_mode(0o4711)).unwrap();
    symlink("nowhere", root.join("link")).unwrap();
    fs::create_dir_all(root.join("deep/er")).unwrap();
    fs::write(root.join(format!("deep/er/{}", "ü".repeat(100))), "long").unwrap();
}

fn names(archive: &[u8]) -> Vec<String> {
    let mut reader = crate::snapshot::archive::Archive::new(archive);
    let mut names = Vec::new();
    while let Some(entry) = reader.next().unwrap() {
        names.push(String::from_utf8(entry.path).unwrap());
    }
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn overlay_and_copy_show_and_give_back_the_same() {
    let place = Place::new();
    let layers = two_layers(&place).await;
    let (over, copy) = (place.target("over"), place.target("copy"));
    let made = place.snapshots.prepare("over", &layers, &over, PrepareOptions::default()).await.unwrap();
    assert_eq!(made.way, Way::Overlay);
    let options = PrepareOptions { copy: true, ..PrepareOptions::default() };
    assert_eq!(place.snapshots.prepare("copy", &layers, &copy, options).await.unwrap().way, Way::Copy);
    let all = view(&over);
    assert_eq!(all, view(&copy));
    assert!(!all.contains_key(Path::new("etc/gone")) && !all.contains_key(Path::new("opaque/below")));
    assert_eq!(all[Path::new("owned")].xattrs[b"user.a".as_slice()], b"b");
    assert!(names(&diff(&place.snapshots, "over").await).is_empty());
    assert!(names(&diff(&place.snapshots, "copy").await).is_empty());

    for id in ["over", "copy"] {
        let root = place.dir.path().join(id);
        write_something(&root);
        let archive = diff(&place.snapshots, id).await;
        assert_eq!(archive, diff(&place.snapshots, id).await, "the same bytes each time");
        let found: BTreeSet<_> = names(&archive).into_iter().collect();
        for name in ["etc/", "etc/one", "etc/.wh.two", "replaced", "opaque/new", "opaque/new-too", "link", "deep/er/"] {
            assert!(found.contains(name), "{id} lacks {name}: {found:?}");
        }
        assert!(!found.contains("owned"), "{id}");

        // What is unpacked from it shows the same above the same layers.
        let mut blob = Vec::new();
        let options = CommitOptions { compression: if id == "over" { Compression::Zstd } else { Compression::Gzip } };
        let commit = place.snapshots.commit(id, options, &mut blob).await.unwrap();
        assert_eq!(commit.digest, crate::content::Digest::of(&blob));
        assert_eq!(commit.size, blob.len() as u64);
        assert_eq!(commit.layer.diff_id, crate::content::Digest::of(&archive));
        assert_eq!(place.unpack(&blob).await.unwrap().diff_id, commit.layer.diff_id);
        let again = place.target(&format!("{id}-again"));
        let stack = [layers.as_slice(), &[commit.layer]].concat();
        place.snapshots.prepare(&format!("{id}-again"), &stack, &again, PrepareOptions::default()).await.unwrap();
        assert_eq!(view(&root), view(&again), "{id}");
        place.snapshots.remove(&format!("{id}-again")).await.unwrap();
    }
    place.snapshots.remove("over").await.unwrap();
    place.snapshots.remove("copy").await.unwrap();
    assert!(fs::read_dir(&over).unwrap().next().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_namespace_sees_its_own_ids() {
    let place = Place::new();
    let layers = two_layers(&place).await;
    for (id, copy) in [("mapped", false), ("shifted", true)] {
        let root = place.target(id);
        let options = PrepareOptions { idmap: Some(MAP), copy, ..PrepareOptions::default() };
        let made = place.snapshots.prepare(id, &layers, &root, options).await.unwrap();
        assert_eq!(made.way == Way::Copy, copy, "id-mapped mounts work on this kernel");
        let owned = fs::metadata(root.join("owned")).unwrap();
        assert_eq!((owned.uid(), owned.gid(), owned.mode() & 0o7777), (401_000, 401_001, 0o4755), "{id}");
        assert_eq!(fs::metadata(&root).unwrap().uid(), 400_000, "{id}");
        // As the container's root and its user 5 would.
        fs::write(root.join("etc/one"), "changed").unwrap();
        fs::write(root.join("etc/new"), "new").unwrap();
        std::os::unix::fs::chown(root.join("etc/new"), Some(400_005), Some(400_000)).unwrap();
        let archive = diff(&place.snapshots, id).await;
        let layer = place.unpack(&archive).await.unwrap();
        let path = place.snapshots.layer_path(&layer);
        assert_eq!(fs::metadata(path.join("etc/new")).unwrap().uid(), 5, "{id}");
        assert_eq!(fs::metadata(path.join("etc/one")).unwrap().uid(), 0, "{id}");
        assert_eq!(fs::metadata(path.join("etc")).unwrap().uid(), 0, "{id}");
        place.snapshots.remove(id).await.unwrap();
        place.snapshots.remove_layer(&layer.key).unwrap();
    }
    // The layers themselves are as they were.
    assert_eq!(fs::metadata(place.snapshots.layer_path(&layers[0]).join("owned")).unwrap().uid(), 1000);
}

#[tokio::test(flavor = "multi_thread")]
async fn as_many_layers_as_an_image_may_have() {
    let place = Place::new();
    let mut layers = Vec::new();
    for number in 0..128 {
        layers.push(
            place
                .unpack(&gzip(
                    &Tar::new().file(&format!("f{number}"), b"x").file("last", number.to_string().as_bytes()).end(),
                ))
                .await
                .unwrap(),
        );
    }
    for (id, idmap) in [("many", None), ("many-mapped", Some(MAP))] {
        let root = place.target(id);
        let options = PrepareOptions { idmap, ..PrepareOptions::default() };
        assert_eq!(place.snapshots.prepare(id, &layers, &root, options).await.unwrap().way, Way::Overlay, "{id}");
        assert_eq!(fs::read_dir(&root).unwrap().count(), 129, "{id}");
        assert_eq!(fs::read(root.join("last")).unwrap(), b"127");
        place.snapshots.remove(id).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn read_only_volatile_and_from_nothing() {
    let place = Place::new();
    let layers = two_layers(&place).await;
    let root = place.target("root");
    let options =
        |read_only, volatile, idmap| PrepareOptions { read_only, idmap, volatile, ..PrepareOptions::default() };
    for (id, layers, options, writable) in [
        ("ro", &layers[..], options(true, false, None), false),
        ("ro-one", &layers[..1], options(true, false, None), false),
        ("ro-none", &[], options(true, false, None), false),
        ("ro-mapped", &layers[..], options(true, false, Some(MAP)), false),
        ("volatile", &layers[..], options(false, true, None), true),
        ("scratch", &[], options(false, false, None), true),
        ("scratch-mapped", &[], options(false, false, Some(MAP)), true),
        ("ro-copy", &layers[..], PrepareOptions { copy: true, ..options(true, false, None) }, false),
    ] {
        place.snapshots.prepare(id, layers, &root, options).await.unwrap_or_else(|error| panic!("{id}: {error:?}"));
        assert_eq!(fs::write(root.join("new"), "x").is_ok(), writable, "{id}");
        // Again after an unmount: a volatile one too.
        place.snapshots.unmount(id).await.unwrap();
        assert!(!root.join("new").exists(), "{id}");
        place.snapshots.mount(id, &root).await.unwrap();
        place.snapshots.mount(id, &root).await.unwrap();
        assert_eq!(mounted().unwrap().iter().filter(|mount| mount.target == root).count(), 1, "{id}");
        assert_eq!(root.join("new").exists(), writable, "{id}");
        place.snapshots.remove(id).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn use_quota_conflicts_and_names() {
    let place = Place::new();
    let layers = two_layers(&place).await;
    let root = place.target("root");
    let options = PrepareOptions { quota: Some(1 << 20), ..PrepareOptions::default() };
    place.snapshots.create("one", &layers, options.clone()).await.unwrap();
    assert_eq!(place.snapshots.create("one", &layers, options).await.unwrap_err().code(), "conflict");
    place.snapshots.mount("one", &root).await.unwrap();
    assert_eq!(place.snapshots.usage("one").await.unwrap().inodes, 0);
    fs::write(root.join("large"), vec![1; 2 << 20]).unwrap();
    rustix::fs::syncfs(fs::File::open(&root).unwrap()).unwrap(); // Blocks are counted once they are given.
    assert!(place.snapshots.usage("one").await.unwrap().bytes >= 2 << 20);
    assert_eq!(place.snapshots.check_quota("one").await.unwrap_err().code(), "no_space");
    assert_eq!(place.snapshots.remove_layer(&layers[0].key).unwrap_err().code(), "conflict");
    assert_eq!(place.snapshots.layers_in_use().unwrap().len(), 2);
    assert_eq!(place.snapshots.mount("two", &root).await.unwrap_err().code(), "not_found");
    for id in ["", "..", "a/b", ".x", "ä"] {
        assert_eq!(
            place.snapshots.create(id, &[], PrepareOptions::default()).await.unwrap_err().code(),
            "invalid",
            "{id}"
        );
    }
    place.snapshots.remove("one").await.unwrap();
    place.snapshots.remove("one").await.unwrap();
    place.snapshots.remove_layer(&layers[0].key).unwrap();
    let missing = place.snapshots.create("three", &layers, PrepareOptions::default()).await.unwrap_err();
    assert_eq!(missing.code(), "not_found");
    assert!(place.snapshots.list().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn leftovers_are_found_after_a_crash() {
    let place = Place::new();
    let layers = two_layers(&place).await;
    let (kept, lost, lost_record) = (place.target("kept"), place.target("lost"), place.target("lost-record"));
    for (id, root) in [("kept", &kept), ("lost", &lost), ("lost-record", &lost_record)] {
        place.snapshots.prepare(id, &layers, root, PrepareOptions::default()).await.unwrap();
    }
    fs::write(kept.join("work"), "precious").unwrap();
    let busy = fs::File::open(lost.join("owned")).unwrap();
    fs::remove_file(place.dir.path().join("snapshots/lost-record/snapshot.json")).unwrap();
    // Another data directory's mounts are none of its business.
    let other = Place::new();
    let other_layers = two_layers(&other).await;
    let other_root = other.target("other");
    other.snapshots.prepare("lost", &other_layers, &other_root, PrepareOptions::default()).await.unwrap();

    let again = Snapshots::open(place.dir.path(), &super::make::program()).unwrap();
    let gone = again.retain(BTreeSet::from(["kept".to_owned()])).await.unwrap();
    assert_eq!(gone, ["lost", "lost-record"]);
    drop(busy);
    let mounts: Vec<_> = mounted().unwrap().into_iter().map(|mount| mount.target).collect();
    assert!(mounts.contains(&kept) && mounts.contains(&other_root));
    assert!(!mounts.contains(&lost) && !mounts.contains(&lost_record));
    assert_eq!(fs::read(kept.join("work")).unwrap(), b"precious");
    assert_eq!(again.list().unwrap(), ["kept"]);
    again.remove("kept").await.unwrap();
    other.snapshots.remove("lost").await.unwrap();
}

/// A container can nest folders deeper than any path is long.
#[tokio::test(flavor = "multi_thread")]
async fn the_deepest_folders_are_removed() {
    let place = Place::new();
    let root = place.target("root");
    place.snapshots.prepare("deep", &[], &root, PrepareOptions::default()).await.unwrap();
    let mut fd = rustix::fs::open(&root, rustix::fs::OFlags::DIRECTORY, rustix::fs::Mode::empty()).unwrap();
    for _ in 0..1500 {
        rustix::fs::mkdirat(&fd, "a-folder", rustix::fs::Mode::RWXU).unwrap();
        fd = rustix::fs::openat(&fd, "a-folder", rustix::fs::OFlags::DIRECTORY, rustix::fs::Mode::empty()).unwrap();
    }
    drop(fd);
    let mut bytes = Vec::new();
    let error = place.snapshots.diff("deep").await.unwrap().read_to_end(&mut bytes).await.unwrap_err();
    assert!(error.to_string().contains("nested deeper"), "{error}");
    place.snapshots.usage("deep").await.unwrap();
    place.snapshots.remove("deep").await.unwrap();
    assert!(fs::read_dir(place.dir.path().join("snapshots")).unwrap().next().is_none());
}
