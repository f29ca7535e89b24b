//! A stream of bytes between blocking code and async code, part by part; a failure of the one side breaks the other, so that
//! half an archive is never taken for a whole one.

use std::io::{self, Read, Write};

use bytes::Bytes;
use tokio::sync::mpsc;

/// Parts on their way.
const IN_FLIGHT: usize = 4;
/// Bytes of a part.
const PART: usize = 128 << 10;

/// A part, or why no more come.
pub type Part = io::Result<Bytes>;

/// Both ends of a stream.
pub fn pipe() -> (mpsc::Sender<Part>, mpsc::Receiver<Part>) {
    mpsc::channel(IN_FLIGHT)
}

/// Collects what is written into parts. Flush it at the end. Blocking.
pub struct Writing {
    to: mpsc::Sender<Part>,
    buffer: Vec<u8>,
}

impl Writing {
    /// Into a stream.
    pub fn new(to: mpsc::Sender<Part>) -> Self {
        Self { to, buffer: Vec::with_capacity(PART) }
    }
}

impl Write for Writing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= PART {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let part = Bytes::from(std::mem::replace(&mut self.buffer, Vec::with_capacity(PART)));
        self.to.blocking_send(Ok(part)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// Tells whoever reads that no whole stream will come.
pub async fn break_off(to: &mpsc::Sender<Part>) {
    // Whoever went away has a reason of its own.
    let _ = to.send(Err(io::Error::other("it broke off"))).await;
}

/// A stream as a reader. Blocking.
pub struct Reading {
    from: mpsc::Receiver<Part>,
    rest: Bytes,
}

impl Reading {
    /// Out of a stream.
    pub fn new(from: mpsc::Receiver<Part>) -> Self {
        Self { from, rest: Bytes::new() }
    }
}

impl Read for Reading {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.from.blocking_recv() {
                None => return Ok(0),
                Some(part) => self.rest = part?,
            }
        }
        let n = self.rest.len().min(into.len());
        into[..n].copy_from_slice(&self.rest.split_to(n));
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_a_break_is_seen() {
        let (to, from) = pipe();
        let writing = std::thread::spawn(move || {
            let mut writing = Writing::new(to.clone());
            writing.write_all(&vec![7; 3 * PART + 1]).unwrap();
            writing.flush().unwrap();
            to.blocking_send(Err(io::Error::other("gone"))).unwrap();
        });
        let mut all = Vec::new();
        let end = Reading::new(from).read_to_end(&mut all);
        assert!(end.is_err());
        assert_eq!(all, vec![7; 3 * PART + 1]);
        writing.join().unwrap();
        let (to, from) = pipe();
        drop(from);
        let mut writing = Writing::new(to);
        assert!(writing.write_all(&vec![7; PART]).is_err());
    }
}
