//! Sub-paths under attack. Each test runs in a mount namespace of its own.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::*;
use crate::volume::testing::in_own_mounts;

struct Place {
    _temp: tempfile::TempDir,
    volume: PathBuf,
    outside: PathBuf,
    target: PathBuf,
}

impl Drop for Place {
    /// Before the folder goes.
    fn drop(&mut self) {
        mount::unmount_below(&self.target).unwrap();
    }
}

fn place() -> Place {
    let temp = tempfile::tempdir().unwrap();
    let (volume, outside) = (temp.path().join("volume"), temp.path().join("outside"));
    fs::create_dir_all(&volume).unwrap();
    fs::create_dir_all(outside.join("dir")).unwrap();
    fs::write(outside.join("file"), "outside").unwrap();
    let target = temp.path().join("volume-subpaths/v/c/0");
    Place { _temp: temp, volume, outside, target }
}

#[test]
fn found_made_and_held() {
    if !in_own_mounts("volume::sub_path::tests::found_made_and_held") {
        return;
    }
    let it = place();
    fs::set_permissions(&it.volume, fs::Permissions::from_mode(0o2770)).unwrap();
    bind(&it.volume, "a/b/c", &it.target).unwrap();
    assert_eq!(fs::metadata(it.volume.join("a/b")).unwrap().permissions().mode() & 0o7777, 0o2770);
    fs::write(it.volume.join("a/b/c/file"), "x").unwrap();
    assert_eq!(fs::read_to_string(it.target.join("file")).unwrap(), "x");
    bind(&it.volume, "a/b/c", &it.target).unwrap();
    let targets = || mount::list().unwrap().into_iter().filter(|one| one.target == it.target).count();
    assert_eq!(targets(), 1, "bound once");
    // A file, of which a new version comes as another file: bound anew, and the target changes its kind.
    fs::write(it.volume.join("key"), "1").unwrap();
    bind(&it.volume, "key", &it.target).unwrap();
    assert_eq!(fs::read_to_string(&it.target).unwrap(), "1");
    fs::write(it.volume.join("key2"), "2").unwrap();
    fs::rename(it.volume.join("key2"), it.volume.join("key")).unwrap();
    bind(&it.volume, "key", &it.target).unwrap();
    assert_eq!(fs::read_to_string(&it.target).unwrap(), "2");
    assert_eq!(targets(), 1);
    // As the atomic writer links.
    fs::create_dir(it.volume.join("..1")).unwrap();
    fs::write(it.volume.join("..1/name"), "linked").unwrap();
    symlink("..1", it.volume.join("..data")).unwrap();
    symlink("..data/name", it.volume.join("name")).unwrap();
    bind(&it.volume, "name", &it.target).unwrap();
    assert_eq!(fs::read_to_string(&it.target).unwrap(), "linked");
}

#[test]
fn links_that_lead_out_are_refused() {
    if !in_own_mounts("volume::sub_path::tests::links_that_lead_out_are_refused") {
        return;
    }
    let it = place();
    symlink(&it.outside, it.volume.join("absolute")).unwrap();
    symlink("../outside", it.volume.join("up")).unwrap();
    symlink("loop", it.volume.join("loop")).unwrap();
    symlink("/proc/self/root", it.volume.join("magic")).unwrap();
    fs::create_dir(it.volume.join("in")).unwrap();
    symlink("../../outside/dir", it.volume.join("in/up")).unwrap();
    fs::write(it.volume.join("file"), "").unwrap();
    for bad in [
        "absolute",
        "absolute/file",
        "absolute/new",
        "up",
        "up/dir/new",
        "loop",
        "loop/x",
        "magic",
        "magic/etc",
        "in/up",
        "in/up/new",
        "file/x",
        "../outside",
        "/etc",
        "in/../../outside",
    ] {
        let error = bind(&it.volume, bad, &it.target).unwrap_err();
        assert!(!mount::is_mounted(&it.target).unwrap(), "{bad}: {error}");
    }
    let names = |dir: &Path| fs::read_dir(dir).unwrap().count();
    assert_eq!((names(&it.outside), names(&it.outside.join("dir"))), (2, 0), "nothing was made outside");
    // A link that stays inside may be followed.
    symlink("in", it.volume.join("alias")).unwrap();
    bind(&it.volume, "alias/new", &it.target).unwrap();
    assert!(it.volume.join("in/new").is_dir());
}

#[test]
fn a_race_for_the_path_is_not_won() {
    if !in_own_mounts("volume::sub_path::tests::a_race_for_the_path_is_not_won") {
        return;
    }
    let it = place();
    let outside: Vec<u64> = [&it.outside, &it.outside.join("dir"), &it.outside.join("file")]
        .map(|it| fs::metadata(it).unwrap().ino())
        .into();
    let stop = Arc::new(AtomicBool::new(false));
    let (ended, volume, lead) = (stop.clone(), it.volume.clone(), it.outside.clone());
    let attacker = std::thread::spawn(move || {
        let (a, b) = (volume.join("a"), volume.join("b"));
        let mut rounds = 0u64;
        while !ended.load(Ordering::Relaxed) {
            let _ = fs::create_dir_all(a.join("dir"));
            let _ = symlink(&lead, &b);
            let flags = rustix::fs::RenameFlags::EXCHANGE;
            let _ = rustix::fs::renameat_with(rustix::fs::CWD, &a, rustix::fs::CWD, &b, flags);
            let _ = fs::remove_file(&a);
            let _ = fs::remove_dir_all(&b);
            let _ = fs::remove_dir_all(&a);
            rounds += 1;
        }
        rounds
    });
    let (mut bound, mut refused) = (0, 0);
    for n in 0..600 {
        match bind(&it.volume, if n % 2 == 0 { "a/dir" } else { "a/new/deep" }, &it.target) {
            Ok(path) => {
                bound += 1;
                let got = fs::metadata(&path).unwrap().ino();
                assert!(!outside.contains(&got), "the outside was mounted");
                mount::unmount(&it.target).unwrap();
            }
            Err(_) => refused += 1,
        }
    }
    stop.store(true, Ordering::Relaxed);
    assert!(attacker.join().unwrap() > 0);
    assert!(bound > 0, "{bound} bound, {refused} refused");
    assert_eq!(fs::read_dir(&it.outside).unwrap().count(), 2);
    assert_eq!(fs::read_dir(it.outside.join("dir")).unwrap().count(), 0, "nothing was made outside");
}
