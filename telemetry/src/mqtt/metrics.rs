//! The listener in figures.

use board::metrics::Metrics;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Qos {
    qos: u8,
}

pub(super) struct MqttMetrics {
    pub clients: Gauge,
    published: [Counter; 3],
    pub dropped: Counter,
    refused: Family<Reason, Counter>,
}

impl MqttMetrics {
    pub fn register(metrics: &Metrics) -> Self {
        let published: Family<Qos, Counter> = Family::default();
        let counter = |qos| published.get_or_create(&Qos { qos }).clone();
        let it = Self {
            clients: Gauge::default(),
            published: [counter(0), counter(1), counter(2)],
            dropped: Counter::default(),
            refused: Family::default(),
        };
        metrics.register(|registry| {
            registry.register("mqtt_clients", "Connected clients", it.clients.clone());
            registry.register("mqtt_published", "PUBLISH packets received", published.clone());
            registry.register("mqtt_qos0_dropped", "QoS 0 messages dropped: the outbox was full", it.dropped.clone());
            registry.register("mqtt_refused", "Packets and connections refused", it.refused.clone());
        });
        it
    }

    pub fn published(&self, qos: u8) {
        if let Some(counter) = self.published.get(usize::from(qos)) {
            counter.inc();
        }
    }

    /// `reason` is one of a fixed set of words: a label must not grow with what clients send.
    pub fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&Reason { reason: reason.to_owned() }).inc();
    }
}
