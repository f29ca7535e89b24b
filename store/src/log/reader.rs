//! Reading in order of sequence numbers, beside the writer and beside trimming.

use std::{io, ops::Range, sync::Arc};

use super::{
    Batch, ReadError, Shared, block,
    block::Header,
    segment::{BlockFile, DATA_START},
};

/// Reads in order of sequence numbers. Blocking: call it from `spawn_blocking`. Holds one file and one block.
pub struct Reader {
    shared: Arc<Shared>,
    /// The number the next batch starts from.
    seq: u64,
    mask: Option<u8>,
    place: Option<Place>,
}

/// Where the next block is, and the number it starts with: within a segment blocks follow each other, and what says
/// otherwise is no more to be believed than a bad checksum.
struct Place {
    file: BlockFile,
    at: u64,
    starts: u64,
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>, from: u64) -> Self {
        Self { shared, seq: from.max(1), mask: None, place: None }
    }

    /// Only records of blocks in which some record's `mark & mask != 0`; records without the bit may come along and
    /// must be filtered by the caller.
    #[must_use]
    pub fn only(mut self, mask: u8) -> Self {
        self.mask = Some(mask);
        self
    }

    /// The number the next batch starts from.
    pub fn position(&self) -> u64 {
        self.seq
    }

    /// The next records, at least one and then up to `max_bytes` of bodies; empty at the end of what is durable.
    pub fn next_batch(&mut self, max_bytes: usize) -> Result<Batch, ReadError> {
        let mut batch = Batch::default();
        let mut bytes = 0;
        let durable = self.shared.durable_seq();
        while self.seq < durable && (batch.records.is_empty() || bytes < max_bytes) {
            let Some((segment, end)) = self.locate(&mut batch) else { break };
            let end = end.unwrap_or(durable).min(durable);
            match self.step(segment, end, &mut batch, &mut bytes, max_bytes) {
                Ok(()) => {}
                // The segment was trimmed between the look-up and the read: look again.
                Err(error) if error.kind() == io::ErrorKind::NotFound => self.place = None,
                Err(source) => {
                    self.place = None;
                    return Err(ReadError::Io { path: segment.path(self.shared.files().dir()), source });
                }
            }
        }
        Ok(batch)
    }

    /// The segment that holds `self.seq`; moves on to the oldest where that is gone.
    fn locate(&mut self, batch: &mut Batch) -> Option<(super::segment::Segment, Option<u64>)> {
        let files = self.shared.files();
        if let Some(found) = files.holding(self.seq) {
            return Some(found);
        }
        let first = *files.segments.keys().next()?;
        drop(files);
        push_missing(batch, self.seq..first);
        self.seq = first;
        self.shared.files().holding(first)
    }

    /// Reads or passes over one block, or finds the next one after damage, or the end of the segment.
    fn step(
        &mut self,
        segment: super::segment::Segment,
        end: u64,
        batch: &mut Batch,
        bytes: &mut usize,
        max_bytes: usize,
    ) -> io::Result<()> {
        let place = match self.place.take() {
            Some(place) if place.file.segment == segment => place,
            _ => {
                let file = BlockFile::open(self.shared.files().dir(), segment)?;
                Place { file, at: DATA_START, starts: segment.first_seq }
            }
        };
        let Some(header) = place.file.header(place.at)?.filter(|header| header.first_seq == place.starts) else {
            return self.after_damage(place, end, batch);
        };
        let wanted = !header.is_checkpoint()
            && header.end_seq() > self.seq
            && self.mask.is_none_or(|mask| header.marks & mask != 0);
        if wanted {
            if !batch.records.is_empty() && *bytes + header.stored_len as usize > max_bytes {
                // Would overfill: leave it for the next call, and end this one.
                *bytes = max_bytes;
                self.place = Some(place);
                return Ok(());
            }
            let Some(body) = place.file.body(place.at, &header)? else { return self.after_damage(place, end, batch) };
            self.take(segment, &header, &body, end, batch, bytes);
        } else if header.end_seq() > self.seq {
            self.seq = header.end_seq().min(end);
        }
        self.place = Some(Place { at: place.at + header.size(), starts: header.end_seq(), ..place });
        Ok(())
    }

    fn take(
        &mut self,
        segment: super::segment::Segment,
        header: &Header,
        body: &[u8],
        end: u64,
        batch: &mut Batch,
        bytes: &mut usize,
    ) {
        let end = header.end_seq().min(end);
        let mut next = header.first_seq;
        for (seq, record) in (header.first_seq..end).zip(block::records(body)) {
            next = seq + 1;
            if seq >= self.seq {
                *bytes += record.body.len();
                batch.records.push((seq, record));
            }
        }
        // A block that holds less than its header says was written so: no number is passed over in silence.
        self.report(segment, next.max(self.seq)..end, batch);
        self.seq = end;
    }

    /// No intact block where one belongs: on to the next one that is, counting what is missing.
    fn after_damage(&mut self, place: Place, end: u64, batch: &mut Batch) -> io::Result<()> {
        let Place { file, at: mut from, starts } = place;
        let segment = file.segment;
        while let Some((at, header)) = file.resync(from)? {
            let inside =
                (starts..end).contains(&header.first_seq) && header.end_seq() >= self.seq && !header.is_checkpoint();
            if inside {
                self.report(segment, self.seq..header.first_seq.max(self.seq), batch);
                self.seq = self.seq.max(header.first_seq);
                self.place = Some(Place { file, at, starts: header.first_seq });
                return Ok(());
            }
            from = at + header.size();
        }
        // The file may have been recycled while it was read: then it is not damage but gone.
        let still_there = self.shared.files().segments.get(&segment.first_seq) == Some(&segment);
        if still_there {
            self.report(segment, self.seq..end, batch);
            self.seq = self.seq.max(end);
        }
        Ok(())
    }

    fn report(&self, segment: super::segment::Segment, lost: Range<u64>, batch: &mut Batch) {
        if lost.is_empty() {
            return;
        }
        self.shared.damaged(segment, &lost);
        push_missing(batch, lost);
    }
}

fn push_missing(batch: &mut Batch, range: Range<u64>) {
    if range.is_empty() {
        return;
    }
    match batch.missing.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => batch.missing.push(range),
    }
}
