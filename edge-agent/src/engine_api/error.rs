//! Refusals as they go over the socket: `{"error": {"code", "message", "exit_code"?}}` and a status that fits.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use container_engine::{
    commit::CommitError,
    container::{ContainerError, CreateError, ResolveError, StartError},
    image::{ArchiveError, GcError, ImageError, PullError, PushError},
    network::{AttachError, NetworkError},
    reference::ReferenceError,
    registry::RegistryError,
    volume::VolumeError,
};

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    code: &'static str,
    message: String,
    /// What `container run` and `exec` end with.
    exit_code: Option<i32>,
}

impl ApiError {
    /// What was asked is not understood.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self { code: "invalid", message: message.into(), exit_code: None }
    }

    /// There is no such thing.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self { code: "not_found", message: message.into(), exit_code: None }
    }

    /// It cannot be done now.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self { code: "unavailable", message: message.into(), exit_code: None }
    }

    /// Something of ours failed.
    pub fn internal(message: impl Into<String>) -> Self {
        Self { code: "internal", message: message.into(), exit_code: None }
    }

    /// Of an error with a code of its own.
    pub fn of(code: &'static str, error: &(dyn std::error::Error + 'static)) -> Self {
        Self { code, message: board::tasks::chain(error), exit_code: None }
    }

    /// As a line of an answer that has begun.
    pub fn line(&self) -> Vec<u8> {
        // Texts have a JSON form.
        let mut line = serde_json::to_vec(&self.body()).unwrap_or_default();
        line.push(b'\n');
        line
    }

    fn body(&self) -> serde_json::Value {
        let mut error = serde_json::json!({ "code": self.code, "message": self.message });
        if let Some(code) = self.exit_code {
            error["exit_code"] = code.into();
        }
        serde_json::json!({ "error": error })
    }

    fn status(&self) -> StatusCode {
        match self.code {
            "not_found" => StatusCode::NOT_FOUND,
            "conflict" => StatusCode::CONFLICT,
            "invalid" | "platform" => StatusCode::BAD_REQUEST,
            "denied" => StatusCode::FORBIDDEN,
            "unavailable" => StatusCode::SERVICE_UNAVAILABLE,
            "no_space" => StatusCode::INSUFFICIENT_STORAGE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status(), Json(self.body())).into_response()
    }
}

/// Errors of the engine that know their code.
macro_rules! with_code {
    ($($error:ty),+) => {
        $(impl From<$error> for ApiError {
            fn from(error: $error) -> Self {
                Self::of(error.code(), &error)
            }
        })+
    };
}

/// Those that also know what `run` and `exec` end with.
macro_rules! with_exit_code {
    ($($error:ty),+) => {
        $(impl From<$error> for ApiError {
            fn from(error: $error) -> Self {
                Self { exit_code: Some(error.exit_code()), ..Self::of(error.code(), &error) }
            }
        })+
    };
}

with_code!(ResolveError, CreateError, CommitError, NetworkError, AttachError, VolumeError);
with_code!(ArchiveError, GcError, ImageError, PullError, PushError, RegistryError);
with_exit_code!(StartError, ContainerError);

impl From<ReferenceError> for ApiError {
    fn from(error: ReferenceError) -> Self {
        Self::of("invalid", &error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_become_statuses() {
        #[track_caller]
        fn check(code: &'static str, want: u16) {
            let error = ApiError { code, message: "m".into(), exit_code: None };
            assert_eq!(error.status().as_u16(), want, "{code}");
        }
        check("not_found", 404);
        check("conflict", 409);
        check("invalid", 400);
        check("platform", 400);
        check("denied", 403);
        check("unavailable", 503);
        check("no_space", 507);
        check("internal", 500);
        check("anything", 500);
    }

    #[test]
    fn engine_errors_keep_their_code_and_exit_code() {
        let absent = ApiError::from(ImageError::NotFound("alpine".into()));
        assert_eq!((absent.code, absent.status().as_u16()), ("not_found", 404));
        assert!(absent.message.contains("alpine"));
        let missing = ApiError::from(ContainerError::CommandNotFound("sh: not found".into()));
        assert_eq!(missing.exit_code, Some(127));
        let line = String::from_utf8(missing.line()).unwrap();
        assert!(line.ends_with('\n') && line.contains("\"exit_code\":127"), "{line}");
        let denied = ApiError::from(ContainerError::CommandNotExecutable("x".into()));
        assert_eq!(denied.exit_code, Some(126));
    }
}
