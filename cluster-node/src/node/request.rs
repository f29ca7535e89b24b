//! Requests whose answers are small: what was written is known already, so of an object only its metadata comes back, in
//! Kubernetes' binary form; and whole objects where they are wanted.
//!
//! Elsewhere: the connection (`api`).

use board::tasks::chain;
use http_body_util::{BodyExt, Limited};
use hyper::{
    Request, Response,
    header::{ACCEPT, CONTENT_TYPE, DATE},
};
use k8s_openapi::serde::de::DeserializeOwned;
use kube::{
    Error,
    client::Body as Bytes,
    core::{Status, response::StatusSummary},
};
use prost::Message;
use serde_json::Value;

use crate::api::Api;

/// Largest answer that is read, bytes: etcd holds no larger object than 1.5 MB.
const MAX_ANSWER: usize = 4 << 20;
/// Longest message of a refusal, bytes.
const MAX_MESSAGE: usize = 1024;
/// Metadata alone, binary.
const QUIET: &str = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
const JSON: &str = "application/json";
/// In front of everything in Kubernetes' binary form.
const MAGIC: &[u8] = b"k8s\0";

/// What is sent.
#[derive(Debug, Clone)]
pub enum Body {
    /// Nothing.
    None,
    /// A whole object.
    Json(Value),
    /// A JSON merge patch.
    Merge(Value),
    /// A strategic merge patch.
    Strategic(Value),
}

impl Body {
    fn content_type(&self) -> &'static str {
        match self {
            Self::None | Self::Json(_) => JSON,
            Self::Merge(_) => "application/merge-patch+json",
            Self::Strategic(_) => "application/strategic-merge-patch+json",
        }
    }

    fn bytes(self) -> Result<Vec<u8>, Error> {
        match self {
            Self::None => Ok(Vec::new()),
            Self::Json(value) | Self::Merge(value) | Self::Strategic(value) => {
                serde_json::to_vec(&value).map_err(Error::SerdeError)
            }
        }
    }
}

/// The time by the server's clock, µs since 1970, where it told.
pub type ServerTime = Option<i64>;

/// Does something, and hears no more of it than that it was done.
pub async fn quietly(api: &Api, method: &str, path: &str, body: Body) -> Result<ServerTime, Error> {
    let (time, _) = ask(api, method, path, body, QUIET).await?;
    Ok(time)
}

/// Does something, or nothing, and hears what the object is now.
pub async fn whole<K: DeserializeOwned>(api: &Api, method: &str, path: &str, body: Body) -> Result<K, Error> {
    let (_, bytes) = ask(api, method, path, body, JSON).await?;
    serde_json::from_slice(&bytes).map_err(Error::SerdeError)
}

async fn ask(
    api: &Api,
    method: &str,
    path: &str,
    body: Body,
    accept: &'static str,
) -> Result<(ServerTime, Vec<u8>), Error> {
    let mut request = Request::builder().method(method).uri(path).header(ACCEPT, accept);
    if !matches!(body, Body::None) {
        request = request.header(CONTENT_TYPE, body.content_type());
    }
    let request = request.body(Bytes::from(body.bytes()?)).map_err(Error::HttpError)?;
    let answer = api.client().send(request).await?;
    let time = time_of(&answer);
    let code = answer.status().as_u16();
    let read = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
    let bytes = read.map_err(Error::Service)?.to_bytes().to_vec();
    if (200..300).contains(&code) { Ok((time, bytes)) } else { Err(Error::Api(Box::new(refusal(code, &bytes)))) }
}

fn time_of<B>(answer: &Response<B>) -> ServerTime {
    let text = answer.headers().get(DATE)?.to_str().ok()?;
    Some(jiff::fmt::rfc2822::parse(text).ok()?.timestamp().as_microsecond())
}

/// What binary answers are wrapped in.
#[derive(Clone, PartialEq, Message)]
struct Envelope {
    #[prost(bytes = "vec", tag = "2")]
    raw: Vec<u8>,
}

/// `meta.v1.Status`, as far as it is told on.
#[derive(Clone, PartialEq, Message)]
struct BinaryStatus {
    #[prost(string, optional, tag = "3")]
    message: Option<String>,
    #[prost(string, optional, tag = "4")]
    reason: Option<String>,
}

/// What the server says of a request that it does not do.
fn refusal(code: u16, body: &[u8]) -> Status {
    let read = match body.strip_prefix(MAGIC) {
        Some(binary) => Envelope::decode(binary)
            .and_then(|envelope| BinaryStatus::decode(envelope.raw.as_slice()))
            .map(|it| (it.message.unwrap_or_default(), it.reason.unwrap_or_default()))
            .ok(),
        None => serde_json::from_slice::<Status>(body).map(|it| (it.message, it.reason)).ok(),
    };
    let (mut message, mut reason) = read.unwrap_or_else(|| (format!("HTTP status {code}"), String::new()));
    for text in [&mut message, &mut reason] {
        let end = (0..=text.len().min(MAX_MESSAGE)).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
    }
    Status { status: Some(StatusSummary::Failure), code, message, reason, metadata: None, details: None }
}

/// A failure in one line: the server's own words where there are any.
pub fn words(error: &Error) -> String {
    match error {
        Error::Api(status) => format!("{} ({})", status.message, status.code),
        error => chain(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_understood_in_both_forms() {
        let json = br#"{"kind":"Status","status":"Failure","message":"no","reason":"Forbidden","code":403}"#;
        let it = refusal(403, json);
        assert_eq!((it.message.as_str(), it.reason.as_str(), it.code), ("no", "Forbidden", 403));
        let status = BinaryStatus { message: Some("nein".into()), reason: Some("Gone".into()) };
        let mut binary = MAGIC.to_vec();
        binary.extend(Envelope { raw: status.encode_to_vec() }.encode_to_vec());
        let it = refusal(410, &binary);
        assert_eq!((it.message.as_str(), it.reason.as_str()), ("nein", "Gone"));
        for odd in [&b""[..], b"k8s\0\xff\xff\xff", b"<html>", b"k8s\0"] {
            assert_eq!(refusal(500, odd).code, 500);
        }
        let long = format!(r#"{{"message":"{}"}}"#, "ü".repeat(4000));
        assert!(refusal(500, long.as_bytes()).message.len() <= MAX_MESSAGE);
    }
}
