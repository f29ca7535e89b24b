//! A device plugin as the node calls it, over its unix socket.

use std::{path::Path, time::Duration};

use hyper::http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::net::UnixStream;
use tonic::{
    Request, Status, Streaming,
    client::Grpc,
    transport::{Channel, Endpoint},
};

use super::proto::{
    AllocateRequest, AllocateResponse, ContainerAllocateResponse, DeviceIds, DevicePluginOptions, Empty,
    ListAndWatchResponse, PreferredAllocationRequest, PreferredAllocationResponse, PreferredRequest,
};
use crate::grpc::ProstCodec;

/// To connect.
const CONNECT: Duration = Duration::from_secs(10);
/// For a call; the kubelet gives `PreStartContainer` as much.
const CALL: Duration = Duration::from_secs(30);

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    /// No connection.
    #[error("cannot connect to the device plugin at {path}: is its pod running?")]
    Connect {
        /// Its socket.
        path: String,
        /// Why.
        source: tonic::transport::Error,
    },
    /// It refused, or took longer than it may.
    #[error("the device plugin failed in {call}: {}", status.message())]
    Call {
        /// Which.
        call: &'static str,
        /// What it said.
        status: Status,
    },
}

/// A connection to a plugin; cheap to clone.
#[derive(Debug, Clone)]
pub struct Plugin(Channel);

impl Plugin {
    /// Connects to its socket.
    pub async fn connect(socket: &Path) -> Result<Self, PluginError> {
        let path = socket.to_owned();
        let failed = |source| PluginError::Connect { path: socket.display().to_string(), source };
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // The name is asked for by HTTP/2 and means nothing on a socket of the same host.
        let endpoint = Endpoint::from_static("http://localhost").connect_timeout(CONNECT);
        endpoint.connect_with_connector(connector).await.map(Self).map_err(failed)
    }

    /// What it wants to be asked.
    pub async fn options(&self) -> Result<DevicePluginOptions, PluginError> {
        self.call("GetDevicePluginOptions", Empty {}).await
    }

    /// Its devices, again whenever they change; the stream ends with the plugin.
    pub async fn list_and_watch(&self) -> Result<Streaming<ListAndWatchResponse>, PluginError> {
        let call = "ListAndWatch";
        let failed = |status| PluginError::Call { call, status };
        let mut client = self.client().await.map_err(failed)?;
        let path = PathAndQuery::from_static("/v1beta1.DevicePlugin/ListAndWatch");
        let codec = ProstCodec::<Empty, ListAndWatchResponse>::default();
        let answer = client.server_streaming(Request::new(Empty {}), path, codec).await;
        answer.map(tonic::Response::into_inner).map_err(failed)
    }

    /// Which of `available` it would rather give.
    pub async fn preferred(&self, request: PreferredRequest) -> Result<Vec<String>, PluginError> {
        let request = PreferredAllocationRequest { container_requests: vec![request] };
        let answer: PreferredAllocationResponse = self.call("GetPreferredAllocation", request).await?;
        Ok(answer.container_responses.into_iter().next().unwrap_or_default().devices_ids)
    }

    /// What a container needs to have these devices.
    pub async fn allocate(&self, devices_ids: Vec<String>) -> Result<ContainerAllocateResponse, PluginError> {
        let request = AllocateRequest { container_requests: vec![DeviceIds { devices_ids }] };
        let answer: AllocateResponse = self.call("Allocate", request).await?;
        Ok(answer.container_responses.into_iter().next().unwrap_or_default())
    }

    /// Before the container is started, where the plugin asked for that.
    pub async fn pre_start(&self, devices_ids: Vec<String>) -> Result<(), PluginError> {
        self.call::<_, Empty>("PreStartContainer", DeviceIds { devices_ids }).await.map(drop)
    }

    async fn client(&self) -> Result<Grpc<Channel>, Status> {
        let mut client = Grpc::new(self.0.clone());
        client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(client)
    }

    async fn call<Q, A>(&self, call: &'static str, request: Q) -> Result<A, PluginError>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let asked = async {
            let mut client = self.client().await?;
            let path = PathAndQuery::try_from(format!("/v1beta1.DevicePlugin/{call}"));
            let path = path.map_err(|error| Status::internal(error.to_string()))?;
            client.unary(Request::new(request), path, ProstCodec::<Q, A>::default()).await
        };
        let late = |_| Status::deadline_exceeded(format!("no answer within {CALL:?}"));
        let answer = tokio::time::timeout(CALL, asked).await.unwrap_or_else(|over| Err(late(over)));
        answer.map(tonic::Response::into_inner).map_err(|status| PluginError::Call { call, status })
    }
}

#[cfg(test)]
mod tests;
