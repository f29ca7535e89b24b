//! `cargo xtask test`: named, timed steps, quick failures first.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{dist, fuzz, guest, setup, tidy};

/// The top of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_owned()
}

/// Runs a program at the top of the repository; its failure is an error that names it.
pub fn exec(program: &str, args: &[&str], env: &[(&str, &str)]) -> Result<()> {
    let mut command = Command::new(program);
    command.args(args).current_dir(root()).envs(env.iter().copied());
    let status = command.status().with_context(|| format!("cannot start {program}"))?;
    ensure!(status.success(), "`{program} {}` failed ({status})", args.join(" "));
    Ok(())
}

/// Runs cargo.
pub fn cargo(args: &[&str], env: &[(&str, &str)]) -> Result<()> {
    exec(&std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()), args, env)
}

/// Says what begins; the value says how long it took.
struct Step {
    name: String,
    begun: Instant,
}

fn step(name: &str) -> Step {
    say(&format!("── {name}"));
    Step { name: name.to_owned(), begun: Instant::now() }
}

impl Drop for Step {
    fn drop(&mut self) {
        say(&format!("   {} took {} s", self.name, self.begun.elapsed().as_secs()));
    }
}

/// Prints a line: this program talks to people.
#[allow(clippy::print_stdout)]
pub fn say(line: &str) {
    println!("{line}");
}

/// Everything, or only the tests whose name contains `only`.
pub fn test(only: Option<&str>, rounds: Option<u32>) -> Result<()> {
    let tools = {
        let _step = step("setup");
        setup::run()?
    };
    let rounds = rounds.map(|rounds| rounds.to_string());
    let mut env = vec![("EDGE_AGENT_PYTHON", tools.python.as_str())];
    if let Some(rounds) = &rounds {
        env.push(("EDGE_AGENT_ROUNDS", rounds));
    }
    if let Some(only) = only {
        build()?;
        return tests(&["--", only], &env);
    }
    checks(&tools)?;
    build()?;
    // The static binary is linked by one core for minutes, and the tests mostly wait for servers: both at once.
    std::thread::scope(|scope| {
        let binary = scope.spawn(|| {
            let _step = step("static binary for aarch64");
            dist::run("aarch64")
        });
        tests(&[], &env)?;
        with_runc(&env)?;
        {
            let _step = step("fuzz");
            fuzz::run(5, None)?;
        }
        {
            let _step = step("control groups v2");
            guest::run(None)?;
        }
        binary.join().map_err(|_| anyhow::anyhow!("building the static binary panicked"))?
    })?;
    dist::smoke("aarch64")?;
    say("all steps passed");
    Ok(())
}

fn build() -> Result<()> {
    let _step = step("build");
    cargo(&["build", "--workspace", "--all-targets"], &[])
}

fn tests(more: &[&str], env: &[(&str, &str)]) -> Result<()> {
    let _step = step("tests");
    cargo(&[&["test", "--workspace", "--no-fail-fast"], more].concat(), env)
}

/// What an engine does with another runtime than its own. (`runtime` compares all of them by itself.)
fn with_runc(env: &[(&str, &str)]) -> Result<()> {
    let _step = step("containers through runc");
    // Programs that are there already: a choice of some by cargo's options would have it choose other features of their
    // libraries, and build those anew.
    let programs = executables(&["test", "--workspace", "--no-run"])?;
    for suite in ["shim", "containers", "limits"] {
        let found = programs.iter().find(|(name, _)| name == suite);
        let (_, program) = found.with_context(|| format!("cargo built no test program called {suite}"))?;
        let mut command = Command::new(program);
        command.current_dir(root().join("tests")).envs(env.iter().copied()).env("EDGE_AGENT_RUNTIME", "runc");
        let status = command.status().with_context(|| format!("cannot start {}", program.display()))?;
        ensure!(status.success(), "{suite} failed with runc ({status})");
    }
    Ok(())
}

/// Names and paths of the programs that a cargo command builds, of tests or else of none.
pub fn executables(args: &[&str]) -> Result<Vec<(String, PathBuf)>> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(args).arg("--message-format=json-render-diagnostics").current_dir(root());
    let output = command.stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "`cargo {}` failed", args.join(" "));
    let messages = output.stdout.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
    let tests = args.contains(&"test");
    let found = messages.filter_map(|message: serde_json::Value| {
        let path = message["executable"].as_str()?;
        let name = message["target"]["name"].as_str()?;
        (message["profile"]["test"].as_bool()? == tests).then(|| (name.to_owned(), PathBuf::from(path)))
    });
    Ok(found.collect())
}

fn checks(tools: &setup::Tools) -> Result<()> {
    {
        let _step = step("format and map");
        cargo(&["fmt", "--all", "--check"], &[])?;
        tidy::run()?;
    }
    {
        let _step = step("licences and bans");
        // The advisory database is fetched from elsewhere, which tests must not do.
        say("   advisories are not checked here: that needs a network; `cargo deny check advisories` does it");
        exec(&tools.cargo_deny, &["check", "bans", "licenses", "sources"], &[])?;
    }
    let _step = step("clippy");
    cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"], &[])
}

/// Looks a program up.
pub fn on_path(program: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output();
    found.is_ok_and(|output| output.status.success())
}

/// Asserts that a program is there.
pub fn need(program: &str, from: &str) -> Result<()> {
    if on_path(program) { Ok(()) } else { bail!("{program} is missing: install {from}") }
}
