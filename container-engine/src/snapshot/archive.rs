//! Reads the headers of a tar archive: ustar, GNU and PAX, as written by every tool that makes images.
//!
//! Always true:
//! - Nothing is larger in memory than the limits below say, whatever the archive claims.
//! - Names are bytes as they stand in the archive; whether they may be used is `tree`'s to say.
//! - After `next` the data of the entry is read with `data`; what was not read is skipped by the next `next`.
//!
//! Differs from POSIX where Go's reader does, which made most images: global PAX headers are passed over, and entries
//! that are no regular files have no data whatever their size field says.

use std::io::{self, BufRead};

use super::error::{Fault, FaultKind};

/// Unit of the format.
const BLOCK: usize = 512;
/// Largest PAX header.
const MAX_PAX: u64 = 1 << 20;
/// Largest GNU long name.
const MAX_LONG: u64 = 64 << 10;
/// Most pieces of a sparse file.
const MAX_PIECES: usize = 128 << 10;
/// Most extended attributes of an entry.
const MAX_XATTRS: usize = 1024;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Regular file.
    File,
    /// Hard link to `link`.
    Hard,
    /// Symbolic link to `link`.
    Symbolic,
    /// Character device.
    Character,
    /// Block device.
    Block,
    /// Folder.
    Folder,
    /// Named pipe.
    Fifo,
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Name, as written.
    pub path: Vec<u8>,
    /// Target of a link.
    pub link: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permissions with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Seconds since 1970.
    pub mtime: i64,
    /// And nanoseconds.
    pub mtime_ns: u32,
    /// Device numbers.
    pub device: (u32, u32),
    /// Bytes of the file.
    pub size: u64,
    /// Where data goes, `(offset, length)` in ascending order; `None`: all of it from the start.
    pub pieces: Option<Vec<(u64, u64)>>,
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The reader.
#[derive(Debug)]
pub struct Archive<R> {
    input: R,
    /// Bytes of the current entry not yet read.
    left: u64,
    /// Zeros after them.
    padding: u64,
    /// Bytes taken from `input`.
    position: u64,
}

/// What the PAX and GNU headers before an entry said.
#[derive(Debug, Default)]
struct Extra {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: Sparse,
}

#[derive(Debug, Default)]
struct Sparse {
    major: u64,
    minor: u64,
    name: Option<Vec<u8>>,
    real_size: Option<u64>,
    /// Offsets and lengths, alternately, of versions 0.0 and 0.1.
    numbers: Vec<u64>,
    any: bool,
}

fn fault(kind: FaultKind, message: impl Into<String>) -> Fault {
    Fault { kind, entry: String::new(), message: message.into() }
}

fn corrupt(message: impl Into<String>) -> Fault {
    fault(FaultKind::Corrupt, message)
}

fn truncated() -> Fault {
    fault(FaultKind::Truncated, "the archive ends in the middle of an entry; pull the layer again")
}

impl<R: BufRead> Archive<R> {
    /// Reads from here.
    pub fn new(input: R) -> Self {
        Self { input, left: 0, padding: 0, position: 0 }
    }

    /// The next entry; `None` at the end of the archive.
    pub fn next(&mut self) -> Result<Option<Entry>, Fault> {
        self.skip_data()?;
        let mut extra = Extra::default();
        loop {
            let mut block = [0; BLOCK];
            if !self.block(&mut block)? {
                return Ok(None);
            }
            if block.iter().all(|byte| *byte == 0) {
                // One block of zeros or two: what follows the end belongs to the stream, not to the archive.
                return Ok(None);
            }
            check_sum(&block)?;
            let size = number(&block[124..136], "size")?;
            match block[156] {
                b'x' => {
                    let body = self.body(size, MAX_PAX, "PAX header")?;
                    extra.pax(&body)?;
                }
                b'L' => extra.path = Some(c_string(&self.body(size, MAX_LONG, "long name")?).to_vec()),
                b'K' => extra.link = Some(c_string(&self.body(size, MAX_LONG, "long link")?).to_vec()),
                // Global header, volume label, continued file name list: nothing of theirs becomes a file.
                b'g' | b'V' => self.skip(size)?,
                _ => return self.entry(&block, size, extra).map(Some),
            }
        }
    }

    fn entry(&mut self, block: &[u8; BLOCK], size: u64, extra: Extra) -> Result<Entry, Fault> {
        let gnu = &block[257..265] == b"ustar  \0";
        let ustar = !gnu && &block[257..262] == b"ustar";
        let mut path = c_string(&block[..100]).to_vec();
        let prefix = c_string(&block[345..500]);
        if ustar && !prefix.is_empty() {
            path = [prefix, b"/", &path].concat();
        }
        let path = extra.sparse.name.clone().or(extra.path).unwrap_or(path);
        let link = extra.link.unwrap_or_else(|| c_string(&block[157..257]).to_vec());
        let kind = match block[156] {
            b'0' | 0 | b'7' if path.ends_with(b"/") => Kind::Folder,
            b'0' | 0 | b'7' | b'S' => Kind::File,
            b'1' => Kind::Hard,
            b'2' => Kind::Symbolic,
            b'3' => Kind::Character,
            b'4' => Kind::Block,
            b'5' => Kind::Folder,
            b'6' => Kind::Fifo,
            other => {
                let message = format!(
                    "entries of type {:?} are of no file system; build the layer with another tool",
                    other as char
                );
                return Err(named(&path, fault(FaultKind::Unsupported, message)));
            }
        };
        let field = |range: std::ops::Range<usize>, what| number(&block[range], what).map_err(|it| named(&path, it));
        let stored = if kind == Kind::File { extra.size.unwrap_or(size) } else { 0 };
        self.left = stored;
        self.padding = stored.wrapping_neg() % BLOCK as u64;
        let device = match kind {
            Kind::Character | Kind::Block => (field(329..337, "device")?, field(337..345, "device")?),
            _ => (0, 0),
        };
        let device = u32::try_from(device.0).ok().zip(u32::try_from(device.1).ok());
        let mtime = match extra.mtime {
            Some(mtime) => mtime,
            None => (signed(&block[136..148]).map_err(|it| named(&path, it))?, 0),
        };
        let mut entry = Entry {
            mode: u32::try_from(field(100..108, "mode")? & 0o7777).unwrap_or(0),
            uid: extra.uid.map_or_else(|| field(108..116, "uid"), Ok)?,
            gid: extra.gid.map_or_else(|| field(116..124, "gid"), Ok)?,
            mtime: mtime.0,
            mtime_ns: mtime.1,
            device: device.ok_or_else(|| named(&path, corrupt("a device number is out of range")))?,
            size: stored,
            pieces: None,
            xattrs: extra.xattrs,
            path,
            link,
            kind,
        };
        let sparse = match (kind, block[156]) {
            (Kind::File, b'S') => Some(self.old_gnu(block)?),
            (Kind::File, _) if extra.sparse.any => Some(self.pax_sparse(&extra.sparse)?),
            _ => None,
        };
        if let Some((pieces, real_size)) = sparse {
            check_pieces(&pieces, real_size, self.left).map_err(|it| named(&entry.path, it))?;
            (entry.pieces, entry.size) = (Some(pieces), real_size);
        }
        Ok(entry)
    }

    /// GNU's old form: four pieces in the header, the others in blocks that follow.
    fn old_gnu(&mut self, header: &[u8; BLOCK]) -> Result<(Vec<(u64, u64)>, u64), Fault> {
        let mut pieces = Vec::new();
        let mut take = |bytes: &[u8]| -> Result<(), Fault> {
            for piece in bytes.chunks_exact(24) {
                if piece[0] != 0 {
                    pieces.push((number(&piece[..12], "sparse")?, number(&piece[12..], "sparse")?));
                }
            }
            if pieces.len() > MAX_PIECES { Err(too_many_pieces()) } else { Ok(()) }
        };
        take(&header[386..482])?;
        let real_size = number(&header[483..495], "real size")?;
        let mut more = header[482] != 0;
        while more {
            let mut block = [0; BLOCK];
            if !self.block(&mut block)? {
                return Err(truncated());
            }
            take(&block[..504])?;
            more = block[504] != 0;
        }
        Ok((pieces, real_size))
    }

    /// PAX versions 0.0 and 0.1 (in the header) and 1.0 (in front of the data).
    fn pax_sparse(&mut self, sparse: &Sparse) -> Result<(Vec<(u64, u64)>, u64), Fault> {
        let real_size = sparse.real_size.ok_or_else(|| corrupt("a sparse file without its size"))?;
        if (sparse.major, sparse.minor) == (0, 0) || (sparse.major, sparse.minor) == (0, 1) {
            if sparse.numbers.len() % 2 == 1 {
                return Err(corrupt("an odd map of a sparse file"));
            }
            return Ok((sparse.numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect(), real_size));
        }
        if (sparse.major, sparse.minor) != (1, 0) {
            let message = format!("sparse files of version {}.{} are not known", sparse.major, sparse.minor);
            return Err(fault(FaultKind::Unsupported, message));
        }
        let before = self.left;
        let count = self.map_line()?;
        let count = usize::try_from(count).ok().filter(|count| *count <= MAX_PIECES).ok_or_else(too_many_pieces)?;
        let mut pieces = Vec::new();
        for _ in 0..count {
            pieces.push((self.map_line()?, self.map_line()?));
        }
        let pad = (before - self.left).wrapping_neg() % BLOCK as u64;
        let pad = pad.min(self.left);
        self.skip(0)?;
        self.advance(pad)?;
        self.left -= pad;
        Ok((pieces, real_size))
    }

    /// One decimal line of the map in front of the data.
    fn map_line(&mut self) -> Result<u64, Fault> {
        let mut value = 0_u64;
        for digits in 0..21 {
            let byte = match self.data()? {
                [] => return Err(corrupt("the map of a sparse file ends early")),
                bytes => bytes[0],
            };
            self.consume(1);
            match byte {
                b'\n' if digits > 0 => return Ok(value),
                b'0'..=b'9' => {
                    let next = value.checked_mul(10).and_then(|it| it.checked_add(u64::from(byte - b'0')));
                    value = next.ok_or_else(|| corrupt("a number in the map of a sparse file is too large"))?;
                }
                _ => break,
            }
        }
        Err(corrupt("the map of a sparse file is no list of numbers"))
    }

    /// What is at hand of the entry's data; empty at its end. Take it with `consume`.
    pub fn data(&mut self) -> Result<&[u8], Fault> {
        if self.left == 0 {
            return Ok(&[]);
        }
        let left = self.left;
        let bytes = self.input.fill_buf().map_err(read_fault)?;
        if bytes.is_empty() {
            return Err(truncated());
        }
        let take = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        Ok(&bytes[..take])
    }

    /// Takes bytes that `data` showed.
    pub fn consume(&mut self, bytes: usize) {
        self.input.consume(bytes);
        self.left -= bytes as u64;
        self.position += bytes as u64;
    }

    /// What it reads from.
    pub fn into_inner(self) -> R {
        self.input
    }

    /// Reads what follows the archive, up to `max` bytes: it belongs to the digest. Whether it ended there.
    pub fn drain(&mut self, max: u64) -> Result<bool, Fault> {
        let start = self.position;
        while self.position - start <= max {
            let bytes = self.input.fill_buf().map_err(read_fault)?.len();
            if bytes == 0 {
                return Ok(true);
            }
            self.input.consume(bytes);
            self.position += bytes as u64;
        }
        Ok(false)
    }

    /// A whole block; false at the very end.
    fn block(&mut self, block: &mut [u8; BLOCK]) -> Result<bool, Fault> {
        let mut have = 0;
        while have < BLOCK {
            let bytes = self.input.fill_buf().map_err(read_fault)?;
            if bytes.is_empty() {
                return if have == 0 { Ok(false) } else { Err(truncated()) };
            }
            let take = bytes.len().min(BLOCK - have);
            block[have..have + take].copy_from_slice(&bytes[..take]);
            self.input.consume(take);
            self.position += take as u64;
            have += take;
        }
        Ok(true)
    }

    /// The body of a header that describes the next entry.
    fn body(&mut self, size: u64, max: u64, what: &str) -> Result<Vec<u8>, Fault> {
        if size > max {
            return Err(fault(FaultKind::Limit, format!("a {what} of {size} bytes is over the limit of {max}")));
        }
        (self.left, self.padding) = (size, size.wrapping_neg() % BLOCK as u64);
        let mut body = Vec::new();
        loop {
            let bytes = self.data()?;
            if bytes.is_empty() {
                self.skip_data()?;
                return Ok(body);
            }
            body.extend_from_slice(bytes);
            let taken = bytes.len();
            self.consume(taken);
        }
    }

    fn skip(&mut self, size: u64) -> Result<(), Fault> {
        if size > 0 {
            (self.left, self.padding) = (size, size.wrapping_neg() % BLOCK as u64);
            self.skip_data()?;
        }
        Ok(())
    }

    fn skip_data(&mut self) -> Result<(), Fault> {
        let (left, padding) = (std::mem::take(&mut self.left), std::mem::take(&mut self.padding));
        self.advance(left)?;
        self.advance(padding)
    }

    fn advance(&mut self, mut bytes: u64) -> Result<(), Fault> {
        while bytes > 0 {
            let have = self.input.fill_buf().map_err(read_fault)?.len();
            if have == 0 {
                return Err(truncated());
            }
            let take = usize::try_from(bytes).unwrap_or(usize::MAX).min(have);
            self.input.consume(take);
            self.position += take as u64;
            bytes -= take as u64;
        }
        Ok(())
    }
}

impl Extra {
    /// Records `LENGTH KEY=VALUE\n`.
    fn pax(&mut self, mut body: &[u8]) -> Result<(), Fault> {
        while !body.is_empty() {
            let wrong = || corrupt("a PAX header that is no list of records");
            let space = body.iter().take(10).position(|byte| *byte == b' ').ok_or_else(wrong)?;
            let length = decimal(&body[..space]).and_then(|it| usize::try_from(it).ok()).ok_or_else(wrong)?;
            let record = body.get(space + 1..length).and_then(|it| it.strip_suffix(b"\n")).ok_or_else(wrong)?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(wrong)?;
            self.record(&record[..equals], &record[equals + 1..])?;
            body = &body[length..];
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), Fault> {
        let word = || corrupt(format!("the PAX record {:?} has no number", String::from_utf8_lossy(key)));
        let integer = |value: &[u8]| decimal(value).ok_or_else(word);
        // An empty value takes an earlier one back.
        let text = |value: &[u8]| (!value.is_empty()).then(|| value.to_vec());
        match key {
            b"path" => self.path = text(value),
            b"linkpath" => self.link = text(value),
            b"size" => self.size = Some(integer(value)?),
            b"uid" => self.uid = Some(integer(value)?),
            b"gid" => self.gid = Some(integer(value)?),
            b"mtime" => self.mtime = Some(time(value).ok_or_else(word)?),
            b"GNU.sparse.major" => (self.sparse.major, self.sparse.any) = (integer(value)?, true),
            b"GNU.sparse.minor" => (self.sparse.minor, self.sparse.any) = (integer(value)?, true),
            b"GNU.sparse.name" => self.sparse.name = text(value),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => {
                (self.sparse.real_size, self.sparse.any) = (Some(integer(value)?), true);
            }
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => self.sparse.numbers.push(integer(value)?),
            b"GNU.sparse.map" => {
                let numbers: Result<Vec<_>, _> =
                    value.split(|byte| *byte == b',').filter(|it| !it.is_empty()).map(integer).collect();
                self.sparse.numbers = numbers?;
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.retain(|(other, _)| other != name);
                    if self.xattrs.len() == MAX_XATTRS {
                        return Err(fault(FaultKind::Limit, format!("more than {MAX_XATTRS} extended attributes")));
                    }
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        if self.sparse.numbers.len() > 2 * MAX_PIECES { Err(too_many_pieces()) } else { Ok(()) }
    }
}

fn too_many_pieces() -> Fault {
    fault(FaultKind::Limit, format!("a sparse file of more than {MAX_PIECES} pieces"))
}

/// In order, within the file, and as much as is stored.
fn check_pieces(pieces: &[(u64, u64)], real_size: u64, stored: u64) -> Result<(), Fault> {
    let mut end = 0_u64;
    let mut sum = 0_u64;
    for (offset, length) in pieces {
        let next = offset.checked_add(*length).filter(|next| *offset >= end && *next <= real_size);
        end = next.ok_or_else(|| corrupt("the map of a sparse file is out of order or beyond its end"))?;
        sum += length; // No more than `end`.
    }
    if sum == stored { Ok(()) } else { Err(corrupt("the map of a sparse file does not fit its data")) }
}

/// Adds the entry's name to what went wrong.
pub(super) fn named(path: &[u8], fault: Fault) -> Fault {
    if !fault.entry.is_empty() {
        return fault;
    }
    let name = String::from_utf8_lossy(&path[..path.len().min(512)]).into_owned();
    Fault { entry: name, ..fault }
}

fn read_fault(error: io::Error) -> Fault {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<super::stream::StreamFault>()) {
        Some(inner) => inner.0.clone(),
        None if error.kind() == io::ErrorKind::UnexpectedEof => truncated(),
        None => fault(FaultKind::Io, format!("the archive cannot be read: {error}")),
    }
}

fn c_string(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len())]
}

fn check_sum(block: &[u8; BLOCK]) -> Result<(), Fault> {
    let wanted = number(&block[148..156], "checksum")?;
    let bytes = block.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { b' ' } else { *byte });
    let (mut unsigned, mut signed) = (0_i64, 0_i64); // Some old tools added signed bytes.
    for byte in bytes {
        unsigned += i64::from(byte);
        signed += i64::from(byte.cast_signed());
    }
    let found = i64::try_from(wanted).unwrap_or(-1);
    if found == unsigned || found == signed {
        Ok(())
    } else {
        Err(corrupt("no tar archive, or a damaged one: the checksum of a header is wrong"))
    }
}

/// Octal text, or big-endian binary where the first bit is set.
fn number(field: &[u8], what: &str) -> Result<u64, Fault> {
    let wrong = || corrupt(format!("the {what} of a header is no number"));
    if field[0] & 0x80 != 0 {
        if field[0] & 0x40 != 0 {
            return Err(corrupt(format!("the {what} of a header is negative")));
        }
        let mut value = u64::from(field[0] & 0x3f);
        for byte in &field[1..] {
            if value >> 56 != 0 {
                return Err(wrong());
            }
            value = value << 8 | u64::from(*byte);
        }
        return Ok(value);
    }
    let text = c_string(field).trim_ascii();
    let mut value = 0_u64;
    for byte in text {
        let digit = u64::from(byte.wrapping_sub(b'0'));
        if digit > 7 || value >> 61 != 0 {
            return Err(wrong());
        }
        value = value << 3 | digit;
    }
    Ok(value)
}

/// A time, which may be before 1970 in binary.
fn signed(field: &[u8]) -> Result<i64, Fault> {
    if field[0] == 0xff {
        let mut value = -1_i64;
        for byte in &field[field.len() - 8..] {
            value = value << 8 | i64::from(*byte);
        }
        return Ok(value);
    }
    i64::try_from(number(field, "time")?).map_err(|_| corrupt("the time of a header is out of range"))
}

fn decimal(text: &[u8]) -> Option<u64> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    digits.then(|| std::str::from_utf8(text).ok()?.parse().ok()).flatten()
}

/// Decimal seconds with a fraction, floor and nanoseconds.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let seconds = i64::try_from(decimal(whole.as_bytes())?).ok()?;
    let nanos =
        fraction.bytes().chain(std::iter::repeat(b'0')).take(9).fold(0, |sum, it| sum * 10 + u32::from(it - b'0'));
    Some(match (negative, nanos) {
        (false, _) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanos),
    })
}
