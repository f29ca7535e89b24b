//! Large files to S3: what lies in the spool directory is sent, part by part, and then removed.
//!
//! Always true: the name of the object is in the state before its first part is sent, and each finished part before more
//! are begun, so a crash or a power cut costs at most the three parts under way; no more than a few pieces of each are in
//! memory; a file is removed only after the server's checksum of the whole object is that of what was sent.
//!
//! Elsewhere: which files are ready (`spool`), one file's way (`transfer`), requests (`s3`).

mod spool;
mod transfer;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use board::{
    clock::Clock,
    metrics::Metrics,
    tasks::{Context, backoff, chain},
    throttle::Throttle,
};
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use store::state::{State, StateError};

use crate::s3::{self, S3Error, Target};
pub use spool::{QueueError, queue};
use spool::{Ready, Spool};
pub use transfer::Upload;

/// How often the spool is looked at. A file is ready when two looks find it the same.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// How uploads are set up.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where objects go.
    pub target: s3::Options,
    /// Put before every object name; may be empty.
    pub prefix: String,
    /// Name of the board.
    pub board: String,
    /// Where files wait.
    pub spool: PathBuf,
    /// Size of a part; larger for files that would need more than 10,000.
    pub part_bytes: u64,
    /// Caps the bytes a second.
    pub throttle: Throttle,
}

/// How uploads stand, for `status`.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Standing {
    /// Files that wait, the one on its way included.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The file on its way, its path below the spool.
    pub current: Option<String>,
    /// Its object.
    pub object: Option<String>,
    /// Bytes of it that are stored.
    pub done: u64,
    /// Its size.
    pub size: u64,
}

/// Why a file was not sent.
#[derive(Debug, thiserror::Error)]
enum UploadError {
    #[error(transparent)]
    S3(#[from] S3Error),
    #[error(transparent)]
    State(#[from] StateError),
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} changed while it was sent; it is sent again from its beginning")]
    Changed { path: PathBuf },
    #[error("the agent stops")]
    Stopped,
}

#[derive(Clone, Default)]
struct Figures {
    files: Counter,
    bytes: Counter,
    parts: Counter,
    failures: Counter,
    waiting: Gauge,
}

/// The service.
#[derive(Clone)]
pub struct Uploads {
    options: Options,
    state: State,
    clock: Clock,
    figures: Figures,
    standing: Arc<Mutex<Standing>>,
}

impl Uploads {
    /// Sets the service up; nothing is sent yet.
    pub fn new(options: Options, state: State, clock: Clock, metrics: &Metrics) -> Self {
        let figures = Figures::default();
        metrics.register(|registry| {
            registry.register("uploads_files", "Files stored in S3", figures.files.clone());
            registry.register("uploads_bytes", "Bytes of parts stored in S3", figures.bytes.clone());
            registry.register("uploads_parts", "Parts stored in S3", figures.parts.clone());
            registry.register("uploads_failures", "Files that had to be tried again", figures.failures.clone());
            registry.register("uploads_waiting", "Files that wait", figures.waiting.clone());
        });
        Self { options, state, clock, figures, standing: Arc::default() }
    }

    /// How it stands.
    pub fn standing(&self) -> Standing {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn stand(&self, change: impl FnOnce(&mut Standing)) {
        change(&mut self.standing.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Sends what is ready until stopped.
    pub async fn run(self, context: Context) -> Result<(), S3Error> {
        let mut spool = Spool::new(self.options.spool.clone());
        // Set up anew after each failure: what the configuration names, such as a CA file, may have been mended.
        let (mut target, mut tries) = (None, 0);
        while !context.stop.is_cancelled() {
            let wait = match self.round(&mut spool, &mut target, &context).await {
                Ok(true) => {
                    tries = 0;
                    continue;
                }
                Ok(false) => LOOK_EVERY,
                Err(UploadError::Stopped) => break,
                Err(error) => {
                    self.figures.failures.inc();
                    target = None;
                    tries += 1;
                    let remedy = match &error {
                        UploadError::S3(error) => error.remedy(),
                        UploadError::Read { .. } => "make the file readable, or take it out of the spool",
                        _ => "it will be tried again",
                    };
                    context.degraded(chain(&error), remedy);
                    backoff(tries, Duration::from_secs(1), Duration::from_secs(120))
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = context.stop.cancelled() => {}
            }
        }
        Ok(())
    }

    /// Looks, and sends the oldest file that is ready; `false` when there is none.
    async fn round(
        &self,
        spool: &mut Spool,
        target: &mut Option<Target>,
        context: &Context,
    ) -> Result<bool, UploadError> {
        let mut ready = look(spool).await?;
        self.forget_gone(&ready).await?;
        self.figures.waiting.set(i64::try_from(ready.len()).unwrap_or(i64::MAX));
        self.stand(|it| {
            *it = Standing {
                files: ready.len() as u64,
                bytes: ready.iter().map(|file| file.seen.size).sum(),
                ..Standing::default()
            }
        });
        ready.retain(|file| file.settled);
        let Some(file) = ready.into_iter().next() else {
            context.healthy(format!("{} files stored", self.figures.files.get()));
            return Ok(false);
        };
        let target = match target {
            Some(target) => target,
            None => target.insert(Target::new(&self.options.target, self.clock.clone())?),
        };
        context.healthy(format!("sending {}", file.name));
        self.transfer(&file, target, context).await?;
        self.figures.files.inc();
        tracing::info!(file = file.name, bytes = file.seen.size, "file stored in S3");
        Ok(true)
    }

    /// Records of files that are no longer there, as after a state that was set aside or a file that was taken away.
    async fn forget_gone(&self, ready: &[Ready]) -> Result<(), UploadError> {
        let mut batch = store::state::Batch::default();
        let mut gone = 0;
        for record in self.state.scan::<Upload>("") {
            let Ok((key, _)) = record else { continue };
            if !ready.iter().any(|file| Upload::key_of(&file.name) == key) {
                batch.delete::<Upload>(&key);
                gone += 1;
            }
        }
        if gone > 0 {
            self.state.commit(batch).await?;
        }
        Ok(())
    }
}

async fn look(spool: &mut Spool) -> Result<Vec<Ready>, UploadError> {
    let mut looking = std::mem::take(spool);
    let path = looking.path().to_owned();
    let failed = |source| UploadError::Read { path: path.clone(), source };
    let looked = tokio::task::spawn_blocking(move || {
        let ready = looking.look();
        (looking, ready)
    });
    let (back, ready) = looked.await.map_err(|error| failed(std::io::Error::other(error)))?;
    *spool = back;
    ready.map_err(failed)
}

/// The object of a file: `PREFIX/_uploads/BOARD/DATE/NAME`. Readers of a folder of Parquet pass over names that begin with
/// an underscore, so large files do not get into their way.
fn object_name(options: &Options, name: &str, modified: jiff::Timestamp, again: u32) -> String {
    let date = modified.strftime("%Y-%m-%d");
    let path = Path::new(name);
    let again = match again {
        0 => String::new(),
        n => format!("-{}", n + 1),
    };
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let extension = path.extension().map_or_else(String::new, |it| format!(".{}", it.to_string_lossy()));
    let folder = path.parent().map(|it| it.to_string_lossy().into_owned()).unwrap_or_default();
    let parts = [options.prefix.as_str(), "_uploads", &options.board, &date.to_string(), &folder];
    let mut object: String = parts.into_iter().filter(|it| !it.is_empty()).map(|it| format!("{it}/")).collect();
    object.push_str(&format!("{stem}{again}{extension}"));
    object
}
