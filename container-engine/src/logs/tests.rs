//! The writer and the reader against each other.

use std::{fs, io::Write, path::Path, time::Duration};

use proptest::prelude::*;
use tokio_util::sync::CancellationToken;

use super::*;

fn read_all(path: &Path, options: ReadOptions) -> Vec<Entry> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut reader = Reader::open(path, options, CancellationToken::new()).await.unwrap();
        let mut all = Vec::new();
        while let Some(entry) = reader.next().await.unwrap() {
            all.push(entry);
        }
        all
    })
}

fn text(entries: &[Entry], stream: Stream) -> Vec<u8> {
    let mut all = Vec::new();
    for entry in entries.iter().filter(|entry| entry.stream == stream) {
        all.extend_from_slice(&entry.text);
        if !entry.partial {
            all.push(b'\n');
        }
    }
    all
}

/// The last `tail` lines, by their meaning: pieces that directly precede the first of them belong to it.
fn last(entries: &[Entry], tail: u64) -> Vec<Entry> {
    let mut left = tail;
    let mut from = entries.len();
    for (at, entry) in entries.iter().enumerate().rev() {
        if !entry.partial {
            if left == 0 {
                break;
            }
            left -= 1;
        }
        from = at;
    }
    entries[from..].to_vec()
}

fn output() -> impl Strategy<Value = Vec<(bool, Vec<u8>)>> {
    let bytes = prop_oneof![
        prop::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..200),
        (0_usize..40_000).prop_map(|length| vec![b'x'; length]),
        Just(b"\n".to_vec()),
    ];
    prop::collection::vec((any::<bool>(), bytes), 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn nothing_is_lost_however_it_is_cut(
        output in output(), cuts in prop::collection::vec(1_usize..20_000, 1..6), max in 0_u64..60_000, gzip in any::<bool>(),
        tail in 0_u64..40,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (path, whole) = (dir.path().join("0.log"), dir.path().join("whole.log"));
        let mut writer = Writer::open(&path, max, 1000).unwrap();
        let mut at_once = Writer::open(&whole, 0, 1).unwrap();
        let (mut now, mut cut) = (1_700_000_000_000_000_000, cuts.iter().cycle());
        for (stdout, bytes) in &output {
            let stream = if *stdout { Stream::Stdout } else { Stream::Stderr };
            at_once.push(stream, bytes, now);
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let (head, tail) = rest.split_at((*cut.next().unwrap()).min(rest.len()));
                writer.push(stream, head, now);
                writer.flush(now);
                rest = tail;
            }
            now += 1_000_000;
        }
        for writer in [&mut writer, &mut at_once] {
            writer.finish(Stream::Stdout, now);
            writer.finish(Stream::Stderr, now);
        }
        if gzip {
            compress_rotated(&path).unwrap();
        }
        let got = read_all(&path, ReadOptions::default());
        prop_assert_eq!(&got, &read_all(&whole, ReadOptions::default()));
        for stream in [Stream::Stdout, Stream::Stderr] {
            let of = |(stdout, _): &&(bool, Vec<u8>)| *stdout == (stream == Stream::Stdout);
            let want: Vec<u8> = output.iter().filter(of).flat_map(|(_, bytes)| bytes.clone()).collect();
            prop_assert_eq!(text(&got, stream), want);
        }
        let tailed = read_all(&path, ReadOptions { tail: Some(tail), ..ReadOptions::default() });
        prop_assert_eq!(tailed, last(&got, tail));
        let errors: Vec<_> = got.iter().filter(|entry| entry.stream == Stream::Stderr).cloned().collect();
        let tailed = read_all(&path, ReadOptions { tail: Some(tail), stdout: false, ..ReadOptions::default() });
        prop_assert_eq!(tailed, last(&errors, tail));
    }

    #[test]
    fn foreign_logs_do_not_stop_the_reader(bytes in prop::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..500)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        fs::write(&path, &bytes).unwrap();
        let lines = bytes.split(|byte| *byte == b'\n').count() - 1;
        prop_assert_eq!(read_all(&path, ReadOptions::default()).len(), lines);
    }
}

#[test]
fn options_choose() {
    #[track_caller]
    fn check(path: &Path, options: ReadOptions, want: &str) {
        let got: Vec<_> = read_all(path, options.clone())
            .iter()
            .map(|it| String::from_utf8_lossy(&it.text).replace("line ", ""))
            .collect();
        assert_eq!(got.concat(), want, "{options:?}");
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    let mut writer = Writer::open(&path, 0, 1).unwrap();
    for n in 0..10_u64 {
        writer.push(
            if n % 2 == 0 { Stream::Stdout } else { Stream::Stderr },
            format!("line {n}\n").as_bytes(),
            n * 1_000,
        );
    }
    writer.flush(0);
    let all = ReadOptions::default;
    check(&path, all(), "0123456789");
    check(&path, ReadOptions { stderr: false, ..all() }, "02468");
    check(&path, ReadOptions { since_ns: Some(3_000), until_ns: Some(5_000), ..all() }, "345");
    check(&path, ReadOptions { tail: Some(3), ..all() }, "789");
    check(&path, ReadOptions { tail: Some(2), until_ns: Some(4_000), stderr: false, ..all() }, "24");
    check(&path, ReadOptions { tail: Some(0), ..all() }, "");
    check(&path, ReadOptions { limit_bytes: Some(13), ..all() }, "01l");
}

#[test]
fn rotation_keeps_so_many_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    let mut writer = Writer::open(&path, 1000, 3).unwrap();
    for n in 0..200 {
        writer.push(Stream::Stdout, format!("line {n}\n").as_bytes(), 0);
        writer.flush(0);
        if n % 50 == 0 {
            compress_rotated(&path).unwrap();
        }
    }
    assert!(writer.rotations() > 5);
    let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
    let got = read_all(&path, ReadOptions::default());
    assert_eq!(got.last().unwrap().text, b"line 199");
    assert!(fs::metadata(&path).unwrap().len() <= 1000);
}

#[tokio::test]
async fn a_follower_misses_nothing_while_files_rotate() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    let mut writer = Writer::open(&path, 5_000, 1000).unwrap();
    let ended = CancellationToken::new();
    let mut reader =
        Reader::open(&path, ReadOptions { follow: true, ..ReadOptions::default() }, ended.clone()).await.unwrap();
    let place = path.clone();
    let task = tokio::task::spawn_blocking(move || {
        for n in 0..5_000 {
            writer.push(Stream::Stdout, format!("line {n}\n").as_bytes(), n);
            if n % 7 == 0 {
                writer.flush(n);
            }
            if n % 500 == 0 {
                compress_rotated(&place).unwrap();
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        writer.finish(Stream::Stdout, 5_000);
        ended.cancel();
    });
    let mut n = 0;
    while let Some(entry) = tokio::time::timeout(Duration::from_secs(30), reader.next()).await.unwrap().unwrap() {
        assert_eq!(entry.text, format!("line {n}").as_bytes());
        n += 1;
    }
    assert_eq!(n, 5_000);
    task.await.unwrap();
}

#[test]
fn a_full_disk_drops_whole_records() {
    // /dev/full takes nothing; what is there already cannot be cut either.
    let mut writer = Writer::open(Path::new("/dev/full"), 0, 1).unwrap();
    writer.push(Stream::Stdout, b"lost\n", 0);
    writer.flush(0);
    assert_eq!(writer.dropped(), "1970-01-01T00:00:00.000000000Z stdout F lost\n".len() as u64);
}

#[test]
fn a_damaged_rotated_file_does_not_hide_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    fs::write(dir.path().join("0.log.20200101-000000.gz"), b"\x1f\x8bnot really").unwrap();
    let mut file = fs::File::create(&path).unwrap();
    file.write_all(b"1970-01-01T00:00:01Z stdout F here\n").unwrap();
    assert_eq!(read_all(&path, ReadOptions::default()).len(), 1);
    assert_eq!(read_all(&path, ReadOptions { tail: Some(5), ..ReadOptions::default() }).len(), 1);
}
