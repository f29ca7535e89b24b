//! `edge-agent demo`: the whole path of a reading on one machine, in a temporary directory.
//!
//! Sample sensors publish over MQTT; readings become durable; a folder stands in for the S3 bucket; at the end the
//! Parquet is read back and drawn.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, ensure};
use rumqttc::{AsyncClient, Event, Incoming, MqttOptions, QoS};
use telemetry::parquet::{self, Row};
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    app::App,
    cli::out,
    config::{Config, raw::Raw},
};

const BOARD: &str = "demo-board";
const SENSORS: [(&str, f64, f64); 3] =
    [("greenhouse/north", 21.0, 4.0), ("greenhouse/south", 24.0, 3.0), ("barn/freezer", -18.0, 1.0)];
/// A reading of each sensor this often.
const EVERY: Duration = Duration::from_millis(100);

/// Removes the folder when the demo ends, however it ends.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, folder = %self.0.display(), "the demo's folder is left behind; remove it by hand");
        }
    }
}

/// Runs the demo.
pub async fn run(minutes: Option<f64>) -> anyhow::Result<ExitCode> {
    let length = Duration::try_from_secs_f64(minutes.map_or(10.0, |minutes| minutes * 60.0))
        .context("--minutes takes a number of minutes, such as 0.5")?;
    let folder = Folder(std::env::temp_dir().join(format!("edge-agent-demo-{}", std::process::id())));
    std::fs::create_dir_all(&folder.0).with_context(|| format!("cannot create {}", folder.0.display()))?;
    let bucket = folder.0.join("bucket");
    let config = configuration(&folder.0)?;
    let stop = CancellationToken::new();
    let app = App::build(&config).await?;
    let port = app.mqtt_port.context("the demo's listener has no port")?;
    let mut tasks = JoinSet::new();
    tasks.spawn(app.run(stop.clone()));
    out(format!("An agent with its store in {}, MQTT on 127.0.0.1:{port}", folder.0.display()));
    out(format!("Three sensors publish at QoS 1 for {} s; each PUBACK means: on disk.", length.as_secs()));
    let acknowledged = publish(port, length).await?;
    out(format!("{acknowledged} readings acknowledged. Waiting for them in the bucket (a folder here) …"));
    let rows = wait_for(&bucket, acknowledged).await;
    stop.cancel();
    while tasks.join_next().await.is_some() {}
    let rows = rows?;
    report(&rows, acknowledged);
    ensure!(rows.len() as u64 == acknowledged, "{} of {acknowledged} readings are in the bucket", rows.len());
    Ok(ExitCode::SUCCESS)
}

fn configuration(folder: &Path) -> anyhow::Result<Config> {
    let mut raw = Raw::default();
    raw.agent.name = Some(BOARD.into());
    raw.agent.data_dir = Some(folder.join("data"));
    raw.mqtt.listen = vec!["127.0.0.1:0".into()];
    raw.http.listen = String::new();
    // The rows at the end are the sensors' alone.
    raw.board_metrics.enabled = false;
    // The containers of a real agent on this machine are none of a demo's business.
    raw.engine.enabled = false;
    raw.relay.s3.endpoint = url::Url::from_file_path(folder).ok().map(String::from);
    raw.relay.s3.bucket = "bucket".into();
    raw.relay.s3.flush_interval = crate::config::Span(Duration::from_secs(2));
    Config::check(raw).map_err(|(key, problem)| anyhow::anyhow!("{key}: {problem}"))
}

/// Publishes for `length`; returns how many readings were acknowledged.
async fn publish(port: u16, length: Duration) -> anyhow::Result<u64> {
    let mut options = MqttOptions::new("demo-sensors", "127.0.0.1", port);
    options.set_keep_alive(Duration::from_secs(10));
    let (client, mut events) = AsyncClient::new(options, 64);
    let end = Instant::now() + length;
    let mut tick = tokio::time::interval(EVERY);
    let (mut sent, mut acknowledged, mut step) = (0u64, 0u64, 0u32);
    while Instant::now() < end || acknowledged < sent {
        tokio::select! {
            _ = tick.tick(), if Instant::now() < end => {
                for (topic, middle, swing) in SENSORS {
                    let value = middle + swing * (f64::from(step) / 15.0).sin();
                    let payload = format!(r#"[{{"n":"{topic}","u":"Cel","v":{value:.2}}}]"#);
                    client.try_publish(topic, QoS::AtLeastOnce, false, payload).context("the demo's sensors are stuck")?;
                    sent += 1;
                }
                step += 1;
            }
            event = events.poll() => if let Event::Incoming(Incoming::PubAck(_)) = event.context("the listener went away")? {
                acknowledged += 1;
            },
        }
    }
    Ok(acknowledged)
}

/// The rows of all objects, once there are `want`.
async fn wait_for(bucket: &Path, want: u64) -> anyhow::Result<Vec<Row>> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let bucket = bucket.to_owned();
        let rows = tokio::task::spawn_blocking(move || read_all(&bucket)).await??;
        if rows.len() as u64 >= want || Instant::now() > deadline {
            return Ok(rows);
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

fn read_all(dir: &Path) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten() {
        let path = entry?.path();
        if path.is_dir() {
            rows.extend(read_all(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "parquet") {
            rows.extend(parquet::decode(std::fs::read(&path)?).with_context(|| format!("{}", path.display()))?);
        }
    }
    Ok(rows)
}

fn report(rows: &[Row], acknowledged: u64) {
    for (topic, ..) in SENSORS {
        let mut mine: Vec<_> = rows.iter().filter(|row| row.topic == topic).collect();
        mine.sort_by_key(|row| row.seq);
        let values: Vec<_> = mine.iter().filter_map(|row| row.value).collect();
        out(format!(
            "  {topic:<18} {} {}",
            chart(&values, 48),
            values.last().map_or_else(String::new, |it| format!("{it:.1} °C"))
        ));
    }
    let mut numbers: Vec<_> = rows.iter().map(|row| row.seq).collect();
    numbers.sort_unstable();
    numbers.dedup();
    out(format!(
        "{} rows read back from Parquet, {} different numbers, {acknowledged} acknowledged.",
        rows.len(),
        numbers.len()
    ));
    out("Next: edge-agent run, and [relay.s3] in /etc/edge-agent/config.toml for a real bucket.");
}

/// Values as a line of blocks, `width` wide.
fn chart(values: &[f64], width: usize) -> String {
    const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let block = |n: usize| {
        let value = values[n * values.len() / width];
        let part = if high > low { (value - low) / (high - low) } else { 0.5 };
        // 0 to 7 by construction.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        BLOCKS[((part * 7.0).round() as usize).min(7)]
    };
    if values.is_empty() { String::new() } else { (0..width).map(block).collect() }
}
