//! The files of the log: names, zero-filled spares, recycling.
//!
//! A segment is `FIRST-GENERATION.seg` (both hexadecimal), a file of fixed size that is full of zeros or of what an
//! earlier generation left behind; a spare is `spare-GENERATION`. A file is renamed into a segment, and the folder
//! synced, before its first commit is written; so the names alone tell which numbers a segment holds, whatever
//! happens to its content.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use super::block;

/// Where blocks start; the bytes before name the format for a human with a hex viewer.
pub(super) const DATA_START: u64 = 64;
const FORMAT: &[u8] = b"edge-agent log, format 1\n";
/// Spares kept for reuse: zero-filling a file costs the flash as much as the readings in it.
const MAX_SPARES: usize = 2;

/// One segment as the log knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub first_seq: u64,
    pub generation: u64,
    pub bytes: u64,
}

impl Segment {
    pub fn path(&self, dir: &Path) -> PathBuf {
        dir.join(format!("{:016x}-{:08x}.seg", self.first_seq, self.generation))
    }

    fn from_name(name: &str, bytes: u64) -> Option<Self> {
        let (first, generation) = name.strip_suffix(".seg")?.split_once('-')?;
        let first_seq = u64::from_str_radix(first, 16).ok()?;
        let generation = u64::from_str_radix(generation, 16).ok()?;
        let fits = (1..block::MAX_NUMBER).contains(&first_seq) && generation < block::MAX_NUMBER;
        fits.then_some(Self { first_seq, generation, bytes })
    }
}

/// All files of one log, kept in step with the folder.
#[derive(Debug)]
pub(super) struct Files {
    dir: PathBuf,
    segment_bytes: u64,
    pub segments: BTreeMap<u64, Segment>,
    spares: Vec<(PathBuf, u64)>,
    next_generation: u64,
}

impl Files {
    /// Lists the folder. Of two segments with the same first number the younger counts (the older never had a commit).
    pub fn list(dir: &Path, segment_bytes: u64) -> io::Result<Self> {
        let mut files = Self {
            dir: dir.to_owned(),
            segment_bytes,
            segments: BTreeMap::new(),
            spares: Vec::new(),
            next_generation: 1,
        };
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            let bytes = entry.metadata()?.len();
            if let Some(segment) = Segment::from_name(name, bytes) {
                files.next_generation = files.next_generation.max(segment.generation + 1);
                let older = files.segments.get(&segment.first_seq).is_some_and(|it| it.generation > segment.generation);
                if !older {
                    files.segments.insert(segment.first_seq, segment);
                }
            } else if let Some(generation) = name.strip_prefix("spare-") {
                if let Ok(generation) = u64::from_str_radix(generation, 16)
                    && generation < block::MAX_NUMBER
                {
                    files.next_generation = files.next_generation.max(generation + 1);
                }
                files.spares.push((entry.path(), bytes));
            }
        }
        Ok(files)
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn disk_bytes(&self) -> u64 {
        let spares: u64 = self.spares.iter().map(|(_, bytes)| bytes).sum();
        self.segments.values().map(|segment| segment.bytes).sum::<u64>() + spares
    }

    pub fn newest(&self) -> Option<Segment> {
        self.segments.last_key_value().map(|(_, segment)| *segment)
    }

    /// The segment that holds `seq`, and where its numbers end (`None` for the newest).
    pub fn holding(&self, seq: u64) -> Option<(Segment, Option<u64>)> {
        let (_, segment) = self.segments.range(..=seq).next_back()?;
        let end = self.segments.range(seq + 1..).next().map(|(first, _)| *first);
        Some((*segment, end))
    }

    pub fn has_spare(&self) -> bool {
        !self.spares.is_empty()
    }

    /// A name for a file that is being filled.
    pub fn claim_spare(&mut self) -> PathBuf {
        let generation = self.next_generation;
        self.next_generation += 1;
        self.dir.join(format!("spare-{generation:08x}"))
    }

    /// Takes a filled file in.
    pub fn add_spare(&mut self, path: PathBuf) {
        self.spares.push((path, self.segment_bytes));
    }

    /// Drops leftovers of an interrupted fill: spares of another size.
    pub fn drop_odd_spares(&mut self) {
        let size = self.segment_bytes;
        self.spares.retain(|(path, bytes)| {
            let usable = *bytes == size;
            if !usable {
                remove_logged(path);
            }
            usable
        });
    }

    /// Turns a spare into the segment that starts at `first_seq`; durable on return.
    pub fn activate(&mut self, first_seq: u64) -> io::Result<Option<(Segment, File)>> {
        let Some((spare, bytes)) = self.spares.pop() else { return Ok(None) };
        let segment = Segment { first_seq, generation: self.next_generation, bytes };
        let path = segment.path(&self.dir);
        let renamed = std::fs::rename(&spare, &path).and_then(|()| board::durable::sync_dir(&self.dir));
        renamed?;
        self.next_generation += 1;
        if let Some(unused) = self.segments.insert(first_seq, segment) {
            remove_logged(&unused.path(&self.dir));
        }
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Some((segment, file)))
    }

    /// Lets go of a segment: a spare while there is need for one, else deleted.
    pub fn retire(&mut self, first_seq: u64) -> io::Result<()> {
        let Some(segment) = self.segments.remove(&first_seq) else { return Ok(()) };
        let path = segment.path(&self.dir);
        if segment.bytes == self.segment_bytes && self.spares.len() < MAX_SPARES {
            let spare = self.claim_spare();
            std::fs::rename(&path, &spare)?;
            self.add_spare(spare);
            Ok(())
        } else {
            std::fs::remove_file(&path)
        }
    }
}

fn remove_logged(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::warn!(%error, path = %path.display(), "cannot remove an unused log file; remove it by hand");
    }
}

/// Makes a file of `bytes` zeros, on disk when this returns. A failed attempt leaves nothing.
///
/// Written page by page: the kernel keeps what was written at once as one large folio, and a commit that then changes a
/// few bytes of it makes all of it dirty.
pub(super) fn fill(path: &Path, bytes: u64) -> io::Result<()> {
    let result = (|| {
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
        let zeros = [0u8; 4 << 10];
        let mut at = 0;
        while at < bytes {
            let len = usize::try_from(bytes - at).unwrap_or(usize::MAX).min(zeros.len());
            let chunk = if at == 0 { [FORMAT, &zeros[..len - FORMAT.len()]].concat() } else { zeros[..len].to_vec() };
            file.write_all_at(&chunk, at)?;
            at += len as u64;
        }
        file.sync_all()
    })();
    if result.is_err() {
        let _ = std::fs::remove_file(path); // Already failing; the caller reports the first error.
    }
    result
}

/// Reads blocks of one segment file, one at a time.
pub(super) struct BlockFile {
    file: File,
    pub segment: Segment,
}

impl BlockFile {
    pub fn open(dir: &Path, segment: Segment) -> io::Result<Self> {
        Ok(Self { file: File::open(segment.path(dir))?, segment })
    }

    /// The header at `at`, where an intact one of this segment is.
    pub fn header(&self, at: u64) -> io::Result<Option<block::Header>> {
        let mut bytes = [0; block::HEADER];
        Ok(if read_full(&self.file, &mut bytes, at)? {
            block::Header::parse(&bytes, self.segment.generation)
        } else {
            None
        })
    }

    /// The unpacked body of the block at `at`; `None` where it is damaged.
    pub fn body(&self, at: u64, header: &block::Header) -> io::Result<Option<Vec<u8>>> {
        let mut stored = vec![0; header.stored_len as usize];
        let whole = read_full(&self.file, &mut stored, at + block::HEADER as u64)?;
        Ok(if whole { header.unpack(self.segment.generation, &stored) } else { None })
    }

    /// The next intact block at or after `from`: its place and header. Its body was checked too.
    pub fn resync(&self, from: u64) -> io::Result<Option<(u64, block::Header)>> {
        const WINDOW: u64 = 64 << 10;
        let mut base = from;
        let mut window = vec![0; usize::try_from(WINDOW).unwrap_or(0) + block::HEADER];
        while base < self.segment.bytes {
            let got = read_up_to(&self.file, &mut window, base)?;
            let mut at = 0;
            while let Some(found) = block::find_magic(&window[..got], at) {
                if found as u64 >= WINDOW {
                    break;
                }
                let place = base + found as u64;
                if let Some(header) = self.header(place)?
                    && self.body(place, &header)?.is_some()
                {
                    return Ok(Some((place, header)));
                }
                at = found + 1;
            }
            base += WINDOW;
        }
        Ok(None)
    }
}

fn read_up_to(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn read_full(file: &File, buffer: &mut [u8], at: u64) -> io::Result<bool> {
    Ok(read_up_to(file, buffer, at)? == buffer.len())
}
