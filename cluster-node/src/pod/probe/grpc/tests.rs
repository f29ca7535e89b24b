//! Tests against a health server on the loopback.

use std::{
    convert::Infallible,
    future::{Future, ready},
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{net::TcpListener, task::JoinSet};
use tonic::{body::Body, server::NamedService};

use super::*;

/// Serves the service `up`; knows `down`; of others it knows nothing.
#[derive(Clone)]
struct Health;

impl NamedService for Health {
    const NAME: &'static str = "grpc.health.v1.Health";
}

type Answering = Pin<Box<dyn Future<Output = Result<hyper::Response<Body>, Infallible>> + Send>>;

impl tower::Service<hyper::Request<Body>> for Health {
    type Response = hyper::Response<Body>;
    type Error = Infallible;
    type Future = Answering;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: hyper::Request<Body>) -> Answering {
        let checking = tower::service_fn(|asked: tonic::Request<Request>| {
            ready(match asked.get_ref().service.as_str() {
                "up" => Ok(tonic::Response::new(Response { status: 1 })),
                "down" => Ok(tonic::Response::new(Response { status: 2 })),
                "old" => Err(tonic::Status::unimplemented("no health here")),
                _ => Err(tonic::Status::not_found("unknown service")),
            })
        });
        Box::pin(async move {
            Ok(tonic::server::Grpc::new(ProstCodec::<Response, Request>::default()).unary(checking, request).await)
        })
    }
}

#[tokio::test]
async fn health_is_asked_for() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let incoming = futures_util::stream::unfold(listener, |listener| async move {
        Some((listener.accept().await.map(|(stream, _)| stream), listener))
    });
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let _ = tonic::transport::Server::builder().add_service(Health).serve_with_incoming(incoming).await;
    });
    let ask = |service: &'static str| check("127.0.0.1", port, service, Duration::from_secs(5));
    assert_eq!(ask("up").await, Outcome::Success);
    let down = "service unhealthy (responded with \"NOT_SERVING\")";
    assert_eq!(ask("down").await, Outcome::Failure(down.into()));
    let old = "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): no health here";
    assert_eq!(ask("old").await, Outcome::Failure(old.into()));
    let unknown = "error: health rpc probe failed: rpc error: code = NotFound desc = unknown service";
    assert_eq!(ask("x").await, Outcome::Failure(unknown.into()));
}
