//! The hidden verbs alone (`shim`, `oci-runtime`, …), for tests of these without the rest of the program.

use std::process::ExitCode;

/// As in the program itself: it is part of what a shim costs.
#[global_allocator]
static ALLOCATOR: board::sys::allocator::Allocator = board::sys::allocator::Allocator;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    container_engine::verb::dispatch(&args).unwrap_or(ExitCode::from(2))
}
