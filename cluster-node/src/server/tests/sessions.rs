//! exec and attach, by every protocol.

use std::{sync::atomic::Ordering, time::Duration};

use futures_util::{SinkExt, StreamExt};
use hyper::{StatusCode, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};

use super::world::{MASTER, world};
use crate::server::spdy::{Frame, tests::Client as SpdyClient};

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

#[tokio::test]
async fn a_server_that_stops_ends_its_sessions() {
    let mut world = world().await;
    let mut client = world.spdy("/exec/ns/p/c?command=hang&output=1", "v4.channel.k8s.io").await;
    client.open(1, &[("streamtype", "error")]).await;
    client.open(3, &[("streamtype", "stdout")]).await;
    // An idle connection is no reason to wait.
    let _idle = world.connect(MASTER).await;
    world.get("/healthz").await;
    let begun = std::time::Instant::now();
    world.context.stop.cancel();
    assert_eq!(timeout(Duration::from_secs(10), client.next()).await.expect("an end"), None);
    world.stopped.changed().await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}
