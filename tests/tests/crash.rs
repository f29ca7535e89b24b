//! The promise: every acknowledged reading is in S3 exactly once and at the broker at least once, whatever is killed.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use anyhow::{Result, ensure};
use tests::{Agent, Ceph, Certificates, Dice, Mosquitto, Publisher, python, rounds, wait_until};

/// What a scientist runs; then one line a row: seq, epoch, payload.
const PANDAS: &str = r#"
import os, pandas
frame = pandas.read_parquet("s3://sensors/field/board=board-1/", storage_options={
    "key": os.environ["AWS_ACCESS_KEY_ID"], "secret": os.environ["AWS_SECRET_ACCESS_KEY"],
    "client_kwargs": {"endpoint_url": os.environ["AWS_ENDPOINT_URL"], "region_name": "us-east-1"}})
types = {name: str(kind) for name, kind in frame.dtypes.items()}
assert types["epoch"] == "int64" and types["seq"] == "int64", types
assert types["time"].startswith("datetime64[us, UTC"), types
assert types["value"] == "float64", types
assert set(types) >= {"epoch", "seq", "time", "topic", "name", "value", "text", "bool", "unit", "payload"}, types
assert (frame["topic"].str.startswith("load/")).all()
age = pandas.Timestamp.now(tz="UTC") - frame["time"]
assert (age > pandas.Timedelta(0)).all() and (age < pandas.Timedelta("1 day")).all(), age.describe()
assert frame["date"].astype(str).str.match(r"\d{4}-\d{2}-\d{2}").all()
for row in frame.itertuples():
    print(row.epoch, row.seq, row.payload.decode() if row.payload is not None else row.text)
"#;

#[test]
fn crash_every_acknowledged_reading_arrives() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let certificates = Certificates::make(&dir.path().join("certificates"))?;
    let mut broker = Mosquitto::start(&dir.path().join("core"), &certificates)?;
    let ceph = Ceph::start(&dir.path().join("ceph"))?;
    let mut agent = Agent::new(dir.path(), &configuration(&certificates, &broker, &ceph))?;
    agent.start()?;
    let publishers: Vec<_> = (0..8).map(|n| Publisher::start(&format!("sensor{n}"), agent.mqtt)).collect();
    let mut dice = Dice::new();
    for round in 0..rounds(30) {
        dice.pause(Duration::from_millis(600));
        agent.kill()?;
        match round % 10 {
            2 => broker.pause()?,
            4 => ceph.kill_gateway()?,
            6 => broker.resume()?,
            8 => ceph.revive()?,
            _ => {}
        }
        agent.start()?;
    }
    broker.ensure_running()?;
    ceph.revive()?;
    let acknowledged: Vec<_> = publishers.into_iter().flat_map(Publisher::stop).collect();
    ensure!(acknowledged.len() > 500, "only {} readings were acknowledged: {}", acknowledged.len(), agent.log());
    drained(&agent)?;
    agent.stop(Duration::from_secs(15))?;

    let heard: HashSet<_> = broker.heard()?.into_iter().filter_map(|bytes| String::from_utf8(bytes).ok()).collect();
    let unheard: Vec<_> = acknowledged.iter().filter(|text| !heard.contains(*text)).collect();
    ensure!(unheard.is_empty(), "{} of {} are not at the broker: {unheard:?}", unheard.len(), acknowledged.len());
    in_s3_once(&python(PANDAS, &ceph.env)?, &acknowledged)
}

fn configuration(certificates: &Certificates, broker: &Mosquitto, ceph: &Ceph) -> String {
    format!(
        "[relay.mqtt]\nurl = \"mqtts://localhost:{port}\"\nca_file = \"{ca}\"\ncert_file = \"{cert}\"\nkey_file = \"{key}\"\n\
         [relay.s3]\nendpoint = \"{endpoint}\"\nbucket = \"sensors\"\nprefix = \"field\"\naccess_key_id = \"{id}\"\n\
         secret_access_key = \"{secret}\"\nflush_interval = \"1s\"\n",
        port = broker.tls_port,
        ca = certificates.ca.display(),
        cert = certificates.client.0.display(),
        key = certificates.client.1.display(),
        endpoint = ceph.setting("AWS_ENDPOINT_URL"),
        id = ceph.setting("AWS_ACCESS_KEY_ID"),
        secret = ceph.setting("AWS_SECRET_ACCESS_KEY"),
    )
}

/// Waits until no reading waits for any relay.
fn drained(agent: &Agent) -> Result<()> {
    let done = wait_until("both relays have everything", Duration::from_secs(180), || {
        agent.status().is_ok_and(|status| {
            let waiting = status["outbox"]["waiting"].as_array().cloned().unwrap_or_default();
            waiting.len() == 2 && waiting.iter().all(|it| it["readings"] == 0)
        })
    });
    done.map_err(|error| error.context(format!("{:?}\n{}", agent.status(), agent.log())))
}

fn in_s3_once(rows: &str, acknowledged: &[String]) -> Result<()> {
    let mut times = HashMap::new();
    let mut numbers = HashSet::new();
    let mut epochs = HashSet::new();
    for row in rows.lines() {
        let mut columns = row.split(' ');
        let (epoch, seq, text) = (columns.next(), columns.next(), columns.next().unwrap_or_default());
        let seq: u64 = seq.unwrap_or_default().parse()?;
        epochs.insert(epoch);
        ensure!(numbers.insert(seq), "number {seq} is in S3 twice");
        *times.entry(text).or_insert(0) += 1;
    }
    ensure!(epochs.len() == 1, "one store has one epoch, not {epochs:?}");
    let last = numbers.iter().max().copied().unwrap_or(0);
    let holes: Vec<_> = (1..=last).filter(|seq| !numbers.contains(seq)).take(10).collect();
    ensure!(holes.is_empty(), "holes among the numbers up to {last}: {holes:?} …");
    let wrong: Vec<_> = acknowledged.iter().filter(|text| times.get(text.as_str()) != Some(&1)).take(10).collect();
    ensure!(wrong.is_empty(), "acknowledged, and not exactly once in S3: {wrong:?} …");
    Ok(())
}
