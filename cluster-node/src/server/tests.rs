//! The server as its clients see it: over TLS, with certificates and tokens, by every protocol.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use board::tasks::Context;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
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
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, protocol::Role},
};

use super::{
    Config, Server,
    spdy::{Frame, tests::Client as SpdyClient},
    testing::{FakeDelegate, FakeDirectory, FakeRuntime},
};

#[derive(Debug)]
struct One(Arc<CertifiedKey>);

impl ResolvesServerCert for One {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "kubernetes");
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    fn sign(
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
struct World {
    address: SocketAddr,
    plain: SocketAddr,
    authority: Authority,
    runtime: Arc<FakeRuntime>,
    directory: Arc<FakeDirectory>,
    context: Context,
    tasks: JoinSet<()>,
    dir: tempfile::TempDir,
}

async fn world() -> World {
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
    tasks.spawn(async move { server.run(served).await.unwrap() });
    World { address, plain, authority, runtime, directory, context, tasks, dir }
}

/// Who asks.
#[derive(Clone, Copy)]
enum As {
    Nobody,
    Token(&'static str),
    /// Of that group, by certificate.
    Certificate(&'static str),
}

impl World {
    async fn connect(&mut self, who: As) -> hyper::client::conn::http1::SendRequest<Empty<Bytes>> {
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

    fn request(who: As, method: &str, path: &str) -> hyper::http::request::Builder {
        let request = Request::builder().method(method).uri(path).header("host", "board-1");
        match who {
            As::Token(name) => request.header(AUTHORIZATION, format!("Bearer {name}")),
            _ => request,
        }
    }

    async fn ask(&mut self, who: As, method: &str, path: &str) -> (StatusCode, String) {
        let mut sender = self.connect(who).await;
        let answer = sender.send_request(Self::request(who, method, path).body(Empty::new()).unwrap()).await.unwrap();
        let status = answer.status();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    /// As the API server.
    async fn get(&mut self, path: &str) -> (StatusCode, String) {
        self.ask(MASTER, "GET", path).await
    }

    async fn upgrade(&mut self, path: &str, headers: &[(&str, &str)]) -> Result<Upgraded, (StatusCode, String)> {
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

    async fn spdy(&mut self, path: &str, version: &str) -> SpdyClient<TokioIo<Upgraded>> {
        let headers = [("upgrade", "SPDY/3.1"), ("x-stream-protocol-version", version)];
        SpdyClient::new(TokioIo::new(self.upgrade(path, &headers).await.unwrap()))
    }

    async fn socket(&mut self, path: &str, version: &str) -> WebSocketStream<TokioIo<Upgraded>> {
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

const MASTER: As = As::Certificate("system:masters");

#[tokio::test]
async fn nobody_is_anonymous() {
    let mut world = world().await;
    let unauthorized = (StatusCode::UNAUTHORIZED, "Unauthorized".to_owned());
    for path in ["/healthz", "/pods", "/", "/metrics", "/nothing"] {
        assert_eq!(world.ask(As::Nobody, "GET", path).await, unauthorized, "{path}");
        assert_eq!(world.ask(As::Token("stolen"), "GET", path).await, unauthorized, "{path}");
    }
    assert_eq!(world.get("/healthz").await, (StatusCode::OK, "ok".into()));
    let (status, _) = world.ask(As::Token("token-of-prometheus"), "GET", "/metrics/resource").await;
    assert_eq!(status, StatusCode::OK);
    let forbidden = "Forbidden (user=prometheus, verb=get, resource=nodes, subresource(s)=[pods proxy])\n";
    let answer = world.ask(As::Token("token-of-prometheus"), "GET", "/pods").await;
    assert_eq!(answer, (StatusCode::FORBIDDEN, forbidden.to_owned()));
    let forbidden = "Forbidden (user=who, verb=create, resource=nodes, subresource(s)=[proxy])\n";
    let answer = world.ask(As::Certificate("others"), "POST", "/run/ns/p/c?cmd=exit+0").await;
    assert_eq!(answer, (StatusCode::FORBIDDEN, forbidden.to_owned()));
    assert_eq!(world.ask(As::Token("token-of-admin"), "GET", "/pods").await.0, StatusCode::OK);
}

#[tokio::test]
async fn certificates_of_another_authority_are_nobodys() {
    let mut world = world().await;
    let ours = std::mem::replace(&mut world.authority, Authority::new());
    let theirs = std::mem::replace(&mut world.authority, ours);
    let (certificate, key) = theirs.sign("who", "system:masters", ExtendedKeyUsagePurpose::ClientAuth);
    let mut roots = RootCertStore::empty();
    roots.add(world.authority.certificate.clone()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
    let config = builder.with_client_auth_cert(vec![certificate], key).unwrap();
    let stream = TcpStream::connect(world.address).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    // With TLS 1.3 the client learns of it only when it reads.
    let refused = match connector.connect(ServerName::try_from("127.0.0.1").unwrap(), stream).await {
        Err(_) => true,
        Ok(mut stream) => {
            let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: b\r\n\r\n").await;
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            answer.is_empty()
        }
    };
    assert!(refused);
}

#[tokio::test]
async fn pages_are_there() {
    let mut world = world().await;
    let (status, text) = world.get("/pods").await;
    let pods: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status, pods["items"][0]["metadata"]["uid"].as_str()), (StatusCode::OK, Some("uid-1")));
    let (_, text) = world.get("/runningpods/").await;
    let pods: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(pods["items"][0]["spec"]["containers"][0]["name"], "c");
    let (_, text) = world.get("/configz").await;
    assert!(text.contains(r#"{"kubeletconfig":{"kind":"KubeletConfiguration"}}"#), "{text}");
    assert_eq!(world.get("/metrics/probes").await.1, "prober_probe_total 1\n");
    assert!(
        world.get("/metrics/slis").await.1.contains("kubernetes_healthcheck{name=\"syncloop\",type=\"healthz\"} 1\n")
    );
    assert!(world.get("/metrics").await.1.contains("kubelet_running_containers{container_state=\"running\"} 2\n"));
    assert_eq!(
        world.get("/logs/syslog").await,
        (StatusCode::METHOD_NOT_ALLOWED, "logs endpoint is disabled.\n".into())
    );
    assert_eq!(world.ask(MASTER, "POST", "/checkpoint/ns/p/c").await.0, StatusCode::NOT_IMPLEMENTED);
    assert_eq!(world.ask(MASTER, "POST", "/checkpoint/ns/p/none").await.0, StatusCode::NOT_FOUND);
    assert_eq!(world.ask(MASTER, "POST", "/pods").await.0, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(world.get("/nothing").await.0, StatusCode::NOT_FOUND);
    *world.directory.problem.lock().unwrap() = Some("stuck".into());
    assert_eq!(world.get("/healthz").await.0, StatusCode::INTERNAL_SERVER_ERROR);
}

#[tokio::test]
async fn the_board_asks_in_plain() {
    let world = world().await;
    let mut stream = TcpStream::connect(world.plain).await.unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 200") && text.ends_with("ok"), "{text}");
    let mut stream = TcpStream::connect(world.plain).await.unwrap();
    stream.write_all(b"GET /pods HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 404"), "nothing but the health is told in plain: {text}");
}

#[tokio::test]
async fn statistics_are_exact_and_never_zero() {
    let mut world = world().await;
    let (_, text) = world.get("/stats/summary").await;
    let summary: serde_json::Value = serde_json::from_str(&text).unwrap();
    let pod = &summary["pods"][0];
    assert_eq!(pod["podRef"], serde_json::json!({"name": "p", "namespace": "ns", "uid": "uid-1"}));
    assert_eq!(pod["startTime"], "2026-11-02T10:00:00Z");
    let container = &pod["containers"][0];
    assert_eq!(container["memory"]["workingSetBytes"], 20 << 20);
    assert_eq!(container["memory"]["rssBytes"], 10 << 20);
    assert_eq!(container["rootfs"]["usedBytes"], 4096);
    assert_eq!(container["startTime"], "2023-11-14T22:13:21Z");
    assert!(container["cpu"]["usageCoreNanoSeconds"].as_u64().unwrap() >= 5_000_000_000);
    // Two looks a quarter of a second apart, in which 0.2 s were used (two containers share the counter).
    let rate = container["cpu"]["usageNanoCores"].as_u64().unwrap();
    assert!((300_000_000..900_000_000).contains(&rate), "{rate}");
    assert_eq!((pod["network"]["name"].as_str(), pod["network"]["rxBytes"].as_u64()), (Some("eth0"), Some(7)));
    assert_eq!(pod["memory"]["workingSetBytes"], 40 << 20);
    assert_eq!(summary["node"]["nodeName"], "board-1");
    assert_eq!(summary["node"]["runtime"]["imageFs"]["usedBytes"], 12_345);
    for (at, name) in [("cpu", "usageCoreNanoSeconds"), ("cpu", "usageNanoCores"), ("memory", "workingSetBytes")] {
        assert!(summary["node"][at][name].as_u64().unwrap() > 0, "{at} {name}");
    }
    let (_, text) = world.get("/stats/summary?only_cpu_and_memory=true").await;
    let short: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(short["pods"][0]["containers"][0]["rootfs"], serde_json::Value::Null);
    assert!(short["pods"][0]["containers"][0]["cpu"]["usageNanoCores"].is_u64());
    let (_, text) = world.get("/metrics/resource").await;
    let memory = "container_memory_working_set_bytes{container=\"c\",namespace=\"ns\",pod=\"p\"} 20971520 ";
    assert!(text.lines().any(|line| line.starts_with(memory)), "{text}");
    assert!(text.contains("container_start_time_seconds{container=\"c\",namespace=\"ns\",pod=\"p\"} 1700000001.5\n"));
    assert!(text.ends_with("resource_scrape_error 0\n"));
    let (_, text) = world.get("/metrics/cadvisor").await;
    assert!(text.contains("container_network_receive_bytes_total{container=\"\",id=\"uid-1\""), "{text}");
    assert!(text.contains("image=\"docker.io/library/busybox:1\""), "{text}");
}

#[tokio::test]
async fn logs_are_read_and_followed_to_the_end() {
    let mut world = world().await;
    assert_eq!(world.get("/containerLogs/ns/p/c").await, (StatusCode::OK, "one\n".into()));
    let missing = |text: &str| (StatusCode::NOT_FOUND, text.to_owned());
    assert_eq!(world.get("/containerLogs/ns/x/c").await, missing("pod \"x\" does not exist"));
    assert_eq!(world.get("/containerLogs/ns/p/x").await, missing("container \"x\" not found in pod \"p\""));
    let waits = "container \"waits\" in pod \"p\" is waiting to start: ContainerCreating";
    assert_eq!(world.get("/containerLogs/ns/p/waits").await, (StatusCode::BAD_REQUEST, waits.into()));
    let none = "previous terminated container \"c\" in pod \"p\" not found";
    assert_eq!(world.get("/containerLogs/ns/p/c?previous=true").await, (StatusCode::BAD_REQUEST, none.into()));
    let invalid = (StatusCode::UNPROCESSABLE_ENTITY, r#"{"message": "Invalid request."}"#.to_owned());
    assert_eq!(world.get("/containerLogs/ns/p/c?tailLines=-1").await, invalid);

    let mut sender = world.connect(MASTER).await;
    let request = World::request(MASTER, "GET", "/containerLogs/ns/p/c?follow=true").body(Empty::new()).unwrap();
    let mut body = sender.send_request(request).await.unwrap().into_body();
    let next = async |body: &mut hyper::body::Incoming| {
        let frame = timeout(Duration::from_secs(10), body.frame()).await.expect("a piece within ten seconds");
        frame.map(|frame| String::from_utf8(frame.unwrap().into_data().unwrap().to_vec()).unwrap())
    };
    assert_eq!(next(&mut body).await.as_deref(), Some("one\n"));
    let mut log = std::fs::OpenOptions::new().append(true).open(world.dir.path().join("0.log")).unwrap();
    std::io::Write::write_all(&mut log, b"2026-11-02T10:00:01Z stdout F two\n").unwrap();
    assert_eq!(next(&mut body).await.as_deref(), Some("two\n"));
    world.runtime.life.cancel();
    assert_eq!(next(&mut body).await, None, "it ends with the container");
}

#[tokio::test]
async fn run_gives_all_output() {
    let mut world = world().await;
    let (status, text) = world.ask(MASTER, "POST", "/run/ns/p/c?cmd=say+out+err").await;
    assert_eq!((status, text.as_str()), (StatusCode::OK, "outerr"));
    let (status, text) = world.ask(MASTER, "POST", "/run/ns/p/c?cmd=exit+3").await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(text.contains("exit code 3"), "{text}");
    assert_eq!(
        world.ask(MASTER, "POST", "/run/ns/x/c?cmd=exit+0").await,
        (StatusCode::NOT_FOUND, "pod does not exist".into())
    );
    assert_eq!(
        world.ask(MASTER, "POST", "/run/ns/p/other/c?cmd=exit+0").await,
        (StatusCode::NOT_FOUND, "pod not found".into())
    );
}

/// All of a SPDY session: what each stream has said, until the goodbye.
async fn rest(client: &mut SpdyClient<TokioIo<Upgraded>>) -> std::collections::BTreeMap<u32, String> {
    let mut said = std::collections::BTreeMap::<u32, String>::new();
    while let Some(frame) = client.next().await {
        match frame {
            Frame::Data { stream, bytes, .. } => {
                said.entry(stream).or_default().push_str(std::str::from_utf8(&bytes).unwrap());
            }
            Frame::GoAway { .. } => break,
            _ => {}
        }
    }
    said
}

#[tokio::test]
async fn exec_over_spdy() {
    let mut world = world().await;
    let mut client = world.spdy("/exec/ns/p/c?command=cat&input=1&output=1&error=1", "v4.channel.k8s.io").await;
    for (stream, kind) in [(1, "error"), (3, "stdin"), (5, "stdout"), (7, "stderr")] {
        client.open(stream, &[("streamtype", kind)]).await;
    }
    client.data(3, b"hello ", false).await;
    client.data(3, b"you", true).await;
    let said = rest(&mut client).await;
    assert_eq!(said[&5], "hello you");
    assert_eq!(serde_json::from_str::<serde_json::Value>(&said[&1]).unwrap()["status"], "Success");

    let mut client =
        world.spdy("/exec/ns/p/uid-1/c?command=say&command=a&command=b&output=1&error=1", "v4.channel.k8s.io").await;
    for (stream, kind) in [(1, "error"), (3, "stdout"), (5, "stderr")] {
        client.open(stream, &[("streamtype", kind)]).await;
    }
    let said = rest(&mut client).await;
    assert_eq!((said[&3].as_str(), said[&5].as_str()), ("a", "b"));
}

#[tokio::test]
async fn ends_are_told_in_each_version() {
    let mut world = world().await;
    for (version, want) in [
        ("v4.channel.k8s.io", r#""reason":"NonZeroExitCode""#),
        ("v3.channel.k8s.io", "command terminated with non-zero exit code"),
        ("v2.channel.k8s.io", "command terminated with non-zero exit code"),
        ("channel.k8s.io", "command terminated with non-zero exit code"),
    ] {
        let mut client = world.spdy("/exec/ns/p/c?command=exit&command=3&output=1", version).await;
        client.open(1, &[("streamtype", "error")]).await;
        client.open(3, &[("streamtype", "stdout")]).await;
        let said = rest(&mut client).await;
        assert!(said[&1].contains(want), "{version}: {said:?}");
    }
    let mut client = world.spdy("/exec/ns/p/c?command=missing&output=1", "v4.channel.k8s.io").await;
    client.open(1, &[("streamtype", "error")]).await;
    client.open(3, &[("streamtype", "stdout")]).await;
    let said = rest(&mut client).await;
    let want = "Internal error occurred: error executing command in container: executable file not found in $PATH";
    assert!(said[&1].contains(want), "{said:?}");
}

#[tokio::test]
async fn terminals_have_sizes() {
    let mut world = world().await;
    let mut client = world.spdy("/exec/ns/p/c?command=size&output=1&tty=1", "v4.channel.k8s.io").await;
    for (stream, kind) in [(1, "error"), (3, "stdout"), (5, "resize")] {
        client.open(stream, &[("streamtype", kind)]).await;
    }
    client.data(5, b"{\"Width\":80,\"Height\":24}\n", false).await;
    assert_eq!(rest(&mut client).await[&3], "24 80");
}

#[tokio::test]
async fn refusals_are_told_before_the_upgrade() {
    let mut world = world().await;
    let spdy = [("upgrade", "SPDY/3.1"), ("x-stream-protocol-version", "v4.channel.k8s.io")];
    let mut refused = async |path: &str| world.upgrade(path, &spdy).await.map(drop).unwrap_err();
    let (status, text) = refused("/exec/ns/p/c?command=cat").await;
    assert_eq!((status.as_u16(), text.as_str()), (400, "you must specify at least 1 of stdin, stdout, stderr"));
    assert_eq!(refused("/exec/ns/x/c?command=cat&output=1").await.0.as_u16(), 404);
    assert_eq!(refused("/exec/ns/p/old/c?command=cat&output=1").await, (StatusCode::NOT_FOUND, "pod not found".into()));
    let (status, text) = refused("/exec/ns/p/waits?command=cat&output=1").await;
    assert_eq!((status.as_u16(), text.as_str()), (500, "container not found (\"waits\")"));
    let (status, text) = refused("/attach/ns/p/waits?output=1").await;
    assert_eq!((status.as_u16(), text.as_str()), (500, "container waits not found in pod p_ns"));
    let other = [("upgrade", "SPDY/3.1"), ("x-stream-protocol-version", "v9")];
    assert_eq!(world.upgrade("/exec/ns/p/c?command=cat&output=1", &other).await.unwrap_err().0.as_u16(), 403);
    assert_eq!(world.upgrade("/exec/ns/p/c?command=cat&output=1", &[]).await.unwrap_err().0.as_u16(), 400);
}

#[tokio::test]
async fn a_client_that_goes_away_hangs_up() {
    let mut world = world().await;
    let mut client = world.spdy("/exec/ns/p/c?command=hang&output=1", "v4.channel.k8s.io").await;
    client.open(1, &[("streamtype", "error")]).await;
    client.open(3, &[("streamtype", "stdout")]).await;
    drop(client);
    let hung_up = world.runtime.hung_up.clone();
    let wait = async {
        while !hung_up.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(10), wait).await.expect("the process was told");
}

#[tokio::test]
async fn much_output_arrives_whole() {
    let mut world = world().await;
    let mut client = world.spdy("/exec/ns/p/c?command=much&command=5000000&output=1", "v4.channel.k8s.io").await;
    client.open(1, &[("streamtype", "error")]).await;
    client.open(3, &[("streamtype", "stdout")]).await;
    assert_eq!(rest(&mut client).await[&3].len(), 5_000_000);
}

#[tokio::test]
async fn attach_is_the_containers_own_stdio() {
    let mut world = world().await;
    let mut client = world.spdy("/attach/ns/p/c?input=1&output=1&error=1", "v4.channel.k8s.io").await;
    for (stream, kind) in [(1, "error"), (3, "stdin"), (5, "stdout"), (7, "stderr")] {
        client.open(stream, &[("streamtype", kind)]).await;
    }
    client.data(3, b"typed", true).await;
    let said = rest(&mut client).await;
    assert_eq!(said[&5], "typed");
    // It ended with 3, which the pod's status says: to whoever is attached it has just ended.
    assert_eq!(serde_json::from_str::<serde_json::Value>(&said[&1]).unwrap()["status"], "Success");
    let attach = world.runtime.attached.lock().unwrap().take().unwrap();
    assert!(attach.stdin && attach.stdout && attach.stderr && !attach.wait);
    let mut client = world.spdy("/attach/ns/p/tty?input=1&output=1&error=1", "v4.channel.k8s.io").await;
    // The container has a terminal, whatever the client says.
    for (stream, kind) in [(1, "error"), (3, "stdin"), (5, "stdout"), (7, "resize")] {
        client.open(stream, &[("streamtype", kind)]).await;
    }
    client.data(3, b"typed", true).await;
    assert_eq!(client.next().await, Some(Frame::Data { stream: 5, bytes: "typed".into(), fin: false }));
    assert!(!world.runtime.attached.lock().unwrap().as_ref().unwrap().stderr);
    assert!(timeout(Duration::from_millis(200), client.next()).await.is_err(), "its input goes on without this client");
}

async fn messages(socket: &mut WebSocketStream<TokioIo<Upgraded>>) -> Vec<Message> {
    let mut messages = Vec::new();
    while let Some(Ok(message)) =
        timeout(Duration::from_secs(10), socket.next()).await.expect("an end within ten seconds")
    {
        messages.push(message);
    }
    messages
}

#[tokio::test]
async fn exec_over_websocket() {
    let mut world = world().await;
    let path = "/exec/ns/p/c?command=cat&input=1&output=1&error=1";
    let mut socket = world.socket(path, "v5.channel.k8s.io, v4.channel.k8s.io").await;
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::binary(vec![1]));
    socket.send(Message::binary(b"\0hello".to_vec())).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::binary(b"\x01hello".to_vec()));
    socket.send(Message::binary(vec![255, 0])).await.unwrap();
    let all = messages(&mut socket).await;
    let Message::Binary(status) = &all[0] else { panic!("{all:?}") };
    assert_eq!((status[0], status[1..].starts_with(b"{")), (3, true));
    assert!(std::str::from_utf8(&status[1..]).unwrap().contains(r#""status":"Success""#));
    assert!(all[1].is_close(), "{all:?}");

    let mut socket = world.socket("/exec/ns/p/c?command=size&output=1&tty=1", "v4.channel.k8s.io").await;
    socket.send(Message::binary(b"\x04{\"Width\":80,\"Height\":24}".to_vec())).await.unwrap();
    assert!(messages(&mut socket).await.contains(&Message::binary(b"\x0124 80".to_vec())));

    let mut socket = world.socket("/exec/ns/p/c?command=exit&command=2&error=1", "base64.channel.k8s.io").await;
    let all = messages(&mut socket).await;
    assert_eq!(all[0], Message::text("2"));
    assert!(matches!(&all[1], Message::Text(text) if text.starts_with('3')), "{all:?}");
}

/// A server in "the pod": says hello, echoes, ends when its client does.
async fn pod_server(tasks: &mut JoinSet<()>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            connections.spawn(async move {
                stream.write_all(b"hello ").await.unwrap();
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    port
}

async fn forward_twice(client: &mut SpdyClient<impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>, port: u16) {
    let port_text = port.to_string();
    let headers = |kind, request| [("streamtype", kind), ("port", port_text.as_str()), ("requestid", request)];
    client.open(1, &headers("error", "0")).await;
    client.open(3, &headers("data", "0")).await;
    let hello = |stream| Some(Frame::Data { stream, bytes: "hello ".into(), fin: false });
    assert_eq!(client.next().await, hello(3));
    client.data(3, b"you", true).await;
    let (mut said, mut ends) = (Vec::new(), 0);
    while ends < 2 {
        match client.next().await.unwrap() {
            Frame::Data { stream, bytes, fin } => {
                ends += usize::from(fin);
                assert!(stream == 3 || bytes.is_empty(), "no error");
                said.extend_from_slice(&bytes);
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(said, b"you");
    client.open(5, &headers("error", "1")).await;
    client.open(7, &headers("data", "1")).await;
    assert_eq!(client.next().await, hello(7));
}

#[tokio::test]
async fn ports_are_forwarded_over_spdy() {
    let mut world = world().await;
    let port = pod_server(&mut world.tasks).await;
    let mut client = world.spdy("/portForward/ns/p", "portforward.k8s.io").await;
    forward_twice(&mut client, port).await;

    // Nobody listens there.
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let mut client = world.spdy("/portForward/ns/p/uid-1", "portforward.k8s.io").await;
    let closed = closed.to_string();
    client.open(1, &[("streamtype", "error"), ("port", &closed), ("requestid", "0")]).await;
    client.open(3, &[("streamtype", "data"), ("port", &closed), ("requestid", "0")]).await;
    let Some(Frame::Data { stream: 1, bytes, .. }) = client.next().await else { panic!("no error came") };
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    let want = format!("error forwarding port {closed} to pod p_ns, uid uid-1: ");
    assert!(text.starts_with(&want) && text.contains("refused"), "{text}");

    *world.directory.netns.lock().unwrap() = Err(super::NoNetwork);
    let spdy = [("upgrade", "SPDY/3.1"), ("x-stream-protocol-version", "portforward.k8s.io")];
    assert_eq!(world.upgrade("/portForward/ns/p", &spdy).await.unwrap_err().0.as_u16(), 500);
}

#[tokio::test]
async fn ports_are_forwarded_through_a_websocket() {
    let mut world = world().await;
    let port = pod_server(&mut world.tasks).await;
    let socket = world.socket("/portForward/ns/p", "SPDY/3.1+portforward.k8s.io").await;
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let (mut sink, mut stream) = socket.split();
    let (mut read, mut write) = tokio::io::split(theirs);
    world.tasks.spawn(async move {
        let mut buffer = vec![0; 1000];
        while let Ok(n @ 1..) = read.read(&mut buffer).await {
            sink.send(Message::binary(buffer[..n].to_vec())).await.unwrap();
        }
    });
    world.tasks.spawn(async move {
        while let Some(Ok(Message::Binary(bytes))) = stream.next().await {
            if write.write_all(&bytes).await.is_err() {
                return;
            }
        }
    });
    forward_twice(&mut SpdyClient::new(ours), port).await;
}

#[tokio::test]
async fn ports_are_forwarded_over_channels() {
    let mut world = world().await;
    let port = pod_server(&mut world.tasks).await;
    let mut socket = world.socket(&format!("/portForward/ns/p?port={port}&port={port}"), "v4.channel.k8s.io").await;
    let [low, high] = port.to_le_bytes();
    let mut seen = Vec::new();
    while seen.len() < 6 {
        seen.push(socket.next().await.unwrap().unwrap());
    }
    for channel in 0..4 {
        assert!(seen.contains(&Message::binary(vec![channel, low, high])), "{seen:?}");
    }
    assert!(
        seen.contains(&Message::binary(b"\0hello ".to_vec()))
            && seen.contains(&Message::binary(b"\x02hello ".to_vec()))
    );
    socket.send(Message::binary(b"\x02you".to_vec())).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::binary(b"\x02you".to_vec()));
}

#[tokio::test]
async fn a_server_that_stops_ends_its_sessions() {
    let mut world = world().await;
    let mut client = world.spdy("/exec/ns/p/c?command=hang&output=1", "v4.channel.k8s.io").await;
    client.open(1, &[("streamtype", "error")]).await;
    client.open(3, &[("streamtype", "stdout")]).await;
    world.context.stop.cancel();
    assert_eq!(timeout(Duration::from_secs(10), client.next()).await.expect("an end"), None);
}
