//! For tests: an API server that answers as it is told, without a network. The real one is in the project's `tests/`.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use board::clock::Clock;
use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{Request, Response, body::Frame};
use kube::client::Body;
use serde_json::{Value, json};
use store::state::State;
use tokio::sync::mpsc;

use super::{Cache, Connection, Objects};

type Failed = Box<dyn std::error::Error + Send + Sync>;
type Answer = UnsyncBoxBody<Bytes, Failed>;
type Watchers = Vec<(String, mpsc::UnboundedSender<Bytes>)>;

/// What it has and what it was asked.
#[derive(Default)]
pub struct Script {
    /// Answers by the beginning of `METHOD PATH?QUERY`: status and body. Longer ones win.
    pub answers: BTreeMap<String, (u16, Value)>,
    /// `METHOD PATH?QUERY`, in order.
    pub asked: Vec<String>,
    watchers: Watchers,
}

/// The server.
#[derive(Clone, Default)]
pub struct Server {
    pub script: Arc<Mutex<Script>>,
    pub is_down: Arc<AtomicBool>,
}

impl Server {
    pub fn answer(&self, request: &str, status: u16, body: Value) {
        self.script.lock().unwrap().answers.insert(request.to_owned(), (status, body));
    }

    /// A list with these, for a watch of one name.
    pub fn has(&self, path: &str, version: &str, items: &[Value]) {
        let list = json!({ "kind": "List", "apiVersion": "v1", "metadata": { "resourceVersion": version },
            "items": items });
        self.answer(&format!("GET {path}"), 200, list);
    }

    pub fn asked(&self, part: &str) -> usize {
        self.script.lock().unwrap().asked.iter().filter(|it| it.contains(part)).count()
    }

    /// Sends an event to all watches whose request contains `part`; how many.
    pub fn send(&self, part: &str, kind: &str, object: &Value) -> usize {
        let line = json!({ "type": kind, "object": object }).to_string() + "\n";
        let mut script = self.script.lock().unwrap();
        script.watchers.retain(|(_, to)| !to.is_closed());
        let to = script.watchers.iter().filter(|(request, _)| request.contains(part));
        to.filter(|(_, to)| to.send(Bytes::from(line.clone())).is_ok()).count()
    }

    fn respond(&self, request: &Request<Body>) -> Result<Response<Answer>, Failed> {
        if self.is_down.load(Ordering::SeqCst) {
            return Err("the link is down".into());
        }
        let words = format!("{} {}", request.method(), request.uri().path_and_query().unwrap());
        let mut script = self.script.lock().unwrap();
        script.asked.push(words.clone());
        if words.contains("watch=true") {
            let (to, from) = mpsc::unbounded_channel::<Bytes>();
            script.watchers.push((words, to));
            let lines = futures_util::stream::unfold(from, |mut from| async move { Some((from.recv().await?, from)) });
            let frames = lines.map(|line| Ok::<_, std::io::Error>(Frame::data(line)));
            return Ok(Response::new(StreamBody::new(frames).map_err(Failed::from).boxed_unsync()));
        }
        let found = script.answers.iter().filter(|(start, _)| words.starts_with(start.as_str()));
        let (status, body) = found.max_by_key(|(start, _)| start.len()).map_or_else(
            || (404, json!({ "kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound", "message": "none" })),
            |(_, answer)| answer.clone(),
        );
        Ok(Response::builder()
            .status(status)
            .body(Full::new(Bytes::from(body.to_string())).map_err(Failed::from).boxed_unsync())?)
    }
}

pub fn refusal(code: u16) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code,
        "reason": "No", "message": "refused for the test" })
}

impl tower::Service<Request<Body>> for Server {
    type Response = Response<Answer>;
    type Error = Failed;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let answer = self.respond(&request);
        Box::pin(async move { answer })
    }
}

impl Connection for Server {
    fn client(&self) -> kube::Client {
        kube::Client::new(self.clone(), "default")
    }

    fn is_down(&self) -> bool {
        self.is_down.load(Ordering::SeqCst)
    }
}

/// Objects on a store of their own.
pub struct Bench {
    pub dir: tempfile::TempDir,
    pub server: Server,
    pub state: State,
    pub clock: (Clock, board::clock::ManualClock),
}

/// Some time in 2025.
pub const NOW_US: i64 = 1_760_000_000_000_000;

impl Bench {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("identity")).unwrap();
        let (state, _) = State::open(&dir.path().join("state")).unwrap();
        Self { dir, server: Server::default(), state, clock: Clock::manual(NOW_US, true) }
    }

    pub fn cache(&self) -> Cache {
        Cache::open(self.state.clone(), &self.dir.path().join("identity")).unwrap()
    }

    /// As after a start of the agent.
    pub fn objects(&self) -> Objects {
        Objects::new(Arc::new(self.server.clone()), self.cache(), self.clock.0.clone())
    }
}
