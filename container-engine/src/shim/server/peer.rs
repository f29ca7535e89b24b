//! One connected client: bounded in both directions.

use std::{
    io::{self, Read},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    time::Instant,
};

use rustix::{event::epoll::EventFlags, io::Errno};

use crate::shim::{
    spec::Attach,
    wire::{self, Decoder, Kind, Message},
};

/// A client that is this far behind is full: what it reads waits for it, or it is cut.
pub(super) const FULL: usize = 64 << 10;
/// A follower of events that is this far behind has stopped reading.
const MAX_QUEUE: usize = 1 << 20;

/// What a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Nothing was asked yet.
    New,
    /// Waits for the answer to its one request.
    Asking,
    /// Hears every event.
    Follower,
    /// Stdio of this process.
    Stream(u32, Attach),
}

/// A connected client.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools)] // Independent of each other: a peer may be at its end, gated and closing at once.
pub(super) struct Peer {
    socket: UnixStream,
    pub(super) decoder: Decoder,
    pub(super) role: Role,
    queue: Vec<u8>,
    sent: usize,
    /// Since when it has been full.
    pub(super) full_since: Option<Instant>,
    /// To be closed once it has everything.
    pub(super) closing: bool,
    /// It sends nothing more.
    pub(super) at_end: bool,
    /// Broken.
    pub(super) gone: bool,
    /// Nothing is read from it while the process does not read.
    pub(super) gated: bool,
    /// As epoll knows it.
    pub(super) flags: EventFlags,
}

impl Peer {
    pub(super) fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            decoder: Decoder::default(),
            role: Role::New,
            queue: Vec::new(),
            sent: 0,
            full_since: None,
            closing: false,
            at_end: false,
            gone: false,
            gated: false,
            flags: EventFlags::IN,
        })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// What epoll should watch for.
    pub(super) fn wanted(&self) -> EventFlags {
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, !self.at_end && !self.gated);
        flags.set(EventFlags::OUT, self.backlog() > 0);
        flags
    }

    pub(super) fn backlog(&self) -> usize {
        self.queue.len() - self.sent
    }

    /// Sends a message.
    pub(super) fn tell(&mut self, message: &Message) {
        let frame = wire::message(message);
        self.push(&[&frame]);
    }

    /// Sends output.
    pub(super) fn output(&mut self, kind: Kind, bytes: &[u8]) {
        self.push(&[&wire::header(kind, bytes.len()), bytes]);
    }

    fn push(&mut self, parts: &[&[u8]]) {
        if self.gone || self.closing {
            return;
        }
        let slices: Vec<_> = parts.iter().map(|part| io::IoSlice::new(part)).collect();
        let total: usize = parts.iter().map(|part| part.len()).sum();
        let mut written = 0;
        if self.backlog() == 0 {
            // In the usual case the socket takes all of it, and nothing is kept.
            match rustix::io::writev(&self.socket, &slices) {
                Ok(n) => written = n,
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(_) => self.gone = true,
            }
        }
        if written < total && !self.gone {
            for part in parts {
                let skip = written.min(part.len());
                written -= skip;
                self.queue.extend_from_slice(&part[skip..]);
            }
        }
        self.gone |= self.backlog() > MAX_QUEUE;
        self.note_fullness();
    }

    /// Sends what waits.
    pub(super) fn pump(&mut self) {
        while self.backlog() > 0 && !self.gone {
            match rustix::io::write(&self.socket, &self.queue[self.sent..]) {
                Ok(n) => self.sent += n,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => self.gone = true,
            }
        }
        if self.backlog() == 0 {
            self.queue = Vec::new();
            self.sent = 0;
            self.gone |= self.closing;
        } else if self.sent > FULL {
            self.queue.drain(..self.sent);
            self.sent = 0;
        }
        self.note_fullness();
    }

    fn note_fullness(&mut self) {
        // It has to get well below the mark, so that a reader at a trickle does not hold up the others for ever.
        if self.backlog() >= FULL {
            self.full_since.get_or_insert_with(Instant::now);
        } else if self.backlog() <= FULL / 4 {
            self.full_since = None;
        }
    }

    /// Closes it once it has everything.
    pub(super) fn finish(&mut self) {
        self.closing = true;
        self.gone |= self.backlog() == 0;
    }

    /// Takes what has come.
    pub(super) fn read(&mut self, buffer: &mut [u8]) {
        match self.socket.read(buffer) {
            Ok(0) => self.at_end = true,
            Ok(n) => self.decoder.feed(&buffer[..n]),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => self.gone = true,
        }
    }
}
