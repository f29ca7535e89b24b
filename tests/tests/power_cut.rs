//! The judge of the store: a loop-mounted ext4 is shut down mid-write without flushing its journal, and mounted again.

use std::{
    collections::{BTreeMap, HashMap},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use store::{
    log::{Log, Options},
    state::State,
};
use tests::{
    Agent, Dice, Disk, Publisher, rounds,
    written::{self, Left, Right},
};

/// Writes for a while, cuts the power; returns what was acknowledged before.
fn write_and_cut(half: &str, disk: &Disk, dice: &mut Dice) -> Result<String> {
    let mut writer = Command::new(env!("CARGO_BIN_EXE_store-writer"))
        .args([half])
        .arg(disk.path().join(half))
        .stdout(Stdio::piped())
        .stderr(Stdio::null()) // It complains about the disk that went away.
        .spawn()?;
    let mut lines = writer.stdout.take().context("a pipe")?;
    let reader = std::thread::spawn(move || std::io::read_to_string(&mut lines));
    std::thread::sleep(Duration::from_millis(150));
    dice.pause(Duration::from_millis(600));
    disk.cut()?;
    // Long enough to catch an acknowledgement that should not have been given.
    std::thread::sleep(Duration::from_millis(50));
    let _ = writer.kill(); // It may have ended by itself.
    writer.wait()?;
    let said = reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))??;
    disk.reboot()?;
    Ok(said)
}

#[test]
fn the_log_keeps_what_it_acknowledged_through_power_cuts() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let disk = Disk::ext4(dir.path())?;
    let mut dice = Dice::new();
    let mut acknowledged = BTreeMap::new();
    for round in 0..rounds(20) {
        for line in write_and_cut("log", &disk, &mut dice)?.lines() {
            let Some((seq, id)) = line.split_once(' ') else { continue };
            let (seq, id): (u64, u64) = (seq.parse()?, id.parse()?);
            ensure!(acknowledged.insert(seq, id).is_none(), "round {round}: number {seq} was given twice");
        }
        let (log, recovery) =
            Log::open(&disk.path().join("log"), Options { segment_bytes: 256 << 10, ..Options::default() })?;
        ensure!(recovery.lost.is_empty() && recovery.set_aside.is_empty(), "round {round}: {recovery:?}");
        let mut reader = log.reader(1);
        let (mut next, end) = (1, log.stats().next);
        while next < end {
            let batch = reader.next_batch(1 << 20)?;
            ensure!(batch.missing.is_empty(), "round {round}: missing {:?}", batch.missing);
            ensure!(!batch.records.is_empty(), "round {round}: the log ends at {next}, before {end}");
            for (seq, record) in batch.records {
                ensure!(seq == next, "round {round}: {seq} follows {}", next - 1);
                next += 1;
                let id = record.body.get(..8).and_then(|id| id.try_into().ok()).map_or(0, u64::from_le_bytes);
                ensure!(record.body == written::body(id), "round {round}: record {seq} is not what was written");
                ensure!(acknowledged.get(&seq).is_none_or(|it| *it == id), "round {round}: {seq} holds another record");
            }
        }
        let last = acknowledged.keys().next_back().copied().unwrap_or(0);
        ensure!(end > last, "round {round}: {last} was acknowledged, the log ends at {end}");
        log.close();
    }
    ensure!(acknowledged.len() > 100, "only {} records were acknowledged", acknowledged.len());
    Ok(())
}

#[test]
fn the_state_keeps_what_it_committed_through_power_cuts() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let disk = Disk::ext4(dir.path())?;
    let mut dice = Dice::new();
    let mut committed: HashMap<String, u64> = HashMap::new();
    for round in 0..rounds(20) {
        for line in write_and_cut("state", &disk, &mut dice)?.lines() {
            let Some((key, count)) = line.split_once(' ') else { continue };
            committed.insert(key.to_owned(), count.parse()?);
        }
        let (state, recovery) = State::open(&disk.path().join("state"))?;
        ensure!(recovery.set_aside.is_none(), "round {round}: {recovery:?}");
        for (key, count) in &committed {
            let left = state.get::<Left>(key)?.with_context(|| format!("round {round}: {key} is gone"))?;
            let right = state.get::<Right>(key)?.with_context(|| format!("round {round}: {key} is gone"))?;
            ensure!(left.is_whole(), "round {round}: {key} is torn");
            ensure!(left.count == right.count, "round {round}: {key} has {} and {}", left.count, right.count);
            ensure!(left.count >= *count, "round {round}: {key} has {}, {count} was committed", left.count);
        }
        ensure!(state.blobs() == 0, "round {round}: sled keeps unsynced blobs");
        state.close();
    }
    ensure!(committed.values().sum::<u64>() > 100, "hardly anything was committed: {committed:?}");
    Ok(())
}

#[test]
fn the_agent_keeps_what_it_acknowledged_through_power_cuts() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let disk = Disk::ext4(dir.path())?;
    let mut agent = Agent::with_data(dir.path(), &disk.path().join("data"), "")?;
    let mut dice = Dice::new();
    let mut acknowledged = Vec::new();
    for round in 0..rounds(20) {
        agent.start()?;
        let name = |n: u32| format!("r{round}n{n}");
        let publishers: Vec<_> = (0..8).map(|n| Publisher::start(&name(n), agent.mqtt)).collect();
        dice.pause(Duration::from_millis(700));
        disk.cut()?;
        agent.kill()?;
        acknowledged.extend(publishers.into_iter().flat_map(Publisher::stop));
        disk.reboot()?;
    }
    agent.start()?;
    let rows = agent.query()?;
    let mut times: HashMap<&str, u32> = HashMap::new();
    for (row, seq) in rows.iter().zip(1u64..) {
        ensure!(row["seq"] == seq, "a hole before {row}");
        *times.entry(row["payload"].as_str().unwrap_or_default()).or_default() += 1;
    }
    ensure!(acknowledged.len() > 100, "only {} readings were acknowledged", acknowledged.len());
    let wrong: Vec<_> = acknowledged.iter().filter(|text| times.get(text.as_str()) != Some(&1)).take(10).collect();
    ensure!(wrong.is_empty(), "acknowledged, and not there exactly once: {wrong:?} …\n{}", agent.log());
    agent.stop(Duration::from_secs(10)) // The disk can be unmounted then.
}
