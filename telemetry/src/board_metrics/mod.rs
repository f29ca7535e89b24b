//! The board's own figures as a source of readings: processor, memory, disk and its wear, temperature, network, uptime.
//!
//! One reading each interval, a `SenML` pack (RFC 8428) on one topic, so that each figure is a row with a unit in S3. The
//! first one is taken after one interval: a share needs two looks. What a board does not have is left out.
//!
//! Elsewhere: what the kernel's files say (`sample`).

mod sample;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use board::tasks::Context;

use crate::{ingest::Ingest, reading::NewReading};
use sample::{Figure, Sample};

/// How the source is set up.
#[derive(Debug, Clone)]
pub struct Options {
    /// Time between two readings.
    pub interval: Duration,
    /// Where they are published.
    pub topic: String,
    /// Whose file system is watched.
    pub data_dir: PathBuf,
}

/// The source.
#[derive(Clone)]
pub struct BoardMetrics {
    options: Options,
    ingest: Ingest,
}

impl BoardMetrics {
    /// Not yet at work.
    pub fn new(options: Options, ingest: Ingest) -> Self {
        Self { options, ingest }
    }

    /// Publishes until stopped. A reading that cannot be stored is left out: the next one is fresher.
    pub async fn run(self, context: Context) -> Result<(), tokio::task::JoinError> {
        let mut before = (self.look().await?, Instant::now());
        loop {
            tokio::select! {
                () = tokio::time::sleep(self.options.interval) => {}
                () = context.stop.cancelled() => return Ok(()),
            }
            let now = (self.look().await?, Instant::now());
            let figures = now.0.since(&before.0, now.1 - before.1);
            before = now;
            let reading = NewReading { topic: self.options.topic.clone(), payload: senml(&figures).into() };
            match self.ingest.submit(vec![reading]).await {
                Ok(_) => context.healthy(format!("{} figures on {}", figures.len(), self.options.topic)),
                Err(error) => context.degraded(
                    format!("the board's own figures were not stored: {error}"),
                    "make room in the outbox, or set board_metrics.enabled = false",
                ),
            }
        }
    }

    /// Reads the kernel's files, off the runtime: sysfs may wait for a slow sensor.
    async fn look(&self) -> Result<Sample, tokio::task::JoinError> {
        let data_dir = self.options.data_dir.clone();
        tokio::task::spawn_blocking(move || Sample::take(Path::new("/"), &data_dir)).await
    }
}

/// A `SenML` pack without times: the reading has one.
fn senml(figures: &[Figure]) -> String {
    let record = |it: &Figure| serde_json::json!({ "n": it.name, "u": it.unit, "v": it.value });
    serde_json::Value::Array(figures.iter().map(record).collect()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pack_becomes_rows_with_units() {
        let figures = [
            Figure { name: "uptime".into(), unit: "s", value: 12.5 },
            Figure { name: "cpu".into(), unit: "/", value: 0.25 },
        ];
        let rows = crate::decode::measurements(senml(&figures).as_bytes(), 0);
        let rows: Vec<_> = rows.iter().map(|it| (it.name.as_str(), it.unit.as_deref(), it.value.clone())).collect();
        let number = |value| Some(crate::decode::Value::Number(value));
        assert_eq!(rows, [("uptime", Some("s"), number(12.5)), ("cpu", Some("/"), number(0.25))]);
    }
}
