//! One connection until its CONNECT is answered: TLS, login, session; then a [`Client`] goes on.

use std::{
    net::SocketAddr,
    sync::{Arc, PoisonError},
    time::Duration,
};

use board::tls;
use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    Shared, WRITE_PATIENCE,
    auth::{Denied, Door, Rights},
    client::{Client, MAX_ALIASES, MAX_PENDING},
    greeting::{self, Connect, Refusal, Unfit, Welcome},
    packet::{self, Version},
};
use crate::{router::Attached, topic};

/// A client that does not say CONNECT is cut off after this.
const PATIENCE: Duration = Duration::from_secs(10);

/// Longest client identifier, bytes: it is a key of the state, and a label in logs.
const MAX_CLIENT_ID: usize = 256;

/// A connection that was accepted.
pub struct Connection {
    shared: Arc<Shared>,
    peer: SocketAddr,
    stop: CancellationToken,
}

impl Connection {
    /// From `peer`, until `stop`.
    pub fn new(shared: Arc<Shared>, peer: SocketAddr, stop: CancellationToken) -> Self {
        Self { shared, peer, stop }
    }

    /// Serves it to its end.
    pub async fn serve(self, stream: TcpStream, tls: Option<Arc<tls::Server>>) {
        // Acknowledgements are small and awaited.
        let _ = stream.set_nodelay(true);
        let Some(tls) = tls else { return self.session(stream, None).await };
        let Ok(config) = tokio::task::spawn_blocking(move || tls.config()).await else { return };
        match timeout(PATIENCE, tokio_rustls::TlsAcceptor::from(config).accept(stream)).await {
            Ok(Ok(stream)) => {
                let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
                let name = certificate.map(|der| tls::common_name(der).unwrap_or_default());
                self.session(stream, name).await;
            }
            Ok(Err(error)) => {
                self.shared.metrics.refused("tls");
                tracing::debug!(%error, peer = %self.peer, "TLS handshake failed");
            }
            Err(_) => self.shared.metrics.refused("tls"),
        }
    }

    async fn session<S: AsyncRead + AsyncWrite + Unpin>(self, mut stream: S, certificate: Option<String>) {
        let mut input = BytesMut::with_capacity(4 << 10);
        let mut output = BytesMut::new();
        let stop = self.stop.clone();
        let hello = tokio::select! {
            hello = timeout(PATIENCE, self.handshake(&mut stream, &mut input, &mut output, certificate)) => hello,
            () = stop.cancelled() => return,
        };
        if !output.is_empty() {
            let _ = timeout(WRITE_PATIENCE, stream.write_all(&output)).await;
            output.clear();
        }
        let (connect, rights, attached) = match hello {
            Ok(Some(let_in)) => let_in,
            Ok(None) => return,
            Err(_) => return self.shared.metrics.refused("connect"),
        };
        self.forget_will(&connect.client, attached.present).await;
        let client = Client::new((self.shared, self.peer, self.stop), connect, rights, attached);
        client.run(stream, input, output).await;
    }

    /// A will that waited for this client to come back is void if it resumes its session, and due if that has ended
    /// (section 3.1.3.2.2).
    async fn forget_will(&self, client: &str, resumed: bool) {
        let will = self.shared.wills.lock().unwrap_or_else(PoisonError::into_inner).remove(client);
        if let Some((_, will)) = will.filter(|_| !resumed) {
            self.shared.publish_will(will).await;
        }
    }

    /// Reads CONNECT and answers it; `None` where the client is not let in.
    async fn handshake<S: AsyncRead + Unpin>(
        &self,
        stream: &mut S,
        input: &mut BytesMut,
        output: &mut BytesMut,
        certificate: Option<String>,
    ) -> Option<(Connect, Rights, Attached)> {
        let frame = loop {
            if input.first().is_some_and(|byte| byte >> 4 != 1) {
                // Said now: whoever speaks another protocol may wait for an answer instead of sending what is missing.
                return self.refuse("connect", "the first packet is not CONNECT");
            }
            match packet::take_frame(input, self.shared.options.max_packet, false) {
                Ok(Some(frame)) => break frame,
                Ok(None) if stream.read_buf(input).await.ok()? > 0 => {}
                Ok(None) => return None,
                Err(bad) => return self.unfit(output, &Unfit::new(bad, input)),
            }
        };
        let mut connect = match greeting::connect(frame) {
            Ok(connect) => connect,
            Err(unfit) => return self.unfit(output, &unfit),
        };
        let rights = match self.admit(&connect, certificate.as_deref()) {
            Ok(rights) => rights,
            Err(refusal) => {
                greeting::refuse(output, connect.version, refusal);
                return self.refuse("login", format!("{refusal:?}"));
            }
        };
        if let Some(refusal) = will_fault(&connect, &rights) {
            greeting::refuse(output, connect.version, refusal);
            return self.refuse("will", format!("{refusal:?}"));
        }
        if connect.client.len() > MAX_CLIENT_ID {
            greeting::refuse(output, connect.version, Refusal::ClientId);
            return self.refuse("client id", "too long");
        }
        let assigned = connect.client.is_empty().then(assigned_id);
        if let Some(id) = &assigned {
            if connect.version == Version::V4 && !connect.clean {
                greeting::refuse(output, connect.version, Refusal::ClientId);
                return self.refuse("client id", "empty with a lasting session");
            }
            connect.client.clone_from(id);
        }
        let expiry = self.session_expiry(&connect);
        let Ok(attached) = self.shared.ingest.router.attach(&connect.client, connect.clean, expiry).await else {
            greeting::refuse(output, connect.version, Refusal::Quota);
            return self.refuse("sessions", "too many");
        };
        let asked = connect.session_expiry.unwrap_or(0);
        let granted = u32::try_from(expiry.as_secs()).unwrap_or(u32::MAX);
        let welcome = Welcome {
            present: attached.present,
            assigned,
            session_expiry: (granted != asked).then_some(granted),
            receive_max: u16::try_from(MAX_PENDING).unwrap_or(u16::MAX),
            max_packet: u32::try_from(self.shared.options.max_packet).unwrap_or(u32::MAX),
            alias_max: MAX_ALIASES,
        };
        greeting::accept(output, connect.version, welcome);
        connect.session_expiry = Some(granted);
        Some((connect, rights, attached))
    }

    fn unfit<T>(&self, output: &mut BytesMut, unfit: &Unfit) -> Option<T> {
        if let Some((version, refusal)) = unfit.answer {
            greeting::refuse(output, version, refusal);
        }
        self.refuse("connect", unfit.bad)
    }

    fn refuse<T>(&self, reason: &'static str, why: impl std::fmt::Display) -> Option<T> {
        self.shared.metrics.refused(reason);
        tracing::info!(peer = %self.peer, reason, %why, "an MQTT client was refused");
        None
    }

    fn admit(&self, connect: &Connect, certificate: Option<&str>) -> Result<Rights, Refusal> {
        let user = connect.login.as_ref().map_or("", |(name, _)| name);
        if certificate.is_none() && self.shared.is_banned(self.peer.ip(), user) {
            return Err(Refusal::Busy);
        }
        let door = Door { anonymous: self.peer.ip().to_canonical().is_loopback() };
        self.shared.options.users.admit(door, connect.login.as_ref(), certificate).map_err(|denied| match denied {
            Denied::NoLogin => Refusal::NotAuthorized,
            Denied::BadLogin => {
                self.shared.login_failed(self.peer.ip(), user);
                Refusal::BadLogin
            }
        })
    }

    /// How long the session outlives the connection (MQTT 5 section 3.1.2.11.2; in 3.1.1 a session without the clean
    /// flag lasts as long as this server keeps any).
    fn session_expiry(&self, connect: &Connect) -> Duration {
        let most = self.shared.options.max_session;
        match connect.version {
            Version::V4 if connect.clean => Duration::ZERO,
            Version::V4 => most,
            Version::V5 => Duration::from_secs(connect.session_expiry.unwrap_or(0).into()).min(most),
        }
    }
}

fn will_fault(connect: &Connect, rights: &Rights) -> Option<Refusal> {
    let (will, _) = connect.will.as_ref()?;
    match topic::check_name(&will.topic) {
        Err(_) => Some(Refusal::Topic),
        Ok(()) if !rights.may_publish(&will.topic) => Some(Refusal::NotAuthorized),
        Ok(()) => None,
    }
}

fn assigned_id() -> String {
    let mut bytes = [0; 8];
    // Without random bytes two clients would share a name and take over from each other: visible, not dangerous.
    let _ = ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes);
    format!("auto-{:016x}", u64::from_le_bytes(bytes))
}
