//! A running server with an authority of its own, and clients of all kinds.

use std::{net::SocketAddr, sync::Arc};

use board::tasks::Context;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{Request, StatusCode, header::AUTHORIZATION, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::{
    ClientConfig, RootCertStore,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_tungstenite::{WebSocketStream, tungstenite::protocol::Role};

use crate::server::{
    Config, Server,
    spdy::tests::Client as SpdyClient,
    testing::{FakeDelegate, FakeDirectory, FakeRuntime},
};

#[derive(Debug)]
struct One(Arc<CertifiedKey>);

impl ResolvesServerCert for One {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

pub struct Authority {
    pub issuer: Issuer<'static, KeyPair>,
    pub certificate: CertificateDer<'static>,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "kubernetes");
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    pub fn sign(
        &self,
        name: &str,
        group: &str,
        usage: ExtendedKeyUsagePurpose,
    ) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.distinguished_name.push(DnType::OrganizationName, group);
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        (certificate, PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der())))
    }
}

/// A running server and what stands behind it.
pub struct World {
    pub address: SocketAddr,
    pub plain: SocketAddr,
    pub authority: Authority,
    pub runtime: Arc<FakeRuntime>,
    pub directory: Arc<FakeDirectory>,
    pub context: Context,
    /// Changes when the server has stopped.
    pub stopped: tokio::sync::watch::Receiver<bool>,
    pub tasks: JoinSet<()>,
    pub dir: tempfile::TempDir,
}

pub async fn world() -> World {
    let authority = Authority::new();
    let (certificate, key) = authority.sign("system:node:board-1", "system:nodes", ExtendedKeyUsagePurpose::ServerAuth);
    let provider = rustls::crypto::ring::default_provider();
    let serving = CertifiedKey::from_der(vec![certificate], key, &provider).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let runtime = Arc::new(FakeRuntime::default());
    *runtime.log_path.lock().unwrap() = Some(dir.path().join("0.log"));
    std::fs::write(dir.path().join("0.log"), "2026-11-02T10:00:00Z stdout F one\n").unwrap();
    let directory = Arc::new(FakeDirectory::default());
    let may = [("prometheus".to_owned(), vec!["metrics"]), ("admin".to_owned(), vec!["proxy", "stats", "log"])];
    // A port that was free a moment ago.
    let plain = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let config = Config {
        node: "board-1".into(),
        listen: "127.0.0.1:0".parse().unwrap(),
        healthz: Some(plain),
        serving: Arc::new(One(Arc::new(serving))),
        client_ca: vec![authority.certificate.clone()],
        node_dir: dir.path().to_owned(),
        image_dir: dir.path().to_owned(),
        log_dir: dir.path().to_owned(),
        configuration: serde_json::json!({"kind": "KubeletConfiguration"}),
        metrics: board::metrics::Metrics::new(),
        probes: Arc::new(|| "prober_probe_total 1\n".to_owned()),
    };
    let delegate = Arc::new(FakeDelegate { may: may.into() });
    let server = Server::over(config, directory.clone(), runtime.clone(), delegate).await.unwrap();
    let (address, context, mut tasks) = (server.local_addr(), Context::detached(), JoinSet::new());
    let served = context.clone();
    let (tell, stopped) = tokio::sync::watch::channel(false);
    tasks.spawn(async move {
        server.run(served).await.unwrap();
        tell.send_replace(true);
    });
    World { address, plain, authority, runtime, directory, context, stopped, tasks, dir }
}

/// Who asks.
#[derive(Clone, Copy)]
pub enum As {
    Nobody,
    Token(&'static str),
    /// Of that group, by certificate.
    Certificate(&'static str),
}

impl World {
    pub async fn connect(&mut self, who: As) -> hyper::client::conn::http1::SendRequest<Empty<Bytes>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.certificate.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider);
        let builder = builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
        let config = match who {
            As::Certificate(group) => {
                let (certificate, key) = self.authority.sign("who", group, ExtendedKeyUsagePurpose::ClientAuth);
                builder.with_client_auth_cert(vec![certificate], key).unwrap()
            }
            _ => builder.with_no_client_auth(),
        };
        let stream = TcpStream::connect(self.address).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let stream = connector.connect(ServerName::try_from("127.0.0.1").unwrap(), stream).await.unwrap();
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        self.tasks.spawn(async move { drop(connection.with_upgrades().await) });
        sender
    }

    pub fn request(who: As, method: &str, path: &str) -> hyper::http::request::Builder {
        let request = Request::builder().method(method).uri(path).header("host", "board-1");
        match who {
            As::Token(name) => request.header(AUTHORIZATION, format!("Bearer {name}")),
            _ => request,
        }
    }

    pub async fn ask(&mut self, who: As, method: &str, path: &str) -> (StatusCode, String) {
        let mut sender = self.connect(who).await;
        let answer = sender.send_request(Self::request(who, method, path).body(Empty::new()).unwrap()).await.unwrap();
        let status = answer.status();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    /// As the API server.
    pub async fn get(&mut self, path: &str) -> (StatusCode, String) {
        self.ask(MASTER, "GET", path).await
    }

    pub async fn upgrade(&mut self, path: &str, headers: &[(&str, &str)]) -> Result<Upgraded, (StatusCode, String)> {
        let mut sender = self.connect(MASTER).await;
        let mut request = Self::request(MASTER, "POST", path).header("connection", "Upgrade");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = sender.send_request(request.body(Empty::new()).unwrap()).await.unwrap();
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            let status = answer.status();
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            return Err((status, String::from_utf8(body.to_vec()).unwrap()));
        }
        Ok(hyper::upgrade::on(answer).await.unwrap())
    }

    pub async fn spdy(&mut self, path: &str, version: &str) -> SpdyClient<TokioIo<Upgraded>> {
        let headers = [("upgrade", "SPDY/3.1"), ("x-stream-protocol-version", version)];
        SpdyClient::new(TokioIo::new(self.upgrade(path, &headers).await.unwrap()))
    }

    pub async fn socket(&mut self, path: &str, version: &str) -> WebSocketStream<TokioIo<Upgraded>> {
        let headers = [
            ("upgrade", "websocket"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("sec-websocket-version", "13"),
            ("sec-websocket-protocol", version),
        ];
        let io = TokioIo::new(self.upgrade(path, &headers).await.unwrap());
        WebSocketStream::from_raw_socket(io, Role::Client, None).await
    }
}

pub const MASTER: As = As::Certificate("system:masters");
