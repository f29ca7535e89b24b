//! The log as a whole: against a model, cut at every byte, with every byte flipped.

use std::{collections::BTreeMap, os::unix::fs::FileExt};

use proptest::prelude::*;

use super::*;

fn options() -> Options {
    Options { segment_bytes: 64 << 10, linger: Duration::ZERO, max_bytes: 64 << 20 }
}

fn record(text: impl Into<Vec<u8>>) -> Record {
    Record { mark: 0, body: text.into() }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn append(log: &Log, records: Vec<Record>) -> Range<u64> {
    runtime().block_on(log.append(records)).unwrap()
}

fn read_all(log: &Log, from: u64) -> (BTreeMap<u64, Vec<u8>>, Vec<Range<u64>>) {
    let mut reader = log.reader(from);
    let (mut all, mut missing) = (BTreeMap::new(), Vec::new());
    loop {
        let batch = reader.next_batch(10_000).unwrap();
        missing.extend(batch.missing);
        if batch.records.is_empty() {
            return (all, missing);
        }
        all.extend(batch.records.into_iter().map(|(seq, record)| (seq, record.body)));
    }
}

#[test]
fn what_was_appended_is_read_back_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let (log, recovery) = Log::open(&dir.path().join("log"), options()).unwrap();
    assert_eq!(recovery, Recovery::default());
    assert_eq!(append(&log, vec![record("a"), record("b")]), 1..3);
    assert_eq!(append(&log, vec![record("c")]), 3..4);
    log.close();
    let (log, recovery) = Log::open(&dir.path().join("log"), options()).unwrap();
    assert_eq!(recovery, Recovery::default());
    assert_eq!(append(&log, vec![record("d")]), 4..5);
    let (all, missing) = read_all(&log, 2);
    assert_eq!(all.into_values().collect::<Vec<_>>(), [b"b", b"c", b"d"]);
    assert_eq!(missing, []);
}

#[test]
fn numbers_go_on_after_everything_was_drained() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(&dir.path().join("log"), options()).unwrap();
    for _ in 0..40 {
        append(&log, vec![record(vec![7; 10_000]), record(random_bytes(9_000))]);
    }
    log.trim(81).unwrap();
    assert_eq!(log.stats().segments, 1);
    log.close();
    let (log, _) = Log::open(&dir.path().join("log"), options()).unwrap();
    assert_eq!(append(&log, vec![record("next")]), 81..82);
    assert!(log.stats().disk_bytes <= 4 * (64 << 10), "drained segments are given back");
}

fn random_bytes(len: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64 ^ len as u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    (0..len).map(|_| next()).collect()
}

#[test]
fn only_marked_blocks_are_read_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(&dir.path().join("log"), options()).unwrap();
    for n in 0..30u8 {
        append(&log, vec![Record { mark: u8::from(n % 10 == 9), body: vec![n] }]);
    }
    let mut reader = log.reader(1).only(1);
    let mut seen = Vec::new();
    loop {
        let batch = reader.next_batch(1).unwrap();
        assert_eq!(batch.missing, []);
        if batch.records.is_empty() {
            break;
        }
        seen.extend(batch.records.into_iter().filter(|(_, record)| record.mark == 1).map(|(seq, _)| seq));
    }
    assert_eq!(seen, [10, 20, 30]);
}

#[test]
fn checkpoints_survive_and_begin_every_segment() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(&dir.path().join("log"), options()).unwrap();
    log.checkpoint("relay", b"first".to_vec());
    append(&log, vec![record("x")]);
    log.checkpoint("relay", b"second".to_vec());
    runtime().block_on(log.sync_checkpoints()).unwrap();
    for _ in 0..20 {
        append(&log, vec![record(random_bytes(20_000))]);
    }
    log.trim(20).unwrap();
    log.close();
    let (log, _) = Log::open(&dir.path().join("log"), options()).unwrap();
    assert_eq!(log.checkpointed("relay").as_deref(), Some(&b"second"[..]));
    log.forget_checkpoint("relay");
    runtime().block_on(log.sync_checkpoints()).unwrap();
    log.close();
    let (log, _) = Log::open(&dir.path().join("log"), options()).unwrap();
    assert_eq!(log.checkpointed("relay"), None);
}

#[test]
fn a_full_log_refuses_and_takes_again_after_a_trim() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(&dir.path().join("log"), Options { max_bytes: 256 << 10, ..options() }).unwrap();
    let runtime = runtime();
    let mut accepted = 0;
    let refused = loop {
        match runtime.block_on(log.append(vec![record(random_bytes(10_000))])) {
            Ok(range) => accepted = range.end - 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, AppendError::Full { .. }), "{refused}");
    assert_eq!(read_all(&log, 1).0.len() as u64, accepted, "what was accepted is still there");
    assert!(log.stats().disk_bytes <= 256 << 10);
    log.trim(accepted).unwrap();
    assert_eq!(append(&log, vec![record("again")]), accepted + 1..accepted + 2);
}

#[test]
fn dropping_the_oldest_tells_which_and_readers_pass_over_them() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(&dir.path().join("log"), options()).unwrap();
    for _ in 0..20 {
        append(&log, vec![record(random_bytes(20_000))]);
    }
    let dropped = log.drop_oldest().unwrap().unwrap();
    let (all, missing) = read_all(&log, 1);
    assert_eq!(missing, std::slice::from_ref(&dropped));
    assert_eq!(all.keys().copied().collect::<Vec<_>>(), (dropped.end..21).collect::<Vec<_>>());
}

#[test]
fn skipped_numbers_are_never_given_out_and_count_as_missing() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(&dir.path().join("log"), options()).unwrap();
    append(&log, vec![record("a")]);
    log.close();
    let (log, _) = Log::open(&dir.path().join("log"), options()).unwrap();
    log.skip_to(10);
    assert_eq!(append(&log, vec![record("b")]), 10..11);
    log.close();
    let (log, recovery) = Log::open(&dir.path().join("log"), options()).unwrap();
    assert_eq!(recovery, Recovery::default());
    let (all, missing) = read_all(&log, 1);
    assert_eq!(all.into_keys().collect::<Vec<_>>(), [1, 10]);
    assert_eq!(missing, std::slice::from_ref(&(2..10)));
}

/// The newest segment's file, its used length and the records in it: three commits of three records.
fn small_log() -> (tempfile::TempDir, PathBuf, u64, Vec<Vec<u8>>) {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(&dir.path().join("log"), options()).unwrap();
    let mut bodies = Vec::new();
    for commit in 0..3 {
        let records: Vec<_> = (0..3).map(|n| record(format!("commit {commit} record {n}"))).collect();
        bodies.extend(records.iter().map(|record| record.body.clone()));
        append(&log, records);
    }
    log.close();
    let used = log.stats().written_bytes % (64 << 10) + segment::DATA_START;
    let newest = log.shared.files().newest().unwrap().path(&dir.path().join("log"));
    (dir, newest, used, bodies)
}

/// A clean stop leaves word of where the log ended; a crash does not.
fn crashed(dir: &tempfile::TempDir) {
    let _ = std::fs::remove_file(dir.path().join("log/end")); // Only a log that was closed has one.
}

/// Power can fail at any byte, so try every byte instead of a lucky one.
#[test]
fn any_cut_recovers_whole_commits_and_nothing_else() {
    let (dir, newest, used, bodies) = small_log();
    let whole = std::fs::read(&newest).unwrap();
    let per_commit = usize::try_from((used - segment::DATA_START) / 3).unwrap();
    for cut in usize::try_from(segment::DATA_START).unwrap()..usize::try_from(used).unwrap() {
        let mut bytes = whole.clone();
        bytes[cut..].fill(0);
        std::fs::write(&newest, &bytes).unwrap();
        crashed(&dir);
        let (log, recovery) = Log::open(&dir.path().join("log"), options()).unwrap();
        assert_eq!(recovery.lost, [], "cut at {cut}");
        let (all, _) = read_all(&log, 1);
        let commits = (cut - 64) / per_commit;
        assert_eq!(all.values().collect::<Vec<_>>(), bodies[..commits * 3].iter().collect::<Vec<_>>(), "cut at {cut}");
        let next = append(&log, vec![record("after")]);
        assert_eq!(next.start, commits as u64 * 3 + 1);
        log.close();
        // Whatever the torn commit left behind stays out of sight.
        let (log, recovery) = Log::open(&dir.path().join("log"), options()).unwrap();
        assert_eq!(recovery.lost, []);
        assert_eq!(read_all(&log, next.start).0.into_values().collect::<Vec<_>>(), [b"after"]);
        log.close();
        for entry in std::fs::read_dir(dir.path().join("log")).unwrap() {
            let path = entry.unwrap().path();
            if path != newest {
                std::fs::remove_file(path).unwrap();
            }
        }
    }
}

#[test]
fn any_flipped_byte_costs_at_most_its_commit() {
    let (dir, newest, used, bodies) = small_log();
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&newest).unwrap();
    for at in segment::DATA_START..used {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
        crashed(&dir);
        let log = Log::open_read_only(&dir.path().join("log")).unwrap();
        let (all, _) = read_all(&log, 1);
        assert!(all.len() >= 6, "byte {at}: {} of 9 left", all.len());
        for (seq, body) in all {
            assert_eq!(body, bodies[usize::try_from(seq).unwrap() - 1], "byte {at}: number {seq}");
        }
        file.write_all_at(&byte, at).unwrap();
    }
}

#[test]
fn damage_in_a_sealed_segment_is_met_while_reading() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let (log, _) = Log::open(&path, options()).unwrap();
    for _ in 0..12 {
        append(&log, vec![record(random_bytes(15_000))]);
    }
    let first = log.shared.files().segments.values().next().copied().unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(first.path(&path)).unwrap();
    file.write_all_at(&[0xff; 100], 20_000).unwrap(); // In the second of four records.
    let (all, missing) = read_all(&log, 1);
    assert_eq!(missing, std::slice::from_ref(&(2..3)));
    assert_eq!(all.len(), 11);
    assert_eq!(log.stats().damaged, 1);
    assert_eq!(std::fs::read_dir(dir.path().join("set-aside")).unwrap().count(), 1);
}

#[test]
fn a_block_that_holds_more_or_less_than_it_says_accounts_for_its_own_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let mut raw = Vec::new();
    for text in ["a", "b"] {
        block::push_record(&mut raw, &record(text));
    }
    let mut encoder = block::Encoder::default();
    for (first_seq, says) in [(1, 3), (4, 1), (5, 2)] {
        encoder.block(1, block::FIRST_OF_COMMIT, 0, says, first_seq, &raw);
    }
    let start = usize::try_from(segment::DATA_START).unwrap();
    let path = dir.path().join("log").join("0000000000000001-00000001.seg");
    std::fs::create_dir(dir.path().join("log")).unwrap();
    std::fs::write(path, [&vec![0; start], &encoder.bytes[..]].concat()).unwrap();
    let (all, missing) = read_all(&Log::open_read_only(&dir.path().join("log")).unwrap(), 1);
    assert_eq!(missing, std::slice::from_ref(&(3..4)));
    let all: Vec<_> = all.iter().map(|(seq, body)| (*seq, &body[..])).collect();
    assert_eq!(all, [(1, &b"a"[..]), (2, b"b"), (4, b"a"), (5, b"a"), (6, b"b")]);
}

#[test]
fn concurrent_writers_share_commits_and_each_gets_its_own_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(&dir.path().join("log"), options()).unwrap();
    runtime().block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for writer in 0..50u32 {
            let log = log.clone();
            tasks.spawn(async move {
                let mut mine = Vec::new();
                for n in 0..20u32 {
                    let body = format!("{writer}/{n}").into_bytes();
                    let range = log.append(vec![record(body.clone())]).await.unwrap();
                    mine.push((range.start, body));
                }
                mine
            });
        }
        let mut all = BTreeMap::new();
        for mine in tasks.join_all().await {
            all.extend(mine);
        }
        assert_eq!(all.keys().copied().collect::<Vec<_>>(), (1..=1000).collect::<Vec<_>>());
        assert_eq!(read_all(&log, 1).0, all);
        assert!(log.stats().commits < 1000, "writers share commits");
    });
}

#[derive(Debug, Clone)]
enum Step {
    Append(Vec<usize>),
    Trim(u8),
    Checkpoint(u8),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop::collection::vec(0usize..6_000, 1..6).prop_map(Step::Append),
        2 => any::<u8>().prop_map(Step::Trim),
        1 => any::<u8>().prop_map(Step::Checkpoint),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn behaves_as_a_list_that_forgets_from_the_front(steps in prop::collection::vec(step(), 1..40)) {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, _) = Log::open(&dir.path().join("log"), options()).unwrap();
        let (mut model, mut next, mut kept, mut trimmed) = (BTreeMap::new(), 1u64, None, 1u64);
        for step in steps {
            match step {
                Step::Append(sizes) => {
                    let bodies: Vec<_> = sizes.iter().map(|len| random_bytes(*len)).collect();
                    let range = append(&log, bodies.iter().cloned().map(record).collect());
                    prop_assert_eq!(range.start, next);
                    next = range.end;
                    model.extend(range.zip(bodies));
                }
                Step::Trim(part) => {
                    trimmed = trimmed.max(next * u64::from(part) / 256);
                    log.trim(trimmed).unwrap();
                }
                Step::Checkpoint(value) => {
                    kept = Some(vec![value]);
                    log.checkpoint("it", vec![value]);
                    runtime().block_on(log.sync_checkpoints()).unwrap();
                }
                Step::Reopen => {
                    log.close();
                    let (again, recovery) = Log::open(&dir.path().join("log"), options()).unwrap();
                    prop_assert_eq!(recovery, Recovery::default());
                    log = again;
                }
            }
        }
        let (all, missing) = read_all(&log, trimmed);
        prop_assert_eq!(missing, vec![]);
        prop_assert_eq!(all, model.split_off(&trimmed));
        prop_assert_eq!(log.checkpointed("it"), kept);
    }
}

#[test]
fn a_last_commit_damaged_after_a_clean_stop_does_not_give_its_numbers_again() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(dir.path(), options()).unwrap();
    append(&log, vec![record("first")]);
    append(&log, vec![record("last")]);
    log.close();
    let segment = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
    let segment = segment.into_iter().find(|path| path.extension().is_some_and(|it| it == "seg")).unwrap();
    let bytes = std::fs::read(&segment).unwrap();
    let at = bytes.windows(4).position(|window| window == b"last").unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&segment).unwrap();
    file.write_all_at(b"L", at as u64).unwrap();
    let (log, _) = Log::open(dir.path(), options()).unwrap();
    assert_eq!(append(&log, vec![record("next")]), 3..4);
    let (all, missing) = read_all(&log, 1);
    assert_eq!(all.into_keys().collect::<Vec<_>>(), [1, 3]);
    assert_eq!(missing.first(), Some(&(2..3)));
}
