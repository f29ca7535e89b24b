//! Readings by HTTP: `POST /v1/telemetry/TOPIC`, 204 when they are on disk.
//!
//! | content type | readings |
//! |---|---|
//! | `application/x-ndjson` | one a line |
//! | `application/senml+json`, `application/senml+cbor` | one, the whole pack; checked that it is SenML |
//! | anything else | one, the body as it is |
//!
//! Every refusal is JSON, `{"error": …, "hint": …}`, and is counted. Who may not write is told before a byte of the body
//! is read, and no more bodies than `max_requests` are in memory at the same time.

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Path, Request, State, rejection::PathRejection},
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
const NAME_A_TOPIC: &str = "name one topic in the URL, as in POST /v1/telemetry/lab/temperature";

/// How readings are taken.
#[derive(Debug, Clone)]
pub struct Options {
    /// Largest body, bytes.
    pub max_body: usize,
    /// Bodies held at the same time; one more is told to come again.
    pub max_requests: usize,
    /// A body must have come by then.
    pub patience: Duration,
    /// With any, a request must carry one as a bearer token.
    pub tokens: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self { max_body: 1 << 20, max_requests: 8, patience: Duration::from_secs(20), tokens: Vec::new() }
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
    max_body: usize,
    patience: Duration,
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
        max_body: options.max_body,
        patience: options.patience,
        tokens: options.tokens.clone().into(),
        refused,
    };
    Router::new()
        .route("/v1/telemetry/{*topic}", post(take).fallback(only_post))
        .route("/v1/telemetry/", post(no_topic).fallback(only_post))
        .route("/v1/telemetry", post(no_topic).fallback(only_post))
        .with_state(shared)
}

struct Refused(StatusCode, String, &'static str);

/// The form of every refusal.
pub fn refusal(status: StatusCode, error: &str, hint: &str) -> Response {
    (status, Json(serde_json::json!({ "error": error, "hint": hint }))).into_response()
}

impl Shared {
    fn refuse(&self, Refused(status, error, hint): &Refused) -> Response {
        self.refused.get_or_create(&Status { status: status.as_u16() }).inc();
        let mut response = refusal(*status, error, hint);
        let extra = match *status {
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => Some((header::RETRY_AFTER, "5")),
            StatusCode::UNAUTHORIZED => Some((header::WWW_AUTHENTICATE, "Bearer")),
            StatusCode::METHOD_NOT_ALLOWED => Some((header::ALLOW, "POST")),
            // What is left of the body is not read.
            StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT => Some((header::CONNECTION, "close")),
            _ => None,
        };
        if let Some((name, value)) = extra {
            response.headers_mut().insert(name, header::HeaderValue::from_static(value));
        }
        response
    }
}

async fn only_post(State(shared): State<Shared>) -> Response {
    let error = "readings are sent with POST".to_owned();
    let hint = "to read them back, use `edge-agent telemetry query`";
    shared.refuse(&Refused(StatusCode::METHOD_NOT_ALLOWED, error, hint))
}

async fn no_topic(State(shared): State<Shared>) -> Response {
    shared.refuse(&Refused(StatusCode::BAD_REQUEST, "the topic is empty".to_owned(), NAME_A_TOPIC))
}

async fn take(State(shared): State<Shared>, topic: Result<Path<String>, PathRejection>, request: Request) -> Response {
    match accept(&shared, topic, request).await {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(refused) => shared.refuse(&refused),
    }
}

async fn accept(shared: &Shared, topic: Result<Path<String>, PathRejection>, request: Request) -> Result<(), Refused> {
    let (head, body) = request.into_parts();
    authorize(shared, &head.headers)?;
    let topic = checked(topic)?;
    let Ok(_turn) = shared.requests.try_acquire() else {
        let error = "too many requests with readings at the same time".to_owned();
        return Err(Refused(StatusCode::TOO_MANY_REQUESTS, error, "send again a little later"));
    };
    let body = read(shared, &head.headers, body).await?;
    let readings = split(topic, &head.headers, body)?;
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

fn checked(topic: Result<Path<String>, PathRejection>) -> Result<String, Refused> {
    let bad = |error: String, hint| Err(Refused(StatusCode::BAD_REQUEST, error, hint));
    let Ok(Path(topic)) = topic else {
        return bad("the topic is not UTF-8".to_owned(), NAME_A_TOPIC);
    };
    if let Err(error) = topic::check_name(&topic) {
        return bad(error.to_string(), NAME_A_TOPIC);
    }
    if topic.starts_with('$') {
        return bad(format!("topic {topic:?} is reserved"), "choose a topic that does not start with $");
    }
    Ok(topic)
}

/// The body, whole, within its limits of size and time.
async fn read(shared: &Shared, headers: &HeaderMap, body: Body) -> Result<Bytes, Refused> {
    let too_large = || {
        let error = format!("the body is over {} bytes (http.max_body)", shared.max_body);
        let hint = "send less at once, or a large file with `edge-agent upload`";
        Refused(StatusCode::PAYLOAD_TOO_LARGE, error, hint)
    };
    let encoded = headers.get(header::CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity");
    if encoded {
        let error = "a body with a content-encoding is not unpacked".to_owned();
        return Err(Refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, error, "send it as it is, without content-encoding"));
    }
    let promised = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if promised.is_some_and(|promised: u64| promised > shared.max_body as u64) {
        return Err(too_large());
    }
    match tokio::time::timeout(shared.patience, axum::body::to_bytes(body, shared.max_body)).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(error)) if board::tasks::chain(&error).contains("length limit") => Err(too_large()),
        Ok(Err(error)) => {
            let error = format!("the body broke off: {}", board::tasks::chain(&error));
            Err(Refused(StatusCode::BAD_REQUEST, error, "nothing was stored; send again"))
        }
        Err(_) => {
            let error = format!("the body did not come within {} s", shared.patience.as_secs());
            Err(Refused(StatusCode::REQUEST_TIMEOUT, error, "nothing was stored; send less at once"))
        }
    }
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
