//! The writer at every point where it could be cut off.

use std::{
    collections::BTreeMap,
    os::unix::fs::{MetadataExt, PermissionsExt},
};

use super::*;

fn payload(files: &[(&str, &str)]) -> Payload {
    let mut payload = Payload::default();
    for (path, text) in files {
        payload.add(path, File { data: text.as_bytes().to_vec(), mode: 0o644, owner: None }).unwrap();
    }
    payload
}

/// What a container sees: visible files by their path, without the writer's own names.
fn seen(dir: &Path) -> BTreeMap<String, String> {
    fn walk(at: &Path, name: &str, found: &mut BTreeMap<String, String>) {
        let Ok(there) = fs::metadata(at) else { return };
        if there.is_file() {
            found.insert(name.to_owned(), fs::read_to_string(at).unwrap());
            return;
        }
        for entry in fs::read_dir(at).unwrap() {
            let entry = entry.unwrap();
            let child = entry.file_name().into_string().unwrap();
            walk(&entry.path(), &format!("{name}/{child}"), found);
        }
    }
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if !name.starts_with("..") {
            walk(&dir.join(&name), &name, &mut found);
        }
    }
    found
}

fn want(files: &[(&str, &str)]) -> BTreeMap<String, String> {
    files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect()
}

/// Exactly one folder of data, `..data`, and nothing else of the writer's.
#[track_caller]
fn assert_tidy(dir: &Path) {
    let own = fs::read_dir(dir).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap());
    let mut own: Vec<_> = own.filter(|name| name.starts_with("..")).collect();
    own.sort();
    assert_eq!(own.len(), 2, "{own:?}");
    assert_eq!(own[1], DATA);
    assert_eq!(fs::read_link(dir.join(DATA)).unwrap(), Path::new(&own[0]));
}

const OLD: &[(&str, &str)] = &[("a", "1"), ("b/c", "2"), ("b/d", "3"), ("gone", "x")];
const NEW: &[(&str, &str)] = &[("a", "1"), ("b/c", "changed"), ("e/f/g", "new")];

#[test]
fn files_change_together_and_only_when_they_change() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    assert!(write(dir, &payload(OLD), None).unwrap());
    assert_eq!(seen(dir), want(OLD));
    assert_tidy(dir);
    assert_eq!(fs::read_link(dir.join("b")).unwrap(), Path::new("..data/b"));
    let before = fs::read_link(dir.join(DATA)).unwrap();
    assert!(!write(dir, &payload(OLD), None).unwrap(), "nothing has changed");
    assert_eq!(fs::read_link(dir.join(DATA)).unwrap(), before);
    assert!(write(dir, &payload(NEW), None).unwrap());
    assert_eq!(seen(dir), want(NEW));
    assert_tidy(dir);
    assert_ne!(fs::read_link(dir.join(DATA)).unwrap(), before);
    assert!(write(dir, &payload(&[]), None).unwrap());
    assert_eq!(seen(dir), want(&[]));
    assert_tidy(dir);
}

/// The states that a crash can leave while `OLD` becomes `NEW`, one after the other.
fn cut_off(dir: &Path, step: usize) {
    let stamp = dir.join("..2026_01_01_00_00_00.1");
    let steps: [&dyn Fn(); 8] = [
        &|| fs::create_dir(&stamp).unwrap(),
        &|| fs::write(stamp.join("a"), "").unwrap(), // Torn.
        &|| {
            fs::remove_dir_all(&stamp).unwrap();
            fs::create_dir_all(stamp.join("b")).unwrap();
            fs::create_dir_all(stamp.join("e/f")).unwrap();
            for (path, text) in NEW {
                fs::write(stamp.join(path), text).unwrap();
            }
        },
        &|| symlink("..2026_01_01_00_00_00.1", dir.join(DATA_NEW)).unwrap(),
        &|| fs::rename(dir.join(DATA_NEW), dir.join(DATA)).unwrap(),
        &|| symlink("..data/e", dir.join("e")).unwrap(),
        &|| fs::remove_file(dir.join("gone")).unwrap(),
        &|| {
            let own = fs::read_dir(dir).unwrap().map(|it| it.unwrap().path());
            let old = own.filter(|it| it.is_dir() && !it.is_symlink() && *it != stamp);
            old.for_each(|it| fs::remove_dir_all(it).unwrap());
        },
    ];
    steps.iter().take(step).for_each(|step| step());
}

#[test]
fn a_crash_at_any_point_is_mended_by_the_next_call() {
    for step in 0..=8 {
        for (name, goal) in [("on", NEW), ("back", OLD)] {
            let temp = tempfile::tempdir().unwrap();
            let dir = temp.path();
            write(dir, &payload(OLD), None).unwrap();
            cut_off(dir, step);
            // What can be seen is of one version: the link decides.
            let files = seen(dir);
            let changed = files.get("b/c").map(String::as_str) == Some("changed");
            assert_eq!(changed, step >= 5, "step {step}: {files:?}");
            assert_eq!(files.contains_key("b/d"), !changed, "step {step}: {files:?}");
            write(dir, &payload(goal), None).unwrap();
            assert_eq!(seen(dir), want(goal), "step {step}, {name}");
            assert_tidy(dir);
        }
    }
}

#[test]
fn a_torn_or_strange_folder_is_written_anew() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let strange: [&dyn Fn(); 6] = [
        &|| fs::write(dir.join("a"), "").unwrap(), // A power cut: named, and empty.
        &|| fs::write(dir.join(DATA).join("more"), "").unwrap(),
        &|| fs::remove_file(dir.join(DATA).join("b/c")).unwrap(),
        &|| {
            fs::remove_file(dir.join(DATA)).unwrap();
            symlink("..2020_nowhere", dir.join(DATA)).unwrap();
        },
        &|| {
            fs::remove_file(dir.join(DATA)).unwrap();
            symlink("/etc", dir.join(DATA)).unwrap();
        },
        &|| symlink("/etc", dir.join(DATA_NEW)).unwrap(),
    ];
    for make in strange {
        write(dir, &payload(OLD), None).unwrap();
        make();
        write(dir, &payload(OLD), None).unwrap();
        assert_eq!(seen(dir), want(OLD));
        assert_tidy(dir);
    }
    assert!(Path::new("/etc/passwd").exists());
}

#[test]
fn what_is_no_file_of_the_writer_stays() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    fs::create_dir(dir.join("mount")).unwrap(); // For a mount inside.
    symlink("/elsewhere", dir.join("link")).unwrap();
    write(dir, &payload(&[("a", "1"), ("mount/x", "2")]), None).unwrap();
    write(dir, &payload(&[("a", "2")]), None).unwrap();
    assert!(dir.join("mount").is_dir() && dir.join("link").is_symlink());
    assert_eq!(seen(dir), want(&[("a", "2")]));
}

#[test]
fn modes_owners_and_the_group() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let mut files = Payload::default();
    files.add("open", File { data: vec![], mode: 0o644, owner: None }).unwrap();
    files.add("token", File { data: vec![1], mode: 0o600, owner: Some(1234) }).unwrap();
    files.add("sub/run", File { data: vec![], mode: 0o555, owner: None }).unwrap();
    write(dir, &files, None).unwrap();
    let of = |name: &str| {
        let stat = fs::metadata(dir.join(name)).unwrap();
        (stat.permissions().mode() & 0o7777, stat.uid(), stat.gid())
    };
    assert_eq!([of("open"), of("token"), of("sub/run")], [(0o644, 0, 0), (0o600, 1234, 0), (0o555, 0, 0)]);
    assert_eq!(of("sub"), (0o755, 0, 0));
    fs::remove_file(dir.join(DATA)).unwrap();
    write(dir, &files, Some(77)).unwrap();
    assert_eq!([of("open"), of("token"), of("sub/run")], [(0o644, 0, 77), (0o640, 1234, 77), (0o555, 0, 77)]);
    assert_eq!(of("sub"), (0o2755, 0, 77));
}

#[test]
fn readers_never_see_a_mixture() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().to_owned();
    let both = |n: usize| payload(&[("x", &n.to_string()), ("y", &n.to_string())]);
    write(&dir, &both(0), None).unwrap();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (ended, at) = (stop.clone(), dir.clone());
    let reader = std::thread::spawn(move || {
        let mut looks = 0;
        while !ended.load(std::sync::atomic::Ordering::Relaxed) {
            // One look at the link, then both files below it, as a careful reader does.
            let data = at.join(fs::read_link(at.join(DATA)).unwrap());
            if let (Ok(x), Ok(y)) = (fs::read_to_string(data.join("x")), fs::read_to_string(data.join("y"))) {
                assert_eq!(x, y);
                looks += 1;
            }
        }
        looks
    });
    for n in 1..200 {
        write(&dir, &both(n), None).unwrap();
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(reader.join().unwrap() > 0);
}
