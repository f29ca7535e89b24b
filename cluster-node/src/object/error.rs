//! Why an object is not to be had. Elsewhere: what the pod is told of it (`pod::spec`, `volume`).

/// Why a config map, a secret, a claim, a volume or a token is not to be had.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ObjectError {
    /// The API server does not have it.
    #[error("{kind} \"{name}\" not found")]
    NotFound {
        /// `configmap`, `secret`, …: the resource in the singular or plural, as the API server writes it.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The node may not read it: no pod that is bound here names it, or the authorizer has not heard of the pod yet.
    #[error("{kind} \"{name}\" is forbidden: {message}")]
    Forbidden {
        /// The resource.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The API server's words.
        message: String,
    },
    /// There is no answer, and nothing kept from before.
    #[error("{kind} \"{name}\" could not be fetched, and none is kept from before: {problem}")]
    Unavailable {
        /// The resource.
        kind: &'static str,
        /// Its name.
        name: String,
        /// What was wrong with the request, or with the link.
        problem: String,
    },
    /// What came is larger than an object may be.
    #[error("{kind} \"{name}\" is larger than {max} bytes: make it smaller")]
    TooLarge {
        /// The resource.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The limit.
        max: usize,
    },
    /// The API server refused the request as it is.
    #[error("{kind} \"{name}\": {message}")]
    Refused {
        /// The resource.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The API server's words.
        message: String,
    },
}

impl ObjectError {
    /// Whether the same call may succeed later without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Forbidden { .. })
    }

    /// Whether the object is known not to exist: what is optional may be left out then, and only then.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }
}
