//! The one thread that writes: all appends that wait share one `pwrite` and one `fdatasync`.
//!
//! Always true: a sequence number is given out here and nowhere else, in the order of the queue; `durable` moves only
//! after `fdatasync` has returned.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt,
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{
    AppendError, Record, Shared,
    block::{self, Encoder},
    recover,
    segment::{self, DATA_START, Segment},
};

/// Most raw bytes of one commit; what waits beyond goes into the next one.
const MAX_COMMIT: usize = 256 << 10;
/// A commit does not wait for company once this many records or bytes are there.
const ENOUGH_RECORDS: usize = 64;
const ENOUGH_BYTES: usize = 16 << 10;
/// Under load a checkpoint rides along at most this often.
const CHECKPOINT_EVERY: Duration = Duration::from_millis(200);

/// One `append` on its way.
pub(super) struct Request {
    pub records: Vec<Record>,
    pub bytes: usize,
    pub since: Instant,
    pub done: oneshot::Sender<Result<Range<u64>, AppendError>>,
    pub _room: OwnedSemaphorePermit,
}

/// What waits for the committer.
#[derive(Default)]
pub(super) struct Queue {
    pub requests: VecDeque<Request>,
    pub records: usize,
    pub bytes: usize,
    /// Waiters for a commit that carries the checkpoints.
    pub syncs: Vec<oneshot::Sender<Result<(), AppendError>>>,
    pub closed: bool,
}

/// The thread's own state.
pub(super) struct Committer {
    shared: Arc<Shared>,
    active: Option<(Segment, File)>,
    /// Where the next block goes in the active segment.
    at: u64,
    encoder: Encoder,
    raw: Vec<u8>,
    last_checkpoint: Option<Instant>,
}

impl Committer {
    /// Writes on in `active` at `at`, or in a fresh segment.
    pub fn new(shared: Arc<Shared>, active: Option<(Segment, File)>, at: u64) -> Self {
        Self { shared, active, at, encoder: Encoder::default(), raw: Vec::new(), last_checkpoint: None }
    }

    /// Commits until the log is closed and nothing waits any more.
    pub fn run(mut self) {
        while let Some((requests, syncs)) = self.next_group() {
            let result = self.commit(&requests, !syncs.is_empty());
            if result.is_err() {
                self.shared.checkpoints_unwritten();
            }
            match result {
                Ok(first) => {
                    let mut next = first;
                    for request in requests {
                        let end = next + request.records.len() as u64;
                        // A caller that went away does not mind.
                        let _ = request.done.send(Ok(next..end));
                        next = end;
                    }
                    for sync in syncs {
                        let _ = sync.send(Ok(()));
                    }
                }
                Err(error) => {
                    for request in requests {
                        let _ = request.done.send(Err(error.clone()));
                    }
                    for sync in syncs {
                        let _ = sync.send(Err(error.clone()));
                    }
                }
            }
        }
    }

    /// Waits for work, then lingers while little waits; `None` when closed and drained.
    #[allow(clippy::type_complexity)] // Named nowhere else.
    fn next_group(&self) -> Option<(Vec<Request>, Vec<oneshot::Sender<Result<(), AppendError>>>)> {
        let shared = &self.shared;
        let mut queue = shared.queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        loop {
            let enough = queue.closed
                || !queue.syncs.is_empty()
                || queue.records >= ENOUGH_RECORDS
                || queue.bytes >= ENOUGH_BYTES;
            let oldest = queue.requests.front().map(|request| request.since.elapsed());
            match oldest {
                None if !queue.syncs.is_empty() => break,
                None if queue.closed => return None,
                None => queue = shared.work.wait(queue).unwrap_or_else(std::sync::PoisonError::into_inner),
                Some(waited) if enough || waited >= shared.options.linger => break,
                Some(waited) => {
                    let left = shared.options.linger.saturating_sub(waited);
                    let (guard, _) =
                        shared.work.wait_timeout(queue, left).unwrap_or_else(std::sync::PoisonError::into_inner);
                    queue = guard;
                }
            }
        }
        let mut group = Vec::new();
        let mut bytes = 0;
        while let Some(request) = queue.requests.pop_front() {
            if !group.is_empty() && bytes + request.bytes > MAX_COMMIT {
                queue.requests.push_front(request);
                break;
            }
            bytes += request.bytes;
            queue.records -= request.records.len();
            queue.bytes -= request.bytes;
            group.push(request);
        }
        Some((group, std::mem::take(&mut queue.syncs)))
    }

    /// Writes and syncs one group; returns the number of its first record.
    fn commit(&mut self, requests: &[Request], with_checkpoints: bool) -> Result<u64, AppendError> {
        let first = self.shared.next_seq();
        let checkpoints = self.due_checkpoints(with_checkpoints);
        if requests.iter().all(|request| request.records.is_empty()) && checkpoints.is_none() {
            return Ok(first);
        }
        if self.shared.skipped.swap(false, Ordering::AcqRel) {
            self.active = None;
        }
        let (mut segment, fresh) = self.segment_for(first)?;
        let checkpoints = if fresh { self.shared.all_checkpoints().or(checkpoints) } else { checkpoints };
        self.encode(segment, first, requests, checkpoints.as_deref());
        if self.at + self.encoder.bytes.len() as u64 > segment.bytes {
            self.active = None;
            (segment, _) = self.segment_for(first)?;
            // A segment begins with the checkpoints, so that recovery reads one file.
            let all = self.shared.all_checkpoints();
            self.encode(segment, first, requests, all.as_deref());
        }
        let written = self.encoder.bytes.len() as u64;
        let begun = Instant::now();
        let Some((_, file)) = &self.active else { return Err(AppendError::Closed) };
        let result = file.write_all_at(&self.encoder.bytes, self.at).and_then(|()| file.sync_data());
        if let Err(error) = result {
            // After a failed sync the kernel may call lost pages clean: never write on in this file.
            self.active = None;
            return Err(self.shared.io_error(&error));
        }
        self.at += written;
        if self.at > segment.bytes / 2 {
            self.shared.want_spare();
        }
        let records: u64 = requests.iter().map(|request| request.records.len() as u64).sum();
        self.shared.committed(first + records, written, begun.elapsed());
        if checkpoints.is_some() {
            self.last_checkpoint = Some(Instant::now());
        }
        self.encoder.bytes.shrink_to(MAX_COMMIT);
        self.raw.shrink_to(2 * block::TARGET_RAW);
        Ok(first)
    }

    fn due_checkpoints(&self, forced: bool) -> Option<Vec<u8>> {
        let due = forced || self.last_checkpoint.is_none_or(|last| last.elapsed() >= CHECKPOINT_EVERY);
        if due { self.shared.dirty_checkpoints() } else { None }
    }

    /// The active segment, or a fresh one (`true`) that starts at `first`.
    fn segment_for(&mut self, first: u64) -> Result<(Segment, bool), AppendError> {
        if let Some((segment, _)) = &self.active {
            return Ok((*segment, false));
        }
        let shared = &self.shared;
        shared.make_spare()?;
        let activated = shared.files().activate(first).map_err(|error| shared.io_error(&error))?;
        let Some((segment, file)) = activated else { return Err(AppendError::Closed) };
        self.at = DATA_START;
        self.active = Some((segment, file));
        Ok((segment, true))
    }

    /// Lays the group out in blocks, in `self.encoder`.
    fn encode(&mut self, segment: Segment, first: u64, requests: &[Request], checkpoints: Option<&[u8]>) {
        self.encoder.bytes.clear();
        let mut flags = block::FIRST_OF_COMMIT;
        if let Some(raw) = checkpoints {
            self.encoder.block(segment.generation, flags | block::CHECKPOINT, 0, 0, first, raw);
            flags = 0;
        }
        let (mut seq, mut count, mut marks) = (first, 0u16, 0u8);
        self.raw.clear();
        let records = requests.iter().flat_map(|request| &request.records);
        let mut records = records.peekable();
        while let Some(record) = records.next() {
            block::push_record(&mut self.raw, record);
            count += 1;
            marks |= record.mark;
            let next = records.peek().map(|record| record.body.len());
            let full = next.is_none_or(|len| self.raw.len() + len > block::TARGET_RAW) || count == u16::MAX;
            if full {
                self.encoder.block(segment.generation, flags, marks, count, seq, &self.raw);
                self.raw.clear();
                seq += u64::from(count);
                (flags, count, marks) = (0, 0, 0);
            }
        }
    }
}

/// Keeps one spare ready ahead of need, so that no commit waits for megabytes of zeros.
pub(super) fn prefill(shared: &Shared) {
    loop {
        shared.wait_for_fill();
        if shared.closing.load(Ordering::Acquire) {
            return;
        }
        // No room is no fault here: the committer meets it again and tells the senders.
        if let Err(error) = shared.make_spare() {
            tracing::debug!(%error, "no spare segment for now");
        }
    }
}

/// Fills a new spare under `path`; on a full file system nothing is left behind.
pub(super) fn fill(path: &Path, bytes: u64) -> io::Result<()> {
    segment::fill(path, bytes)
}

/// Serialises the checkpoints for a block.
pub(super) fn checkpoint_block(checkpoints: &std::collections::BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    recover::write_checkpoints(checkpoints)
}
