//! A connection: what goes over it, and which streams it has. The server's side.
//!
//! Everything that is sent goes through one bounded queue to the [`Driver`], which alone writes; it also reads, and hands
//! data to the inbox of its stream. Whoever owns the connection runs the driver.
//!
//! Windows are respected from the first sign on that the peer counts them; what is sent before that counts too.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf},
    sync::{Notify, mpsc},
    time::Instant,
};

use super::{
    frame::{Decoder, Encoder, Frame, FrameError, ResetStatus},
    inbox::{Filler, inbox},
    stream::{Stream, StreamWriter},
};

/// Frames that wait to be written.
const QUEUE: usize = 16;
/// Streams that wait to be accepted.
const ACCEPT: usize = 16;
/// Bytes written at once.
const BATCH: usize = 64 << 10;
/// Read at once.
const READ: usize = 32 << 10;
/// What a window is before anybody says otherwise.
const WINDOW: i64 = 64 << 10;
/// Bytes taken after which the peer's window is opened again.
const GRANT: u32 = 32 << 10;
/// The setting that says how large the windows of new streams are.
const INITIAL_WINDOW: u32 = 7;
/// How long a peer may take to go when we have said goodbye.
const FAREWELL: Duration = Duration::from_secs(5);

/// What a peer may make grow.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Streams at a time.
    pub streams: usize,
    /// Bytes that wait in one stream.
    pub inbox: usize,
    /// Silence after which the connection ends.
    pub idle: Duration,
}

/// The connection is gone, or the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the client has gone")]
pub struct Gone;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// We said goodbye.
    #[error("it was closed")]
    Closed,
    /// The peer left.
    #[error("the client has gone")]
    Left,
    /// Nothing was said for too long.
    #[error("nothing was sent for too long")]
    Idle,
    /// The peer does not speak SPDY/3.1.
    #[error(transparent)]
    Protocol(#[from] FrameError),
    /// The socket.
    #[error("the connection broke")]
    Io(#[from] io::Error),
}

struct Entry {
    filler: Arc<Filler>,
    /// Bytes that may be sent in all, as far as the peer has said.
    granted: i64,
    sent: i64,
    remote_done: bool,
    local_done: bool,
    /// Taken, not yet told.
    taken: u32,
}

#[derive(Default)]
struct Table {
    streams: HashMap<u32, Entry>,
    last: u32,
    initial: i64,
    granted: i64,
    sent: i64,
    taken: u32,
    /// The peer counts the windows of streams.
    counts: bool,
    /// It counts that of the connection too.
    counts_all: bool,
    gone: bool,
}

pub(super) struct Shared {
    queue: mpsc::Sender<Frame>,
    table: Mutex<Table>,
    opened: Notify,
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub async fn send(&self, frame: Frame) -> Result<(), Gone> {
        self.queue.send(frame).await.map_err(|_| Gone)
    }

    /// `false`: there is no room. The reader never waits for the writer: a peer that reads late is still heard.
    pub fn try_send(&self, frame: Frame) -> bool {
        self.queue.try_send(frame).is_ok()
    }

    pub async fn place(&self) -> Result<mpsc::Permit<'_, Frame>, Gone> {
        self.queue.reserve().await.map_err(|_| Gone)
    }

    /// Waits until at least a byte of `want` may be sent on the stream; how many may.
    pub async fn room(&self, stream: u32, want: usize) -> Result<usize, Gone> {
        loop {
            let opened = self.opened.notified();
            tokio::pin!(opened);
            opened.as_mut().enable();
            {
                let table = self.table();
                let entry = table.streams.get(&stream).filter(|_| !table.gone).ok_or(Gone)?;
                let of_stream = if table.counts { entry.granted - entry.sent } else { i64::MAX };
                let of_all = if table.counts_all { table.granted - table.sent } else { i64::MAX };
                let left = of_stream.min(of_all);
                if left > 0 {
                    return Ok(want.min(usize::try_from(left).unwrap_or(usize::MAX)));
                }
            }
            opened.await;
        }
    }

    pub fn sent(&self, stream: u32, bytes: usize) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        let mut table = self.table();
        table.sent = table.sent.saturating_add(bytes);
        if let Some(entry) = table.streams.get_mut(&stream) {
            entry.sent = entry.sent.saturating_add(bytes);
        }
    }

    /// We send nothing more on it.
    pub fn local_end(&self, stream: u32) {
        let mut table = self.table();
        if let Some(entry) = table.streams.get_mut(&stream) {
            entry.local_done = true;
            if entry.remote_done {
                table.streams.remove(&stream);
            }
        }
    }

    pub fn forget(&self, stream: u32) {
        self.table().streams.remove(&stream);
    }

    /// Everything ends: readers see the end, writers that nobody is there.
    fn gone(&self) {
        let streams = {
            let mut table = self.table();
            table.gone = true;
            std::mem::take(&mut table.streams)
        };
        drop(streams);
        self.opened.notify_waiters();
    }
}

/// The owner's end of a connection.
pub struct Connection {
    shared: Arc<Shared>,
    incoming: mpsc::Receiver<Stream>,
}

impl Connection {
    /// A connection over `io`; it lives while the driver runs.
    pub fn new<I: AsyncRead + AsyncWrite>(io: I, limits: Limits) -> (Self, Driver<I>) {
        let (queue, frames) = mpsc::channel(QUEUE);
        let (accept, incoming) = mpsc::channel(ACCEPT);
        let table = Table { initial: WINDOW, granted: WINDOW, ..Table::default() };
        let shared = Arc::new(Shared { queue, table: Mutex::new(table), opened: Notify::new() });
        let driver = Driver { io, limits, shared: shared.clone(), frames, accept };
        (Self { shared, incoming }, driver)
    }

    /// The next stream that the peer opens; `None` when the connection has ended. Cancel-safe.
    pub async fn incoming(&mut self) -> Option<Stream> {
        self.incoming.recv().await
    }

    /// From now on new streams are refused.
    pub fn no_more(&mut self) {
        self.incoming.close();
    }

    /// Says goodbye after everything that was sent before; the driver ends when that has been written.
    pub async fn close(&self) {
        let last = self.shared.table().last;
        // A peer that has gone needs no goodbye.
        let _ = self.shared.send(Frame::GoAway { last, status: 0 }).await;
    }
}

/// Carries a connection's bytes.
pub struct Driver<I> {
    io: I,
    limits: Limits,
    shared: Arc<Shared>,
    frames: mpsc::Receiver<Frame>,
    accept: mpsc::Sender<Stream>,
}

impl<I: AsyncRead + AsyncWrite> Driver<I> {
    /// Until the connection ends. All its streams have ended then.
    pub async fn run(self) -> Ended {
        let (read, write) = tokio::io::split(self.io);
        let heard = Mutex::new(Instant::now());
        let shared = self.shared.clone();
        let hands = Hands { limits: self.limits, shared: self.shared, accept: self.accept };
        let mut written = false;
        let mut reader = std::pin::pin!(read_all(read, hands, &heard));
        let ended = {
            let mut writer = std::pin::pin!(write_all(write, self.frames, &heard));
            tokio::select! {
                ended = &mut reader => ended,
                result = &mut writer => {
                    written = true;
                    result.map_or_else(Ended::Io, |()| Ended::Closed)
                }
                () = silence(&heard, self.limits.idle) => Ended::Idle,
            }
        };
        shared.gone();
        if written {
            // What the peer still sends is read, else its socket would be reset, and our last words with it.
            let _ = tokio::time::timeout(FAREWELL, reader).await;
        }
        ended
    }
}

async fn silence(heard: &Mutex<Instant>, idle: Duration) {
    loop {
        let due = *heard.lock().unwrap_or_else(PoisonError::into_inner) + idle;
        if due <= Instant::now() {
            return;
        }
        tokio::time::sleep_until(due).await;
    }
}

fn note(heard: &Mutex<Instant>) {
    *heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
}

/// Until our goodbye is written.
async fn write_all<I: AsyncWrite>(
    mut write: WriteHalf<I>,
    mut frames: mpsc::Receiver<Frame>,
    heard: &Mutex<Instant>,
) -> io::Result<()> {
    let mut encoder = Encoder::default();
    let mut out = Vec::new();
    let mut goodbye = false;
    while let Some(frame) = frames.recv().await {
        let mut next = Some(frame);
        while let Some(frame) = next {
            goodbye |= matches!(frame, Frame::GoAway { .. });
            encoder.encode(&frame, &mut out);
            next = if out.len() < BATCH && !goodbye { frames.try_recv().ok() } else { None };
        }
        write.write_all(&out).await?;
        write.flush().await?;
        note(heard);
        out.clear();
        out.shrink_to(BATCH);
        if goodbye {
            break;
        }
    }
    frames.close();
    write.shutdown().await
}

/// Until the peer leaves.
async fn read_all<I: AsyncRead>(mut read: ReadHalf<I>, hands: Hands, heard: &Mutex<Instant>) -> Ended {
    let mut decoder = Decoder::default();
    loop {
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => hands.take(frame).await,
                Ok(None) => break,
                Err(error) => return error.into(),
            }
        }
        decoder.buffer().reserve(READ);
        match read.read_buf(decoder.buffer()).await {
            Ok(0) => return Ended::Left,
            Ok(_) => note(heard),
            Err(error) => return error.into(),
        }
    }
}

/// Puts what arrives where it belongs.
struct Hands {
    limits: Limits,
    shared: Arc<Shared>,
    accept: mpsc::Sender<Stream>,
}

impl Hands {
    async fn take(&self, frame: Frame) {
        match frame {
            Frame::SynStream { stream, headers, fin, unidirectional: _ } => match self.admit(stream, headers) {
                Ok(new) => {
                    if fin {
                        self.remote_end(stream);
                    }
                    // Where nobody takes it any more, dropping it resets it.
                    let _ = self.accept.send(new).await;
                }
                Err(status) => self.tell(Frame::Reset { stream, status }),
            },
            Frame::Data { stream, bytes, fin } => self.data(stream, bytes, fin).await,
            Frame::Headers { stream, fin, .. } | Frame::SynReply { stream, fin, .. } => {
                if fin {
                    self.remote_end(stream);
                }
            }
            Frame::Reset { stream, .. } => {
                if let Some(entry) = self.shared.table().streams.remove(&stream) {
                    entry.filler.cut();
                }
                self.shared.opened.notify_waiters();
            }
            Frame::Settings(settings) => self.settings(&settings),
            // Ours are even and never sent: an even one would be an answer to nothing.
            Frame::Ping(id) if id % 2 == 1 => self.tell(Frame::Ping(id)),
            Frame::WindowUpdate { stream, delta } => self.window(stream, delta),
            // What it has opened goes on; that it opens no more is its own affair.
            Frame::Ping(_) | Frame::GoAway { .. } => {}
        }
    }

    /// A peer that does not read is not told, and after our goodbye nobody is.
    fn tell(&self, frame: Frame) {
        self.shared.try_send(frame);
    }

    fn admit(&self, stream: u32, headers: super::Headers) -> Result<Stream, ResetStatus> {
        let mut table = self.shared.table();
        if stream.is_multiple_of(2) || stream <= table.last {
            return Err(ResetStatus::PROTOCOL_ERROR);
        }
        table.last = stream;
        if table.gone || table.streams.len() >= self.limits.streams {
            return Err(ResetStatus::REFUSED);
        }
        let (filler, reader) = inbox(self.limits.inbox);
        let entry = Entry {
            filler: Arc::new(filler),
            granted: table.initial,
            sent: 0,
            remote_done: false,
            local_done: false,
            taken: 0,
        };
        table.streams.insert(stream, entry);
        Ok(Stream { id: stream, headers, reader, writer: StreamWriter::new(self.shared.clone(), stream) })
    }

    async fn data(&self, stream: u32, bytes: bytes::Bytes, fin: bool) {
        let filler =
            self.shared.table().streams.get(&stream).filter(|entry| !entry.remote_done).map(|it| it.filler.clone());
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        // Of a stream that is gone: it was on its way when we said so.
        if let Some(filler) = filler {
            filler.push(bytes).await;
        }
        self.taken(stream, length);
        if fin {
            self.remote_end(stream);
        }
    }

    /// Opens windows again. Where there is no room to say so, the next piece says more.
    fn taken(&self, stream: u32, length: u32) {
        let count = |taken: &mut u32, stream: u32| {
            *taken = taken.saturating_add(length);
            if *taken >= GRANT && self.shared.try_send(Frame::WindowUpdate { stream, delta: *taken }) {
                *taken = 0;
            }
        };
        let mut table = self.shared.table();
        count(&mut table.taken, 0);
        if let Some(entry) = table.streams.get_mut(&stream).filter(|entry| !entry.remote_done) {
            count(&mut entry.taken, stream);
        }
    }

    fn remote_end(&self, stream: u32) {
        let mut table = self.shared.table();
        if let Some(entry) = table.streams.get_mut(&stream) {
            entry.remote_done = true;
            entry.filler.end();
            if entry.local_done {
                table.streams.remove(&stream);
            }
        }
    }

    fn settings(&self, settings: &[(u32, u32)]) {
        let Some((_, value)) = settings.iter().rev().find(|(id, _)| *id == INITIAL_WINDOW) else { return };
        {
            let mut table = self.shared.table();
            let initial = i64::from((*value).min(0x7fff_ffff));
            let change = initial - table.initial;
            table.initial = initial;
            for entry in table.streams.values_mut() {
                entry.granted = entry.granted.saturating_add(change);
            }
            table.counts = true;
        }
        self.shared.opened.notify_waiters();
    }

    fn window(&self, stream: u32, delta: u32) {
        {
            let mut table = self.shared.table();
            let delta = i64::from(delta);
            if stream == 0 {
                table.granted = table.granted.saturating_add(delta);
                table.counts_all = true;
            } else if let Some(entry) = table.streams.get_mut(&stream) {
                entry.granted = entry.granted.saturating_add(delta);
            }
            table.counts = true;
        }
        self.shared.opened.notify_waiters();
    }
}
