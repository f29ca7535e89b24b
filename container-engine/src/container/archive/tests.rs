//! Archives in and out, kind and hostile.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use super::*;

fn tree(dir: &Path) -> Tree {
    Tree::open(dir, None).unwrap()
}

/// An archive of (path, kind, content or link).
fn archive(entries: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, kind, text) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(if kind.is_dir() { 0o750 } else { 0o640 });
        header.set_mtime(1_000_000);
        let data = if *kind == tar::EntryType::Regular { text.as_bytes() } else { b"" };
        header.set_size(data.len() as u64);
        if kind.is_symlink() || kind.is_hard_link() {
            header.set_link_name(text).unwrap();
        }
        // Written by hand: the builder would refuse `..`.
        let name = path.as_bytes();
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_cksum();
        builder.append(&header, data).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn what_goes_in_comes_out() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("root/etc")).unwrap();
    let tree = tree(&dir.path().join("root"));
    let input = archive(&[
        ("app/", tar::EntryType::Directory, ""),
        ("app/file", tar::EntryType::Regular, "hello"),
        ("app/link", tar::EntryType::Symlink, "file"),
        ("app/hard", tar::EntryType::Link, "app/file"),
        ("new/deep/x", tar::EntryType::Regular, "1"),
    ]);
    tree.put(Path::new("/etc"), input.as_slice(), PutOptions::default()).unwrap();
    let app = dir.path().join("root/etc/app");
    assert_eq!(std::fs::read_to_string(app.join("link")).unwrap(), "hello");
    assert_eq!(std::fs::metadata(app.join("hard")).unwrap().nlink(), 2);
    let metadata = std::fs::metadata(&app).unwrap();
    assert_eq!((metadata.permissions().mode() & 0o7777, metadata.mtime()), (0o750, 1_000_000));

    let mut out = Vec::new();
    tree.get(Path::new("/etc/app"), &mut out).unwrap();
    let mut back = tar::Archive::new(out.as_slice());
    let names: Vec<_> =
        back.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect();
    assert_eq!(names, ["app/", "app/file", "app/hard", "app/link"]);
    let mut contents = Vec::new();
    tree.get(Path::new("/etc/new/."), &mut contents).unwrap();
    let mut back = tar::Archive::new(contents.as_slice());
    let names: Vec<_> =
        back.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect();
    assert_eq!(names, ["./", "deep/", "deep/x"]);
    assert_eq!(tree.stat(Path::new("/etc/app/link")).unwrap().link_target.as_deref(), Some("file"));
    assert_eq!(tree.stat(Path::new("/")).unwrap().name, "/");
    assert!(matches!(tree.stat(Path::new("/none")), Err(ArchiveError::NotFound(_))));
    assert!(matches!(
        tree.put(Path::new("/etc/app/file"), input.as_slice(), PutOptions::default()),
        Err(ArchiveError::NotFolder(_))
    ));
}

#[test]
fn nothing_leaves_the_root() {
    let dir = tempfile::tempdir().unwrap();
    let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
    std::fs::create_dir_all(root.join("data")).unwrap();
    std::fs::create_dir_all(&outside).unwrap();
    std::fs::write(outside.join("secret"), "secret").unwrap();
    // Links of the container that lead out, absolute and relative.
    symlink(&outside, root.join("data/out")).unwrap();
    symlink("../../outside", root.join("data/up")).unwrap();
    let tree = tree(&root);
    for path in ["/data/out/secret", "/data/up/secret", "/../outside/secret", "/data/../../outside/secret"] {
        assert!(tree.stat(Path::new(path)).is_err(), "{path}");
        assert!(tree.get(Path::new(path), Vec::new()).is_err(), "{path}");
    }
    let mut log = Vec::new();
    tree.get(Path::new("/data"), &mut log).unwrap();
    assert!(!log.windows(6).any(|window| window == b"secret"), "a link was followed");
    for entries in [
        vec![("../evil", tar::EntryType::Regular, "x")],
        vec![("a/../../evil", tar::EntryType::Regular, "x")],
        vec![("hard", tar::EntryType::Link, "../../outside/secret")],
        vec![("l", tar::EntryType::Symlink, "/"), ("l/outside/evil", tar::EntryType::Regular, "x")],
        vec![("out/evil", tar::EntryType::Regular, "x")],
        vec![("up/evil", tar::EntryType::Regular, "x")],
    ] {
        let input = archive(&entries);
        let _ = tree.put(Path::new("/data"), input.as_slice(), PutOptions::default());
        assert!(!outside.join("evil").exists() && !dir.path().join("evil").exists(), "{entries:?}");
    }
    assert_eq!(std::fs::metadata(outside.join("secret")).unwrap().nlink(), 1);
    // The last part is replaced, not followed.
    symlink(outside.join("secret"), root.join("data/file")).unwrap();
    let input = archive(&[("file", tar::EntryType::Regular, "mine")]);
    tree.put(Path::new("/data"), input.as_slice(), PutOptions::default()).unwrap();
    assert_eq!(std::fs::read_to_string(outside.join("secret")).unwrap(), "secret");
    assert_eq!(std::fs::read_to_string(root.join("data/file")).unwrap(), "mine");
}

#[test]
fn cut_archives_and_conflicts_are_told() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("a")).unwrap();
    let tree = tree(dir.path());
    let whole = archive(&[("file", tar::EntryType::Regular, &"x".repeat(2000))]);
    for cut in [1, 100, 511, 600, 1500] {
        assert!(tree.put(Path::new("/"), &whole[..cut], PutOptions::default()).is_err(), "cut at {cut}");
    }
    let file = archive(&[("a", tar::EntryType::Regular, "x")]);
    let keep = PutOptions { no_overwrite_dir_non_dir: true, ..PutOptions::default() };
    assert!(matches!(tree.put(Path::new("/"), file.as_slice(), keep), Err(ArchiveError::Entry(..))));
    tree.put(Path::new("/"), file.as_slice(), PutOptions::default()).unwrap();
    assert!(dir.path().join("a").is_file());
}
