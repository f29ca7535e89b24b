//! One network's server: UDP and TCP on the same port of its gateway address.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::timeout,
};

use super::{
    Directory, MAX_BUSY,
    answer::{Reply, answer, failure},
    forward,
    resolvers::Resolvers,
};

/// How long a connection may be silent.
const IDLE: Duration = Duration::from_secs(10);
/// Longest question over UDP.
const MAX_QUESTION: usize = 4096;

/// The tasks of one server; they end with it.
#[derive(Default)]
pub(super) struct Server(JoinSet<()>);

#[derive(Clone)]
struct Desk {
    network: Arc<str>,
    names: Arc<dyn Directory>,
    resolvers: Arc<Resolvers>,
    busy: Arc<Semaphore>,
}

impl Server {
    /// Listens on a free port of `address`, which is returned.
    pub fn listen(
        &mut self,
        address: IpAddr,
        network: &str,
        names: &Arc<dyn Directory>,
        resolvers: &Arc<Resolvers>,
    ) -> io::Result<u16> {
        let (udp, tcp, port) = bind(address)?;
        let desk = Desk {
            network: network.into(),
            names: names.clone(),
            resolvers: resolvers.clone(),
            busy: Arc::new(Semaphore::new(MAX_BUSY)),
        };
        let (udp, tcp, other) = (Arc::new(udp), Arc::new(tcp), desk.clone());
        self.0.spawn(keep(move || serve_udp(udp.clone(), desk.clone())));
        self.0.spawn(keep(move || serve_tcp(tcp.clone(), other.clone())));
        Ok(port)
    }
}

/// Begins again after a panic, a little later: one strange packet must not leave a network without names.
async fn keep<F: Future<Output = ()> + Send + 'static>(serve: impl Fn() -> F) {
    loop {
        let mut task = JoinSet::new(); // Ends its task with itself.
        task.spawn(serve());
        if let Some(Err(error)) = task.join_next().await {
            tracing::error!(%error, "a name server of containers ended and is started again");
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Both protocols on one port; a few tries, for another program may have either.
fn bind(address: IpAddr) -> io::Result<(UdpSocket, TcpListener, u16)> {
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..16 {
        let udp = std::net::UdpSocket::bind((address, 0))?;
        let port = udp.local_addr()?.port();
        match std::net::TcpListener::bind((address, port)) {
            Ok(tcp) => {
                udp.set_nonblocking(true)?;
                tcp.set_nonblocking(true)?;
                return Ok((UdpSocket::from_std(udp)?, TcpListener::from_std(tcp)?, port));
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn serve_udp(socket: Arc<UdpSocket>, desk: Desk) {
    let mut asked = JoinSet::new();
    let mut buffer = vec![0; MAX_QUESTION];
    loop {
        while asked.try_join_next().is_some() {}
        let Some((length, from)) = pause_after_error(socket.recv_from(&mut buffer).await).await else { continue };
        let Some(packet) = buffer.get(..length) else { continue };
        match desk.decide(packet, from, false) {
            // What cannot be sent now is asked again by its asker.
            Reply::Send(reply) => drop(socket.try_send_to(&reply, from)),
            Reply::Ignore => {}
            Reply::Forward => match desk.busy.clone().try_acquire_owned() {
                Ok(permit) => {
                    asked.spawn(pass_on(socket.clone(), desk.clone(), packet.to_vec(), from, permit));
                }
                Err(_) => {
                    if let Reply::Send(reply) = failure(packet, 2) {
                        drop(socket.try_send_to(&reply, from));
                    }
                }
            },
        }
    }
}

async fn pass_on(socket: Arc<UdpSocket>, desk: Desk, packet: Vec<u8>, from: SocketAddr, permit: OwnedSemaphorePermit) {
    if let Some(reply) = desk.ask(&packet, false).await {
        drop(socket.try_send_to(&reply, from));
    }
    drop(permit);
}

async fn serve_tcp(listener: Arc<TcpListener>, desk: Desk) {
    let mut connections = JoinSet::new();
    let places = Arc::new(Semaphore::new(MAX_BUSY));
    loop {
        while connections.try_join_next().is_some() {}
        // Without a place free, connections wait in the kernel's queue.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let Some((stream, from)) = pause_after_error(listener.accept().await).await else { continue };
        connections.spawn(converse(stream, from, desk.clone(), place));
    }
}

async fn converse(mut stream: TcpStream, from: SocketAddr, desk: Desk, place: OwnedSemaphorePermit) {
    while let Ok(Ok(length)) = timeout(IDLE, stream.read_u16()).await {
        let mut packet = vec![0; usize::from(length)];
        if !matches!(timeout(IDLE, stream.read_exact(&mut packet)).await, Ok(Ok(_))) {
            break;
        }
        let reply = match desk.decide(&packet, from, true) {
            Reply::Send(reply) => Some(reply),
            Reply::Ignore => None,
            Reply::Forward => desk.ask(&packet, true).await,
        };
        let Some(reply) = reply else { break };
        let Ok(length) = u16::try_from(reply.len()) else { break };
        let bytes = [&length.to_be_bytes(), reply.as_slice()].concat();
        if !matches!(timeout(IDLE, stream.write_all(&bytes)).await, Ok(Ok(()))) {
            break;
        }
    }
    drop(place);
}

/// An error of a socket (no memory, no descriptor) is no reason to end, nor to spin.
async fn pause_after_error<T>(result: io::Result<T>) -> Option<T> {
    if result.is_err() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    result.ok()
}

impl Desk {
    fn decide(&self, packet: &[u8], from: SocketAddr, tcp: bool) -> Reply {
        let names = self.names.names_for(&self.network, from.ip().to_canonical());
        names.map_or(Reply::Ignore, |names| answer(packet, names.as_ref(), tcp))
    }

    async fn ask(&self, packet: &[u8], tcp: bool) -> Option<Vec<u8>> {
        let servers = self.resolvers.now().servers;
        match forward::ask(packet, &servers, tcp).await {
            Some(reply) => Some(reply),
            None => match failure(packet, 2) {
                Reply::Send(reply) => Some(reply),
                _ => None,
            },
        }
    }
}
