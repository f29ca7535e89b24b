//! Large objects, part by part: each part is streamed, hashed on its way, and compared with what the server stored.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::{Stream, StreamExt};
use md5::{Digest, Md5};
use reqwest::{Body, Method, header};
use rusty_s3::actions::{
    AbortMultipartUpload, CompleteMultipartUpload, CompleteMultipartUploadResponse, CreateMultipartUpload, UploadPart,
};

use bytes::Bytes;

use super::{
    S3, S3Error,
    client::{error_code, etag_of, hex},
};

/// Which part of which upload.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    /// Object.
    pub name: &'a str,
    /// The server's name of the upload.
    pub upload_id: &'a str,
    /// From 1 to 10,000.
    pub number: u16,
    /// Bytes.
    pub length: u64,
}

impl S3 {
    /// Begins an upload; returns the server's name for it.
    pub async fn begin(&self, name: &str) -> Result<String, S3Error> {
        let keys = self.keys().await?;
        let action = CreateMultipartUpload::new(&self.bucket, Some(&keys), name);
        let text = self.text(self.send(self.request(Method::POST, &action)).await?).await?;
        CreateMultipartUpload::parse_response(&text)
            .map(|answer| answer.upload_id().to_owned())
            .map_err(|_| self.refusal(200, "without an upload id".into()))
    }

    /// Sends one part, which `body` yields in pieces; returns its `ETag`, the MD5 of what was sent.
    pub async fn send_part<B>(&self, part: Part<'_>, body: B) -> Result<String, S3Error>
    where
        B: Stream<Item = io::Result<Bytes>> + Send + 'static,
    {
        let keys = self.keys().await?;
        let action = UploadPart::new(&self.bucket, Some(&keys), part.name, part.number, part.upload_id);
        let hash = Arc::new(Mutex::new(Md5::new()));
        let hashing = hash.clone();
        let body = body.inspect(move |piece| {
            if let Ok(piece) = piece {
                hashing.lock().unwrap_or_else(PoisonError::into_inner).update(piece);
            }
        });
        let request = self.request(Method::PUT, &action).header(header::CONTENT_LENGTH, part.length);
        let answer = self.send(request.body(Body::wrap_stream(body))).await?;
        let sent = hex(&hash.lock().unwrap_or_else(PoisonError::into_inner).clone().finalize());
        self.check_etag(&answer, &sent)?;
        Ok(sent)
    }

    /// Makes the parts one object, and checks that it is them.
    pub async fn complete(&self, name: &str, upload_id: &str, etags: &[String]) -> Result<(), S3Error> {
        let keys = self.keys().await?;
        let action =
            CompleteMultipartUpload::new(&self.bucket, Some(&keys), name, upload_id, etags.iter().map(String::as_str));
        let request = self.request(Method::POST, &action);
        let answer = self.send(request.body(action.body())).await?;
        let text = self.text(answer).await?;
        // S3 may answer 200 and tell of a failure in the body.
        let answer = CompleteMultipartUploadResponse::parse(&text)
            .map_err(|_| self.refusal(200, format!("with the error {}", error_code(&text))))?;
        let etag = answer.etag().trim_matches('"').to_owned();
        if etag == whole_etag(etags) { Ok(()) } else { Err(self.damaged(etag)) }
    }

    /// Gives an upload up, so that its parts take no more room.
    pub async fn abort(&self, name: &str, upload_id: &str) -> Result<(), S3Error> {
        let keys = self.keys().await?;
        let action = AbortMultipartUpload::new(&self.bucket, Some(&keys), name, upload_id);
        self.send(self.request(Method::DELETE, &action)).await.map(|answer| drop(etag_of(&answer)))
    }
}

/// The `ETag` of an object of these parts: the MD5 of their MD5s, and their number.
pub fn whole_etag(etags: &[String]) -> String {
    let mut hash = Md5::new();
    for etag in etags {
        let bytes: Vec<u8> =
            (0..etag.len() / 2).filter_map(|n| u8::from_str_radix(etag.get(2 * n..2 * n + 2)?, 16).ok()).collect();
        hash.update(bytes);
    }
    format!("{}-{}", hex(&hash.finalize()), etags.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_etag_of_a_whole() {
        // What Ceph 16 and AWS answer for two parts "hello " and "world".
        let parts = [hex(&Md5::digest(b"hello ")), hex(&Md5::digest(b"world"))];
        let want = hex(&Md5::digest([Md5::digest(b"hello "), Md5::digest(b"world")].concat()));
        assert_eq!(whole_etag(&parts), format!("{want}-2"));
    }
}
