#![no_main]
//! A log whose segments hold anything. The first byte: 1 gives blocks the checksums that fit, 2 splits the rest into two
//! segments, and what is above says where the second one's numbers start.
//!
//! Whatever is in the files: the log opens, hands out ascending numbers, accounts for every number, and takes a new record.
//! Where no checksum was forged, it has all of that when it is opened again; forged blocks that contradict each other may
//! be believed one time and not the next, but never out of order.

use std::{
    collections::BTreeMap,
    fs,
    ops::Range,
    path::{Path, PathBuf},
    sync::LazyLock,
    time::Duration,
};

use libfuzzer_sys::fuzz_target;
use store::log::{
    Log, Options, Record,
    fuzzing::{DATA_START, seal},
};

const SEGMENT_BYTES: u64 = 64 << 10;

/// In memory where there is such a place: a disk would be the slowest part.
static ROOM: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let memory = Path::new("/dev/shm");
    let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    tempfile::tempdir_in(parent).expect("a folder")
});

fuzz_target!(|data: &[u8]| {
    let Some((&mode, content)) = data.split_first() else { return };
    let dir = ROOM.path().join("data/log");
    let _ = fs::remove_dir_all(ROOM.path().join("data"));
    fs::create_dir_all(&dir).expect("a folder");
    if mode & 2 == 0 {
        write(&dir, 1, 2, mode & 1 == 1, content);
    } else {
        let (older, newer) = content.split_at(content.len() / 2);
        write(&dir, 1, 2, mode & 1 == 1, older);
        write(&dir, 2 + u64::from(mode >> 2), 3, mode & 1 == 1, newer);
    }

    let log = Log::open_read_only(&dir).expect("it opens for reading");
    let before = read(&log);
    log.close();

    let (log, _) = open(&dir);
    assert_eq!(read(&log).0, before.0, "opening changes nothing that was readable");
    let (next, body) = (log.stats().next, b"one more".to_vec());
    let new = Record { mark: 1, body: body.clone() };
    let range = runtime().block_on(log.append(vec![new])).expect("it takes a record");
    assert_eq!(range, next..next + 1);
    log.close();

    let (log, recovery) = open(&dir);
    let (mut after, _) = read(&log);
    log.close();
    if mode & 1 == 0 {
        assert_eq!(after.remove(&next), Some(body), "the record is there: {recovery:?}");
        assert_eq!(after, before.0, "what was readable still is");
    }
});

fn write(dir: &Path, first_seq: u64, generation: u64, sealed: bool, content: &[u8]) {
    let mut bytes = vec![0; usize::try_from(DATA_START).expect("small")];
    bytes.extend_from_slice(content);
    if sealed {
        seal(generation, &mut bytes);
    }
    let path: PathBuf = dir.join(format!("{first_seq:016x}-{generation:08x}.seg"));
    fs::write(&path, &bytes).expect("a file");
    let file = fs::OpenOptions::new().write(true).open(&path).expect("the file");
    // Room for one more commit; a whole segment of zeros would be read again and again.
    file.set_len(bytes.len() as u64 + 1024).expect("room");
}

fn open(dir: &Path) -> (Log, store::log::Recovery) {
    let options = Options { segment_bytes: SEGMENT_BYTES, linger: Duration::ZERO, max_bytes: 64 << 20 };
    Log::open(dir, options).expect("it opens")
}

fn runtime() -> &'static tokio::runtime::Runtime {
    static RUNTIME: LazyLock<tokio::runtime::Runtime> =
        LazyLock::new(|| tokio::runtime::Builder::new_current_thread().build().expect("a runtime"));
    &RUNTIME
}

/// Everything readable, and what is missing.
fn read(log: &Log) -> (BTreeMap<u64, Vec<u8>>, Vec<Range<u64>>) {
    let (mut all, mut missing) = (BTreeMap::new(), Vec::new());
    let mut reader = log.reader(1);
    let mut next = 1;
    loop {
        let batch = reader.next_batch(1000).expect("a file in memory can be read");
        let singles = batch.records.iter().map(|(seq, _)| *seq..seq + 1);
        let mut told: Vec<_> = singles.chain(batch.missing.iter().cloned()).collect();
        told.sort_by_key(|range| range.start);
        for range in told {
            assert_eq!(range.start, next, "numbers are told once, in order, and none is passed over in silence");
            next = range.end;
        }
        assert!(batch.records.is_sorted_by(|(one, _), (other, _)| one < other));
        assert!(next <= log.stats().next && next == reader.position());
        missing.extend(batch.missing);
        if batch.records.is_empty() {
            assert_eq!(next, log.stats().next, "it reads to the end");
            return (all, missing);
        }
        all.extend(batch.records.into_iter().map(|(seq, record)| (seq, record.body)));
    }
}
