//! Hooks of a container's life: `postStart` and `preStop`.
//!
//! Elsewhere: when they run, and how much of the grace period they may take (`pod::runtime`).

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler};

use super::{
    exec::Exec,
    http::{self, Get, HttpError, Purpose},
};

/// What a hook did besides what it was told to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// A warning for the event `LifecycleHTTPFallback`: asked over TLS, the server spoke plain HTTP.
    pub fallback: Option<String>,
}

/// A hook failed; the text is the kubelet's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct HookError(pub String);

/// Runs a hook to its end.
///
/// * `pod` is `NAME_NAMESPACE(UID)`, for messages; `ip` the pod's address.
/// * Cancelled, as when the grace period is over: connections are closed, sleeps end; a command goes on by itself until
///   its container ends.
pub async fn run(
    exec: &dyn Exec,
    handler: &LifecycleHandler,
    container: &Container,
    id: &str,
    pod: &str,
    ip: Option<&str>,
) -> Result<Done, HookError> {
    let (name, done) = (&container.name, Done { fallback: None });
    if let Some(action) = &handler.exec {
        let command = action.command.as_deref().unwrap_or_default();
        let failed = |problem: String, output: &str| {
            let command = command.join(" ");
            Err(HookError(format!(
                "Exec lifecycle hook ([{command}]) for Container {name:?} in Pod {pod:?} failed - error: {problem}, \
                 message: {output:?}"
            )))
        };
        return match exec.exec(id, command, None).await {
            Ok(outcome) if outcome.code == 0 => Ok(done),
            Ok(outcome) => {
                failed(format!("command {:?} exited with {}", command.join(" "), outcome.code), &outcome.output)
            }
            Err(error) => failed(error.text(), ""),
        };
    }
    if let Some(action) = &handler.http_get {
        let failed = |problem: String| {
            let path = action.path.as_deref().unwrap_or_default();
            HookError(format!(
                "HTTP lifecycle hook ({path}) for Container {name:?} in Pod {pod:?} failed - error: {problem}"
            ))
        };
        let host = action.host.as_deref().filter(|host| !host.is_empty()).or(ip);
        let host = host.ok_or_else(|| failed("failed to find networking container".to_owned()))?;
        let get = Get::of(action, container, host, Purpose::Lifecycle).map_err(|error| failed(error.to_string()))?;
        return http_get(get).await.map_err(|error| failed(error.to_string()));
    }
    if let Some(action) = &handler.sleep {
        tokio::time::sleep(Duration::from_secs(u64::try_from(action.seconds).unwrap_or(0))).await;
        return Ok(done);
    }
    Err(HookError("Cannot run handler: it names neither exec, httpGet nor sleep".to_owned()))
}

/// Any answer will do.
async fn http_get(get: Get) -> Result<Done, HttpError> {
    match http::get(&get, None).await {
        Ok(_) => Ok(Done { fallback: None }),
        Err(HttpError::Plain { .. }) => {
            let mut plain = Get { tls: false, ..get };
            plain.headers.remove(hyper::header::AUTHORIZATION);
            http::get(&plain, None).await?;
            let host = plain.authority();
            let warning =
                format!("request to HTTPS lifecycle hook {host} got HTTP response, retry with HTTP succeeded");
            Ok(Done { fallback: Some(warning) })
        }
        Err(error) => Err(error),
    }
}
