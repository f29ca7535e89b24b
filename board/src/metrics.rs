//! The one registry of metrics, encoded as OpenMetrics text.

use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::registry::Registry;

/// Cheap to clone.
#[derive(Clone)]
pub struct Metrics(Arc<Mutex<Registry>>);

impl Default for Metrics {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Registry::with_prefix("edge_agent"))))
    }
}

impl Metrics {
    /// An empty registry; every name starts with `edge_agent_`.
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers metrics: `metrics.register(|r| r.register("name", "Help", metric.clone()))`.
    pub fn register<T>(&self, register: impl FnOnce(&mut Registry) -> T) -> T {
        register(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// `OpenMetrics` text.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        let registry = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Writing to a `String` cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
        text
    }
}
