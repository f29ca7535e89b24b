//! The hidden verbs alone, as a program: what the engine executes for layers, shims and containers. The tests of this
//! crate use it where a user has `edge-agent`.

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    container_engine::verb::dispatch(&args).unwrap_or_else(|| ExitCode::from(2))
}
