//! Logs of containers in CRI format: written, rotated, compressed, read across rotations.
//!
//! `N.log` is being written; `N.log.STAMP` were, oldest first by name; `N.log.STAMP.gz` are those compressed. A record is
//! `TIME stdout|stderr F|P TEXT\n`: `F` ends a line of the container's, `P` does not (a piece of 16 KiB, or the end of
//! output without a line break).
//!
//! Always true:
//! - The records are what was written, byte for byte, however it arrived; only a full disk loses any, and counts them.
//! - A rotated file is never written again, so a reader that has read it to its end after it was renamed has all of it.
//! - Reading needs memory for a few records, whatever the size of the files.
//!
//! Elsewhere: who writes (`shim`), who reads (`container`).

mod chain;
mod compress;
mod follow;
mod line;
mod reader;
mod writer;

pub use compress::compress_rotated;
pub use follow::Reader;
pub use line::{Entry, MAX_TEXT, Stream, parse, rfc3339};
pub use reader::{ReadError, ReadOptions};
pub use writer::Writer;

#[cfg(test)]
mod tests;
