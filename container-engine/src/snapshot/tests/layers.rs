//! What a good layer says, and what is then on disk.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

use super::make::{Place, Tar, describe, gzip};
use crate::{
    content::Digest,
    snapshot::{Compression, Snapshots, Unpack},
};

fn is_whiteout(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|stat| stat.mode() & 0o170_000 == 0o020_000 && stat.rdev() == 0)
}

fn opaque(path: &Path) -> bool {
    let mut value = [0; 1];
    rustix::fs::lgetxattr(path, "user.overlay.opaque", &mut value).is_ok_and(|length| length == 1 && value == *b"y")
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_tar_can_say() {
    let place = Place::new();
    let long = format!("{}/file", ["long-name-of-a-folder"; 30].join("/"));
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let archive = Tar::new()
        .folder("./", 0o750)
        .folder("dir/", 0o1777)
        .mode("dir/suid", 0o4755, b"#!")
        .mode("dir/sgid", 0o2711, b"")
        .symbolic("dir/link", "../nowhere")
        .hard("dir/hard", "./dir/suid")
        .device("dir/null", b'3', 1, 3)
        .device("dir/loop", b'4', 7, 300)
        .other(b'6', "dir/fifo", 0)
        .pax(&[("uid", b"3000000000"), ("gid", b"2097152"), ("mtime", b"1234567890.123456789"), ("comment", b"x")])
        .file("owned", b"1")
        .pax(&[("mtime", b"-1.25")])
        .file("old", b"1")
        .pax(&[("SCHILY.xattr.security.capability", &capability), ("SCHILY.xattr.user.a", b"with\nnewline\0and=")])
        .file("capable", b"1")
        .pax(&[("path", long.as_bytes())])
        .file("short", b"long")
        .long(b'L', &"g".repeat(200))
        .file("short", b"gnu")
        .long(b'K', &"t".repeat(300))
        .symbolic("longlink", "short")
        .other(b'g', "global", 0)
        .file("a/b/c", b"no parents")
        .end();
    let layer = place.unpack(&gzip(&archive)).await.unwrap();
    assert_eq!(layer.diff_id, Digest::of(&archive));
    let root = place.snapshots.layer_path(&layer);
    let all = describe(&root);
    let at = |name: &str| all.get(Path::new(name)).unwrap_or_else(|| panic!("{name} is missing"));
    assert_eq!(fs::metadata(&root).unwrap().mode() & 0o7777, 0o750);
    assert_eq!((at("dir").mode, at("dir").mtime), (0o1777, (1_000_000_000, 0)), "times of folders are set last");
    assert_eq!((at("dir/suid").mode, at("dir/sgid").mode), (0o4755, 0o2711));
    assert_eq!(at("dir/suid").same_as, at("dir/hard").same_as);
    assert!(at("dir/suid").same_as.is_some());
    assert_eq!(at("dir/link").content, b"../nowhere");
    assert_eq!((at("dir/null").kind, at("dir/null").device), (0o020_000, rustix::fs::makedev(1, 3)));
    assert_eq!((at("dir/loop").kind, at("dir/loop").device), (0o060_000, rustix::fs::makedev(7, 300)));
    assert_eq!((at("dir/fifo").kind, at("dir/null").mode), (0o010_000, 0o620));
    assert_eq!((at("owned").owner, at("owned").mtime), ((3_000_000_000, 2_097_152), (1_234_567_890, 123_456_789)));
    assert_eq!(at("old").mtime, (-2, 750_000_000));
    assert_eq!(at("capable").xattrs[b"security.capability".as_slice()], capability);
    assert_eq!(at("capable").xattrs[b"user.a".as_slice()], b"with\nnewline\0and=");
    assert_eq!(at(&long).content, b"long");
    assert_eq!(at(&"g".repeat(200)).content, b"gnu");
    assert_eq!(at("longlink").content, "t".repeat(300).as_bytes());
    assert_eq!((at("a").mode, at("a/b").owner, at("a/b").mtime), (0o755, (0, 0), (0, 0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_entry_of_a_name_wins() {
    let place = Place::new();
    let archive = Tar::new()
        .file("f", b"first")
        .file("f", b"second")
        .file("to-folder", b"x")
        .folder("to-folder", 0o700)
        .file("to-folder/x", b"x")
        .folder("to-file", 0o700)
        .file("to-file/deep/er", b"x")
        .file("to-file", b"file")
        .file("parent", b"a file")
        .file("parent/child", b"x")
        .symbolic("l", "f")
        .file("l", b"no link")
        .folder("again", 0o700)
        .file("again/kept", b"x")
        .folder("again", 0o711)
        .end();
    let layer = place.unpack(&archive).await.unwrap();
    let root = place.snapshots.layer_path(&layer);
    let read = |name: &str| fs::read_to_string(root.join(name)).unwrap();
    assert_eq!((read("f"), read("to-folder/x"), read("to-file")), ("second".into(), "x".into(), "file".into()));
    assert_eq!((read("parent/child"), read("l"), read("again/kept")), ("x".into(), "no link".into(), "x".into()));
    assert_eq!(fs::metadata(root.join("again")).unwrap().permissions().mode() & 0o777, 0o711);
}

#[tokio::test(flavor = "multi_thread")]
async fn whiteouts_hide_what_is_below_and_nothing_of_their_layer() {
    let place = Place::new();
    let archive = Tar::new()
        .folder("d", 0o755)
        .file("d/.wh.gone", b"")
        .folder("o", 0o755)
        .file("o/.wh..wh..opq", b"")
        .file("o/kept", b"x")
        .file("new-folder/x", b"x")
        .file(".wh.new-folder", b"")
        .file(".wh.other", b"")
        .folder("other", 0o755)
        .file("file", b"x")
        .file(".wh.file", b"")
        .file(".wh..wh.plnk", b"aufs")
        .file("no/parent/.wh.x", b"")
        .end();
    let layer = place.unpack(&archive).await.unwrap();
    let root = place.snapshots.layer_path(&layer);
    assert!(is_whiteout(&root.join("d/gone")) && is_whiteout(&root.join("no/parent/x")));
    assert!(opaque(&root.join("o")) && root.join("o/kept").exists() && !opaque(&root.join("d")));
    assert!(opaque(&root.join("new-folder")) && root.join("new-folder/x").exists());
    assert!(opaque(&root.join("other")) && root.join("other").is_dir());
    assert_eq!(fs::read(root.join("file")).unwrap(), b"x");
    let names: Vec<_> = describe(&root).into_keys().filter(|path| path.to_string_lossy().contains(".wh.")).collect();
    assert!(names.is_empty(), "{names:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sparse_files_in_all_three_forms() {
    let place = Place::new();
    let mut one = b"2\n512\n4\n100000\n4\n".to_vec();
    one.resize(512, 0);
    one.extend_from_slice(b"aaaabbbb");
    let mut old = [0; 126];
    for (at, number) in [(0, 512_u64), (12, 4), (24, 100_000), (36, 4)] {
        old[at..at + 12].copy_from_slice(format!("{number:011o}\0").as_bytes());
    }
    old[97..109].copy_from_slice(format!("{:011o}\0", 200_000).as_bytes());
    let archive = Tar::new()
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"v1.0"),
            ("GNU.sparse.realsize", b"200000"),
        ])
        .file("GNUSparseFile.0/x", &one)
        .pax(&[
            ("GNU.sparse.size", b"200000"),
            ("GNU.sparse.numblocks", b"2"),
            ("GNU.sparse.name", b"v0.1"),
            ("GNU.sparse.map", b"512,4,100000,4"),
        ])
        .file("y", b"aaaabbbb")
        .pax(&[("GNU.sparse.size", b"200000"), ("GNU.sparse.offset", b"512"), ("GNU.sparse.numbytes", b"4")])
        .file("v0.0", b"aaaa")
        .other(b'S', "old", 8)
        .patch(512, 257, b"ustar  \0")
        .patch(512, 386, &old)
        .file_body(b"aaaabbbb")
        .file("after", b"still in step")
        .end();
    let layer = place.unpack(&archive).await.unwrap();
    let root = place.snapshots.layer_path(&layer);
    let mut want = vec![0; 200_000];
    want[512..516].copy_from_slice(b"aaaa");
    let first = want.clone();
    want[100_000..100_004].copy_from_slice(b"bbbb");
    for (name, want) in [("v1.0", &want), ("v0.1", &want), ("old", &want), ("v0.0", &first)] {
        assert!(fs::read(root.join(name)).unwrap() == *want, "{name}");
        assert!(fs::metadata(root.join(name)).unwrap().blocks() < 200, "{name} has holes");
    }
    assert_eq!(fs::read(root.join("after")).unwrap(), b"still in step");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_compression_in_one_piece_or_several() {
    let place = Place::new();
    let archive = Tar::new().file("a", &[1; 5000]).file("b", &vec![2; 700_000]).end();
    let (one, two) = archive.split_at(3000);
    let zstd = |bytes: &[u8], window| {
        use std::io::Write;
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
        encoder.window_log(window).unwrap();
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3], zstd(&archive, 20).as_slice()].concat();
    for (name, bytes) in [
        ("plain", archive.clone()),
        ("gzip", gzip(&archive)),
        ("two members", [gzip(one), gzip(two)].concat()),
        ("zstd", zstd(&archive, 27)),
        ("two frames", [zstd(one, 20), zstd(two, 20)].concat()),
        ("a skippable frame", skippable),
    ] {
        let layer = place.unpack(&bytes).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(layer.diff_id, Digest::of(&archive), "{name}");
        place.snapshots.remove_layer(&layer.key).unwrap();
    }
    assert_eq!(Compression::of_media_type("application/vnd.oci.image.layer.v1.tar+zstd"), Some(Compression::Zstd));
    assert_eq!(
        Compression::of_media_type("application/vnd.docker.image.rootfs.diff.tar.gzip"),
        Some(Compression::Gzip)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hard_link_into_a_lower_layer_takes_its_file_along() {
    let place = Place::new();
    let below = Tar::new()
        .pax(&[("uid", b"1000"), ("mtime", b"5.5")])
        .mode("bin/tool", 0o4750, b"tool")
        .file("gone", b"x")
        .file("hidden/x", b"x")
        .end();
    let middle = Tar::new().file(".wh.gone", b"").file("hidden/.wh..wh..opq", b"").end();
    let (below, middle) = (place.unpack(&below).await.unwrap(), place.unpack(&middle).await.unwrap());
    let above = Tar::new().hard("sbin/tool", "bin/tool").hard("sbin/too", "sbin/tool").end();
    let alone = place.unpack(&above).await.unwrap_err();
    assert!(alone.needs_parents(), "{alone}");
    let parents = vec![below.clone(), middle.clone()];
    let with = |parents: &[crate::snapshot::Layer]| Unpack { parents: parents.to_vec(), ..Unpack::default() };
    let layer = place.snapshots.unpack(with(&parents), above.as_slice()).await.unwrap();
    assert_ne!(layer.key, layer.diff_id.hex());
    assert_eq!(place.snapshots.layer(&layer.diff_id, &[below.diff_id, middle.diff_id]), Some(layer.clone()));
    assert_eq!(place.snapshots.layer(&layer.diff_id, &[below.diff_id]), None);
    let all = describe(&place.snapshots.layer_path(&layer));
    let tool = &all[Path::new("sbin/tool")];
    assert_eq!((tool.mode, tool.owner, tool.mtime), (0o4750, (1000, 0), (5, 500_000_000)));
    assert_eq!((tool.content.as_slice(), tool.same_as.is_some()), (b"tool".as_slice(), true));
    for (name, target) in [("a", "gone"), ("b", "hidden/x"), ("c", "never")] {
        let archive = Tar::new().hard(name, target).end();
        assert!(place.snapshots.unpack(with(&parents), archive.as_slice()).await.is_err(), "{target}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_crash_leaves_goes_at_open() {
    let place = Place::new();
    let layer = place.unpack(&Tar::new().file("x", b"x").end()).await.unwrap();
    let layers = place.dir.path().join("layers");
    fs::create_dir_all(layers.join(".new-1-0/fs/half")).unwrap();
    fs::create_dir_all(layers.join("no-record/fs")).unwrap();
    // From another boot, and never synced.
    let stale = layers.join("stale");
    fs::create_dir_all(stale.join("fs")).unwrap();
    let record = fs::read_to_string(layers.join(&layer.key).join("layer.json")).unwrap();
    let mut value: serde_json::Value = serde_json::from_str(&record).unwrap();
    (value["boot"], value["synced"]) = ("another".into(), false.into());
    fs::write(stale.join("layer.json"), value.to_string()).unwrap();
    let again = Snapshots::open(place.dir.path(), Path::new("/nowhere")).unwrap();
    assert_eq!(again.layers().unwrap(), [layer]);
    assert_eq!(fs::read_dir(&layers).unwrap().count(), 1);
}

/// One pass, and what is remembered does not grow with the number of files.
#[tokio::test(flavor = "multi_thread")]
async fn many_files_in_little_memory() {
    let place = Place::new();
    let mut tar = Tar::new();
    for number in 0..20_000 {
        // Folder after folder, and back again: no order that helps.
        tar = tar.file(&format!("d{}/e{}/f{number}", number % 7, number % 501), b"1");
    }
    let layer = place.unpack(&gzip(&tar.end())).await.unwrap();
    assert!(layer.inodes >= 20_000);
}
