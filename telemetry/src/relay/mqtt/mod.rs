//! Readings to the core's MQTT broker, and its messages to local subscribers.
//!
//! Always true: at least once. Progress moves with the broker's PUBACK (PUBCOMP at QoS 2). When a connection breaks,
//! everything not acknowledged is sent again on the next one.
//!
//! Order: urgent readings first, then fresh ones, then history. "Fresh" begins where the outbox ended when the backlog
//! became large; without a backlog there is one stream in order.
//!
//! A client of its own rather than `rumqttc`'s: that one loses a packet when its `poll` is dropped while the network is
//! slow, writes and wakes once for each message, and cannot pass over a message that is too large.

mod batch;
mod link;
mod options;
mod packet;
mod problem;
mod progress;
mod queue;
mod wire;

use std::time::{Duration, Instant};

use board::{
    metrics::Metrics,
    tasks::{Context, backoff},
    throttle::Throttle,
};
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};

use crate::{
    outbox::{Outbox, RelayHandle},
    router::Router,
};
use link::Link;
pub use options::{ConfigError, Mode, Options, Secret};
use progress::Progress;

/// Name of the relay: its checkpoint, and in `status`.
pub const NAME: &str = "mqtt";
/// Progress is saved this often at most; it rides the log's next commit.
const SAVE_EVERY: Duration = Duration::from_secs(1);

/// The relay.
#[derive(Clone)]
pub struct Relay {
    options: Options,
    outbox: Outbox,
    router: Router,
    figures: Figures,
}

#[derive(Clone, Default)]
struct Figures {
    connected: Gauge,
    acknowledged: Counter,
    sent_bytes: Counter,
    connections: Counter,
}

impl Relay {
    /// Sets the relay up; from now on the outbox keeps what it has not delivered.
    pub fn new(options: Options, outbox: Outbox, router: Router, metrics: &Metrics) -> Self {
        let figures = Figures::default();
        metrics.register(|registry| {
            registry.register(
                "relay_mqtt_connected",
                "Whether the core's broker is connected",
                figures.connected.clone(),
            );
            registry.register("relay_mqtt_acknowledged", "Readings acknowledged", figures.acknowledged.clone());
            registry.register(
                "relay_mqtt_sent_bytes",
                "Bytes sent, after compression and before TLS",
                figures.sent_bytes.clone(),
            );
            registry.register("relay_mqtt_connections", "Connections made", figures.connections.clone());
        });
        drop(outbox.relay(NAME));
        Self { options, outbox, router, figures }
    }

    /// Relays until stopped.
    pub async fn run(self, context: Context) -> Result<(), std::convert::Infallible> {
        let handle = self.outbox.relay(NAME);
        let (below, saved) = handle.saved();
        let mut progress = Progress::decode(below, &saved);
        let throttle = Throttle::new(self.options.bandwidth);
        let mut tries = 0;
        while !context.stop.is_cancelled() {
            let begun = Instant::now();
            let link = Link::open(&self, &context, &handle, &mut progress, &throttle);
            let ended = tokio::select! {
                () = context.stop.cancelled() => break,
                link = link => match link {
                    Ok(link) => link.run().await,
                    Err(problem) => Err(problem),
                },
            };
            self.figures.connected.set(0);
            save(&handle, &progress);
            let Err(problem) = ended else { break };
            context.degraded(format!("{}: {problem}", self.options.place()), problem.remedy());
            tries = if begun.elapsed() > Duration::from_secs(60) { 1 } else { tries + 1 };
            tokio::select! {
                () = tokio::time::sleep(backoff(tries, Duration::from_millis(500), Duration::from_secs(120))) => {}
                () = context.stop.cancelled() => {}
            }
        }
        Ok(())
    }
}

fn save(handle: &RelayHandle, progress: &Progress) {
    handle.save(progress.below(), &progress.encode());
}
