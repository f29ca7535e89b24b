//! A board whose wall clock starts in 1970 and jumps, in front of the real binary: `tests::WallClock` shifts what the C
//! library says and whether the kernel is synchronised; time since boot stays what it is.
//!
//! Elsewhere: a board that learns the time from a server (`relay_s3.rs`); a new boot, which no test can make here, and a
//! battery-backed clock (`board/src/clock.rs`).

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use tests::{Agent, WallClock, wait_until, wall_clock::now};

const PATIENCE: Duration = Duration::from_secs(30);
const DAY: i64 = 86_400;

fn agent(dir: &Path, more: &str) -> Result<(Agent, WallClock)> {
    let clock = WallClock::make(dir)?;
    let mut agent = clock.show_to(Agent::new(dir, more)?);
    agent.start()?;
    Ok((agent, clock))
}

fn put(agent: &Agent, value: &str) -> Result<()> {
    let put = agent.command(&["telemetry", "put", "lab/t", value])?;
    ensure!(put.status.success(), "{}", String::from_utf8_lossy(&put.stderr));
    Ok(())
}

/// Times of all readings, seconds since 1970, in order of their numbers, which must be 1, 2, 3, ….
fn times(agent: &Agent) -> Result<Vec<i64>> {
    let rows = agent.query()?;
    let numbers: Vec<_> = rows.iter().filter_map(|row| row["seq"].as_u64()).collect();
    ensure!(numbers == (1..=rows.len() as u64).collect::<Vec<_>>(), "{rows:?}");
    rows.iter().map(|row| seconds(row["time"].as_str().context("no time")?)).collect()
}

fn seconds(time: &str) -> Result<i64> {
    let output = std::process::Command::new("date").args(["-u", "+%s", "-d", time]).output()?;
    String::from_utf8_lossy(&output.stdout).trim().parse().with_context(|| time.to_owned())
}

fn is_trusted(agent: &Agent) -> bool {
    agent.status().is_ok_and(|status| status["clock_trusted"] == true)
}

#[test]
fn readings_of_1970_get_their_right_times_once_the_time_is_known() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let bucket = dir.path().join("bucket");
    let (mut agent, clock) = agent(dir.path(), "")?;
    put(&agent, "1")?;
    ensure!(times(&agent)?[0] < DAY, "the clock does not stand in 1970: is the binary linked statically?");
    ensure!(!is_trusted(&agent) && agent.metric("edge_agent_clock_trusted")? == 0);
    let doctor = agent.command(&["doctor", "--json"])?;
    let words = String::from_utf8_lossy(&doctor.stdout).into_owned();
    ensure!(doctor.status.code() == Some(3) && words.contains("nobody vouches for the time"), "{words}");
    ensure!(agent.service("clock")?.contains("readings are marked"), "{}", agent.service("clock")?);
    // The time comes by NTP; also what was read before a restart is put right.
    agent.stop(Duration::from_secs(15))?;
    agent.start()?;
    put(&agent, "2")?;
    clock.set(now()?, true)?;
    wait_until("the time is known", PATIENCE, || is_trusted(&agent))?;
    put(&agent, "3")?;
    wait_until("times are right", PATIENCE, || {
        let right = |time: &i64| now().is_ok_and(|now| (now - time).abs() < 60);
        times(&agent).is_ok_and(|times| times.iter().all(right))
    })?;
    let before = times(&agent)?;
    ensure!(before.is_sorted(), "{before:?}");
    // So they are in the objects, after one more start with no time at all.
    agent.stop(Duration::from_secs(15))?;
    clock.set(1000, false)?;
    let relay =
        format!("[relay.s3]\nendpoint = \"file://{}\"\nbucket = \"b\"\nflush_interval = \"1s\"\n", bucket.display());
    agent.reconfigure(|text| format!("{text}\n{relay}"))?;
    agent.start()?;
    wait_until("all is relayed", PATIENCE, || {
        agent.status().is_ok_and(|it| it["outbox"]["waiting"][0]["readings"] == 0)
    })?;
    let found = std::process::Command::new("find").arg(&bucket).args(["-name", "*.parquet"]).output()?;
    let found = String::from_utf8_lossy(&found.stdout).into_owned();
    ensure!(!found.is_empty() && !found.contains("date=1970"), "{found}");
    ensure!(times(&agent)? == before, "{:?} {before:?}", times(&agent)?);
    Ok(())
}

#[test]
fn a_clock_that_jumps_drops_nothing_and_keeps_the_order() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (mut agent, clock) = agent(dir.path(), "[outbox]\nmax_age = \"1h\"\n")?;
    let real = now()?;
    let mut wanted = Vec::new();
    // Ahead by a year, behind by ten days, and right again; each time the network vouches for it.
    for (n, ahead) in [0, 365 * DAY, -10 * DAY, 0].into_iter().enumerate() {
        clock.set(real + ahead, true)?;
        let stands = |agent: &Agent| {
            put(agent, &n.to_string()).ok()?;
            times(agent).ok()?.last().copied()
        };
        wait_until("the jump is seen", PATIENCE, || {
            std::thread::sleep(Duration::from_millis(200));
            let seen = stands(&agent).is_some_and(|time| (time - real - ahead).abs() < 60);
            seen && is_trusted(&agent)
        })
        .with_context(|| format!("{ahead} s ahead: {:?}\n{}", times(&agent), agent.log()))?;
        wanted.push(real + ahead);
    }
    let all = times(&agent)?;
    ensure!(agent.metric("edge_agent_outbox_dropped_total")? == 0, "a jump drops nothing");
    ensure!(agent.whole_log().contains("the clock was set"), "{}", agent.log());
    for near in wanted {
        ensure!(all.iter().any(|time| (time - near).abs() < 60), "{near} is not in {all:?}");
    }
    // A restart with a clock behind the last known time: the network alone may say so, and here it says nothing.
    agent.stop(Duration::from_secs(15))?;
    clock.set(real - 30 * DAY, false)?;
    agent.start()?;
    put(&agent, "behind")?;
    let last = times(&agent)?.last().copied().unwrap_or_default();
    ensure!((last - now()?).abs() < 60, "the offset of this boot was known: {last}");
    Ok(())
}
