#![no_main]
//! A layer that holds anything: no panic, nothing outside the tree, no more than the limits allow, and a tree that can be
//! removed. With the first byte odd its headers get the checksums that fit.

use std::{fs, path::Path, sync::LazyLock};

use container_engine::snapshot::{Limits, fuzzing};
use libfuzzer_sys::fuzz_target;

/// In memory where there is such a place: a disk would be the slowest part.
static ROOM: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let memory = Path::new("/dev/shm");
    let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    let room = tempfile::tempdir_in(parent).expect("a folder");
    fs::create_dir(room.path().join("outside")).expect("a folder");
    fs::write(room.path().join("outside/victim"), "as it was").expect("a file");
    room
});

fuzz_target!(|data: &[u8]| {
    let Some((&mode, content)) = data.split_first() else { return };
    let mut archive = content.to_vec();
    if mode & 1 == 1 {
        fuzzing::seal(&mut archive);
    }
    let root = ROOM.path().join("root");
    fuzzing::remove(&root).expect("what a layer left can be removed");
    fs::create_dir(&root).expect("a folder");
    let limits = Limits { bytes: 1 << 20, entries: 1000 };
    if let Ok((bytes, _)) = fuzzing::unpack(&archive, &root, limits) {
        assert!(bytes <= limits.bytes);
    }
    let mut names: Vec<_> =
        fs::read_dir(ROOM.path()).expect("the room").map(|item| item.expect("an item").file_name()).collect();
    names.sort();
    assert_eq!(names, ["outside", "root"]);
    assert_eq!(fs::read_dir(ROOM.path().join("outside")).expect("the folder").count(), 1);
    assert_eq!(fs::read(ROOM.path().join("outside/victim")).expect("the file"), b"as it was");
});
