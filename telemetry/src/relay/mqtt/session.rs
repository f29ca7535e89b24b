//! One connection to the core, from its begin to its end.
//!
//! Three activities share it: `drive` moves packets and books acknowledgements, `feed` hands over readings as the
//! window and the cap allow, `keep` saves progress. A new connection starts from what is delivered; nothing of the
//! client library's own memory outlives a connection, so nothing is booked twice.

use std::{
    convert::Infallible,
    io,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use board::{tasks::Context, tls::TlsError};
use bytes::Bytes;
use rumqttc::{
    AsyncClient, ConnectionError, Event, EventLoop, Incoming, MqttOptions, NetworkOptions, Outgoing, QoS,
    SubscribeFilter, SubscribeReasonCode, TlsConfiguration, Transport,
};
use store::log::ReadError;
use tokio::{sync::Notify, time::Instant};

use super::{
    Relay, batch,
    flight::{Flight, Packet},
    lanes::{Lanes, lock},
    options::{Checked, Mode},
    pace::Pace,
    progress::Progress,
};
use crate::{
    outbox::{PutError, RelayHandle},
    reading::Reading,
    router::Message,
};

/// Requests between `feed` and the client.
const CHANNEL: usize = 4;
/// Largest message accepted from the core.
const MAX_DOWNLINK_BYTES: usize = 1 << 20;
/// Largest message of MQTT.
const MAX_UPLINK_BYTES: usize = 268_435_455;
/// Longest wait for connecting, and for a packet to leave through a slow link.
const NETWORK_TIMEOUT_SECS: u64 = 30;
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// A core that answers pings but acknowledges nothing for so long is given up.
const MAX_SILENCE: Duration = Duration::from_mins(2);
/// Progress is saved this often while it moves.
const SAVE_EVERY: Duration = Duration::from_secs(1);
/// Progress that has stood still for so long, with no commit of readings to ride, gets a commit of its own.
const SETTLED_AFTER: u32 = 30;
/// In batch mode a reading waits this long for company.
const COMPANY: Duration = Duration::from_millis(200);
/// How long a stopping relay waits for acknowledgements of what is on its way.
const FAREWELL: Duration = Duration::from_secs(2);

/// Why a connection was not made, or ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error("cannot set up TLS")]
    Tls(#[from] TlsError),
    #[error("lost the connection")]
    Connection(#[source] Box<ConnectionError>),
    #[error("cannot read the outbox")]
    Read(#[from] ReadError),
    #[error("cannot make a batch")]
    Encode(#[source] io::Error),
    #[error("cannot save progress")]
    Save(#[from] PutError),
    #[error("the core refuses the subscription to {0:?}")]
    Subscription(String),
    #[error("the core has acknowledged nothing for {} s", MAX_SILENCE.as_secs())]
    Silent,
    #[error("the connection was closed")]
    Closed,
}

impl From<ConnectionError> for SessionError {
    fn from(error: ConnectionError) -> Self {
        Self::Connection(Box::new(error))
    }
}

/// What the three activities share.
struct Link<'a> {
    relay: &'a Relay,
    flight: &'a Mutex<Flight>,
    /// The window has room, or nothing is on its way any more.
    moved: Notify,
    /// Readings delivered on this connection.
    delivered: AtomicU64,
    /// Where the history lane is.
    position: AtomicU64,
}

/// Connects and relays until stopped (`Ok`) or the connection ends. Returns with the readings delivered.
pub(super) async fn run(
    relay: &Relay,
    handle: &RelayHandle,
    flight: &Mutex<Flight>,
    context: &Context,
) -> (u64, Result<(), SessionError>) {
    let connected = tokio::select! {
        connected = connect(relay) => connected,
        () = context.stop.cancelled() => return (0, Ok(())),
    };
    let (client, mut events) = match connected {
        Ok(connected) => connected,
        Err(error) => return (0, Err(error)),
    };
    let link = Link {
        relay,
        flight,
        moved: Notify::new(),
        delivered: AtomicU64::new(0),
        position: AtomicU64::new(lock(flight).delivered().below()),
    };
    relay.0.metrics.connected.set(1);
    let end = link.run(&client, &mut events, handle, context).await;
    relay.0.metrics.connected.set(0);
    (link.delivered.into_inner(), end)
}

async fn connect(relay: &Relay) -> Result<(AsyncClient, EventLoop), SessionError> {
    let options = mqtt_options(relay).await?;
    let (client, mut events) = AsyncClient::new(options, CHANNEL);
    let mut network = NetworkOptions::new();
    network.set_connection_timeout(NETWORK_TIMEOUT_SECS);
    events.set_network_options(network);
    // The first event of a connection is its CONNACK.
    events.poll().await?;
    relay.0.metrics.connections.inc();
    let filter = |filter: &String| SubscribeFilter::new(filter.clone(), QoS::AtLeastOnce);
    let downlink = &relay.0.options.downlink;
    if !downlink.is_empty() {
        client.try_subscribe_many(downlink.iter().map(filter)).map_err(|_| SessionError::Closed)?;
    }
    Ok((client, events))
}

async fn mqtt_options(relay: &Relay) -> Result<MqttOptions, SessionError> {
    let Checked { host, port, tls, login, window, qos, downlink, board, .. } = &relay.0.options;
    let mut options = MqttOptions::new(format!("edge-agent-{board}-{}", relay.0.outbox.epoch()), host, *port);
    options.set_keep_alive(KEEP_ALIVE);
    options.set_max_packet_size(MAX_DOWNLINK_BYTES, MAX_UPLINK_BYTES);
    // More packet identifiers than packets on their way, so that they seldom collide where the core does not
    // acknowledge in order.
    options.set_inflight(u16::try_from(window * 4).unwrap_or(u16::MAX));
    // A session kept at the core holds commands for us while we are away. Not with QoS 2: there the core would take our
    // next connection's packets for repeats of this one's.
    options.set_clean_session(downlink.is_empty() || *qos == QoS::ExactlyOnce);
    if let Some((name, password)) = login {
        options.set_credentials(name, password);
    }
    if let Some(files) = tls.clone() {
        // Read anew for each connection: certificates are renewed while we run.
        let config = tokio::task::spawn_blocking(move || board::tls::client(&files)).await;
        let config = config.map_err(|_| SessionError::Closed)??;
        options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(config)));
    }
    Ok(options)
}

impl Link<'_> {
    async fn run(
        &self,
        client: &AsyncClient,
        events: &mut EventLoop,
        handle: &RelayHandle,
        context: &Context,
    ) -> Result<(), SessionError> {
        let drive = self.drive(events);
        tokio::pin!(drive);
        // `drive` is polled until the end of the connection and never begun twice: a client dropped in the middle of
        // a write would forget what it was writing.
        let ended = tokio::select! {
            ended = &mut drive => ended,
            ended = self.feed(client) => ended,
            ended = self.keep(handle, context) => ended,
            () = context.stop.cancelled() => {
                let landed = async { while lock(self.flight).packets() > 0 { self.moved.notified().await } };
                let farewell = async {
                    tokio::select! { _ = &mut drive => {}, () = landed => {} }
                    if client.disconnect().await.is_ok() {
                        drive.await.err();
                    }
                };
                // Whatever is not acknowledged in time is sent again after the next start.
                let _ = tokio::time::timeout(FAREWELL, farewell).await;
                return Ok(());
            }
        };
        ended.map(|never| match never {})
    }

    /// Moves packets, books what happened to them, and delivers what comes from the core.
    async fn drive(&self, events: &mut EventLoop) -> Result<Infallible, SessionError> {
        loop {
            match events.poll().await? {
                Event::Outgoing(Outgoing::Publish(id)) => self.book(|flight| flight.sent_as(id)),
                Event::Outgoing(Outgoing::AwaitAck(id)) => lock(self.flight).held_back(id),
                Event::Incoming(Incoming::PubAck(ack)) => self.book(|flight| flight.acknowledged(ack.pkid)),
                Event::Incoming(Incoming::PubComp(done)) => self.book(|flight| flight.acknowledged(done.pkid)),
                Event::Incoming(Incoming::Publish(publish)) => {
                    self.relay.0.metrics.downlink.inc();
                    self.relay.0.router.publish(&Message::plain(publish.topic, publish.payload));
                }
                Event::Incoming(Incoming::SubAck(ack)) => {
                    let refused = ack.return_codes.iter().position(|code| *code == SubscribeReasonCode::Failure);
                    if let Some(filter) = refused.and_then(|at| self.relay.0.options.downlink.get(at)) {
                        return Err(SessionError::Subscription(filter.clone()));
                    }
                }
                Event::Outgoing(Outgoing::Disconnect) => return Err(SessionError::Closed),
                _ => {}
            }
        }
    }

    fn book(&self, step: impl FnOnce(&mut Flight) -> u64) {
        let delivered = step(&mut lock(self.flight));
        if delivered > 0 {
            self.delivered.fetch_add(delivered, Ordering::Relaxed);
            self.relay.0.metrics.delivered.inc_by(delivered);
            self.moved.notify_one();
        }
    }

    /// Hands readings over as fast as window and cap allow.
    async fn feed(&self, client: &AsyncClient) -> Result<Infallible, SessionError> {
        let (outbox, options) = (&self.relay.0.outbox, &self.relay.0.options);
        let mut lanes = Lanes::new(outbox.clone(), lock(self.flight).delivered().below());
        let mut messages = Messages::new(self.relay)?;
        let mut pace = Pace::new(options.bandwidth);
        let mut durable = outbox.durable();
        loop {
            while lock(self.flight).packets() >= options.window {
                self.moved.notified().await;
            }
            let end = *durable.borrow_and_update();
            let readings = lanes.next(messages.bytes(), end, self.flight).await?;
            self.position.store(lanes.position(), Ordering::Relaxed);
            if readings.is_empty() {
                durable.changed().await.map_err(|_| SessionError::Closed)?;
                messages.wait_for_company().await;
                continue;
            }
            let packet = Packet::of(readings.iter().map(|reading| reading.seq));
            let (topic, payload) = messages.make(readings).await?;
            let bytes = topic.len() + payload.len() + 7;
            pace.take(bytes).await;
            self.relay.0.metrics.bytes.inc_by(bytes as u64);
            self.relay.0.metrics.sent.inc_by(packet.readings());
            lock(self.flight).hand_over(packet);
            client.publish_bytes(topic, options.qos, false, payload).await.map_err(|_| SessionError::Closed)?;
        }
    }

    /// Saves progress, tells how it goes, and notices a core that has fallen silent.
    async fn keep(&self, handle: &RelayHandle, context: &Context) -> Result<Infallible, SessionError> {
        let mut tick = tokio::time::interval(SAVE_EVERY);
        let (mut saved, mut unchanged, mut settled) = (None, 0, true);
        let (mut delivered, mut heard) = (0, Instant::now());
        loop {
            tick.tick().await;
            let (progress, idle) = {
                let mut flight = lock(self.flight);
                flight.shorten(self.position.load(Ordering::Relaxed));
                (flight.delivered().clone(), flight.packets() == 0)
            };
            let now = self.delivered.load(Ordering::Relaxed);
            if idle || now != delivered {
                (delivered, heard) = (now, Instant::now());
            } else if heard.elapsed() > MAX_SILENCE {
                return Err(SessionError::Silent);
            }
            self.report(&progress, context);
            if saved.as_ref() != Some(&progress) {
                save(handle, &progress);
                settled = saved.is_none();
                (saved, unchanged) = (Some(progress), 0);
                continue;
            }
            unchanged += 1;
            if !settled && unchanged >= SETTLED_AFTER {
                handle.save_durably(progress.below(), &progress.encode()).await?;
                settled = true;
            }
        }
    }

    fn report(&self, progress: &Progress, context: &Context) {
        let behind = self.relay.0.outbox.stats().next.saturating_sub(progress.below());
        self.relay.0.metrics.lag.set(i64::try_from(behind).unwrap_or(i64::MAX));
        let Checked { host, port, .. } = &self.relay.0.options;
        context.healthy(match behind {
            0 => format!("connected to {host}:{port}; all readings are delivered"),
            _ => format!("connected to {host}:{port}; {behind} readings to go"),
        });
    }
}

/// Progress that rides the next commit.
pub(super) fn save(handle: &RelayHandle, progress: &Progress) {
    handle.save(progress.below(), &progress.encode());
}

/// Readings made into messages, as the mode says.
enum Messages<'a> {
    Bridge {
        prefix: &'a str,
    },
    /// `None` only while a batch is being made.
    Batch {
        topic: &'a str,
        bytes: usize,
        encoder: Option<batch::Encoder>,
    },
}

impl<'a> Messages<'a> {
    fn new(relay: &'a Relay) -> Result<Self, SessionError> {
        let Checked { mode, uplink, batch_bytes, board, .. } = &relay.0.options;
        Ok(match mode {
            Mode::Bridge => Self::Bridge { prefix: uplink },
            Mode::Batch => {
                let (epoch, clock) = (relay.0.outbox.epoch(), relay.0.outbox.clock().clone());
                let encoder = batch::Encoder::new(board.clone(), epoch, clock).map_err(SessionError::Encode)?;
                Self::Batch { topic: uplink, bytes: *batch_bytes, encoder: Some(encoder) }
            }
        })
    }

    /// Bytes of readings that one message takes; one reading always fits.
    fn bytes(&self) -> usize {
        match self {
            Self::Bridge { .. } => 1,
            Self::Batch { bytes, .. } => *bytes,
        }
    }

    async fn wait_for_company(&self) {
        if matches!(self, Self::Batch { .. }) {
            tokio::time::sleep(COMPANY).await;
        }
    }

    async fn make(&mut self, mut readings: Vec<Reading>) -> Result<(String, Bytes), SessionError> {
        match self {
            Self::Bridge { prefix } => {
                let reading = readings.pop().ok_or(SessionError::Closed)?;
                Ok((format!("{prefix}{}", reading.topic), reading.payload))
            }
            Self::Batch { topic, encoder, .. } => {
                let mut busy = encoder.take().ok_or(SessionError::Closed)?;
                let (idle, message) = tokio::task::spawn_blocking(move || {
                    let message = busy.encode(&readings);
                    (busy, message)
                })
                .await
                .map_err(|error| SessionError::Encode(io::Error::other(error)))?;
                *encoder = Some(idle);
                Ok(((*topic).to_owned(), message.map_err(SessionError::Encode)?.into()))
            }
        }
    }
}
