//! Requests to S3: signed, bounded, their errors read.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use board::{clock::Clock, tasks, tls};
use bytes::Bytes;
use md5::{Digest, Md5};
use reqwest::{Method, RequestBuilder, Response, StatusCode, header};
use rusty_s3::{
    Bucket, S3Action, UrlStyle,
    actions::{HeadBucket, HeadObject},
};

use super::{Options, S3Error, credentials::Keys};

/// How long a signature holds: long enough for one part on a slow link.
const SIGNED_FOR: Duration = Duration::from_secs(3600);
/// Most bytes of an answer that are read.
const MAX_ANSWER: usize = 64 << 10;

/// A bucket and how to get there.
pub struct S3 {
    http: reqwest::Client,
    pub(super) bucket: Bucket,
    keys: Keys,
    clock: Clock,
    pub(super) host: String,
    secure: bool,
}

impl S3 {
    pub(super) fn new(options: &Options, clock: Clock) -> Result<Self, S3Error> {
        let endpoint = &options.endpoint;
        let bad = |problem: String| S3Error::Endpoint { endpoint: endpoint.to_string(), problem };
        let bucket = Bucket::new(endpoint.clone(), UrlStyle::Path, options.bucket.clone(), options.region.clone())
            .map_err(|error| bad(error.to_string()))?;
        let http = reqwest::Client::builder()
            .no_proxy()
            .connect_timeout(Duration::from_secs(20))
            .read_timeout(Duration::from_secs(60))
            .pool_max_idle_per_host(3)
            .pool_idle_timeout(Duration::from_secs(30))
            .redirect(reqwest::redirect::Policy::none())
            .tls_backend_preconfigured((*tls::client(&options.tls)?).clone())
            .build()
            .map_err(|error| bad(tasks::chain(&error)))?;
        let host = endpoint.host_str().unwrap_or_default().to_owned();
        let keys = Keys::new(options.credentials.clone());
        Ok(Self { http, bucket, keys, clock, host, secure: endpoint.scheme() == "https" })
    }

    pub(super) async fn put(&self, name: &str, body: Bytes) -> Result<(), S3Error> {
        let md5 = Md5::digest(&body);
        let content_md5 = STANDARD.encode(md5);
        let keys = self.keys().await?;
        let mut action = self.bucket.put_object(Some(&keys), name);
        action.headers_mut().insert("content-md5", content_md5.clone());
        let request = self.request(Method::PUT, &action).header("content-md5", content_md5);
        let answer = self.send(request.header(header::CONTENT_LENGTH, body.len()).body(body)).await?;
        self.check_etag(&answer, &hex(&md5))
    }

    /// The `ETag` of an object, if it is there and these keys may see it.
    pub async fn etag(&self, name: &str) -> Result<Option<String>, S3Error> {
        let keys = self.keys().await?;
        let action = HeadObject::new(&self.bucket, Some(&keys), name);
        match self.send(self.request(Method::HEAD, &action)).await {
            Ok(answer) => Ok(Some(etag_of(&answer))),
            // Without the right to list, S3 says 403 for what is not there.
            Err(S3Error::Refused { status: 403 | 404, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Any answer over TLS tells the time, also one that refuses a request signed in 1970.
    pub(super) async fn ask_the_time(&self) -> Result<(), S3Error> {
        if !self.secure {
            return Ok(());
        }
        let keys = self.keys().await?;
        let action = HeadBucket::new(&self.bucket, Some(&keys));
        match self.send(self.request(Method::HEAD, &action)).await {
            // What is wrong with the bucket or the keys shows better where an object is stored.
            Ok(_) | Err(S3Error::Refused { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The keys as they are now.
    pub(super) async fn keys(&self) -> Result<rusty_s3::Credentials, S3Error> {
        self.keys.current(&self.http).await.map_err(Into::into)
    }

    /// A signed request.
    pub(super) fn request<'a, A: S3Action<'a>>(&self, method: Method, action: &A) -> RequestBuilder {
        self.http.request(method, action.sign_with_time(SIGNED_FOR, &self.now()))
    }

    /// Sends; an answer other than 200 is an error.
    pub(super) async fn send(&self, request: RequestBuilder) -> Result<Response, S3Error> {
        // The URL holds a signature: it stays out of the error.
        let answer = request.send().await.map_err(|error| self.unreachable(&error.without_url()))?;
        self.learn_time(&answer);
        match answer.status() {
            StatusCode::OK | StatusCode::NO_CONTENT => Ok(answer),
            _ => Err(self.refused(answer).await),
        }
    }

    /// The text of an answer, bounded.
    pub(super) async fn text(&self, mut answer: Response) -> Result<String, S3Error> {
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|error| self.unreachable(&error.without_url()))? {
            body.extend_from_slice(&chunk);
            if body.len() > MAX_ANSWER {
                break;
            }
        }
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    pub(super) fn check_etag(&self, answer: &Response, want: &str) -> Result<(), S3Error> {
        let etag = etag_of(answer);
        if etag.eq_ignore_ascii_case(want) { Ok(()) } else { Err(self.damaged(etag)) }
    }

    pub(super) fn damaged(&self, etag: String) -> S3Error {
        S3Error::Damaged { host: self.host.clone(), etag }
    }

    /// The board's best knowledge of the time, which the signature needs.
    fn now(&self) -> jiff::Timestamp {
        let stamp = self.clock.stamp();
        jiff::Timestamp::from_microsecond(stamp.wall_us).unwrap_or_else(|_| jiff::Timestamp::now())
    }

    /// A verified server's Date tells an untrusted clock the time, also when it refuses the request.
    fn learn_time(&self, answer: &Response) {
        if !self.secure {
            return;
        }
        let date = answer.headers().get(header::DATE).and_then(|date| date.to_str().ok());
        let Some(date) = date.and_then(parse_http_date) else { return };
        self.clock.observe(date, "s3");
    }

    fn unreachable(&self, error: &reqwest::Error) -> S3Error {
        S3Error::Unreachable { host: self.host.clone(), problem: tasks::chain(error) }
    }

    async fn refused(&self, answer: Response) -> S3Error {
        let status = answer.status().as_u16();
        let code = error_code(&self.text(answer).await.unwrap_or_default());
        if matches!(code.as_str(), "ExpiredToken" | "InvalidAccessKeyId" | "InvalidToken") {
            self.keys.forget().await;
        }
        self.refusal(status, code)
    }

    pub(super) fn refusal(&self, status: u16, code: String) -> S3Error {
        S3Error::Refused { host: self.host.clone(), bucket: self.bucket.name().to_owned(), status, code }
    }
}

/// The code in an S3 error's body. Looks for the one element it needs: an error page of a proxy is no XML at all.
pub(super) fn error_code(text: &str) -> String {
    let code = text.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>")).map_or("", |(code, _)| code);
    code.chars().filter(char::is_ascii_alphanumeric).take(64).collect()
}

pub(super) fn etag_of(answer: &Response) -> String {
    let etag = answer.headers().get(header::ETAG).and_then(|etag| etag.to_str().ok()).unwrap_or_default();
    etag.trim_matches('"').chars().take(64).collect()
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An HTTP date (RFC 9110 section 5.6.7, the preferred form) in µs.
fn parse_http_date(text: &str) -> Option<i64> {
    jiff::fmt::rfc2822::parse(text).ok().map(|time| time.timestamp().as_microsecond())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_dates() {
        assert_eq!(parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777_000_000));
        assert_eq!(parse_http_date("yesterday"), None);
    }

    #[test]
    fn codes_of_errors() {
        assert_eq!(error_code("<?xml?><Error><Code>NoSuchBucket</Code></Error>"), "NoSuchBucket");
        assert_eq!(error_code("<Code>\u{1b}[31mX</Code>"), "31mX");
        assert_eq!(error_code("<html>Bad gateway</html>"), "");
    }
}
