//! Trees that somebody hostile has written, and still writes.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::*;
use crate::volume::{mount, testing::in_own_mounts};

#[test]
fn links_are_removed_and_what_they_name_stays() {
    let temp = tempfile::tempdir().unwrap();
    let (outside, root) = (temp.path().join("outside"), temp.path().join("root"));
    fs::create_dir_all(outside.join("dir")).unwrap();
    fs::write(outside.join("dir/file"), "x").unwrap();
    fs::create_dir_all(root.join("a/b")).unwrap();
    symlink(&outside, root.join("a/link")).unwrap();
    symlink("../../../outside/dir", root.join("a/b/up")).unwrap();
    symlink("loop", root.join("loop")).unwrap();
    fs::hard_link(outside.join("dir/file"), root.join("hard")).unwrap();
    remove(&root).unwrap();
    assert!(!root.exists());
    assert_eq!(fs::read_to_string(outside.join("dir/file")).unwrap(), "x");
    remove(&root).unwrap(); // Twice is as once.
    symlink(&outside, &root).unwrap();
    remove(&root).unwrap();
    assert!(outside.join("dir/file").exists() && !root.is_symlink());
}

#[test]
fn depth_and_breadth_are_no_obstacle() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("root");
    fs::create_dir(&root).unwrap();
    // Deeper than any path: made from inside.
    let mut at = rustix::fs::open(&root, OFlags::PATH, Mode::empty()).unwrap();
    for n in 0..3000 {
        let name = format!("{n:0>6}");
        rustix::fs::mkdirat(&at, &name, Mode::RWXU).unwrap();
        at = rustix::fs::openat(&at, &name, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
    for n in 0..5000 {
        fs::write(root.join(format!("file{n}")), "").unwrap();
    }
    assert_eq!(measure(&root).unwrap().inodes, 8001);
    remove(&root).unwrap();
    assert!(!root.exists());
}

#[test]
fn files_with_several_names_count_once() {
    let temp = tempfile::tempdir().unwrap();
    fs::write(temp.path().join("one"), vec![1; 100_000]).unwrap();
    let once = measure(temp.path()).unwrap();
    for n in 0..5 {
        fs::hard_link(temp.path().join("one"), temp.path().join(n.to_string())).unwrap();
    }
    symlink("/usr", temp.path().join("link")).unwrap();
    let many = measure(temp.path()).unwrap();
    assert!(once.bytes >= 100_000 && many.bytes < once.bytes + 50_000, "{once:?} {many:?}");
    assert_eq!(many.inodes, once.inodes + 1);
    measure(&temp.path().join("none")).unwrap_err();
}

#[test]
fn what_is_exchanged_meanwhile_leads_nowhere() {
    let temp = tempfile::tempdir().unwrap();
    let (outside, root) = (temp.path().join("outside"), temp.path().join("root"));
    fs::create_dir_all(outside.join("deep")).unwrap();
    fs::write(outside.join("deep/precious"), "x").unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let (ended, at, target) = (stop.clone(), root.clone(), outside.clone());
    let attacker = std::thread::spawn(move || {
        while !ended.load(Ordering::Relaxed) {
            let _ = fs::create_dir_all(at.join("v/deep"));
            let _ = fs::write(at.join("v/deep/precious"), "");
            let _ = fs::rename(at.join("v"), at.join("w"));
            let _ = symlink(&target, at.join("v"));
            let _ = fs::remove_file(at.join("v"));
            let _ = fs::remove_dir_all(at.join("w"));
        }
    });
    for _ in 0..300 {
        // It may fail as long as somebody writes; what it does is what matters.
        let _ = fs::create_dir(&root);
        let _ = remove(&root);
        let _ = measure(&root);
        let _ = set_group(&root, 4242, false);
    }
    stop.store(true, Ordering::Relaxed);
    attacker.join().unwrap();
    assert_eq!(fs::read_to_string(outside.join("deep/precious")).unwrap(), "x");
    assert_ne!(fs::metadata(outside.join("deep/precious")).unwrap().gid(), 4242);
    assert_ne!(fs::metadata(&outside).unwrap().gid(), 4242);
}

#[test]
fn a_group_is_given_everything_but_what_links_name() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let (outside, root) = (temp.path().join("outside"), temp.path().join("root"));
    fs::write(&outside, "").unwrap();
    fs::create_dir_all(root.join("a")).unwrap();
    fs::write(root.join("a/file"), "").unwrap();
    fs::set_permissions(root.join("a/file"), fs::Permissions::from_mode(0o600)).unwrap();
    symlink(&outside, root.join("link")).unwrap();
    assert!(!is_groups(&root, 77, false));
    set_group(&root, 77, false).unwrap();
    let of = |path: &Path| {
        let stat = fs::symlink_metadata(path).unwrap();
        (stat.permissions().mode() & 0o7777, stat.gid())
    };
    assert_eq!(of(&root.join("a/file")), (0o660, 77));
    assert_eq!(of(&root.join("a")), (0o2775, 77));
    assert_eq!(of(&root.join("link")).1, 77);
    assert_eq!(of(&outside), (0o644, 0));
    assert!(is_groups(&root, 77, false) && is_groups(&root, 77, true) && !is_groups(&root, 78, false));
}

#[test]
fn nothing_of_a_mount_is_removed() {
    if !in_own_mounts("volume::tree::tests::nothing_of_a_mount_is_removed") {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let (outside, root) = (temp.path().join("outside"), temp.path().join("root"));
    fs::create_dir_all(&outside).unwrap();
    fs::write(outside.join("precious"), "x").unwrap();
    fs::create_dir_all(root.join("a/mnt")).unwrap();
    fs::write(root.join("a/file"), "").unwrap();
    // Of the same file system: only the kernel knows that it is a mount.
    mount::bind(&mount::open(&outside).unwrap(), &root.join("a/mnt"), false).unwrap();
    assert!(measure(&root).unwrap().inodes <= 4);
    set_group(&root, 77, false).unwrap();
    assert_eq!(fs::metadata(outside.join("precious")).unwrap().gid(), 0);
    let error = remove(&root).unwrap_err();
    assert!(error.to_string().contains("still mounted"), "{error}");
    assert!(outside.join("precious").exists());
    mount::unmount_below(&root).unwrap();
    remove(&root).unwrap();
    assert!(outside.join("precious").exists() && !root.exists());
}
