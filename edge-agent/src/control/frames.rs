//! Byte streams told apart on one connection, for attach, exec and logs: `[kind: u8][0 0 0][length: u32 BE][payload]`, as
//! Docker's attach has them, and kinds of our own for what Docker sends by other requests.
//!
//! Always true: a payload is at most [`MAX_PAYLOAD`] bytes; a longer one, or an unknown kind, ends the connection.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Largest payload.
pub const MAX_PAYLOAD: usize = 1 << 20;
/// Bytes before it.
const HEADER: usize = 8;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// For standard input.
    Stdin = 0,
    /// Of standard output, or of the terminal.
    Stdout = 1,
    /// Of standard error.
    Stderr = 2,
    /// JSON from the agent: [`Last`]; nothing follows.
    Last = 3,
    /// Standard input is at its end; no payload.
    CloseStdin = 4,
    /// New size of the terminal: rows and columns, u16 BE each.
    Resize = 5,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        const ALL: [Kind; 6] = [Kind::Stdin, Kind::Stdout, Kind::Stderr, Kind::Last, Kind::CloseStdin, Kind::Resize];
        ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// How a stream ended.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Last {
    /// The process ended.
    Exit(i32),
    /// The stream broke; the process may go on.
    Error(String),
}

/// A frame, ready to be sent. `payload` must be at most [`MAX_PAYLOAD`] bytes.
pub fn encode(kind: Kind, payload: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(HEADER + payload.len());
    frame.put_slice(&[kind as u8, 0, 0, 0]);
    frame.put_u32(u32::try_from(payload.len()).unwrap_or(u32::MAX));
    frame.put_slice(payload);
    frame.freeze()
}

/// The last frame of a stream.
pub fn last(end: &Last) -> Bytes {
    // A number or a text has a JSON form.
    encode(Kind::Last, &serde_json::to_vec(end).unwrap_or_default())
}

/// The size of a terminal.
pub fn resize(rows: u16, columns: u16) -> Bytes {
    let [a, b] = rows.to_be_bytes();
    let [c, d] = columns.to_be_bytes();
    encode(Kind::Resize, &[a, b, c, d])
}

/// Reads what [`resize`] wrote.
pub fn size_of(payload: &[u8]) -> Option<(u16, u16)> {
    let [a, b, c, d] = *payload.first_chunk::<4>()?;
    Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
}

/// The bytes are no frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Unknown kind.
    #[error("a frame of unknown kind {0}: the other side speaks another protocol")]
    Kind(u8),
    /// Too long.
    #[error("a frame of {0} bytes, and {MAX_PAYLOAD} is the most")]
    TooLong(usize),
}

/// Cuts bytes into frames, however they arrive.
#[derive(Debug, Default)]
pub struct Decoder(BytesMut);

impl Decoder {
    /// Adds bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// The next whole frame. An error is final.
    pub fn next(&mut self) -> Result<Option<(Kind, Bytes)>, FrameError> {
        let Some(head) = self.0.first_chunk::<HEADER>() else { return Ok(None) };
        let kind = Kind::of(head[0]).ok_or(FrameError::Kind(head[0]))?;
        let length = u32::from_be_bytes([head[4], head[5], head[6], head[7]]) as usize;
        if length > MAX_PAYLOAD {
            return Err(FrameError::TooLong(length));
        }
        if self.0.len() < HEADER + length {
            return Ok(None);
        }
        self.0.advance(HEADER);
        Ok(Some((kind, self.0.split_to(length).freeze())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_any_cut() {
        let frames =
            [(Kind::Stdout, &b"hello"[..]), (Kind::Stderr, b""), (Kind::Stdin, &[0, 255, 10]), (Kind::CloseStdin, b"")];
        let bytes: Vec<u8> = frames.iter().flat_map(|(kind, payload)| encode(*kind, payload)).collect();
        for cut in 0..=bytes.len() {
            let mut decoder = Decoder::default();
            let mut got = Vec::new();
            for part in [&bytes[..cut], &bytes[cut..]] {
                decoder.feed(part);
                while let Some((kind, payload)) = decoder.next().unwrap() {
                    got.push((kind, payload));
                }
            }
            let want: Vec<_> = frames.iter().map(|(kind, payload)| (*kind, Bytes::copy_from_slice(payload))).collect();
            assert_eq!(got, want, "cut at byte {cut}");
        }
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        let refuse = |bytes: &[u8]| {
            let mut decoder = Decoder::default();
            decoder.feed(bytes);
            decoder.next().unwrap_err()
        };
        assert_eq!(refuse(&[9, 0, 0, 0, 0, 0, 0, 0]), FrameError::Kind(9));
        assert_eq!(refuse(&[1, 0, 0, 0, 255, 0, 0, 0]), FrameError::TooLong(0xff00_0000));
    }

    #[test]
    fn sizes_and_ends() {
        let mut decoder = Decoder::default();
        decoder.feed(&resize(24, 80));
        decoder.feed(&last(&Last::Exit(137)));
        let (kind, payload) = decoder.next().unwrap().unwrap();
        assert_eq!((kind, size_of(&payload)), (Kind::Resize, Some((24, 80))));
        let (kind, payload) = decoder.next().unwrap().unwrap();
        assert_eq!(kind, Kind::Last);
        assert_eq!(serde_json::from_slice::<Last>(&payload).unwrap(), Last::Exit(137));
        assert_eq!(size_of(b"abc"), None);
    }
}
