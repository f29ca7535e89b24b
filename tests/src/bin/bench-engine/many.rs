//! Fifty containers at once, and what each costs at rest.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use tests::bench::{Table, cpu, mb, memory};
use tests::{images, registry::Registry};

use crate::{Plan, contenders::Contender, sample};

const CONTAINERS: usize = 50;
/// How long the processor time at rest is watched.
const REST: Duration = Duration::from_secs(20);

/// Runs it, one contender after the other, some rounds.
pub fn run(plan: &Plan, dir: &Path) -> Result<Table> {
    let registry = Registry::start(dir)?;
    let image = registry.push(&images::busybox(dir)?, "busybox:latest")?;
    let contenders: Vec<_> = Contender::all(dir)?.into_iter().filter(|it| it.detach(&image, "x").is_some()).collect();
    let mut times = vec![Vec::new(); contenders.len()];
    let mut rest = vec![None; contenders.len()];
    for contender in &contenders {
        sample::time(&mut contender.pull(&image))?;
    }
    let rounds = plan.rounds.min(3);
    for round in 0..rounds {
        for (n, contender) in contenders.iter().enumerate() {
            let idle = contender.daemon().first().map(|pid| memory(*pid)).transpose()?;
            let before = processes()?;
            times[n].push(tests::bench::ms(start(contender, &image)?));
            if round == rounds - 1 {
                rest[n] = Some((idle, at_rest(&before, &contender.daemon())?));
            }
            for i in 0..CONTAINERS {
                contender.kill(&format!("many-{i}"))?;
            }
        }
    }
    let columns =
        ["", "50 at once, ms", "daemon idle, PSS MB", "private memory of one more, MB", "CPU in 20 s at rest, ms"];
    let mut table = Table::new("Fifty containers of `sleep`", &columns);
    for (n, contender) in contenders.iter().enumerate() {
        let time = tests::bench::median(times[n].clone());
        let Some((idle, (private, busy))) = rest[n] else { continue };
        let idle =
            idle.map_or_else(|| "no daemon".to_owned(), |(anonymous, file)| format!("{:.1}", mb(anonymous + file)));
        table.row(&[
            contender.name.to_owned(),
            tests::bench::thousands(time),
            idle,
            format!("{:.2}", mb(private) / 50.0),
            busy.as_millis().to_string(),
        ]);
    }
    table.note("Private memory: of all processes that the fifty brought with them, shims and `sleep` itself, divided by fifty.");
    Ok(table)
}

/// All commands begin at the same moment; until the last has ended.
fn start(contender: &Contender, image: &str) -> Result<Duration> {
    let begun = Instant::now();
    let mut children = Vec::new();
    for i in 0..CONTAINERS {
        let Some(mut command) = contender.detach(image, &format!("many-{i}")) else { continue };
        children.push(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
    }
    let mut failed = 0;
    for mut child in children {
        failed += usize::from(!child.wait()?.success());
    }
    ensure!(failed == 0, "{}: {failed} of {CONTAINERS} did not start", contender.name);
    Ok(begun.elapsed())
}

fn processes() -> Result<BTreeSet<u32>> {
    Ok(fs::read_dir("/proc")?.flatten().filter_map(|it| it.file_name().to_str()?.parse().ok()).collect())
}

/// Private KiB of the processes that are new, and what they and the daemon computed while nothing happened.
fn at_rest(before: &BTreeSet<u32>, daemon: &[u32]) -> Result<(u64, Duration)> {
    std::thread::sleep(Duration::from_secs(2));
    let new: Vec<_> = processes()?.difference(before).copied().collect();
    let private = new.iter().map(|pid| private(*pid)).sum();
    let busy = || new.iter().chain(daemon).map(|pid| cpu(*pid).unwrap_or_default()).sum::<Duration>();
    let begin = busy();
    std::thread::sleep(REST);
    Ok((private, busy().saturating_sub(begin)))
}

fn private(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let lines = text.lines().filter(|line| line.starts_with("Private_Clean:") || line.starts_with("Private_Dirty:"));
    lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum()
}
