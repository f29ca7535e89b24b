//! port-forward, by every protocol.

use futures_util::{SinkExt, StreamExt};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinSet,
};
use tokio_tungstenite::tungstenite::Message;

use super::world::world;
use crate::server::{
    NoNetwork,
    spdy::{Frame, tests::Client as SpdyClient},
};

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

    *world.directory.netns.lock().unwrap() = Err(NoNetwork);
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
