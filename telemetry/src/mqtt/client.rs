//! A client that was let in: its packets in, its acknowledgements and messages out.
//!
//! One task does everything, in one loop. PUBLISH packets that are in the buffer together are one batch for the outbox;
//! batches are stored while the next packets are read, and acknowledged in their order.
//!
//! Always true: what was read is stored, heard and counted also when the connection ends right after it; a session is
//! left before its next connection takes it up; and what is to be written stays under [`MAX_OUTPUT`] and one packet.

mod arriving;
mod sending;

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use bytes::BytesMut;
use futures_util::{FutureExt, StreamExt, stream::FuturesOrdered};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::{sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Shared, WRITE_PATIENCE,
    auth::Rights,
    check::Bad,
    greeting::Connect,
    packet::{self, Incoming, Version},
    storing::Pending,
    window::Window,
};
use crate::{
    reading::NewReading,
    router::{Attached, Inbox, Left, Message},
};
use sending::Kept;

/// Readings and bytes of one connection on their way to the disk.
pub const MAX_PENDING: usize = 1024;
const MAX_PENDING_BYTES: usize = 256 << 10;
/// Bytes waiting to be written, above which nothing is added.
const MAX_OUTPUT: usize = 32 << 10;
/// What was begun is finished within this when the connection ends.
const FAREWELL: Duration = Duration::from_secs(3);
/// Reads, of what a connection that is taken over has received by then.
const MAX_LAST_READS: usize = 64;
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
    Silent,
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
    /// When its last packet came.
    heard: Instant,
    session_expiry: Duration,
    max_packet: Option<u32>,
    will: Option<(Message, u32)>,
    inbox: Inbox,
    taken_over: CancellationToken,
    window: Window,
    /// Retained messages that new subscriptions are still to be sent.
    kept: VecDeque<Kept>,
    /// QoS 2 packet ids that are stored and not yet released.
    inbound: HashSet<u16>,
    /// QoS 2 packet ids on their way to the disk.
    arriving: HashSet<u16>,
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
        attached: Attached,
    ) -> Self {
        let keep_alive = (connect.keep_alive > 0).then(|| Duration::from_millis(u64::from(connect.keep_alive) * 1500));
        shared.metrics.clients.inc();
        Self {
            version: connect.version,
            name: connect.client,
            rights,
            link_id: attached.link_id,
            keep_alive,
            heard: Instant::now(),
            session_expiry: Duration::from_secs(connect.session_expiry.unwrap_or(0).into()),
            max_packet: connect.max_packet,
            will: connect.will,
            inbox: attached.inbox,
            taken_over: attached.taken_over,
            window: Window::new(connect.receive_max, attached.left.open),
            kept: VecDeque::new(),
            inbound: attached.left.inbound,
            arriving: HashSet::new(),
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
        let mut end = loop {
            if let Err(end) = self.step(&mut stream, &mut input, &mut output).await {
                break end;
            }
        };
        if matches!(end, End::TakenOver) {
            end = self.last_words(&mut stream, &mut input, &mut output).await;
        }
        let _ = timeout(FAREWELL, self.drain(&mut output)).await;
        self.say_goodbye(&end, &mut output);
        // Before the last words: the client may be back already, and waits for its session.
        self.leave(&end).await;
        if !output.is_empty() {
            let _ = timeout(Duration::from_secs(2), stream.write_all_buf(&mut output)).await;
        }
        let _ = timeout(Duration::from_secs(1), stream.shutdown()).await;
    }

    /// What came before another connection took the session over counts, above all a DISCONNECT: a client that leaves
    /// and returns at once may be heard on its new connection first, and would find a session that it has ended.
    async fn last_words<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        input: &mut BytesMut,
        output: &mut BytesMut,
    ) -> End {
        for _ in 0..MAX_LAST_READS {
            match self.parse(input, output).await {
                Ok(true) if self.may_read() => {}
                Err(asked @ End::Asked { .. }) => return asked,
                _ => break,
            }
            // Without the runtime's budget, whose end looks like a socket that has nothing more.
            let read = tokio::task::unconstrained(read_some(stream, input)).now_or_never();
            if !matches!(read, Some(Ok(1..))) {
                break;
            }
        }
        End::TakenOver
    }

    /// Deals with what is there, then waits for one event.
    async fn step<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        input: &mut BytesMut,
        output: &mut BytesMut,
    ) -> Result<(), End> {
        let all_parsed = self.parse(input, output).await?;
        let all_filled = self.fill(output);
        if !output.is_empty() {
            self.write(stream, output).await?;
        }
        let more = !all_parsed || !all_filled;
        let may_read = self.may_read();
        if !may_read {
            // A client that is not read from cannot be heard: silence then is ours.
            self.heard = Instant::now();
        }
        let silence = self.heard + self.keep_alive.unwrap_or(Duration::from_secs(86_400));
        let wants_more = self.window.has_room();
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(End::Stopping),
            () = self.taken_over.cancelled() => Err(End::TakenOver),
            Some(done) = self.storing.next(), if !self.storing.is_empty() => {
                self.stored(done, output);
                Ok(())
            }
            // Before what is to be sent: a client that hears a lot must not go unheard itself.
            read = read_some(stream, input), if may_read && all_parsed => match read? {
                0 => Err(End::Lost),
                _ => Ok(()),
            },
            () = std::future::ready(()), if more => Ok(()),
            Some(delivery) = self.inbox.recv(), if wants_more => {
                self.send(delivery, output);
                Ok(())
            }
            () = sleep_until(silence.into()), if may_read && self.keep_alive.is_some() => Err(End::Silent),
        }
    }

    /// Writes all; a client that does not read holds up neither a stop nor its own next connection.
    async fn write<S: AsyncWrite + Unpin>(&mut self, stream: &mut S, output: &mut BytesMut) -> Result<(), End> {
        let write = async {
            stream.write_all_buf(output).await?;
            stream.flush().await // TLS keeps back what the socket did not take.
        };
        tokio::select! {
            biased;
            written = timeout(WRITE_PATIENCE, write) => written.map_err(|_| End::Lost)??,
            () = self.stop.cancelled() => return Err(End::Stopping),
            () = self.taken_over.cancelled() => return Err(End::TakenOver),
        }
        if output.capacity() > 2 * MAX_OUTPUT {
            *output = BytesMut::new();
        }
        Ok(())
    }

    fn may_read(&self) -> bool {
        self.pending < MAX_PENDING && self.pending_bytes < MAX_PENDING_BYTES
    }

    /// Deals with the whole packets in the buffer; `false` where some are left because there is a lot to write first.
    async fn parse(&mut self, input: &mut BytesMut, output: &mut BytesMut) -> Result<bool, End> {
        let max = self.shared.options.max_packet;
        let result = loop {
            if !self.may_read() {
                break Ok(true);
            }
            if output.len() >= MAX_OUTPUT {
                break Ok(false);
            }
            match packet::take_frame(input, max, self.version == Version::V5) {
                Ok(Some(frame)) => {
                    self.heard = Instant::now();
                    let taken = match packet::incoming(frame, self.version) {
                        Ok(incoming) => self.take(incoming, output).await,
                        Err(bad) => Err(bad.into()),
                    };
                    if let Err(end) = taken {
                        break Err(end);
                    }
                }
                Ok(None) => break Ok(true),
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
                self.kept.retain(|kept| !filters.contains(&kept.subscription.filter));
                let found: Vec<_> = filters.iter().map(|filter| router.unsubscribe(&self.name, filter)).collect();
                self.save().await;
                packet::unsuback(output, self.version, id, &found);
            }
            Incoming::Ping => packet::pong(output),
            // Who began a session that ends with the connection cannot make it last at the end (section 3.14.2.2.2).
            Incoming::Disconnect { session_expiry: Some(1..), .. } if self.session_expiry.is_zero() => {
                return Err(Bad::Protocol("DISCONNECT makes a session last that was to end").into());
            }
            Incoming::Disconnect { with_will, session_expiry } => return Err(End::Asked { with_will, session_expiry }),
        }
        Ok(())
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
            End::Silent => {
                metrics.refused("keep-alive");
                (0x8d, "nothing heard for one and a half times the keep-alive".to_owned())
            }
            End::TakenOver => (0x8e, "another connection took the session over".to_owned()),
            End::Stopping => (0x8b, "the agent stops".to_owned()),
        };
        tracing::debug!(client = self.name, peer = %self.peer, why, "MQTT connection closed");
        packet::disconnect(output, self.version, reason);
    }

    async fn leave(&mut self, end: &End) {
        let shared = self.shared.clone();
        shared.metrics.clients.dec();
        let (with_will, expiry) = match end {
            End::Asked { with_will, session_expiry } => {
                let asked = session_expiry.map(|secs| Duration::from_secs(secs.into()).min(shared.options.max_session));
                (*with_will, asked.unwrap_or(self.session_expiry))
            }
            _ => (true, self.session_expiry),
        };
        // A delayed will comes when the delay is over or the session ends, whichever is first (section 3.1.3.2.2).
        let will = self.will.take().filter(|_| with_will);
        let will = will.map(|(will, delay)| (will, Duration::from_secs(delay.into()).min(expiry)));
        let (now, later): (Option<_>, Option<_>) = match will {
            Some((will, delay)) if delay.is_zero() => (Some(will), None),
            will => (None, will),
        };
        if let Some((will, delay)) = later {
            // Before the session is left: the next connection looks for it then.
            let mut wills = shared.wills.lock().unwrap_or_else(PoisonError::into_inner);
            wills.insert(self.name.clone(), (Instant::now() + delay, will));
        }
        let left = self.left();
        shared.ingest.router.detach(&self.name, self.link_id, expiry, left);
        if let Some(will) = now {
            shared.publish_will(will).await;
        }
    }

    /// What the session's next connection goes on with.
    fn left(&mut self) -> Left {
        self.inbox.close();
        let unsent = std::iter::from_fn(|| self.inbox.try_recv()).collect();
        let open = std::mem::replace(&mut self.window, Window::new(0, Vec::new())).into_open();
        Left { open, unsent, inbound: std::mem::take(&mut self.inbound) }
    }
}

/// Reads what is there, into a buffer that grows only while a packet is larger than it.
async fn read_some<S: AsyncRead + Unpin>(stream: &mut S, input: &mut BytesMut) -> std::io::Result<usize> {
    if input.capacity() - input.len() < 1024 {
        input.reserve(8 << 10);
    }
    stream.read_buf(input).await
}
