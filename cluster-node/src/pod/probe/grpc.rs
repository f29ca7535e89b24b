//! The gRPC probe: `grpc.health.v1.Health/Check`.

use std::time::Duration;

use hyper::http::uri::PathAndQuery;
use tonic::{Code, client::Grpc, transport::Endpoint};

use super::{http, run::Outcome};
use crate::grpc::ProstCodec;

/// `HealthCheckRequest` of grpc/health/v1/health.proto.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Request {
    /// Empty: the server as a whole.
    #[prost(string, tag = "1")]
    pub service: String,
}

/// `HealthCheckResponse` of grpc/health/v1/health.proto.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Response {
    /// 0 unknown, 1 serving, 2 not serving, 3 unknown service.
    #[prost(int32, tag = "1")]
    pub status: i32,
}

/// Largest answer; a health answer has two bytes.
const MAX_ANSWER: usize = 4 << 10;

/// Asks a server for its health. A failure of any kind is a failed probe.
pub async fn check(host: &str, port: u16, service: &str, limit: Duration) -> Outcome {
    let authority = http::authority(host, port);
    let deadline = tokio::time::Instant::now() + limit;
    let refused = |error: &(dyn std::error::Error + 'static)| {
        let problem = board::tasks::chain(error);
        Outcome::Failure(format!("error: failed to connect service at {authority:?}: {problem}"))
    };
    let endpoint = match Endpoint::from_shared(format!("http://{authority}")) {
        Ok(endpoint) => endpoint,
        Err(error) => return refused(&error),
    };
    let endpoint = match endpoint.user_agent("kube-probe/1.36") {
        Ok(endpoint) => endpoint,
        Err(error) => return refused(&error),
    };
    let channel = match tokio::time::timeout_at(deadline, endpoint.connect()).await {
        Ok(Ok(channel)) => channel,
        Ok(Err(error)) => return refused(&error),
        Err(_) => {
            return Outcome::Failure(format!(
                "timeout: failed to connect service {authority:?} within {limit:?}: context deadline exceeded"
            ));
        }
    };
    let mut client = Grpc::new(channel).max_decoding_message_size(MAX_ANSWER);
    let call = async {
        client.ready().await.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
        let request = tonic::Request::new(Request { service: service.to_owned() });
        let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
        client.unary(request, path, ProstCodec::<Request, Response>::default()).await
    };
    match tokio::time::timeout_at(deadline, call).await {
        Err(_) => Outcome::Failure(format!("timeout: health rpc did not complete within {limit:?}")),
        Ok(Ok(answer)) => judge(answer.get_ref().status),
        Ok(Err(status)) => Outcome::Failure(match status.code() {
            Code::Unimplemented => format!(
                "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {}",
                status.message()
            ),
            Code::DeadlineExceeded => format!("timeout: health rpc did not complete within {limit:?}"),
            code => format!("error: health rpc probe failed: rpc error: code = {code:?} desc = {}", status.message()),
        }),
    }
}

fn judge(status: i32) -> Outcome {
    let name = match status {
        1 => return Outcome::Success,
        0 => "UNKNOWN".to_owned(),
        2 => "NOT_SERVING".to_owned(),
        3 => "SERVICE_UNKNOWN".to_owned(),
        other => other.to_string(),
    };
    Outcome::Failure(format!("service unhealthy (responded with {name:?})"))
}

#[cfg(test)]
mod tests;
