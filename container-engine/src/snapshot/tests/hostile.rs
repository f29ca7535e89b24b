//! Layers that attack. Each is an error that names its entry, or a harmless tree; nothing is ever outside.

use super::make::{Place, Tar, gzip};
use crate::snapshot::{FaultKind, UnpackError, UnpackError::Layer as Bad};

fn kind(result: Result<impl Sized, UnpackError>) -> Option<FaultKind> {
    match result {
        Ok(_) => None,
        Err(Bad { fault, .. }) => Some(fault.kind),
        Err(other) => panic!("{other}"),
    }
}

/// `None`: it unpacks, and stays inside.
#[allow(clippy::too_many_lines)] // A table.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_leaves_the_tree() {
    let place = Place::new();
    let outside = place.dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("victim"), "as it was").unwrap();
    let out = outside.to_str().unwrap();
    let up = "../".repeat(20);
    let (far, deep, long) = (format!("{up}{out}/new"), "d/".repeat(700), "n".repeat(256));
    let t = Tar::new;
    let table: Vec<(&str, Tar, Option<FaultKind>)> = vec![
        ("dots", t().pax(&[("path", far.as_bytes())]).file("x", b"x"), Some(FaultKind::Escape)),
        ("dots in the middle", t().file("a/../../victim", b"x"), Some(FaultKind::Escape)),
        ("dots within", t().file("a/b/../../c", b"x"), None),
        ("absolute", t().pax(&[("path", format!("{out}/new").as_bytes())]).file("x", b"x"), None),
        ("through an absolute link", t().symbolic("l", out).file("l/new", b"x"), None),
        ("through a relative link", t().symbolic("l", &up).file("l/new", b"x"), None),
        ("through two links", t().symbolic("a", &up).symbolic("b", "a/a/a").file("b/new", b"x"), None),
        ("a folder over a link", t().symbolic("l", out).folder("l", 0o777), None),
        ("a file over a link", t().symbolic("l", &format!("{out}/victim")).file("l", b"x"), None),
        ("a circle of links", t().symbolic("a", "b").symbolic("b", "a").file("a/x", b"x"), Some(FaultKind::Limit)),
        ("a hard link out", t().hard("h", &far), Some(FaultKind::Escape)),
        ("a hard link through a link", t().symbolic("l", out).hard("h", "l/victim"), Some(FaultKind::NeedsParents)),
        ("a hard link to a link", t().symbolic("l", &format!("{out}/victim")).hard("h", "l").file("h", b"x"), None),
        ("a whiteout of what is above", t().file(".wh...", b""), Some(FaultKind::Escape)),
        ("a whiteout of the folder", t().file("a/.wh..", b""), Some(FaultKind::Escape)),
        ("a whiteout of nothing", t().file(".wh.", b""), Some(FaultKind::Escape)),
        ("a whiteout through a link", t().symbolic("l", out).file("l/.wh.victim", b""), None),
        ("opaque through a link", t().symbolic("l", out).file("l/.wh..wh..opq", b""), None),
        ("too deep", t().pax(&[("path", deep.as_bytes())]).file("x", b"x"), Some(FaultKind::Limit)),
        ("a long name", t().pax(&[("path", long.as_bytes())]).file("x", b"x"), Some(FaultKind::Limit)),
        ("a very long name", t().long(b'L', &"a/".repeat(3000)).file("x", b"x"), Some(FaultKind::Limit)),
        ("an overlong long name", t().other(b'L', "x", 1 << 40), Some(FaultKind::Limit)),
        ("an overlong PAX header", t().other(b'x', "x", 1 << 40), Some(FaultKind::Limit)),
        ("a NUL in the name", t().pax(&[("path", b"a\0b")]).file("x", b"x"), Some(FaultKind::Corrupt)),
        ("no name", t().file("./", b"").file("/", b"x"), Some(FaultKind::Corrupt)),
        ("a link to nothing", t().symbolic("l", ""), Some(FaultKind::Corrupt)),
        ("a hard link to the root", t().hard("h", "/"), Some(FaultKind::Corrupt)),
        ("a hard link to a folder", t().folder("d", 0o755).hard("h", "d"), Some(FaultKind::Corrupt)),
        ("a hard link to itself", t().hard("h", "h"), Some(FaultKind::NeedsParents)),
        ("an owner out of range", t().pax(&[("uid", b"4294967295")]).file("x", b""), Some(FaultKind::Limit)),
        ("an unknown type", t().other(b'Z', "x", 0), Some(FaultKind::Unsupported)),
        ("a file longer than the archive", t().other(b'0', "x", 1 << 40), Some(FaultKind::Truncated)),
        (
            "a large attribute",
            t().pax(&[("SCHILY.xattr.user.x", &[b'v'; 70_000])]).file("x", b""),
            Some(FaultKind::Limit),
        ),
        ("a PAX record of no length", t().other(b'x', "x", 4).file("9 ab", b""), Some(FaultKind::Corrupt)),
        (
            "a sparse file out of order",
            t().pax(&[("GNU.sparse.map", b"9,1,0,1"), ("GNU.sparse.size", b"10")]).file("x", b"ab"),
            Some(FaultKind::Corrupt),
        ),
        (
            "a sparse file of wrong size",
            t().pax(&[("GNU.sparse.map", b"0,5"), ("GNU.sparse.size", b"10")]).file("x", b"ab"),
            Some(FaultKind::Corrupt),
        ),
        (
            "marks of the overlay",
            t().pax(&[
                ("SCHILY.xattr.user.overlay.redirect", b"/etc"),
                ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ])
            .folder("d", 0o755),
            None,
        ),
    ];
    for (name, tar, want) in table {
        let result = place.unpack(&tar.end()).await;
        let layer = result.as_ref().ok().cloned();
        assert_eq!(kind(result), want, "{name}");
        let left: Vec<_> = std::fs::read_dir(&outside).unwrap().map(|item| item.unwrap().file_name()).collect();
        assert_eq!(left, ["victim"], "{name}");
        assert_eq!(std::fs::read(outside.join("victim")).unwrap(), b"as it was", "{name}");
        if let Some(layer) = layer {
            let _ = rustix::fs::lgetxattr(
                place.snapshots.layer_path(&layer).join("d"),
                "user.overlay.redirect",
                &mut [0; 8],
            )
            .expect_err(name);
            place.snapshots.remove_layer(&layer.key).unwrap();
        }
        let layers: Vec<_> = std::fs::read_dir(place.dir.path().join("layers")).unwrap().collect();
        assert!(layers.is_empty(), "{name} leaves {layers:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bombs_stop_at_the_quota() {
    let place = Place::new();
    let mut content = vec![7; 8 << 20];
    content[0] = 1;
    let large = Tar::new().file("large", &content).end();
    assert_eq!(kind(place.limited(&gzip(&large), 1 << 20, 10).await), Some(FaultKind::Quota));
    assert_eq!(kind(place.limited(&gzip(&large), 16 << 20, 10).await), None);
    // The same name again and again costs each time.
    let mut again = Tar::new();
    for _ in 0..20 {
        again = again.file("x", &content[..100_000]);
    }
    assert_eq!(kind(place.limited(&again.end(), 1 << 20, 100).await), Some(FaultKind::Quota));
    let mut many = Tar::new();
    for number in 0..50 {
        many = many.file(&number.to_string(), b"");
    }
    assert_eq!(kind(place.limited(&many.end(), 1 << 30, 49).await), Some(FaultKind::Entries));
    // Zeros behind the archive.
    let mut tail = Tar::new().file("x", b"x").end();
    tail.resize(64 << 20, 0);
    assert_eq!(kind(place.limited(&gzip(&tail), 1 << 20, 10).await), Some(FaultKind::Quota));
    // A hole costs nothing.
    let sparse =
        Tar::new().pax(&[("GNU.sparse.map", b"0,1"), ("GNU.sparse.size", b"10000000000")]).file("x", b"a").end();
    let layer = place.limited(&sparse, 1 << 20, 10).await.unwrap();
    assert_eq!(std::fs::metadata(place.snapshots.layer_path(&layer).join("x")).unwrap().len(), 10_000_000_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_told_and_leaves_nothing() {
    let place = Place::new();
    let whole = Tar::new().folder("a", 0o755).file("a/b", &[9; 10_000]).end();
    let packed = gzip(&whole);
    for cut in [1, 100, 511, 512, 513, 1024, 5000, whole.len() / 2] {
        let result = place.unpack(&whole[..cut]).await;
        // An archive may end between two entries.
        let want = if cut == 512 { None } else { Some(FaultKind::Truncated) };
        assert_eq!(kind(result), want, "cut at {cut}");
    }
    assert_eq!(kind(place.unpack(&packed[..packed.len() - 5]).await), Some(FaultKind::Truncated));
    let mut flipped = packed.clone();
    let at = flipped.len() - 6;
    flipped[at] ^= 1; // The checksum at the end.
    assert_eq!(kind(place.unpack(&flipped).await), Some(FaultKind::Corrupt));
    assert_eq!(
        kind(place.unpack(b"this is no archive at all, but long enough to be looked at").await),
        Some(FaultKind::Truncated)
    );
    assert_eq!(kind(place.unpack(&[b'x'; 2048]).await), Some(FaultKind::Corrupt));
    assert_eq!(
        kind(place.unpack(b"\x28\xb5\x2f\xfd and no frame behind it ................").await),
        Some(FaultKind::Corrupt)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_of_another_image_is_refused_and_a_dropped_one_leaves_nothing() {
    use crate::{content::Digest, snapshot::Unpack};
    let place = Place::new();
    let archive = Tar::new().file("x", b"x").end();
    let unpack = Unpack { diff_id: Some(Digest::of(b"another")), ..Unpack::default() };
    let result = place.snapshots.unpack(unpack, archive.as_slice()).await;
    assert!(matches!(result, Err(UnpackError::WrongDiffId { found, .. }) if found == Digest::of(&archive)));

    let mut unpacking = place.snapshots.begin(Unpack::default()).await.unwrap();
    unpacking.write(&archive[..700]).await.unwrap();
    drop(unpacking);
    let layers = place.dir.path().join("layers");
    for _ in 0..200 {
        if std::fs::read_dir(&layers).unwrap().next().is_none() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("a dropped layer is left in {}", layers.display());
}
