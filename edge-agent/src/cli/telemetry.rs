//! `edge-agent telemetry …`: through the running agent, or on the store where none runs.

use std::{
    io::{IsTerminal, Read, Write},
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
};

use ::telemetry::{
    outbox::{Outbox, query, query::Query},
    parquet,
    reading::{NewReading, Reading},
    topic,
};
use anyhow::{Context, bail};
use board::{clock::Clock, identity::Identity, metrics::Metrics};
use bytes::Bytes;
use clap::{Args, Subcommand};
use store::{lock::Lock, log::Log};

use super::out;
use crate::{
    config::Config,
    control::{Client, ClientError},
    readings::{self, Row},
};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Store one reading; done when it is on disk
    #[command(
        after_help = "Examples:\n  edge-agent telemetry put lab/temperature 21.5\n  cat reading.json | edge-agent telemetry put lab/room1 -"
    )]
    Put {
        /// Topic, such as lab/temperature
        topic: String,
        /// Payload; `-` or none reads standard input
        payload: Option<String>,
    },
    /// What the board holds, agent running or not
    #[command(
        after_help = "Examples:\n  edge-agent telemetry query --since 10m\n  edge-agent telemetry query --topic 'lab/#' --json | jq .value"
    )]
    Query(Selection),
    /// Readings as they come
    Tail {
        /// Topic filter, such as 'lab/#'
        #[arg(long)]
        topic: Option<String>,
    },
    /// Write readings to a file or to standard output
    Export {
        #[command(flatten)]
        selection: Selection,
        /// One JSON object a line, or Parquet with the columns of the objects in S3
        #[arg(long, value_enum, default_value_t)]
        format: Format,
        /// File [default: standard output]
        #[arg(long, short)]
        output: Option<PathBuf>,
    },
    /// Figures of the outbox
    Stats,
}

/// What an export is written as.
#[derive(Debug, Clone, Copy, Default, clap::ValueEnum)]
pub enum Format {
    #[default]
    Ndjson,
    Parquet,
}

#[derive(Debug, Args)]
pub struct Selection {
    /// Topic filter, such as 'lab/#'
    #[arg(long)]
    topic: Option<String>,
    /// From then on: RFC 3339, or how long ago, such as 10m
    #[arg(long, value_parser = readings::parse_time)]
    since: Option<i64>,
    /// Before then
    #[arg(long, value_parser = readings::parse_time)]
    until: Option<i64>,
    /// At most so many readings
    #[arg(long)]
    limit: Option<usize>,
}

impl Command {
    pub async fn run(self, config: &Config, json: bool) -> anyhow::Result<ExitCode> {
        match self {
            Self::Put { topic, payload } => put(config, topic, payload, json).await?,
            Self::Query(selection) => show(config, selection, json).await?,
            Self::Tail { topic } => {
                let mut client = Client::connect(&config.socket()).await?;
                let url = format!("/v1/tail?topic={}", encode(&topic.unwrap_or_else(|| "#".into())));
                client.lines(&url, |line| print_line(line, json)).await?;
            }
            Self::Export { selection, format, output } => export(config, selection, format, output).await?,
            Self::Stats => stats(config, json).await?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn print_line(line: &[u8], json: bool) -> bool {
    if json {
        out(String::from_utf8_lossy(line));
    } else if let Ok(row) = serde_json::from_slice::<Row>(line) {
        out(row.line());
    }
    true
}

/// Percent-encodes what is not plain in a URL.
fn encode(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

async fn put(config: &Config, topic: String, payload: Option<String>, json: bool) -> anyhow::Result<()> {
    topic::check_name(&topic)?;
    let payload = match payload {
        Some(text) if text != "-" => Bytes::from(text),
        _ => {
            let mut bytes = Vec::new();
            std::io::stdin()
                .take(2 << 20)
                .read_to_end(&mut bytes)
                .context("cannot read the payload from standard input")?;
            Bytes::from(bytes)
        }
    };
    let seq = match Client::connect(&config.socket()).await {
        Ok(mut client) => {
            let url = format!("/v1/telemetry/{}", encode(&topic).replace("%2F", "/").replace('+', "%20"));
            let answer: serde_json::Value = serde_json::from_slice(&client.post(&url, payload).await?)?;
            answer["seq"].as_u64().context("the agent's answer has no number")?
        }
        Err(ClientError::NotRunning { .. }) => put_into_store(config, topic, payload).await?,
        Err(error) => return Err(error.into()),
    };
    out(if json { serde_json::json!({ "seq": seq }).to_string() } else { format!("stored as number {seq}") });
    Ok(())
}

/// With no agent running: straight into the store, under its lock.
async fn put_into_store(config: &Config, topic: String, payload: Bytes) -> anyhow::Result<u64> {
    let data = config.data_dir.clone();
    let options = config.outbox.clone();
    let (outbox, _lock) = tokio::task::spawn_blocking(move || -> anyhow::Result<_> {
        board::durable::create_dir_all(&data, 0o700)?;
        let lock = Lock::take(&data, std::time::Duration::from_secs(10))?;
        let identity = Identity::open(&data.join("identity"))?;
        let clock = Clock::system(&identity)?;
        let (outbox, _) = Outbox::open(&data.join("log"), identity.epoch(), options, clock, &Metrics::new())?;
        Ok((outbox, lock))
    })
    .await??;
    if !outbox.keeps(&topic) {
        bail!("topic {topic:?} is not kept: see outbox.topics");
    }
    let range = outbox.put(&[NewReading { topic, payload }]).await?;
    tokio::task::spawn_blocking(move || outbox.close()).await?;
    Ok(range.start)
}

/// Runs a query against the log as it lies on disk, whether or not an agent writes to it; `each` gets the store's epoch, a
/// reading and its time in µs.
async fn query(
    config: &Config,
    selection: Selection,
    mut each: impl FnMut(u64, &Reading, i64) -> anyhow::Result<()> + Send + 'static,
) -> anyhow::Result<u64> {
    if let Some(filter) = &selection.topic {
        topic::check_filter(filter)?;
    }
    let data = config.data_dir.clone();
    tokio::task::spawn_blocking(move || {
        let Some(epoch) = Identity::peek_epoch(&data.join("identity")) else {
            bail!("there is no store in {}: start the agent once, or name its --data-dir", data.display());
        };
        let log = Log::open_read_only(&data.join("log"))?;
        let clock = Clock::peek(&data.join("identity"));
        let query = Query { topic: selection.topic, since_us: selection.since, until_us: selection.until, from_seq: 1 };
        let mut count = 0;
        for found in query::run(&log, &clock, &query).take(selection.limit.unwrap_or(usize::MAX)) {
            let (reading, time_us) = found?;
            count += 1;
            each(epoch, &reading, time_us)?;
        }
        Ok(count)
    })
    .await?
}

async fn show(config: &Config, selection: Selection, json: bool) -> anyhow::Result<()> {
    query(config, selection, move |epoch, reading, time_us| {
        for row in readings::rows(epoch, reading, time_us) {
            out(if json { serde_json::to_string(&row)? } else { row.line() });
        }
        Ok(())
    })
    .await
    .map(drop)
}

async fn export(config: &Config, selection: Selection, format: Format, output: Option<PathBuf>) -> anyhow::Result<()> {
    let sink: Box<dyn std::io::Write + Send> = match (&output, format) {
        (Some(path), _) => {
            Box::new(std::fs::File::create(path).with_context(|| format!("cannot write {}", path.display()))?)
        }
        (None, Format::Parquet) if std::io::stdout().is_terminal() => {
            bail!("Parquet is no text for a terminal: name a file with --output");
        }
        (None, _) => Box::new(std::io::stdout()),
    };
    let sink = std::io::BufWriter::new(sink);
    let count = match format {
        Format::Ndjson => export_ndjson(config, selection, sink).await?,
        Format::Parquet => export_parquet(config, selection, sink).await?,
    };
    if let Some(path) = output {
        out(format!("{count} readings in {}", path.display()));
    }
    Ok(())
}

type Sink = std::io::BufWriter<Box<dyn std::io::Write + Send>>;

async fn export_ndjson(config: &Config, selection: Selection, mut sink: Sink) -> anyhow::Result<u64> {
    query(config, selection, move |epoch, reading, time_us| {
        for row in readings::rows(epoch, reading, time_us) {
            serde_json::to_writer(&mut sink, &row)?;
            sink.write_all(b"\n")?;
        }
        Ok(())
    })
    .await
}

/// In groups of rows, so that memory does not grow with the export.
async fn export_parquet(config: &Config, selection: Selection, sink: Sink) -> anyhow::Result<u64> {
    const GROUP: usize = 50_000;
    let state = Arc::new(Mutex::new((parquet::Writer::new(sink)?, Vec::new())));
    let writing = state.clone();
    let count = query(config, selection, move |epoch, reading, time_us| {
        let (writer, rows) = &mut *writing.lock().unwrap_or_else(PoisonError::into_inner);
        rows.extend(parquet::rows(epoch, reading, time_us));
        if rows.len() >= GROUP {
            writer.group(std::mem::take(rows))?;
        }
        Ok(())
    })
    .await?;
    let state = Arc::into_inner(state).context("the query still runs")?;
    let (mut writer, rows) = state.into_inner().unwrap_or_else(PoisonError::into_inner);
    writer.group(rows)?;
    writer.finish()?.flush()?;
    Ok(count)
}

async fn stats(config: &Config, json: bool) -> anyhow::Result<()> {
    let stats = match Client::connect(&config.socket()).await {
        Ok(mut client) => {
            let status: serde_json::Value = serde_json::from_slice(&client.get("/v1/status").await?)?;
            status["outbox"].clone()
        }
        Err(ClientError::NotRunning { .. }) => {
            let data = config.data_dir.clone();
            let stats = tokio::task::spawn_blocking(move || Log::open_read_only(&data.join("log"))).await??.stats();
            serde_json::json!({ "first": stats.first, "next": stats.next, "disk_bytes": stats.disk_bytes })
        }
        Err(error) => return Err(error.into()),
    };
    if json {
        out(stats);
        return Ok(());
    }
    let figure = |name: &str| stats[name].as_u64().unwrap_or(0);
    out(format!(
        "{} readings held, numbers {} to {}",
        figure("next") - figure("first"),
        figure("first"),
        figure("next").saturating_sub(1)
    ));
    out(format!("{} bytes on disk", figure("disk_bytes")));
    Ok(())
}
