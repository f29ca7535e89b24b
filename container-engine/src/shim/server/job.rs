//! Calls of the runtime, each in a forked child that ends with the call.

use std::{
    io::{self, Read, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    panic,
};

use rustix::pipe::PipeFlags;

use crate::{
    runtime::{Runtime, RuntimeError, SealedExe},
    shim::{
        spec::RuntimeSpec,
        wire::{Problem, ProblemCode},
    },
    sys::{self, fork::Fork},
};

/// Longest answer of a child, bytes.
const MAX_ANSWER: usize = 64 << 10;

/// What a call is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    Create,
    Start,
    /// Of this process.
    Exec(u32),
    Pause,
    Resume,
    Update,
    Delete,
}

/// A call under way.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) work: Work,
    /// Who waits for it.
    pub(super) peer: Option<u32>,
    answer: OwnedFd,
    bytes: Vec<u8>,
}

/// What a call gave: the new process's id, where there is one.
pub(super) type Answer = Result<i32, Problem>;

impl Job {
    /// Forks; the child calls `call` and ends.
    pub(super) fn begin(
        work: Work,
        peer: Option<u32>,
        oom_score: &str,
        call: impl FnOnce() -> Result<i32, RuntimeError>,
    ) -> io::Result<Self> {
        let (answer, to_parent) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        if sys::fork::fork()? == Fork::Child {
            // What the child leaves to the runtime must not be the shim's: held-back signals, protection.
            sys::fork::unblock_signals();
            let _ = std::fs::write("/proc/self/oom_score_adj", if oom_score.is_empty() { "0" } else { oom_score });
            let answer: Answer = panic::catch_unwind(panic::AssertUnwindSafe(call)).map_or_else(
                |_| Err(Problem::new(ProblemCode::System, "the call of the runtime has a bug")),
                |result| result.map_err(|error| problem(&error)),
            );
            let mut to_parent = std::fs::File::from(to_parent);
            let _ = to_parent.write_all(&serde_json::to_vec(&answer).unwrap_or_default());
            sys::fork::exit_now(0);
        }
        Ok(Self { work, peer, answer, bytes: Vec::new() })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.answer.as_fd()
    }

    /// Reads on; the answer, once it is whole.
    pub(super) fn read(&mut self) -> io::Result<Option<Answer>> {
        let mut file = std::fs::File::from(self.answer.try_clone()?);
        loop {
            let mut buffer = [0; 512];
            match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) if self.bytes.len() + n <= MAX_ANSWER => self.bytes.extend_from_slice(&buffer[..n]),
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        let died = |_| Problem::new(ProblemCode::System, "the child that called the runtime was killed");
        Ok(Some(serde_json::from_slice::<Answer>(&self.bytes).map_err(died).and_then(|answer| answer)))
    }
}

/// The runtime of a container.
pub(super) fn runtime(spec: &RuntimeSpec) -> Runtime {
    match &spec.program {
        Some(program) => Runtime::file(program, &spec.root),
        None => Runtime::embedded(SealedExe::inherited(), &spec.root),
    }
}

fn problem(error: &RuntimeError) -> Problem {
    let code = match error {
        RuntimeError::NotFound { .. } => ProblemCode::CommandNotFound,
        RuntimeError::NotExecutable { .. } | RuntimeError::WrongArchitecture { .. } => {
            ProblemCode::CommandNotExecutable
        }
        RuntimeError::NoSuchContainer { .. } => ProblemCode::NotFound,
        RuntimeError::Exists { .. } | RuntimeError::WrongState { .. } => ProblemCode::Conflict,
        _ => ProblemCode::Runtime,
    };
    Problem::new(code, error.to_string())
}
