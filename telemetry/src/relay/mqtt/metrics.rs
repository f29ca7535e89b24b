//! The relay in figures.

use board::metrics::Metrics;
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};

/// Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct RelayMetrics {
    pub(super) connected: Gauge,
    pub(super) sent: Counter,
    pub(super) delivered: Counter,
    pub(super) bytes: Counter,
    pub(super) connections: Counter,
    pub(super) lag: Gauge,
    pub(super) unsendable: Counter,
    pub(super) downlink: Counter,
}

impl RelayMetrics {
    pub(super) fn register(metrics: &Metrics) -> Self {
        let it = Self::default();
        metrics.register(|registry| {
            registry.register("relay_mqtt_connected", "1 while connected to the core", it.connected.clone());
            registry.register("relay_mqtt_sent", "Readings handed to the network, repeats included", it.sent.clone());
            registry.register("relay_mqtt_delivered", "Readings acknowledged by the core", it.delivered.clone());
            registry.register("relay_mqtt_sent_bytes", "Bytes of MQTT messages sent", it.bytes.clone());
            registry.register("relay_mqtt_connections", "Connections made to the core", it.connections.clone());
            registry.register("relay_mqtt_lag", "Readings from the oldest undelivered one on", it.lag.clone());
            let help = "Readings passed over because their mapped topic is not one that MQTT allows";
            registry.register("relay_mqtt_unsendable", help, it.unsendable.clone());
            registry.register("relay_mqtt_downlink", "Messages received from the core", it.downlink.clone());
        });
        it
    }
}
