//! `cargo xtask bench telemetry|engine`: the shipped binary beside its peers; results in `bench/`.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{
    dist, setup,
    steps::{cargo, root, say},
};

/// One benchmark: its measuring program, its report, the peers whose versions the report names.
pub struct Bench {
    name: &'static str,
    program: &'static str,
    report: &'static str,
    peers: &'static [&'static str],
    /// What the measuring program is started by, in a place of its own that leaves nothing behind.
    within: &'static [&'static str],
    /// Debian packages that only this benchmark needs: a program, and the package it comes from.
    packages: &'static [(&'static str, &'static str)],
}

/// Beside mosquitto.
pub const TELEMETRY: Bench = Bench {
    name: "telemetry",
    program: "bench-telemetry",
    report: "bench/RESULTS.md",
    peers: &["mosquitto"],
    within: &[],
    packages: &[],
};

/// Beside containerd, Docker, podman, buildah, skopeo, runc and crun.
pub const ENGINE: Bench = Bench {
    name: "engine",
    program: "bench-engine",
    report: "bench/ENGINE.md",
    peers: &["containerd", "docker.io", "podman", "buildah", "skopeo", "runc", "crun"],
    // The shell stays, to reap what is left to it. A run that fails takes shims, containers, mounts and devices with it, whosever they are.
    within: &[
        "unshare",
        "--net",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "sh",
        "-c",
        "ip link set lo up && mount -t tmpfs tmpfs /run && \"$@\"; exit $?",
        "sh",
    ],
    packages: &[
        ("/usr/bin/containerd", "containerd"),
        ("/usr/sbin/dockerd", "docker.io"),
        ("/usr/bin/podman", "podman"),
        ("/usr/bin/buildah", "buildah"),
        ("/usr/bin/skopeo", "skopeo"),
        ("/usr/bin/docker-registry", "docker-registry"),
    ],
};

/// Builds what is measured, measures, and writes the report; `arguments` go to the measuring program.
pub fn run(bench: &Bench, arguments: &[String]) -> Result<()> {
    let tools = setup::run()?;
    setup::packages(bench.packages)?;
    let arch = std::env::consts::ARCH;
    dist::run(arch)?;
    cargo(&["build", "--package", "tests", "--profile", "fast", "--bin", bench.program], &[])?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), Into::into);
    let program = target.join("fast").join(bench.program);
    let mut words = bench.within.iter().map(std::ffi::OsStr::new).chain([program.as_os_str()]);
    let output = Command::new(words.next().context("nothing to start")?)
        .args(words)
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
        say(&format!("   a part only: {} stays as it is", bench.report));
        return Ok(());
    }
    let path = root().join(bench.report);
    let report = std::fs::read_to_string(&path)?;
    // What follows it in the report is measured; what stands before it is written by people.
    let mark = format!("<!-- measured by `cargo xtask bench {}` -->", bench.name);
    let (words, _) = report.split_once(&mark).with_context(|| format!("{} has lost its mark", bench.report))?;
    std::fs::write(&path, format!("{words}{mark}\n\n{}\n\n{}\n", machine(bench.peers), measured.trim_end()))?;
    say(&format!("   written to {}; see to it that what it says above the tables is still true", path.display()));
    Ok(())
}

/// What it was measured on.
fn machine(peers: &[&str]) -> String {
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
    let version = |peer: &&str| format!("{peer} {}", said("dpkg-query", &["-W", "-f", "${Version}", peer]));
    let peers = peers.iter().map(version).collect::<Vec<_>>().join(", ");
    format!(
        "{cores} cores ({}), {memory} of memory, Linux {}, {peers}, commit {}, {}. A shared virtual \
         machine: ratios hold, absolute figures vary by a factor of two from hour to hour.",
        model.trim_start_matches([' ', '\t', ':']),
        kernel.trim(),
        said("git", &["rev-parse", "--short", "HEAD"]),
        said("date", &["-u", "+%Y-%m-%d"]),
    )
}
