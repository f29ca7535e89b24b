//! The hidden verbs alone (`shim`, `oci-runtime`, …), for tests of these without the rest of the program.

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    container_engine::verb::dispatch(&args).unwrap_or(ExitCode::from(2))
}
