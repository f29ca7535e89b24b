//! What goes over a shim's socket.
//!
//! Frames as Docker's attach has them: `[kind: u8][0 0 0][length: u32 BE][payload]`, so that output can be handed on
//! as it is. A connection begins with one `Message` frame of the client's, a [`Request`]; the answer is a [`Reply`].
//! After `Attach` and `Exec` the connection carries streams, after `Follow` events.
//!
//! Always true: a payload is at most [`MAX_PAYLOAD`] bytes, a longer one ends the connection; unknown fields are ignored
//! and unknown words answered with `unsupported`, so that an agent and a shim of different versions understand each other.

use serde::{Deserialize, Serialize};

use super::{
    record::ExitRecord,
    spec::{Attach, ExecRequest},
};

/// Version of the protocol that this build speaks.
pub const VERSION: u32 = 1;
/// Largest payload, bytes.
pub(super) const MAX_PAYLOAD: usize = 1 << 20;
/// Bytes before the payload.
pub(super) const HEADER: usize = 8;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Bytes for standard input.
    Stdin = 0,
    /// Bytes of standard output, or of the terminal.
    Stdout = 1,
    /// Bytes of standard error.
    Stderr = 2,
    /// JSON: a request of the client's, or a message of the shim's.
    Message = 3,
    /// Standard input is at its end; without payload.
    CloseStdin = 4,
    /// New size of the terminal: rows and columns, u16 BE each.
    Resize = 5,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        const ALL: [Kind; 6] = [Kind::Stdin, Kind::Stdout, Kind::Stderr, Kind::Message, Kind::CloseStdin, Kind::Resize];
        ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// Header of a frame.
pub(super) fn header(kind: Kind, length: usize) -> [u8; HEADER] {
    let [a, b, c, d] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [kind as u8, 0, 0, 0, a, b, c, d]
}

/// A message as a whole frame.
pub(super) fn message<T: Serialize>(value: &T) -> Vec<u8> {
    let mut frame = vec![0; HEADER];
    if serde_json::to_writer(&mut frame, value).is_err() {
        frame.truncate(HEADER); // None of our types can fail; an empty message is refused by the other side.
    }
    let head = header(Kind::Message, frame.len() - HEADER);
    frame[..HEADER].copy_from_slice(&head);
    frame
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// What it carries.
    pub payload: Vec<u8>,
}

/// The bytes are no frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Unknown kind.
    #[error("a frame of unknown kind {0}: the other side speaks another protocol")]
    Kind(u8),
    /// Too long.
    #[error("a frame of {0} bytes, and 1 MiB is the most")]
    TooLong(usize),
}

/// Cuts a stream of bytes into frames, however it arrives.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
}

impl Decoder {
    /// Adds bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame. An error is final.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, WireError> {
        let Some(head) = self.buffer.first_chunk::<HEADER>() else { return Ok(None) };
        let kind = Kind::of(head[0]).ok_or(WireError::Kind(head[0]))?;
        let length = u32::from_be_bytes([head[4], head[5], head[6], head[7]]) as usize;
        if length > MAX_PAYLOAD {
            return Err(WireError::TooLong(length));
        }
        if self.buffer.len() < HEADER + length {
            return Ok(None);
        }
        let payload = self.buffer[HEADER..HEADER + length].to_vec();
        self.buffer.drain(..HEADER + length);
        if self.buffer.is_empty() {
            self.buffer = Vec::new(); // A shim keeps nothing for a connection that is silent.
        }
        Ok(Some(Frame { kind, payload }))
    }

    /// Bytes that wait for the rest of their frame.
    #[cfg(any(test, fuzzing))]
    pub fn waiting(&self) -> usize {
        self.buffer.len()
    }
}

/// What a client asks for, once on each connection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Request {
    /// Version of the client.
    pub v: u32,
    /// What.
    pub op: Op,
}

/// Requests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Op {
    /// How the container is.
    State,
    /// The same, and then every event.
    Follow,
    /// Runs the created container's program.
    Start,
    /// Another process; the connection becomes its stdio.
    Exec(ExecRequest),
    /// The connection becomes one of the readers of the container's stdio.
    Attach(Attach),
    /// Of the container's terminal, or of an execution's.
    Resize { exec: Option<String>, rows: u16, columns: u16 },
    /// Of the container, or of an execution.
    CloseStdin { exec: Option<String> },
    /// To the first process, to all of the container's, or to an execution's.
    Signal { exec: Option<String>, signal: i32, all: bool },
    /// Freezes the container.
    Pause,
    /// Thaws it.
    Resume,
    /// New limits: OCI's `linux.resources` object.
    Update { resources: serde_json::Value },
    /// Opens the log's path anew, for whoever has renamed it.
    ReopenLog,
    /// Ends the shim. Refused while the container runs, unless `force`, which kills it first.
    Shutdown { force: bool },
}

/// What a shim says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Message {
    /// The request is done.
    Done(Box<Status>),
    /// It is not.
    Failed(Problem),
    /// Something happened.
    Event(Event),
    /// Last message of a stream connection: the process has ended, and all its output was sent before.
    Exit(ExitStatus),
    /// Last message of a stream connection that was cut.
    Cut(String),
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitStatus {
    /// Exit code; 128 and the signal's number where a signal killed it.
    pub code: i32,
    /// The signal.
    #[serde(default)]
    pub signal: Option<i32>,
}

/// Why a shim refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Problem {
    /// For programs.
    pub code: ProblemCode,
    /// For people.
    pub message: String,
}

impl Problem {
    pub(super) fn new(code: ProblemCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// Why a shim refused, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProblemCode {
    /// No such execution or process.
    NotFound,
    /// Not in the state that it is in.
    Conflict,
    /// The request makes no sense.
    Invalid,
    /// The program is not in the container: exit code 127.
    CommandNotFound,
    /// The program may not be executed: exit code 126.
    CommandNotExecutable,
    /// The runtime failed for another reason, which the message has.
    Runtime,
    /// This shim is older than the request.
    Unsupported,
    /// A system call failed.
    System,
    /// Of a newer version.
    #[serde(other)]
    Unknown,
}

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Created, not started.
    Created,
    /// Its program runs.
    Running,
    /// Frozen.
    Paused,
    /// Ended.
    Stopped,
    /// Of a newer version.
    #[serde(other)]
    Unknown,
}

/// How a container is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the shim's protocol.
    pub version: u32,
    /// Where it is in its life.
    pub phase: Phase,
    /// The shim's process.
    pub shim_pid: i32,
    /// The container's first process.
    pub pid: i32,
    /// When it was started, ns since 1970; 0 before.
    pub started_at_ns: u64,
    /// How it ended.
    #[serde(default)]
    pub exit: Option<ExitRecord>,
    /// How often the kernel killed for want of memory.
    #[serde(default)]
    pub oom_kills: u64,
    /// Executions that run.
    #[serde(default)]
    pub execs: Vec<ExecStatus>,
    /// Bytes of output that found no room on the disk.
    #[serde(default)]
    pub log_dropped_bytes: u64,
    /// Clients that read its output.
    #[serde(default)]
    pub attached: u32,
}

/// An execution.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecStatus {
    /// Its id.
    pub id: String,
    /// Its process, in the host's namespace; 0 while it is being started.
    pub pid: i32,
    /// How it ended; the last 32 are remembered.
    #[serde(default)]
    pub exit: Option<ExitStatus>,
}

/// What happens to a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// Its program runs.
    Started {
        /// First process.
        pid: i32,
        /// ns since 1970.
        at_ns: u64,
    },
    /// Frozen.
    Paused,
    /// Thawed.
    Resumed,
    /// The kernel killed a process of it for want of memory.
    Oom {
        /// How often by now.
        kills: u64,
    },
    /// A further process runs.
    ExecStarted {
        /// Of the execution.
        id: String,
        /// Its process.
        pid: i32,
    },
    /// A further process has ended.
    ExecExited {
        /// Of the execution.
        id: String,
        /// How.
        exit: ExitStatus,
    },
    /// A file of the log was set aside: `logs::compress_rotated` has work.
    LogRotated,
    /// The container has ended; its record is on disk.
    Exited(ExitRecord),
    /// The runtime has forgotten it: mounts and cgroup are free. Its shim waits to be shut down.
    Deleted,
    /// Of a newer version.
    #[serde(other)]
    Unknown,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encode(frames: &[(Kind, Vec<u8>)]) -> Vec<u8> {
        frames.iter().flat_map(|(kind, payload)| [&header(*kind, payload.len())[..], payload].concat()).collect()
    }

    proptest! {
        #[test]
        fn frames_survive_any_chunking(
            payloads in prop::collection::vec((0_u8..6, prop::collection::vec(any::<u8>(), 0..300)), 0..8),
            cuts in prop::collection::vec(1_usize..64, 1..64),
        ) {
            let frames: Vec<_> =
                payloads.into_iter().filter_map(|(kind, payload)| Some((Kind::of(kind)?, payload))).collect();
            let bytes = encode(&frames);
            let (mut decoder, mut got, mut rest) = (Decoder::default(), Vec::new(), &bytes[..]);
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                decoder.feed(now);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    got.push((frame.kind, frame.payload));
                }
                rest = later;
            }
            prop_assert_eq!(got, frames);
            prop_assert_eq!(decoder.waiting(), 0);
        }
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        #[track_caller]
        fn check(bytes: &[u8], want: Result<Option<Frame>, WireError>) {
            let mut decoder = Decoder::default();
            decoder.feed(bytes);
            assert_eq!(decoder.next_frame(), want, "{bytes:?}");
        }
        check(&[9, 0, 0, 0, 0, 0, 0, 0], Err(WireError::Kind(9)));
        check(&[1, 0, 0, 0, 0x7f, 0, 0, 0], Err(WireError::TooLong(0x7f00_0000)));
        check(&[1, 0, 0, 0, 0, 0, 0], Ok(None));
        check(&[1, 0, 0, 0, 0, 0, 0, 1], Ok(None));
        check(&[4, 0, 0, 0, 0, 0, 0, 0], Ok(Some(Frame { kind: Kind::CloseStdin, payload: vec![] })));
    }

    #[test]
    fn words_of_another_version_are_no_reason_to_fail() {
        let event: Event = serde_json::from_str(r#""evaporated""#).unwrap();
        assert_eq!(event, Event::Unknown);
        let status = r#"{"version":9,"phase":"dreaming","shim_pid":1,"pid":2,"started_at_ns":3,"mood":"fine"}"#;
        assert_eq!(serde_json::from_str::<Status>(status).unwrap().phase, Phase::Unknown);
        let problem: Problem = serde_json::from_str(r#"{"code":"tired","message":"no"}"#).unwrap();
        assert_eq!(problem.code, ProblemCode::Unknown);
    }
}
