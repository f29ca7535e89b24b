//! A command's way to the container engine: the running agent's socket, or, with none running, the same routes served by
//! this process to itself (`engine_api::OneShot`). What a command does is the same either way.
//!
//! Each request has a connection of its own: a local one costs nothing, and a long stream holds up no other request.

use std::{io, path::PathBuf, sync::Mutex, sync::PoisonError, time::Duration};

use axum::Router;
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full, Limited, combinators::BoxBody};
use hyper::{Request, Response, StatusCode, body::Incoming, client::conn::http1, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::UnixStream, task::JoinSet, time::timeout};

/// Most bytes of an answer that is read whole, and of one line.
const MAX_ANSWER: usize = 64 << 20;
/// A local connection is made at once or never.
const CONNECT: Duration = Duration::from_secs(10);

/// Why the engine did not do it.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Nobody listens.
    #[error("no agent is running (no answer at {path}): start one with `edge-agent run`, or name its --run-dir")]
    NotRunning {
        /// The socket.
        path: PathBuf,
    },
    /// The connection broke.
    #[error("the agent at {path} did not answer: {problem}")]
    Broken {
        /// The socket.
        path: PathBuf,
        /// How.
        problem: String,
    },
    /// It said no.
    #[error("{message}")]
    Refused {
        /// Kind of refusal: `not_found`, `conflict`, …
        code: String,
        /// In words.
        message: String,
        /// What `container run` and `exec` end with.
        exit_code: Option<u8>,
    },
}

impl EngineError {
    /// What `container run` and `exec` end with.
    pub fn exit_code(&self) -> u8 {
        if let Self::Refused { exit_code: Some(code), .. } = self { *code } else { 125 }
    }

    /// Whether the engine answered, and said no.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }

    /// Whether what was named is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { code, .. } if code == "not_found")
    }
}

type Result<T> = std::result::Result<T, EngineError>;
/// What is sent with a request.
pub type Sent = BoxBody<Bytes, io::Error>;

/// Nothing to send.
pub fn nothing() -> Sent {
    Full::new(Bytes::new()).map_err(|never| match never {}).boxed()
}

/// Where requests go.
pub struct Engine {
    place: Place,
    /// Drives the connections, and serves them where that is done here; ends with this.
    tasks: Mutex<JoinSet<()>>,
}

enum Place {
    Socket(PathBuf),
    Here(Router),
}

impl Engine {
    /// The agent that listens at `path`; `NotRunning` where none does.
    pub async fn connect(path: PathBuf) -> Result<Self> {
        let engine = Self { place: Place::Socket(path), tasks: Mutex::default() };
        engine.stream().await?;
        Ok(engine)
    }

    /// Routes that this process serves itself.
    pub fn here(routes: Router) -> Self {
        Self { place: Place::Here(routes), tasks: Mutex::default() }
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    fn path(&self) -> PathBuf {
        match &self.place {
            Place::Socket(path) => path.clone(),
            Place::Here(_) => PathBuf::from("(this command)"),
        }
    }

    fn broken(&self, problem: impl ToString) -> EngineError {
        EngineError::Broken { path: self.path(), problem: problem.to_string() }
    }

    async fn stream(&self) -> Result<UnixStream> {
        let path = match &self.place {
            Place::Socket(path) => path,
            Place::Here(routes) => {
                let (ours, theirs) = UnixStream::pair().map_err(|error| self.broken(error))?;
                self.spawn(crate::http::serve(TokioIo::new(theirs), routes.clone()));
                return Ok(ours);
            }
        };
        let connected = timeout(CONNECT, UnixStream::connect(path)).await;
        connected.map_err(|_| self.broken("it does not accept connections"))?.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                EngineError::NotRunning { path: path.clone() }
            }
            _ => self.broken(error),
        })
    }

    /// One request; an answer other than success or an upgrade is a refusal.
    pub async fn request(&self, request: Request<Sent>) -> Result<Response<Incoming>> {
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(self.stream().await?)).await.map_err(|error| self.broken(error))?;
        self.spawn(async move {
            // A break shows at the request.
            let _ = connection.with_upgrades().await;
        });
        let response = sender.send_request(request).await.map_err(|error| self.broken(root_cause(&error)))?;
        let status = response.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        let body = self.whole(response).await?;
        Err(refusal(status, &body))
    }

    fn build(&self, method: &str, url: &str, kind: &str, body: Sent) -> Result<Request<Sent>> {
        let request = Request::builder().method(method).uri(url).header("host", "agent").header("content-type", kind);
        request.body(body).map_err(|error| self.broken(format!("{url}: {error}")))
    }

    /// Sends JSON, or nothing; the answer is not yet read.
    pub async fn send(&self, method: &str, url: &str, body: Option<&impl Serialize>) -> Result<Response<Incoming>> {
        let body = match body {
            Some(value) => {
                let bytes = serde_json::to_vec(value).map_err(|error| self.broken(error))?;
                Full::new(Bytes::from(bytes)).map_err(|never| match never {}).boxed()
            }
            None => nothing(),
        };
        self.request(self.build(method, url, "application/json", body)?).await
    }

    /// Sends a stream, such as an archive.
    pub async fn upload(&self, method: &str, url: &str, body: Sent) -> Result<Response<Incoming>> {
        self.request(self.build(method, url, "application/x-tar", body)?).await
    }

    async fn whole(&self, response: Response<Incoming>) -> Result<Bytes> {
        let body = Limited::new(response.into_body(), MAX_ANSWER);
        Ok(body.collect().await.map_err(|error| self.broken(error))?.to_bytes())
    }

    /// Reads an answer whole.
    pub async fn value<T: DeserializeOwned>(&self, response: Response<Incoming>) -> Result<T> {
        let body = self.whole(response).await?;
        let body = if body.is_empty() { &b"null"[..] } else { &body };
        serde_json::from_slice(body).map_err(|error| self.broken(format!("its answer is not understood: {error}")))
    }

    /// GET of a value.
    pub async fn get<T: DeserializeOwned>(&self, url: &str) -> Result<T> {
        let response = self.send("GET", url, None::<&()>).await?;
        self.value(response).await
    }

    /// POST of nothing for a value.
    pub async fn post<T: DeserializeOwned>(&self, url: &str) -> Result<T> {
        let response = self.send("POST", url, None::<&()>).await?;
        self.value(response).await
    }

    /// POST of a value for another.
    pub async fn post_value<T: DeserializeOwned>(&self, url: &str, body: &impl Serialize) -> Result<T> {
        let response = self.send("POST", url, Some(body)).await?;
        self.value(response).await
    }

    /// DELETE.
    pub async fn delete<T: DeserializeOwned>(&self, url: &str) -> Result<T> {
        let response = self.send("DELETE", url, None::<&()>).await?;
        self.value(response).await
    }

    /// An answer in lines of JSON.
    pub fn lines(&self, response: Response<Incoming>) -> Lines {
        Lines { body: response.into_body(), rest: BytesMut::new(), path: self.path() }
    }

    /// A connection that carries frames from here on.
    pub async fn upgrade(&self, url: &str, body: Option<&impl Serialize>) -> Result<TokioIo<Upgraded>> {
        let bytes = match body {
            Some(value) => serde_json::to_vec(value).map_err(|error| self.broken(error))?,
            None => Vec::new(),
        };
        let body = Full::new(Bytes::from(bytes)).map_err(|never| match never {}).boxed();
        let mut request = self.build("POST", url, "application/json", body)?;
        for (name, value) in [("connection", "upgrade"), ("upgrade", "frames")] {
            request.headers_mut().insert(name, hyper::header::HeaderValue::from_static(value));
        }
        let response = self.request(request).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(self.broken("it is of another version: no stream was opened"));
        }
        Ok(TokioIo::new(hyper::upgrade::on(response).await.map_err(|error| self.broken(error))?))
    }
}

/// Lines of JSON as they come.
pub struct Lines {
    body: Incoming,
    rest: BytesMut,
    path: PathBuf,
}

impl Lines {
    /// The next value; `None` at the end. A line `{"error": …}` is a refusal.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>> {
        let broken = |problem: String| EngineError::Broken { path: self.path.clone(), problem };
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line = self.rest.split_to(end + 1);
                if let Some(refusal) = refused(&line) {
                    return Err(refusal);
                }
                let value = serde_json::from_slice(&line);
                return value.map(Some).map_err(|error| broken(format!("its answer is not understood: {error}")));
            }
            if self.rest.len() > MAX_ANSWER {
                return Err(broken("a line of its answer is too long".to_owned()));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(broken(root_cause(&error))),
                Some(Ok(frame)) => self.rest.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new())),
            }
        }
    }
}

#[derive(serde::Deserialize)]
struct Told {
    error: ToldError,
}

#[derive(serde::Deserialize)]
#[serde(untagged)]
enum ToldError {
    Full { code: String, message: String, exit_code: Option<u8> },
    Words(String),
}

fn refused(body: &[u8]) -> Option<EngineError> {
    if !body.starts_with(b"{\"error\":") {
        return None;
    }
    Some(match serde_json::from_slice::<Told>(body).ok()?.error {
        ToldError::Full { code, message, exit_code } => EngineError::Refused { code, message, exit_code },
        ToldError::Words(message) => EngineError::Refused { code: "internal".to_owned(), message, exit_code: None },
    })
}

fn refusal(status: StatusCode, body: &[u8]) -> EngineError {
    refused(body).unwrap_or_else(|| {
        let message = match status {
            StatusCode::NOT_FOUND => "this agent has no such request: it is of another version".to_owned(),
            _ => format!("{status} {}", String::from_utf8_lossy(&body[..body.len().min(500)])),
        };
        EngineError::Refused { code: "internal".to_owned(), message, exit_code: None }
    })
}

fn root_cause(error: &hyper::Error) -> String {
    board::tasks::chain(error)
}

/// Percent-encodes a part of a URL.
pub fn encode(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>().replace('+', "%20")
}

/// `?a=b&c=d` of what is there.
pub fn query(pairs: &[(&str, Option<String>)]) -> String {
    let mut text = String::new();
    for (key, value) in pairs {
        if let Some(value) = value {
            text.push(if text.is_empty() { '?' } else { '&' });
            text.push_str(&format!("{key}={}", encode(value)));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_read() {
        let told = br#"{"error":{"code":"not_found","message":"no such image: x","exit_code":125}}"#;
        let error = refusal(StatusCode::NOT_FOUND, told);
        assert!(error.is_not_found() && error.to_string() == "no such image: x" && error.exit_code() == 125);
        let error = refusal(StatusCode::BAD_REQUEST, br#"{"error":"plain words"}"#);
        assert_eq!((error.to_string().as_str(), error.exit_code()), ("plain words", 125));
        assert!(refusal(StatusCode::NOT_FOUND, b"").to_string().contains("another version"));
    }

    #[test]
    fn urls() {
        assert_eq!(encode("a/b c:1"), "a%2Fb%20c%3A1");
        assert_eq!(query(&[("a", Some("1 2".into())), ("b", None), ("c", Some("x".into()))]), "?a=1%202&c=x");
        assert_eq!(query(&[("a", None)]), "");
    }

    #[tokio::test]
    async fn routes_of_ones_own_are_asked_like_an_agent() {
        let routes = Router::new().route("/v1/x", axum::routing::get(|| async { axum::Json(7) })).route(
            "/v1/lines",
            axum::routing::get(|| async { "1\n2\n{\"error\":{\"code\":\"internal\",\"message\":\"m\"}}\n" }),
        );
        let engine = Engine::here(routes);
        assert_eq!(engine.get::<u32>("/v1/x").await.unwrap(), 7);
        assert!(engine.get::<u32>("/v1/none").await.is_err());
        let response = engine.send("GET", "/v1/lines", None::<&()>).await.unwrap();
        let mut lines = engine.lines(response);
        assert_eq!(lines.next::<u32>().await.unwrap(), Some(1));
        assert_eq!(lines.next::<u32>().await.unwrap(), Some(2));
        assert_eq!(lines.next::<u32>().await.unwrap_err().to_string(), "m");
        assert_eq!(lines.next::<u32>().await.unwrap(), None);
    }

    #[tokio::test]
    async fn nobody_there_is_told_from_broken() {
        let dir = tempfile::tempdir().unwrap();
        let missing = Engine::connect(dir.path().join("agent.sock")).await;
        assert!(matches!(missing, Err(EngineError::NotRunning { .. })));
    }
}
