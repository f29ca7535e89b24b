//! The shim's process: one thread, one loop.
//!
//! Output is relayed by `relay`, clients are served by `peer`, the runtime is called by `job` (in a forked child each,
//! so that the relay never waits for it), memory is watched by `oom`, and `end` is what happens when the container's
//! first process has gone.

pub(crate) mod cgroups;
mod end;
mod job;
mod oom;
mod peer;
mod process;
mod relay;
mod requests;
mod shim;

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Read, Write},
    os::fd::OwnedFd,
    process::ExitCode,
};

use self::shim::Shim;
use super::{
    spec::{MAX_SPEC, ShimSpec},
    wire::{Message, Problem, ProblemCode},
};
use crate::sys;

/// Everything but the kernel's own choice of last resort.
const OOM_SCORE: &str = "-999";

/// The verb `shim`: reads a [`ShimSpec`] on standard input, reports on standard output, and stays in the background.
pub(crate) fn main(_args: &[OsString]) -> ExitCode {
    let mut json = Vec::new();
    let read = io::stdin().take(MAX_SPEC + 1).read_to_end(&mut json);
    let spec = read
        .map_err(|error| error.to_string())
        .and_then(|_| serde_json::from_slice::<ShimSpec>(&json).map_err(|error| error.to_string()));
    drop(json);
    let spec = match spec {
        Ok(spec) => spec,
        Err(error) => {
            let problem =
                Problem::new(ProblemCode::Invalid, format!("the shim's specification is unreadable: {error}"));
            let _ = io::stdout().write_all(&serde_json::to_vec(&Message::Failed(problem)).unwrap_or_default());
            return ExitCode::FAILURE;
        }
    };
    match sys::fork::fork() {
        Ok(sys::fork::Fork::Child) => {}
        // Whoever started us waits for this process alone; the shim itself is nobody's child.
        Ok(sys::fork::Fork::Parent(_)) => return ExitCode::SUCCESS,
        Err(_) => return ExitCode::FAILURE,
    }
    let Ok(report) = detach() else { return ExitCode::FAILURE };
    let setup = setup(&spec);
    let shim = setup.and_then(|score| Shim::new(spec, report.try_clone()?, score));
    match shim {
        Ok(mut shim) => {
            drop(report);
            shim.run()
        }
        Err(error) => {
            let problem = Problem::new(ProblemCode::System, format!("the shim cannot set itself up: {error}"));
            let _ = report_to(&report, &Message::Failed(problem));
            ExitCode::FAILURE
        }
    }
}

/// Tells whoever started the shim.
fn report_to(report: &OwnedFd, message: &Message) -> io::Result<()> {
    File::from(report.try_clone()?).write_all(&serde_json::to_vec(message)?)
}

/// A session of its own, and standard streams that hold nothing of the agent's. Returns where to report.
fn detach() -> io::Result<OwnedFd> {
    rustix::process::setsid()?;
    let report = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(report)
}

/// What the shim is to the kernel; returns the score that its children are given back.
fn setup(spec: &ShimSpec) -> io::Result<String> {
    // What the container's processes leave behind comes to us.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let named = |path: &std::path::Path, error| io::Error::other(format!("{}: {error}", path.display()));
    let score = fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    // Lowering it needs CAP_SYS_RESOURCE; without it a shim is as mortal as others.
    let _ = fs::write("/proc/self/oom_score_adj", OOM_SCORE);
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    std::env::set_current_dir(&spec.run_dir).map_err(|error| named(&spec.run_dir, error))?;
    Ok(score.trim().to_owned())
}
