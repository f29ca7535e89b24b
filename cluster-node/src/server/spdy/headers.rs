//! Header blocks: names and values, compressed with zlib and a dictionary that the protocol prescribes.
//!
//! Blocks of one direction share one zlib stream. What we send are stored blocks: a reply has no headers to speak of, and
//! a compressor would hold a quarter of a megabyte for each connection.

use flate2::{Decompress, FlushDecompress, Status};

use super::frame::FrameError;

/// The dictionary of SPDY/3: section 2.6.10.1 of the draft.
const DICTIONARY: &[u8] = include_bytes!("dictionary.bin");
/// Its Adler-32, as the beginning of a zlib stream names it.
const DICTIONARY_ID: u32 = 0xe3c6_a7c2;
/// Most bytes of one block, decompressed.
const MAX_BLOCK: usize = 64 << 10;
/// Most headers of one block.
const MAX_HEADERS: usize = 128;
/// Most bytes of a stored block of deflate.
const MAX_STORED: usize = 0xffff;

/// Names, in lower case, and values.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// Of names and values; names are brought to lower case.
    #[cfg(test)]
    pub fn of(headers: &[(&str, &str)]) -> Self {
        Self(headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), (*value).to_owned())).collect())
    }

    /// The first value of that name, in whatever case it is written here.
    pub fn get(&self, name: &str) -> Option<&str> {
        let (_, value) = self.0.iter().find(|(known, _)| known.eq_ignore_ascii_case(name))?;
        // Values of one name are separated by zeros.
        value.split('\0').next()
    }

    fn parse(block: &[u8]) -> Option<Self> {
        let (count, mut rest) = take_u32(block)?;
        let count = usize::try_from(count).ok().filter(|count| *count <= MAX_HEADERS)?;
        let mut headers = Vec::with_capacity(count);
        for _ in 0..count {
            let (name, after) = take_text(rest)?;
            let (value, after) = take_text(after)?;
            headers.push((name.to_ascii_lowercase(), value));
            rest = after;
        }
        rest.is_empty().then_some(Self(headers))
    }

    fn encode(&self) -> Vec<u8> {
        let length = |bytes: &str| u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes();
        let mut block = u32::try_from(self.0.len()).unwrap_or(u32::MAX).to_be_bytes().to_vec();
        for (name, value) in &self.0 {
            for text in [name, value] {
                block.extend_from_slice(&length(text));
                block.extend_from_slice(text.as_bytes());
            }
        }
        block
    }
}

fn take_u32(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (number, rest) = bytes.split_first_chunk::<4>()?;
    Some((u32::from_be_bytes(*number), rest))
}

fn take_text(bytes: &[u8]) -> Option<(String, &[u8])> {
    let (length, rest) = take_u32(bytes)?;
    let (text, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    Some((String::from_utf8_lossy(text).into_owned(), rest))
}

/// Reads the blocks of one direction.
pub(super) struct Inflater(Decompress);

impl Inflater {
    pub fn new() -> Self {
        Self(Decompress::new(true))
    }

    /// A whole block. An error is final: what follows would not be understood.
    pub fn block(&mut self, mut compressed: &[u8]) -> Result<Headers, FrameError> {
        let mut block = Vec::new();
        let mut piece = [0; 4096];
        loop {
            let (had_in, had_out) = (self.0.total_in(), self.0.total_out());
            let step = self.0.decompress(compressed, &mut piece, FlushDecompress::Sync);
            let took = usize::try_from(self.0.total_in() - had_in).unwrap_or(0);
            let gave = usize::try_from(self.0.total_out() - had_out).unwrap_or(0);
            compressed = compressed.get(took..).unwrap_or_default();
            block.extend_from_slice(piece.get(..gave).unwrap_or_default());
            if block.len() > MAX_BLOCK {
                return Err(FrameError::HeadersTooLarge);
            }
            match step {
                Ok(Status::Ok | Status::BufError) if took == 0 && gave == 0 => break,
                Ok(Status::Ok | Status::BufError) => {}
                Err(error) if error.needs_dictionary() == Some(DICTIONARY_ID) => {
                    self.0.set_dictionary(DICTIONARY).map_err(|_| FrameError::Headers)?;
                }
                // The stream goes on as long as the connection.
                Ok(Status::StreamEnd) | Err(_) => return Err(FrameError::Headers),
            }
        }
        if !compressed.is_empty() {
            return Err(FrameError::Headers);
        }
        Headers::parse(&block).ok_or(FrameError::Headers)
    }
}

/// Writes the blocks of one direction.
#[derive(Debug, Default)]
pub(super) struct Deflater {
    begun: bool,
}

impl Deflater {
    /// A block, as stored blocks of deflate. The last is empty: from that, decoders know that all is there, and Go's hands
    /// out nothing before.
    pub fn block(&mut self, headers: &Headers) -> Vec<u8> {
        let mut out = Vec::new();
        if !std::mem::replace(&mut self.begun, true) {
            // 32 KiB window, a dictionary, check bits; then which dictionary (RFC 1950).
            out.extend_from_slice(&[0x78, 0x20]);
            out.extend_from_slice(&DICTIONARY_ID.to_be_bytes());
        }
        let block = headers.encode();
        for piece in block.chunks(MAX_STORED).chain([&[][..]]) {
            let length = u16::try_from(piece.len()).unwrap_or(u16::MAX);
            out.push(0); // Not the last, stored.
            out.extend_from_slice(&length.to_le_bytes());
            out.extend_from_slice(&(!length).to_le_bytes());
            out.extend_from_slice(piece);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dictionary_is_the_protocols() {
        assert_eq!(DICTIONARY.len(), 1423);
        let (a, b) = DICTIONARY.iter().fold((1_u32, 0_u32), |(a, b), byte| {
            let a = (a + u32::from(*byte)) % 65_521;
            (a, (b + a) % 65_521)
        });
        assert_eq!(b << 16 | a, DICTIONARY_ID);
        assert_eq!(u16::from_be_bytes([0x78, 0x20]) % 31, 0, "the check bits of a zlib stream");
    }

    #[test]
    fn blocks_that_are_no_headers_are_refused() {
        #[track_caller]
        fn check(block: &[u8], want: Option<&[(&str, &str)]>) {
            assert_eq!(Headers::parse(block), want.map(Headers::of), "{block:?}");
        }
        check(&[0, 0, 0, 0], Some(&[]));
        check(&[0, 0, 0, 1, 0, 0, 0, 1, b'A', 0, 0, 0, 0], Some(&[("a", "")]));
        check(&[0, 0, 0, 1, 0, 0, 0, 1, b'a', 0, 0, 0, 2, b'b'], None);
        check(&[0, 0, 0, 0, 0], None);
        check(&[0xff, 0xff, 0xff, 0xff], None);
        check(&[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff], None);
        check(&[0, 0, 0], None);
    }

    #[test]
    fn names_have_no_case_and_values_may_be_several() {
        let headers = Headers::of(&[("streamType", "data"), ("x", "a\0b")]);
        assert_eq!(headers.get("StreamType"), Some("data"));
        assert_eq!(headers.get("X"), Some("a"));
        assert_eq!(headers.get("y"), None);
    }
}
