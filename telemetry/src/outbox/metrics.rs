//! The outbox in figures.

use std::time::Duration;

use board::metrics::Metrics;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{
        counter::{ConstCounter, Counter},
        gauge::ConstGauge,
        histogram::{Histogram, exponential_buckets},
    },
};
use store::log::Log;

use crate::reading::NewReading;

pub(super) struct OutboxMetrics {
    accepted: Counter,
    accepted_bytes: Counter,
    pub refused: Counter,
    pub dropped: Counter,
    durable_seconds: Histogram,
}

impl OutboxMetrics {
    pub fn register(metrics: &Metrics, log: &Log) -> Self {
        let it = Self {
            accepted: Counter::default(),
            accepted_bytes: Counter::default(),
            refused: Counter::default(),
            dropped: Counter::default(),
            durable_seconds: Histogram::new(exponential_buckets(0.000_25, 2.0, 14)),
        };
        metrics.register(|registry| {
            registry.register("outbox_accepted", "Readings made durable", it.accepted.clone());
            registry.register("outbox_accepted_bytes", "Payload of readings made durable", it.accepted_bytes.clone());
            registry.register("outbox_refused", "Readings not accepted: full or failing disk", it.refused.clone());
            registry.register("outbox_dropped", "Readings dropped before they were delivered", it.dropped.clone());
            let help = "Time from a reading's arrival at the outbox until it is durable";
            registry.register("outbox_durable_seconds", help, it.durable_seconds.clone());
            registry.register_collector(Box::new(LogFigures(log.clone())));
        });
        it
    }

    pub fn accepted(&self, readings: &[NewReading], took: Duration) {
        self.accepted.inc_by(readings.len() as u64);
        self.accepted_bytes.inc_by(readings.iter().map(|reading| reading.payload.len() as u64).sum());
        self.durable_seconds.observe(took.as_secs_f64());
    }
}

/// Figures that the log keeps itself, read when asked for.
struct LogFigures(Log);

impl std::fmt::Debug for LogFigures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LogFigures")
    }
}

impl Collector for LogFigures {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let stats = self.0.stats();
        let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let gauges = [
            ("log_disk_bytes", "Bytes of the log on disk", stats.disk_bytes),
            ("log_readings", "Readings held", stats.next - stats.first),
            ("log_segments", "Segments in use", stats.segments),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(signed(value));
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let counters = [
            ("log_commits", "Commits, each one fdatasync", stats.commits),
            ("log_written_bytes", "Bytes written to disk, zero-filling included", stats.written_bytes),
            ("log_damaged", "Readings found damaged", stats.damaged),
        ];
        for (name, help, value) in counters {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        Ok(())
    }
}
