//! What a container has left to say: its termination message.

use std::{
    io::{Read, Seek, SeekFrom},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use container_engine::container::Inspect;

use crate::pod::{
    model::{PodKey, label},
    spec::paths,
};

/// Most that is read of the file, from its end, bytes.
const MAX_FILE: u64 = 4096;
/// Most that is taken of the log.
const MAX_LOG: u64 = 2048;
const MAX_LINES: usize = 80;

/// The message of an instance that has ended.
pub(super) async fn read(
    kubelet_dir: &Path,
    pod: &PodKey,
    inspect: &Inspect,
    container: &str,
    attempt: u32,
    code: i32,
) -> String {
    let file = paths::termination_log(kubelet_dir, &pod.uid, container, attempt);
    let falls_back = inspect.spec.labels.get(label::MESSAGE_POLICY).is_some_and(|it| it == "FallbackToLogsOnError");
    let log = (falls_back && code != 0).then(|| inspect.log_path.clone());
    let read = tokio::task::spawn_blocking(move || whole(&file, log.as_deref()));
    read.await.unwrap_or_default()
}

fn whole(file: &Path, log: Option<&Path>) -> String {
    let own = end_of(file, MAX_FILE).unwrap_or_default();
    match log {
        Some(log) if own.is_empty() => from_log(log),
        _ => own,
    }
}

/// The last bytes of a regular file, as text.
fn end_of(path: &Path, most: u64) -> std::io::Result<String> {
    let mut options = std::fs::File::options();
    // It lies in the pod's own folder, but the container can put anything in its place that a mount lets it.
    let mut file = options.read(true).custom_flags(libc_flags()).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Ok(String::new());
    }
    file.seek(SeekFrom::Start(meta.len().saturating_sub(most)))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn libc_flags() -> i32 {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    i32::try_from(flags.bits()).unwrap_or(0)
}

/// The last lines of a log, without what the log adds to them.
fn from_log(path: &Path) -> String {
    // Twice: each line has a time in front of it.
    let text = end_of(path, 4 * MAX_LOG).unwrap_or_default();
    let lines: Vec<&str> = text.lines().filter_map(|line| line.splitn(4, ' ').nth(3)).collect();
    let last = lines[lines.len().saturating_sub(MAX_LINES)..].join("\n");
    let most = usize::try_from(MAX_LOG).unwrap_or(usize::MAX);
    let start = (last.len().saturating_sub(most)..=last.len()).find(|at| last.is_char_boundary(*at)).unwrap_or(0);
    let mut tail = last[start..].to_owned();
    if !tail.is_empty() {
        tail.push('\n');
    }
    tail
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
}
