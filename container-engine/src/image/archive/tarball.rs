//! The entries of an archive of images: names, links and data, within limits.
//!
//! Long names of GNU and PAX are read here and not by the `tar` crate, which would hold one of any length in memory.

use std::io::{self, BufRead, BufReader, Read};

use super::{ArchiveError, invalid};

/// Longest name.
const MAX_NAME: u64 = 4096;
/// Largest PAX header.
const MAX_PAX: u64 = 64 << 10;
/// Most entries.
const MAX_ENTRIES: usize = 100_000;
/// Largest window of zstd, log2: 8 MiB, what `zstd -19` uses.
const ZSTD_WINDOW: u32 = 23;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    /// Of either sort.
    Link,
    /// Nothing that matters here.
    Other,
}

/// One entry; its data is read from the reader that comes with it.
#[derive(Debug)]
pub(super) struct Header {
    /// Normalised: without `./` in front and `..` inside.
    pub name: String,
    pub kind: Kind,
    pub link: String,
    pub size: u64,
}

/// The archive's bytes, decompressed where it is under gzip or zstd.
pub(super) fn open<'r>(source: impl Read + 'r) -> io::Result<Box<dyn Read + 'r>> {
    let mut source = BufReader::with_capacity(64 << 10, source);
    let magic = source.fill_buf()?;
    if magic.starts_with(&[0x1f, 0x8b]) {
        return Ok(Box::new(flate2::bufread::MultiGzDecoder::new(source)));
    }
    if magic.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        let mut decoder = zstd::Decoder::with_buffer(source)?;
        decoder.window_log_max(ZSTD_WINDOW)?;
        return Ok(Box::new(decoder));
    }
    Ok(Box::new(source))
}

/// Calls `each` for every entry, with its data.
pub(super) fn entries(
    source: &mut dyn Read,
    mut each: impl FnMut(&Header, &mut dyn Read) -> Result<(), ArchiveError>,
) -> Result<(), ArchiveError> {
    let broken = |source| ArchiveError::Stream { action: "read", source };
    let mut archive = tar::Archive::new(source);
    let (mut long_name, mut long_link) = (None, None);
    for (n, entry) in archive.entries().map_err(broken)?.raw(true).enumerate() {
        if n >= MAX_ENTRIES {
            return Err(invalid(format!("it has over {MAX_ENTRIES} entries")));
        }
        let mut entry = entry.map_err(broken)?;
        let kind = entry.header().entry_type();
        let size = entry.size();
        match kind {
            tar::EntryType::GNULongName => long_name = Some(text(&mut entry, MAX_NAME)?),
            tar::EntryType::GNULongLink => long_link = Some(text(&mut entry, MAX_NAME)?),
            tar::EntryType::XHeader => {
                let pax = text(&mut entry, MAX_PAX)?;
                long_name = pax_value(&pax, "path").or(long_name);
                long_link = pax_value(&pax, "linkpath").or(long_link);
                if pax_value(&pax, "size").is_some_and(|size| size.parse::<u64>().is_err()) {
                    return Err(invalid("it has a file of a size that is no number"));
                }
            }
            _ => {
                let own = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
                let link = entry.link_name_bytes().map(|it| String::from_utf8_lossy(&it).into_owned());
                let kind = match kind {
                    tar::EntryType::Regular | tar::EntryType::Continuous => Kind::File,
                    tar::EntryType::Link | tar::EntryType::Symlink => Kind::Link,
                    _ => Kind::Other,
                };
                let name = long_name.take().unwrap_or(own);
                let link = long_link.take().or(link).unwrap_or_default();
                // A symbolic link is relative to its folder, a hard link to the archive.
                let from = if entry.header().entry_type() == tar::EntryType::Symlink { folder(&name) } else { "" };
                let header = Header { link: normal(from, &link), name: normal("", &name), kind, size };
                each(&header, &mut entry)?;
            }
        }
    }
    Ok(())
}

fn text(entry: &mut impl Read, max: u64) -> Result<String, ArchiveError> {
    let mut bytes = Vec::new();
    entry.take(max + 1).read_to_end(&mut bytes).map_err(|source| ArchiveError::Stream { action: "read", source })?;
    if bytes.len() as u64 > max {
        return Err(invalid(format!("it has a name or header of over {max} bytes")));
    }
    Ok(String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned())
}

/// The value of a key in a PAX header of `LENGTH KEY=VALUE\n` records.
fn pax_value(pax: &str, key: &str) -> Option<String> {
    pax.lines().find_map(|line| {
        let (_, record) = line.split_once(' ')?;
        record.strip_prefix(key)?.strip_prefix('=').map(str::to_owned)
    })
}

fn folder(name: &str) -> &str {
    name.trim_end_matches('/').rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// A path in the archive as a key: what would lead out of it is cut, so that it names nothing or something inside.
pub(super) fn normal(from: &str, path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in from.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => _ = parts.pop(),
            part => parts.push(part),
        }
    }
    parts.join("/")
}
