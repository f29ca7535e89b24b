//! The byte streams of an attached client or an execution.

use std::{
    io,
    path::PathBuf,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWrite},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
};

use super::{
    client::ShimError,
    wire::{self, Decoder, ExitStatus, Frame, HEADER, Kind, Message},
};

/// Most bytes of standard input in one frame.
const INPUT_FRAME: usize = 32 << 10;
/// Read at once.
const READ: usize = 64 << 10;

/// Frames of one connection.
#[derive(Debug)]
pub(super) struct FrameReader<S = UnixStream> {
    pub(super) socket: S,
    decoder: Decoder,
    buffer: Vec<u8>,
}

impl<S: tokio::io::AsyncRead + Unpin> FrameReader<S> {
    pub(super) fn new(socket: S) -> Self {
        Self { socket, decoder: Decoder::default(), buffer: Vec::new() }
    }

    /// The next frame; `None` at the end. Cancel-safe: what has been read stays in the decoder.
    pub(super) async fn next(&mut self) -> io::Result<Option<Frame>> {
        loop {
            let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
            if let Some(frame) = self.decoder.next_frame().map_err(invalid)? {
                return Ok(Some(frame));
            }
            self.buffer.clear();
            self.buffer.reserve(READ);
            if self.socket.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
            self.decoder.feed(&self.buffer);
        }
    }
}

/// The stdio of an execution, or a view of the container's.
#[derive(Debug)]
pub struct Session {
    /// Standard input and the terminal's size.
    pub input: SessionInput,
    /// Output and the exit code.
    pub output: SessionOutput,
}

impl Session {
    pub(super) fn new(reader: FrameReader, path: PathBuf) -> Self {
        let FrameReader { socket, decoder, buffer } = reader;
        let (read, write) = socket.into_split();
        let output = SessionOutput { reader: FrameReader { socket: read, decoder, buffer }, path, ended: false };
        Self { input: SessionInput { socket: write, waiting: Vec::new(), sent: 0, closed: false }, output }
    }

    /// Both ends, for two tasks.
    pub fn split(self) -> (SessionInput, SessionOutput) {
        (self.input, self.output)
    }
}

/// What a session's process says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Standard output, or the terminal's.
    Stdout(Bytes),
    /// Standard error.
    Stderr(Bytes),
    /// It has ended; nothing follows.
    Exit(ExitStatus),
}

/// The reading end of a session.
#[derive(Debug)]
pub struct SessionOutput {
    reader: FrameReader<OwnedReadHalf>,
    path: PathBuf,
    ended: bool,
}

impl SessionOutput {
    /// The next piece of output; `None` after the exit. An error: the shim was killed, or cut this reader for its
    /// slowness (the message says which). Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Output>, ShimError> {
        while !self.ended {
            let broken = |source| ShimError::Broken { path: self.path.clone(), source };
            let frame = self.reader.next().await.map_err(broken)?;
            let Some(frame) = frame else {
                return Err(broken(io::Error::from(io::ErrorKind::UnexpectedEof)));
            };
            match frame.kind {
                Kind::Stdout => return Ok(Some(Output::Stdout(frame.payload.into()))),
                Kind::Stderr => return Ok(Some(Output::Stderr(frame.payload.into()))),
                Kind::Message => match serde_json::from_slice(&frame.payload) {
                    Ok(Message::Exit(exit)) => {
                        self.ended = true;
                        return Ok(Some(Output::Exit(exit)));
                    }
                    Ok(Message::Cut(why)) => return Err(broken(io::Error::other(why))),
                    _ => {}
                },
                Kind::Stdin | Kind::CloseStdin | Kind::Resize => {}
            }
        }
        Ok(None)
    }
}

/// The writing end of a session: an [`AsyncWrite`] that waits when the process does not read. `shutdown` ends standard
/// input, and only that; dropping it does the same for an execution.
#[derive(Debug)]
pub struct SessionInput {
    socket: OwnedWriteHalf,
    /// Encoded, not yet with the shim.
    waiting: Vec<u8>,
    sent: usize,
    closed: bool,
}

impl SessionInput {
    /// Size of the terminal, in order with the bytes around it.
    pub async fn resize(&mut self, rows: u16, columns: u16) -> io::Result<()> {
        std::future::poll_fn(|cx| self.poll_sent(cx)).await?;
        let ([a, b], [c, d]) = (rows.to_be_bytes(), columns.to_be_bytes());
        self.push(Kind::Resize, &[a, b, c, d]);
        std::future::poll_fn(|cx| self.poll_sent(cx)).await
    }

    fn push(&mut self, kind: Kind, payload: &[u8]) {
        self.waiting.reserve(HEADER + payload.len());
        self.waiting.extend_from_slice(&wire::header(kind, payload.len()));
        self.waiting.extend_from_slice(payload);
    }

    fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.waiting.len() {
            let written = ready!(Pin::new(&mut self.socket).poll_write(cx, &self.waiting[self.sent..]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += written;
        }
        self.waiting.clear();
        self.sent = 0;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for SessionInput {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        ready!(this.poll_sent(cx))?;
        let taken = &bytes[..bytes.len().min(INPUT_FRAME)];
        if !taken.is_empty() {
            this.push(Kind::Stdin, taken);
            // Taken either way: what the socket has no room for goes first at the next call.
            if let Poll::Ready(Err(error)) = this.poll_sent(cx) {
                return Poll::Ready(Err(error));
            }
        }
        Poll::Ready(Ok(taken.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_sent(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.closed {
            this.closed = true;
            this.push(Kind::CloseStdin, &[]);
        }
        this.poll_sent(cx)
    }
}
