//! `cargo xtask bench telemetry`: the agent beside Debian's mosquitto as an edge bridge, same load, interleaved.
//!
//! Every figure is the median of some rounds in which the contenders took turns, so that what else the machine does meets
//! all of them. Prints a table in Markdown; `xtask` writes it to `bench/RESULTS.md`.

mod backlog;
mod brokers;
mod ingest;
mod load;
mod loss;
mod proxy;
mod quiet;
mod upload;

use std::path::PathBuf;

use anyhow::Result;
use tests::bench::{self as measure, Table};

/// What is asked for on the command line.
struct Plan {
    rounds: usize,
    readings: u64,
    backlog: u64,
    upload_mib: u64,
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
        readings: number("--readings", 100_000),
        backlog: number("--backlog", 5_000_000),
        upload_mib: number("--upload-mib", 2048),
        only,
    }
}

type Part = fn(&Plan, &std::path::Path) -> Result<Table>;

#[allow(clippy::print_stdout)] // The report is its output.
fn main() -> Result<()> {
    let plan = plan();
    let parts: [(&str, Part); 6] = [
        ("ingest", ingest::run),
        ("loss", loss::run),
        ("quiet", quiet::run),
        ("wire", backlog::wire),
        ("backlog", backlog::run),
        ("upload", upload::run),
    ];
    // On a disk, not in memory: what is measured is fdatasync.
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
