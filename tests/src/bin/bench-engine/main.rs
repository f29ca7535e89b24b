//! `cargo xtask bench engine`: the container engine beside Debian's containerd, Docker, podman, buildah, skopeo and runc, on the
//! same registry and images, interleaved.
//!
//! Every figure is the median of some rounds in which the contenders took turns, so that what else the machine does meets
//! all of them. Prints tables in Markdown; `xtask` writes them to `bench/ENGINE.md`.

mod contenders;
mod daemons;
mod many;
mod pull;
mod push;
mod sample;
mod start;

use std::path::{Path, PathBuf};

use anyhow::Result;
use tests::bench::Table;

/// What is asked for on the command line.
struct Plan {
    rounds: usize,
    starts: usize,
    files: u64,
    only: Option<String>,
}

fn plan() -> Plan {
    let number = |name: &str, usual: u64| {
        let mut arguments = std::env::args().skip_while(|it| it != name).skip(1);
        arguments.next().and_then(|text| text.parse().ok()).unwrap_or(usual)
    };
    let only = std::env::args().skip_while(|it| it != "--only").nth(1);
    Plan {
        rounds: usize::try_from(number("--rounds", 5)).unwrap_or(5),
        starts: usize::try_from(number("--starts", 15)).unwrap_or(15),
        files: number("--files", 500_000),
        only,
    }
}

type Part = fn(&Plan, &Path) -> Result<Table>;

#[allow(clippy::print_stdout)] // The report is its output.
fn main() -> Result<()> {
    let plan = plan();
    let parts: [(&str, Part); 5] =
        [("pull", pull::run), ("large", pull::large), ("start", start::run), ("many", many::run), ("push", push::run)];
    // On a disk, not in memory: that is where images go.
    let base = std::env::var_os("EDGE_AGENT_BENCH_DIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
    for (name, part) in parts {
        if plan.only.as_ref().is_some_and(|only| only != name) {
            continue;
        }
        let dir = tempfile::tempdir_in(&base)?;
        println!("{}", part(&plan, dir.path())?.markdown());
    }
    Ok(())
}
