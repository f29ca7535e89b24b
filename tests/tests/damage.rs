//! Flipped bits, files cut short, a disk that is full: the agent starts, keeps what can be kept, and goes on.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use tests::{Agent, Dice, Disk, Publisher, rounds, wait_until};

fn files(dir: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() && !path.ends_with("set-aside") {
            files(&path, found)?;
        } else if path.metadata()?.len() > 0 {
            found.push(path);
        }
    }
    found.sort();
    Ok(())
}

/// Flips some bits, or cuts the file short.
fn damage(path: &Path, dice: &mut Dice) -> Result<()> {
    let file = fs::File::options().read(true).write(true).open(path)?;
    let len = file.metadata()?.len();
    if dice.below(8) == 0 {
        return Ok(file.set_len(dice.below(len))?);
    }
    for _ in 0..=dice.below(4) {
        let at = dice.below(len.min(64 << 10)); // Where there is something to hit.
        let mut byte = [0];
        file.read_exact_at(&mut byte, at)?;
        byte[0] ^= 1 << dice.below(8);
        file.write_all_at(&byte, at)?;
    }
    Ok(())
}

#[test]
fn an_agent_starts_on_any_damage_and_repeats_no_number() -> Result<()> {
    let mut dice = Dice::new();
    for round in 0..rounds(15) {
        let dir = tempfile::tempdir()?;
        let mut agent = Agent::new(dir.path(), "")?;
        agent.start()?;
        let publishers: Vec<_> = (0..4).map(|n| Publisher::start(&format!("a{n}"), agent.mqtt)).collect();
        std::thread::sleep(Duration::from_millis(400));
        let before: Vec<_> = publishers.into_iter().flat_map(Publisher::stop).collect();
        agent.stop(Duration::from_secs(10))?;
        let status = agent.query()?;
        let (epoch, last) =
            status.last().map(|row| (row["epoch"].clone(), row["seq"].as_u64())).context("no readings")?;
        let mut all = Vec::new();
        files(agent.data(), &mut all)?;
        let hit = &all[usize::try_from(dice.below(all.len() as u64))?];
        damage(hit, &mut dice)?;
        let what = format!("round {round}, damage in {}", hit.display());
        agent.start().with_context(|| what.clone())?;
        let late = Publisher::start("late", agent.mqtt);
        std::thread::sleep(Duration::from_millis(200));
        let late = late.stop();
        let rows = agent.query()?;
        for row in &rows {
            let text = row["payload"].as_str().unwrap_or_default();
            ensure!(before.iter().chain(&late).any(|it| it == text) || text.contains('-'), "made up: {row}; {what}");
            let new = text.starts_with("late-");
            let repeated = new && row["epoch"] == epoch && row["seq"].as_u64() <= last;
            ensure!(!repeated, "{row} repeats a number given before; {what}");
        }
        let kept = |text: &String| rows.iter().any(|row| row["payload"] == **text);
        ensure!(!late.is_empty() && late.iter().all(kept), "what came after the damage is not there; {what}");
        agent.stop(Duration::from_secs(10)).context(what)?;
    }
    Ok(())
}

#[test]
fn a_full_disk_loses_nothing_and_is_left_behind() -> Result<()> {
    // Full at the lock, at the identity, at sled, at the first segment, at its successor.
    for kib in [8, 64, 300, 700, 4_000, 9_500, 12_000, 18_000] {
        let dir = tempfile::tempdir()?;
        let disk = Disk::tmpfs(dir.path(), kib)?;
        let mut agent = Agent::with_data(dir.path(), &disk.path().join("data"), "")?;
        let starts = agent.start_within(Duration::from_secs(2)).is_ok();
        let publishers: Vec<_> = (0..4).map(|n| Publisher::start(&format!("b{n}"), agent.mqtt)).collect();
        std::thread::sleep(Duration::from_millis(700));
        if !starts {
            let log = agent.log();
            ensure!(log.contains("space"), "{kib} KiB: it does not start and does not say that space is short: {log}");
        }
        disk.resize(64 << 10)?;
        if !starts {
            agent.kill()?; // systemd would start it again.
            agent.start().with_context(|| format!("{kib} KiB, then 64 MiB: {}", agent.log()))?;
        }
        let mut seen = 0;
        wait_until("readings are accepted again", Duration::from_secs(30), || {
            let next = agent.status().ok().and_then(|it| it["outbox"]["next"].as_u64()).unwrap_or(0);
            let more = seen > 0 && next > seen + 50;
            seen = if seen == 0 { next } else { seen };
            more
        })
        .with_context(|| format!("{kib} KiB, then 64 MiB: {}", agent.log()))?;
        let acknowledged: Vec<_> = publishers.into_iter().flat_map(Publisher::stop).collect();
        agent.kill()?;
        let rows = agent.query()?;
        let texts: std::collections::HashSet<_> = rows.iter().filter_map(|row| row["payload"].as_str()).collect();
        let lost: Vec<_> = acknowledged.iter().filter(|text| !texts.contains(text.as_str())).take(5).collect();
        ensure!(lost.is_empty(), "{kib} KiB: acknowledged and lost: {lost:?} …\n{}", agent.log());
    }
    Ok(())
}
