//! Readings by a line on `telemetry.sock`: for shell scripts and small programs of any user on the board. Write only.
//!
//! ```text
//! lab/room1/temperature 21.5                                  topic, a space, the payload to the end of the line
//! {"topic": "lab/room 1", "payload": {"t": 21.5, "h": 40}}    or JSON: payload is text (sent as it is) or any JSON,
//! {"topic": "lab/scope", "payload_b64": "AAEC"}               or payload_b64 holds bytes
//! ```
//!
//! Each line is answered in order: `ok` when the reading is on disk, or `error …` when it was not taken. Lines may be
//! sent without waiting for answers. A full outbox stops the reading of that connection, like MQTT; it refuses nothing.

use std::{
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use board::{metrics::Metrics, tasks::Context};
use bytes::{Bytes, BytesMut};
use prometheus_client::metrics::counter::Counter;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{ingest::Ingest, outbox::PutError, reading::NewReading, topic};

/// Connections at the same time.
const MAX_CONNECTIONS: usize = 64;
/// Longest line, bytes.
const MAX_LINE: usize = 256 << 10;
/// Readings of one connection that wait for their flush together.
const MAX_TOGETHER: usize = 256;
/// A client that does not read its answers is cut off after this.
const WRITE_PATIENCE: Duration = Duration::from_secs(30);

/// A socket that could not be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {path}")]
pub struct BindError {
    path: PathBuf,
    source: io::Error,
}

/// The bound socket.
#[derive(Clone)]
pub struct Socket {
    listener: Arc<UnixListener>,
    path: PathBuf,
    ingest: Ingest,
    refused: Counter,
}

impl Socket {
    /// Binds `path`, mode 0666. A socket that is there already is stale: the caller holds the store's lock.
    pub fn bind(path: &Path, ingest: Ingest, metrics: &Metrics) -> Result<Self, BindError> {
        let failed = |source| BindError { path: path.to_owned(), source };
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).map_err(failed)?;
        let refused = Counter::default();
        metrics.register(|registry| {
            registry.register("socket_refused", "Lines on telemetry.sock that were refused", refused.clone());
        });
        Ok(Self { listener: Arc::new(listener), path: path.to_owned(), ingest, refused })
    }

    /// Serves until stopped; what was read by then is stored and answered.
    pub async fn run(self, context: Context) -> io::Result<()> {
        context.healthy(self.path.display().to_string());
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = self.listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                    Ok((stream, _)) => {
                        let (socket, stop) = (self.clone(), context.stop.clone());
                        connections.spawn(async move { socket.serve(stream, stop).await });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection on telemetry.sock");
                        tokio::time::sleep(Duration::from_millis(200)).await;
                    }
                },
                Some(_) = connections.join_next() => {}
                () = context.stop.cancelled() => break,
            }
        }
        while connections.join_next().await.is_some() {}
        Ok(())
    }

    async fn serve(&self, mut stream: UnixStream, stop: CancellationToken) {
        let mut input = BytesMut::new();
        loop {
            let (lines, too_long) = take_lines(&mut input);
            if !lines.is_empty() || too_long {
                let Some(mut answers) = self.store(lines).await else { return };
                if too_long {
                    self.refused.inc();
                    answers.push_str("error the line is over 256 KiB: send large files with `edge-agent upload`\n");
                }
                let sent = timeout(WRITE_PATIENCE, stream.write_all(answers.as_bytes())).await;
                if too_long || !matches!(sent, Ok(Ok(()))) {
                    return;
                }
                continue;
            }
            input.reserve(4 << 10);
            let read = tokio::select! {
                read = stream.read_buf(&mut input) => read,
                () = stop.cancelled() => return,
            };
            match read {
                // The last line may lack its end.
                Ok(0) if !input.is_empty() => input.extend_from_slice(b"\n"),
                Ok(1..) => {}
                Ok(0) | Err(_) => return,
            }
        }
    }

    /// Stores what can be a reading, and answers each line; `None` when the outbox is closed.
    async fn store(&self, lines: Vec<Bytes>) -> Option<String> {
        let parsed: Vec<_> = lines.iter().map(parse).collect();
        let readings: Vec<_> = parsed.iter().filter_map(|it| it.as_ref().ok()).cloned().collect();
        let mut waits = false;
        loop {
            match self.ingest.submit(readings.clone()).await {
                Ok(_) => break,
                // Lines are far below what is too large for the log.
                Err(PutError::Closed | PutError::TooLarge(_)) => return None,
                Err(error) => {
                    if !std::mem::replace(&mut waits, true) {
                        tracing::warn!(%error, "lines on telemetry.sock wait until there is room");
                    }
                    self.ingest.outbox.room().await;
                }
            }
        }
        let mut answers = String::new();
        for line in parsed {
            match line {
                Ok(_) => answers.push_str("ok\n"),
                Err(problem) => {
                    self.refused.inc();
                    answers.push_str(&format!("error {problem}\n"));
                }
            }
        }
        Some(answers)
    }
}

/// The whole lines that have come, without empty ones; and whether what follows can never become a line.
fn take_lines(input: &mut BytesMut) -> (Vec<Bytes>, bool) {
    let mut lines = Vec::new();
    let mut bytes = 0;
    while lines.len() < MAX_TOGETHER && bytes < MAX_LINE {
        let Some(end) = input.iter().position(|byte| *byte == b'\n') else {
            return (lines, input.len() > MAX_LINE);
        };
        if end > MAX_LINE {
            return (lines, true);
        }
        let line = input.split_to(end + 1).freeze();
        let line = line.slice_ref(line.trim_ascii());
        bytes += line.len();
        lines.extend((!line.is_empty()).then_some(line));
    }
    (lines, false)
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Json {
    topic: String,
    payload: Option<serde_json::Value>,
    payload_b64: Option<String>,
}

/// One line. The message is one line too, and holds nothing of the payload.
pub fn parse(line: &Bytes) -> Result<NewReading, String> {
    let reading = if line.starts_with(b"{") { parse_json(line)? } else { parse_plain(line)? };
    topic::check_name(&reading.topic).map_err(|error| error.to_string().replace(['\n', '\r'], " "))?;
    if reading.topic.starts_with('$') {
        return Err("topics that start with $ are reserved".into());
    }
    Ok(reading)
}

fn parse_plain(line: &Bytes) -> Result<NewReading, String> {
    let (topic, payload) = match line.iter().position(|byte| *byte == b' ') {
        Some(space) => (&line[..space], line.slice(space + 1..)),
        None => return Err("write TOPIC, a space, and the payload".into()),
    };
    let topic = std::str::from_utf8(topic).map_err(|_| "the topic is not UTF-8")?.to_owned();
    Ok(NewReading { topic, payload })
}

fn parse_json(line: &Bytes) -> Result<NewReading, String> {
    let json: Json = serde_json::from_slice(line)
        .map_err(|error| format!("no object with topic and payload or payload_b64 (column {})", error.column()))?;
    let payload = match (json.payload, json.payload_b64) {
        (Some(serde_json::Value::String(text)), None) => text.into(),
        (Some(value), None) => value.to_string().into(),
        (None, Some(text)) => STANDARD.decode(text).map_err(|_| "payload_b64 is not base64")?.into(),
        _ => return Err("give payload or payload_b64".into()),
    };
    Ok(NewReading { topic: json.topic, payload })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_become_readings() {
        #[track_caller]
        fn check(line: &str, want: Result<(&str, &[u8]), &str>) {
            let got = parse(&Bytes::copy_from_slice(line.as_bytes()));
            match (&got, want) {
                (Ok(reading), Ok((topic, payload))) => {
                    assert_eq!((reading.topic.as_str(), &reading.payload[..]), (topic, payload), "{line}");
                }
                (Err(problem), Err(part)) => assert!(problem.contains(part), "{line}: {problem}"),
                _ => panic!("{line}: {got:?}"),
            }
        }
        check("lab/t 21.5", Ok(("lab/t", b"21.5")));
        check("lab/t two words", Ok(("lab/t", b"two words")));
        check(r#"{"topic":"lab/room 1","payload":{"t":1}}"#, Ok(("lab/room 1", br#"{"t":1}"#)));
        check(r#"{"topic":"a","payload":"plain"}"#, Ok(("a", b"plain")));
        check(r#"{"topic":"a","payload_b64":"AAEC"}"#, Ok(("a", &[0, 1, 2])));
        check("lab/t", Err("a space"));
        check("lab/+ 1", Err("lab/+"));
        check("$SYS/x 1", Err("reserved"));
        check(r#"{"topic":"a"}"#, Err("payload"));
        check(r#"{"topic":"a","payload":1,"colour":2}"#, Err("column"));
        check(r#"{"topic":"a","payload_b64":"?"}"#, Err("base64"));
    }

    #[test]
    fn lines_are_taken_whole_and_bounded() {
        let mut input = BytesMut::from(&b"a 1\r\n\nb 2\nc "[..]);
        assert_eq!(take_lines(&mut input), (vec![Bytes::from("a 1"), Bytes::from("b 2")], false));
        assert_eq!(&input[..], b"c ");
        let mut endless = BytesMut::from(vec![b'x'; MAX_LINE + 1].as_slice());
        assert_eq!(take_lines(&mut endless), (vec![], true));
        let mut many = BytesMut::from("t 1\n".repeat(1000).as_bytes());
        assert_eq!(take_lines(&mut many).0.len(), MAX_TOGETHER);
    }

    proptest! {
        #[test]
        fn no_line_panics(line: Vec<u8>) {
            let _ = parse(&line.into());
        }
    }
}
