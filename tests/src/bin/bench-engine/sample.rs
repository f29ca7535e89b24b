//! Peak memory of a command and of the daemon that works for it.

use std::{
    collections::BTreeMap,
    fs,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use tests::bench::memory;

/// Between two looks at the memory.
const INTERVAL: Duration = Duration::from_millis(25);

/// What one run took.
pub struct Run {
    /// Wall clock.
    pub time: Duration,
    /// Most proportional set size seen at once, KiB: the command, what it started, the daemons and what they started.
    pub peak_kib: u64,
}

/// Runs a command to its end, without its output; its failure is an error with its words.
pub fn run(command: &mut Command, daemons: &[u32]) -> Result<Run> {
    measure(command, daemons, true)
}

/// The same, without looking at memory: for what takes milliseconds.
pub fn time(command: &mut Command) -> Result<Duration> {
    Ok(measure(command, &[], false)?.time)
}

fn measure(command: &mut Command, daemons: &[u32], sample: bool) -> Result<Run> {
    let words = format!("{command:?}");
    let done = AtomicBool::new(false);
    let peak = AtomicU64::new(0);
    let begun = Instant::now();
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.with_context(|| words.clone())?;
    let roots: Vec<u32> = daemons.iter().copied().chain([child.id()]).collect();
    let (output, time) = std::thread::scope(|scope| {
        if sample {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    peak.fetch_max(family(&roots), Ordering::Relaxed);
                    std::thread::sleep(INTERVAL);
                }
            });
        }
        let output = child.wait_with_output();
        let time = begun.elapsed();
        done.store(true, Ordering::Relaxed);
        (output, time)
    });
    let output = output?;
    ensure!(output.status.success(), "{words}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(Run { time, peak_kib: peak.into_inner() })
}

/// Proportional set size of processes and all they started, KiB.
fn family(roots: &[u32]) -> u64 {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for pid in
        fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|it| it.file_name().to_str()?.parse().ok())
    {
        children.entry(parent(pid)).or_default().push(pid);
    }
    let mut queue = roots.to_vec();
    let mut sum = 0;
    while let Some(pid) = queue.pop() {
        // One that has just gone takes nothing.
        sum += memory(pid).map_or(0, |(anonymous, file)| anonymous + file);
        queue.extend(children.remove(&pid).unwrap_or_default());
    }
    sum
}

/// The parent of a process; 0 where it is gone.
pub fn parent(pid: u32) -> u32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
    after.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or(0)
}
