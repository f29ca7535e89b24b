//! Objects into a bucket of any S3, or into a folder that stands in for one.
//!
//! Path style, signed in the URL (so no streaming checksums, which Ceph 16 refuses); the body is guarded by Content-MD5,
//! and the `ETag` that comes back is compared.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use board::{clock::Clock, durable, tasks, tls};
use bytes::Bytes;
use md5::{Digest, Md5};
use reqwest::{StatusCode, header};
use rusty_s3::{Bucket, S3Action, UrlStyle};

use super::{Credentials, CredentialsError, Options};

const SIGNED_FOR: Duration = Duration::from_secs(900);
/// Most bytes of an error that are read.
const MAX_ERROR: usize = 16 << 10;

/// Why an object was not stored.
#[derive(Debug, thiserror::Error)]
pub enum S3Error {
    /// The endpoint or bucket cannot be one.
    #[error("{endpoint} is no S3 endpoint: {problem}")]
    Endpoint {
        /// As configured.
        endpoint: String,
        /// Why.
        problem: String,
    },
    /// TLS files.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    /// No keys.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// No connection, or a broken one.
    #[error("{host} cannot be reached: {problem}")]
    Unreachable {
        /// Which host.
        host: String,
        /// Why.
        problem: String,
    },
    /// The server said no.
    #[error("{host} answered {status} {code} for bucket {bucket}")]
    Refused {
        /// Which host.
        host: String,
        /// Which bucket.
        bucket: String,
        /// HTTP status.
        status: u16,
        /// S3's code.
        code: String,
    },
    /// What was stored is not what was sent.
    #[error("{host} stored something else than was sent (ETag {etag})")]
    Damaged {
        /// Which host.
        host: String,
        /// What it says it has.
        etag: String,
    },
    /// The folder that stands in for a bucket.
    #[error("cannot write {path}")]
    Folder {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl S3Error {
    /// What to do, in one line.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Endpoint { .. } => "check relay.s3.endpoint and bucket",
            Self::Tls(_) | Self::Credentials(_) => "mend the file that [relay.s3] names",
            Self::Unreachable { problem, .. } => {
                let problem = problem.to_lowercase();
                match () {
                    () if problem.contains("unknownissuer") => {
                        "the server's certificate is of an unknown CA: set relay.s3.ca_file"
                    }
                    () if problem.contains("expired") => {
                        "the server's certificate has run out, or the board's clock is wrong"
                    }
                    () if problem.contains("certificate") => "check relay.s3.endpoint and ca_file",
                    () => "readings are kept; it will be tried again",
                }
            }
            Self::Refused { code, .. } => match code.as_str() {
                "InvalidAccessKeyId" => "check relay.s3.access_key_id",
                "SignatureDoesNotMatch" => "check relay.s3.secret_access_key",
                "RequestTimeTooSkewed" => "the board's clock is wrong: see `edge-agent doctor`",
                "NoSuchBucket" => "create the bucket, or correct relay.s3.bucket",
                "AccessDenied" => "these keys may not write to this bucket: check its policy",
                "ExpiredToken" => "the temporary credentials have run out: renew them",
                _ => "readings are kept; it will be tried again",
            },
            Self::Damaged { .. } => "it will be sent again",
            Self::Folder { .. } => "check the folder of relay.s3.endpoint",
        }
    }
}

/// Where objects go.
pub enum Target {
    /// A bucket.
    S3(Box<S3>),
    /// A folder that stands in for one.
    Folder(PathBuf),
}

/// A bucket and how to get there.
pub struct S3 {
    http: reqwest::Client,
    bucket: Bucket,
    credentials: Credentials,
    clock: Clock,
    host: String,
    secure: bool,
}

impl Target {
    /// Sets the way up; nothing is sent yet.
    pub fn new(options: &Options, clock: Clock) -> Result<Self, S3Error> {
        let endpoint = &options.endpoint;
        let bad = |problem: String| S3Error::Endpoint { endpoint: endpoint.to_string(), problem };
        if endpoint.scheme() == "file" {
            let path = endpoint.to_file_path().map_err(|()| bad("no absolute path".into()))?;
            return Ok(Self::Folder(path.join(&options.bucket)));
        }
        let bucket = Bucket::new(endpoint.clone(), UrlStyle::Path, options.bucket.clone(), options.region.clone())
            .map_err(|error| bad(error.to_string()))?;
        let mut builder = reqwest::Client::builder()
            .no_proxy()
            .connect_timeout(Duration::from_secs(20))
            .read_timeout(Duration::from_secs(60))
            .pool_max_idle_per_host(1)
            .pool_idle_timeout(Duration::from_secs(30))
            .redirect(reqwest::redirect::Policy::none());
        let secure = endpoint.scheme() == "https";
        builder = builder.tls_backend_preconfigured((*tls::client(&options.tls)?).clone());
        let http = builder.build().map_err(|error| bad(tasks::chain(&error)))?;
        let host = endpoint.host_str().unwrap_or_default().to_owned();
        Ok(Self::S3(Box::new(S3 { http, bucket, credentials: options.credentials.clone(), clock, host, secure })))
    }

    /// Stores one object; the same name again replaces it.
    pub async fn put(&self, name: &str, body: Bytes) -> Result<(), S3Error> {
        match self {
            Self::S3(s3) => s3.put(name, body).await,
            Self::Folder(folder) => {
                let path = folder.join(name);
                let written = path.clone();
                tokio::task::spawn_blocking(move || write_file(&written, &body))
                    .await
                    .unwrap_or_else(|error| Err(std::io::Error::other(error)))
                    .map_err(|source| S3Error::Folder { path, source })
            }
        }
    }
}

fn write_file(path: &Path, body: &[u8]) -> std::io::Result<()> {
    if let Some(dir) = path.parent() {
        durable::create_dir_all(dir, 0o755)?;
    }
    durable::write(path, body, 0o644)
}

impl S3 {
    async fn put(&self, name: &str, body: Bytes) -> Result<(), S3Error> {
        let credentials = self.credentials.clone();
        let keys = tokio::task::spawn_blocking(move || credentials.load())
            .await
            .map_err(|error| self.unreachable(error.to_string()))??;
        let md5 = Md5::digest(&body);
        let content_md5 = STANDARD.encode(md5);
        let mut action = self.bucket.put_object(Some(&keys), name);
        action.headers_mut().insert("content-md5", content_md5.clone());
        let url = action.sign_with_time(SIGNED_FOR, &self.now());
        let sent = self.http.put(url).header("content-md5", content_md5).header(header::CONTENT_LENGTH, body.len());
        // The URL holds a signature: it stays out of the error.
        let answer =
            sent.body(body).send().await.map_err(|error| self.unreachable(tasks::chain(&error.without_url())))?;
        self.learn_time(&answer);
        if answer.status() != StatusCode::OK {
            return Err(self.refused(answer).await);
        }
        let etag = answer.headers().get(header::ETAG).and_then(|etag| etag.to_str().ok()).unwrap_or_default();
        let want: String = md5.iter().map(|byte| format!("{byte:02x}")).collect();
        if etag.trim_matches('"').eq_ignore_ascii_case(&want) {
            Ok(())
        } else {
            Err(S3Error::Damaged { host: self.host.clone(), etag: etag.chars().take(64).collect() })
        }
    }

    /// The board's best knowledge of the time, which the signature needs.
    fn now(&self) -> jiff::Timestamp {
        let stamp = self.clock.stamp();
        jiff::Timestamp::from_microsecond(stamp.wall_us).unwrap_or_else(|_| jiff::Timestamp::now())
    }

    /// A verified server's Date tells an untrusted clock the time, also when it refuses the request.
    fn learn_time(&self, answer: &reqwest::Response) {
        if !self.secure {
            return;
        }
        let date = answer.headers().get(header::DATE).and_then(|date| date.to_str().ok());
        let Some(date) = date.and_then(parse_http_date) else { return };
        self.clock.observe(date, "s3");
    }

    fn unreachable(&self, problem: String) -> S3Error {
        S3Error::Unreachable { host: self.host.clone(), problem }
    }

    async fn refused(&self, mut answer: reqwest::Response) -> S3Error {
        let status = answer.status().as_u16();
        let mut body = Vec::new();
        while let Ok(Some(chunk)) = answer.chunk().await {
            body.extend_from_slice(&chunk);
            if body.len() > MAX_ERROR {
                break;
            }
        }
        let text = String::from_utf8_lossy(&body);
        let code =
            text.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>")).map_or("", |(code, _)| code);
        let code = code.chars().filter(char::is_ascii_alphanumeric).take(64).collect();
        S3Error::Refused { host: self.host.clone(), bucket: self.bucket.name().to_owned(), status, code }
    }
}

/// An HTTP date (RFC 9110 section 5.6.7, the preferred form) in µs.
fn parse_http_date(text: &str) -> Option<i64> {
    let format = time::macros::format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
    );
    let time = time::PrimitiveDateTime::parse(text, format).ok()?.assume_utc();
    time.unix_timestamp().checked_mul(1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_dates() {
        assert_eq!(parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777_000_000));
        assert_eq!(parse_http_date("yesterday"), None);
    }
}
