//! A command attached to a process: its input, its output, its signals, until its end.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use anyhow::{Context, bail};
use bytes::Bytes;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf},
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use super::terminal::{self, DetachKeys, Raw};
use crate::control::{
    Engine,
    frames::{self, Decoder, Kind, Last},
};

/// A signal and its name.
type Proxied = (fn() -> SignalKind, &'static str);
/// Signals that are handed on.
const PROXIED: [Proxied; 6] = [
    (SignalKind::terminate, "TERM"),
    (SignalKind::interrupt, "INT"),
    (SignalKind::hangup, "HUP"),
    (SignalKind::quit, "QUIT"),
    (SignalKind::user_defined1, "USR1"),
    (SignalKind::user_defined2, "USR2"),
];

/// What a command wants of the process that it is attached to.
pub struct Wish {
    /// Its standard input is ours.
    pub stdin: bool,
    /// It has a terminal.
    pub tty: bool,
    /// Leave it with these.
    pub detach_keys: Vec<u8>,
    /// Hand signals on to this container.
    pub signals_to: Option<String>,
}

/// What comes on standard input.
type Input = mpsc::Receiver<io::Result<Bytes>>;

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// With this code.
    Exit(i32),
    /// By the keys; the process goes on.
    Detached,
}

impl Ended {
    /// The command's own exit code.
    pub fn code(self) -> ExitCode {
        match self {
            // Codes are those of a shell: one byte.
            Self::Exit(code) => ExitCode::from(u8::try_from(code & 0xff).unwrap_or(1)),
            Self::Detached => ExitCode::SUCCESS,
        }
    }
}

/// `-t` with input that is no terminal is a mistake that would hang or garble.
pub fn check_terminal(stdin: bool, tty: bool) -> anyhow::Result<()> {
    if stdin && tty && !io::IsTerminal::is_terminal(&io::stdin()) {
        bail!("the input device is not a TTY: leave out -t when input comes from a pipe or a file");
    }
    Ok(())
}

/// Both ends of the stream, and what comes from outside.
pub struct Attached {
    read: ReadHalf<TokioIo<Upgraded>>,
    write: WriteHalf<TokioIo<Upgraded>>,
    wish: Wish,
    signals: mpsc::Receiver<&'static str>,
    _signal_tasks: tokio::task::JoinSet<()>,
}

impl Attached {
    /// Takes over the stream. From here on signals are not lost; call before the process starts.
    pub fn new(stream: TokioIo<Upgraded>, wish: Wish) -> anyhow::Result<Self> {
        let (read, write) = tokio::io::split(stream);
        let (send, signals) = mpsc::channel(8);
        let mut tasks = tokio::task::JoinSet::new();
        // A raw terminal must be put back, so its command does not end by a signal either.
        if wish.signals_to.is_some() || wish.tty {
            for (kind, name) in PROXIED {
                let mut stream = signal(kind()).context("cannot handle signals")?;
                let send = send.clone();
                tasks.spawn(async move { while stream.recv().await.is_some() && send.send(name).await.is_ok() {} });
            }
        }
        Ok(Self { read, write, wish, signals, _signal_tasks: tasks })
    }

    /// Until the process ends, or the keys leave it.
    pub async fn follow(mut self, engine: &Engine) -> anyhow::Result<Ended> {
        let raw =
            if self.wish.tty && self.wish.stdin { Raw::new().context("cannot make the terminal raw")? } else { None };
        let input = self.wish.stdin.then(terminal::input).transpose();
        let mut input = input.context("cannot read standard input")?;
        let mut keys =
            DetachKeys::new(if self.wish.tty { std::mem::take(&mut self.wish.detach_keys) } else { Vec::new() });
        let mut resized = signal(SignalKind::window_change()).context("cannot handle signals")?;
        if self.wish.tty {
            self.resize().await?;
        }
        let mut decoder = Decoder::default();
        let mut chunk = vec![0; 64 << 10];
        let ended = loop {
            if let Some(ended) = drain(&mut decoder)? {
                break ended;
            }
            tokio::select! {
                read = self.read.read(&mut chunk) => match read.context("the stream from the agent broke")? {
                    0 => bail!("the agent went away; the container goes on: `edge-agent container attach` joins it again"),
                    n => decoder.feed(&chunk[..n]),
                },
                bytes = next(&mut input) => {
                    if !self.give(bytes, &mut input, &mut keys).await? {
                        break Ended::Detached;
                    }
                }
                _ = resized.recv(), if self.wish.tty => self.resize().await?,
                Some(name) = self.signals.recv() => match &self.wish.signals_to {
                    Some(id) => proxy(engine, id, name).await,
                    None => break Ended::Exit(128 + 15),
                },
            }
        };
        drop(raw);
        Ok(ended)
    }

    async fn resize(&mut self) -> anyhow::Result<()> {
        if let Some((rows, columns)) = terminal::size() {
            self.send(&frames::resize(rows, columns)).await?;
        }
        Ok(())
    }

    async fn send(&mut self, frame: &[u8]) -> anyhow::Result<()> {
        match self.write.write_all(frame).await {
            // The process has ended; what it said, and how, is still to be read.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => Ok(other?),
        }
    }

    /// Hands on input; no when it held the keys.
    async fn give(
        &mut self,
        bytes: Option<Bytes>,
        input: &mut Option<Input>,
        keys: &mut DetachKeys,
    ) -> anyhow::Result<bool> {
        let Some(bytes) = bytes else {
            *input = None;
            self.send(&frames::encode(Kind::CloseStdin, b"")).await?;
            return Ok(true);
        };
        let (pass, leave) = keys.filter(&bytes);
        if !pass.is_empty() {
            self.send(&frames::encode(Kind::Stdin, &pass)).await?;
        }
        Ok(!leave)
    }
}

async fn next(input: &mut Option<Input>) -> Option<Bytes> {
    match input {
        // A terminal that has gone away is the end of input.
        Some(input) => input.recv().await.and_then(Result::ok),
        None => std::future::pending().await,
    }
}

/// A container that has just ended needs no signal: that is no error.
async fn proxy(engine: &Engine, id: &str, name: &str) {
    let url = format!("/v1/containers/{}/kill?signal={name}", crate::control::encode(id));
    if let Err(error) = engine.post::<serde_json::Value>(&url).await {
        tracing::debug!(%error, "a signal was not handed on");
    }
}

/// Prints what has arrived. Writing blocks while a pipe is full: then nothing more is read, which is what slows the process
/// down as a pipe of its own would.
pub fn drain(decoder: &mut Decoder) -> anyhow::Result<Option<Ended>> {
    while let Some((kind, payload)) = decoder.next()? {
        match kind {
            Kind::Stdout => print(&mut io::stdout().lock(), &payload)?,
            Kind::Stderr => print(&mut io::stderr().lock(), &payload)?,
            Kind::Last => match serde_json::from_slice(&payload)? {
                Last::Exit(code) => return Ok(Some(Ended::Exit(code))),
                Last::Error(problem) => bail!(problem),
            },
            Kind::Stdin | Kind::CloseStdin | Kind::Resize => {}
        }
    }
    Ok(None)
}

fn print(to: &mut impl Write, bytes: &[u8]) -> anyhow::Result<()> {
    match to.write_all(bytes).and_then(|()| to.flush()) {
        // `| head` has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => other.context("cannot write the output"),
    }
}
