//! Readings acknowledged and lost: the link is down, eight publishers, SIGKILL, restart, the link returns.

use std::{collections::HashSet, path::Path, time::Duration};

use anyhow::Result;
use tests::{Agent, Certificates, Mosquitto, Publisher, wait_until};

use super::{
    Plan, Table,
    brokers::{Broker, Keeps},
    measure::thousands,
};

const CONTENDERS: [&str; 3] = ["edge-agent", "mosquitto, default", "mosquitto, autosave 100"];

pub fn run(plan: &Plan, dir: &Path) -> Result<Table> {
    let mut totals = [(0, 0); 3];
    for round in 0..plan.rounds {
        for (contender, total) in totals.iter_mut().enumerate() {
            let dir = dir.join(format!("{round}-{contender}"));
            std::fs::create_dir_all(&dir)?;
            let (acknowledged, lost) = one(contender, &dir)?;
            *total = (total.0 + acknowledged, total.1 + lost);
        }
    }
    let mut table = Table::new(
        &format!("Lost over kill -9 while the link is down ({} rounds)", plan.rounds),
        &["", "acknowledged", "of these never at the core"],
    );
    for (contender, (acknowledged, lost)) in CONTENDERS.iter().zip(totals) {
        #[allow(clippy::cast_precision_loss)] // Far below 2^53.
        let (acknowledged, lost) = (acknowledged as f64, lost as f64);
        table.row(&[(*contender).to_owned(), thousands(acknowledged), thousands(lost)]);
    }
    Ok(table)
}

fn one(contender: usize, dir: &Path) -> Result<(usize, usize)> {
    let certificates = Certificates::make(&dir.join("certificates"))?;
    let mut core = Mosquitto::start(&dir.join("core"), &certificates)?;
    let port = core.plain_port();
    core.pause()?;
    let acknowledged = if contender == 0 {
        let mut agent = Agent::new(dir, &format!("[relay.mqtt]\nurl = \"mqtt://127.0.0.1:{port}\"\n"))?;
        agent.start()?;
        let acknowledged = load_until_killed(agent.mqtt, || agent.kill());
        agent.start()?;
        core.resume()?;
        settle(&core)?;
        acknowledged
    } else {
        let keeps = if contender == 1 { Keeps::Default } else { Keeps::Durable };
        let mut edge = Broker::edge(&dir.join("edge"), port, keeps)?;
        let acknowledged = load_until_killed(edge.port, || edge.kill());
        edge.resume()?;
        core.resume()?;
        settle(&core)?;
        acknowledged
    };
    let acknowledged = acknowledged?;
    let heard: HashSet<_> = core.heard()?.into_iter().filter_map(|bytes| String::from_utf8(bytes).ok()).collect();
    let lost = acknowledged.iter().filter(|text| !heard.contains(*text)).count();
    Ok((acknowledged.len(), lost))
}

fn load_until_killed(port: u16, kill: impl FnOnce() -> Result<()>) -> Result<Vec<String>> {
    let publishers: Vec<_> = (0..8).map(|n| Publisher::start(&format!("b{n}"), port)).collect();
    std::thread::sleep(Duration::from_secs(3));
    kill()?;
    Ok(publishers.into_iter().flat_map(Publisher::stop).collect())
}

/// Until the core has heard nothing new for five seconds; a bridge may take a minute to return before it hears anything.
fn settle(core: &Mosquitto) -> Result<()> {
    let mut last = (0, std::time::Instant::now());
    wait_until("the core has heard everything", Duration::from_secs(120), || {
        let heard = core.heard().map_or(0, |it| it.len());
        if heard != last.0 {
            last = (heard, std::time::Instant::now());
        }
        last.1.elapsed() > Duration::from_secs(if heard == 0 { 60 } else { 5 })
    })
}
