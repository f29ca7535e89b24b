//! `container stats`.

use std::{collections::BTreeMap, io::IsTerminal, process::ExitCode, time::Duration};

use clap::Args;
use container_engine::container::{ListFilter, Stats as Figures, Status, Summary};
use serde_json::{Value, json};

use crate::cli::{
    engine::Output,
    format::{Columns, Listing, human},
    out,
};

const COLUMNS: Columns = Columns {
    all: &[
        ("ID", "CONTAINER ID"),
        ("Name", "NAME"),
        ("CPUPerc", "CPU %"),
        ("MemUsage", "MEM USAGE / LIMIT"),
        ("MemPerc", "MEM %"),
        ("NetIO", "NET I/O"),
        ("BlockIO", "BLOCK I/O"),
        ("PIDs", "PIDS"),
        ("Container", "CONTAINER"),
    ],
    usual: 8,
};
/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub struct Stats {
    /// Those that do not run too
    #[arg(long, short)]
    all: bool,
    /// Once, not again and again
    #[arg(long)]
    no_stream: bool,
    /// Ids in full
    #[arg(long)]
    no_trunc: bool,
    /// table, json, or a Go template
    #[arg(long, value_name = "TEMPLATE")]
    format: Option<String>,
    /// Names or ids; all that run where none is given
    containers: Vec<String>,
}

impl Stats {
    pub async fn run(&self, to: &Output<'_>) -> anyhow::Result<ExitCode> {
        let listing = Listing::new(self.format.as_deref(), to.json, false, COLUMNS)?;
        let redraws = !self.no_stream && std::io::stdout().is_terminal() && matches!(listing, Listing::Table(_));
        let memory = container_engine::ledger::Amount::of_board(std::path::Path::new("/")).memory;
        // The share of the processor is what passed between two looks.
        let mut before = self.look(to).await?;
        loop {
            tokio::time::sleep(EVERY).await;
            let now = self.look(to).await?;
            let row = |(id, (summary, figures)): (&String, &(Summary, Figures))| {
                self.row(summary, figures, before.get(id).map(|(_, figures)| figures), memory)
            };
            let rows: Vec<Value> = now.iter().map(row).collect();
            if redraws {
                out("\x1b[H\x1b[2J");
            }
            listing.print(COLUMNS, &rows, "ID")?;
            if self.no_stream {
                return Ok(ExitCode::SUCCESS);
            }
            before = now;
        }
    }

    async fn look(&self, to: &Output<'_>) -> anyhow::Result<BTreeMap<String, (Summary, Figures)>> {
        let mut filter = ListFilter::default();
        if !self.all && self.containers.is_empty() {
            filter.statuses = vec![Status::Running, Status::Paused];
        }
        let url = to.url("/v1/containers", &[("filter", Some(serde_json::to_string(&filter)?))]);
        let list: Vec<Summary> = to.engine.get(&url).await?;
        let named = |it: &Summary, name: &String| it.name == *name || it.id.as_str().starts_with(name.as_str());
        for name in &self.containers {
            if !list.iter().any(|it| named(it, name)) {
                anyhow::bail!("there is no container {name}: `edge-agent container ls -a` shows those that there are");
            }
        }
        let wanted = |it: &Summary| self.containers.is_empty() || self.containers.iter().any(|name| named(it, name));
        let mut all = BTreeMap::new();
        for summary in list.into_iter().filter(wanted) {
            match to.engine.get::<Figures>(&to.container(summary.id.as_str(), "/stats", &[])).await {
                Ok(figures) => drop(all.insert(summary.id.to_string(), (summary, figures))),
                // It ended between the two requests.
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(all)
    }

    fn row(&self, summary: &Summary, now: &Figures, before: Option<&Figures>, memory: u64) -> Value {
        let limit = now.cgroup.memory.limit.filter(|limit| *limit < memory).unwrap_or(memory);
        let (rx, tx) = now.network.values().fold((0, 0), |(rx, tx), it| (rx + it.rx_bytes, tx + it.tx_bytes));
        let (read, written) =
            now.cgroup.io.iter().fold((0, 0), |(read, written), it| (read + it.read_bytes, written + it.write_bytes));
        let used = now.cgroup.memory.working_set;
        json!({
            "ID": if self.no_trunc { summary.id.as_str() } else { summary.id.short() },
            "Container": summary.id.short(),
            "Name": summary.name,
            "CPUPerc": format!("{:.2}%", before.map_or(0.0, |before| share(now, before))),
            "MemUsage": format!("{} / {}", human::binary_size(used), human::binary_size(limit)),
            "MemPerc": format!("{:.2}%", percent(used, limit)),
            "NetIO": format!("{} / {}", human::size(rx), human::size(tx)),
            "BlockIO": format!("{} / {}", human::size(read), human::size(written)),
            "PIDs": now.cgroup.pids.current.to_string(),
        })
    }
}

/// Hundredths of one core between two looks.
fn share(now: &Figures, before: &Figures) -> f64 {
    let used = now.cgroup.cpu.usage_us.saturating_sub(before.cgroup.cpu.usage_us);
    let passed = u64::try_from(now.time_ns - before.time_ns).unwrap_or(0) / 1000;
    percent(used, passed)
}

#[allow(clippy::cast_precision_loss)] // Two digits are shown.
fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_the_processor() {
        let at = |time_ns, usage_us| {
            let mut figures = Figures { time_ns, ..Figures::default() };
            figures.cgroup.cpu.usage_us = usage_us;
            figures
        };
        assert!((share(&at(1_000_000_000, 500_000), &at(0, 0)) - 50.0).abs() < 0.01);
        assert!((share(&at(1_000_000_000, 2_000_000), &at(0, 0)) - 200.0).abs() < 0.01);
        assert!(share(&at(0, 5), &at(0, 0)).abs() < 0.01);
    }
}
