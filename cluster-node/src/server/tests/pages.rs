//! Who may come in, and the pages that are there.

use std::{sync::Arc, time::Duration};

use http_body_util::{BodyExt, Empty};
use hyper::StatusCode;
use rcgen::ExtendedKeyUsagePurpose;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::world::{As, Authority, MASTER, World, world};

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
    let metrics = world.ask(As::Token("token-of-admin"), "GET", "/%6detrics").await;
    assert_eq!(metrics.0, StatusCode::FORBIDDEN, "however it is written: {}", metrics.1);
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
