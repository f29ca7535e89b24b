//! `cargo xtask guest`: the engine's tests on a machine with control groups v2 alone, as boards have them.
//!
//! The machine is a qemu guest without KVM, where everything takes ten times as long: the gate runs of each program what
//! control groups have a part in, `--long` all of it.

mod image;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::steps::{executables, root, say};

/// A run of a test program in the guest.
struct Part {
    program: &'static str,
    /// `EDGE_AGENT_RUNTIME`; nothing for a program that tries all runtimes itself.
    runtime: &'static str,
    /// What the gate runs of it; all is `&["*"]`.
    gate: &'static [&'static str],
    /// What it may take, of all tests.
    seconds: u32,
    /// Which of the guest's two processors it is for.
    lane: u32,
}

const ALL: &[&str] = &["*"];
const PARTS: &[Part] = &[
    Part { program: "runtime", runtime: "", gate: RUNTIME, seconds: 900, lane: 0 },
    Part { program: "shim", runtime: "embedded", gate: SHIM, seconds: 900, lane: 0 },
    Part { program: "container_engine", runtime: "", gate: ALL, seconds: 300, lane: 1 },
    Part { program: "limits", runtime: "embedded", gate: ALL, seconds: 600, lane: 1 },
    Part { program: "limits", runtime: "runc", gate: ALL, seconds: 600, lane: 0 },
    Part { program: "containers", runtime: "embedded", gate: CONTAINERS, seconds: 1200, lane: 1 },
    Part { program: "shim", runtime: "runc", gate: &[], seconds: 900, lane: 1 },
    Part { program: "containers", runtime: "runc", gate: &[], seconds: 1200, lane: 0 },
    Part { program: "networks", runtime: "", gate: &[], seconds: 900, lane: 1 },
];
/// With the embedded runtime and with runc, each.
const RUNTIME: &[&str] = &[
    "life::a_container_divides_its_own_control_group",
    "life::all_processes_are_killed_not_the_first_alone",
    "life::the_whole_life_of_a_container",
    "limits::a_device_that_is_denied_is_denied_through_any_node",
    "limits::limits_hold",
    "limits::limits_reach_the_kernel_and_change",
];
const SHIM: &[&str] = &[
    "a_shim_that_is_killed",
    "out_of_memory",
    "output_and_exit_codes",
    "pause_resume_update_and_signals",
    "what_outlives_the_first_process_is_killed",
];
const CONTAINERS: &[&str] = &[
    "a_container_runs_from_its_creation_to_its_removal",
    "everything_is_found_again",
    "signals_grace_and_pausing",
    "user_namespaces_of_their_own",
];
/// Unit tests of the library that are about the kernel's control groups.
const UNIT: &str = "container_engine";
/// What a part may take in the gate, seconds: some ten times what it takes on a machine that does nothing else.
const GATE: u32 = 300;
/// How long the guest may take from power-on to its first program.
const BOOT: Duration = Duration::from_secs(180);

impl Part {
    fn name(&self) -> String {
        if self.runtime.is_empty() { self.program.to_owned() } else { format!("{}-{}", self.program, self.runtime) }
    }

    /// What the test program is told to run.
    fn filter(&self, long: bool) -> String {
        match self.gate {
            _ if self.program == UNIT => "cgroup::".to_owned(),
            gate if long || gate == ALL => String::new(),
            gate => format!("--exact {}", gate.join(" ")),
        }
    }

    /// How long it may take; what takes longer hangs.
    fn seconds(&self, long: bool) -> u32 {
        if long { self.seconds } else { self.seconds.min(GATE) }
    }

    /// A line of `/suite`.
    fn line(&self, long: bool) -> String {
        let (name, runtime) = (self.name(), if self.runtime.is_empty() { "-" } else { self.runtime });
        let (program, filter) = (self.program, self.filter(long));
        // Times are told: what is slow here is seen at once.
        let fixed = "--test-threads=1 -Zunstable-options --report-time";
        format!("{} {name} {} {runtime} /suite.d/{program} {fixed} {filter}\n", self.lane, self.seconds(long))
    }
}

/// Builds the guest and runs in it what the gate runs; or the parts whose name begins with `only`, those whole.
pub fn run(only: Option<&str>) -> Result<()> {
    run_parts(only, only.is_some())
}

/// The same with everything.
pub fn run_long() -> Result<()> {
    run_parts(None, true)
}

fn run_parts(only: Option<&str>, long: bool) -> Result<()> {
    let wanted = |part: &&Part| match only {
        Some(only) => part.name().starts_with(only),
        None => long || !part.gate.is_empty(),
    };
    let parts: Vec<&Part> = PARTS.iter().filter(wanted).collect();
    let names = || PARTS.iter().map(Part::name).collect::<Vec<_>>().join(", ");
    ensure!(!parts.is_empty(), "the suite has no part {only:?}; there are: {}", names());
    ensure!(std::env::consts::ARCH == "x86_64", "the guest runs this machine's programs, and its kernel is for x86_64");
    let begun = Instant::now();
    let work = root().join("target/guest");
    let _ = fs::remove_dir_all(&work); // From an earlier run, if there was one.
    fs::create_dir_all(&work)?;
    let kernel = image::kernel(&work)?;
    image::initramfs(&work, &kernel)?;
    let suite: String = parts.iter().map(|part| part.line(long)).collect();
    image::disk(&work, &kernel, &suite, &programs(&parts)?)?;
    say(&format!("   the guest was made in {} s", begun.elapsed().as_secs()));
    let longest = parts.iter().map(|part| u64::from(part.seconds(long))).sum();
    boot(&work, &kernel.file()?, Duration::from_secs(longest))?;
    verdict(&work.join("console.log"), &parts, long)?;
    // It is large; what was in it has passed.
    fs::remove_file(work.join("disk.img"))?;
    Ok(())
}

/// What cargo builds, as the gate builds it, or all would be built anew: (where it is in the guest, where it is here).
fn programs(parts: &[&Part]) -> Result<Vec<(PathBuf, PathBuf)>> {
    let mut programs = Vec::new();
    for (name, path) in executables(&["build", "--workspace", "--all-targets"])? {
        match name.as_str() {
            "edge-agent" => programs.push(("/usr/local/bin/edge-agent".into(), path)),
            // The test of shims knows it by the place where cargo put it.
            "verbs" => programs.push((path.clone(), path)),
            _ => {}
        }
    }
    ensure!(programs.len() == 2, "cargo built no edge-agent or no verbs");
    let tests = executables(&["test", "--workspace", "--no-run"])?;
    for part in parts {
        let place = Path::new("/suite.d").join(part.program);
        let found = tests.iter().find(|(name, _)| name == part.program);
        let (_, path) = found.with_context(|| format!("cargo built no test program called {}", part.program))?;
        if !programs.iter().any(|(other, _)| *other == place) {
            programs.push((place, path.clone()));
        }
    }
    Ok(programs)
}

/// Powers the guest on and follows its console to the end.
fn boot(work: &Path, kernel: &Path, longest: Duration) -> Result<()> {
    let console = work.join("console.log");
    let output = File::create(&console)?;
    // With this program the guest ends too, however it ends.
    let mut qemu = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
        .args(["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "Nehalem", "-smp", "2", "-m", "2048", "-nodefaults"])
        .args(["-display", "none", "-no-reboot", "-serial", "stdio"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(work.join("initrd.img"))
        // Reports of the kernel would stand in the middle of the tests' lines; its last words are shown all the same.
        .args(["-append", "console=ttyS0 loglevel=1 panic=-1 mitigations=off random.trust_cpu=on"])
        .arg("-drive")
        .arg(format!("if=virtio,format=raw,cache=unsafe,file={}", work.join("disk.img").display()))
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn()
        .context("cannot start qemu-system-x86_64: run `cargo xtask setup`")?;
    let deadline = Instant::now() + BOOT + longest;
    let mut shown = 0;
    while qemu.try_wait()?.is_none() {
        shown = follow(&console, shown)?;
        if Instant::now() > deadline {
            qemu.kill()?;
            qemu.wait()?;
        } else {
            std::thread::sleep(Duration::from_millis(500));
        }
    }
    follow(&console, shown).map(drop)
}

/// Shows the guest's own lines as they come.
fn follow(console: &Path, shown: usize) -> Result<usize> {
    let text = String::from_utf8_lossy(&fs::read(console)?).into_owned();
    let lines: Vec<_> = text.lines().filter(|line| line.starts_with("GUEST-")).collect();
    for line in lines.iter().skip(shown) {
        say(&format!("   {}", line.trim()));
    }
    Ok(lines.len())
}

fn verdict(console: &Path, parts: &[&Part], long: bool) -> Result<()> {
    let text = String::from_utf8_lossy(&fs::read(console)?).into_owned();
    let mut passed = 0;
    for part in parts {
        let name = part.name();
        let section =
            text.split_once(&format!("GUEST-BEGIN {name} ")).and_then(|(_, rest)| rest.split_once("GUEST-END "));
        let Some((section, end)) = section else {
            let tail: Vec<_> = text.lines().rev().take(20).collect();
            let tail = tail.into_iter().rev().collect::<Vec<_>>().join("\n  ");
            bail!("in the guest, {name} did not end\n  {tail}\n  all of it: {}", console.display());
        };
        let tests = |how: &str| section.lines().filter(|line| line.starts_with("test ") && line.contains(how)).count();
        if !end.starts_with(&format!("{name} 0 ")) {
            bail!("in the guest, {name} failed\n{section}\n  all of it: {}", console.display());
        }
        // A name that no test has any more, or a filter that takes nothing, must not pass.
        let (ran, wanted) = (tests(" ... ok"), if long || part.gate == ALL { 1 } else { part.gate.len() });
        ensure!(ran >= wanted, "of {name} {ran} tests ran in the guest, not {wanted}: see {}", console.display());
        passed += ran;
    }
    say(&format!("   {passed} tests passed in the guest"));
    Ok(())
}
