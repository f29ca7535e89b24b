//! The MQTT listener: 3.1.1 and 5, for sensors and for programs on the board.
//!
//! Always true: a PUBACK or PUBREC is written only after the outbox says that the reading is on disk. A full outbox stops
//! the reading of that connection and withholds the acknowledgement; nothing is refused that a client would then drop.
//!
//! Elsewhere: who hears a message (`router`), what is kept and for how long (`outbox`).

pub mod auth;
pub mod check;
mod client;
mod connection;
mod greeting;
mod metrics;
mod packet;
mod property;
mod storing;
mod window;

/// A door for the targets in `fuzz/`: what reads packets and what writes them.
#[cfg(fuzzing)]
pub mod fuzzing {
    pub use super::{greeting::*, packet::*};
}

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use board::{metrics::Metrics, tasks::Context, tls};
use store::state::State;
use tokio::{net::TcpListener, sync::Semaphore, task::JoinSet};

use crate::{ingest::Ingest, router::Message};
use auth::Users;
use connection::Connection;
use metrics::MqttMetrics;

/// A client that does not take what is written is cut off after this.
const WRITE_PATIENCE: Duration = Duration::from_secs(30);

/// How the listener is set up.
#[derive(Debug, Clone)]
pub struct Options {
    /// Plain addresses.
    pub listen: Vec<SocketAddr>,
    /// TLS addresses; they need `tls`.
    pub listen_tls: Vec<SocketAddr>,
    /// Certificate, key and client CA.
    pub tls: Option<tls::ServerFiles>,
    /// Who may connect.
    pub users: Users,
    /// Largest packet, bytes.
    pub max_packet: usize,
    /// Connections at the same time.
    pub max_connections: usize,
    /// Longest life of an absent client's session.
    pub max_session: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 1883))],
            listen_tls: Vec::new(),
            tls: None,
            users: Users::default(),
            max_packet: 256 << 10,
            max_connections: 256,
            max_session: Duration::from_secs(7 * 86_400),
        }
    }
}

/// Why the listener did not start.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// An address that cannot be had.
    #[error("cannot listen for MQTT on {address}: is another broker running there? Stop it, or set mqtt.listen")]
    Bind {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// TLS files.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    /// TLS addresses without a certificate.
    #[error("mqtt.listen_tls needs mqtt.tls_cert and mqtt.tls_key")]
    NoCertificate,
}

/// What all connections share.
struct Shared {
    options: Options,
    ingest: Ingest,
    state: State,
    metrics: MqttMetrics,
    wills: Mutex<BTreeMap<String, (Instant, Message)>>,
    /// Failed logins by address and user; names that are no user's count as one.
    failures: Mutex<BTreeMap<(IpAddr, String), (u32, Instant)>>,
}

/// The bound listener.
#[derive(Clone)]
pub struct Listener {
    shared: Arc<Shared>,
    sockets: Arc<Vec<(TcpListener, Option<Arc<tls::Server>>)>>,
}

impl Listener {
    /// Binds all addresses, so that a mistake shows at start.
    pub async fn bind(options: Options, ingest: Ingest, state: State, metrics: &Metrics) -> Result<Self, BindError> {
        let tls = options.tls.clone().map(tls::Server::new).transpose()?.map(Arc::new);
        if tls.is_none() && !options.listen_tls.is_empty() {
            return Err(BindError::NoCertificate);
        }
        let plain = options.listen.iter().map(|address| (*address, None));
        let secure = options.listen_tls.iter().map(|address| (*address, tls.clone()));
        let mut sockets = Vec::new();
        for (address, tls) in plain.chain(secure) {
            let bound = TcpListener::bind(address).await;
            sockets.push((bound.map_err(|source| BindError::Bind { address, source })?, tls));
        }
        let shared = Shared {
            options,
            ingest,
            state,
            metrics: MqttMetrics::register(metrics),
            wills: Mutex::default(),
            failures: Mutex::default(),
        };
        Ok(Self { shared: Arc::new(shared), sockets: Arc::new(sockets) })
    }

    /// Where it listens: plain addresses first. Port 0 was given a free one.
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.sockets.iter().filter_map(|(socket, _)| socket.local_addr().ok()).collect()
    }

    /// Serves until stopped; then connections finish what they have begun.
    pub async fn run(self, context: Context) -> io::Result<()> {
        let room = Arc::new(Semaphore::new(self.shared.options.max_connections));
        let mut connections = JoinSet::new();
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        let addresses = self.local_addrs().iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        loop {
            context.healthy(format!("{} clients on {addresses}", connections.len()));
            tokio::select! {
                accepted = accept(&self.sockets) => match accepted {
                    Ok((stream, peer, tls)) => {
                        let Ok(permit) = room.clone().try_acquire_owned() else {
                            self.shared.metrics.refused("too many connections");
                            continue;
                        };
                        let connection = Connection::new(self.shared.clone(), peer, context.stop.clone());
                        connections.spawn(async move {
                            connection.serve(stream, tls).await;
                            drop(permit);
                        });
                    }
                    Err(error) => {
                        // Out of descriptors, most likely: give others time to close some.
                        tracing::warn!(%error, "cannot accept an MQTT connection");
                        tokio::time::sleep(Duration::from_millis(200)).await;
                    }
                },
                Some(ended) = connections.join_next() => log_panic(ended),
                _ = tick.tick() => self.publish_wills().await,
                () = context.stop.cancelled() => break,
            }
        }
        while let Some(ended) = connections.join_next().await {
            log_panic(ended);
        }
        Ok(())
    }

    /// Publishes the wills whose delay is over.
    async fn publish_wills(&self) {
        let due: Vec<_> = {
            let mut wills = self.shared.wills.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            wills.extract_if(.., |_, (at, _)| *at <= now).map(|(_, (_, will))| will).collect()
        };
        for will in due {
            self.shared.publish_will(will).await;
        }
    }
}

fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "an MQTT connection ended in a panic; please report this");
    }
}

type Accepted = (tokio::net::TcpStream, SocketAddr, Option<Arc<tls::Server>>);

async fn accept(sockets: &[(TcpListener, Option<Arc<tls::Server>>)]) -> io::Result<Accepted> {
    let next = sockets.iter().map(|(socket, tls)| {
        Box::pin(async move {
            let (stream, peer) = socket.accept().await?;
            Ok((stream, peer, tls.clone()))
        })
    });
    if sockets.is_empty() {
        return std::future::pending().await;
    }
    futures_util::future::select_all(next).await.0
}

impl Shared {
    /// Whether this peer has failed to log in as this user too often of late. By user: one program with an old password
    /// must not keep the others on its machine out.
    fn is_banned(&self, peer: IpAddr, user: &str) -> bool {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let known = failures.get(&(peer, self.known(user)));
        known.is_some_and(|(times, last)| *times >= 5 && last.elapsed() < Duration::from_secs(10))
    }

    fn login_failed(&self, peer: IpAddr, user: &str) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.retain(|_, (_, last)| last.elapsed() < Duration::from_secs(60));
        if failures.len() < 1024 {
            let entry = failures.entry((peer, self.known(user))).or_insert((0, Instant::now()));
            *entry = (entry.0 + 1, Instant::now());
        }
    }

    fn known(&self, user: &str) -> String {
        if self.options.users.0.contains_key(user) { user.to_owned() } else { String::new() }
    }

    /// A will is a reading like any other; with a full outbox local subscribers hear it all the same.
    async fn publish_will(&self, will: Message) {
        let will = Message { since: Instant::now(), ..will }; // Its expiry counts from now, not from CONNECT.
        let reading = crate::reading::NewReading { topic: will.topic.clone(), payload: will.payload.clone() };
        if let Err(error) = self.ingest.store(&[reading]).await {
            tracing::warn!(%error, topic = will.topic, "a last will was not stored");
        }
        self.ingest.router.publish(&will);
    }
}
