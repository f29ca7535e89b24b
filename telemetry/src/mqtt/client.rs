//! A client that was let in: its packets in, its acknowledgements and messages out.
//!
//! One task does everything, in one loop. PUBLISH packets that are in the buffer together are one batch for the outbox;
//! batches are stored while the next packets are read, and acknowledged in their order.

use std::{
    collections::{BTreeMap, HashSet},
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use bytes::BytesMut;
use futures_util::{StreamExt, stream::FuturesOrdered};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::{sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Shared, WRITE_PATIENCE,
    auth::Rights,
    check::Bad,
    packet::{self, Connect, Granted, Incoming, Publish, Version},
    storing::{Pending, store},
    window::Window,
};
use crate::{
    reading::NewReading,
    router::{Attached, Delivery, Message, Retained, SessionError, Subscription},
    topic,
};

/// Readings and bytes of one connection on their way to the disk.
pub const MAX_PENDING: usize = 1024;
const MAX_PENDING_BYTES: usize = 256 << 10;
/// Topic aliases an MQTT 5 client may set.
pub const MAX_ALIASES: u16 = 32;

/// Why a connection ends.
#[derive(Debug)]
enum End {
    /// DISCONNECT, with a new session expiry if the client gave one.
    Asked {
        with_will: bool,
        session_expiry: Option<u32>,
    },
    Lost,
    Bad(Bad),
    Reason(u8, &'static str),
    TakenOver,
    Stopping,
}

impl From<Bad> for End {
    fn from(bad: Bad) -> Self {
        Self::Bad(bad)
    }
}

impl From<std::io::Error> for End {
    fn from(_: std::io::Error) -> Self {
        Self::Lost
    }
}

type Storing = Pin<Box<dyn Future<Output = Vec<Pending>> + Send>>;

/// A client that was let in.
pub struct Client {
    shared: Arc<Shared>,
    peer: SocketAddr,
    stop: CancellationToken,
    version: Version,
    name: String,
    rights: Rights,
    link_id: u64,
    keep_alive: Option<Duration>,
    max_packet: Option<u32>,
    will: Option<(Message, u32)>,
    attached: Attached,
    window: Window,
    inbound: HashSet<u16>,
    aliases: BTreeMap<u16, String>,
    /// Readings taken from the buffer and not yet handed to the outbox.
    batch: Vec<(NewReading, Pending)>,
    storing: FuturesOrdered<Storing>,
    pending: usize,
    pending_bytes: usize,
}

impl Client {
    /// One whose CONNECT was accepted.
    pub fn new(
        (shared, peer, stop): (Arc<Shared>, SocketAddr, CancellationToken),
        connect: Connect,
        rights: Rights,
        mut attached: Attached,
    ) -> Self {
        let keep_alive = (connect.keep_alive > 0).then(|| Duration::from_millis(u64::from(connect.keep_alive) * 1500));
        let mut wills = shared.wills.lock().unwrap_or_else(PoisonError::into_inner);
        wills.remove(&connect.client);
        drop(wills);
        shared.metrics.clients.inc();
        Self {
            version: connect.version,
            name: connect.client,
            rights,
            link_id: attached.link_id,
            keep_alive,
            max_packet: connect.max_packet,
            will: connect.will,
            inbound: std::mem::take(&mut attached.inbound),
            attached,
            window: Window::new(connect.receive_max),
            aliases: BTreeMap::new(),
            batch: Vec::new(),
            storing: FuturesOrdered::new(),
            pending: 0,
            pending_bytes: 0,
            shared,
            peer,
            stop,
        }
    }

    /// Serves it until it leaves, is lost, is taken over or the agent stops.
    pub async fn run<S: AsyncRead + AsyncWrite + Unpin>(
        mut self,
        mut stream: S,
        mut input: BytesMut,
        mut output: BytesMut,
    ) {
        let end = loop {
            if let Err(end) = self.step(&mut stream, &mut input, &mut output).await {
                break end;
            }
        };
        if matches!(end, End::Stopping) {
            // What was read is stored and acknowledged before the connection goes.
            let _ = timeout(Duration::from_secs(3), self.drain(&mut output)).await;
        }
        self.say_goodbye(&end, &mut output);
        if !output.is_empty() {
            let _ = timeout(Duration::from_secs(2), stream.write_all(&output)).await;
        }
        let _ = timeout(Duration::from_secs(1), stream.shutdown()).await;
        self.leave(end).await;
    }

    /// Waits for one event and deals with it.
    async fn step<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        input: &mut BytesMut,
        output: &mut BytesMut,
    ) -> Result<(), End> {
        self.parse(input, output).await?;
        self.fill(output);
        if !output.is_empty() {
            timeout(WRITE_PATIENCE, stream.write_all(output)).await.map_err(|_| End::Lost)??;
            output.clear();
            if output.capacity() > 64 << 10 {
                *output = BytesMut::new();
            }
        }
        let may_read = self.may_read();
        let silence = tokio::time::Instant::now() + self.keep_alive.unwrap_or(Duration::from_secs(86_400));
        let wants_more = self.window.has_room();
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(End::Stopping),
            () = self.attached.taken_over.cancelled() => Err(End::TakenOver),
            Some(done) = self.storing.next(), if !self.storing.is_empty() => {
                self.stored(done, output);
                Ok(())
            }
            Some(delivery) = self.attached.receiver.recv(), if wants_more => {
                self.send(delivery, output);
                Ok(())
            }
            read = read_some(stream, input), if may_read => match read? {
                0 => Err(End::Lost),
                _ => Ok(()),
            },
            // A client that is not read from cannot be heard: silence then is ours.
            () = sleep_until(silence), if may_read && self.keep_alive.is_some() => {
                Err(End::Reason(0x8d, "keep-alive time-out"))
            }
        }
    }

    fn may_read(&self) -> bool {
        self.pending < MAX_PENDING && self.pending_bytes < MAX_PENDING_BYTES
    }

    /// Deals with every whole packet in the buffer.
    async fn parse(&mut self, input: &mut BytesMut, output: &mut BytesMut) -> Result<(), End> {
        let max = self.shared.options.max_packet;
        let result = loop {
            if !self.may_read() {
                break Ok(());
            }
            match packet::take_frame(input, max, self.version == Version::V5) {
                Ok(Some(frame)) => {
                    let taken = match packet::incoming(frame, self.version) {
                        Ok(incoming) => self.take(incoming, output).await,
                        Err(bad) => Err(bad.into()),
                    };
                    if let Err(end) = taken {
                        break Err(end);
                    }
                }
                Ok(None) => break Ok(()),
                Err(bad) => break Err(bad.into()),
            }
        };
        self.store_batch();
        result
    }

    async fn take(&mut self, incoming: Incoming, output: &mut BytesMut) -> Result<(), End> {
        match incoming {
            Incoming::Publish(publish) => return self.publish(publish, output),
            Incoming::Done(id) | Incoming::Complete(id) | Incoming::Received(id, false) => self.window.done(id),
            Incoming::Received(id, true) => {
                self.window.received(id);
                packet::ack(output, 0x62, id);
            }
            Incoming::Release(id) => {
                self.inbound.remove(&id);
                packet::ack(output, 0x70, id);
            }
            Incoming::Subscribe(id, filters) => self.subscribe(id, filters, output).await,
            Incoming::Unsubscribe(id, filters) => {
                let router = &self.shared.ingest.router;
                let found: Vec<_> = filters.iter().map(|filter| router.unsubscribe(&self.name, filter)).collect();
                self.save().await;
                packet::unsuback(output, self.version, id, &found);
            }
            Incoming::Ping => packet::pong(output),
            Incoming::Disconnect { with_will, session_expiry } => return Err(End::Asked { with_will, session_expiry }),
        }
        Ok(())
    }

    fn publish(&mut self, mut publish: Publish, output: &mut BytesMut) -> Result<(), End> {
        self.shared.metrics.published(publish.qos);
        self.resolve_alias(&mut publish)?;
        if topic::check_name(&publish.topic).is_err() {
            return Err(End::Reason(0x90, "topic name not valid here"));
        }
        if !self.rights.may_publish(&publish.topic) {
            self.shared.metrics.refused("topic");
            return match (self.version, publish.qos) {
                // 3.1.1 has no way to refuse a PUBLISH but to close or to swallow it (section 3.3.5).
                (_, 0) => Ok(()),
                (Version::V4, qos) => {
                    packet::ack(output, if qos == 1 { 0x40 } else { 0x50 }, publish.id);
                    Ok(())
                }
                (Version::V5, qos) => {
                    let [high, low] = publish.id.to_be_bytes();
                    output.extend_from_slice(&[if qos == 1 { 0x40 } else { 0x50 }, 3, high, low, 0x87]);
                    Ok(())
                }
            };
        }
        if publish.qos == 2 && !self.inbound.insert(publish.id) {
            packet::ack(output, 0x50, publish.id); // Sent again: it is stored, or about to be.
            return Ok(());
        }
        self.pending += 1;
        self.pending_bytes += publish.payload.len() + publish.topic.len();
        let router = &self.shared.ingest.router;
        let message = (publish.retain || router.has_listeners()).then(|| Message {
            qos: publish.qos,
            retain: publish.retain,
            properties: publish.properties,
            ..Message::plain(publish.topic.clone(), publish.payload.clone())
        });
        let reading = NewReading { topic: publish.topic, payload: publish.payload };
        self.batch.push((reading, Pending { qos: publish.qos, id: publish.id, message }));
        Ok(())
    }

    fn resolve_alias(&mut self, publish: &mut Publish) -> Result<(), End> {
        let Some(alias) = publish.properties.as_ref().and_then(|properties| properties.topic_alias) else {
            return Ok(());
        };
        if alias == 0 || alias > MAX_ALIASES {
            return Err(End::Reason(0x94, "topic alias out of range"));
        }
        if publish.topic.is_empty() {
            let known = self.aliases.get(&alias).ok_or(End::Reason(0x82, "topic alias not known"))?;
            publish.topic.clone_from(known);
        } else {
            self.aliases.insert(alias, publish.topic.clone());
        }
        Ok(())
    }

    fn store_batch(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let batch = std::mem::take(&mut self.batch);
        self.storing.push_back(Box::pin(store(self.shared.clone(), batch)));
    }

    /// A batch is on disk: acknowledge it, and let local subscribers hear it.
    fn stored(&mut self, done: Vec<Pending>, output: &mut BytesMut) {
        self.pending -= done.len();
        if self.pending == 0 {
            self.pending_bytes = 0;
        }
        for pending in done {
            match pending.qos {
                0 => {}
                1 => packet::ack(output, 0x40, pending.id),
                _ => packet::ack(output, 0x50, pending.id),
            }
            if let Some(message) = pending.message {
                self.shared.ingest.router.publish_from(&message, Some(&self.name));
            }
        }
    }

    /// Sends what waits in the channel and, when that is empty, in the session's queue.
    fn fill(&mut self, output: &mut BytesMut) {
        while self.window.has_room() && output.len() < 32 << 10 {
            if let Ok(delivery) = self.attached.receiver.try_recv() {
                self.send(delivery, output);
                continue;
            }
            let queued = self.shared.ingest.router.take_queued(&self.name, self.link_id, 1);
            let Some(delivery) = queued.into_iter().next() else { return };
            self.send(delivery, output);
        }
    }

    fn send(&mut self, delivery: Delivery, output: &mut BytesMut) {
        if delivery.message.expires_in() == Some(0) {
            return;
        }
        let id = if delivery.qos == 0 { 0 } else { self.window.send(&delivery) };
        if !packet::publish(output, self.version, &delivery, id, self.max_packet) {
            // Larger than the client takes: it is as if it had been delivered (section 3.1.2.11.4).
            self.window.done(id);
        }
    }

    async fn subscribe(&mut self, id: u16, filters: Vec<(Subscription, Retained)>, output: &mut BytesMut) {
        let mut granted = Vec::with_capacity(filters.len());
        let mut retained = Vec::new();
        for (subscription, handling) in filters {
            let qos = subscription.qos;
            granted.push(if topic::check_filter(&subscription.filter).is_err() {
                Granted::Invalid
            } else if subscription.filter.starts_with("$share/") {
                Granted::SharedUnsupported
            } else if !self.rights.may_subscribe(&subscription.filter) {
                Granted::NotAuthorized
            } else {
                match self.shared.ingest.router.subscribe(&self.name, subscription, handling) {
                    Ok(deliveries) => {
                        retained.extend(deliveries);
                        Granted::Qos(qos)
                    }
                    Err(SessionError::Quota) => Granted::Quota,
                }
            });
        }
        self.save().await;
        packet::suback(output, self.version, id, &granted);
        for delivery in retained {
            if delivery.qos == 0 || self.window.has_room() {
                self.send(delivery, output);
            } else {
                self.shared.ingest.router.requeue(&self.name, self.link_id, delivery);
            }
        }
    }

    /// Subscriptions are on disk before they are acknowledged; if that fails the client is served all the same.
    fn save(&self) -> impl Future<Output = ()> + Send + use<> {
        let (shared, client) = (self.shared.clone(), self.name.clone());
        async move {
            if let Err(error) = shared.ingest.router.save_session(&shared.state, &client).await {
                tracing::warn!(%error, client, "an MQTT session could not be saved");
            }
        }
    }

    async fn drain(&mut self, output: &mut BytesMut) {
        while let Some(done) = self.storing.next().await {
            self.stored(done, output);
        }
    }

    fn say_goodbye(&self, end: &End, output: &mut BytesMut) {
        let metrics = &self.shared.metrics;
        let (reason, why) = match end {
            End::Asked { .. } | End::Lost => return,
            End::Bad(bad) => {
                metrics.refused("packet");
                let code = match bad {
                    Bad::Malformed(_) => 0x81,
                    Bad::Protocol(_) => 0x82,
                    Bad::TooLarge => 0x95,
                };
                (code, bad.to_string())
            }
            End::Reason(reason, why) => {
                metrics.refused("packet");
                (*reason, (*why).to_owned())
            }
            End::TakenOver => (0x8e, "another connection took the session over".to_owned()),
            End::Stopping => (0x8b, "the agent stops".to_owned()),
        };
        tracing::debug!(client = self.name, peer = %self.peer, why, "MQTT connection closed");
        packet::disconnect(output, self.version, reason);
    }

    async fn leave(mut self, end: End) {
        let shared = self.shared.clone();
        shared.metrics.clients.dec();
        let taken_over = matches!(end, End::TakenOver);
        let (with_will, expiry) = match end {
            End::Asked { with_will, session_expiry } => {
                let most = shared.options.max_session;
                (with_will, session_expiry.map(|secs| Duration::from_secs(secs.into()).min(most)))
            }
            _ => (true, None),
        };
        self.attached.receiver.close();
        let mut unacked = std::mem::replace(&mut self.window, Window::new(0)).into_unacked();
        while let Ok(delivery) = self.attached.receiver.try_recv() {
            unacked.push(delivery);
        }
        if !taken_over {
            shared.ingest.router.detach(&self.name, self.link_id, expiry, unacked, std::mem::take(&mut self.inbound));
        }
        if let Some((will, delay)) = self.will.take().filter(|_| with_will) {
            if delay > 0 && !taken_over {
                let at = Instant::now() + Duration::from_secs(delay.min(86_400).into());
                let mut wills = shared.wills.lock().unwrap_or_else(PoisonError::into_inner);
                wills.insert(self.name.clone(), (at, will));
            } else {
                shared.publish_will(will).await;
            }
        }
    }
}

/// Reads what is there, into a buffer that grows only while a packet is larger than it.
async fn read_some<S: AsyncRead + Unpin>(stream: &mut S, input: &mut BytesMut) -> std::io::Result<usize> {
    if input.capacity() - input.len() < 1024 {
        input.reserve(8 << 10);
    }
    stream.read_buf(input).await
}
