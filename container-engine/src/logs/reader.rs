//! Reads the files of one log in order: plain blocking code, a piece at a time. [`super::Reader`] calls it from async.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    time::{Duration, UNIX_EPOCH},
};

use flate2::bufread::MultiGzDecoder;

use super::{
    chain::{self, Rotated},
    line::{Entry, Stream, parse},
};

/// Longest line of a foreign log that is taken as one; the rest of it comes as further pieces.
const MAX_LINE: usize = 256 << 10;
/// Text that one call of `fill` gives back, roughly.
const PIECE: usize = 128 << 10;
/// Entries that one call gives back at most.
const ENTRIES: usize = 1024;
/// The time of a first record, and some of its text.
const HEAD: usize = 64;
/// Read at once when going backwards.
const BLOCK: u64 = 64 << 10;

/// What to read of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadOptions {
    /// Goes on with what is written later, until the container has ended.
    pub follow: bool,
    /// Only the last lines: as many, of the streams and times asked for.
    pub tail: Option<u64>,
    /// Nothing older, ns since 1970.
    pub since_ns: Option<u64>,
    /// Nothing younger.
    pub until_ns: Option<u64>,
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
    /// Bytes of text after which it ends; the last entry is cut.
    pub limit_bytes: Option<u64>,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self {
            follow: false,
            tail: None,
            since_ns: None,
            until_ns: None,
            stdout: true,
            stderr: true,
            limit_bytes: None,
        }
    }
}

/// A log cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Not one file of it is there.
    #[error("there is no log {path}: the container has not been created, or its log was removed")]
    Missing {
        /// The log.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("cannot read the log {path}")]
    Io {
        /// The log.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Following needs inotify.
    #[error("cannot watch the log {path}; if too many are watched, raise fs.inotify.max_user_instances")]
    Watch {
        /// The log.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

enum Source {
    Plain(BufReader<File>),
    Gzip(Box<BufReader<MultiGzDecoder<BufReader<File>>>>),
}

impl Source {
    /// The first bytes of a plain file: how it is known again after it was compressed.
    fn head(&self) -> Option<Vec<u8>> {
        let Self::Plain(reader) = self else { return None };
        let mut first = vec![0; HEAD];
        let got = reader.get_ref().read_at(&mut first, 0).ok()?;
        first.truncate(got);
        Some(first)
    }

    fn as_read(&mut self) -> &mut dyn BufRead {
        match self {
            Self::Plain(reader) => reader,
            Self::Gzip(reader) => reader,
        }
    }
}

/// The file that is being read.
struct Current {
    source: Source,
    /// Inode of a plain file: how it is known after it was renamed.
    inode: u64,
    /// Whether it was the file being written.
    live: bool,
    /// Bytes of an unfinished line.
    rest: Vec<u8>,
}

/// Where reading stands.
pub(super) struct Core {
    path: PathBuf,
    options: ReadOptions,
    queue: VecDeque<Rotated>,
    /// The youngest rotated file that was looked at.
    seen: Option<String>,
    /// The queue ends with the file being written.
    current: Option<Current>,
    /// Text that may still be given.
    left: Option<u64>,
    last_time: u64,
    finished: bool,
}

impl Core {
    pub(super) fn open(path: &Path, options: ReadOptions) -> Result<Self, ReadError> {
        let failed = |source| ReadError::Io { path: path.to_owned(), source };
        let files = match chain::rotated(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ReadError::Missing { path: path.into() });
            }
            other => other.map_err(failed)?,
        };
        if files.is_empty() && !path.exists() {
            return Err(ReadError::Missing { path: path.to_owned() });
        }
        let mut core = Self {
            path: path.to_owned(),
            left: options.limit_bytes,
            options,
            seen: files.last().map(|file| file.stamp.clone()),
            queue: files.into(),
            current: None,
            last_time: 0,
            finished: false,
        };
        if let Some(tail) = core.options.tail {
            core.go_to_tail(tail).map_err(failed)?;
        } else if let Some(since) = core.options.since_ns {
            // Their last record is older than what is wanted.
            while core.queue.front().is_some_and(|file| modified_ns(&file.path).is_some_and(|at| at < since)) {
                core.queue.pop_front();
            }
        }
        Ok(core)
    }

    pub(super) fn is_finished(&self) -> bool {
        self.finished
    }

    /// Some entries; none when there are no more for now.
    pub(super) fn fill(&mut self) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        let mut size = 0;
        while !self.finished && size < PIECE && entries.len() < ENTRIES {
            let Some(line) = self.next_line()? else { break };
            let Some(mut entry) = self.wanted(&line) else { continue };
            if let Some(left) = &mut self.left {
                let most = usize::try_from(*left).unwrap_or(usize::MAX);
                if entry.text.len() > most {
                    entry.text.truncate(most);
                    entry.partial = true;
                }
                *left -= entry.text.len() as u64;
                self.finished = *left == 0;
            }
            size += entry.text.len() + 64;
            entries.push(entry);
        }
        Ok(entries)
    }

    /// The entry of a line, if it is asked for.
    fn wanted(&mut self, line: &[u8]) -> Option<Entry> {
        let entry = entry_of(line, self.last_time);
        self.last_time = entry.time_ns;
        is_wanted(&self.options, &entry).then_some(entry)
    }

    fn next_line(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if self.current.is_none() && !self.open_next()? {
                return Ok(None);
            }
            let Some(current) = &mut self.current else { return Ok(None) };
            match read_line(current) {
                Ok(Some(line)) => return Ok(Some(line)),
                Ok(None) => {}
                // A damaged compressed file: what follows it is still good.
                Err(_) if !current.live => current.rest.clear(),
                Err(error) => return Err(error),
            }
            if current.live {
                // It is at its end for now, unless it was renamed: then what is there now is all there will be, and
                // reading once more gets what was written just before the renaming.
                let here = fs::metadata(&self.path).is_ok_and(|it| it.ino() == current.inode);
                if here {
                    return Ok(None);
                }
                if let Some(line) = read_line(current)? {
                    return Ok(Some(line));
                }
            }
            let Some(mut old) = self.current.take() else { return Ok(None) };
            if old.live {
                self.queue = self.successors(&old)?.into();
                if self.queue.is_empty() && !self.path.exists() {
                    // Between the two steps of a rotation, or removed: the next call looks again.
                    let rest = std::mem::take(&mut old.rest);
                    self.current = Some(old);
                    return Ok(Some(rest).filter(|rest| !rest.is_empty()));
                }
            }
            if !old.rest.is_empty() {
                return Ok(Some(old.rest)); // A torn end.
            }
        }
    }

    fn open_next(&mut self) -> io::Result<bool> {
        while let Some(file) = self.queue.pop_front() {
            match open_rotated(&self.path, &file) {
                Ok(source) => {
                    self.current = Some(rotated_at(source));
                    return Ok(true);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {} // Removed as the oldest.
                Err(error) => return Err(error),
            }
        }
        match File::open(&self.path) {
            Ok(file) => {
                // Files that were rotated since the last look come before it (this very one may be among them).
                let new = self.newer()?;
                if let Some(last) = new.last() {
                    self.seen = Some(last.stamp.clone());
                    self.queue = new.into();
                    return self.open_next();
                }
                self.current = Some(live(file)?);
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Rotated files that no look has seen yet.
    fn newer(&self) -> io::Result<Vec<Rotated>> {
        let all = chain::rotated(&self.path)?.into_iter();
        Ok(all.filter(|file| self.seen.as_ref().is_none_or(|seen| file.stamp > *seen)).collect())
    }

    /// Rotated files that came after the one that was being written when it was opened.
    fn successors(&mut self, old: &Current) -> io::Result<Vec<Rotated>> {
        let mut later = self.newer()?;
        self.seen = later.last().map(|file| file.stamp.clone()).or(self.seen.take());
        // The first of them is the old file itself, unless it has been removed meanwhile.
        if let Some(first) = later.first() {
            let plain = || fs::metadata(&first.path).is_ok_and(|it| it.ino() == old.inode);
            let gzip = || {
                let theirs = open_rotated(&self.path, first).and_then(|mut source| head(source.as_read()));
                theirs.ok().is_some_and(|theirs| old.source.head().is_some_and(|ours| ours == theirs))
            };
            // It may be compressed just now.
            if (!first.gzip && plain()) || gzip() {
                later.remove(0);
            }
        }
        Ok(later)
    }

    /// Finds where the last `tail` lines begin, from the end backwards.
    fn go_to_tail(&mut self, tail: u64) -> io::Result<()> {
        let mut counter = Counter { options: self.options.clone(), left: tail, done: false };
        if let Ok(mut file) = File::open(&self.path) {
            // Rotated between the listing and now: they come before it.
            let new = self.newer()?;
            self.seen = new.last().map(|file| file.stamp.clone()).or(self.seen.take());
            self.queue.extend(new.into_iter().filter(|it| !is_inode(&it.path, &file)));
            let start = backwards(&file, &mut counter)?;
            file.seek(SeekFrom::Start(start))?;
            if counter.done || self.queue.is_empty() {
                self.queue.clear();
                self.current = Some(live(file)?);
                return Ok(());
            }
        }
        let mut kept = VecDeque::new();
        while let Some(file) = self.queue.pop_back() {
            if !file.gzip {
                let mut plain = File::open(&file.path)?;
                let start = backwards(&plain, &mut counter)?;
                if counter.done {
                    plain.seek(SeekFrom::Start(start))?;
                    self.current = Some(rotated_at(Source::Plain(BufReader::new(plain))));
                    break;
                }
            } else if let Some(source) = tail_of_gzip(&self.path, &file, &mut counter)? {
                self.current = Some(rotated_at(source));
                break;
            }
            kept.push_front(file);
        }
        self.queue = kept;
        Ok(())
    }
}

fn live(file: File) -> io::Result<Current> {
    let inode = file.metadata()?.ino();
    Ok(Current { source: Source::Plain(BufReader::new(file)), inode, live: true, rest: Vec::new() })
}

fn rotated_at(source: Source) -> Current {
    Current { source, inode: 0, live: false, rest: Vec::new() }
}

fn head(reader: &mut dyn Read) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    reader.take(HEAD as u64).read_to_end(&mut head)?;
    Ok(head)
}

fn is_inode(path: &Path, file: &File) -> bool {
    let inode = |meta: io::Result<fs::Metadata>| meta.ok().map(|it| it.ino());
    inode(fs::metadata(path)) == inode(file.metadata())
}

fn modified_ns(path: &Path) -> Option<u64> {
    let modified = fs::metadata(path).ok()?.modified().ok()?;
    let since: Duration = modified.duration_since(UNIX_EPOCH).ok()?;
    u64::try_from(since.as_nanos()).ok()
}

/// Opens it under whichever of its names it has now.
fn open_rotated(log: &Path, file: &Rotated) -> io::Result<Source> {
    let plain = chain::rotated_path(log, &file.stamp);
    let mut gzip = plain.clone().into_os_string();
    gzip.push(".gz");
    match File::open(if file.gzip { gzip.as_ref() } else { plain.as_path() }) {
        Ok(opened) if !file.gzip => return Ok(Source::Plain(BufReader::new(opened))),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Compressed since it was listed, perhaps.
    let decoder = MultiGzDecoder::new(BufReader::new(File::open(gzip)?));
    Ok(Source::Gzip(Box::new(BufReader::new(decoder))))
}

/// The next line without its break; `None` at the end, with what is unfinished kept.
fn read_line(current: &mut Current) -> io::Result<Option<Vec<u8>>> {
    let Current { source, rest, .. } = current;
    loop {
        let buffer = source.as_read().fill_buf()?;
        if buffer.is_empty() {
            return Ok(None);
        }
        let room = MAX_LINE - rest.len();
        let window = &buffer[..buffer.len().min(room)];
        let (taken, whole) = match window.iter().position(|byte| *byte == b'\n') {
            Some(at) => (at + 1, true),
            None => (window.len(), window.len() == room),
        };
        rest.extend_from_slice(&window[..taken]);
        source.as_read().consume(taken);
        if whole {
            if rest.last() == Some(&b'\n') {
                rest.pop();
            }
            return Ok(Some(std::mem::take(rest)));
        }
    }
}

/// The entry that a line is; one in no known format is output as it stands, at the time of the line before.
fn entry_of(line: &[u8], last_time: u64) -> Entry {
    parse(line).unwrap_or_else(|| Entry {
        time_ns: last_time,
        stream: Stream::Stdout,
        text: line.to_vec(),
        partial: false,
    })
}

fn is_wanted(options: &ReadOptions, entry: &Entry) -> bool {
    let stream = if entry.stream == Stream::Stdout { options.stdout } else { options.stderr };
    stream
        && options.since_ns.is_none_or(|since| entry.time_ns >= since)
        && options.until_ns.is_none_or(|until| entry.time_ns <= until)
}

/// Counts lines from the end.
struct Counter {
    options: ReadOptions,
    left: u64,
    done: bool,
}

impl Counter {
    /// Takes the line before those taken so far; whether it still belongs to the tail.
    fn take(&mut self, line: &[u8]) -> bool {
        let entry = entry_of(line, 0);
        if !is_wanted(&self.options, &entry) || entry.partial {
            return !self.done;
        }
        // The end of a line: one more, or the one before all that is asked for.
        if self.left == 0 {
            self.done = true;
            return false;
        }
        self.left -= 1;
        true
    }
}

/// Where in a plain file the tail begins. Memory: one block and one line.
fn backwards(file: &File, counter: &mut Counter) -> io::Result<u64> {
    let mut at = file.metadata()?.len();
    // From `at` on: what is read and not yet taken, the beginning of a line perhaps missing.
    let mut held: Vec<u8> = Vec::new();
    let mut begin = at;
    loop {
        // Whole lines in `held`, the last first.
        while let Some(line_start) = last_line(&held) {
            // What has no line break yet is not shown, so it is no line.
            let whole = held.last() == Some(&b'\n');
            if whole && !counter.take(trimmed(&held[line_start..])) {
                return Ok(begin);
            }
            begin -= (held.len() - line_start) as u64;
            held.truncate(line_start);
        }
        if at == 0 {
            if held.last() == Some(&b'\n') && !counter.take(trimmed(&held)) {
                return Ok(begin);
            }
            return Ok(0);
        }
        let length = BLOCK.min(at);
        at -= length;
        let mut block = vec![0; usize::try_from(length).unwrap_or(0)];
        file.read_exact_at(&mut block, at)?;
        block.append(&mut held);
        held = block;
        if held.len() > MAX_LINE + usize::try_from(2 * BLOCK).unwrap_or(0) {
            return Ok(begin); // No log has such lines; what is behind is left out.
        }
    }
}

/// Where the last line begins, if a line break before it shows that it is whole.
fn last_line(bytes: &[u8]) -> Option<usize> {
    let inner = bytes.len().checked_sub(1)?;
    bytes[..inner].iter().rposition(|byte| *byte == b'\n').map(|at| at + 1)
}

fn trimmed(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\n").unwrap_or(line)
}

/// Read forwards twice: once to count, once to get there. `None` if all of it belongs to the tail.
fn tail_of_gzip(log: &Path, file: &Rotated, counter: &mut Counter) -> io::Result<Option<Source>> {
    let options = &counter.options;
    let mut current = rotated_at(open_rotated(log, file)?);
    let mut ends = 0_u64;
    let mut last_time = 0;
    let mut is_end = |line: &[u8], ends: &mut u64| {
        let entry = entry_of(line, last_time);
        last_time = entry.time_ns;
        *ends += u64::from(is_wanted(options, &entry) && !entry.partial);
    };
    while let Ok(Some(line)) = read_line(&mut current) {
        is_end(&line, &mut ends);
    }
    if ends <= counter.left {
        counter.left -= ends;
        return Ok(None);
    }
    let skip = ends - counter.left;
    let mut current = rotated_at(open_rotated(log, file)?);
    let mut passed = 0;
    while passed < skip {
        let Some(line) = read_line(&mut current)? else { break };
        is_end(&line, &mut passed);
    }
    counter.left = 0;
    counter.done = true;
    Ok(Some(current.source))
}
