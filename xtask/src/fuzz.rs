//! `cargo xtask fuzz`: builds the targets in `fuzz/` and runs each for a while, from its seeds.
//!
//! Works with the stable compiler: `RUSTC_BOOTSTRAP` lets it set flags of single packages. Only those whose paths matter
//! are instrumented; with all of them the build would take three times as long. No address sanitizer: the parsers have no
//! `unsafe`, and limits on memory and time find the rest. (`cargo fuzz`, which has it, runs the same targets.)
//!
//! The tree is not changed but for reproducers in `fuzz/artifacts/TARGET/`, which are tried first the next time.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
};

use anyhow::{Context, Result, bail, ensure};

use crate::steps::{root, say};

/// Whose paths steer the search.
const INSTRUMENTED: &[&str] =
    &["fuzz", "container-engine", "telemetry", "store", "rumqttc", "serde_cbor", "lz4_flex", "simple-dns", "tar"];
const COVERAGE: &str = r#"["-Cpasses=sancov-module", "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters", "-Cllvm-args=-sanitizer-coverage-pc-table"]"#;

/// Builds all targets; runs the one called `only`, or all, for `seconds` each.
pub fn run(seconds: u32, only: Option<&str>) -> Result<()> {
    let targets = targets(only)?;
    let programs = build()?;
    // A reproducer found by one does not keep the others from running.
    let (queue, failures) = (Mutex::new(targets.into_iter()), Mutex::new(Vec::new()));
    let next = || queue.lock().ok()?.next();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(target) = next() {
                    let result = fuzz(&programs, &target, seconds);
                    if let (Err(error), Ok(mut failures)) = (result, failures.lock()) {
                        failures.push(format!("{error:#}"));
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap_or_default();
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

/// Names of the targets: the files in `fuzz/fuzz_targets`.
fn targets(only: Option<&str>) -> Result<Vec<String>> {
    let dir = root().join("fuzz/fuzz_targets");
    let mut names = Vec::new();
    for entry in fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))? {
        names.extend(entry?.path().file_stem().map(|name| name.to_string_lossy().into_owned()));
    }
    names.sort();
    if let Some(only) = only {
        ensure!(names.iter().any(|name| name == only), "no target is called {only}; there are: {}", names.join(", "));
        names.retain(|name| name == only);
    }
    ensure!(!names.is_empty(), "no targets found in {}", dir.display());
    Ok(names)
}

/// Builds the targets; returns the folder of the programs.
fn build() -> Result<PathBuf> {
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let dir = root().join("target/fuzz");
    let mut cargo = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()));
    cargo.args(["build", "--locked", "--bins", "--target", &triple, "-Zprofile-rustflags", "--target-dir"]).arg(&dir);
    for package in INSTRUMENTED {
        cargo.arg("--config").arg(format!("profile.dev.package.{package}.rustflags={}", COVERAGE.replace('\n', " ")));
    }
    // With a target named, RUSTFLAGS do not reach build scripts. Warnings of a build for tests only help nobody.
    cargo.envs([("RUSTC_BOOTSTRAP", "1"), ("RUSTFLAGS", "--cfg fuzzing --cap-lints=allow")]);
    let status = cargo.current_dir(root().join("fuzz")).status().context("cannot start cargo")?;
    ensure!(status.success(), "the fuzz targets do not build ({status})");
    Ok(dir.join(triple).join("debug"))
}

fn fuzz(programs: &Path, target: &str, seconds: u32) -> Result<()> {
    let work = root().join("target/fuzz/corpus").join(target);
    let artifacts = root().join("fuzz/artifacts").join(target);
    let log = root().join("target/fuzz").join(format!("{target}.log"));
    // Begun anew, so that a run depends on the tree alone.
    if work.exists() {
        fs::remove_dir_all(&work)?;
    }
    fs::create_dir_all(&work)?;
    fs::create_dir_all(&artifacts)?;
    let output = File::create(&log)?;
    let status = Command::new(programs.join(target))
        // Finds go into the first folder; the others are only read.
        .args([&work, &root().join("fuzz/corpus").join(target), &artifacts])
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg(format!("-max_total_time={seconds}"))
        .args(["-max_len=4096", "-rss_limit_mb=512", "-malloc_limit_mb=256", "-timeout=10", "-print_final_stats=1"])
        .env("RUST_BACKTRACE", "1")
        .stdout(output.try_clone()?)
        .stderr(output)
        .status()
        .with_context(|| format!("cannot start {target}"))?;
    let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    let after = |words: &str| text.lines().rev().find_map(|line| Some(line.split_once(words)?.1.trim()));
    if status.success() {
        let runs = after("stat::number_of_executed_units:");
        // A target that runs nothing must not pass.
        let runs = runs.and_then(|runs| runs.parse::<u64>().ok()).filter(|runs| *runs > 0);
        let runs = runs.with_context(|| format!("fuzz target {target} ran nothing: see {}", log.display()))?;
        say(&format!("   {target}: {runs} inputs in {seconds} s"));
        return Ok(());
    }
    let problem = text.lines().skip_while(|line| !line.contains("panicked at") && !line.starts_with("==")).take(3);
    let problem = problem.collect::<Vec<_>>().join("\n  ");
    let reproducer = after("Test unit written to ").unwrap_or("no reproducer");
    let program = programs.join(target);
    bail!(
        "fuzz target {target} failed ({status}):\n  {problem}\n  reproducer: {reproducer}\n  again: {} {reproducer}\n  output: {}",
        program.display(),
        log.display()
    )
}
