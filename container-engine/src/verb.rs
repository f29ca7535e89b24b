//! The hidden verbs: processes of this same file that are no command of a user's. `main` asks here first, before an
//! allocator is tuned, a runtime started or a command line parsed: a shim has to be small, a runtime single-threaded.

use std::{ffi::OsString, process::ExitCode};

/// Runs the hidden verb that `args` (without the program's name) names; `None` where it names none.
///
/// * `container-init`: the first process of a container that asks for one (`container`).
/// * `shared-namespaces`: makes what the containers of a pod share (`container`).
/// * `shim`: stays with one container (`shim`).
/// * `oci-runtime`: runc's command line on libcontainer (`runtime`).
/// * `unpack`: one layer from standard input to a tree, confined (`snapshot`).
pub fn dispatch(args: &[OsString]) -> Option<ExitCode> {
    let verb = VERBS.iter().find(|(name, _)| args.first().is_some_and(|arg| arg == name))?;
    Some((verb.1)(&args[1..]))
}

/// Runs one verb with the arguments that follow its name.
type Verb = fn(&[OsString]) -> ExitCode;

/// Each room adds its verb here.
const VERBS: &[(&str, Verb)] = &[
    ("container-init", crate::container::init::main),
    ("oci-runtime", crate::runtime::main),
    ("shared-namespaces", crate::container::pause::main),
    ("shim", crate::shim::server::main),
    ("unpack", crate::snapshot::unpack_verb),
];
