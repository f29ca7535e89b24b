//! One file's way into S3.

use std::{
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream::FuturesOrdered};
use rustix::fs::OFlags;
use store::state::{Batch, Entity};
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::{Ready, UploadError, Uploads, object_name, spool::Seen};
use crate::s3::{Part, S3, Target, create_parent, in_folder};
use board::{tasks::Context, throttle::Throttle};

/// Read and sent at once.
const PIECE: usize = 256 << 10;
/// Parts on their way at the same time.
const AT_ONCE: usize = 3;
/// What S3 allows.
const MAX_PARTS: u64 = 10_000;
/// Other names that are tried where an object is there already.
const MAX_NAMES: u32 = 1000;

/// How far a file has come, in the state.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Upload {
    /// Below the spool.
    file: String,
    /// Which content of it.
    seen: Seen,
    /// Its object.
    object: String,
    /// The server's name of the upload.
    id: String,
    part_bytes: u64,
    /// Of the finished parts, in order.
    etags: Vec<String>,
}

impl Entity for Upload {
    const TREE: &'static str = "uploads";
    const VERSION: u16 = 1;
}

impl Upload {
    /// The state's key of a file: names may be longer than keys.
    pub(super) fn key_of(name: &str) -> String {
        use md5::{Digest, Md5};
        Md5::digest(name).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn parts(&self) -> u64 {
        self.seen.size.div_ceil(self.part_bytes).max(1)
    }
}

impl Uploads {
    /// Sends one file, from where an earlier try left off, and removes it.
    pub(super) async fn transfer(&self, file: &Ready, target: &Target, context: &Context) -> Result<(), UploadError> {
        match target {
            Target::Folder(folder) => {
                let object = object_name(&self.options, &file.name, modified(&file.seen), 0);
                let (from, sent) = (file.path.clone(), file.seen.size);
                in_folder(folder.join(object), move |to| copy(&from, to)).await?;
                self.figures.bytes.inc_by(sent);
            }
            Target::S3(s3) => {
                self.send(file, s3, context).await?;
            }
        }
        remove(file).await?;
        let mut batch = Batch::default();
        batch.delete::<Upload>(&Upload::key_of(&file.name));
        Ok(self.state.commit(batch).await?)
    }

    async fn send(&self, file: &Ready, s3: &S3, context: &Context) -> Result<(), UploadError> {
        let key = Upload::key_of(&file.name);
        let mut upload = match self.state.get::<Upload>(&key)? {
            Some(upload) if upload.seen == file.seen && upload.file == file.name => upload,
            stale => {
                if let Some(stale) = stale {
                    // Whether or not this works, the old parts are not used any more.
                    let _ = s3.abort(&stale.object, &stale.id).await;
                }
                self.begin(file, s3).await?
            }
        };
        self.stand(|it| {
            it.current = Some(file.name.clone());
            it.object = Some(upload.object.clone());
            it.size = file.seen.size;
            it.done = upload.etags.len() as u64 * upload.part_bytes;
        });
        match self.send_parts(file, &mut upload, s3, context).await {
            // The server has given the upload up, or has made it an object already and we did not hear of it.
            Err(UploadError::S3(error)) if error.is_not_found() => {
                let whole = upload.etags.len() as u64 == upload.parts();
                if whole && s3.etag(&upload.object).await? == Some(crate::s3::whole_etag(&upload.etags)) {
                    return Ok(());
                }
                let mut batch = Batch::default();
                batch.delete::<Upload>(&key);
                self.state.commit(batch).await?;
                Err(error.into())
            }
            other => other,
        }
    }

    /// Finds a name that is free, begins, and makes both durable.
    async fn begin(&self, file: &Ready, s3: &S3) -> Result<Upload, UploadError> {
        let modified = modified(&file.seen);
        let mut again = 0;
        let object = loop {
            let object = object_name(&self.options, &file.name, modified, again);
            if again >= MAX_NAMES || s3.etag(&object).await?.is_none() {
                break object;
            }
            again += 1;
        };
        let id = s3.begin(&object).await?;
        let part_bytes = self.options.part_bytes.max(file.seen.size.div_ceil(MAX_PARTS));
        let upload = Upload { file: file.name.clone(), seen: file.seen, object, id, part_bytes, etags: Vec::new() };
        self.save(&upload).await?;
        Ok(upload)
    }

    async fn save(&self, upload: &Upload) -> Result<(), UploadError> {
        let mut batch = Batch::default();
        batch.put(&Upload::key_of(&upload.file), upload)?;
        Ok(self.state.commit(batch).await?)
    }

    async fn send_parts(
        &self,
        file: &Ready,
        upload: &mut Upload,
        s3: &S3,
        context: &Context,
    ) -> Result<(), UploadError> {
        let mut next = upload.etags.len() as u64;
        let (object, id, part_bytes) = (upload.object.clone(), upload.id.clone(), upload.part_bytes);
        // The server finishes one part while others are on their way; they are written down in order.
        let mut under_way = FuturesOrdered::new();
        while (upload.etags.len() as u64) < upload.parts() {
            while under_way.len() < AT_ONCE && next < upload.parts() {
                let offset = next * part_bytes;
                let length = part_bytes.min(file.seen.size - offset);
                let number = u16::try_from(next + 1).unwrap_or(u16::MAX);
                let part = Part { name: &object, upload_id: &id, number, length };
                let throttle = self.options.throttle.clone();
                under_way.push_back(async move {
                    let body = pieces(open(file).await?, offset, length, throttle);
                    Ok::<_, UploadError>((s3.send_part(part, body).await?, offset + length, length))
                });
                next += 1;
            }
            let sent = tokio::select! {
                sent = under_way.next() => sent,
                () = context.stop.cancelled() => return Err(UploadError::Stopped),
            };
            let Some((etag, end, length)) = sent.transpose()? else { break };
            upload.etags.push(etag);
            self.save(upload).await?;
            self.figures.parts.inc();
            self.figures.bytes.inc_by(length);
            self.stand(|it| it.done = end);
        }
        // What was sent is one content of the file, or it is sent again.
        open(file).await?;
        Ok(s3.complete(&upload.object, &upload.id, &upload.etags).await?)
    }
}

/// The time in the object's name.
fn modified(seen: &Seen) -> jiff::Timestamp {
    jiff::Timestamp::from_nanosecond(seen.modified_ns.into()).unwrap_or(jiff::Timestamp::UNIX_EPOCH)
}

/// Opens the file that was seen, and no other: links are not followed.
async fn open(file: &Ready) -> Result<tokio::fs::File, UploadError> {
    let path = file.path.clone();
    let opened = tokio::task::spawn_blocking(move || open_blocking(&path))
        .await
        .map_err(io::Error::other)
        .and_then(|opened| opened)
        .map_err(|source| UploadError::Read { path: file.path.clone(), source })?;
    let (opened, seen) = opened;
    if seen == file.seen {
        Ok(tokio::fs::File::from_std(opened))
    } else {
        Err(UploadError::Changed { path: file.path.clone() })
    }
}

fn open_blocking(path: &Path) -> io::Result<(std::fs::File, Seen)> {
    let flags = i32::try_from((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits()).unwrap_or(0);
    let opened = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let seen = Seen::of(&opened.metadata()?);
    Ok((opened, seen))
}

/// `length` bytes from `offset`, a piece at a time, not faster than the cap.
fn pieces(
    file: tokio::fs::File,
    offset: u64,
    length: u64,
    throttle: Throttle,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let begin = (file, Some(offset), length, throttle);
    futures_util::stream::try_unfold(begin, async |(mut file, seek, left, throttle)| {
        if let Some(offset) = seek {
            file.set_max_buf_size(PIECE);
            file.seek(io::SeekFrom::Start(offset)).await?;
        }
        if left == 0 {
            return Ok(None);
        }
        let mut piece = bytes::BytesMut::with_capacity(PIECE);
        let most = usize::try_from(left).map_or(PIECE, |left| left.min(PIECE));
        let read = (&mut file).take(most as u64).read_buf(&mut piece).await?;
        if read == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter while it was sent"));
        }
        tokio::time::sleep(throttle.sent(read)).await;
        Ok(Some((piece.freeze(), (file, None, left - read as u64, throttle))))
    })
}

/// Removes a file that is stored, unless it has changed since.
async fn remove(file: &Ready) -> Result<(), UploadError> {
    let (path, seen) = (file.path.clone(), file.seen);
    let failed = |path: PathBuf, source| UploadError::Read { path, source };
    let removed = tokio::task::spawn_blocking(move || {
        if open_blocking(&path)?.1 == seen {
            std::fs::remove_file(&path)?;
            path.parent().map_or(Ok(()), board::durable::sync_dir)?;
        }
        Ok(())
    });
    let removed = removed.await.map_err(|error| failed(file.path.clone(), io::Error::other(error)))?;
    removed.map_err(|source| failed(file.path.clone(), source))
}

/// Into the folder that stands in for a bucket.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    create_parent(to)?;
    let mut beside = to.as_os_str().to_owned();
    beside.push(".part");
    let (mut source, _) = open_blocking(from)?;
    let mut target = std::fs::File::create(&beside)?;
    io::copy(&mut source, &mut target)?;
    target.sync_all()?;
    std::fs::rename(&beside, to)?;
    to.parent().map_or(Ok(()), board::durable::sync_dir)
}
