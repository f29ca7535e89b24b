//! Acknowledged readings a second, how long an acknowledgement takes, memory, bytes written; the link to the core is up.

use std::path::Path;

use anyhow::Result;
use tests::Agent;

use super::{
    Plan, Table,
    brokers::{Broker, Keeps},
    load,
    measure::{bare_fdatasync, cpu, mb, median, memory, ms, thousands, written},
};

/// Figures of one contender with one number of publishers, a value a round.
#[derive(Default)]
struct Figures {
    rate: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
    anonymous: Vec<f64>,
    file: Vec<f64>,
    written: Vec<f64>,
    cpu_us: Vec<f64>,
}

const CONTENDERS: [&str; 3] = ["edge-agent", "mosquitto, default", "mosquitto, autosave 100"];
const PUBLISHERS: [u64; 2] = [1, 8];

pub fn run(plan: &Plan, dir: &Path) -> Result<Table> {
    let mut figures: Vec<Vec<Figures>> =
        CONTENDERS.iter().map(|_| PUBLISHERS.iter().map(|_| Figures::default()).collect()).collect();
    let mut bare = Vec::new();
    for round in 0..plan.rounds {
        bare.push(ms(bare_fdatasync(dir, 500)?));
        for (p, publishers) in PUBLISHERS.into_iter().enumerate() {
            for (c, figures) in figures.iter_mut().enumerate() {
                let dir = tempfile::tempdir_in(dir)?;
                // The most durable mosquitto rewrites its whole database: fewer readings, or it takes minutes.
                let readings = if c == 2 { plan.readings / 5 } else { plan.readings };
                one(c, dir.path(), publishers, readings, &mut figures[p])
                    .map_err(|error| error.context(format!("{}, round {round}", CONTENDERS[c])))?;
            }
        }
    }
    let mut table = Table::new(
        "Acknowledged readings (120 bytes, QoS 1, 100 in flight a publisher, link up)",
        &[
            "",
            "publishers",
            "acknowledged/s",
            "p50 ms",
            "p99 ms",
            "anonymous MB",
            "file MB",
            "written B/reading",
            "CPU µs/reading",
        ],
    );
    for (contender, figures) in CONTENDERS.iter().zip(figures) {
        for (publishers, it) in PUBLISHERS.iter().zip(figures) {
            table.row(&[
                (*contender).to_owned(),
                publishers.to_string(),
                thousands(median(it.rate)),
                format!("{:.1}", median(it.p50)),
                format!("{:.1}", median(it.p99)),
                format!("{:.1}", median(it.anonymous)),
                format!("{:.1}", median(it.file)),
                thousands(median(it.written)),
                format!("{:.1}", median(it.cpu_us)),
            ]);
        }
    }
    table.note(format!("p99 of a bare 4 KiB rewrite and fdatasync in the same rounds: {:.1} ms.", median(bare)));
    Ok(table)
}

fn one(contender: usize, dir: &Path, publishers: u64, readings: u64, figures: &mut Figures) -> Result<()> {
    let core = Broker::core(&dir.join("core"))?;
    let (mut agent, edge);
    let (port, pid) = if contender == 0 {
        agent = Agent::new(dir, &format!("[relay.mqtt]\nurl = \"mqtt://127.0.0.1:{}\"\n", core.port))?;
        agent.start()?;
        (agent.mqtt, agent.pid())
    } else {
        let keeps = if contender == 1 { Keeps::Default } else { Keeps::Durable };
        edge = Broker::edge(&dir.join("edge"), core.port, keeps)?;
        (edge.port, edge.pid())
    };
    load::publish(port, publishers, 100, readings / 20)?; // Warm.
    let (written_before, cpu_before) = (written(pid)?, cpu(pid)?);
    let watch = Watch::start(pid);
    let outcome = load::publish(port, publishers, 100, readings)?;
    let (anonymous, file) = watch.stop();
    #[allow(clippy::cast_precision_loss)] // Far below 2^53.
    let each = |bytes: u64| bytes as f64 / readings as f64;
    figures.rate.push(outcome.rate);
    figures.p50.push(ms(outcome.p50));
    figures.p99.push(ms(outcome.p99));
    figures.anonymous.push(mb(anonymous));
    figures.file.push(mb(file));
    figures.written.push(each(written(pid)? - written_before));
    figures.cpu_us.push((cpu(pid)?.saturating_sub(cpu_before)).as_secs_f64() * 1e6 / each(readings * readings));
    Ok(())
}

/// Samples the memory of a process; keeps the largest.
pub struct Watch {
    stop: std::sync::mpsc::Sender<()>,
    thread: std::thread::JoinHandle<(u64, u64)>,
}

impl Watch {
    /// Begins.
    pub fn start(pid: u32) -> Self {
        let (stop, stopped) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let mut most = (0, 0);
            while let Err(std::sync::mpsc::RecvTimeoutError::Timeout) =
                stopped.recv_timeout(std::time::Duration::from_millis(100))
            {
                if let Ok(now) = memory(pid)
                    && now.0 + now.1 > most.0 + most.1
                {
                    most = now;
                }
            }
            most
        });
        Self { stop, thread }
    }

    /// The largest sum of anonymous and file KiB, and its parts.
    pub fn stop(self) -> (u64, u64) {
        drop(self.stop);
        self.thread.join().unwrap_or_default()
    }
}
