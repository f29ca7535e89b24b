//! Frames: bytes to frames and back, without any I/O.
//!
//! A data frame may have 16 MiB; it is handed on in the pieces in which it arrives, so that no frame of data is ever
//! collected. Control frames are collected whole, and are small.

use bytes::{Buf, Bytes, BytesMut};

use super::headers::{Deflater, Headers, Inflater};

/// The only version.
const VERSION: u16 = 3;
/// Bytes before a frame's content.
const HEADER: usize = 8;
/// Most bytes of a control frame's content.
pub(super) const MAX_CONTROL: usize = 64 << 10;
/// Most bytes of data given on at once.
pub(super) const MAX_PIECE: usize = 64 << 10;
/// Most data in a frame that we write.
pub(super) const MAX_DATA: usize = 32 << 10;
/// Ids have 31 bits.
const ID: u32 = 0x7fff_ffff;
const FIN: u8 = 1;
const UNIDIRECTIONAL: u8 = 2;

/// Why a stream was reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResetStatus(pub u32);

impl ResetStatus {
    /// A frame that makes no sense for the stream.
    pub const PROTOCOL_ERROR: Self = Self(1);
    /// Not wanted.
    pub const REFUSED: Self = Self(3);
    /// No longer needed.
    pub const CANCEL: Self = Self(5);
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A new stream.
    SynStream {
        /// Its id: odd from a client, even from a server, growing.
        stream: u32,
        /// What it is for.
        headers: Headers,
        /// Its sender sends nothing more on it.
        fin: bool,
        /// Its receiver may send nothing on it.
        unidirectional: bool,
    },
    /// A stream was accepted.
    SynReply {
        /// Which.
        stream: u32,
        /// With what.
        headers: Headers,
        /// Its sender sends nothing more on it.
        fin: bool,
    },
    /// A stream is gone.
    Reset {
        /// Which.
        stream: u32,
        /// Why.
        status: ResetStatus,
    },
    /// Settings of the sender, `(id, value)`.
    Settings(Vec<(u32, u32)>),
    /// To be sent back.
    Ping(u32),
    /// No further streams.
    GoAway {
        /// The last that was accepted.
        last: u32,
        /// 0: all is well.
        status: u32,
    },
    /// Further headers.
    Headers {
        /// Of which stream.
        stream: u32,
        /// Which.
        headers: Headers,
        /// Its sender sends nothing more on it.
        fin: bool,
    },
    /// The sender has room for more.
    WindowUpdate {
        /// On which stream; 0: on the connection.
        stream: u32,
        /// Bytes more.
        delta: u32,
    },
    /// Data, or a piece of it.
    Data {
        /// Of which stream.
        stream: u32,
        /// Bytes.
        bytes: Bytes,
        /// Its sender sends nothing more on it.
        fin: bool,
    },
}

/// Bytes that are no frames. Final: what follows is not understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Another version.
    #[error("a SPDY frame of version {0}, and only version 3 is spoken here")]
    Version(u16),
    /// Too long.
    #[error("a SPDY control frame of {0} bytes, and 64 KiB is the most")]
    TooLong(usize),
    /// Wrong length or fields.
    #[error("a SPDY frame of kind {0} that is malformed")]
    Malformed(u16),
    /// The header block.
    #[error("a SPDY header block that cannot be read")]
    Headers,
    /// The header block is a bomb.
    #[error("a SPDY header block of more than 64 KiB")]
    HeadersTooLarge,
}

/// Cuts bytes into frames, however they arrive.
pub struct Decoder {
    buffer: BytesMut,
    inflater: Inflater,
    /// The data frame whose content is arriving: stream, bytes to come, whether it ends the stream.
    data: Option<(u32, usize, bool)>,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { buffer: BytesMut::new(), inflater: Inflater::new(), data: None }
    }
}

impl Decoder {
    /// Where to read into.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// The next frame, if it is there.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            if let Some((stream, left, fin)) = self.data {
                return Ok(self.piece(stream, left, fin));
            }
            let Some(head) = self.buffer.first_chunk::<HEADER>() else { return Ok(None) };
            let word = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
            let flags = head[4];
            let length = u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize;
            if word & !ID == 0 {
                self.buffer.advance(HEADER);
                self.data = Some((word, length, flags & FIN != 0));
                continue;
            }
            let (version, kind) = ((word >> 16) as u16 & 0x7fff, (word & 0xffff) as u16);
            if version != VERSION {
                return Err(FrameError::Version(version));
            }
            if length > MAX_CONTROL {
                return Err(FrameError::TooLong(length));
            }
            if self.buffer.len() < HEADER + length {
                return Ok(None);
            }
            self.buffer.advance(HEADER);
            let content = self.buffer.split_to(length).freeze();
            if let Some(frame) = self.control(kind, flags, &content)? {
                return Ok(Some(frame));
            }
        }
    }

    /// Whether more pieces of the last frame are to come.
    #[cfg(test)]
    pub fn is_within_data(&self) -> bool {
        self.data.is_some()
    }

    fn piece(&mut self, stream: u32, left: usize, fin: bool) -> Option<Frame> {
        let now = left.min(self.buffer.len()).min(MAX_PIECE);
        if now == 0 && left > 0 {
            return None;
        }
        let bytes = self.buffer.split_to(now).freeze();
        let left = left - now;
        self.data = (left > 0).then_some((stream, left, fin));
        Some(Frame::Data { stream, bytes, fin: fin && left == 0 })
    }

    /// `None`: of a kind that is passed over.
    fn control(&mut self, kind: u16, flags: u8, content: &[u8]) -> Result<Option<Frame>, FrameError> {
        let malformed = FrameError::Malformed(kind);
        let word = |at: usize| {
            let bytes = content.get(at..).and_then(|rest| rest.first_chunk::<4>());
            bytes.map(|bytes| u32::from_be_bytes(*bytes)).ok_or(malformed)
        };
        let id = |at: usize| word(at).map(|id| id & ID);
        let stream = |at: usize| id(at).and_then(|id| if id == 0 { Err(malformed) } else { Ok(id) });
        let fin = flags & FIN != 0;
        let frame = match kind {
            1 => {
                let block = content.get(10..).ok_or(malformed)?;
                // The block first, in any case: the next one builds on it.
                let headers = self.inflater.block(block)?;
                Frame::SynStream { stream: stream(0)?, headers, fin, unidirectional: flags & UNIDIRECTIONAL != 0 }
            }
            2 | 8 => {
                let headers = self.inflater.block(content.get(4..).ok_or(malformed)?)?;
                let stream = stream(0)?;
                if kind == 2 {
                    Frame::SynReply { stream, headers, fin }
                } else {
                    Frame::Headers { stream, headers, fin }
                }
            }
            3 => Frame::Reset { stream: stream(0)?, status: ResetStatus(word(4)?) },
            4 => {
                let count = word(0)? as usize;
                let pairs = content.get(4..).unwrap_or_default().chunks_exact(8);
                if pairs.len() != count {
                    return Err(malformed);
                }
                let pair = |at: usize| Ok((word(4 + 8 * at)? & 0x00ff_ffff, word(8 + 8 * at)?));
                Frame::Settings((0..count).map(pair).collect::<Result<_, FrameError>>()?)
            }
            6 => Frame::Ping(word(0)?),
            7 => Frame::GoAway { last: id(0)?, status: word(4)? },
            9 => Frame::WindowUpdate { stream: id(0)?, delta: id(4)? },
            // The draft: unknown kinds are ignored.
            _ => return Ok(None),
        };
        Ok(Some(frame))
    }
}

/// Frames to bytes.
#[derive(Debug, Default)]
pub struct Encoder {
    deflater: Deflater,
}

impl Encoder {
    /// Appends a frame.
    pub fn encode(&mut self, frame: &Frame, out: &mut Vec<u8>) {
        match frame {
            Frame::Data { stream, bytes, fin } => {
                out.extend_from_slice(&(stream & ID).to_be_bytes());
                head(out, u8::from(*fin), bytes.len());
                out.extend_from_slice(bytes);
            }
            Frame::SynStream { stream, headers, fin, unidirectional } => {
                let mut content = words(&[*stream, 0]);
                content.extend_from_slice(&[0, 0]); // Priority and slot.
                content.extend_from_slice(&self.deflater.block(headers));
                let flags = (u8::from(*fin) * FIN) | (u8::from(*unidirectional) * UNIDIRECTIONAL);
                control(out, 1, flags, &content);
            }
            Frame::SynReply { stream, headers, fin } => self.block(out, 2, *stream, headers, *fin),
            Frame::Headers { stream, headers, fin } => self.block(out, 8, *stream, headers, *fin),
            Frame::Reset { stream, status } => control(out, 3, 0, &words(&[*stream, status.0])),
            Frame::Settings(settings) => {
                let mut content = words(&[u32::try_from(settings.len()).unwrap_or(0)]);
                for (id, value) in settings {
                    content.extend_from_slice(&words(&[id & 0x00ff_ffff, *value]));
                }
                control(out, 4, 0, &content);
            }
            Frame::Ping(id) => control(out, 6, 0, &words(&[*id])),
            Frame::GoAway { last, status } => control(out, 7, 0, &words(&[*last, *status])),
            Frame::WindowUpdate { stream, delta } => control(out, 9, 0, &words(&[*stream, delta & ID])),
        }
    }

    fn block(&mut self, out: &mut Vec<u8>, kind: u16, stream: u32, headers: &Headers, fin: bool) {
        let mut content = words(&[stream]);
        content.extend_from_slice(&self.deflater.block(headers));
        control(out, kind, u8::from(fin), &content);
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

fn head(out: &mut Vec<u8>, flags: u8, length: usize) {
    let [_, a, b, c] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    out.extend_from_slice(&[flags, a, b, c]);
}

fn control(out: &mut Vec<u8>, kind: u16, flags: u8, content: &[u8]) {
    out.extend_from_slice(&(VERSION | 0x8000).to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    head(out, flags, content.len());
    out.extend_from_slice(content);
}
