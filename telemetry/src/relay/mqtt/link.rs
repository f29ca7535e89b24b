//! One connection to the core's broker, from CONNECT to its end.
//!
//! Elsewhere: bytes (`wire`) and packets (`packet`); what is sent next (`queue`).

use std::{
    collections::BTreeMap,
    io,
    ops::Range,
    time::{Duration, Instant},
};

use board::tasks::Context;

use super::{
    Mode, Progress, Relay, SAVE_EVERY, Throttle,
    batch::Packer,
    packet::{self, Packet, Publish},
    problem::Problem,
    queue::Queue,
    save,
    wire::Wire,
};
use crate::{outbox::RelayHandle, reading::Reading, router::Message};

/// Raw bytes and readings of a batch.
const BATCH_BYTES: usize = 96 << 10;
const BATCH_READINGS: usize = 2000;
/// Batches on their way at the same time: each is as large as hundreds of messages.
const BATCH_INFLIGHT: usize = 8;
/// A fresh reading waits this long for company in batch mode.
const BATCH_LINGER: Duration = Duration::from_millis(200);
/// Bytes that wait for the socket; readings stay in the outbox until there are fewer.
const OUTPUT_BYTES: usize = 64 << 10;
/// How often a silent broker is thought of.
const TICK: Duration = Duration::from_secs(5);
/// At a stop: for acknowledgements on their way, so that nothing is sent twice, and for the good-bye.
const FAREWELL: Duration = Duration::from_secs(2);
/// The identifier of the one SUBSCRIBE; publishes have those below.
const SUBSCRIBE: u16 = u16::MAX;

/// Numbers of the readings in one message.
enum Numbers {
    One(u64),
    Many(Vec<Range<u64>>),
}

/// One connection.
pub(super) struct Link<'a> {
    relay: &'a Relay,
    context: &'a Context,
    handle: &'a RelayHandle,
    progress: &'a mut Progress,
    throttle: &'a Throttle,
    queue: Queue,
    wire: Wire,
    /// Sent and not acknowledged, by packet identifier (at QoS 0: not yet written).
    open: BTreeMap<u16, Numbers>,
    last_id: u16,
    /// While there is something to pack.
    packer: Option<Packer>,
    /// Not before then: the bandwidth cap, or company for a batch.
    not_before: tokio::time::Instant,
    saved: Instant,
}

impl<'a> Link<'a> {
    /// Connects and subscribes.
    pub async fn open(
        relay: &'a Relay,
        context: &'a Context,
        handle: &'a RelayHandle,
        progress: &'a mut Progress,
        throttle: &'a Throttle,
    ) -> Result<Self, Problem> {
        let mut wire = Wire::open(&relay.options, relay.outbox.epoch()).await?;
        if !relay.options.downlink.is_empty() {
            packet::subscribe(&mut wire.output, SUBSCRIBE, &relay.options.downlink);
        }
        relay.figures.connected.set(1);
        relay.figures.connections.inc();
        context.healthy(format!("connected to {}", relay.options.place()));
        let queue = Queue::new(&relay.outbox, progress);
        Ok(Self {
            relay,
            context,
            handle,
            progress,
            throttle,
            queue,
            wire,
            open: BTreeMap::new(),
            last_id: 0,
            packer: None,
            not_before: tokio::time::Instant::now(),
            saved: Instant::now(),
        })
    }

    /// Relays until stopped, or until the connection ends.
    pub async fn run(mut self) -> Result<(), Problem> {
        let mut durable = self.relay.outbox.durable();
        let mut tick = tokio::time::interval(TICK);
        loop {
            // Before looking whether there are readings: what becomes durable afterwards wakes us.
            durable.mark_unchanged();
            let (room, more) = (self.room(), self.queue.has_more());
            if !more {
                self.packer = None;
            }
            tokio::select! {
                biased;
                () = self.context.stop.cancelled() => return self.leave().await,
                turned = self.wire.turn() => {
                    turned.map_err(Problem::broke)?;
                    self.take_all()?;
                }
                () = tokio::time::sleep_until(self.not_before), if room > 0 && more => self.send(room).await?,
                // Nothing to send: wait for more.
                _ = durable.changed(), if room > 0 && !more => {
                    if self.relay.options.mode == Mode::Batch {
                        self.not_before = self.not_before.max(tokio::time::Instant::now() + BATCH_LINGER);
                    }
                }
                _ = tick.tick() => self.wire.keep_alive()?,
            }
        }
    }

    /// Messages that may be sent now. There is no waiting for more acknowledgements so that more can be sent in one write:
    /// Nagle's algorithm, which mosquitto leaves on, holds the second acknowledgement back until the first one's segment is
    /// confirmed, by our next message at once or by our kernel after 40 ms.
    fn room(&self) -> usize {
        let options = &self.relay.options;
        let window = match options.mode {
            Mode::Bridge => usize::from(options.inflight),
            Mode::Batch => BATCH_INFLIGHT.min(options.inflight.into()),
        };
        if self.wire.output.len() >= OUTPUT_BYTES { 0 } else { window.saturating_sub(self.open.len()) }
    }

    /// Sends what there is, up to `room` messages.
    async fn send(&mut self, room: usize) -> Result<(), Problem> {
        let batch = self.relay.options.mode == Mode::Batch;
        let (most, bytes) = if batch { (BATCH_READINGS, BATCH_BYTES) } else { (room, OUTPUT_BYTES) };
        // At a low cap a quarter of a second's worth: an alarm need not wait for what was begun before it.
        let cap = self.relay.options.bandwidth.map_or(bytes, |cap| usize::try_from(cap / 4).unwrap_or(bytes));
        let taken = self.queue.take(most, bytes.min(cap).max(1)).await?;
        for missing in taken.missing {
            self.progress.add(missing);
        }
        if batch {
            return self.send_batch(taken.readings).map_err(Problem::Io);
        }
        self.send_each(&taken.readings);
        Ok(())
    }

    fn send_each(&mut self, readings: &[Reading]) {
        let [prefix, slash] = self.relay.options.prefix();
        for reading in readings {
            self.publish(&[prefix, slash, &reading.topic], &reading.payload, Numbers::One(reading.seq));
        }
    }

    fn send_batch(&mut self, readings: Vec<Reading>) -> io::Result<()> {
        let options = &self.relay.options;
        let clock = self.relay.outbox.clock();
        let timed = |it: Reading| {
            let time_us = clock.correct(&it.stamp).time_us;
            (it, time_us)
        };
        let timed: Vec<_> = readings.into_iter().map(timed).collect();
        if timed.is_empty() {
            return Ok(());
        }
        let mut packer = self.packer.take().map_or_else(Packer::new, Ok)?;
        let message = packer.pack(&options.board, self.relay.outbox.epoch(), &timed)?;
        self.packer = Some(packer);
        let numbers = Numbers::Many(ranges(timed.iter().map(|(reading, _)| reading.seq)));
        let [prefix, slash] = options.prefix();
        self.publish(&[prefix, slash, &options.board, "/batch"], &message, numbers);
        Ok(())
    }

    fn publish(&mut self, topic: &[&str], payload: &[u8], numbers: Numbers) {
        let before = self.wire.output.len();
        let id = self.free_id();
        packet::publish_to(&mut self.wire.output, self.relay.options.qos, id, topic, payload);
        self.open.insert(id, numbers);
        let bytes = self.wire.output.len() - before;
        self.relay.figures.sent_bytes.inc_by(bytes as u64);
        self.not_before = tokio::time::Instant::now() + self.throttle.sent(bytes);
    }

    /// An identifier that no open message has; there are at most a thousand of those.
    fn free_id(&mut self) -> u16 {
        loop {
            self.last_id = if self.last_id >= SUBSCRIBE - 1 { 1 } else { self.last_id + 1 };
            if !self.open.contains_key(&self.last_id) {
                return self.last_id;
            }
        }
    }

    /// Deals with all that came, and at QoS 0 with what was written.
    fn take_all(&mut self) -> Result<(), Problem> {
        while let Some(packet) = self.wire.next()? {
            self.take(packet);
        }
        if self.relay.options.qos == 0 && self.wire.is_written() {
            for numbers in std::mem::take(&mut self.open).into_values() {
                self.acknowledged(numbers);
            }
        }
        if self.saved.elapsed() >= SAVE_EVERY || (self.open.is_empty() && !self.queue.has_more()) {
            self.save();
        }
        Ok(())
    }

    fn take(&mut self, packet: Packet) {
        let output = &mut self.wire.output;
        match packet {
            Packet::PubAck(id) | Packet::PubComp(id) => {
                // An identifier that is not open is no harm: nothing is acknowledged by it.
                if let Some(numbers) = self.open.remove(&id) {
                    self.acknowledged(numbers);
                }
            }
            Packet::PubRec(id) => packet::acknowledge(output, packet::PUBREL, id),
            Packet::PubRel(id) => packet::acknowledge(output, packet::PUBCOMP, id),
            Packet::Publish(publish) => {
                match publish.qos {
                    0 => {}
                    1 => packet::acknowledge(output, packet::PUBACK, publish.id),
                    _ => packet::acknowledge(output, packet::PUBREC, publish.id),
                }
                self.downlink(publish);
            }
            Packet::SubAck(codes) => self.subscribed(&codes),
            Packet::ConnAck(_) | Packet::PingResp => {}
        }
    }

    /// To local subscribers, and only to them: it would otherwise go up again.
    fn downlink(&self, publish: Publish) {
        let Publish { topic, qos, retain, payload, size, .. } = publish;
        let Some(payload) = payload else {
            tracing::warn!(topic, size, "a message from the core is too large and was passed over");
            return;
        };
        self.relay.router.publish(&Message { qos, retain, ..Message::plain(topic, payload) });
    }

    fn subscribed(&self, codes: &[u8]) {
        let filters = self.relay.options.downlink.iter().zip(codes);
        let refused: Vec<_> = filters.filter(|(_, code)| **code > 2).map(|(filter, _)| filter.as_str()).collect();
        if !refused.is_empty() {
            let problem = format!("{} refuses the downlink topics {}", self.relay.options.place(), refused.join(", "));
            self.context.degraded(problem, "readings are sent; let the board read these topics in the broker's rules");
        }
    }

    fn acknowledged(&mut self, numbers: Numbers) {
        let ranges = match numbers {
            Numbers::One(seq) => {
                self.relay.figures.acknowledged.inc();
                return self.progress.add(seq..seq + 1);
            }
            Numbers::Many(ranges) => ranges,
        };
        for range in ranges {
            self.relay.figures.acknowledged.inc_by(range.end - range.start);
            self.progress.add(range);
        }
    }

    fn save(&mut self) {
        save(self.handle, self.progress);
        self.saved = Instant::now();
    }

    /// Says good-bye, after what is under way.
    async fn leave(mut self) -> Result<(), Problem> {
        let farewell = async {
            while !self.open.is_empty() {
                self.wire.turn().await.map_err(Problem::broke)?;
                self.take_all()?;
            }
            self.wire.output.extend_from_slice(&packet::DISCONNECT);
            while !self.wire.is_written() {
                self.wire.turn().await.map_err(Problem::broke)?;
            }
            Ok::<_, Problem>(())
        };
        // What was not acknowledged is sent again after the next start; a broker that is gone misses no good-bye.
        let _ = tokio::time::timeout(FAREWELL, farewell).await;
        Ok(())
    }
}

/// Ascending numbers as ranges.
fn ranges(numbers: impl Iterator<Item = u64>) -> Vec<Range<u64>> {
    let mut all: Vec<Range<u64>> = Vec::new();
    for seq in numbers {
        match all.last_mut() {
            Some(last) if last.end == seq => last.end += 1,
            _ => all.push(seq..seq + 1),
        }
    }
    all
}
