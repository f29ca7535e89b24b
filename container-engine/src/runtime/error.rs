//! What a runtime's failure means. Runtimes tell it in words on their log; the words are those that runc has used for
//! years, and crun's and our own are read the same way.

use std::{io, time::Duration};

/// Longest message that is kept, bytes.
const MAX_MESSAGE: usize = 2048;

/// Why a call of the runtime failed.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The container's command does not exist in its root file system (exit code 127 of `container run`).
    #[error("container {id}: the command does not exist in it: {message}")]
    NotFound {
        /// The container.
        id: String,
        /// The runtime's words.
        message: String,
    },
    /// The container's command exists and may not be executed (exit code 126).
    #[error("container {id}: the command cannot be executed: {message}")]
    NotExecutable {
        /// The container.
        id: String,
        /// The runtime's words.
        message: String,
    },
    /// The container's command is for another kind of CPU, or no program at all (exit code 126).
    #[error("container {id}: the command is not for this machine's CPU: {message}")]
    WrongArchitecture {
        /// The container.
        id: String,
        /// The runtime's words.
        message: String,
    },
    /// The runtime knows no such container.
    #[error("the runtime has no container {id}")]
    NoSuchContainer {
        /// The container.
        id: String,
    },
    /// The runtime has a container of this id already.
    #[error("the runtime has a container {id} already; delete it first")]
    Exists {
        /// The container.
        id: String,
    },
    /// The container is not in a state for this call: it has ended, has not started, is paused.
    #[error("container {id} is not in a state for this: {message}")]
    WrongState {
        /// The container.
        id: String,
        /// The runtime's words.
        message: String,
    },
    /// The runtime has not ended in time and was killed.
    #[error("{program}: {verb} of container {id} has not ended after {limit:?} and was killed")]
    TimedOut {
        /// The runtime's program.
        program: String,
        /// What it was to do.
        verb: &'static str,
        /// The container.
        id: String,
        /// How long it had.
        limit: Duration,
    },
    /// The runtime itself cannot be started.
    #[error("cannot run the container runtime {program}: {source}; is it installed?")]
    Start {
        /// The runtime's program.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// The runtime's answer cannot be read.
    #[error("{program}: {verb} of container {id} gave an answer that cannot be read: {message}")]
    Answer {
        /// The runtime's program.
        program: String,
        /// What it was to do.
        verb: &'static str,
        /// The container.
        id: String,
        /// What is wrong with it.
        message: String,
    },
    /// Anything else, in the runtime's words.
    #[error("{program}: {verb} of container {id} failed: {message}")]
    Other {
        /// The runtime's program.
        program: String,
        /// What it was to do.
        verb: &'static str,
        /// The container.
        id: String,
        /// The runtime's words.
        message: String,
    },
}

impl RuntimeError {
    /// Docker's exit code for a container or `exec` that could not be started: 125, 126 or 127.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NotFound { .. } => 127,
            Self::NotExecutable { .. } | Self::WrongArchitecture { .. } => 126,
            _ => 125,
        }
    }

    /// Reads the runtime's words.
    pub(super) fn told(program: &str, verb: &'static str, id: &str, message: &str) -> Self {
        let id = id.to_owned();
        let mut message = message.trim().to_owned();
        if message.len() > MAX_MESSAGE {
            let end = (0..=MAX_MESSAGE).rev().find(|at| message.is_char_boundary(*at)).unwrap_or(0);
            message.truncate(end);
        }
        match meaning(verb, &message.to_lowercase()) {
            Meaning::NotFound => Self::NotFound { id, message },
            Meaning::NotExecutable => Self::NotExecutable { id, message },
            Meaning::WrongArchitecture => Self::WrongArchitecture { id, message },
            Meaning::NoSuchContainer => Self::NoSuchContainer { id },
            Meaning::Exists => Self::Exists { id },
            Meaning::WrongState => Self::WrongState { id, message },
            Meaning::Other => Self::Other { program: program.to_owned(), verb, id, message },
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Meaning {
    NotFound,
    NotExecutable,
    WrongArchitecture,
    NoSuchContainer,
    Exists,
    WrongState,
    Other,
}

fn meaning(verb: &str, words: &str) -> Meaning {
    let has = |patterns: &[&str]| patterns.iter().any(|pattern| words.contains(pattern));
    let executes = matches!(verb, "create" | "start" | "exec");
    // The engine's own set-up is never the user's command: only what speaks of executing is.
    let of_command = executes && has(&["exec: ", "exec user process", "executable", "exec format error"]);
    if of_command && has(&["exec format error"]) {
        Meaning::WrongArchitecture
    } else if of_command
        && has(&["executable file not found", "executable file `", "no such file or directory"])
        && !has(&["permission denied"])
    {
        Meaning::NotFound
    } else if of_command && has(&["permission denied", "is a directory", "not a directory"]) {
        Meaning::NotExecutable
    } else if has(&["container does not exist", "container not found", "error opening file `/run", "does not exist"])
        && !has(&["rootfs", "cgroup", "process.json", "mount"])
    {
        Meaning::NoSuchContainer
    } else if verb == "create" && has(&["already exists", "already in use", "id already"]) {
        Meaning::Exists
    } else if has(&[
        "not running",
        "is stopped",
        "stopped container",
        "cannot start a container that has",
        "cannot start an already running container",
        "not in created state",
        "process already finished",
        "incorrect state",
        "not paused",
        "is not in the",
        "in the `",
        "container is paused",
        "cannot exec in a",
        "no such process",
    ]) {
        Meaning::WrongState
    } else {
        Meaning::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_have_a_meaning() {
        #[track_caller]
        fn check(verb: &'static str, words: &str, want: &Meaning) {
            assert_eq!(meaning(verb, &words.to_lowercase()), *want, "{words}");
        }
        let create = "runc create failed: unable to start container process: exec: ";
        check("create", &format!("{create}\"foo\": executable file not found in $PATH"), &Meaning::NotFound);
        check("create", &format!("{create}\"/foo\": stat /foo: no such file or directory"), &Meaning::NotFound);
        check("create", &format!("{create}\"/etc\": permission denied"), &Meaning::NotExecutable);
        check("create", &format!("{create}\"/etc\": is a directory"), &Meaning::NotExecutable);
        check("exec", "exec failed: exec: \"/x\": exec format error", &Meaning::WrongArchitecture);
        check("create", "executable file `foo` not found in $PATH: No such file or directory", &Meaning::NotFound);
        check("state", "container does not exist", &Meaning::NoSuchContainer);
        check("create", "container with given ID already exists", &Meaning::Exists);
        check("kill", "container not running", &Meaning::WrongState);
        check("create", "mounting \"/x\": no such file or directory", &Meaning::Other);
        check("create", "write memory.max: permission denied", &Meaning::Other);
    }

    #[test]
    fn exit_codes_are_dockers() {
        let code = |words| RuntimeError::told("runc", "create", "c", words).exit_code();
        assert_eq!(code("exec: \"x\": executable file not found in $PATH"), 127);
        assert_eq!(code("exec: \"/x\": permission denied"), 126);
        assert_eq!(code("exec: \"/x\": exec format error"), 126);
        assert_eq!(code("cannot mount /proc"), 125);
    }
}
