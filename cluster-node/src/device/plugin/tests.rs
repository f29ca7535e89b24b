//! Tests against a plugin on a unix socket.

use std::{
    convert::Infallible,
    future::{Future, ready},
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{net::UnixListener, task::JoinSet};
use tonic::{Response, body::Body, server::NamedService};

use super::{
    super::proto::{Device, DeviceSpec, HEALTHY},
    *,
};

/// Has two devices, gives what it is asked for, and refuses to prepare anything.
#[derive(Clone)]
struct Fake;

impl NamedService for Fake {
    const NAME: &'static str = "v1beta1.DevicePlugin";
}

type Answering = Pin<Box<dyn Future<Output = Result<hyper::Response<Body>, Infallible>> + Send>>;

impl tower::Service<hyper::Request<Body>> for Fake {
    type Response = hyper::Response<Body>;
    type Error = Infallible;
    type Future = Answering;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: hyper::Request<Body>) -> Answering {
        Box::pin(async move {
            let path = request.uri().path().to_owned();
            Ok(if path.ends_with("/ListAndWatch") {
                let device = |id: &str| Device { id: id.into(), health: HEALTHY.into(), topology: None };
                let listed = ListAndWatchResponse { devices: vec![device("a"), device("b")] };
                let stream = futures_util::stream::iter([Ok(listed)]);
                let listing = tower::service_fn(move |_: Request<Empty>| ready(Ok(Response::new(stream.clone()))));
                let codec = ProstCodec::<ListAndWatchResponse, Empty>::default();
                tonic::server::Grpc::new(codec).server_streaming(listing, request).await
            } else if path.ends_with("/Allocate") {
                let giving = tower::service_fn(|asked: Request<AllocateRequest>| {
                    let ids = &asked.get_ref().container_requests[0].devices_ids;
                    let device = |id: &String| DeviceSpec {
                        container_path: format!("/dev/{id}"),
                        host_path: format!("/dev/{id}"),
                        permissions: "rw".into(),
                    };
                    let given = ContainerAllocateResponse {
                        devices: ids.iter().map(device).collect(),
                        envs: [("IDS".to_owned(), ids.join(","))].into(),
                        ..ContainerAllocateResponse::default()
                    };
                    ready(Ok(Response::new(AllocateResponse { container_responses: vec![given] })))
                });
                let codec = ProstCodec::<AllocateResponse, AllocateRequest>::default();
                tonic::server::Grpc::new(codec).unary(giving, request).await
            } else {
                let refusing = tower::service_fn(|_: Request<DeviceIds>| {
                    ready(Err::<Response<Empty>, _>(Status::internal("the device is on fire")))
                });
                tonic::server::Grpc::new(ProstCodec::<Empty, DeviceIds>::default()).unary(refusing, request).await
            })
        })
    }
}

fn serve(socket: &Path) -> JoinSet<()> {
    let listener = UnixListener::bind(socket).unwrap();
    let incoming = futures_util::stream::unfold(listener, |listener| async move {
        let accepted = listener.accept().await.map(|(stream, _)| stream);
        Some((accepted, listener))
    });
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let _ = tonic::transport::Server::builder().add_service(Fake).serve_with_incoming(incoming).await;
    });
    tasks
}

#[tokio::test]
async fn a_plugin_is_asked_dies_and_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("plugin.sock");
    assert!(matches!(Plugin::connect(&socket).await, Err(PluginError::Connect { .. })));
    let mut served = serve(&socket);
    let plugin = Plugin::connect(&socket).await.unwrap();
    let mut devices = plugin.list_and_watch().await.unwrap();
    let listed = devices.message().await.unwrap().unwrap();
    assert_eq!(listed.devices.iter().map(|device| device.id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(devices.message().await.unwrap(), None, "the stream's end is seen");
    let given = plugin.allocate(vec!["a".into(), "b".into()]).await.unwrap();
    assert_eq!(given.envs["IDS"], "a,b");
    assert_eq!(given.devices[1].host_path, "/dev/b");
    let error = plugin.pre_start(vec!["a".into()]).await.unwrap_err();
    assert_eq!(error.to_string(), "the device plugin failed in PreStartContainer: the device is on fire");
    served.shutdown().await;
    std::fs::remove_file(&socket).unwrap();
    assert!(Plugin::connect(&socket).await.is_err());
    let _served = serve(&socket);
    assert!(Plugin::connect(&socket).await.unwrap().allocate(vec!["a".into()]).await.is_ok());
}
