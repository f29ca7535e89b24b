//! What is counted of images.

use board::metrics::Metrics;
use prometheus_client::metrics::{counter::Counter, family::Family, gauge::Gauge};

use super::{Images, PullError, Pulled};

/// Figures of all images, since the engine was opened.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Bytes of layers that came from registries.
    pub fetched: Counter,
    pulls: Family<Labels, Counter>,
    /// Bytes that garbage collection freed.
    pub collected: Counter,
    /// Bytes of blobs and layers, as last measured: after each pull, each collection and now and then.
    pub store_bytes: Gauge,
}

/// `result`.
type Labels = [(&'static str, &'static str); 1];

/// How a pull may end: something new came; everything was here; the registry could not be asked, and what was here was
/// used; an error.
const RESULTS: [&str; 4] = ["changed", "current", "offline", "failed"];

impl Counts {
    /// Counts how a pull ended.
    pub fn pulled(&self, result: &Result<Pulled, PullError>) {
        let result = match result {
            Ok(pulled) if pulled.offline.is_some() => "offline",
            Ok(pulled) if pulled.changed => "changed",
            Ok(_) => "current",
            Err(_) => "failed",
        };
        self.pulls.get_or_create(&[("result", result)]).inc();
    }
}

impl Images {
    /// Registers what is counted.
    pub fn register(&self, metrics: &Metrics) {
        let counts = &self.0.counts;
        // A figure that is there from the beginning can be watched for its first step.
        for result in RESULTS {
            drop(counts.pulls.get_or_create(&[("result", result)]));
        }
        metrics.register(|registry| {
            registry.register("image_fetched_bytes", "Bytes of layers fetched from registries", counts.fetched.clone());
            registry.register("image_pulls", "Pulls of images, by how they ended", counts.pulls.clone());
            registry.register(
                "image_collected_bytes",
                "Bytes that garbage collection of images freed",
                counts.collected.clone(),
            );
            registry.register(
                "image_store_bytes",
                "Bytes of images on disk, compressed and unpacked",
                counts.store_bytes.clone(),
            );
        });
    }
}
