//! One reading a second, as most boards have: bytes written a day, with the usual linger and with ten seconds.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Result;
use tests::Agent;

use super::{
    Plan, Table,
    load::{connect, packet, payload},
    measure::{cpu, mb, memory, written},
};

const SECONDS: u64 = 60;

pub fn run(_plan: &Plan, dir: &Path) -> Result<Table> {
    let mut table =
        Table::new("One reading a second", &["linger", "written MB/day", "CPU s/day", "anonymous MB", "file MB"]);
    for linger in ["20ms", "10s"] {
        let dir = tempfile::tempdir_in(dir)?;
        let mut agent = Agent::new(dir.path(), &format!("[outbox]\nlinger = \"{linger}\"\n"))?;
        agent.start()?;
        let mut stream = connect(agent.mqtt, "quiet")?;
        let pid = agent.pid();
        // What a start and the first segment cost is not a day's cost.
        let mut first = Vec::new();
        packet(&mut first, "lab/temperature", 60_000, &payload(0, 0));
        std::io::Write::write_all(&mut stream, &first)?;
        std::thread::sleep(Duration::from_secs(12));
        let (written_before, cpu_before, begun) = (written(pid)?, cpu(pid)?, Instant::now());
        for n in 0..SECONDS {
            let mut out = Vec::new();
            packet(&mut out, "lab/temperature", u16::try_from(n + 1)?, &payload(0, n));
            std::io::Write::write_all(&mut stream, &out)?;
            std::thread::sleep(Duration::from_secs(n + 1).saturating_sub(begun.elapsed()));
        }
        let (anonymous, file) = memory(pid)?;
        let days = 86_400.0 / begun.elapsed().as_secs_f64();
        #[allow(clippy::cast_precision_loss)] // Far below 2^53.
        let bytes = (written(pid)? - written_before) as f64;
        table.row(&[
            linger.to_owned(),
            format!("{:.0}", bytes * days / 1e6),
            format!("{:.0}", (cpu(pid)?.saturating_sub(cpu_before)).as_secs_f64() * days),
            format!("{:.1}", mb(anonymous)),
            format!("{:.1}", mb(file)),
        ]);
    }
    Ok(table)
}
