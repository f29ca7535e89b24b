//! The agent's side of unpacking: starts the child, feeds it, and makes a layer of what it leaves.
//!
//! Always true:
//! - One thread stays with each child from start to end, since the kernel kills the child when that *thread* ends.
//! - A handle that is dropped, in whatever state, ends the child (its input ends); what it wrote is removed by that
//!   thread once the child is gone, so nothing is written behind the removal.

use std::{
    io::{self, Read},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::unix::pipe,
    sync::oneshot,
};

use super::{
    Inner, Layer, Snapshots, Unpack, UnpackError,
    child::{Arguments, Report},
    error::Fault,
    layer::{self, Record},
    remove,
};

/// Bytes in the pipe to the child: enough that a burst from the network does not wait for the disk.
const PIPE_BYTES: usize = 1 << 20;
/// Longest report, and longest last words.
const MAX_REPORT: u64 = 64 << 10;

/// A layer on its way: write the compressed bytes in order, then [`finish`](Self::finish).
#[derive(Debug)]
pub struct Unpacking {
    inner: Arc<Inner>,
    unpack: Unpack,
    name: String,
    input: Option<pipe::Sender>,
    end: Option<oneshot::Receiver<io::Result<End>>>,
}

/// Removed when dropped, unless it became a layer.
#[derive(Debug)]
struct Folder(Option<PathBuf>);

impl Drop for Folder {
    fn drop(&mut self) {
        if let Some(path) = self.0.take()
            && let Err(error) = remove::tree(&path)
        {
            tracing::warn!(%error, path = %path.display(), "an unfinished layer is left; the next start removes it");
        }
    }
}

#[derive(Debug)]
struct End {
    status: std::process::ExitStatus,
    out: Vec<u8>,
    words: String,
    folder: Folder,
}

impl Snapshots {
    /// Starts to unpack a layer. Cancelled or dropped: nothing is left.
    #[allow(clippy::unused_async)] // Needs the runtime that it is called in: the pipe is registered there.
    pub async fn begin(&self, unpack: Unpack) -> Result<Unpacking, UnpackError> {
        let name = unpack.diff_id.map_or_else(|| "of unknown content".to_owned(), |id| id.to_string());
        let inner = self.0.clone();
        let failed = |step| {
            let (layer, path) = (name.clone(), inner.layers.clone());
            move |source| UnpackError::Io { layer, step, path, source }
        };
        let folder = layer::unfinished(&inner.layers).map_err(failed("make a folder"))?;
        let folder = Folder(Some(folder));
        let root = folder.0.clone().unwrap_or_default().join("fs");
        let arguments = Arguments {
            root,
            limits: unpack.limits,
            marks: inner.marks,
            parents: unpack.parents.iter().rev().map(|layer| self.layer_path(layer)).collect(),
        };
        let (reader, writer) = io::pipe().map_err(failed("make a pipe"))?;
        let writer = OwnedFd::from(writer);
        // A smaller pipe is slower and nothing else.
        let _ = rustix::pipe::fcntl_setpipe_size(&writer, PIPE_BYTES);
        rustix::io::ioctl_fionbio(&writer, true).map_err(|error| failed("make a pipe")(error.into()))?;
        let input = pipe::Sender::from_owned_fd(writer).map_err(failed("make a pipe"))?;
        let end = start(&inner.program, &arguments, reader.into(), folder).map_err(failed("start the child"))?;
        Ok(Unpacking { inner: inner.clone(), unpack, name: name.clone(), input: Some(input), end: Some(end) })
    }

    /// Unpacks a layer from a reader of its compressed bytes. Cancelled: nothing is left.
    pub async fn unpack(&self, unpack: Unpack, mut source: impl AsyncRead + Unpin) -> Result<Layer, UnpackError> {
        let mut unpacking = self.begin(unpack).await?;
        let mut buffer = vec![0; 128 << 10];
        loop {
            let read = source.read(&mut buffer).await.map_err(|error| unpacking.failed("read the blob", error))?;
            if read == 0 {
                return unpacking.finish().await;
            }
            unpacking.write(&buffer[..read]).await?;
        }
    }
}

impl Unpacking {
    /// Feeds the next bytes. An error is the child's own reason, and final. Not cancel-safe: a call that was begun and
    /// dropped may have written a part.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), UnpackError> {
        let Some(input) = &mut self.input else {
            return Err(self.failed("feed the child", io::ErrorKind::BrokenPipe.into()));
        };
        match input.write_all(bytes).await {
            Ok(()) => Ok(()),
            Err(error) => {
                self.input = None;
                Err(match self.report().await {
                    Ok(_) => self.failed("feed the child", error),
                    Err(reason) => reason,
                })
            }
        }
    }

    /// The whole layer was fed: waits for the child and makes the layer. Should the same layer have been finished by
    /// somebody else meanwhile, that one is the result.
    pub async fn finish(mut self) -> Result<Layer, UnpackError> {
        self.input = None; // End of input.
        let (report, folder) = self.report().await?;
        if let Some(expected) = self.unpack.diff_id
            && expected != report.diff_id
        {
            return Err(UnpackError::WrongDiffId { expected, found: report.diff_id });
        }
        if let Some(declared) = self.unpack.declared
            && declared != report.compression
        {
            tracing::warn!(layer = %self.name, ?declared, found = ?report.compression,
                "the media type of a layer names another compression than it has");
        }
        if !report.filtered {
            tracing::warn!(layer = %self.name, "this kernel filters no system calls (CONFIG_SECCOMP_FILTER): a layer was \
                unpacked by a process that is confined by its namespaces and capabilities alone");
        }
        let below: Vec<_> = self.unpack.parents.iter().map(|parent| parent.diff_id).collect();
        let below = report.copied_from_parents.then_some(below.as_slice());
        let layer = Layer {
            key: layer::key(&report.diff_id, below),
            diff_id: report.diff_id,
            bytes: report.bytes,
            inodes: report.inodes,
            marks: self.inner.marks,
        };
        let name = self.name.clone();
        let record = Record { layer, boot: self.inner.boot.clone(), synced: false };
        let it = tokio::task::spawn_blocking(move || self.keep(record, folder)).await;
        it.unwrap_or_else(|error| {
            let (layer, path) = (name, PathBuf::new());
            Err(UnpackError::Io { layer, step: "keep the result", path, source: io::Error::other(error) })
        })
    }

    fn keep(self, record: Record, mut finished: Folder) -> Result<Layer, UnpackError> {
        let folder = finished.0.clone().unwrap_or_default();
        let target = self.inner.layers.join(&record.layer.key);
        record.write(&folder).map_err(|error| self.failed("write layer.json", error))?;
        match std::fs::rename(&folder, &target) {
            Ok(()) => finished.0 = None,
            Err(error) => {
                return match Record::read(&target) {
                    Ok(present) => Ok(present.layer),
                    Err(_) => Err(self.failed("rename the layer", error)),
                };
            }
        }
        let (layer, inner) = (record.layer.clone(), self.inner.clone());
        let mut syncs = inner.syncs.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        while syncs.try_join_next().is_some() {}
        syncs.spawn_blocking(move || sync(&target, record));
        Ok(layer)
    }

    async fn report(&mut self) -> Result<(Report, Folder), UnpackError> {
        let Some(end) = self.end.take() else {
            return Err(self.failed("wait for the child", io::ErrorKind::BrokenPipe.into()));
        };
        let end = match end.await {
            Ok(Ok(end)) => end,
            Ok(Err(error)) => return Err(self.failed("start the child", error)),
            Err(_) => return Err(self.failed("wait for the child", io::ErrorKind::BrokenPipe.into())),
        };
        match serde_json::from_slice::<Result<Report, Fault>>(&end.out) {
            Ok(Ok(report)) if end.status.success() => Ok((report, end.folder)),
            Ok(Err(fault)) => Err(UnpackError::Layer { layer: self.name.clone(), fault }),
            _ => Err(UnpackError::Child { layer: self.name.clone(), how: end.status.to_string(), says: end.words }),
        }
    }

    fn failed(&self, step: &'static str, source: io::Error) -> UnpackError {
        UnpackError::Io { layer: self.name.clone(), step, path: self.inner.layers.clone(), source }
    }
}

/// Writes the files of a layer to the disk, and then says so.
fn sync(path: &Path, record: Record) {
    let synced = (|| {
        rustix::fs::syncfs(std::fs::File::open(path)?.as_fd())?;
        Record { synced: true, ..record }.write(path)
    })();
    match synced {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {} // Removed meanwhile.
        Err(error) => tracing::warn!(%error, path = %path.display(),
            "a layer could not be synced; it is unpacked again after the next boot"),
        Ok(()) => {}
    }
}

/// Starts the child on a thread of its own, which ends with it.
fn start(
    program: &Path,
    arguments: &Arguments,
    input: OwnedFd,
    folder: Folder,
) -> io::Result<oneshot::Receiver<io::Result<End>>> {
    let (sender, receiver) = oneshot::channel();
    let mut command = Command::new(program);
    command.arg("unpack").args(arguments.to_words()).env_clear().current_dir("/");
    command.stdin(Stdio::from(input)).stdout(Stdio::piped()).stderr(Stdio::piped());
    let thread = std::thread::Builder::new().name("unpack".into()).stack_size(128 << 10);
    thread.spawn(move || {
        let end = (|| {
            let mut child = command.spawn()?;
            drop(command); // Holds the read end of the pipe: a dead child must be noticed when it is fed.
            let (mut out, mut words) = (Vec::new(), Vec::new());
            if let Some(stdout) = child.stdout.take() {
                stdout.take(MAX_REPORT).read_to_end(&mut out)?;
            }
            if let Some(stderr) = child.stderr.take() {
                stderr.take(MAX_REPORT).read_to_end(&mut words)?;
            }
            if sender.is_closed() {
                let _ = child.kill(); // Nobody waits any more.
            }
            let words = String::from_utf8_lossy(&words).trim().to_owned();
            let status = child.wait()?;
            // What failed is removed here, where waiting for the disk holds nobody up.
            let folder = if status.success() { folder } else { Folder(None) };
            Ok(End { status, out, words, folder })
        })();
        let _ = sender.send(end); // Should nobody wait any more, the folder is removed here.
    })?;
    Ok(receiver)
}
