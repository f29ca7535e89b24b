//! The hidden verb `container-init`: the first process of a container that asks for one. It starts the program, hands signals on
//! to it, reaps what nobody else does, and ends as the program ends.
//!
//! It runs inside the container, from this same file mounted read-only: no configuration, no tokio, no logging.

use std::{ffi::OsString, io::Write, os::unix::process::ExitStatusExt, process::ExitCode};

use rustix::process::{Pid, WaitOptions};

use crate::sys::process;

/// Signals that concern this process alone: its own children, and the terminal's job control.
const OWN: [i32; 4] = [libc::SIGCHLD, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];

/// `container-init -- PROGRAM ARGUMENT…`
pub(crate) fn main(args: &[OsString]) -> ExitCode {
    let mut words = args.iter().skip_while(|word| *word == "--");
    let Some(program) = words.next() else { return failed("init", "no program was named", 125) };
    // Before the program starts, so that no signal is lost in between.
    let signals = match process::signals_as_file() {
        Ok(signals) => signals,
        Err(error) => return failed("init", &error.to_string(), 125),
    };
    let mut command = std::process::Command::new(program);
    let child = match process::with_default_signals(command.args(words)).spawn() {
        Ok(child) => child,
        Err(error) => {
            let code = if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 };
            return failed(&program.to_string_lossy(), &error.to_string(), code);
        }
    };
    let Some(pid) = i32::try_from(child.id()).ok() else { return ExitCode::from(125) };
    loop {
        match process::next_signal(&signals) {
            Ok(signal) if OWN.contains(&signal) => {
                if let Some(code) = reap(pid) {
                    return ExitCode::from(code);
                }
            }
            // One that has just ended hears nothing.
            Ok(signal) => drop(process::kill(pid, signal)),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return failed("init", &error.to_string(), 125),
        }
    }
}

/// Takes all that have ended; the program's exit code if it is among them.
fn reap(program: i32) -> Option<u8> {
    let mut code = None;
    while let Ok(Some((pid, status))) = rustix::process::waitpid(None, WaitOptions::NOHANG) {
        if Some(pid) == Pid::from_raw(program) {
            let status = std::process::ExitStatus::from_raw(status.as_raw());
            let ended = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
            code = Some(ended.and_then(|code| u8::try_from(code).ok()).unwrap_or(125));
        }
    }
    code
}

fn failed(what: &str, why: &str, code: u8) -> ExitCode {
    // There is nobody to tell that this could not be said.
    let _ = writeln!(std::io::stderr(), "{what}: {why}");
    ExitCode::from(code)
}
