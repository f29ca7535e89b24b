//! The state as a whole: against a model, across restarts, versions and damage.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Job {
    text: String,
}

impl Entity for Job {
    const TREE: &'static str = "job";
    const VERSION: u16 = 2;
    fn migrate(version: u16, old: serde_json::Value) -> Result<Self, String> {
        match (version, old.get("name").and_then(|name| name.as_str())) {
            (1, Some(name)) => Ok(Self { text: name.to_owned() }),
            _ => Err("no name".into()),
        }
    }
}

#[derive(Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct OldJob {
    name: String,
}

impl Entity for OldJob {
    const TREE: &'static str = "job";
    const VERSION: u16 = 1;
}

#[derive(Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Count(u64);

impl Entity for Count {
    const TREE: &'static str = "count";
    const VERSION: u16 = 1;
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn job(text: impl Into<String>) -> Job {
    Job { text: text.into() }
}

fn put<E: Entity>(state: &State, key: &str, value: &E) {
    let mut batch = Batch::default();
    batch.put(key, value).unwrap();
    run(state.commit(batch)).unwrap();
}

#[test]
fn batches_span_types_and_survive() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    let (state, recovery) = State::open(&path).unwrap();
    assert_eq!(recovery, Recovery::default());
    let mut batch = Batch::default();
    batch.put("a", &job("x")).unwrap().put("a", &Count(1)).unwrap();
    run(state.commit(batch)).unwrap();
    state.close();
    drop(state);
    let (state, _) = State::open(&path).unwrap();
    assert_eq!((state.get("a").unwrap(), state.get("a").unwrap()), (Some(job("x")), Some(Count(1))));
    let keys: Vec<_> = state.scan::<Job>("").map(|item| item.unwrap().0).collect();
    assert_eq!(keys, ["a"], "one tree does not show in another");
    state.close();
    assert!(matches!(run(state.commit(Batch::default())), Err(StateError::Closed)));
}

#[test]
fn large_values_are_split_and_blobs_stay_empty() {
    let dir = tempfile::tempdir().unwrap();
    let (state, _) = State::open(&dir.path().join("state")).unwrap();
    for n in 0..40 {
        put(&state, &format!("{n:02}"), &job("x".repeat(n * 9_000)));
    }
    put(&state, "39", &job("short now"));
    assert_eq!(state.blobs(), 0);
    let sizes: Vec<_> = state.scan::<Job>("3").map(|item| item.unwrap().1.text.len()).collect();
    let mut want: Vec<_> = (30..39).map(|n| n * 9_000).collect();
    want.push("short now".len());
    assert_eq!(sizes, want);
}

#[test]
fn old_values_migrate_and_newer_ones_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (state, _) = State::open(&dir.path().join("state")).unwrap();
    put(&state, "old", &OldJob { name: "kept".into() });
    put(&state, "new", &job("y"));
    assert_eq!(state.get("old").unwrap(), Some(job("kept")));
    let error = state.get::<OldJob>("new").unwrap_err().to_string();
    assert!(error.contains("job/new") && error.contains("version 2"), "{error}");
    assert_eq!(state.get("new").unwrap(), Some(job("y")));
}

#[test]
fn a_damaged_database_is_set_aside_and_the_state_opens() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    for round in 0..5usize {
        let (state, _) = State::open(&path).unwrap();
        put(&state, "a", &job("x".repeat(1000)));
        state.close();
        drop(state);
        let db = path.join("db");
        let mut bytes = std::fs::read(&db).unwrap();
        for at in (round..bytes.len()).step_by(37) {
            bytes[at] ^= 0x55;
        }
        std::fs::write(&db, bytes).unwrap();
        // Whether sled notices is sled's affair; that we open, and give no wrong value, is ours.
        let (state, recovery) = State::open(&path).unwrap();
        assert!(recovery.set_aside.is_none_or(|aside| aside.join("db").exists()));
        assert!(
            state.get::<Job>("a").is_err() || state.get::<Job>("a").unwrap().is_none_or(|it| it.text.len() == 1000)
        );
        state.close();
    }
    let kept = std::fs::read_dir(dir.path().join("set-aside")).map_or(0, Iterator::count);
    assert!(kept <= MAX_SET_ASIDE);
}

#[test]
fn watchers_see_their_prefix_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (state, _) = State::open(&dir.path().join("state")).unwrap();
    let mut watch = state.watch::<Job>("a/");
    put(&state, "b/1", &job("no"));
    put(&state, "a/1", &Count(1));
    put(&state, "a/1", &job("yes"));
    let mut batch = Batch::default();
    batch.delete::<Job>("a/1");
    assert_eq!(run(watch.next()), Some(Change::Put("a/1".into(), job("yes"))));
    run(state.commit(batch)).unwrap();
    assert_eq!(run(watch.next()), Some(Change::Deleted("a/1".into())));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]
    #[test]
    fn behaves_as_a_map(steps in prop::collection::vec(
        (prop::collection::vec(("[a-c]{1,2}", prop::option::of(0usize..80_000)), 1..4), any::<bool>()), 1..12)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let mut state = State::open(&path).unwrap().0;
        let mut model = BTreeMap::new();
        for (writes, reopen) in steps {
            let mut batch = Batch::default();
            for (key, size) in writes {
                if let Some(size) = size {
                    batch.put(&key, &job("z".repeat(size))).unwrap();
                    model.insert(key, size);
                } else {
                    batch.delete::<Job>(&key);
                    model.remove(&key);
                }
            }
            run(state.commit(batch)).unwrap();
            if reopen {
                state.close();
                drop(state);
                state = State::open(&path).unwrap().0;
            }
            let all: BTreeMap<_, _> = state.scan::<Job>("").map(|item| item.unwrap()).map(|(k, v)| (k, v.text.len())).collect();
            prop_assert_eq!(&all, &model);
        }
        prop_assert_eq!(state.blobs(), 0);
    }
}
