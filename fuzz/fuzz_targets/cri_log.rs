#![no_main]
//! Logs of containers, ours and foreign ones.

use container_engine::logs::{Entry, ReadOptions, Reader, Stream, parse, rfc3339};
use libfuzzer_sys::fuzz_target;
use tokio_util::sync::CancellationToken;

async fn read(path: &std::path::Path, options: ReadOptions) -> Vec<Entry> {
    let mut reader = Reader::open(path, options, CancellationToken::new()).await.expect("a log");
    let mut all = Vec::new();
    while let Some(entry) = reader.next().await.expect("an entry") {
        all.push(entry);
    }
    all
}

fuzz_target!(|data: &[u8]| {
    for line in data.split(|byte| *byte == b'\n') {
        let Some(entry) = parse(line) else { continue };
        let stream = if entry.stream == Stream::Stdout { "stdout" } else { "stderr" };
        let tag = if entry.partial { "P" } else { "F" };
        let mut written = format!("{} {stream} {tag} ", rfc3339(entry.time_ns)).into_bytes();
        written.extend_from_slice(&entry.text);
        assert_eq!(parse(&written), Some(entry));
    }
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("0.log");
    std::fs::write(&path, data).expect("a file");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let all = read(&path, ReadOptions::default()).await;
        let text: usize = all.iter().map(|entry| entry.text.len()).sum();
        assert!(text <= data.len(), "{text} bytes of {}", data.len());
        let tail = read(&path, ReadOptions { tail: Some(2), ..ReadOptions::default() }).await;
        let times = |all: &[Entry]| all.iter().map(|entry| entry.text.clone()).collect::<Vec<_>>();
        assert!(times(&all).ends_with(&times(&tail)), "the tail is no end of the whole");
    });
});
