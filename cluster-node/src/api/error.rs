//! What a failed request means for who made it.

use kube::Error;

/// The kinds of failures that are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// No answer: the link, or the server.
    Unreachable,
    /// 401: the certificate or token is not (or no longer) taken.
    Unauthorized,
    /// 403. For what a pod refers to this may pass: the server learns of the reference a moment after the pod.
    Forbidden,
    /// 404.
    NotFound,
    /// 409: it exists already, or was changed by another.
    Conflict,
    /// 410: what was watched from is too old.
    Gone,
    /// 422, 400: the server does not take it, and will not.
    Invalid,
    /// 429 and 5xx: later.
    Busy,
    /// Something else, such as an answer that is not understood.
    Other,
}

/// Which kind a failure is.
pub fn failure(error: &Error) -> Failure {
    let Error::Api(status) = error else {
        return match error {
            Error::Service(_) | Error::HyperError(_) | Error::ReadEvents(_) => Failure::Unreachable,
            _ => Failure::Other,
        };
    };
    match status.code {
        401 => Failure::Unauthorized,
        403 => Failure::Forbidden,
        404 => Failure::NotFound,
        409 => Failure::Conflict,
        410 => Failure::Gone,
        400 | 422 => Failure::Invalid,
        429 | 500..=599 => Failure::Busy,
        _ => Failure::Other,
    }
}

impl Failure {
    /// Whether the same request may succeed later.
    pub fn is_transient(self) -> bool {
        matches!(self, Self::Unreachable | Self::Busy | Self::Forbidden | Self::Unauthorized)
    }
}
