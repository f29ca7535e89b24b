//! For tests that mount: each in a mount namespace of its own, which takes everything away with it.

use std::process::Command;

const MARK: &str = "EDGE_AGENT_TEST_MOUNTS";

/// Whether the test `name` (its full path) is to go on: it is in a mount namespace of its own. Outside of one it is run again
/// in one, and has passed there when this returns.
pub fn in_own_mounts(name: &str) -> bool {
    if std::env::var_os(MARK).is_some() {
        return true;
    }
    if !rustix::process::geteuid().is_root() {
        #[allow(clippy::print_stderr)]
        {
            eprintln!("{name} was skipped: mounting needs root");
        }
        return false;
    }
    let run = Command::new("unshare")
        .args(["--mount", "--propagation", "private"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(MARK, "1")
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success() && output.contains("1 passed"), "{output}");
    false
}
