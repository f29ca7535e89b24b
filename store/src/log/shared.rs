//! What the log's handles, its readers and its threads share.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    ops::Range,
    path::Path,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

use super::{
    AppendError, Options, Recovery, Stats,
    committer::{self, Queue, Request},
    recover::{self, Scan},
    segment::{Files, Segment},
};

/// Appends wait their turn once this many KiB are queued.
const QUEUE_KIB: usize = 1024;
/// Most bytes of one checkpoint.
const MAX_CHECKPOINT: usize = 4 << 10;
/// Most copies of damaged segments that are kept.
const MAX_SET_ASIDE: usize = 8;

#[derive(Default)]
struct Checkpoints {
    values: BTreeMap<String, Vec<u8>>,
    dirty: bool,
}

pub(super) struct Shared {
    pub options: Options,
    pub queue: Mutex<Queue>,
    pub work: Condvar,
    pub durable: watch::Sender<u64>,
    pub trimmed: watch::Sender<u64>,
    pub closing: AtomicBool,
    room: Arc<Semaphore>,
    files: Mutex<Files>,
    checkpoints: Mutex<Checkpoints>,
    /// Whether the segment before last was just opened, so that a spare is wanted.
    fill_wanted: Mutex<bool>,
    fill: Condvar,
    /// Held while a spare is filled: two at once could exceed `max_bytes`.
    filling: Mutex<()>,
    /// Numbers were skipped: the next commit begins a segment.
    pub skipped: AtomicBool,
    threads: Mutex<Vec<JoinHandle<()>>>,
    set_aside: Mutex<BTreeSet<u64>>,
    commits: AtomicU64,
    written: AtomicU64,
    commit_us: AtomicU64,
    damaged: AtomicU64,
}

/// No invariant spans a panic here: every critical section leaves its value whole.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub fn new(options: Options, files: Files, scan: Scan) -> Self {
        Self {
            options,
            queue: Mutex::default(),
            work: Condvar::new(),
            durable: watch::Sender::new(scan.end_seq),
            trimmed: watch::Sender::new(0),
            closing: AtomicBool::new(false),
            room: Arc::new(Semaphore::new(QUEUE_KIB)),
            files: Mutex::new(files),
            checkpoints: Mutex::new(Checkpoints { values: scan.checkpoints, dirty: false }),
            fill_wanted: Mutex::new(false),
            fill: Condvar::new(),
            filling: Mutex::default(),
            skipped: AtomicBool::new(false),
            threads: Mutex::default(),
            set_aside: Mutex::default(),
            commits: AtomicU64::new(0),
            written: AtomicU64::new(0),
            commit_us: AtomicU64::new(0),
            damaged: AtomicU64::new(0),
        }
    }

    pub fn files(&self) -> MutexGuard<'_, Files> {
        locked(&self.files)
    }

    pub fn durable_seq(&self) -> u64 {
        *self.durable.borrow()
    }

    /// The committer alone moves `durable`, so for it this is also the next number.
    pub fn next_seq(&self) -> u64 {
        self.durable_seq()
    }

    pub fn skip_to(&self, next: u64) {
        self.durable.send_if_modified(|durable| {
            let behind = *durable < next;
            *durable = next.max(*durable);
            if behind {
                self.skipped.store(true, Ordering::Release);
            }
            behind
        });
    }

    // Appending

    pub async fn reserve(&self, bytes: usize, records: usize) -> Result<OwnedSemaphorePermit, AppendError> {
        // A record costs its bookkeeping too; one append may fill the queue alone, not more.
        let kib = ((bytes + records * 64) >> 10).clamp(1, QUEUE_KIB);
        let kib = u32::try_from(kib).unwrap_or(1);
        self.room.clone().acquire_many_owned(kib).await.map_err(|_| AppendError::Closed)
    }

    pub fn enqueue(&self, request: Request) -> Result<(), AppendError> {
        let mut queue = locked(&self.queue);
        if queue.closed {
            return Err(AppendError::Closed);
        }
        queue.records += request.records.len();
        queue.bytes += request.bytes;
        queue.requests.push_back(request);
        drop(queue);
        self.work.notify_one();
        Ok(())
    }

    pub fn enqueue_sync(&self, done: oneshot::Sender<Result<(), AppendError>>) -> Result<(), AppendError> {
        let mut queue = locked(&self.queue);
        if queue.closed {
            return Err(AppendError::Closed);
        }
        queue.syncs.push(done);
        drop(queue);
        self.work.notify_one();
        Ok(())
    }

    pub fn committed(&self, next: u64, written: u64, took: Duration) {
        self.commits.fetch_add(1, Ordering::Relaxed);
        self.written.fetch_add(written, Ordering::Relaxed);
        self.commit_us.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.durable.send_replace(next);
    }

    pub fn io_error(&self, error: &io::Error) -> AppendError {
        let path = self.files().dir().to_owned();
        if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            AppendError::NoSpace { path }
        } else {
            AppendError::Io { path, problem: error.to_string() }
        }
    }

    // Files

    /// Sees to it that there is a spare, filling a new one outside the files' lock; `Full` where `max_bytes` forbids it.
    pub fn make_spare(&self) -> Result<(), AppendError> {
        let _alone = locked(&self.filling);
        if self.files().has_spare() {
            return Ok(());
        }
        let (path, held) = {
            let mut files = self.files();
            (files.claim_spare(), files.disk_bytes())
        };
        if held + self.options.segment_bytes > self.options.max_bytes {
            return Err(AppendError::Full { held });
        }
        committer::fill(&path, self.options.segment_bytes).map_err(|error| self.io_error(&error))?;
        self.written.fetch_add(self.options.segment_bytes, Ordering::Relaxed);
        self.files().add_spare(path);
        Ok(())
    }

    /// Asks for a spare to be made ready.
    pub fn want_spare(&self) {
        *locked(&self.fill_wanted) = true;
        self.fill.notify_one();
    }

    pub fn wait_for_fill(&self) {
        let mut wanted = locked(&self.fill_wanted);
        while !*wanted && !self.closing.load(Ordering::Acquire) {
            wanted = self.fill.wait(wanted).unwrap_or_else(PoisonError::into_inner);
        }
        *wanted = false;
    }

    pub fn trim(&self, below: u64) -> io::Result<()> {
        let mut trimmed = false;
        let mut files = self.files();
        while let Some((&first, _)) = files.segments.first_key_value() {
            let drained = files.segments.keys().nth(1).is_some_and(|&end| end <= below);
            if !drained {
                break;
            }
            files.retire(first)?;
            trimmed = true;
        }
        drop(files);
        if trimmed {
            self.trimmed.send_modify(|times| *times += 1);
        }
        Ok(())
    }

    pub fn drop_oldest(&self) -> io::Result<Option<Range<u64>>> {
        let mut files = self.files();
        let mut firsts = files.segments.keys().copied();
        let (Some(first), Some(end)) = (firsts.next(), firsts.next()) else { return Ok(None) };
        drop(firsts);
        files.retire(first)?;
        drop(files);
        self.trimmed.send_modify(|times| *times += 1);
        Ok(Some(first..end))
    }

    /// A reader met damage: counted, logged, and the file copied for whoever wants to look, once.
    pub fn damaged(&self, segment: Segment, lost: &Range<u64>) {
        self.damaged.fetch_add(lost.end - lost.start, Ordering::Relaxed);
        if locked(&self.set_aside).insert(segment.generation) {
            let dir = self.files().dir().to_owned();
            let copy = copy_aside(&dir, segment);
            tracing::error!(first = lost.start, end = lost.end, segment = %segment.path(&dir).display(), copy = ?copy,
                "part of the log is damaged; the rest is kept");
        }
    }

    // Checkpoints

    pub fn set_checkpoint(&self, name: &str, value: Option<Vec<u8>>) {
        let mut checkpoints = locked(&self.checkpoints);
        match value {
            Some(value) if value.len() > MAX_CHECKPOINT => {
                tracing::error!(name, bytes = value.len(), "checkpoint is over 4 KiB and was not kept");
                return;
            }
            Some(value) => drop(checkpoints.values.insert(name.to_owned(), value)),
            None => drop(checkpoints.values.remove(name)),
        }
        checkpoints.dirty = true;
    }

    pub fn checkpoint(&self, name: &str) -> Option<Vec<u8>> {
        locked(&self.checkpoints).values.get(name).cloned()
    }

    pub fn checkpoint_names(&self) -> Vec<String> {
        locked(&self.checkpoints).values.keys().cloned().collect()
    }

    /// The checkpoints as a block, if they changed; they then count as written (a failed commit says otherwise).
    pub fn dirty_checkpoints(&self) -> Option<Vec<u8>> {
        let mut checkpoints = locked(&self.checkpoints);
        std::mem::take(&mut checkpoints.dirty).then(|| committer::checkpoint_block(&checkpoints.values))
    }

    /// The checkpoints as a block, if there are any.
    pub fn all_checkpoints(&self) -> Option<Vec<u8>> {
        let mut checkpoints = locked(&self.checkpoints);
        checkpoints.dirty = false;
        (!checkpoints.values.is_empty()).then(|| committer::checkpoint_block(&checkpoints.values))
    }

    /// A commit failed: what it carried is to be written again.
    pub fn checkpoints_unwritten(&self) {
        locked(&self.checkpoints).dirty = true;
    }

    // Life

    pub fn stats(&self) -> Stats {
        let files = self.files();
        let next = self.durable_seq();
        Stats {
            first: files.segments.keys().next().copied().unwrap_or(next),
            next,
            disk_bytes: files.disk_bytes(),
            segments: files.segments.len() as u64,
            commits: self.commits.load(Ordering::Relaxed),
            written_bytes: self.written.load(Ordering::Relaxed),
            commit_us: self.commit_us.load(Ordering::Relaxed),
            damaged: self.damaged.load(Ordering::Relaxed),
        }
    }

    pub fn adopt(&self, thread: JoinHandle<()>) {
        locked(&self.threads).push(thread);
    }

    pub fn close_queue(&self) {
        self.closing.store(true, Ordering::Release);
        locked(&self.queue).closed = true;
        self.room.close();
    }

    pub fn close(&self) {
        self.close_queue();
        self.work.notify_all();
        {
            let _wanted = locked(&self.fill_wanted);
            self.fill.notify_all();
        }
        let threads = std::mem::take(&mut *locked(&self.threads));
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the log panicked; what it had acknowledged is on disk");
            }
        }
    }
}

/// Looks into the newest segment and says what was found there.
pub(super) fn recover(dir: &Path, files: &mut Files) -> io::Result<(Scan, Recovery)> {
    let Some(newest) = files.newest() else {
        return Ok((Scan { end_seq: 1, ..Scan::default() }, Recovery::default()));
    };
    let mut scan = recover::scan(dir, newest)?;
    // A segment that never had a commit begins without checkpoints: the one before it has them.
    if scan.checkpoints.is_empty()
        && scan.end_seq == newest.first_seq
        && let Some((_, previous)) = files.segments.range(..newest.first_seq).next_back()
    {
        scan.checkpoints = recover::scan(dir, *previous)?.checkpoints;
    }
    let mut recovery = Recovery { torn_bytes: scan.torn_bytes, lost: scan.lost.clone(), set_aside: Vec::new() };
    if !scan.lost.is_empty() {
        recovery.set_aside.extend(copy_aside(dir, newest));
        tracing::error!(lost = ?scan.lost, segment = %newest.path(dir).display(), copy = ?recovery.set_aside,
            "part of the log is damaged; the rest is kept");
    }
    if scan.torn_bytes > 0 {
        tracing::warn!(bytes = scan.torn_bytes, "cut off a commit that a power cut or kill left unfinished");
    }
    Ok((scan, recovery))
}

/// Copies a damaged segment to `set-aside/` beside the log; `None` where that is full or fails.
fn copy_aside(dir: &Path, segment: Segment) -> Option<std::path::PathBuf> {
    let aside = dir.parent().unwrap_or(dir).join("set-aside");
    let from = segment.path(dir);
    let to = aside.join(from.file_name()?);
    let copied = std::fs::create_dir_all(&aside).and_then(|()| {
        let held = std::fs::read_dir(&aside)?.count();
        if held >= MAX_SET_ASIDE {
            return Err(io::Error::other("set-aside/ already holds eight files; remove what was looked at"));
        }
        std::fs::copy(&from, &to)
    });
    match copied {
        Ok(_) => Some(to),
        Err(error) => {
            tracing::warn!(%error, path = %from.display(), "cannot copy a damaged segment aside");
            None
        }
    }
}
