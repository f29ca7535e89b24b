//! A command's end of the control socket.

use std::{
    io,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, task::JoinSet, time::timeout};

use super::server::PATIENCE;

/// Most bytes of an answer that is read whole.
const MAX_ANSWER: usize = 4 << 20;

/// Why the agent could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no agent is running (no answer at {path}): start one with `edge-agent run`, or name its --run-dir")]
    NotRunning {
        /// The socket.
        path: PathBuf,
    },
    /// It broke off, or took too long.
    #[error("the agent at {path} did not answer: {problem}")]
    Broken {
        /// The socket.
        path: PathBuf,
        /// How.
        problem: String,
    },
    /// It said no.
    #[error("{0}")]
    Refused(String),
}

/// One connection to the agent.
pub struct Client {
    path: PathBuf,
    sender: http1::SendRequest<Full<Bytes>>,
    /// Drives the connection; ends with the client.
    _driver: JoinSet<()>,
}

impl Client {
    /// Connects to the agent whose socket is `path`.
    pub async fn connect(path: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path).await.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning { path: path.to_owned() }
            }
            _ => ClientError::Broken { path: path.to_owned(), problem: error.to_string() },
        })?;
        let broken = |error: hyper::Error| ClientError::Broken { path: path.to_owned(), problem: error.to_string() };
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            // A break shows at the request.
            let _ = connection.await;
        });
        Ok(Self { path: path.to_owned(), sender, _driver: driver })
    }

    fn broken(&self, problem: impl ToString) -> ClientError {
        ClientError::Broken { path: self.path.clone(), problem: problem.to_string() }
    }

    async fn send(&mut self, method: &str, url: &str, body: Bytes) -> Result<Response<Incoming>, ClientError> {
        let request = Request::builder().method(method).uri(url).header("host", "agent").body(Full::new(body));
        let request = request.map_err(|error| ClientError::Refused(format!("{url}: {error}")))?;
        let answer = timeout(PATIENCE, self.sender.send_request(request)).await;
        let response = answer.map_err(|_| self.broken("it took too long"))?.map_err(|error| self.broken(error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = self.whole(response).await?;
        let error = serde_json::from_slice::<serde_json::Value>(&body).ok();
        let error = error.and_then(|error| error.get("error")?.as_str().map(str::to_owned));
        Err(ClientError::Refused(error.unwrap_or_else(|| format!("{status} {}", String::from_utf8_lossy(&body)))))
    }

    async fn whole(&self, response: Response<Incoming>) -> Result<Bytes, ClientError> {
        let body = http_body_util::Limited::new(response.into_body(), MAX_ANSWER);
        Ok(body.collect().await.map_err(|error| self.broken(error))?.to_bytes())
    }

    /// GET, whole.
    pub async fn get(&mut self, url: &str) -> Result<Bytes, ClientError> {
        let response = self.send("GET", url, Bytes::new()).await?;
        self.whole(response).await
    }

    /// POST, whole.
    pub async fn post(&mut self, url: &str, body: Bytes) -> Result<Bytes, ClientError> {
        let response = self.send("POST", url, body).await?;
        self.whole(response).await
    }

    /// GET of NDJSON, line by line, until the end or until `line` says no.
    pub async fn lines(&mut self, url: &str, mut line: impl FnMut(&[u8]) -> bool) -> Result<(), ClientError> {
        let mut body = self.send("GET", url, Bytes::new()).await?.into_body();
        let mut rest = Vec::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|error| self.broken(error))?.into_data() else { continue };
            rest.extend_from_slice(&data);
            let mut start = 0;
            while let Some(end) = rest[start..].iter().position(|byte| *byte == b'\n') {
                if !line(&rest[start..start + end]) {
                    return Ok(());
                }
                start += end + 1;
            }
            rest.drain(..start);
            if rest.len() > MAX_ANSWER {
                return Err(self.broken("a line of its answer is too long"));
            }
        }
        Ok(())
    }
}
