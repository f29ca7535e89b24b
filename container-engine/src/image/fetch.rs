//! One layer: from the registry (or the disk) through the ingest file and, at the same time, into the unpacker.
//!
//! The runtime's side asks the registry and hands pieces over a short channel; a thread of its own writes and hashes each
//! piece and passes it on to the unpacker. So no byte is read twice, and of a layer of any size a few hundred kilobytes are
//! in memory. What was on disk from an earlier try is read and hashed first, by the same thread on the same way.

use std::{
    future::Future,
    io::{self, Read},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Buf, Bytes};
use futures_util::StreamExt;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    LayerStatus,
    flight::Flight,
    manifest::Descriptor,
    pull::PullError,
    seam::{Body, Failure, Layer, Layers, Pieces, Remote, Unpacked},
};
use crate::content::{Content, ContentError, Digest, Ingest};

/// Bytes between two checkpoints: what a power cut may cost.
const CHECKPOINT: u64 = 16 << 20;
/// Longest time between two checkpoints of a slow download.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(20);
/// Bytes between two looks at the disk and at the quota.
const LOOK: u64 = 8 << 20;
/// Bytes left on the file system for everybody else.
pub(crate) const RESERVE: u64 = 16 << 20;
/// Largest piece passed on. Pieces are copies: a part of what the HTTP client has read would keep its whole buffer, of
/// four hundred kilobytes, for as long as it is on its way, and have the client make another.
const PIECE: usize = 64 << 10;
/// Pieces that wait between two stages.
const WAITING: usize = 2;
/// Attempts in a row that bring nothing.
const TRIES: u32 = 6;

/// What one layer is fetched with.
#[derive(Clone)]
pub(crate) struct Fetcher {
    pub content: Content,
    pub layers: Arc<dyn Layers>,
    /// Bytes that images may still take.
    pub room: Arc<dyn Fn() -> u64 + Send + Sync>,
    /// Seconds of the first wait between tries.
    pub patience: Duration,
    /// Counts what comes.
    pub fetched: Counter,
}

/// One layer to have.
pub(crate) struct Wanted {
    pub blob: Descriptor,
    pub diff_id: Digest,
    /// The diff ids below it.
    pub below: Vec<Digest>,
    /// Whether those are unpacked, so that hard links may lead into them.
    pub with_below: bool,
    /// For messages: the image's name.
    pub image: String,
    /// Where it comes from, for people.
    pub source: String,
}

impl Fetcher {
    /// Sees to it that the layer lies unpacked; the caller has pinned it.
    pub async fn layer(&self, remote: &dyn Remote, wanted: &Wanted, flight: &Flight) -> Result<Unpacked, PullError> {
        if let Some(layer) = self.present(wanted).await {
            flight.progress.send_replace(LayerStatus::Exists);
            return Ok(layer);
        }
        let turn = flight.turn.clone().lock_owned().await;
        if let Some(layer) = self.present(wanted).await {
            return Ok(layer); // Somebody else fetched it while this one waited.
        }
        let turn = Arc::new(turn);
        let mut wrong = 0;
        loop {
            let result = if self.content.size(&wanted.blob.digest).is_some() {
                self.unpack_blob(wanted, flight, turn.clone()).await
            } else {
                let (pieces, receiver) = mpsc::channel(WAITING);
                let unpack = self.unpack(wanted, receiver);
                self.fetch_blob(remote, wanted, flight, turn.clone(), Some(pieces), unpack).await
            };
            match result {
                Ok(layer) => {
                    flight.progress.send_replace(LayerStatus::Done);
                    return Ok(layer);
                }
                // What was on disk from before may be to blame: it is gone now, and the whole is fetched anew, once.
                Err(error) if error.is_damage() && wrong == 0 => {
                    tracing::warn!(%error, layer = %wanted.blob.digest, "a layer was damaged and is fetched anew");
                    wrong += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Sees to it that the blob is here, not unpacked; the caller has pinned it.
    pub async fn blob(&self, remote: &dyn Remote, wanted: &Wanted, flight: &Flight) -> Result<(), PullError> {
        let turn = Arc::new(flight.turn.clone().lock_owned().await);
        let mut wrong = 0;
        while self.content.size(&wanted.blob.digest).is_none() {
            let nothing = async { Ok(()) };
            match self.fetch_blob(remote, wanted, flight, turn.clone(), None, nothing).await {
                // As with layers: what was on disk from before may be to blame, once.
                Err(error) if error.is_damage() && wrong == 0 => wrong += 1,
                Err(error) => return Err(error),
                Ok(()) => {
                    flight.progress.send_replace(LayerStatus::Done);
                    return Ok(());
                }
            }
        }
        flight.progress.send_replace(LayerStatus::Exists);
        Ok(())
    }

    async fn present(&self, wanted: &Wanted) -> Option<Unpacked> {
        let (layers, diff_id, below) = (self.layers.clone(), wanted.diff_id, wanted.below.clone());
        tokio::task::spawn_blocking(move || layers.get(&diff_id, &below)).await.ok().flatten()
    }

    /// Unpacks a blob that is here; a damaged one is set aside.
    async fn unpack_blob(&self, wanted: &Wanted, flight: &Flight, turn: Turn) -> Result<Unpacked, PullError> {
        let (pieces, receiver) = mpsc::channel(WAITING);
        let (content, blob) = (self.content.clone(), wanted.blob.clone());
        flight.progress.send_replace(LayerStatus::Unpacking);
        let read = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            feed_blob(&content, &blob, &pieces)
        });
        let (unpacked, fed) = tokio::join!(self.unpack(wanted, receiver), read);
        let damage = match &fed {
            Ok(Ok(whole)) => !whole,
            Ok(Err(_)) | Err(_) => false,
        };
        if damage {
            let (content, digest) = (self.content.clone(), wanted.blob.digest);
            let aside = tokio::task::spawn_blocking(move || content.set_aside(&digest)).await;
            joined(aside, wanted)?.map_err(|source| wanted.content(source))?;
            return Err(PullError::Damaged { layer: wanted.blob.digest, image: wanted.image.clone() });
        }
        let unpacked = unpacked?;
        joined(fed, wanted)?.map_err(|source| wanted.content(source))?;
        Ok(unpacked)
    }

    /// Fetches a blob, and hands its bytes to `unpack` over `pieces` where somebody takes them.
    async fn fetch_blob<T>(
        &self,
        remote: &dyn Remote,
        wanted: &Wanted,
        flight: &Flight,
        turn: Turn,
        pieces: Option<mpsc::Sender<io::Result<Bytes>>>,
        unpack: impl Future<Output = Result<T, PullError>>,
    ) -> Result<T, PullError> {
        let (content, blob, source) = (self.content.clone(), wanted.blob.clone(), wanted.source.clone());
        let opened = tokio::task::spawn_blocking(move || content.ingest(blob.digest, Some(blob.size), &source)).await;
        let ingest = joined(opened, wanted)?.map_err(|source| wanted.content(source))?;
        let offset = ingest.offset();
        let (bytes, arriving) = mpsc::channel(WAITING);
        let room = self.room.clone();
        let write = tokio::task::spawn_blocking(move || {
            let _turn = turn; // Until the file is closed nobody else opens it.
            Writer { ingest, pieces, room, looked: 0, safe: 0, since: Instant::now() }.run(arriving)
        });
        let broken = CancellationToken::new();
        let download = async {
            tokio::select! {
                result = self.download(remote, wanted, flight, offset, bytes) => result,
                () = broken.cancelled() => Ok(()),
            }
        };
        let unpack = async {
            let result = unpack.await;
            // One that only needs the layers below is unpacked once they are there, from the blob: that is fetched on.
            if result.as_ref().is_err_and(|error| !error.needs_below()) {
                broken.cancel();
            }
            result
        };
        let (downloaded, written, unpacked) = tokio::join!(download, write, unpack);
        // The first cause is told, not what it led to.
        let written = joined(written, wanted)?;
        match written {
            Ok(true) => unpacked,
            Ok(false) => {
                downloaded?;
                unpacked.and(Err(PullError::Ended { layer: wanted.blob.digest, image: wanted.image.clone() }))
            }
            Err(Stop::Content(error)) => Err(wanted.content(error)),
            Err(Stop::NoRoom(path, free)) => Err(wanted.no_space(path, free)),
        }
    }

    async fn unpack(&self, wanted: &Wanted, pieces: Pieces) -> Result<Unpacked, PullError> {
        let most = (self.room)();
        let below = wanted.with_below.then(|| wanted.below.clone());
        let layer = Layer { diff_id: wanted.diff_id, below, most };
        self.layers.unpack(layer, pieces).await.map_err(|source| PullError::Unpack {
            layer: wanted.blob.digest,
            image: wanted.image.clone(),
            source,
        })
    }

    /// Fetches from `offset` to the end, over as many attempts as bring something. Drops `bytes` at the end either way.
    async fn download(
        &self,
        remote: &dyn Remote,
        wanted: &Wanted,
        flight: &Flight,
        mut offset: u64,
        bytes: mpsc::Sender<Bytes>,
    ) -> Result<(), PullError> {
        let total = wanted.blob.size;
        let mut tries = 0;
        while offset < total {
            flight.progress.send_replace(LayerStatus::Downloading { bytes: offset, total });
            let before = offset;
            let failure = match remote.blob(&wanted.blob, offset).await {
                Ok(body) => match self.receive(body, &mut offset, total, &bytes, flight).await {
                    None => break,
                    Some(failure) => failure,
                },
                Err(failure) => failure,
            };
            if bytes.is_closed() {
                break;
            }
            tries = if offset > before { 1 } else { tries + 1 };
            if !failure.transient || tries >= TRIES {
                return Err(PullError::Download {
                    layer: wanted.blob.digest,
                    image: wanted.image.clone(),
                    source: failure,
                });
            }
            let wait = board::tasks::backoff(tries, self.patience, Duration::from_secs(30));
            let wait = failure.retry_after.map_or(wait, |asked| asked.min(Duration::from_secs(300)).max(wait));
            let (problem, wait_ms) = (failure.to_string(), u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
            tracing::debug!(problem, offset, layer = %wanted.blob.digest, "the download of a layer broke; it goes on");
            flight.progress.send_replace(LayerStatus::Retrying { problem, wait_ms });
            tokio::time::sleep(wait).await;
        }
        flight.progress.send_replace(LayerStatus::Unpacking);
        Ok(())
    }

    /// Passes one attempt's bytes on; `None` when all are there or nobody takes them any more.
    async fn receive(
        &self,
        mut body: Body,
        offset: &mut u64,
        total: u64,
        bytes: &mpsc::Sender<Bytes>,
        flight: &Flight,
    ) -> Option<Failure> {
        let mut told = *offset;
        while let Some(piece) = body.next().await {
            let mut piece = match piece {
                Ok(piece) => piece,
                Err(failure) => return Some(failure),
            };
            while !piece.is_empty() {
                let part = Bytes::copy_from_slice(&piece[..piece.len().min(PIECE)]);
                piece.advance(part.len());
                *offset += part.len() as u64;
                self.fetched.inc_by(part.len() as u64);
                if bytes.send(part).await.is_err() {
                    return None; // The writer has its reason, which is told.
                }
            }
            if *offset - told >= (64 << 10) {
                told = *offset;
                flight.progress.send_replace(LayerStatus::Downloading { bytes: told, total });
            }
            if *offset >= total {
                return None;
            }
        }
        let error =
            io::Error::new(io::ErrorKind::UnexpectedEof, format!("the answer ended at byte {offset} of {total}"));
        Some(Failure { code: "unavailable", transient: true, retry_after: None, error: Box::new(error) })
    }
}

type Turn = Arc<tokio::sync::OwnedMutexGuard<()>>;

/// Why the writer stopped.
enum Stop {
    Content(ContentError),
    NoRoom(PathBuf, u64),
}

struct Writer {
    ingest: Ingest,
    pieces: Option<mpsc::Sender<io::Result<Bytes>>>,
    room: Arc<dyn Fn() -> u64 + Send + Sync>,
    looked: u64,
    safe: u64,
    since: Instant,
}

impl Writer {
    /// Writes until the download ends; whether the blob is whole and has its name.
    fn run(mut self, mut arriving: mpsc::Receiver<Bytes>) -> Result<bool, Stop> {
        self.safe = self.ingest.offset();
        self.look()?;
        self.replay()?;
        std::thread::scope(|scope| {
            let mut checkpoint: Option<std::thread::ScopedJoinHandle<'_, Result<(), ContentError>>> = None;
            while let Some(piece) = arriving.blocking_recv() {
                self.ingest.append(&piece).map_err(Stop::Content)?;
                self.pass(piece);
                self.look()?;
                if self.is_due() && checkpoint.as_ref().is_none_or(std::thread::ScopedJoinHandle::is_finished) {
                    if let Some(Ok(result)) = checkpoint.take().map(std::thread::ScopedJoinHandle::join) {
                        result.map_err(Stop::Content)?;
                    }
                    let next = self.ingest.checkpoint().map_err(Stop::Content)?;
                    (self.safe, self.since) = (self.ingest.offset(), Instant::now());
                    checkpoint = Some(scope.spawn(move || next.run()));
                }
            }
            Ok(())
        })?;
        if !self.ingest.is_whole() {
            // Kept for the next try; what came is made safe while there is time.
            if let Some(pieces) = self.pieces.take() {
                let _ = pieces.blocking_send(Err(io::Error::from(io::ErrorKind::UnexpectedEof)));
            }
            self.ingest.checkpoint().and_then(crate::content::Checkpoint::run).map_err(Stop::Content)?;
            return Ok(false);
        }
        self.pieces = None; // The unpacker ends while the blob is synced.
        self.ingest.commit(None).map_err(Stop::Content)?;
        Ok(true)
    }

    fn replay(&mut self) -> Result<(), Stop> {
        while self.ingest.to_replay() > 0 {
            let mut buffer = vec![0; PIECE];
            let n = self.ingest.replay(&mut buffer).map_err(Stop::Content)?;
            buffer.truncate(n);
            self.pass(buffer.into());
        }
        Ok(())
    }

    /// To the unpacker; one that gave up has its own error, and stops the download where that is of no use.
    fn pass(&mut self, piece: Bytes) {
        if self.pieces.as_ref().is_some_and(|pieces| pieces.blocking_send(Ok(piece)).is_err()) {
            self.pieces = None;
        }
    }

    fn look(&mut self) -> Result<(), Stop> {
        let offset = self.ingest.offset();
        if offset - self.looked.min(offset) < LOOK && self.looked > 0 {
            return Ok(());
        }
        self.looked = offset.max(1);
        let free = (self.room)();
        if free == 0 { Err(Stop::NoRoom(self.ingest.dir(), free)) } else { Ok(()) }
    }

    fn is_due(&self) -> bool {
        let fresh = self.ingest.offset() - self.safe;
        fresh >= CHECKPOINT || (fresh > 0 && self.since.elapsed() >= CHECKPOINT_EVERY)
    }
}

/// Reads a blob to the unpacker and hashes it on the way; whether it is what its name says.
fn feed_blob(
    content: &Content,
    blob: &Descriptor,
    pieces: &mpsc::Sender<io::Result<Bytes>>,
) -> Result<bool, ContentError> {
    let mut file = content.reader(&blob.digest)?;
    let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
    let mut listening = true;
    loop {
        let mut buffer = vec![0; PIECE];
        let n = file.read(&mut buffer).map_err(ContentError::io("read", &content.path(&blob.digest)))?;
        if n == 0 {
            return Ok(Digest::finish(hash) == blob.digest);
        }
        hash.update(&buffer[..n]);
        buffer.truncate(n);
        // An unpacker that gave up may have done so because of damage: the rest is read to know.
        listening = listening && pieces.blocking_send(Ok(buffer.into())).is_ok();
    }
}

/// A task's result; a panic in it is an error of this pull alone.
fn joined<T>(result: Result<T, tokio::task::JoinError>, wanted: &Wanted) -> Result<T, PullError> {
    result.map_err(|error| {
        let source = io::Error::other(error);
        wanted.content(ContentError::Io { action: "write", path: PathBuf::from(wanted.blob.digest.hex()), source })
    })
}

impl Wanted {
    fn content(&self, source: ContentError) -> PullError {
        match source {
            ContentError::NoSpace { path, free } => self.no_space(path, free),
            source => {
                PullError::Content { digest: self.blob.digest, image: self.image.clone(), source: Box::new(source) }
            }
        }
    }

    fn no_space(&self, path: PathBuf, free: u64) -> PullError {
        let (layer, image) = (Some(self.blob.digest), self.image.clone());
        PullError::NoSpace { path, free, need: self.blob.size, layer, image }
    }
}
