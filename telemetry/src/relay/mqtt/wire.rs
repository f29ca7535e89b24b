//! The connection to the broker: bytes both ways, with and without TLS.
//!
//! Always true: dropping any future of this module in the middle loses no byte in either direction (the handshake's
//! aside), so it may stand in a `select!`.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::{Buf, BytesMut};
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::{
    options::Options,
    packet::{self, Decoder, Packet},
    problem::Problem,
};

/// From the first packet of TCP to the broker's CONNACK.
const PATIENCE: Duration = Duration::from_secs(20);
/// What the broker is told; it waits half as long again.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// Silence after which the broker is asked whether it is there, and after which it is not.
const ASK_AFTER: Duration = Duration::from_secs(30);
const GONE_AFTER: Duration = Duration::from_secs(50);
const READ_BYTES: usize = 16 << 10;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection that the broker has accepted.
pub(super) struct Wire {
    stream: Box<dyn Stream>,
    decoder: Decoder,
    input: BytesMut,
    /// To be written; `turn` does.
    pub output: BytesMut,
    /// Written, but perhaps still in the TLS layer.
    flush: bool,
    scratch: Box<[u8]>,
    heard: Instant,
    said: Instant,
    /// A PINGREQ is unanswered.
    asked: bool,
}

impl Wire {
    /// Connects and logs in.
    pub async fn open(options: &Options, epoch: u64) -> Result<Self, Problem> {
        // Files are read now, so that renewed ones count. Short, but it is the disk.
        let read = options.clone();
        let tls = tokio::task::spawn_blocking(move || read.tls_config()).await;
        let tls = tls.map_err(|error| Problem::Io(io::Error::other(error)))??;
        match tokio::time::timeout(PATIENCE, Self::log_in(options, epoch, tls)).await {
            Ok(result) => result,
            Err(_) => Err(Problem::NoAnswer),
        }
    }

    async fn log_in(options: &Options, epoch: u64, tls: Option<Arc<rustls::ClientConfig>>) -> Result<Self, Problem> {
        let (host, port) = options.address();
        let stream = TcpStream::connect((host.as_str(), port)).await.map_err(Problem::Connect)?;
        stream.set_nodelay(true).map_err(Problem::Io)?;
        let stream: Box<dyn Stream> = match tls {
            None => Box::new(stream),
            Some(config) => {
                let name = ServerName::try_from(host).map_err(|error| Problem::Io(io::Error::other(error)))?;
                let connecting = tokio_rustls::TlsConnector::from(config).connect(name, stream);
                Box::new(connecting.await.map_err(Problem::before_greeting)?)
            }
        };
        let mut it = Self {
            stream,
            decoder: Decoder::default(),
            input: BytesMut::new(),
            output: BytesMut::new(),
            flush: false,
            scratch: vec![0; READ_BYTES].into(),
            heard: Instant::now(),
            said: Instant::now(),
            asked: false,
        };
        let client = format!("edge-agent-{}-{epoch}", options.board);
        let keep_alive = u16::try_from(KEEP_ALIVE.as_secs()).unwrap_or(u16::MAX);
        packet::connect(&mut it.output, &client, options.login(), keep_alive);
        loop {
            it.turn().await.map_err(Problem::before_greeting)?;
            match it.next().map_err(Problem::Malformed)? {
                Some(Packet::ConnAck(0)) => return Ok(it),
                Some(Packet::ConnAck(code)) => return Err(Problem::Refused(code)),
                Some(_) => return Err(Problem::NotGreeted),
                None => {}
            }
        }
    }

    /// The next packet of those that came.
    pub fn next(&mut self) -> Result<Option<Packet>, packet::Malformed> {
        let packet = self.decoder.next(&mut self.input)?;
        self.asked &= packet != Some(Packet::PingResp);
        Ok(packet)
    }

    /// Whether everything has been handed to the kernel.
    pub fn is_written(&self) -> bool {
        self.output.is_empty() && !self.flush
    }

    /// Asks a broker that has been silent for long whether it is there. To be called every few seconds.
    pub fn keep_alive(&mut self) -> Result<(), Problem> {
        if self.heard.elapsed() >= GONE_AFTER {
            return Err(Problem::NoAnswer);
        }
        if !self.asked && self.heard.elapsed().max(self.said.elapsed()) >= ASK_AFTER {
            self.asked = true;
            self.output.extend_from_slice(&packet::PINGREQ);
        }
        Ok(())
    }

    /// Writes what there is to write and reads what has come; returns as soon as something of it was done.
    pub async fn turn(&mut self) -> io::Result<()> {
        poll_fn(|context| self.poll_turn(context)).await
    }

    fn poll_turn(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Reading first: a broker that does not take more until its acknowledgements are read must not block both ways.
        let read = self.poll_read(context)?;
        let written = self.poll_write(context)?;
        if read.is_ready() || written.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut buffer = ReadBuf::new(&mut self.scratch);
        ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer))?;
        if buffer.filled().is_empty() {
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        self.heard = Instant::now();
        self.input.extend_from_slice(buffer.filled());
        Poll::Ready(Ok(()))
    }

    /// Pending also where there is nothing to write.
    fn poll_write(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.output.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(context, &self.output))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.output.advance(written);
            self.said = Instant::now();
            self.flush = true;
        }
        if !self.flush {
            return Poll::Pending;
        }
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        self.flush = false;
        Poll::Ready(Ok(()))
    }
}
