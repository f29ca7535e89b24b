//! Tests of single runs, over the loopback.

use std::sync::atomic::{AtomicUsize, Ordering};

use k8s_openapi::{
    api::core::v1::{ExecAction, GRPCAction, TCPSocketAction},
    apimachinery::pkg::util::intstr::IntOrString,
};
use tokio::net::TcpListener;

use super::{super::exec::Answer, *};

/// Answers each command with its first word as the exit code; `late` takes too long, `broken` has no engine.
#[derive(Default)]
struct Fake(AtomicUsize);

impl Exec for Fake {
    fn exec<'a>(&'a self, id: &'a str, command: &'a [String], limit: Option<Duration>) -> Answer<'a> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            match command[0].as_str() {
                "late" => Err(ExecError::Timeout { command: "late".into(), after: limit.unwrap_or_default() }),
                "broken" => Err(ExecError::NoContainer(id.to_owned())),
                code => Ok(super::super::exec::Outcome { code: code.parse().unwrap(), output: "said".into() }),
            }
        })
    }
}

async fn ran(fake: &Fake, probe: Probe) -> Outcome {
    run(fake, &probe, &Container::default(), "1", Some("127.0.0.1"), Duration::from_secs(5)).await
}

#[tokio::test]
async fn commands() {
    #[track_caller]
    fn check(got: Outcome, want: Outcome, fake: &Fake, times: usize) {
        assert_eq!(got, want);
        assert_eq!(fake.0.swap(0, Ordering::SeqCst), times);
    }
    let probe = |word: &str| {
        let exec = ExecAction { command: Some(vec![word.to_owned()]) };
        Probe { exec: Some(exec), ..Probe::default() }
    };
    let fake = Fake::default();
    check(ran(&fake, probe("0")).await, Outcome::Success, &fake, 1);
    check(ran(&fake, probe("3")).await, Outcome::Failure("said".into()), &fake, 1);
    let late = Outcome::Failure("command timed out: \"late\" timed out after 5s".into());
    check(ran(&fake, probe("late")).await, late, &fake, 1);
    let broken = Outcome::Error("\"1\" is no container of the engine".into());
    check(ran(&fake, probe("broken")).await, broken, &fake, TRIES);
}

#[tokio::test]
async fn sockets() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let probe = |port: i32| {
        let action = TCPSocketAction { port: IntOrString::Int(port), host: None };
        Probe { tcp_socket: Some(action), ..Probe::default() }
    };
    let fake = Fake::default();
    assert_eq!(ran(&fake, probe(port.into())).await, Outcome::Success);
    assert_eq!(ran(&fake, probe(0)).await, Outcome::Error("invalid port number: 0".into()));
    drop(listener);
    let refused = format!("dial tcp 127.0.0.1:{port}: connect: connection refused");
    assert_eq!(ran(&fake, probe(port.into())).await, Outcome::Failure(refused));
}

#[tokio::test]
async fn a_grpc_server_that_is_none() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let grpc = GRPCAction { port: port.into(), service: None };
    let got = ran(&Fake::default(), Probe { grpc: Some(grpc), ..Probe::default() }).await;
    let Outcome::Failure(text) = got else { panic!("{got:?}") };
    assert!(text.starts_with(&format!("error: failed to connect service at \"127.0.0.1:{port}\"")), "{text}");
}

#[tokio::test]
async fn nothing_to_run() {
    assert!(matches!(ran(&Fake::default(), Probe::default()).await, Outcome::Error(_)));
}
