//! One connection to the core's broker, from CONNECT to its end.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
    time::{Duration, Instant},
};

use board::tasks::{self, Context};
use rumqttc::{AsyncClient, ConnectReturnCode, ConnectionError, Event, EventLoop, Incoming, Outgoing, QoS};

use super::{Mode, Progress, Relay, SAVE_EVERY, Throttle, batch, queue::Queue, save};
use crate::{outbox::RelayHandle, router::Message};

/// Raw bytes and readings of a batch.
const BATCH_BYTES: usize = 96 << 10;
const BATCH_READINGS: usize = 2000;
/// Batches on their way at the same time: each is as large as hundreds of messages.
const BATCH_INFLIGHT: usize = 8;
/// A fresh reading waits this long for company in batch mode.
const BATCH_LINGER: Duration = Duration::from_millis(200);

/// How a connection ended.
pub(super) enum Ended {
    Stopped,
    Failed { problem: String, remedy: String },
}

/// One connection.
pub(super) struct Link<'a> {
    relay: &'a Relay,
    context: &'a Context,
    handle: &'a RelayHandle,
    progress: &'a mut Progress,
    throttle: &'a Throttle,
    queue: Queue,
    /// Handed to the client and not yet written, in order: their numbers, sparse.
    handed: VecDeque<Vec<Range<u64>>>,
    /// Written, by packet identifier.
    written: BTreeMap<u16, Vec<Range<u64>>>,
    saved: Instant,
}

impl<'a> Link<'a> {
    pub fn new(
        relay: &'a Relay,
        context: &'a Context,
        handle: &'a RelayHandle,
        progress: &'a mut Progress,
        throttle: &'a Throttle,
    ) -> Self {
        let queue = Queue::new(&relay.outbox, progress);
        Self {
            relay,
            context,
            handle,
            progress,
            throttle,
            queue,
            handed: VecDeque::new(),
            written: BTreeMap::new(),
            saved: Instant::now(),
        }
    }

    pub async fn run(mut self) -> Ended {
        let (options, epoch) = (self.relay.options.clone(), self.relay.outbox.epoch());
        let client = match tokio::task::spawn_blocking(move || options.client(epoch)).await {
            Ok(Ok(client)) => client,
            Ok(Err(error)) => return failed(tasks::chain(&error), "mend the file that [relay.mqtt] names"),
            Err(error) => return failed(error.to_string(), "please report this"),
        };
        // Room for everything that may be in flight: `try_publish` then never finds it full.
        let room = self.window() + self.relay.options.downlink.len() + 2;
        let (client, mut events) = AsyncClient::new(client, room);
        events.network_options.set_connection_timeout(20);
        match self.serve(&client, &mut events).await {
            Ok(()) => {
                let _ = client.try_disconnect(); // Gone already is as good.
                let _ = tokio::time::timeout(Duration::from_secs(1), async {
                    while !matches!(events.poll().await, Err(_) | Ok(Event::Outgoing(Outgoing::Disconnect))) {}
                })
                .await;
                Ended::Stopped
            }
            Err(ended) => ended,
        }
    }

    fn window(&self) -> usize {
        match self.relay.options.mode {
            Mode::Bridge => usize::from(self.relay.options.inflight),
            Mode::Batch => BATCH_INFLIGHT.min(self.relay.options.inflight.into()),
        }
    }

    async fn serve(&mut self, client: &AsyncClient, events: &mut EventLoop) -> Result<(), Ended> {
        let mut durable = self.relay.outbox.durable();
        let mut connected = false;
        // Not before then: the bandwidth cap, or company for a batch.
        let mut not_before = tokio::time::Instant::now();
        loop {
            let free = self.window().saturating_sub(self.handed.len() + self.written.len());
            let may_send = connected && free > 0 && self.queue.has_more();
            durable.mark_unchanged();
            tokio::select! {
                biased;
                () = self.context.stop.cancelled() => return Ok(()),
                event = events.poll() => match event {
                    Ok(event) => connected |= self.take(event, client)?,
                    Err(error) => return Err(self.explain(&error)),
                },
                () = tokio::time::sleep_until(not_before), if may_send => {
                    let wait = self.send(client, free).await?;
                    not_before = tokio::time::Instant::now() + wait;
                }
                // Nothing to send: wait for more.
                _ = durable.changed(), if connected && free > 0 && !self.queue.has_more() => {
                    if self.relay.options.mode == Mode::Batch {
                        not_before = not_before.max(tokio::time::Instant::now() + BATCH_LINGER);
                    }
                }
            }
        }
    }

    /// Sends what there is, up to `free` messages; returns how long to wait before more.
    async fn send(&mut self, client: &AsyncClient, free: usize) -> Result<Duration, Ended> {
        let batch = self.relay.options.mode == Mode::Batch;
        let (most, bytes) = if batch { (BATCH_READINGS, BATCH_BYTES) } else { (free, 64 << 10) };
        let taken = self
            .queue
            .take(most, bytes, self.progress)
            .await
            .map_err(|error| failed(tasks::chain(&error), "look at the disk with `edge-agent doctor`"))?;
        for missing in taken.missing {
            self.progress.add(missing);
        }
        let options = &self.relay.options;
        let mut wait = Duration::ZERO;
        if batch {
            let clock = self.relay.outbox.clock();
            let timed: Vec<_> = taken
                .readings
                .into_iter()
                .map(|it| {
                    let time = clock.correct(&it.stamp).time_us;
                    (it, time)
                })
                .collect();
            if let Some(message) = batch::encode(&options.board, self.relay.outbox.epoch(), &timed) {
                let numbers = ranges(timed.iter().map(|(reading, _)| reading.seq));
                wait = self.publish(client, options.batch_topic(), message.into(), numbers)?;
            }
            return Ok(wait);
        }
        for reading in taken.readings {
            let numbers = ranges(std::iter::once(reading.seq));
            wait = wait.max(self.publish(client, options.map(&reading.topic), reading.payload, numbers)?);
        }
        Ok(wait)
    }

    fn publish(
        &mut self,
        client: &AsyncClient,
        topic: String,
        payload: bytes::Bytes,
        numbers: Vec<Range<u64>>,
    ) -> Result<Duration, Ended> {
        let qos = match self.relay.options.qos {
            0 => QoS::AtMostOnce,
            1 => QoS::AtLeastOnce,
            _ => QoS::ExactlyOnce,
        };
        let bytes = topic.len() + payload.len() + 8;
        self.relay.figures.sent_bytes.inc_by(bytes as u64);
        // Vec is what the client takes; for a payload that is alone in its buffer this is no copy.
        client
            .try_publish(topic, qos, false, Vec::from(payload))
            .map_err(|error| failed(error.to_string(), "it will be tried again"))?;
        self.handed.push_back(numbers);
        Ok(self.throttle.sent(bytes))
    }

    /// Deals with one event; `true` when the broker has let us in.
    fn take(&mut self, event: Event, client: &AsyncClient) -> Result<bool, Ended> {
        match event {
            Event::Outgoing(Outgoing::Publish(id)) => {
                let numbers = self.handed.pop_front().unwrap_or_default();
                if self.relay.options.qos == 0 {
                    self.acknowledged(numbers);
                } else {
                    self.written.insert(id, numbers);
                }
            }
            Event::Incoming(Incoming::PubAck(ack)) => self.done(ack.pkid),
            Event::Incoming(Incoming::PubComp(ack)) => self.done(ack.pkid),
            Event::Incoming(Incoming::Publish(publish)) => {
                self.relay.router.publish(&Message {
                    qos: publish.qos as u8,
                    retain: publish.retain,
                    ..Message::plain(publish.topic, publish.payload)
                });
            }
            Event::Incoming(Incoming::ConnAck(_)) => {
                for filter in &self.relay.options.downlink {
                    client
                        .try_subscribe(filter, QoS::AtLeastOnce)
                        .map_err(|error| failed(error.to_string(), "it will be tried again"))?;
                }
                self.relay.figures.connected.set(1);
                self.relay.figures.connections.inc();
                self.context.healthy(format!("connected to {}", self.place()));
                return Ok(true);
            }
            _ => {}
        }
        Ok(false)
    }

    fn done(&mut self, id: u16) {
        if let Some(numbers) = self.written.remove(&id) {
            self.acknowledged(numbers);
        }
    }

    fn acknowledged(&mut self, numbers: Vec<Range<u64>>) {
        for range in numbers {
            self.relay.figures.acknowledged.inc_by(range.end - range.start);
            self.progress.add(range);
        }
        if self.saved.elapsed() >= SAVE_EVERY || !self.queue.has_more() {
            save(self.handle, self.progress);
            self.saved = Instant::now();
        }
    }

    /// The broker without secrets.
    fn place(&self) -> String {
        let url = &self.relay.options.url;
        format!(
            "{}:{}",
            url.host_str().unwrap_or_default(),
            url.port().map_or_else(|| "default port".into(), |it| it.to_string())
        )
    }

    /// What went wrong, and what to do.
    fn explain(&self, error: &ConnectionError) -> Ended {
        let text = tasks::chain(error);
        let lower = text.to_lowercase();
        let remedy = match error {
            ConnectionError::ConnectionRefused(ConnectReturnCode::BadUserNamePassword) => {
                "check relay.mqtt.username and password"
            }
            ConnectionError::ConnectionRefused(ConnectReturnCode::NotAuthorized) => {
                "the broker does not let this board in: check its user, certificate and the broker's rules"
            }
            _ if lower.contains("unknownissuer") => {
                "the broker's certificate is of an unknown CA: set relay.mqtt.ca_file"
            }
            _ if lower.contains("expired") => "a certificate has run out: renew it, and check the board's clock",
            _ if lower.contains("notvalidyet") => "the board's clock is behind: see `edge-agent doctor`",
            _ if lower.contains("notvalidforname") => "the broker's certificate has another name: check relay.mqtt.url",
            _ if lower.contains("certificate") || lower.contains("alert") => {
                "check relay.mqtt.cert_file, key_file and ca_file"
            }
            _ => "readings are kept; it will be tried again",
        };
        failed(format!("{}: {text}", self.place()), remedy)
    }
}

fn failed(problem: impl Into<String>, remedy: &str) -> Ended {
    Ended::Failed { problem: problem.into(), remedy: remedy.to_owned() }
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
