//! The API server as the objects see it: a client, whether the link is known to be down, and errors by their meaning.
//!
//! Elsewhere: the connection itself (`api`).

use std::{fmt::Debug, time::Duration};

use k8s_openapi::{
    Resource,
    api::core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Secret, Service},
};
use serde::de::DeserializeOwned;

use super::ObjectError;
use crate::api::{Api, Link};

/// Largest object, bytes of its data: the limit of config maps and secrets.
pub const MAX_OBJECT: usize = 1 << 20;
/// How long one request may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// What the objects need of the connection to the API server, and no more.
pub trait Connection: Send + Sync + 'static {
    /// A client.
    fn client(&self) -> kube::Client;
    /// Whether the link is known to be down: then nobody waits for it who has a copy.
    fn is_down(&self) -> bool;
}

impl Connection for Api {
    fn client(&self) -> kube::Client {
        self.client()
    }

    fn is_down(&self) -> bool {
        matches!(*self.link().borrow(), Link::Down { .. })
    }
}

/// A kind of object that pods refer to.
pub(super) trait Kind: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static {
    /// In messages: `configmap`.
    const WORD: &'static str;
    /// Bytes of its data.
    fn size(&self) -> usize;
}

impl Kind for ConfigMap {
    const WORD: &'static str = "configmap";

    fn size(&self) -> usize {
        let text: usize = self.data.iter().flatten().map(|(key, value)| key.len() + value.len()).sum();
        let binary: usize = self.binary_data.iter().flatten().map(|(key, value)| key.len() + value.0.len()).sum();
        text.saturating_add(binary)
    }
}

impl Kind for Secret {
    const WORD: &'static str = "secret";

    fn size(&self) -> usize {
        self.data.iter().flatten().map(|(key, value)| key.len() + value.0.len()).sum()
    }
}

impl Kind for PersistentVolumeClaim {
    const WORD: &'static str = "persistentvolumeclaim";

    fn size(&self) -> usize {
        0
    }
}

impl Kind for PersistentVolume {
    const WORD: &'static str = "persistentvolume";

    fn size(&self) -> usize {
        0
    }
}

impl Kind for Service {
    const WORD: &'static str = "service";

    fn size(&self) -> usize {
        0
    }
}

/// What a failed request means for the object `name`.
pub(super) fn problem_of(kind: &'static str, name: &str, error: &kube::Error) -> ObjectError {
    let name = name.to_owned();
    match error {
        kube::Error::Api(status) if status.code == 404 => ObjectError::NotFound { kind, name },
        kube::Error::Api(status) if status.code == 403 => {
            ObjectError::Forbidden { kind, name, message: shortened(&status.message) }
        }
        // Too early, too often, or the server's own trouble; and a certificate that ran out says nothing of the object.
        kube::Error::Api(status) if !matches!(status.code, 401 | 408 | 409 | 410 | 425 | 429) && status.code < 500 => {
            ObjectError::Refused { kind, name, message: shortened(&status.message) }
        }
        kube::Error::Api(status) => ObjectError::Unavailable { kind, name, problem: shortened(&status.message) },
        // What does not parse could be quoted in the error, and it may be a secret.
        kube::Error::SerdeError(_) => {
            ObjectError::Unavailable { kind, name, problem: "the API server's answer cannot be read".to_owned() }
        }
        error => ObjectError::Unavailable { kind, name, problem: shortened(&board::tasks::chain(error)) },
    }
}

/// The patience ran out.
pub(super) fn timed_out(kind: &'static str, name: &str) -> ObjectError {
    let problem = format!("no answer within {} s", PATIENCE.as_secs());
    ObjectError::Unavailable { kind, name: name.to_owned(), problem }
}

/// An object larger than it may be is refused whoever sent it.
pub(super) fn bounded<K: Kind>(name: &str, object: K) -> Result<K, ObjectError> {
    if object.size() > MAX_OBJECT {
        return Err(ObjectError::TooLarge { kind: K::WORD, name: name.to_owned(), max: MAX_OBJECT });
    }
    Ok(object)
}

/// The API server's words, not at any length.
fn shortened(message: &str) -> String {
    const MOST: usize = 512;
    match message.char_indices().nth(MOST) {
        Some((at, _)) => format!("{}…", &message[..at]),
        None => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failures_mean() {
        #[track_caller]
        fn check(code: u16, want: fn(&ObjectError) -> bool) {
            let status = serde_json::json!({ "status": "Failure", "code": code, "message": "ü".repeat(10_000) });
            let status: kube::core::Status = serde_json::from_value(status).unwrap();
            let problem = problem_of("secret", "s", &kube::Error::Api(Box::new(status)));
            assert!(want(&problem), "{code}: {problem:?}");
            assert!(problem.to_string().len() < 2048);
        }
        check(404, ObjectError::is_not_found);
        check(403, |it| matches!(it, ObjectError::Forbidden { .. }));
        check(400, |it| matches!(it, ObjectError::Refused { .. }));
        check(422, |it| matches!(it, ObjectError::Refused { .. }));
        for code in [401, 408, 410, 429, 500, 503] {
            check(code, |it| matches!(it, ObjectError::Unavailable { .. }));
        }
        let quoted = serde_json::from_str::<u8>("\"hush-hush\"").unwrap_err();
        let problem = problem_of("secret", "s", &kube::Error::SerdeError(quoted));
        assert!(!problem.to_string().contains("hush"), "{problem}");
    }
}
