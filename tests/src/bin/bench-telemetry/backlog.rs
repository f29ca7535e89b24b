//! A long time without a link, and its return: memory, start-up, drain rate, bytes on the wire, disk afterwards.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tests::{Agent, free_port, wait_until};

use super::{
    Plan, Table,
    brokers::Broker,
    ingest::Watch,
    load,
    measure::{disk_bytes, mb, memory, thousands},
    proxy::Proxy,
};

fn waiting(agent: &Agent) -> u64 {
    let status = agent.status().unwrap_or_default();
    status["outbox"]["waiting"][0]["readings"].as_u64().unwrap_or(u64::MAX)
}

fn relay(port: u16, mode: &str) -> String {
    format!("[outbox]\nmax_bytes = \"8GiB\"\n[relay.mqtt]\nurl = \"mqtt://127.0.0.1:{port}\"\nmode = \"{mode}\"\n")
}

/// Bytes to the core for each reading, in both modes.
pub fn wire(plan: &Plan, dir: &Path) -> Result<Table> {
    let mut table = Table::new("On the wire to the core, TCP payload, both directions", &["mode", "bytes/reading"]);
    for mode in ["bridge", "batch"] {
        let dir = tempfile::tempdir_in(dir)?;
        let core = Broker::core(&dir.path().join("core"))?;
        let proxy = Proxy::start(core.port)?;
        let mut agent = Agent::new(dir.path(), &relay(proxy.port, mode))?;
        agent.start()?;
        load::publish(agent.mqtt, 8, 100, plan.readings)?;
        wait_until("the core has everything", Duration::from_secs(120), || waiting(&agent) == 0)?;
        #[allow(clippy::cast_precision_loss)] // Far below 2^53.
        let each = proxy.bytes() as f64 / plan.readings as f64;
        table.row(&[mode.to_owned(), format!("{each:.1}")]);
    }
    Ok(table)
}

/// Fills, restarts, drains.
pub fn run(plan: &Plan, dir: &Path) -> Result<Table> {
    let core_port = free_port()?;
    let mut agent = Agent::new(dir, &relay(core_port, "batch"))?;
    agent.start()?;
    let watch = Watch::start(agent.pid());
    let filled = load::publish(agent.mqtt, 8, 100, plan.backlog)?;
    let while_filling = watch.stop();
    let full = disk_bytes(agent.data());
    agent.stop(Duration::from_secs(30))?;
    let begun = Instant::now();
    agent.start_within(Duration::from_secs(120))?;
    let start = begun.elapsed();
    std::thread::sleep(Duration::from_secs(2));
    let waits = memory(agent.pid())?;
    let watch = Watch::start(agent.pid());
    let core = Broker::core_on(&dir.join("core"), core_port)?;
    wait_until("the relay is connected", Duration::from_secs(180), || waiting(&agent) < plan.backlog)?;
    let (begun, left) = (Instant::now(), waiting(&agent));
    // A fresh reading must not wait behind the old ones.
    let fresh = fresh_reading(&agent, core.port)?;
    wait_until("the backlog is drained", Duration::from_secs(1200), || waiting(&agent) == 0)?;
    let drained = begun.elapsed();
    let while_draining = watch.stop();
    wait_until("the disk is free again", Duration::from_secs(60), || disk_bytes(agent.data()) < 20_000_000)
        .with_context(|| format!("{} bytes", disk_bytes(agent.data())))?;
    let mut table = Table::new(
        #[allow(clippy::cast_precision_loss)] // Far below 2^53.
        &format!("A backlog of {} readings", thousands(plan.backlog as f64)),
        &["", "edge-agent"],
    );
    let memory = |(anonymous, file): (u64, u64)| format!("{:.1} + {:.1} MB", mb(anonymous), mb(file));
    #[allow(clippy::cast_precision_loss)] // Far below 2^53.
    let rows = [
        ("acknowledged/s while filling", thousands(filled.rate)),
        ("memory while filling (anonymous + file)", memory(while_filling)),
        ("disk, full", format!("{:.0} MB", full as f64 / 1e6)),
        ("start-up", format!("{:.2} s", start.as_secs_f64())),
        ("memory with the backlog waiting", memory(waits)),
        ("drained, readings/s (batch)", thousands(left as f64 / drained.as_secs_f64())),
        ("memory while draining", memory(while_draining)),
        ("a fresh reading at the core after", format!("{:.1} s", fresh.as_secs_f64())),
        ("disk after the drain", format!("{:.1} MB", disk_bytes(agent.data()) as f64 / 1e6)),
    ];
    for (what, figure) in rows {
        table.row(&[what.to_owned(), figure]);
    }
    Ok(table)
}

/// How long a reading that is published now takes to the core, while the backlog drains.
fn fresh_reading(agent: &Agent, core: u16) -> Result<Duration> {
    let port = core.to_string();
    let script = format!(
        "import paho.mqtt.client as mqtt, subprocess, zlib, sys, time\n\
         import cbor2, zstandard\n\
         begun = None\n\
         def heard(client, _, message):\n\
         \x20   text = zstandard.ZstdDecompressor().decompressobj().decompress(message.payload)\n\
         \x20   if any(r[2] == 'fresh/one' for r in cbor2.loads(text)['readings']):\n\
         \x20       print(time.monotonic() - begun); client.disconnect()\n\
         c = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2); c.on_message = heard\n\
         c.connect('127.0.0.1', {port}); c.subscribe('#', 0)\n\
         c.loop_start(); time.sleep(1); begun = time.monotonic()\n\
         subprocess.run(['mosquitto_pub', '-p', '{}', '-q', '1', '-t', 'fresh/one', '-m', '1'], check=True)\n\
         c._thread.join(120)\n",
        agent.mqtt
    );
    let said = tests::python(&script, &std::collections::BTreeMap::new())?;
    Ok(Duration::from_secs_f64(said.trim().parse().context("the fresh reading did not come in two minutes")?))
}
