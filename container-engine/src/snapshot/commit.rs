//! Snapshots back into archives: `diff` as a stream, `commit` as a new layer with its compressed blob.

use std::{
    io::{self, BufWriter, PipeWriter, Write},
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::unix::pipe,
    task::JoinHandle,
};

use super::{
    Compression, Layer, SnapshotError, Snapshots, Unpack, Way, diff,
    root::{Record, apart, io_error},
};
use crate::content::Digest;

/// How the new blob is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommitOptions {
    /// Compression of the blob.
    pub compression: Compression,
}

impl Default for CommitOptions {
    fn default() -> Self {
        Self { compression: Compression::Gzip }
    }
}

/// A committed layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// Unpacked already.
    pub layer: Layer,
    /// Of the blob.
    pub digest: Digest,
    /// Bytes of the blob.
    pub size: u64,
    /// As OCI names it.
    pub media_type: &'static str,
}

/// The archive of what was written. An error of the walk is an error of the read, never a shorter archive.
#[derive(Debug)]
pub struct DiffStream {
    pipe: pipe::Receiver,
    walk: Option<JoinHandle<io::Result<()>>>,
}

impl AsyncRead for DiffStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.pipe).poll_read(context, buffer))?;
        if buffer.filled().len() == before
            && let Some(walk) = &mut self.walk
        {
            let end = ready!(Pin::new(walk).poll(context));
            self.walk = None;
            return Poll::Ready(end.map_err(io::Error::other).and_then(|end| end));
        }
        Poll::Ready(Ok(()))
    }
}

impl Snapshots {
    /// What was written above the layers, as an uncompressed OCI layer. The same content gives the same bytes; for a
    /// running container it is what each file held when it was read. Dropped: the walk ends.
    pub async fn diff(&self, id: &str) -> Result<DiffStream, SnapshotError> {
        let source = self.source_of(id).await?;
        let path = source.folder.clone();
        let (pipe, writer) = pipe_to_here().map_err(io_error(id, "read", &path))?;
        let walk =
            tokio::task::spawn_blocking(move || diff::write(&source, BufWriter::with_capacity(64 << 10, writer)));
        Ok(DiffStream { pipe, walk: Some(walk) })
    }

    /// Makes a layer of what was written: its compressed blob goes to `blob`, and the layer is unpacked in the same
    /// pass. With an error, or cancelled, there is no layer; what `blob` has got is its owner's to throw away.
    pub async fn commit(
        &self,
        id: &str,
        options: CommitOptions,
        mut blob: impl AsyncWrite + Unpin,
    ) -> Result<Commit, SnapshotError> {
        let source = self.source_of(id).await?;
        let path = source.folder.clone();
        let failed = || io_error(id, "commit", &path);
        let committed = |source| SnapshotError::Commit { id: id.to_owned(), source };
        let mut unpacking = self.begin(Unpack::default()).await.map_err(committed)?;
        let (mut plain, plain_in) = pipe_to_here().map_err(failed())?;
        let (mut packed, packed_in) = pipe_to_here().map_err(failed())?;
        let walk = tokio::task::spawn_blocking(move || pack(&source, options.compression, plain_in, packed_in));
        let unpack = async {
            let mut buffer = vec![0; 128 << 10];
            loop {
                let read = plain.read(&mut buffer).await.map_err(failed())?;
                if read == 0 {
                    return Ok(());
                }
                unpacking.write(&buffer[..read]).await.map_err(committed)?;
            }
        };
        let store = async {
            let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
            let (mut size, mut buffer) = (0, vec![0; 128 << 10]);
            loop {
                let read = packed.read(&mut buffer).await.map_err(failed())?;
                if read == 0 {
                    blob.flush().await.map_err(failed())?;
                    return Ok((Digest::finish(hash), size));
                }
                hash.update(&buffer[..read]);
                size += read as u64;
                blob.write_all(&buffer[..read]).await.map_err(failed())?;
            }
        };
        let ((), (digest, size)) = tokio::try_join!(unpack, store)?;
        let diff_id = walk.await.map_err(|error| failed()(io::Error::other(error)))?.map_err(failed())?;
        let layer = unpacking.finish().await.map_err(committed)?;
        if layer.diff_id != diff_id {
            let source = io::Error::other("the layer that was unpacked is not the one that was packed");
            return Err(failed()(source));
        }
        let media_type = match options.compression {
            Compression::None => "application/vnd.oci.image.layer.v1.tar",
            Compression::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Compression::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        };
        Ok(Commit { layer, digest, size, media_type })
    }

    async fn source_of(&self, id: &str) -> Result<diff::Source, SnapshotError> {
        let (it, name) = (self.clone(), id.to_owned());
        apart(id, move || {
            let record = it.record(&name)?;
            let root = it.root_before(&record).map_err(io_error(&name, "read the layers of", &it.0.layers))?;
            let folder = it.written(&record);
            let index = (record.way == Way::Copy).then(|| folder.with_file_name("index"));
            Ok(diff::Source { folder, index, marks: it.0.marks, map: record.options.idmap, root })
        })
        .await
    }

    /// Mode and owner of the root as the layers have it, on the disk.
    fn root_before(&self, record: &Record) -> io::Result<(u32, u32, u32)> {
        Ok(match record.layers.last() {
            None => (0o755, record.shift(), record.shift()),
            Some(layer) => {
                let stat = std::fs::metadata(self.layer_path(layer))?;
                (stat.mode() & 0o7777, stat.uid() + record.shift(), stat.gid() + record.shift())
            }
        })
    }
}

/// A pipe from a thread that blocks.
fn pipe_to_here() -> io::Result<(pipe::Receiver, PipeWriter)> {
    let (reader, writer) = io::pipe()?;
    let reader = OwnedFd::from(reader);
    rustix::io::ioctl_fionbio(&reader, true)?;
    Ok((pipe::Receiver::from_owned_fd(reader)?, writer))
}

/// The archive, plain to one pipe and compressed to the other; its digest.
fn pack(source: &diff::Source, compression: Compression, plain: PipeWriter, packed: PipeWriter) -> io::Result<Digest> {
    let hash = ring::digest::Context::new(&ring::digest::SHA256);
    let encoder = match compression {
        Compression::None => Encoder::None(packed),
        Compression::Gzip => Encoder::Gzip(flate2::write::GzEncoder::new(packed, flate2::Compression::default())),
        Compression::Zstd => Encoder::Zstd(zstd::stream::write::Encoder::new(packed, 3)?),
    };
    let mut tee = BufWriter::with_capacity(64 << 10, Tee { hash, plain, encoder });
    diff::write(source, &mut tee)?;
    let tee = tee.into_inner().map_err(io::IntoInnerError::into_error)?;
    tee.encoder.finish()?;
    Ok(Digest::finish(tee.hash))
}

struct Tee {
    hash: ring::digest::Context,
    plain: PipeWriter,
    encoder: Encoder,
}

enum Encoder {
    None(PipeWriter),
    Gzip(flate2::write::GzEncoder<PipeWriter>),
    Zstd(zstd::stream::write::Encoder<'static, PipeWriter>),
}

impl Encoder {
    fn finish(self) -> io::Result<()> {
        match self {
            Self::None(_) => Ok(()),
            Self::Gzip(encoder) => encoder.finish().map(drop),
            Self::Zstd(encoder) => encoder.finish().map(drop),
        }
    }
}

impl Write for Tee {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hash.update(bytes);
        self.plain.write_all(bytes)?;
        match &mut self.encoder {
            Encoder::None(out) => out.write_all(bytes)?,
            Encoder::Gzip(out) => out.write_all(bytes)?,
            Encoder::Zstd(out) => out.write_all(bytes)?,
        }
        Ok(bytes.len())
    }

    /// Blocks of the compressed form end where they end: a flush in between would only make it larger.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
