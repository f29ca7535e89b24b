//! The agent's side of a shim: starts it, asks it, follows it.
//!
//! Each request has a connection of its own, so there is no task and no state here: a client is a path, and any number
//! of them, in any number of processes, may speak to one shim.

use std::{
    fs::File,
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    process::Command,
    time::timeout,
};

use super::{
    record::SOCKET,
    session::{FrameReader, Session},
    spec::{Attach, ExecRequest, MAX_SPEC, ShimSpec},
    wire::{self, Event, Kind, Message, Op, Phase, Problem, ProblemCode, Request, Status, VERSION},
};

/// A local connection is made at once or never.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest answer of a shim: hooks of the runtime may take their time.
const ANSWER: Duration = Duration::from_secs(120);
/// Longest path of a socket, its final zero included.
const SUN_PATH: usize = 108;

/// A request to a shim failed.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// No shim listens.
    #[error("no shim listens on {path}: it has ended or was killed; its exit record or `recover` tells")]
    Gone {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The shim refused.
    #[error(transparent)]
    Refused(#[from] Problem),
    /// The connection broke.
    #[error("the shim on {path} broke off the connection")]
    Broken {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No answer.
    #[error("the shim on {path} did not answer within {after:?}")]
    Silent {
        /// The socket.
        path: PathBuf,
        /// The limit.
        after: Duration,
    },
}

impl ShimError {
    /// Whether the shim is not there any more.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Gone { .. } | Self::Broken { .. })
    }

    /// Why the shim refused, where it did.
    pub fn code(&self) -> Option<ProblemCode> {
        if let Self::Refused(problem) = self { Some(problem.code) } else { None }
    }
}

/// No shim, or no container, came to be.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The process could not be started.
    #[error("cannot start the shim {exe}")]
    Start {
        /// The program.
        exe: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It ended without a word.
    #[error("the shim of container {id} ended before it reported; its memory may have run out")]
    Silent {
        /// The container.
        id: String,
    },
    /// The specification is too large.
    #[error("the specification of container {id} has {bytes} bytes, and {MAX_SPEC} is the most")]
    TooLarge {
        /// The container.
        id: String,
        /// Its size.
        bytes: usize,
    },
    /// The shim or the runtime says why.
    #[error(transparent)]
    Create(#[from] Problem),
}

/// One container's shim.
#[derive(Debug, Clone)]
pub struct ShimClient {
    run_dir: PathBuf,
}

impl ShimClient {
    /// Starts a shim, which creates the container; returns once the container is created and waits for its start.
    ///
    /// * In: `exe`, this same file (a sealed view of it); `spec`, whose folders exist.
    /// * Errors: `Create` with what the runtime said; then nothing of the attempt remains but `run_dir` itself.
    /// * Cancelled: the shim goes on alone, and removes the container when nobody starts it in time.
    pub async fn spawn(exe: &Path, spec: &ShimSpec) -> Result<(Self, Status), SpawnError> {
        let json = serde_json::to_vec(spec).unwrap_or_default();
        if json.len() as u64 > MAX_SPEC {
            return Err(SpawnError::TooLarge { id: spec.id.clone(), bytes: json.len() });
        }
        let failed = |source| SpawnError::Start { exe: exe.to_owned(), source };
        // What is started is a parent that lets the shim go and ends at once: every shim is nobody's child alike,
        // whether this agent or one before started it.
        let mut child = Command::new(exe)
            .arg("shim")
            .arg(&spec.id) // For people who look at a list of processes.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .current_dir("/")
            .spawn()
            .map_err(failed)?;
        let mut report = Vec::new();
        if let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) {
            // A shim that fails early reads no specification; its report says more than our broken pipe.
            let _ = stdin.write_all(&json).await;
            drop(stdin);
            stdout.take(MAX_SPEC).read_to_end(&mut report).await.map_err(failed)?;
        }
        child.wait().await.map_err(failed)?;
        match serde_json::from_slice(&report) {
            Ok(Message::Done(status)) => Ok((Self { run_dir: spec.run_dir.clone() }, *status)),
            Ok(Message::Failed(problem)) => Err(problem.into()),
            _ => Err(SpawnError::Silent { id: spec.id.clone() }),
        }
    }

    /// The shim of the container whose run directory this is; asks how it is.
    pub async fn connect(run_dir: &Path) -> Result<(Self, Status), ShimError> {
        let client = Self { run_dir: run_dir.to_owned() };
        let status = client.state().await?;
        Ok((client, status))
    }

    /// Without asking: for requests that find out by themselves.
    pub fn at(run_dir: &Path) -> Self {
        Self { run_dir: run_dir.to_owned() }
    }

    /// How the container is.
    pub async fn state(&self) -> Result<Status, ShimError> {
        self.ask(Op::State).await
    }

    /// How the container is, and from there every event: nothing is missed in between.
    ///
    /// As long as this is held, the shim knows that somebody looks after its container.
    pub async fn events(&self) -> Result<(Status, Events), ShimError> {
        let (stream, status) = self.request(Op::Follow).await?;
        Ok((status, Events { stream, path: self.socket() }))
    }

    /// Runs the created container's program. Once it runs, a further call returns the same.
    pub async fn start(&self) -> Result<Status, ShimError> {
        self.ask(Op::Start).await
    }

    /// Starts a further process in the running container; its stdio is the session.
    ///
    /// Dropping the session leaves the process running, its output discarded.
    pub async fn exec(&self, exec: ExecRequest) -> Result<(Session, Status), ShimError> {
        let (stream, status) = self.request(Op::Exec(exec)).await?;
        Ok((Session::new(stream, self.socket()), status))
    }

    /// The container's stdio from now on. To miss nothing, attach before the start.
    pub async fn attach(&self, attach: Attach) -> Result<Session, ShimError> {
        let (stream, _) = self.request(Op::Attach(attach)).await?;
        Ok(Session::new(stream, self.socket()))
    }

    /// Size of the terminal, the container's or an execution's.
    pub async fn resize(&self, exec: Option<&str>, rows: u16, columns: u16) -> Result<Status, ShimError> {
        self.ask(Op::Resize { exec: exec.map(str::to_owned), rows, columns }).await
    }

    /// Ends standard input once what was sent has been read.
    pub async fn close_stdin(&self, exec: Option<&str>) -> Result<Status, ShimError> {
        self.ask(Op::CloseStdin { exec: exec.map(str::to_owned) }).await
    }

    /// Sends a signal: to the first process, with `all` to every process of the container, or to an execution's.
    pub async fn signal(&self, exec: Option<&str>, signal: i32, all: bool) -> Result<Status, ShimError> {
        self.ask(Op::Signal { exec: exec.map(str::to_owned), signal, all }).await
    }

    /// Freezes the container.
    pub async fn pause(&self) -> Result<Status, ShimError> {
        self.ask(Op::Pause).await
    }

    /// Thaws the container.
    pub async fn resume(&self) -> Result<Status, ShimError> {
        self.ask(Op::Resume).await
    }

    /// New limits: OCI's `linux.resources` object.
    pub async fn update(&self, resources: serde_json::Value) -> Result<Status, ShimError> {
        self.ask(Op::Update { resources }).await
    }

    /// Opens the log's path anew, for whoever has renamed the file.
    pub async fn reopen_log(&self) -> Result<Status, ShimError> {
        self.ask(Op::ReopenLog).await
    }

    /// Ends the shim of a container that has ended, once the runtime has forgotten the container. With `force` a
    /// container that has not ended is killed first. A shim that is not there any more is no error.
    pub async fn shutdown(&self, force: bool) -> Result<Option<Status>, ShimError> {
        match self.ask(Op::Shutdown { force }).await {
            Ok(status) => Ok(Some(status)),
            Err(ShimError::Gone { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn socket(&self) -> PathBuf {
        self.run_dir.join(SOCKET)
    }

    async fn ask(&self, op: Op) -> Result<Status, ShimError> {
        Ok(self.request(op).await?.1)
    }

    async fn request(&self, op: Op) -> Result<(FrameReader, Status), ShimError> {
        let path = self.socket();
        let gone = |source| ShimError::Gone { path: path.clone(), source };
        let silent = |after| ShimError::Silent { path: path.clone(), after };
        let stream = timeout(CONNECT, connect(&path)).await.map_err(|_| silent(CONNECT))?.map_err(gone)?;
        let mut stream = FrameReader::new(stream);
        let asked = timeout(ANSWER, async {
            stream.socket.write_all(&wire::message(&Request { v: VERSION, op })).await?;
            stream.next().await
        });
        let broken = |source| ShimError::Broken { path: path.clone(), source };
        let frame = asked.await.map_err(|_| silent(ANSWER))?.map_err(broken)?;
        match frame.filter(|frame| frame.kind == Kind::Message).map(|frame| serde_json::from_slice(&frame.payload)) {
            Some(Ok(Message::Done(status))) => Ok((stream, *status)),
            Some(Ok(Message::Failed(problem))) => Err(problem.into()),
            Some(_) => Err(broken(io::Error::from(io::ErrorKind::InvalidData))),
            None => Err(broken(io::Error::from(io::ErrorKind::UnexpectedEof))),
        }
    }
}

/// Connects, however long the path is.
async fn connect(path: &Path) -> io::Result<UnixStream> {
    if path.as_os_str().len() < SUN_PATH {
        return UnixStream::connect(path).await;
    }
    let dir = File::open(path.parent().unwrap_or(path))?;
    UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd())).await
}

/// What happens to one container, from its [`Status`] on.
#[derive(Debug)]
pub struct Events {
    stream: FrameReader,
    path: PathBuf,
}

impl Events {
    /// The next event; `None` when the shim has ended as it was told to. An error means that the shim was killed, or
    /// that this reader was so slow that it was cut: connect again, or `recover`. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Event>, ShimError> {
        let broken = |source| ShimError::Broken { path: self.path.clone(), source };
        loop {
            let frame = self.stream.next().await.map_err(broken)?;
            let Some(frame) = frame else {
                return Err(broken(io::Error::from(io::ErrorKind::UnexpectedEof)));
            };
            match serde_json::from_slice(&frame.payload) {
                Ok(Message::Event(event)) => return Ok(Some(event)),
                Ok(Message::Done(status)) if status.phase == Phase::Stopped => return Ok(None),
                Ok(Message::Cut(why)) => return Err(broken(io::Error::other(why))),
                Ok(_) => {}
                Err(_) => return Ok(Some(Event::Unknown)), // Of a newer shim.
            }
        }
    }
}
