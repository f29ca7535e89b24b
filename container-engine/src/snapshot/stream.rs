//! The bytes of a layer: decompressed, hashed and counted on one thread, handed to another in a few large buffers.

use std::{
    io::{self, BufRead, BufReader, Read},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
};

use serde::{Deserialize, Serialize};

use super::error::{Fault, FaultKind};
use crate::content::Digest;

/// Bytes of one buffer, and how many there are.
const BUFFER: usize = 128 << 10;
const BUFFERS: usize = 2;
/// zstd frames may ask for a window of 128 MiB and no more.
const WINDOW_LOG_MAX: u32 = 27;

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, of one member or several.
    Gzip,
    /// Zstandard, of one frame or several.
    Zstd,
}

impl Compression {
    /// By the first bytes.
    pub fn of(bytes: &[u8]) -> Self {
        match bytes {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // The second: a skippable frame in front.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }

    /// By the end of a media type: `…tar+gzip`, `…tar.gzip`, `…tar+zstd`, `…tar`.
    pub fn of_media_type(media_type: &str) -> Option<Self> {
        let end = media_type.rsplit(['.', '+']).next()?;
        match end {
            "gzip" => Some(Self::Gzip),
            "zstd" => Some(Self::Zstd),
            "tar" => Some(Self::None),
            _ => None,
        }
    }
}

/// What the whole stream was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Whole {
    /// Of the uncompressed bytes.
    pub diff_id: Digest,
    /// As found.
    pub compression: Compression,
}

/// A fault that travels through `io::Error`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct StreamFault(pub Fault);

enum Part {
    Bytes(Vec<u8>),
    End(Whole),
    Fault(Fault),
}

/// The uncompressed bytes.
#[derive(Debug)]
pub struct Stream {
    parts: Receiver<Part>,
    empty: SyncSender<Vec<u8>>,
    current: Vec<u8>,
    at: usize,
    whole: Option<Whole>,
}

impl Stream {
    /// Starts the thread. `max` bytes are decompressed and no more.
    pub fn start(input: impl Read + Send + 'static, max: u64) -> io::Result<Self> {
        let (sender, parts) = sync_channel(BUFFERS);
        let (empty, buffers) = sync_channel(BUFFERS);
        let thread = std::thread::Builder::new().name("inflate".into()).stack_size(256 << 10);
        thread.spawn(move || {
            let last = match inflate(input, max, &sender, &buffers) {
                Ok(Some(whole)) => Part::End(whole),
                Ok(None) => return, // The reader has left.
                Err(fault) => Part::Fault(fault),
            };
            let _ = sender.send(last);
        })?;
        Ok(Self { parts, empty, current: Vec::new(), at: 0, whole: None })
    }

    /// What it was; known once its end was read.
    pub fn whole(&self) -> Option<Whole> {
        self.whole
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.fill_buf()?;
        let take = bytes.len().min(buffer.len());
        buffer[..take].copy_from_slice(&bytes[..take]);
        self.consume(take);
        Ok(take)
    }
}

impl BufRead for Stream {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.current.len() && self.whole.is_none() {
            let used = std::mem::take(&mut self.current);
            self.at = 0;
            let _ = self.empty.try_send(used); // Only a buffer to use again.
            match self.parts.recv() {
                Ok(Part::Bytes(bytes)) => self.current = bytes,
                Ok(Part::End(whole)) => self.whole = Some(whole),
                Ok(Part::Fault(fault)) => return Err(io::Error::other(StreamFault(fault))),
                Err(_) => return Err(io::Error::other("the thread that decompresses is gone")),
            }
        }
        Ok(&self.current[self.at..])
    }

    fn consume(&mut self, bytes: usize) {
        self.at += bytes;
    }
}

fn inflate(
    input: impl Read,
    max: u64,
    parts: &SyncSender<Part>,
    buffers: &Receiver<Vec<u8>>,
) -> Result<Option<Whole>, Fault> {
    let mut input = BufReader::with_capacity(128 << 10, Peek::new(input).map_err(|error| fault_of(&error, "layer"))?);
    let compression = Compression::of(input.get_ref().start());
    let (mut reader, what): (Box<dyn Read>, _) = match compression {
        Compression::None => (Box::new(input), "layer"),
        Compression::Gzip => (Box::new(flate2::bufread::MultiGzDecoder::new(input)), "gzip stream"),
        Compression::Zstd => {
            let mut decoder =
                zstd::stream::read::Decoder::with_buffer(&mut input).map_err(|it| fault_of(&it, "zstd"))?;
            decoder.window_log_max(WINDOW_LOG_MAX).map_err(|it| fault_of(&it, "zstd"))?;
            return pump(decoder, "zstd stream", compression, max, parts, buffers);
        }
    };
    pump(&mut reader, what, compression, max, parts, buffers)
}

fn pump(
    mut reader: impl Read,
    what: &str,
    compression: Compression,
    max: u64,
    parts: &SyncSender<Part>,
    buffers: &Receiver<Vec<u8>>,
) -> Result<Option<Whole>, Fault> {
    let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
    let mut total = 0_u64;
    loop {
        let mut buffer = buffers.try_recv().unwrap_or_default();
        buffer.resize(BUFFER, 0);
        let mut have = 0;
        while have < BUFFER {
            match reader.read(&mut buffer[have..]) {
                Ok(0) => break,
                Ok(read) => have += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(fault_of(&error, what)),
            }
        }
        buffer.truncate(have);
        if have == 0 {
            return Ok(Some(Whole { diff_id: Digest::finish(hash), compression }));
        }
        total += have as u64;
        if total > max {
            let message =
                format!("it unpacks to more than the {max} bytes allowed; raise the quota if it is to be trusted");
            return Err(Fault { kind: FaultKind::Quota, entry: String::new(), message });
        }
        hash.update(&buffer);
        if parts.send(Part::Bytes(buffer)).is_err() {
            return Ok(None);
        }
    }
}

fn fault_of(error: &io::Error, what: &str) -> Fault {
    let (kind, message) = if error.kind() == io::ErrorKind::UnexpectedEof {
        (FaultKind::Truncated, format!("the {what} ends early; pull the layer again"))
    } else {
        (FaultKind::Corrupt, format!("the {what} is damaged ({error}); pull the layer again"))
    };
    Fault { kind, entry: String::new(), message }
}

/// Shows the first bytes and gives them again.
struct Peek<R> {
    start: [u8; 4],
    length: usize,
    given: usize,
    input: R,
}

impl<R: Read> Peek<R> {
    fn new(mut input: R) -> io::Result<Self> {
        let (mut start, mut length) = ([0; 4], 0);
        while length < start.len() {
            match input.read(&mut start[length..]) {
                Ok(0) => break,
                Ok(read) => length += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self { start, length, given: 0, input })
    }

    fn start(&self) -> &[u8] {
        &self.start[..self.length]
    }
}

impl<R: Read> Read for Peek<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.given == self.length {
            return self.input.read(buffer);
        }
        let take = buffer.len().min(self.length - self.given);
        buffer[..take].copy_from_slice(&self.start[self.given..self.given + take]);
        self.given += take;
        Ok(take)
    }
}
