//! One run of a probe.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Probe};
use tokio::net::TcpStream;

use super::{
    exec::{Exec, ExecError},
    grpc,
    http::{self, Get, HttpError, Purpose},
    port,
};

/// Tries of a probe that could not be made.
const TRIES: usize = 3;

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Well.
    Success,
    /// Well, but somebody should look.
    Warning(String),
    /// Not well.
    Failure(String),
    /// It could not be made, and says nothing about the container.
    Error(String),
}

/// Runs a probe, up to three times where it cannot be made.
pub async fn run(
    exec: &dyn Exec,
    probe: &Probe,
    container: &Container,
    id: &str,
    ip: Option<&str>,
    limit: Duration,
) -> Outcome {
    let mut outcome = once(exec, probe, container, id, ip, limit).await;
    for _ in 1..TRIES {
        if !matches!(outcome, Outcome::Error(_)) {
            break;
        }
        outcome = once(exec, probe, container, id, ip, limit).await;
    }
    outcome
}

async fn once(
    exec: &dyn Exec,
    probe: &Probe,
    container: &Container,
    id: &str,
    ip: Option<&str>,
    limit: Duration,
) -> Outcome {
    if let Some(action) = &probe.exec {
        return match exec.exec(id, action.command.as_deref().unwrap_or_default(), Some(limit)).await {
            Ok(done) if done.code == 0 => Outcome::Success,
            Ok(done) => Outcome::Failure(done.output),
            Err(error @ ExecError::Timeout { .. }) => Outcome::Failure(error.to_string()),
            Err(error) => Outcome::Error(error.text()),
        };
    }
    if let Some(action) = &probe.http_get {
        match address(action.host.as_deref(), ip) {
            Ok(host) => http_get(Get::of(action, container, host, Purpose::Probe), limit).await,
            Err(outcome) => outcome,
        }
    } else if let Some(action) = &probe.tcp_socket {
        match (address(action.host.as_deref(), ip), port::resolve(&action.port, container)) {
            (Ok(host), Ok(port)) => tcp(host, port, limit).await,
            (Err(outcome), _) => outcome,
            (_, Err(error)) => Outcome::Error(error.to_string()),
        }
    } else if let Some(action) = &probe.grpc {
        match (address(None, ip), port::number_of(i64::from(action.port))) {
            (Ok(host), Ok(port)) => grpc::check(host, port, action.service.as_deref().unwrap_or_default(), limit).await,
            (Err(outcome), _) => outcome,
            (_, Err(error)) => Outcome::Error(error.to_string()),
        }
    } else {
        Outcome::Error(format!("missing probe handler for {}", container.name))
    }
}

fn address<'a>(host: Option<&'a str>, ip: Option<&'a str>) -> Result<&'a str, Outcome> {
    let no = || Outcome::Error("the pod has no address yet".to_owned());
    host.filter(|host| !host.is_empty()).or(ip).ok_or_else(no)
}

async fn http_get(get: Result<Get, HttpError>, limit: Duration) -> Outcome {
    let get = match get {
        Ok(get) => get,
        Err(error @ HttpError::Port(_)) => return Outcome::Error(error.to_string()),
        Err(error) => return Outcome::Failure(error.to_string()),
    };
    match http::get(&get, Some(limit)).await {
        Ok(answer) => match answer.status.as_u16() {
            200..=299 => Outcome::Success,
            300..=399 => Outcome::Warning(format!("Probe terminated redirects, Response body: {}", answer.body)),
            // The body stays out of events: it may hold what is not for everybody who can read those.
            status => Outcome::Failure(format!("HTTP probe failed with statuscode: {status}")),
        },
        Err(error) => Outcome::Failure(error.to_string()),
    }
}

async fn tcp(host: &str, port: u16, limit: Duration) -> Outcome {
    let authority = http::authority(host, port);
    match tokio::time::timeout(limit, TcpStream::connect((host, port))).await {
        Ok(Ok(_)) => Outcome::Success,
        Ok(Err(error)) => Outcome::Failure(http::dial_problem(&authority, &error)),
        Err(_) => Outcome::Failure(format!("dial tcp {authority}: i/o timeout")),
    }
}

#[cfg(test)]
mod tests;
