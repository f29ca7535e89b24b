//! exec and attach: a process and its stdio, over SPDY/3.1 or WebSocket.
//!
//! Versions differ little: from 2 on there is an error stream that can be relied on, from 3 on the terminal's size, from 4
//! on the end as a `metav1.Status`, from 5 on (WebSocket alone) the end of single channels.

mod carry;
mod socket;
mod status;

use std::{future::Future, time::Duration};

use futures_util::future::BoxFuture;
use hyper::{HeaderMap, StatusCode, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

pub use self::socket::{Channel as SocketChannel, ChannelWriter, Codec, accept, channels as socket_channels};
use self::{
    carry::{Channels, End, Sink},
    socket::Channel,
    status::Status,
};
use super::{
    answer::{self, Answer},
    query::Query,
    runtime::Process,
    spdy::{self, Connection, Limits},
    upgrade::{self, Wants},
};

/// How long a client may take to open its streams.
pub const STREAMS_WITHIN: Duration = Duration::from_secs(30);
/// Silence after which a session ends.
pub const IDLE: Duration = Duration::from_secs(4 * 3600);
/// Bounds of a SPDY connection: a process has five streams.
const LIMITS: Limits = Limits { streams: 8, inbox: 128 << 10, idle: IDLE };

const V4: &str = "v4.channel.k8s.io";
const V3: &str = "v3.channel.k8s.io";
const V2: &str = "v2.channel.k8s.io";
const V1: &str = "channel.k8s.io";
const V5: &str = "v5.channel.k8s.io";
const V4_BASE64: &str = "v4.base64.channel.k8s.io";
const V1_BASE64: &str = "base64.channel.k8s.io";

/// Which streams are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "each is a parameter of the request")]
pub struct Streams {
    /// The client types.
    pub stdin: bool,
    /// It reads output.
    pub stdout: bool,
    /// It reads errors apart.
    pub stderr: bool,
    /// There is a terminal.
    pub tty: bool,
}

impl Streams {
    /// As the API server asks for them. With a terminal errors are not apart.
    pub fn of(query: &Query) -> Result<Self, Answer> {
        let wanted = |name| query.get(name) == Some("1");
        let tty = wanted("tty");
        let streams = Self { stdin: wanted("input"), stdout: wanted("output"), stderr: wanted("error") && !tty, tty };
        if streams.stdin || streams.stdout || streams.stderr {
            Ok(streams)
        } else {
            Err(answer::text(StatusCode::BAD_REQUEST, "you must specify at least 1 of stdin, stdout, stderr"))
        }
    }
}

/// What is to be served once the client's streams are there.
pub struct Work {
    /// Starts the process, or attaches to it.
    pub start: BoxFuture<'static, Result<Process, String>>,
    /// The end of the client's input is the end of the process's.
    pub close_stdin: bool,
    /// The client is told its exit code: of a container, the pod's status tells it.
    pub tell_code: bool,
}

/// Agrees with the client on how to speak. The answer goes to it at once; what is returned beside it serves the rest.
pub fn begin(
    headers: &HeaderMap,
    upgrade: OnUpgrade,
    streams: Streams,
    work: Work,
) -> Result<(Answer, BoxFuture<'static, ()>), Answer> {
    match upgrade::wants(headers)? {
        Wants::Spdy => {
            let agreed = upgrade::spdy(headers, &[V4, V3, V2, V1])?;
            let version = agreed.version;
            Ok((agreed.answer, Box::pin(over_spdy(upgrade, version, streams, work))))
        }
        Wants::WebSocket => {
            let agreed = upgrade::websocket(headers, &[V5, V4, V4_BASE64, V1, V1_BASE64])?;
            let version = agreed.version;
            Ok((agreed.answer, Box::pin(over_websocket(upgrade, version, streams, work))))
        }
    }
}

async fn over_spdy(upgrade: OnUpgrade, version: &'static str, streams: Streams, work: Work) {
    let Ok(io) = upgrade.await else { return };
    let (mut connection, driver) = Connection::new(TokioIo::new(io), LIMITS);
    let session = async |gone: &CancellationToken| {
        let resize = matches!(version, V4 | V3);
        let channels = timeout_at(Instant::now() + STREAMS_WITHIN, collect(&mut connection, streams, resize)).await;
        connection.no_more();
        if let Ok(Some(mut channels)) = channels {
            let end = run(&mut channels, work, gone).await;
            tell(channels, end, version == V4).await;
        }
        connection.close().await;
    };
    together(async { drop(driver.run().await) }, session).await;
}

async fn over_websocket(upgrade: OnUpgrade, version: &'static str, streams: Streams, work: Work) {
    let Ok(io) = upgrade.await else { return };
    let codec = if matches!(version, V4_BASE64 | V1_BASE64) { Codec::Base64 } else { Codec::Binary };
    let stdin = if streams.stdin { Channel::Read } else { Channel::Write };
    let kinds = [stdin, Channel::Write, Channel::Write, Channel::Write, Channel::Read];
    let socket = accept(TokioIo::new(io)).await;
    let (mut socket, driver) = socket_channels(socket, &kinds, codec, version == V5, IDLE);
    let session = async |gone: &CancellationToken| {
        let writer = |channel, wanted: bool| wanted.then(|| Sink::Channel(socket.writer(channel)));
        let mut channels = Channels {
            stdout: writer(1, streams.stdout),
            stderr: writer(2, streams.stderr),
            error: writer(3, true),
            ..Channels::default()
        };
        (channels.stdin, channels.resize) = (socket.reader(0), socket.reader(4));
        // Tells the client that it is connected.
        let first = channels.stdout.as_mut().or(channels.stderr.as_mut()).or(channels.error.as_mut());
        if let Some(first) = first {
            first.send(bytes::Bytes::new()).await;
        }
        let end = run(&mut channels, work, gone).await;
        tell(channels, end, matches!(version, V5 | V4 | V4_BASE64)).await;
        socket.close().await;
    };
    together(driver.run(), session).await;
}

/// Runs a connection and what is done with it; the second is told when the first has ended.
pub async fn together<F>(driver: impl Future<Output = ()>, session: F)
where
    F: AsyncFnOnce(&CancellationToken),
{
    let gone = CancellationToken::new();
    let driving = async {
        driver.await;
        gone.cancel();
    };
    tokio::join!(driving, session(&gone));
}

/// Waits for the streams that the client is to open.
async fn collect(connection: &mut Connection, streams: Streams, resize: bool) -> Option<Channels> {
    let mut channels = Channels::default();
    let wanted = [true, streams.stdin, streams.stdout, streams.stderr, streams.tty && resize];
    let mut missing = wanted.iter().filter(|wanted| **wanted).count();
    while missing > 0 {
        let stream = connection.incoming().await?;
        let kind = stream.headers.get("streamType").unwrap_or_default().to_owned();
        let is_there = match kind.as_str() {
            "error" => channels.error.is_some(),
            "stdin" => channels.stdin.is_some(),
            "stdout" => channels.stdout.is_some(),
            "stderr" => channels.stderr.is_some(),
            "resize" => channels.resize.is_some(),
            _ => true,
        };
        if is_there {
            stream.refuse(spdy::ResetStatus::REFUSED).await;
            continue;
        }
        stream.accept().await.ok()?;
        match kind.as_str() {
            "error" => channels.error = Some(Sink::Stream(stream.writer)),
            "stdout" => channels.stdout = Some(Sink::Stream(stream.writer)),
            "stderr" => channels.stderr = Some(Sink::Stream(stream.writer)),
            reading => {
                channels.held.push(stream.writer);
                let inbox = if reading == "stdin" { &mut channels.stdin } else { &mut channels.resize };
                *inbox = Some(stream.reader);
            }
        }
        missing -= 1;
    }
    Some(channels)
}

async fn run(channels: &mut Channels, work: Work, gone: &CancellationToken) -> End {
    let started = work.start.await;
    match carry::serve(channels, started, work.close_stdin, gone.cancelled()).await {
        End::Exit(_) if !work.tell_code => End::Exit(0),
        end => end,
    }
}

/// The last words: the ends of output first, so that a client that waits for all of them has everything.
async fn tell(channels: Channels, end: End, as_json: bool) {
    let Channels { stdout, stderr, error, held, .. } = channels;
    if end == End::ClientGone {
        return;
    }
    for mut sink in [stdout, stderr].into_iter().flatten() {
        sink.finish().await;
    }
    let status = Status::of(end);
    let words = if as_json { status.json() } else { status.text() };
    if let Some(mut error) = error {
        if !words.is_empty() {
            error.send(words).await;
        }
        error.finish().await;
    }
    for mut writer in held {
        writer.finish().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_asked_for() {
        #[track_caller]
        fn check(query: &str, want: Option<[bool; 4]>) {
            let got = Streams::of(&Query::parse(query)).ok();
            assert_eq!(got.map(|it| [it.stdin, it.stdout, it.stderr, it.tty]), want, "{query}");
        }
        check("input=1&output=1&error=1&command=sh", Some([true, true, true, false]));
        check("output=1&error=1&tty=1", Some([false, true, false, true]));
        check("error=1&tty=1", None);
        check("output=true", None);
        check("", None);
    }
}
