//! [`Judge`]: who a request is from, and whether he may have what he asks for.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use base64::Engine as _;
use tokio::{sync::Semaphore, time::Instant};

use super::{
    AccessReview, Delegate, DelegateError, User,
    cache::{Cache, Remembered},
};

/// How long a review of a token stands.
const TOKEN_LIFE: Duration = Duration::from_secs(120);
/// How long a token that is nobody's stays nobody's.
const BAD_TOKEN_LIFE: Duration = Duration::from_secs(10);
/// How long a permission stands.
const ALLOWED_LIFE: Duration = Duration::from_secs(300);
/// How long a refusal stands.
const DENIED_LIFE: Duration = Duration::from_secs(30);
/// Longest token: they are headers, and a service account's has about 1 KiB.
const MAX_TOKEN: usize = 16 << 10;
/// Reviews of tokens at a time.
const REVIEWS: usize = 8;
/// Verdicts remembered of each kind.
const REMEMBERED: usize = 1024;
/// The user of the API server's client certificate for kubelets, as kubeadm makes it.
const API_SERVER: &str = "kube-apiserver-kubelet-client";
/// The group that may everything, whatever the cluster's roles say.
const MASTERS: &str = "system:masters";

/// The answer to "may he?".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// He may.
    Allowed,
    /// He may not.
    Denied,
}

type TokenKey = [u8; 32];
type AccessKey = (User, AccessReview);

/// Decides who may come in.
pub struct Judge {
    node: String,
    delegate: Arc<dyn Delegate>,
    tokens: Mutex<Cache<TokenKey, Option<User>>>,
    access: Mutex<Cache<AccessKey, bool>>,
    /// Reviews of tokens that are under way: strangers with many tokens must not keep the API server busy.
    reviews: Semaphore,
}

impl Judge {
    /// A judge for the node of that name.
    pub fn new(node: String, delegate: Arc<dyn Delegate>) -> Self {
        Self {
            node,
            delegate,
            tokens: Mutex::new(Cache::new(REMEMBERED)),
            access: Mutex::new(Cache::new(REMEMBERED)),
            reviews: Semaphore::new(REVIEWS),
        }
    }

    /// The user of an `Authorization` header; `None`: nobody is.
    pub async fn bearer(&self, header: Option<&str>) -> Option<User> {
        let token = token_of(header?)?;
        let key = key_of(token);
        let known = self.tokens.lock().unwrap_or_else(PoisonError::into_inner).get(&key, Instant::now());
        if let Some(Remembered::Fresh(user)) = known {
            return user;
        }
        let turn = self.reviews.acquire().await;
        let reviewed = self.delegate.token(token.to_owned()).await;
        drop(turn);
        match reviewed {
            Ok(user) => {
                let user = user.filter(|user| !user.name.is_empty());
                let life = if user.is_some() { TOKEN_LIFE } else { BAD_TOKEN_LIFE };
                let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
                tokens.put(key, user.clone(), life, Instant::now());
                user
            }
            Err(error @ DelegateError::Refused(_)) => {
                tracing::warn!(%error, "a token cannot be reviewed");
                None
            }
            Err(error) => {
                let user = known.and_then(|(Remembered::Fresh(user) | Remembered::Stale(user))| user);
                let user = user.filter(|_| !has_expired(token, SystemTime::now()));
                if user.is_none() {
                    tracing::warn!(error = %board::tasks::chain(&error), "a token cannot be reviewed");
                }
                user
            }
        }
    }

    /// Whether the user may have one of those subresources of this node.
    pub async fn access(&self, user: &User, verb: &'static str, subresources: &'static [&'static str]) -> Verdict {
        if user.groups.iter().any(|group| group == MASTERS) {
            return Verdict::Allowed;
        }
        for subresource in subresources.iter().copied() {
            let review = AccessReview { verb, subresource, node: self.node.clone() };
            if self.allows(user, review).await {
                return Verdict::Allowed;
            }
        }
        Verdict::Denied
    }

    async fn allows(&self, user: &User, review: AccessReview) -> bool {
        let key = (user.clone(), review);
        let known = self.access.lock().unwrap_or_else(PoisonError::into_inner).get(&key, Instant::now());
        if let Some(Remembered::Fresh(allowed)) = known {
            return allowed;
        }
        match self.delegate.access(key.0.clone(), key.1.clone()).await {
            Ok(allowed) => {
                let life = if allowed { ALLOWED_LIFE } else { DENIED_LIFE };
                let mut access = self.access.lock().unwrap_or_else(PoisonError::into_inner);
                access.put(key, allowed, life, Instant::now());
                allowed
            }
            Err(error @ DelegateError::Refused(_)) => {
                tracing::warn!(%error, user = user.name, "an access cannot be reviewed");
                false
            }
            Err(error) => {
                let allowed = match known {
                    Some(Remembered::Fresh(allowed) | Remembered::Stale(allowed)) => allowed,
                    None => user.name == API_SERVER,
                };
                if !allowed {
                    tracing::warn!(error = %board::tasks::chain(&error), user = user.name, "an access cannot be reviewed");
                }
                allowed
            }
        }
    }
}

/// The token of `Bearer TOKEN`.
fn token_of(header: &str) -> Option<&str> {
    let (scheme, token) = header.trim().split_once(' ')?;
    let token = token.trim();
    let plain = !token.is_empty() && token.len() <= MAX_TOKEN && !token.contains(' ');
    (scheme.eq_ignore_ascii_case("bearer") && plain).then_some(token)
}

fn key_of(token: &str) -> TokenKey {
    let digest = ring::digest::digest(&ring::digest::SHA256, token.as_bytes());
    let mut key = TokenKey::default();
    key.copy_from_slice(digest.as_ref());
    key
}

/// Whether a token that was good once says itself that it no longer is. One that says nothing has no end.
fn has_expired(token: &str, now: SystemTime) -> bool {
    #[derive(serde::Deserialize)]
    struct Claims {
        exp: Option<f64>,
    }
    let claims = || {
        let part = token.split('.').nth(1)?;
        let json = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(part).ok()?;
        serde_json::from_slice::<Claims>(&json).ok()?.exp
    };
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    claims().is_some_and(|end| end <= now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_cut_out_of_their_header() {
        #[track_caller]
        fn check(header: &str, want: Option<&str>) {
            assert_eq!(token_of(header), want, "{header:?}");
        }
        check("Bearer abc", Some("abc"));
        check("bearer  abc ", Some("abc"));
        check("Basic abc", None);
        check("Bearer", None);
        check("Bearer ", None);
        check("Bearer a b", None);
        check(&format!("Bearer {}", "x".repeat(MAX_TOKEN + 1)), None);
    }

    #[test]
    fn a_token_says_when_it_ends() {
        let token = |claims: &str| {
            let part = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(claims);
            format!("e30.{part}.c2ln")
        };
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        assert!(has_expired(&token(r#"{"exp":100}"#), at(100)));
        assert!(!has_expired(&token(r#"{"exp":100}"#), at(99)));
        assert!(!has_expired(&token("{}"), at(99)));
        assert!(!has_expired("opaque", at(99)));
        assert!(!has_expired("a.!!!.c", at(99)));
    }
}
