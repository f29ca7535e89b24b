//! [`Runtime`]: typed calls of a runtime's command line, the same for our own, runc and crun.
//!
//! Blocking, with a time limit on each call, and no memory worth naming: shims use it. A runtime's errors are read from
//! a log that it writes into memory of ours (`--log /proc/PID/fd/N`), because its standard error is the container's.
//!
//! Each call waits for its own child. A caller that reaps children in general (a subreaper) must not do so while a call
//! runs, or must do it by process id.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read, Seek},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use oci_spec::runtime::LinuxResources;
use rustix::{
    event::{PollFd, PollFlags},
    fs::MemfdFlags,
    process::{Pid, PidfdFlags},
};
use serde::Deserialize;

use super::{RuntimeError, SealedExe};

/// How long a call may take, unless told otherwise: creating on a slow board under load is what takes longest.
pub const TIME_LIMIT: Duration = Duration::from_secs(60);
/// How much of an answer or a log is read.
const MAX_ANSWER: u64 = 4 << 20;

/// Which runtime.
#[derive(Debug)]
enum Program {
    Embedded(SealedExe),
    File(PathBuf),
}

/// A runtime and the folder where it keeps its state.
#[derive(Debug)]
pub struct Runtime {
    program: Program,
    root: PathBuf,
    limit: Duration,
    /// Calls that start nothing are carried out in this process.
    here: bool,
}

/// Where a container's process has its standard streams. `None` is `/dev/null`.
#[derive(Debug, Default)]
pub struct Streams {
    /// Standard input.
    pub stdin: Option<OwnedFd>,
    /// Standard output.
    pub stdout: Option<OwnedFd>,
    /// Standard error.
    pub stderr: Option<OwnedFd>,
}

/// How `create` and `exec` are to start a process.
#[derive(Debug)]
pub struct Launch<'a> {
    /// Where the runtime writes the process id.
    pub pid_file: &'a Path,
    /// A listening socket, to which the runtime sends the master of the terminal; given exactly when the process has a
    /// terminal.
    pub console_socket: Option<&'a Path>,
    /// The standard streams of a process without a terminal.
    pub streams: Streams,
    /// `create` only: the root is an initramfs, which `pivot_root` cannot leave.
    pub no_pivot: bool,
}

impl<'a> Launch<'a> {
    /// Without a terminal and with its streams at `/dev/null`.
    pub fn new(pid_file: &'a Path) -> Self {
        Self { pid_file, console_socket: None, streams: Streams::default(), no_pivot: false }
    }
}

/// A container as the runtime sees it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct State {
    /// The container.
    pub id: String,
    /// Where it stands.
    pub status: Status,
    /// Its first process; 0 when there is none.
    #[serde(default)]
    pub pid: i32,
    /// Its bundle.
    pub bundle: PathBuf,
}

/// Where a container stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Half-made: whoever created it has not finished, or has died.
    Creating,
    /// Set up and waiting for `start`.
    Created,
    /// Running.
    Running,
    /// Frozen.
    Paused,
    /// Its first process has ended.
    Stopped,
}

impl Runtime {
    /// Our own, from a sealed view of this program.
    pub fn embedded(exe: SealedExe, root: impl Into<PathBuf>) -> Self {
        Self { program: Program::Embedded(exe), root: root.into(), limit: TIME_LIMIT, here: false }
    }

    /// Another file with runc's command line: a path, or a name that is looked for in `PATH`.
    pub fn file(program: impl Into<PathBuf>, root: impl Into<PathBuf>) -> Self {
        Self { program: Program::File(program.into()), root: root.into(), limit: TIME_LIMIT, here: false }
    }

    /// What the configuration names: `embedded`, `runc`, `crun` or a path. `exe` is used for `embedded`.
    pub fn named(name: &str, exe: SealedExe, root: impl Into<PathBuf>) -> Self {
        if name.is_empty() || name == "embedded" { Self::embedded(exe, root) } else { Self::file(name, root) }
    }

    /// For a process of one thread that is there for one call alone, and ends with it: where the runtime is our own,
    /// `start` and `delete` need no further process. The time limit is this process's then: it is killed.
    #[must_use]
    pub fn in_this_process(mut self) -> Self {
        self.here = matches!(self.program, Program::Embedded(_));
        self
    }

    /// The same with another time limit for each call.
    #[must_use]
    pub fn with_limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// What to call it in messages.
    pub fn name(&self) -> String {
        match &self.program {
            Program::Embedded(_) => "the embedded runtime".to_owned(),
            Program::File(path) => path.display().to_string(),
        }
    }

    /// Sets a container up, up to the moment before its command runs, and returns its process id.
    pub fn create(&self, id: &str, bundle: &Path, launch: Launch<'_>) -> Result<i32, RuntimeError> {
        let mut args: Vec<&OsStr> = vec!["--bundle".as_ref(), bundle.as_ref()];
        if launch.no_pivot {
            args.push("--no-pivot".as_ref());
        }
        self.launch("create", id, &args, &[], launch)
    }

    /// Lets a created container's command run.
    pub fn start(&self, id: &str) -> Result<(), RuntimeError> {
        if self.here { self.carry_out("start", id, &[]) } else { self.call("start", id, &[], &[]).map(drop) }
    }

    fn carry_out(&self, verb: &'static str, id: &str, flags: &[&OsStr]) -> Result<(), RuntimeError> {
        crate::sys::fork::end_within(self.limit);
        let args: Vec<OsString> = flags.iter().map(|flag| (*flag).to_owned()).chain([id.into()]).collect();
        super::oci::here(verb, &self.root, &args).map_err(|words| RuntimeError::told(&self.name(), verb, id, &words))
    }

    /// Runs another process (`process`: a file with an OCI `process` object) in a running container and returns its id.
    pub fn exec(&self, id: &str, process: &Path, launch: Launch<'_>) -> Result<i32, RuntimeError> {
        let args: [&OsStr; 3] = ["--detach".as_ref(), "--process".as_ref(), process.as_ref()];
        self.launch("exec", id, &args, &[], launch)
    }

    /// Where the container stands.
    pub fn state(&self, id: &str) -> Result<State, RuntimeError> {
        let answer = self.call("state", id, &[], &[])?;
        serde_json::from_slice(&answer).map_err(|error| self.unreadable("state", id, &error))
    }

    /// Sends a signal to the first process, or to all of them.
    pub fn kill(&self, id: &str, signal: i32, all: bool) -> Result<(), RuntimeError> {
        let flags: &[&OsStr] = if all { &["--all".as_ref()] } else { &[] };
        self.call("kill", id, flags, &[signal.to_string().as_ref()]).map(drop)
    }

    /// Removes what the runtime keeps of a container; with `force` also one that runs or is half-made, and it is no
    /// error then if there is none.
    pub fn delete(&self, id: &str, force: bool) -> Result<(), RuntimeError> {
        let flags: &[&OsStr] = if force { &["--force".as_ref()] } else { &[] };
        let done =
            if self.here { self.carry_out("delete", id, flags) } else { self.call("delete", id, flags, &[]).map(drop) };
        match done {
            Err(RuntimeError::NoSuchContainer { .. }) if force => Ok(()),
            other => other,
        }
    }

    /// Freezes every process of the container.
    pub fn pause(&self, id: &str) -> Result<(), RuntimeError> {
        self.call("pause", id, &[], &[]).map(drop)
    }

    /// Lets a paused container go on.
    pub fn resume(&self, id: &str) -> Result<(), RuntimeError> {
        self.call("resume", id, &[], &[]).map(drop)
    }

    /// Changes the limits of a container that exists.
    pub fn update(&self, id: &str, resources: &LinuxResources) -> Result<(), RuntimeError> {
        let mut file = memory("resources").map_err(|source| self.not_started(source))?;
        serde_json::to_writer(&mut file, resources).map_err(|error| self.unreadable("update", id, &error))?;
        file.rewind().map_err(|source| self.not_started(source))?;
        self.call("update", id, &["--resources".as_ref(), path_of(&file).as_ref()], &[]).map(drop)
    }

    fn launch(
        &self,
        verb: &'static str,
        id: &str,
        flags: &[&OsStr],
        rest: &[&OsStr],
        launch: Launch<'_>,
    ) -> Result<i32, RuntimeError> {
        let mut flags = flags.to_vec();
        flags.extend::<[&OsStr; 2]>(["--pid-file".as_ref(), launch.pid_file.as_ref()]);
        if let Some(socket) = launch.console_socket {
            flags.extend::<[&OsStr; 2]>(["--console-socket".as_ref(), socket.as_ref()]);
            if verb == "exec" {
                flags.push("--tty".as_ref());
            }
        }
        let Streams { stdin, stdout, stderr } = launch.streams;
        let stream = |fd: Option<OwnedFd>| fd.map_or_else(Stdio::null, Stdio::from);
        self.run(verb, id, &flags, rest, [stream(stdin), stream(stdout), stream(stderr)])?;
        let pid = std::fs::read_to_string(launch.pid_file).map_err(|error| self.unreadable(verb, id, &error))?;
        pid.trim().parse().map_err(|error| self.unreadable(verb, id, &error))
    }

    /// A call whose answer is on its standard output.
    fn call(&self, verb: &'static str, id: &str, flags: &[&OsStr], rest: &[&OsStr]) -> Result<Vec<u8>, RuntimeError> {
        let mut answer = memory("answer").map_err(|source| self.not_started(source))?;
        let output = answer.try_clone().map_err(|source| self.not_started(source))?;
        self.run(verb, id, flags, rest, [Stdio::null(), output.into(), Stdio::null()])?;
        read_all(&mut answer).map_err(|error| self.unreadable(verb, id, &error))
    }

    fn run(
        &self,
        verb: &'static str,
        id: &str,
        flags: &[&OsStr],
        rest: &[&OsStr],
        [stdin, stdout, stderr]: [Stdio; 3],
    ) -> Result<(), RuntimeError> {
        let mut log = memory("runtime-log").map_err(|source| self.not_started(source))?;
        let mut command = match &self.program {
            Program::Embedded(exe) => {
                let mut command = Command::new(exe.path());
                command.arg0("edge-agent").arg("oci-runtime");
                command
            }
            Program::File(path) => Command::new(path),
        };
        command.arg("--root").arg(&self.root).arg("--log").arg(path_of(&log)).args(["--log-format", "json", verb]);
        command.args(flags).arg(id).args(rest).stdin(stdin).stdout(stdout).stderr(stderr);
        let mut child = command.spawn().map_err(|source| self.not_started(source))?;
        // The streams' ends are the container's alone from here on.
        drop(command);
        let status = match wait(&mut child, self.limit) {
            Ok(Some(status)) => status,
            Ok(None) => {
                return Err(RuntimeError::TimedOut {
                    program: self.name(),
                    verb,
                    id: id.to_owned(),
                    limit: self.limit,
                });
            }
            Err(error) => return Err(self.unreadable(verb, id, &error)),
        };
        if status.success() {
            return Ok(());
        }
        let words = read_all(&mut log).map(|log| told_in(&log)).unwrap_or_default();
        let words = if words.is_empty() { format!("it gave no reason ({status})") } else { words };
        Err(RuntimeError::told(&self.name(), verb, id, &words))
    }

    fn not_started(&self, source: io::Error) -> RuntimeError {
        RuntimeError::Start { program: self.name(), source }
    }

    fn unreadable(&self, verb: &'static str, id: &str, error: &dyn std::error::Error) -> RuntimeError {
        RuntimeError::Answer { program: self.name(), verb, id: id.to_owned(), message: error.to_string() }
    }
}

/// Waits for a child; one that does not end in time is killed (and `None` returned).
fn wait(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        let timeout = rustix::time::Timespec::try_from(left).map_err(io::Error::other)?;
        let mut fds = [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)];
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return child.wait().map(Some),
            Err(error) => return Err(error.into()),
        }
    }
}

/// A file in memory, closed when something is executed: others reach it by [`path_of`].
fn memory(name: &str) -> io::Result<File> {
    Ok(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?.into())
}

/// Where our children find a descriptor of ours.
fn path_of(file: &File) -> OsString {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()).into()
}

fn read_all(file: &mut File) -> io::Result<Vec<u8>> {
    file.rewind()?;
    let mut bytes = Vec::new();
    file.take(MAX_ANSWER).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The last error in a log of JSON lines (runc, crun, ours); whatever else it holds is taken as it is.
fn told_in(log: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Line {
        #[serde(default)]
        level: String,
        msg: String,
    }
    let text = String::from_utf8_lossy(log);
    let mut last = String::new();
    for line in text.lines() {
        match serde_json::from_str::<Line>(line) {
            Ok(line) if matches!(line.level.as_str(), "" | "error" | "fatal") => last = line.msg,
            Ok(_) => {}
            Err(_) => line.clone_into(&mut last),
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_of_a_log_counts() {
        let log = br#"{"level":"warning","msg":"signal: killed","time":"t"}
{"level":"error","msg":"exec: \"x\": executable file not found in $PATH","time":"t"}
{"level":"debug","msg":"more","time":"t"}"#;
        assert_eq!(told_in(log), "exec: \"x\": executable file not found in $PATH");
        assert_eq!(told_in(b"plain words"), "plain words");
        assert_eq!(told_in(b""), "");
    }

    #[test]
    fn a_runtime_that_is_not_there_is_named() {
        let runtime = Runtime::file("/nonexistent/runc", "/nonexistent");
        let error = runtime.start("c").unwrap_err();
        assert!(error.to_string().contains("/nonexistent/runc"), "{error}");
        assert_eq!(error.exit_code(), 125);
    }

    #[test]
    fn a_runtime_that_hangs_is_killed() {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("hangs");
        std::fs::write(&script, "#!/bin/sh\nexec sleep 600\n").unwrap();
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let runtime = Runtime::file(script, folder.path()).with_limit(Duration::from_millis(200));
        let begun = Instant::now();
        assert!(matches!(runtime.start("c"), Err(RuntimeError::TimedOut { .. })));
        assert!(begun.elapsed() < Duration::from_secs(20));
    }
}
