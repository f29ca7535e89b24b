//! What a container has left to say: its termination message.

use std::{
    io::{Read, Seek, SeekFrom},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use container_engine::{container::Inspect, logs};

use crate::pod::{
    model::{PodKey, label},
    spec::paths,
};

/// Most that is read of the file, from its end, bytes.
const MAX_FILE: u64 = 4096;
/// Most that is taken of the log.
const MAX_LOG: usize = 2048;
const MAX_LINES: usize = 80;
/// Read of the log for it: each line has a time and a stream in front of it, and empty ones count.
const LOG_PIECE: u64 = 16 << 10;

/// What the pod's folder tells of an instance that has ended.
#[derive(Debug, Clone, Default)]
pub(super) struct Last {
    /// Its message.
    pub message: String,
    /// It was stopped so that another follows.
    pub is_due: bool,
}

/// The message of an instance that has ended.
pub(super) async fn read(
    kubelet_dir: &Path,
    pod: &PodKey,
    inspect: &Inspect,
    container: &str,
    attempt: u32,
    code: i32,
) -> Last {
    let file = paths::termination_log(kubelet_dir, &pod.uid, container, attempt);
    let falls_back = inspect.spec.labels.get(label::MESSAGE_POLICY).is_some_and(|it| it == "FallbackToLogsOnError");
    let log = (falls_back && code != 0).then(|| inspect.log_path.clone());
    let due = paths::due_mark(kubelet_dir, &pod.uid, container, attempt);
    let read = tokio::task::spawn_blocking(move || Last {
        message: whole(&file, log.as_deref()),
        is_due: due.symlink_metadata().is_ok(),
    });
    read.await.unwrap_or_default()
}

fn whole(file: &Path, log: Option<&Path>) -> String {
    let (own, _) = end_of(file, MAX_FILE).unwrap_or_default();
    match log {
        Some(log) if own.is_empty() => {
            let (bytes, whole) = end_of(log, LOG_PIECE).unwrap_or_default();
            of_log(&bytes, whole)
        }
        _ => String::from_utf8_lossy(&own).into_owned(),
    }
}

/// The last bytes of a regular file, and whether they are all of it.
fn end_of(path: &Path, most: u64) -> std::io::Result<(Vec<u8>, bool)> {
    let mut options = std::fs::File::options();
    // It lies in the pod's own folder, but the container can put anything in its place that a mount lets it.
    let mut file = options.read(true).custom_flags(libc_flags()).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Ok((Vec::new(), true));
    }
    let start = meta.len().saturating_sub(most);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok((bytes, start == 0))
}

fn libc_flags() -> i32 {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    i32::try_from(flags.bits()).unwrap_or(0)
}

/// What the last lines of a log say.
fn of_log(bytes: &[u8], whole: bool) -> String {
    let mut lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
    if !whole && !lines.is_empty() {
        lines.remove(0); // Cut at its beginning.
    }
    let entries: Vec<logs::Entry> = lines.into_iter().filter_map(logs::parse).collect();
    // A line of the container's may be several entries.
    let mut first = entries.len();
    let mut count = 0;
    for (n, entry) in entries.iter().enumerate().rev() {
        if !entry.partial || n + 1 == entries.len() {
            count += 1;
        }
        if count > MAX_LINES {
            break;
        }
        first = n;
    }
    let mut text = Vec::new();
    for entry in &entries[first..] {
        text.extend_from_slice(&entry.text);
        if !entry.partial && !entry.text.ends_with(b"\n") {
            text.push(b'\n');
        }
    }
    let mut start = text.len().saturating_sub(MAX_LOG);
    // Not in the midst of a character.
    while start > 0 && start < text.len() && text[start] & 0xc0 == 0x80 {
        start += 1;
    }
    String::from_utf8_lossy(&text[start..]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_comes_first_and_the_log_only_where_it_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        let (file, log) = (dir.path().join("m"), dir.path().join("l"));
        std::fs::write(&log, "2026-01-01T00:00:00Z stdout F one\n2026-01-01T00:00:00Z stderr F two words\n").unwrap();
        assert_eq!(whole(&file, Some(&log)), "one\ntwo words\n");
        std::fs::write(&file, "x".repeat(5000) + "end").unwrap();
        let message = whole(&file, Some(&log));
        assert!(message.ends_with("xend") && message.len() == 4096);
        std::fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", &file).unwrap();
        assert_eq!(whole(&file, None), "");
    }

    fn log(lines: &[(&str, &str)]) -> Vec<u8> {
        let line = |(tag, text): &(&str, &str)| format!("2026-11-26T10:00:00.000000001Z stdout {tag} {text}\n");
        lines.iter().map(line).collect::<String>().into_bytes()
    }

    #[test]
    fn ends_of_logs() {
        #[track_caller]
        fn check(bytes: &[u8], whole: bool, want: &str) {
            assert_eq!(of_log(bytes, whole), want);
        }
        check(b"", true, "");
        check(b"no log at all\n", true, "");
        check(&log(&[("P", "a"), ("F", "b")]), true, "ab\n");
        check(&log(&[("F", "cut"), ("F", "b")]), false, "b\n");
        check(&log(&[("F", "a"), ("P", "b")]), true, "a\nb");
        let many: Vec<(&str, &str)> = std::iter::repeat_n(("F", "x"), 200).collect();
        check(&log(&many), true, &"x\n".repeat(MAX_LINES));
        let long = "ü".repeat(3000);
        let text = of_log(&log(&[("F", &long)]), true);
        assert!(text.len() <= MAX_LOG && text.starts_with('ü') && text.ends_with("ü\n"), "{}", text.len());
    }
}
