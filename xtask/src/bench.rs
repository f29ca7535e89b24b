//! `cargo xtask bench telemetry`: the shipped binary beside its peers; results in `bench/RESULTS.md`.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{
    dist, setup,
    steps::{cargo, root, say},
};

/// What follows it in the report is measured; what stands before it is written by people.
const MARK: &str = "<!-- measured by `cargo xtask bench telemetry` -->";

/// Builds what is measured, measures, and writes the report; `arguments` go to the measuring program.
pub fn telemetry(arguments: &[String]) -> Result<()> {
    let tools = setup::run()?;
    let arch = std::env::consts::ARCH;
    dist::run(arch)?;
    cargo(&["build", "--package", "tests", "--profile", "fast", "--bin", "bench-telemetry"], &[])?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), Into::into);
    let output = Command::new(target.join("fast/bench-telemetry"))
        .args(arguments)
        .env("EDGE_AGENT_BIN", root().join(format!("target/dist/edge-agent-{arch}")))
        .env("EDGE_AGENT_PYTHON", &tools.python)
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("cannot start the measuring program")?;
    let measured = String::from_utf8_lossy(&output.stdout).into_owned();
    say(&measured);
    ensure!(output.status.success(), "measuring failed ({})", output.status);
    if arguments.iter().any(|it| it == "--only") {
        say("   a part only: bench/RESULTS.md stays as it is");
        return Ok(());
    }
    let path = root().join("bench/RESULTS.md");
    let report = std::fs::read_to_string(&path)?;
    let (words, _) = report.split_once(MARK).context("bench/RESULTS.md has lost its mark")?;
    std::fs::write(&path, format!("{words}{MARK}\n\n{}\n\n{}\n", machine(), measured.trim_end()))?;
    say(&format!("   written to {}; see to it that what it says above the tables is still true", path.display()));
    Ok(())
}

/// What it was measured on.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let cores = cpu.lines().filter(|line| line.starts_with("processor")).count();
    let memory = read("/proc/meminfo");
    let memory = memory.lines().next().unwrap_or_default().trim_start_matches("MemTotal:").trim().to_owned();
    let kernel = read("/proc/sys/kernel/osrelease");
    let said = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output();
        output.map_or_else(|_| String::new(), |it| String::from_utf8_lossy(&it.stdout).trim().to_owned())
    };
    let mosquitto = said("dpkg-query", &["-W", "-f", "${Version}", "mosquitto"]);
    format!(
        "{cores} cores ({}), {memory} of memory, Linux {}, mosquitto {mosquitto}, commit {}, {}. A shared virtual \
         machine: ratios hold, absolute figures vary by a factor of two from hour to hour.",
        model.trim_start_matches([' ', '\t', ':']),
        kernel.trim(),
        said("git", &["rev-parse", "--short", "HEAD"]),
        said("date", &["-u", "+%Y-%m-%d"]),
    )
}
