//! [`Reader`]: a log as a stream of entries, for async callers.

use std::{
    collections::VecDeque,
    io,
    mem::MaybeUninit,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::{io::unix::AsyncFd, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{
    line::Entry,
    reader::{Core, ReadError, ReadOptions},
};
use crate::sys;

/// A log being read. Bounded: nothing is read before it is asked for.
pub struct Reader {
    path: PathBuf,
    ready: VecDeque<Entry>,
    /// `None` while `reading` has it.
    core: Option<Core>,
    reading: Option<JoinHandle<(Core, io::Result<Vec<Entry>>)>>,
    watch: Option<AsyncFd<OwnedFd>>,
    ended: CancellationToken,
    /// The container had ended before the last look: what is read now is the rest.
    last_look: bool,
}

impl Reader {
    /// Reads the log at `path`. When following, it ends once `ended` is cancelled (the container has ended, and its shim
    /// has written everything) and everything has been read.
    pub async fn open(path: &Path, options: ReadOptions, ended: CancellationToken) -> Result<Self, ReadError> {
        let failed = |source| ReadError::Io { path: path.to_owned(), source };
        // Before the first look, so that nothing is written unnoticed between the two.
        let watch = options.follow.then(|| watch(path)).transpose();
        let watch = watch.map_err(|source| ReadError::Watch { path: path.to_owned(), source })?;
        let place = path.to_owned();
        let core = tokio::task::spawn_blocking(move || Core::open(&place, options)).await;
        let core = core.map_err(|error| failed(io::Error::other(error)))??;
        let path = path.to_owned();
        Ok(Self { path, ready: VecDeque::new(), core: Some(core), reading: None, watch, ended, last_look: false })
    }

    /// The next entry; `None` at the end. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Entry>, ReadError> {
        let failed = |source| ReadError::Io { path: self.path.clone(), source };
        loop {
            if let Some(entry) = self.ready.pop_front() {
                return Ok(Some(entry));
            }
            if let Some(mut core) = self.core.take() {
                if core.is_finished() {
                    self.core = Some(core);
                    return Ok(None);
                }
                self.last_look = self.ended.is_cancelled();
                self.reading = Some(tokio::task::spawn_blocking(move || {
                    let entries = core.fill();
                    (core, entries)
                }));
            }
            let Some(reading) = &mut self.reading else { return Ok(None) };
            let read = reading.await;
            self.reading = None;
            let (core, entries) = read.map_err(|error| failed(io::Error::other(error)))?;
            self.core = Some(core);
            let entries = entries.map_err(failed)?;
            if entries.is_empty() {
                let Some(watch) = self.watch.as_ref().filter(|_| !self.last_look) else { return Ok(None) };
                tokio::select! {
                    () = self.ended.cancelled() => {}
                    changed = changed(watch) => changed.map_err(failed)?,
                }
            }
            self.ready.extend(entries);
        }
    }
}

/// Watches the folder: the file itself comes and goes.
fn watch(path: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    inotify::add_watch(&fd, dir, WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO)?;
    sys::asynchronous::register(fd)
}

/// Until something in the folder has changed. What changed does not matter: the reader looks for itself.
async fn changed(watch: &AsyncFd<OwnedFd>) -> io::Result<()> {
    let mut guard = watch.readable().await?;
    let mut buffer = [MaybeUninit::uninit(); 4096];
    while matches!(rustix::io::read(watch.get_ref(), &mut buffer), Ok((events, _)) if !events.is_empty()) {}
    guard.clear_ready();
    Ok(())
}
