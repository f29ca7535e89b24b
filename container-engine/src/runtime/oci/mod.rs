//! The hidden verb `oci-runtime`: runc's command line, on libcontainer.
//!
//! One thread from beginning to end: it forks. Exit codes are runc's: 0, 1 for every failure, and of `run` and `exec`
//! (not detached) the process's own; failures go to standard error and, with `--log`, as a line into that file.

mod args;
mod commands;
mod info;
mod init;
mod launch;
mod mounts;
mod state;

use std::{
    error::Error,
    ffi::OsString,
    fmt::Display,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use args::Args;

/// The version of the specification that configurations are read by.
const OCI_VERSION: &str = "1.2.1";
/// Where state is kept unless `--root` says otherwise.
const ROOT: &str = "/run/edge-agent/oci";

/// Why a call failed, in words for its caller.
#[derive(Debug)]
struct Failure {
    message: String,
    /// Exit code: 1, as runc's, or 255 for `exec`.
    code: u8,
}

impl Failure {
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: 1 }
    }

    fn usage(message: impl Into<String>) -> Self {
        Self::new(message)
    }

    fn at(path: &Path, error: impl Display) -> Self {
        Self::new(format!("{}: {error}", path.display()))
    }

    fn from_error(error: impl Error) -> Self {
        Self::new(chain(&error))
    }
}

/// An error with all its causes, each told once.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
        cause = error.source();
    }
    text
}

/// Where the log goes.
#[derive(Debug, Default)]
struct Log {
    file: Option<PathBuf>,
    json: bool,
}

impl Log {
    fn error(&self, message: &str) {
        let _ = writeln!(std::io::stderr(), "oci-runtime: {message}");
        let Some(path) = &self.file else { return };
        let time = jiff::Timestamp::now();
        let line = if self.json {
            format!("{}\n", serde_json::json!({"level": "error", "msg": message, "time": time.to_string()}))
        } else {
            format!("time=\"{time}\" level=error msg={message:?}\n")
        };
        let file = fs::OpenOptions::new().create(true).append(true).open(path);
        let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
    }
}

/// Runs one call.
pub(crate) fn main(args: &[OsString]) -> ExitCode {
    let mut log = Log::default();
    match global(args, &mut log) {
        Ok(code) => code,
        Err(failure) => {
            log.error(&failure.message);
            ExitCode::from(failure.code)
        }
    }
}

/// `start` or `delete --force` in this process, which has one thread: for a shim's child, which saves a program's start.
/// An error is what the program would have logged.
pub(crate) fn here(verb: &str, root: &Path, args: &[OsString]) -> Result<(), String> {
    commands::run(verb, root, args).map(drop).map_err(|failure| failure.message)
}

fn global(args: &[OsString], log: &mut Log) -> Result<ExitCode, Failure> {
    let valued = ["root", "log", "log-format", "rootless", "criu"];
    let (read, rest) = Args::read(args, &valued, &["debug", "systemd-cgroup", "version", "help"], Some(1))?;
    log.file = read.path("log").filter(|path| !path.as_os_str().is_empty());
    log.json = match read.value("log-format") {
        None | Some("text") => false,
        Some("json") => true,
        Some(other) => return Err(Failure::usage(format!("unknown log-format {other:?}: text or json"))),
    };
    if read.has("version") {
        return info::version();
    }
    if read.has("systemd-cgroup") {
        return Err(Failure::usage("--systemd-cgroup is not supported: control groups are written directly"));
    }
    let Some(verb) = read.words.first().filter(|_| !read.has("help")) else {
        return info::help();
    };
    let root = read.path("root").unwrap_or_else(|| PathBuf::from(ROOT));
    let root = std::path::absolute(&root).map_err(|error| Failure::at(&root, error))?;
    commands::run(verb, &root, rest)
}
