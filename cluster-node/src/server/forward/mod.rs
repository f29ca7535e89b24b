//! port-forward: connections to servers in a pod, over SPDY/3.1, over that in a WebSocket, or over channels of one.
//!
//! The connection is made from inside the pod's network namespace, so that servers on its loopback are reached too.

mod pairs;
mod tunnel;

use std::{io, path::PathBuf, sync::Arc};

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use hyper::{HeaderMap, StatusCode, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use self::{pairs::Pairs, tunnel::Tunnel};
use super::{
    answer::{self, Answer},
    query::Query,
    remote::{self, ChannelWriter, Codec, IDLE, SocketChannel, accept, socket_channels, together},
    runtime::Runtime,
    spdy::{Connection, Inbox, Limits, ResetStatus, StreamWriter},
    upgrade::{self, Wants},
};

/// What runs over SPDY.
const V1: &str = "portforward.k8s.io";
/// SPDY in a WebSocket.
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
/// Channels of a WebSocket, two for each port.
const V4: &str = "v4.channel.k8s.io";
const V4_BASE64: &str = "v4.base64.channel.k8s.io";
/// Bounds of a SPDY connection: two streams for each connection to the pod.
const LIMITS: Limits = Limits { streams: 512, inbox: 64 << 10, idle: IDLE };
/// Most ports of one WebSocket: a byte numbers its channels.
const MAX_PORTS: usize = 100;
/// Read from a pod at once.
const CHUNK: usize = 16 << 10;

/// Which pod, and how to reach it.
#[derive(Clone)]
pub struct Pod {
    /// `NAME_NAMESPACE`.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Its network namespace; none: the host's.
    pub netns: Option<PathBuf>,
    /// Who connects.
    pub runtime: Arc<dyn Runtime>,
}

impl Pod {
    async fn connect(&self, port: u16) -> Result<TcpStream, String> {
        self.runtime.connect(self.netns.clone(), port).await.map_err(|error| self.failed(port, &error))
    }

    fn failed(&self, port: u16, error: &io::Error) -> String {
        format!("error forwarding port {port} to pod {}, uid {}: {error}", self.name, self.uid)
    }
}

/// Ports of a WebSocket with channels.
fn ports(query: &Query) -> Result<Vec<u16>, String> {
    let mut ports = Vec::new();
    for text in query.all("port") {
        if text.is_empty() {
            return Err("query parameter \"port\" cannot be empty".to_owned());
        }
        for word in text.split(',') {
            let port: u16 = word.parse().map_err(|_| format!("unable to parse {text:?} as a port"))?;
            if port == 0 {
                return Err(format!("port {text:?} must be > 0"));
            }
            ports.push(port);
        }
    }
    match ports.len() {
        0 => Err("query parameter \"port\" is required".to_owned()),
        many if many > MAX_PORTS => Err(format!("{many} ports, and {MAX_PORTS} are the most")),
        _ => Ok(ports),
    }
}

/// Agrees with the client on how to speak. The answer goes to it at once; what is returned beside it serves the rest.
pub fn begin(
    headers: &HeaderMap,
    query: &Query,
    upgrade: OnUpgrade,
    pod: Pod,
) -> Result<(Answer, BoxFuture<'static, ()>), Answer> {
    match upgrade::wants(headers)? {
        Wants::Spdy => {
            let agreed = upgrade::spdy(headers, &[V1])?;
            let serve = async move {
                let Ok(io) = upgrade.await else { return };
                over_spdy(TokioIo::new(io), pod).await;
            };
            Ok((agreed.answer, Box::pin(serve)))
        }
        Wants::WebSocket => {
            let agreed = upgrade::websocket(headers, &[TUNNEL, V4, V4_BASE64])?;
            if agreed.version == TUNNEL {
                let serve = async move {
                    let Ok(io) = upgrade.await else { return };
                    over_spdy(Tunnel::new(accept(TokioIo::new(io)).await), pod).await;
                };
                return Ok((agreed.answer, Box::pin(serve)));
            }
            let ports = ports(query).map_err(|problem| answer::text(StatusCode::BAD_REQUEST, problem))?;
            let codec = if agreed.version == V4_BASE64 { Codec::Base64 } else { Codec::Binary };
            Ok((agreed.answer, Box::pin(over_channels(upgrade, ports, codec, pod))))
        }
    }
}

async fn over_spdy<I: AsyncRead + AsyncWrite + Send + 'static>(io: I, pod: Pod) {
    let (mut connection, driver) = Connection::new(io, LIMITS);
    let session = async |gone: &CancellationToken| {
        let (mut pairs, mut forwards) = (Pairs::default(), JoinSet::new());
        loop {
            let stream = tokio::select! {
                stream = connection.incoming() => stream,
                () = pairs.expire() => continue,
                Some(_) = forwards.join_next() => continue,
                () = gone.cancelled() => None,
            };
            let Some(stream) = stream else { break };
            let Some(pair) = pairs.add(stream).await else { continue };
            let pod = pod.clone();
            forwards.spawn(async move { forward_pair(pair, pod).await });
        }
        forwards.shutdown().await;
    };
    together(async { drop(driver.run().await) }, session).await;
}

async fn forward_pair(pair: pairs::Pair, pod: Pod) {
    let pairs::Pair { port, data, mut error } = pair;
    let (mut reader, mut writer) = (data.reader, data.writer);
    let failed = match pod.connect(port).await {
        Ok(stream) => {
            carry(stream, &mut reader, &mut Way::Stream(&mut writer)).await.map_err(|it| pod.failed(port, &it))
        }
        Err(problem) => Err(problem),
    };
    match failed {
        Ok(()) => {
            writer.finish().await;
            error.writer.finish().await;
        }
        Err(problem) => {
            tracing::debug!(problem, "a port could not be forwarded");
            // A client that has gone needs no reason.
            let _ = error.writer.send(Bytes::from(problem)).await;
            error.writer.finish().await;
            writer.reset(ResetStatus::CANCEL).await;
        }
    }
}

async fn over_channels(upgrade: OnUpgrade, ports: Vec<u16>, codec: Codec, pod: Pod) {
    let Ok(io) = upgrade.await else { return };
    let kinds: Vec<_> = ports.iter().flat_map(|_| [SocketChannel::Read, SocketChannel::Write]).collect();
    let socket = remote::accept(TokioIo::new(io)).await;
    let (mut socket, driver) = socket_channels(socket, &kinds, codec, false, IDLE);
    let session = async |gone: &CancellationToken| {
        let mut forwards = JoinSet::new();
        for (at, port) in ports.iter().copied().enumerate() {
            let Ok(channel) = u8::try_from(2 * at) else { break };
            let Some(reader) = socket.reader(channel) else { break };
            let (data, error) = (socket.writer(channel), socket.writer(channel + 1));
            // Both begin with the port they are for.
            let begins = Bytes::copy_from_slice(&port.to_le_bytes());
            if data.send(begins.clone()).await.is_err() || error.send(begins).await.is_err() {
                break;
            }
            let pod = pod.clone();
            forwards.spawn(async move { forward_channel(port, reader, data, error, pod).await });
        }
        tokio::select! {
            () = async { while forwards.join_next().await.is_some() {} } => {}
            () = gone.cancelled() => {}
        }
        forwards.shutdown().await;
        socket.close().await;
    };
    together(driver.run(), session).await;
}

async fn forward_channel(port: u16, mut reader: Inbox, data: ChannelWriter, error: ChannelWriter, pod: Pod) {
    let failed = match pod.connect(port).await {
        Ok(stream) => carry(stream, &mut reader, &mut Way::Channel(&data)).await.map_err(|it| pod.failed(port, &it)),
        Err(problem) => Err(problem),
    };
    if let Err(problem) = failed {
        tracing::debug!(problem, "a port could not be forwarded");
        // A client that has gone needs no reason.
        let _ = error.send(Bytes::from(problem)).await;
    }
}

/// Where a pod's bytes go.
enum Way<'a> {
    Stream(&'a mut StreamWriter),
    Channel(&'a ChannelWriter),
}

impl Way<'_> {
    async fn send(&mut self, bytes: Bytes) -> bool {
        match self {
            Self::Stream(stream) => stream.send(bytes).await.is_ok(),
            Self::Channel(channel) => channel.send(bytes).await.is_ok(),
        }
    }

    async fn finish(&mut self) {
        if let Self::Stream(stream) = self {
            stream.finish().await;
        }
    }
}

/// Both ways, until the pod has said all and the client, too, or the pod breaks off. An end of one way is handed on and
/// leaves the other.
async fn carry(stream: TcpStream, reader: &mut Inbox, way: &mut Way<'_>) -> io::Result<()> {
    let (read, write) = stream.into_split();
    tokio::try_join!(outward(read, way), inward(reader, write)).map(drop)
}

async fn outward(mut read: OwnedReadHalf, way: &mut Way<'_>) -> io::Result<()> {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(CHUNK);
        if read.read_buf(&mut buffer).await? == 0 {
            way.finish().await;
            return Ok(());
        }
        if !way.send(buffer.split().freeze()).await {
            return Ok(()); // The client has gone: it needs no reason.
        }
    }
}

async fn inward(reader: &mut Inbox, mut write: OwnedWriteHalf) -> io::Result<()> {
    while let Some(bytes) = reader.next().await {
        match write.write_all(&bytes).await {
            Ok(()) => {}
            // The pod has heard enough; what it says is still carried.
            Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                return Ok(());
            }
            Err(error) => return Err(error),
        }
    }
    match write.shutdown().await {
        Err(error) if error.kind() != io::ErrorKind::NotConnected => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read() {
        #[track_caller]
        fn check(query: &str, want: Option<&[u16]>) {
            assert_eq!(ports(&Query::parse(query)).ok().as_deref(), want, "{query}");
        }
        check("port=80&port=81", Some(&[80, 81]));
        check("port=80,81&x=1", Some(&[80, 81]));
        check("port=0", None);
        check("port=70000", None);
        check("port=", None);
        check("", None);
        check(&format!("port={}", vec!["1"; MAX_PORTS + 1].join(",")), None);
    }
}
