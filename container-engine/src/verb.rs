//! The hidden verbs: processes of this same file that are no command of a user's. `main` asks here first, before an
//! allocator is tuned, a runtime started or a command line parsed: a shim has to be small, a runtime single-threaded.

use std::{ffi::OsString, process::ExitCode};

/// Runs the hidden verb that `args` (without the program's name) names; `None` where it names none.
///
/// * `shim`: stays with one container (`shim`).
/// * `oci-runtime`: runc's command line on libcontainer (`runtime`).
/// * `unpack`: one layer from standard input to a tree, confined (`snapshot`).
pub fn dispatch(args: &[OsString]) -> Option<ExitCode> {
    match args.first()?.to_str()? {
        // Each room adds its verb here.
        _ => None,
    }
}
