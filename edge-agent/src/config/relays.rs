//! `[relay.mqtt]` and `[relay.s3]`, checked.

use std::{path::Path, time::Duration};

use board::throttle::Throttle;
use board::tls::ClientFiles;
use telemetry::{relay, s3};
use url::Url;

use super::{
    checked::{Wrong, readable, wrong},
    raw,
};

/// Names of objects are up to 1024 bytes long; what follows the prefix is well below 512.
const MAX_PREFIX: usize = 512;

fn url(key: &str, text: &str) -> Result<Url, Wrong> {
    Url::parse(text).or_else(|error| wrong(key, format!("{text:?}: {error}")))
}

/// A relay that is off; not meant so where keys are set that say nothing without `needed`.
fn off<T>(section: &str, needed: &str, given: &[(&str, bool)]) -> Result<Option<T>, Wrong> {
    match given.iter().find(|(_, is_given)| *is_given) {
        Some((key, _)) => {
            wrong(&format!("{section}.{key}"), format!("needs {section}.{needed}; without it nothing is sent"))
        }
        None => Ok(None),
    }
}

pub(super) fn mqtt(raw: raw::RelayMqtt, board: &str) -> Result<Option<relay::mqtt::Options>, Wrong> {
    let Some(text) = raw.url else {
        let given = [
            ("ca_file", raw.ca_file.is_some()),
            ("cert_file", raw.cert_file.is_some()),
            ("username", raw.username.is_some()),
        ];
        return off("relay.mqtt", "url", &given);
    };
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
    let Some(text) = raw.endpoint.clone() else {
        // Keys alone are no mistake: an environment may hold them for more than one program.
        return off("relay.s3", "endpoint", &[("bucket", !raw.bucket.is_empty())]);
    };
    let endpoint = url("relay.s3.endpoint", &text)?;
    if !matches!(endpoint.scheme(), "http" | "https" | "file") {
        return wrong("relay.s3.endpoint", "write it like https://s3.example.org, or file:///folder for a stand-in");
    }
    if endpoint.password().is_some() || !endpoint.username().is_empty() {
        return wrong("relay.s3.endpoint", "put the keys into access_key_id and secret_access_key, not into the URL");
    }
    if raw.prefix.len() > MAX_PREFIX {
        return wrong("relay.s3.prefix", "up to 512 bytes: names of objects have 1024 at the most");
    }
    if raw.bucket.is_empty() || raw.bucket.contains('/') {
        return wrong("relay.s3.bucket", "name the bucket");
    }
    let credentials = credentials(&raw, &endpoint, board)?;
    if !(64 << 10..=8 << 20).contains(&raw.flush_bytes.0) {
        return wrong("relay.s3.flush_bytes", "from 64KiB to 8MiB: an object is built in memory");
    }
    if !(Duration::from_secs(1)..=Duration::from_secs(86_400)).contains(&raw.flush_interval.0) {
        return wrong("relay.s3.flush_interval", "from 1s to 1d");
    }
    let ca_file = readable("relay.s3.ca_file", raw.ca_file)?;
    Ok(Some(relay::s3::Options {
        target: s3::Options {
            endpoint,
            bucket: raw.bucket,
            region: raw.region,
            credentials,
            tls: ClientFiles { ca_file, ..ClientFiles::default() },
        },
        prefix: raw.prefix.trim_matches('/').to_owned(),
        flush_interval: raw.flush_interval.0,
        flush_bytes: usize::try_from(raw.flush_bytes.0).unwrap_or(1 << 20),
        throttle: Throttle::new(raw.bandwidth.map(|size| size.0)),
        board: board.to_owned(),
    }))
}

/// Keys by name, from a file, in exchange for a token, or from the environment; the first two and the third exclude each
/// other.
fn credentials(raw: &raw::RelayS3, endpoint: &Url, board: &str) -> Result<s3::Credentials, Wrong> {
    let by_name = match (raw.access_key_id.clone(), raw.secret_access_key.clone()) {
        (Some(key), Some(secret)) => Some(s3::Credentials::Static { key, secret }),
        (None, None) => None,
        (Some(_), None) => return wrong("relay.s3.access_key_id", "needs secret_access_key"),
        (None, Some(_)) => return wrong("relay.s3.secret_access_key", "needs access_key_id"),
    };
    let from_file = raw.credentials_file.clone().map(s3::Credentials::File);
    let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let keys_in_env = env("AWS_ACCESS_KEY_ID").is_some();
    let unset = by_name.is_none() && from_file.is_none();
    // What Kubernetes sets for a pod with a web identity counts where nothing else is said.
    let from_env = |name| if unset && !keys_in_env { env(name) } else { None };
    let token_file = raw.web_identity_token_file.clone();
    let token_file = token_file.or_else(|| from_env("AWS_WEB_IDENTITY_TOKEN_FILE").map(Into::into));
    let by_token = match (token_file, raw.role_arn.clone().or_else(|| from_env("AWS_ROLE_ARN"))) {
        (Some(token_file), Some(role_arn)) => {
            let sts = raw.sts_endpoint.as_deref().map(|text| url("relay.s3.sts_endpoint", text)).transpose()?;
            let sts = sts.unwrap_or_else(|| endpoint.clone());
            let session = board.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
            Some(s3::Credentials::WebIdentity(s3::WebIdentity { token_file, role_arn, sts, session }))
        }
        (Some(_), None) => return wrong("relay.s3.web_identity_token_file", "needs role_arn"),
        (None, _) if raw.role_arn.is_some() => return wrong("relay.s3.role_arn", "needs web_identity_token_file"),
        (None, _) => None,
    };
    match (by_name, from_file, by_token) {
        (Some(keys), None, None) | (None, Some(keys), None) | (None, None, Some(keys)) => Ok(keys),
        (None, None, None) => Ok(s3::Credentials::Environment),
        (Some(_), _, _) => wrong("relay.s3.access_key_id", "excludes credentials_file and web_identity_token_file"),
        (None, _, _) => wrong("relay.s3.credentials_file", "excludes web_identity_token_file"),
    }
}

/// Large files go where the readings go.
pub(super) fn uploads(
    relay: Option<&relay::s3::Options>,
    part_bytes: u64,
    spool: &Path,
) -> Result<Option<telemetry::uploads::Options>, Wrong> {
    if !(5 << 20..=1 << 30).contains(&part_bytes) {
        return wrong("uploads.part_bytes", "from 5MiB, the least that S3 takes, to 1GiB");
    }
    Ok(relay.map(|relay| telemetry::uploads::Options {
        target: relay.target.clone(),
        prefix: relay.prefix.clone(),
        board: relay.board.clone(),
        spool: spool.to_owned(),
        part_bytes,
        throttle: relay.throttle.clone(),
    }))
}
