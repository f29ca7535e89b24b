//! `[relay.mqtt]` and `[relay.s3]`, checked.

use std::time::Duration;

use board::tls::ClientFiles;
use telemetry::relay;
use url::Url;

use super::{
    checked::{Wrong, readable, wrong},
    raw,
};

fn url(key: &str, text: &str) -> Result<Url, Wrong> {
    Url::parse(text).or_else(|error| wrong(key, format!("{text:?}: {error}")))
}

pub(super) fn mqtt(raw: raw::RelayMqtt, board: &str) -> Result<Option<relay::mqtt::Options>, Wrong> {
    let Some(text) = raw.url else { return Ok(None) };
    let url = url("relay.mqtt.url", &text)?;
    if url.password().is_some() || !url.username().is_empty() {
        return wrong("relay.mqtt.url", "put user and password into username and password, not into the URL");
    }
    let tls = ClientFiles {
        ca_file: readable("relay.mqtt.ca_file", raw.ca_file)?,
        cert_file: readable("relay.mqtt.cert_file", raw.cert_file)?,
        key_file: readable("relay.mqtt.key_file", raw.key_file)?,
    };
    let options = relay::mqtt::Options {
        url,
        mode: raw.mode,
        prefix: raw.prefix.trim_end_matches('/').to_owned(),
        qos: raw.qos,
        tls,
        username: raw.username,
        password: raw.password.map(relay::mqtt::Secret),
        bandwidth: raw.bandwidth.map(|size| size.0),
        inflight: raw.inflight,
        downlink: raw.downlink,
        board: board.to_owned(),
    };
    match options.check() {
        Ok(()) => Ok(Some(options)),
        Err(error) => wrong(&format!("relay.mqtt.{}", error.key), error.problem),
    }
}

pub(super) fn s3(raw: raw::RelayS3, board: &str) -> Result<Option<relay::s3::Options>, Wrong> {
    let Some(text) = raw.endpoint else { return Ok(None) };
    let endpoint = url("relay.s3.endpoint", &text)?;
    if !matches!(endpoint.scheme(), "http" | "https" | "file") {
        return wrong("relay.s3.endpoint", "write it like https://s3.example.org, or file:///folder for a stand-in");
    }
    if raw.bucket.is_empty() || raw.bucket.contains('/') {
        return wrong("relay.s3.bucket", "name the bucket");
    }
    let credentials = match (raw.access_key_id, raw.secret_access_key, raw.credentials_file) {
        (Some(key), Some(secret), None) => relay::s3::Credentials::Static { key, secret },
        (None, None, Some(path)) => relay::s3::Credentials::File(path),
        (None, None, None) => relay::s3::Credentials::Environment,
        (_, _, Some(_)) => return wrong("relay.s3.credentials_file", "and access_key_id exclude each other"),
        (Some(_), None, None) => return wrong("relay.s3.access_key_id", "needs secret_access_key"),
        (None, Some(_), None) => return wrong("relay.s3.secret_access_key", "needs access_key_id"),
    };
    if !(64 << 10..=8 << 20).contains(&raw.flush_bytes.0) {
        return wrong("relay.s3.flush_bytes", "from 64KiB to 8MiB: an object is built in memory");
    }
    if !(Duration::from_secs(1)..=Duration::from_secs(86_400)).contains(&raw.flush_interval.0) {
        return wrong("relay.s3.flush_interval", "from 1s to 1d");
    }
    let ca_file = readable("relay.s3.ca_file", raw.ca_file)?;
    Ok(Some(relay::s3::Options {
        endpoint,
        bucket: raw.bucket,
        prefix: raw.prefix.trim_matches('/').to_owned(),
        region: raw.region,
        credentials,
        tls: ClientFiles { ca_file, ..ClientFiles::default() },
        flush_interval: raw.flush_interval.0,
        flush_bytes: usize::try_from(raw.flush_bytes.0).unwrap_or(1 << 20),
        bandwidth: raw.bandwidth.map(|size| size.0),
        board: board.to_owned(),
    }))
}
