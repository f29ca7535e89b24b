//! The files of one log: the one being written, and those it was before.

use std::{
    ffi::OsStr,
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use super::line::civil;

/// A file that the log was before a rotation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rotated {
    /// `20261125-162013` or `20261125-162013.001`: sorts by time. First, because it is the order.
    pub(super) stamp: String,
    /// Whether it is compressed.
    pub(super) gzip: bool,
    /// The file.
    pub(super) path: PathBuf,
}

/// Rotated files of `log`, oldest first, each once: the compressed one where both are there.
pub(super) fn rotated(log: &Path) -> io::Result<Vec<Rotated>> {
    let (Some(dir), Some(name)) = (log.parent(), log.file_name()) else { return Ok(Vec::new()) };
    let mut all = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let file = entry.file_name();
        if let Some((stamp, gzip)) = stamp_of(name, &file) {
            all.push(Rotated { stamp: stamp.to_owned(), gzip, path: entry.path() });
        }
    }
    all.sort();
    // Sorted, the compressed one comes second, and it is whole: it has its name only once it is.
    all.reverse();
    all.dedup_by(|second, first| second.stamp == first.stamp);
    all.reverse();
    Ok(all)
}

/// The stamp in `file`, if it is a rotated file of the log `name`.
fn stamp_of<'a>(name: &OsStr, file: &'a OsStr) -> Option<(&'a str, bool)> {
    let rest = file.as_bytes().strip_prefix(name.as_bytes())?.strip_prefix(b".")?;
    let rest = std::str::from_utf8(rest).ok()?;
    let (stamp, gzip) = rest.strip_suffix(".gz").map_or((rest, false), |stamp| (stamp, true));
    let (date, counter) = stamp.split_once('.').unwrap_or((stamp, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let (day, time) = date.split_once('-')?;
    (day.len() == 8 && time.len() == 6 && digits(day) && digits(time) && digits(counter)).then_some((stamp, gzip))
}

/// A name for the next rotated file: after `last`, whatever the clock says.
pub(super) fn next_stamp(last: Option<&str>, now_ns: u64) -> String {
    let [year, month, day, hour, minute, second] = civil(now_ns);
    let now = format!("{year:04}{month:02}{day:02}-{hour:02}{minute:02}{second:02}");
    let Some(last) = last.filter(|last| **last >= *now) else { return now };
    // Within the same second, or the clock was set back.
    let (date, counter) = last.split_once('.').unwrap_or((last, "0"));
    format!("{date}.{:06}", counter.parse::<u32>().unwrap_or(0).saturating_add(1))
}

/// Path of a rotated file.
pub(super) fn rotated_path(log: &Path, stamp: &str) -> PathBuf {
    let mut path = log.as_os_str().to_owned();
    path.push(".");
    path.push(stamp);
    path.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_always_grow() {
        let second = 1_000_000_000;
        let mut last: Option<String> = None;
        for now in [100, 100, 100, 101, 50, 50, 101, 102, 0] {
            let next = next_stamp(last.as_deref(), now * second);
            assert!(last.as_ref().is_none_or(|last| *last < next), "{last:?} {next}");
            last = Some(next);
        }
        assert_eq!(last.unwrap(), "19700101-000142.000001");
    }

    #[test]
    fn files_of_a_log_are_known_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let names = [
            "0.log",
            "0.log.20260101-000000",
            "0.log.20260101-000000.gz",
            "0.log.20260101-000000.000001",
            "0.log.20250101-000000.gz",
            "0.log.20260101-000001.gz.tmp",
            "0.log.old",
            "10.log.20260101-000000",
        ];
        for name in names {
            fs::write(dir.path().join(name), b"").unwrap();
        }
        let got: Vec<_> =
            rotated(&dir.path().join("0.log")).unwrap().into_iter().map(|it| (it.stamp, it.gzip)).collect();
        let want = [("20250101-000000", true), ("20260101-000000", true), ("20260101-000000.000001", false)];
        assert_eq!(got, want.map(|(stamp, gzip)| (stamp.to_owned(), gzip)));
    }
}
