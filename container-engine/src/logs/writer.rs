//! Writes the log of one container: for the shim, so with little memory, and never waiting for room.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    mem,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use super::{
    chain,
    line::{MAX_TEXT, Stream, rfc3339},
};

/// Records are gathered up to about this many bytes for one write.
const BATCH: usize = 16 << 10;

/// The log of one container.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    file: File,
    /// Bytes of whole records in the file.
    size: u64,
    max_bytes: u64,
    max_files: usize,
    /// Text of each stream that waits for its line break, less than a record's most.
    open: [Vec<u8>; 2],
    /// Whole records that wait for `flush`.
    batch: Vec<u8>,
    /// The time as it was last written, and the second it stands for.
    second: (u64, String),
    dropped: u64,
    rotations: u64,
}

impl Writer {
    /// Opens or creates `path`, whose folder exists. Rotates at `max_bytes` (0: never) and keeps `max_files` files.
    pub fn open(path: &Path, max_bytes: u64, max_files: u32) -> io::Result<Self> {
        let (file, size) = open(path)?;
        Ok(Self {
            path: path.to_owned(),
            file,
            size,
            max_bytes,
            max_files: max_files.max(1) as usize,
            open: [Vec::new(), Vec::new()],
            batch: Vec::new(),
            second: (u64::MAX, String::new()),
            dropped: 0,
            rotations: 0,
        })
    }

    /// Bytes of records that found no room on the disk.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// How often a file was set aside.
    pub fn rotations(&self) -> u64 {
        self.rotations
    }

    /// Takes output as it came, at `now_ns` since 1970. It is in the file after `flush`, the unfinished line excepted.
    pub fn push(&mut self, stream: Stream, mut bytes: &[u8], now_ns: u64) {
        let which = stream as usize;
        while !bytes.is_empty() {
            // A record ends at a line break or when it is full, whichever comes first; what is kept of the last
            // call counts, so how output was cut into calls makes no difference.
            let room = MAX_TEXT - self.open[which].len();
            let window = &bytes[..bytes.len().min(room)];
            let (text, partial, used) = match window.iter().position(|byte| *byte == b'\n') {
                Some(at) => (&window[..at], false, at + 1),
                None if window.len() == room => (window, true, room),
                None => {
                    self.open[which].extend_from_slice(window);
                    return;
                }
            };
            let before = mem::take(&mut self.open[which]);
            self.record(stream, partial, &[&before, text], now_ns);
            if before.capacity() <= 256 {
                self.open[which] = before;
                self.open[which].clear();
            }
            bytes = &bytes[used..];
        }
    }

    /// The stream is at its end: what it wrote without a line break is written too.
    pub fn finish(&mut self, stream: Stream, now_ns: u64) {
        let rest = mem::take(&mut self.open[stream as usize]);
        if !rest.is_empty() {
            self.record(stream, true, &[&rest], now_ns);
        }
        self.flush(now_ns);
    }

    fn record(&mut self, stream: Stream, partial: bool, text: &[&[u8]], now_ns: u64) {
        let second = now_ns / 1_000_000_000;
        if self.second.0 != second {
            let mut time = rfc3339(now_ns);
            time.truncate("2006-01-02T15:04:05".len());
            self.second = (second, time);
        }
        let stream = if stream == Stream::Stdout { "stdout" } else { "stderr" };
        let tag = if partial { 'P' } else { 'F' };
        let nanos = now_ns % 1_000_000_000;
        // Writing to memory cannot fail.
        let _ = write!(self.batch, "{}.{nanos:09}Z {stream} {tag} ", self.second.1);
        for part in text {
            self.batch.extend_from_slice(part);
        }
        self.batch.push(b'\n');
        if self.batch.len() >= BATCH {
            self.flush(now_ns);
        }
    }

    /// Writes what is waiting; rotates first where it would not fit. What finds no room is dropped and counted.
    pub fn flush(&mut self, now_ns: u64) {
        if self.batch.is_empty() {
            return;
        }
        let length = self.batch.len() as u64;
        if self.max_bytes > 0 && self.size > 0 && self.size + length > self.max_bytes {
            // Where the disk has no room for another file, the old one grows on: better too large than lost.
            let _ = self.rotate(now_ns);
        }
        if self.file.write_all(&self.batch).is_ok() {
            self.size += length;
        } else {
            self.dropped += length;
            // Part of it may have been written: a torn record would spoil the next one.
            let _ = self.file.set_len(self.size);
        }
        self.batch.clear();
        if self.batch.capacity() > 3 * BATCH {
            self.batch = Vec::new();
        }
    }

    /// Opens the path anew: somebody has renamed the file.
    pub fn reopen(&mut self, now_ns: u64) -> io::Result<()> {
        self.flush(now_ns);
        (self.file, self.size) = open(&self.path)?;
        Ok(())
    }

    fn rotate(&mut self, now_ns: u64) -> io::Result<()> {
        let before = chain::rotated(&self.path)?;
        let stamp = chain::next_stamp(before.last().map(|it| it.stamp.as_str()), now_ns);
        let aside = chain::rotated_path(&self.path, &stamp);
        fs::rename(&self.path, &aside)?;
        match open(&self.path) {
            Ok((file, size)) => (self.file, self.size) = (file, size),
            Err(error) => {
                let _ = fs::rename(&aside, &self.path); // The old file is still open, and written on.
                return Err(error);
            }
        }
        self.rotations += 1;
        // The current file counts too. Both forms go: one may be in the middle of its compression.
        let keep = self.max_files - 1;
        let all = before.into_iter().map(|it| it.stamp).chain([stamp]);
        let surplus = all.clone().count().saturating_sub(keep);
        for stamp in all.take(surplus) {
            let plain = chain::rotated_path(&self.path, &stamp);
            let mut gzip = plain.clone().into_os_string();
            gzip.push(".gz");
            let _ = fs::remove_file(plain);
            let _ = fs::remove_file(gzip);
        }
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<(File, u64)> {
    let file = OpenOptions::new().append(true).create(true).mode(0o640).open(path)?;
    let size = file.metadata()?.len();
    Ok((file, size))
}
