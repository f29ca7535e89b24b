//! The API server as judge: `TokenReview` and `SubjectAccessReview`.

use std::{collections::BTreeMap, time::Duration};

use futures_util::future::BoxFuture;
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec},
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
};
use kube::api::PostParams;

use crate::api::{Api, Link};

/// Longest wait for the API server: a request to this node waits for it.
const PATIENCE: Duration = Duration::from_secs(10);
/// The same where it did not answer the last time: what is remembered is good enough then, and a scraper of metrics on the
/// board itself does not wait for ten seconds.
const PATIENCE_DOWN: Duration = Duration::from_secs(1);

/// Who asks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct User {
    /// User name: the common name of a certificate.
    pub name: String,
    /// Unique id, where the authenticator has one.
    pub uid: Option<String>,
    /// Groups: the organisations of a certificate.
    pub groups: Vec<String>,
    /// What else the authenticator knows.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// What he wants: always something of this node's.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AccessReview {
    /// `get`, `create`, …
    pub verb: &'static str,
    /// Of `nodes`.
    pub subresource: &'static str,
    /// The node.
    pub node: String,
}

/// The API server gave no verdict.
#[derive(Debug, thiserror::Error)]
pub enum DelegateError {
    /// It does not answer.
    #[error("the API server cannot be asked about a request to this node")]
    Unreachable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It answers, and not with a verdict.
    #[error("the API server refused to judge a request to this node: {0}")]
    Refused(String),
}

/// Who judges.
pub trait Delegate: Send + Sync + 'static {
    /// Whose token it is; `None`: nobody's.
    fn token(&self, token: String) -> BoxFuture<'_, Result<Option<User>, DelegateError>>;

    /// Whether he may.
    fn access(&self, user: User, review: AccessReview) -> BoxFuture<'_, Result<bool, DelegateError>>;
}

impl Delegate for Api {
    fn token(&self, token: String) -> BoxFuture<'_, Result<Option<User>, DelegateError>> {
        Box::pin(async move {
            let spec = TokenReviewSpec { token, ..TokenReviewSpec::default() };
            let review = TokenReview { spec, ..TokenReview::default() };
            let status = ask(self, &review).await?.status.unwrap_or_default();
            if !status.authenticated.unwrap_or(false) {
                return Ok(None);
            }
            let user = status.user.unwrap_or_default();
            Ok(Some(User {
                name: user.username.unwrap_or_default(),
                uid: user.uid.filter(|uid| !uid.is_empty()),
                groups: user.groups.unwrap_or_default(),
                extra: user.extra.unwrap_or_default(),
            }))
        })
    }

    fn access(&self, user: User, review: AccessReview) -> BoxFuture<'_, Result<bool, DelegateError>> {
        Box::pin(async move {
            let attributes = ResourceAttributes {
                verb: Some(review.verb.to_owned()),
                version: Some("v1".to_owned()),
                resource: Some("nodes".to_owned()),
                subresource: Some(review.subresource.to_owned()),
                name: Some(review.node),
                ..ResourceAttributes::default()
            };
            let spec = SubjectAccessReviewSpec {
                resource_attributes: Some(attributes),
                user: Some(user.name),
                uid: user.uid,
                groups: Some(user.groups),
                extra: Some(user.extra),
                ..SubjectAccessReviewSpec::default()
            };
            let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
            let status = ask(self, &review).await?.status.unwrap_or_default();
            Ok(status.allowed && !status.denied.unwrap_or(false))
        })
    }
}

async fn ask<K>(api: &Api, review: &K) -> Result<K, DelegateError>
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::ClusterResourceScope>
        + Clone
        + serde::Serialize
        + serde::de::DeserializeOwned
        + std::fmt::Debug,
{
    let is_down = matches!(&*api.link().borrow(), Link::Down { .. });
    let patience = if is_down { PATIENCE_DOWN } else { PATIENCE };
    let reviews: kube::Api<K> = kube::Api::all(api.client());
    let parameters = PostParams::default();
    match tokio::time::timeout(patience, reviews.create(&parameters, review)).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(kube::Error::Api(status))) if status.code < 500 && status.code != 429 => {
            Err(DelegateError::Refused(status.message.chars().take(400).collect()))
        }
        Ok(Err(error)) => Err(DelegateError::Unreachable(Box::new(error))),
        Err(late) => Err(DelegateError::Unreachable(Box::new(late))),
    }
}
