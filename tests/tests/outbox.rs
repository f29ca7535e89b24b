//! The outbox at its limits: full, with either policy; too old; and flushes that are shared.

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use tests::{
    Agent, Raw, python,
    raw::{frame, string},
    wait_until,
};

const PATIENCE: Duration = Duration::from_secs(60);
/// Payload of one large reading.
const LARGE: usize = 200_000;
/// Readings that a sender presses into a full outbox.
const MORE: u16 = 60;
/// Readings that are more than the outbox holds.
const ALL: u16 = 250;

/// Bytes that do not compress, begun by a number.
fn noise(seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = seed.to_be_bytes().to_vec();
    while bytes.len() < LARGE {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

/// POSTs a payload; the status and the headers.
fn post(agent: &Agent, dir: &Path, topic: &str, payload: &[u8]) -> Result<(u16, String)> {
    let file = dir.join(format!("body-{}", topic.replace('/', "-")));
    std::fs::write(&file, payload)?;
    let url = format!("http://127.0.0.1:{}/v1/telemetry/{topic}", agent.http);
    let data = format!("@{}", file.display());
    let args =
        ["-s", "-o", "/dev/null", "-D", "-", "-w", "%{http_code}", "-H", "expect:", "--data-binary", &data, &url];
    let output = Command::new("curl").args(args).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (headers, status) = text.split_at(text.len().saturating_sub(3));
    Ok((status.parse()?, headers.to_lowercase()))
}

fn publish(qos: u8, topic: &str, id: u16, payload: &[u8]) -> Vec<u8> {
    let id = if qos == 0 { Vec::new() } else { id.to_be_bytes().to_vec() };
    frame(0x30 | qos << 1, &[&string(topic)[..], &id, payload].concat())
}

/// How many readings the board holds.
fn held(agent: &Agent, topic: &str) -> Result<u64> {
    let output = agent.command(&["telemetry", "query", "--topic", topic, "--json"])?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().count() as u64)
}

#[test]
fn a_full_outbox_refuses_and_goes_on_when_a_relay_makes_room() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut agent = Agent::new(dir.path(), "[outbox]\nmax_bytes = \"32MiB\"\n")?;
    agent.start()?;
    let (mut stored, mut refusal) = (0, None);
    for n in 0..400 {
        let (status, headers) = post(&agent, dir.path(), "big/http", &noise(n))?;
        if status == 503 {
            refusal = Some(headers);
            break;
        }
        ensure!(status == 204, "{status} {headers}");
        stored += 1;
    }
    let refusal = refusal.context("32 MiB are never full")?;
    ensure!(refusal.contains("retry-after:") && stored >= 100, "{stored} stored, then {refusal}");
    // MQTT: no acknowledgement, no error, and the connection is not read on; QoS 0 is dropped and counted.
    let mut sender = Raw::connect(agent.mqtt, 4, "sender", 2, 0, &[])?;
    sender.send(&publish(0, "big/qos0", 0, &noise(1)))?;
    wait_until("QoS 0 is counted", PATIENCE, || {
        agent.metric("edge_agent_mqtt_qos0_dropped_total").is_ok_and(|it| it == 1)
    })
    .with_context(|| agent.log())?;
    sender.send(&publish(1, "big/mqtt", 7, &noise(2)))?;
    let unread = std::thread::spawn(move || {
        // More than every buffer on the way holds.
        let mut sent = Vec::new();
        for id in 8..120 {
            if sender.send(&publish(1, "big/mqtt", id, &noise(u64::from(id)))).is_err() {
                break;
            }
            sent.push(id);
        }
        (sender, sent)
    });
    wait_until("it says that it is full", PATIENCE, || {
        agent.service("outbox").is_ok_and(|it| it.contains("degraded") && it.contains("outbox.max_bytes"))
    })
    .with_context(|| agent.log())?;
    let status = agent.command(&["status"])?;
    let text = String::from_utf8_lossy(&status.stdout).into_owned();
    ensure!(status.status.code() == Some(3) && text.lines().any(|line| line.starts_with("! outbox")), "{text}");
    std::thread::sleep(Duration::from_millis(500));
    ensure!(!unread.is_finished(), "twenty megabytes were read though nothing can be stored");
    ensure!(held(&agent, "big/mqtt")? == 0 && held(&agent, "big/http")? == stored);
    ensure!(agent.status()?["outbox"]["disk_bytes"].as_u64().is_some_and(|it| it <= 32 << 20));
    // A relay appears. The connection breaks with the restart: what had no acknowledgement is the sender's to repeat.
    agent.stop(Duration::from_secs(20))?;
    let (_, _) = unread.join().map_err(|_| anyhow::anyhow!("the sender panicked"))?;
    drained_by_a_folder(&mut agent, dir.path(), stored)
}

/// Restarts with a folder in the place of S3: while senders press, all is drained and accepted, and all of it is there.
fn drained_by_a_folder(agent: &mut Agent, dir: &Path, stored: u64) -> Result<()> {
    let bucket = dir.join("s3");
    let relay =
        format!("[relay.s3]\nendpoint = \"file://{}\"\nbucket = \"b\"\nflush_interval = \"1s\"\n", bucket.display());
    agent.reconfigure(|text| format!("{text}\n{relay}"))?;
    agent.start()?;
    let mut sender = Raw::connect(agent.mqtt, 4, "sender", 2, 0, &[])?;
    for id in 1..=MORE {
        sender.send(&publish(1, "big/mqtt", id, &noise(1000 + u64::from(id))))?;
    }
    for id in 1..=MORE {
        ensure!(sender.expect(0x40)? == id.to_be_bytes(), "acknowledgements are not in order");
    }
    wait_until("all is relayed", PATIENCE, || {
        agent.status().is_ok_and(|it| it["outbox"]["waiting"][0]["readings"] == 0)
    })
    .with_context(|| agent.log())?;
    wait_until("it is well again", PATIENCE, || agent.service("outbox").is_ok_and(|it| it.contains("healthy")))?;
    let (status, headers) = post(agent, dir, "big/after", b"1")?;
    ensure!(status == 204, "{status} {headers}");
    let script = "import os, glob, pyarrow.parquet as p, collections\n\
                  rows = collections.Counter(); seqs = []\n\
                  for f in glob.glob(os.environ['BUCKET'] + '/**/*.parquet', recursive=True):\n\
                  \x20   t = p.ParquetFile(f).read(['topic', 'seq']).to_pydict()\n\
                  \x20   rows.update(t['topic']); seqs += t['seq']\n\
                  assert len(set(seqs)) == len(seqs)\n\
                  print(rows['big/http'], rows['big/mqtt'])";
    let env = [("BUCKET".to_owned(), bucket.display().to_string())].into();
    let said = python(script, &env)?;
    ensure!(said.trim() == format!("{stored} {MORE}"), "{said} instead of {stored} {MORE}");
    Ok(())
}

#[test]
fn told_to_drop_it_keeps_the_newest_and_counts_the_others() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut agent = Agent::new(dir.path(), "[outbox]\nmax_bytes = \"32MiB\"\non_full = \"drop-oldest\"\n")?;
    agent.start()?;
    let mut sender = Raw::connect(agent.mqtt, 4, "sender", 2, 0, &[])?;
    for id in 1..=ALL {
        sender.send(&publish(1, "big/mqtt", id, &noise(u64::from(id))))?;
        ensure!(sender.expect(0x40)? == id.to_be_bytes());
    }
    let status = agent.status()?;
    let first = status["outbox"]["first"].as_u64().context("no first")?;
    let dropped = agent.metric("edge_agent_outbox_dropped_total")?;
    ensure!(dropped > 0 && dropped == first - 1, "{dropped} counted, the first is {first}");
    ensure!(held(&agent, "#")? == u64::from(ALL) - dropped, "what was not dropped is not all there");
    // Never more than it must: of 32 MiB, one segment of 8 is the relays', and one may just have been let go.
    ensure!(u64::from(ALL) - dropped >= (15 << 20) / LARGE as u64, "{dropped} of {ALL} were dropped");
    ensure!(agent.whole_log().contains("dropped the oldest readings"), "{}", agent.log());
    ensure!(status["outbox"]["disk_bytes"].as_u64().is_some_and(|it| it <= 32 << 20), "{status}");
    ensure!(agent.command(&["status"])?.status.code() == Some(0), "as it was told: nothing is wrong");
    Ok(())
}

#[test]
fn readings_over_age_go_by_whole_segments() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut agent = Agent::new(dir.path(), "[outbox]\nmax_age = \"2s\"\n")?;
    agent.start()?;
    for n in 0..90 {
        let (status, headers) = post(&agent, dir.path(), "big/http", &noise(n))?;
        ensure!(status == 204, "{status} {headers}");
    }
    let next = agent.status()?["outbox"]["next"].as_u64().context("no next")?;
    wait_until("the old ones are dropped", PATIENCE, || {
        agent.status().is_ok_and(|it| it["outbox"]["first"].as_u64().is_some_and(|first| first > 40))
    })?;
    let first = agent.status()?["outbox"]["first"].as_u64().context("no first")?;
    ensure!(first < next, "the newest segment stays");
    ensure!(agent.metric("edge_agent_outbox_dropped_total")? == first - 1);
    ensure!(agent.whole_log().contains("older than outbox.max_age"), "{}", agent.log());
    Ok(())
}

#[test]
fn writers_that_wait_share_a_flush_and_enough_of_them_wait_no_longer() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut agent = Agent::new(dir.path(), "[outbox]\nlinger = \"10s\"\n")?;
    agent.start()?;
    let commits = || agent.metric("edge_agent_log_commits_total");
    // 64 senders of one small reading each: at once, in a few flushes.
    let mut senders =
        (0..64).map(|n| Raw::connect(agent.mqtt, 4, &format!("sender-{n}"), 2, 0, &[])).collect::<Result<Vec<_>>>()?;
    let (before, begun) = (commits()?, Instant::now());
    for sender in &mut senders {
        sender.send(&publish(1, "lab/t", 1, b"21.5"))?;
    }
    for sender in &mut senders {
        sender.expect(0x40)?;
    }
    ensure!(begun.elapsed() < Duration::from_secs(8), "64 readings waited {:?}", begun.elapsed());
    ensure!(commits()? - before <= 3, "{} flushes", commits()? - before);
    // One of 16 KiB: at once.
    let begun = Instant::now();
    senders[0].send(&publish(1, "lab/t", 2, &noise(1)[..17 << 10]))?;
    senders[0].expect(0x40)?;
    ensure!(begun.elapsed() < Duration::from_secs(8), "16 KiB waited {:?}", begun.elapsed());
    // One alone waits for company, and company ends the wait.
    let begun = Instant::now();
    senders[1].send(&publish(1, "lab/t", 3, b"alone"))?;
    senders[1].expect(0x40)?;
    ensure!(begun.elapsed() > Duration::from_secs(5), "one reading waited {:?} of ten seconds", begun.elapsed());
    Ok(())
}
