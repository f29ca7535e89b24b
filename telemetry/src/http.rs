//! Readings by HTTP: `POST /v1/telemetry/TOPIC`, 204 when they are on disk.
//!
//! | content type | readings |
//! |---|---|
//! | `application/x-ndjson` | one a line |
//! | `application/senml+json`, `application/senml+cbor` | one, the whole pack; checked that it is SenML |
//! | anything else | one, the body as it is |
//!
//! Every refusal is JSON, `{"error": …, "hint": …}`, and is counted.

use std::sync::Arc;

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use board::metrics::Metrics;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};
use tokio::sync::Semaphore;

use crate::{decode, ingest::Ingest, outbox::PutError, reading::NewReading, topic};

/// Readings of one NDJSON body.
const MAX_LINES: usize = 10_000;

/// How readings are taken.
#[derive(Debug, Clone)]
pub struct Options {
    /// Largest body, bytes.
    pub max_body: usize,
    /// Bodies held at the same time.
    pub max_requests: usize,
    /// With any, a request must carry one as a bearer token.
    pub tokens: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self { max_body: 1 << 20, max_requests: 8, tokens: Vec::new() }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Status {
    status: u16,
}

#[derive(Clone)]
struct Shared {
    ingest: Ingest,
    requests: Arc<Semaphore>,
    tokens: Arc<[String]>,
    refused: Family<Status, Counter>,
}

/// The routes; the caller serves them.
pub fn router(ingest: Ingest, options: &Options, metrics: &Metrics) -> Router {
    let refused: Family<Status, Counter> = Family::default();
    metrics.register(|registry| {
        registry.register("http_refused", "Requests with readings that were refused", refused.clone());
    });
    let shared = Shared {
        ingest,
        requests: Arc::new(Semaphore::new(options.max_requests)),
        tokens: options.tokens.clone().into(),
        refused,
    };
    Router::new()
        .route("/v1/telemetry/{*topic}", post(take))
        .layer(DefaultBodyLimit::max(options.max_body))
        .with_state(shared)
}

struct Refused(StatusCode, String, &'static str);

async fn take(
    State(shared): State<Shared>,
    Path(topic): Path<String>,
    headers: HeaderMap,
    body: Result<Bytes, axum::extract::rejection::BytesRejection>,
) -> Response {
    let Err(Refused(status, error, hint)) = accept(&shared, topic, &headers, body).await else {
        return StatusCode::NO_CONTENT.into_response();
    };
    shared.refused.get_or_create(&Status { status: status.as_u16() }).inc();
    let mut response = (status, Json(serde_json::json!({ "error": error, "hint": hint }))).into_response();
    let extra = match status {
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => Some((header::RETRY_AFTER, "5")),
        StatusCode::UNAUTHORIZED => Some((header::WWW_AUTHENTICATE, "Bearer")),
        _ => None,
    };
    if let Some((name, value)) = extra {
        response.headers_mut().insert(name, header::HeaderValue::from_static(value));
    }
    response
}

async fn accept(
    shared: &Shared,
    topic: String,
    headers: &HeaderMap,
    body: Result<Bytes, axum::extract::rejection::BytesRejection>,
) -> Result<(), Refused> {
    authorize(shared, headers)?;
    let Ok(_turn) = shared.requests.try_acquire() else {
        let error = "too many requests with readings at the same time".to_owned();
        return Err(Refused(StatusCode::TOO_MANY_REQUESTS, error, "send again a little later"));
    };
    let body = body.map_err(|error| {
        Refused(error.status(), error.body_text(), "send less at once, or a large file with `edge-agent upload`")
    })?;
    topic::check_name(&topic)
        .map_err(|error| Refused(StatusCode::BAD_REQUEST, error.to_string(), "name one topic in the URL"))?;
    if topic.starts_with('$') {
        let error = format!("topic {topic:?} is reserved");
        return Err(Refused(StatusCode::BAD_REQUEST, error, "choose a topic that does not start with $"));
    }
    let readings = split(topic, headers, body)?;
    shared.ingest.submit(readings).await.map(drop).map_err(|error| match error {
        PutError::TooLarge(text) => Refused(StatusCode::PAYLOAD_TOO_LARGE, text, "send less at once"),
        PutError::Full(text) | PutError::Disk(text) => {
            Refused(StatusCode::SERVICE_UNAVAILABLE, text, "nothing was stored; send again later")
        }
        PutError::Closed => {
            Refused(StatusCode::SERVICE_UNAVAILABLE, error.to_string(), "the agent stops; send again later")
        }
    })
}

fn authorize(shared: &Shared, headers: &HeaderMap) -> Result<(), Refused> {
    if shared.tokens.is_empty() {
        return Ok(());
    }
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let known = given.is_some_and(|given| {
        shared.tokens.iter().any(|token| crate::mqtt::auth::Password::Plain(token.clone()).is(given))
    });
    if known {
        return Ok(());
    }
    let error = "a bearer token of http.tokens is needed".to_owned();
    Err(Refused(StatusCode::UNAUTHORIZED, error, "send `Authorization: Bearer TOKEN`"))
}

fn split(topic: String, headers: &HeaderMap, body: Bytes) -> Result<Vec<NewReading>, Refused> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let bad = |error: &str, hint| Refused(StatusCode::BAD_REQUEST, error.to_owned(), hint);
    match kind.as_str() {
        "application/x-ndjson" => {
            let lines = body.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
            let payloads: Vec<_> = lines.take(MAX_LINES + 1).map(|line| body.slice_ref(line)).collect();
            if payloads.is_empty() || payloads.len() > MAX_LINES {
                return Err(bad(
                    "the body has no line, or more than 10000",
                    "send up to 10000 lines, one reading each",
                ));
            }
            Ok(payloads.into_iter().map(|payload| NewReading { topic: topic.clone(), payload }).collect())
        }
        "application/senml+json" | "application/senml+cbor" if decode::senml(&body, 0).is_none() => {
            Err(bad("the body is not SenML", "see RFC 8428, or send it as application/octet-stream"))
        }
        _ => Ok(vec![NewReading { topic, payload: body }]),
    }
}
