//! A bucket of any S3, or a folder that stands in for one: where objects are put, and with which keys.
//!
//! Path style, signed in the URL (so no streaming checksums, which Ceph 16 refuses); what a server stored is compared with
//! what was sent by its `ETag`.
//!
//! Elsewhere: which objects (`relay::s3`, `uploads`).

mod client;
mod credentials;
mod error;
mod multipart;
mod sts;

use std::path::{Path, PathBuf};

use board::{clock::Clock, durable, tls::ClientFiles};
use bytes::Bytes;
use url::Url;

pub use client::S3;
pub use credentials::{Credentials, CredentialsError, WebIdentity};
pub use error::S3Error;
pub use multipart::{Part, whole_etag};

/// Where a bucket is, and how to get in.
#[derive(Debug, Clone)]
pub struct Options {
    /// `https://…`, `http://…`, or `file:///…` for a folder that stands in for a bucket.
    pub endpoint: Url,
    /// Bucket.
    pub bucket: String,
    /// Region; Ceph does not mind.
    pub region: String,
    /// Where keys come from.
    pub credentials: Credentials,
    /// CA, certificate and key.
    pub tls: ClientFiles,
}

/// Where objects go.
pub enum Target {
    /// A bucket.
    S3(Box<S3>),
    /// A folder that stands in for one.
    Folder(PathBuf),
}

impl Target {
    /// Sets the way up; nothing is sent yet.
    pub fn new(options: &Options, clock: Clock) -> Result<Self, S3Error> {
        if options.endpoint.scheme() != "file" {
            return S3::new(options, clock).map(Box::new).map(Self::S3);
        }
        let path = options.endpoint.to_file_path().map_err(|()| S3Error::Endpoint {
            endpoint: options.endpoint.to_string(),
            problem: "no absolute path".into(),
        })?;
        Ok(Self::Folder(path.join(&options.bucket)))
    }

    /// Stores one object; the same name again replaces it.
    pub async fn put(&self, name: &str, body: Bytes) -> Result<(), S3Error> {
        match self {
            Self::S3(s3) => s3.put(name, body).await,
            Self::Folder(folder) => {
                let path = folder.join(name);
                in_folder(path, move |path| {
                    create_parent(path)?;
                    durable::write(path, &body, 0o644)
                })
                .await
            }
        }
    }

    /// Asks a server that can prove who it is for the time, for a clock that nobody vouches for.
    pub async fn ask_the_time(&self) -> Result<(), S3Error> {
        if let Self::S3(s3) = self { s3.ask_the_time().await } else { Ok(()) }
    }
}

/// Creates the folders above `path`.
pub fn create_parent(path: &Path) -> std::io::Result<()> {
    path.parent().map_or(Ok(()), |dir| durable::create_dir_all(dir, 0o755))
}

/// Works on a file of the folder that stands in for a bucket, off the runtime.
pub async fn in_folder<F>(path: PathBuf, work: F) -> Result<(), S3Error>
where
    F: FnOnce(&Path) -> std::io::Result<()> + Send + 'static,
{
    let worked = path.clone();
    tokio::task::spawn_blocking(move || work(&worked))
        .await
        .unwrap_or_else(|error| Err(std::io::Error::other(error)))
        .map_err(|source| S3Error::Folder { path, source })
}
