//! Tokens of service accounts: asked for as the pod that needs them, kept sealed, renewed long before they end.
//!
//! Always true:
//! - A token is asked for again at 80 % of its life or after a day, a few seconds earlier at random.
//! - Where that fails the last one is served while it stands; and however old it is while the link is down, for then nobody
//!   could check it either.
//!
//! Elsewhere: files with tokens in them (`volume::projected`).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
};

use board::clock::Clock;
use container_engine::registry::Secret as Hidden;
use k8s_openapi::{
    api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    api::core::v1::ServiceAccount,
};
use kube::{Api, api::PostParams};
use ring::rand::SecureRandom;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::{
    Cache, ObjectError,
    connection::{Connection, PATIENCE, problem_of, timed_out},
};

/// After so long a token is renewed however long it stands.
const LONGEST_AGE_S: i64 = 24 * 3600;
/// Most that is taken off at random, so that many pods' tokens do not end together.
const JITTER_S: i64 = 10;
/// Largest token that is believed to be one.
const MAX_TOKEN: usize = 64 << 10;
/// What the API server gives where nothing is said.
const USUAL_S: i64 = 3600;

/// What token is wanted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TokenWanted {
    /// Namespace of pod and service account.
    pub namespace: String,
    /// Service account.
    pub service_account: String,
    /// Who is to accept it; empty: the API server.
    pub audiences: Vec<String>,
    /// Seconds that it is to stand.
    pub expiration_s: i64,
    /// The pod it is bound to.
    pub pod: String,
    /// Its uid.
    pub uid: String,
}

/// A token. Its `Debug` does not show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// It.
    pub token: Hidden,
    /// Its end, seconds since 1970 UTC.
    pub expires_s: i64,
}

/// As it is kept, sealed.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Kept {
    wanted: TokenWanted,
    token: Hidden,
    issued_s: i64,
    expires_s: i64,
    /// Taken off the time of its renewal.
    jitter_s: i64,
}

impl Kept {
    fn is_due(&self, now_s: i64) -> bool {
        now_s >= due_at(self.issued_s, self.expires_s, self.jitter_s)
    }

    fn stands(&self, now_s: i64) -> bool {
        now_s < self.expires_s
    }

    fn token(&self) -> Token {
        Token { token: self.token.clone(), expires_s: self.expires_s }
    }
}

/// When a token is to be renewed.
fn due_at(issued_s: i64, expires_s: i64, jitter_s: i64) -> i64 {
    let life = expires_s.saturating_sub(issued_s).max(0);
    let at_life = expires_s.saturating_sub(life / 5);
    at_life.min(issued_s.saturating_add(LONGEST_AGE_S)).saturating_sub(jitter_s)
}

type Slot = Arc<tokio::sync::Mutex<Option<Kept>>>;

/// All tokens of this node's pods.
pub(super) struct Tokens {
    connection: Arc<dyn Connection>,
    cache: Cache,
    clock: Clock,
    /// By key; the inner lock lets one ask for all who want the same.
    slots: Mutex<BTreeMap<String, (TokenWanted, Slot)>>,
}

impl Tokens {
    /// With what was kept.
    pub fn new(connection: Arc<dyn Connection>, cache: Cache, clock: Clock) -> Self {
        let kept = cache.tokens::<Kept>();
        let slots = kept.into_iter().map(|(key, kept)| {
            let slot = (kept.wanted.clone(), Slot::new(tokio::sync::Mutex::new(Some(kept))));
            (key, slot)
        });
        let slots = Mutex::new(slots.collect());
        Self { connection, cache, clock, slots }
    }

    /// A token that stands, or the last one while the link is down.
    pub async fn get(&self, wanted: &TokenWanted) -> Result<Token, ObjectError> {
        let key = key_of(wanted);
        let slot = {
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            slots.entry(key.clone()).or_insert_with(|| (wanted.clone(), Slot::default())).1.clone()
        };
        let mut slot = slot.lock().await;
        if let Some(kept) = slot.as_ref().filter(|it| it.wanted == *wanted && !it.is_due(self.now_s())) {
            return Ok(kept.token());
        }
        let is_down = self.connection.is_down();
        let asked = match (slot.as_ref(), is_down) {
            // Nobody waits for a link that is known to be down.
            (Some(kept), true) => return Ok(kept.token()),
            _ => self.ask(wanted).await,
        };
        match (asked, slot.as_ref()) {
            (Ok(fresh), _) => {
                if let Err(error) = self.cache.put_token(&key, &fresh).await {
                    let (namespace, account) = (&wanted.namespace, &wanted.service_account);
                    tracing::warn!(namespace, account, %error, "a token was not kept for the time without the API server");
                }
                let token = fresh.token();
                *slot = Some(fresh);
                Ok(token)
            }
            (Err(error), Some(kept))
                if kept.stands(self.now_s()) || matches!(error, ObjectError::Unavailable { .. }) =>
            {
                let (namespace, account) = (&wanted.namespace, &wanted.service_account);
                tracing::warn!(namespace, account, %error, "a service account token could not be renewed; the last one is served");
                Ok(kept.token())
            }
            (Err(error), _) => Err(error),
        }
    }

    /// Pods with a token that is to be renewed.
    pub fn due(&self) -> BTreeSet<String> {
        let now_s = self.now_s();
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = |slot: &Slot| slot.try_lock().is_ok_and(|it| it.as_ref().is_some_and(|it| it.is_due(now_s)));
        slots.values().filter(|(_, slot)| is_due(slot)).map(|(wanted, _)| wanted.uid.clone()).collect()
    }

    /// Forgets the tokens of pods that are not among these.
    pub async fn retain(&self, is_there: impl Fn(&str) -> bool) {
        let mut gone = Vec::new();
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).retain(|key, (wanted, _)| {
            let stays = is_there(&wanted.uid);
            if !stays {
                gone.push(key.clone());
            }
            stays
        });
        if gone.is_empty() {
            return;
        }
        if let Err(error) = self.cache.remove_tokens(&gone).await {
            tracing::warn!(%error, "tokens of pods that are gone stay in the cache, sealed");
        }
    }

    async fn ask(&self, wanted: &TokenWanted) -> Result<Kept, ObjectError> {
        const KIND: &str = "serviceaccount token";
        let name = format!("{}/{}", wanted.namespace, wanted.service_account);
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(wanted.audiences.clone()),
                expiration_seconds: Some(wanted.expiration_s),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: Some(wanted.pod.clone()),
                    uid: Some(wanted.uid.clone()),
                }),
            }),
            ..TokenRequest::default()
        };
        let api: Api<ServiceAccount> = Api::namespaced(self.connection.client(), &wanted.namespace);
        let parameters = PostParams::default();
        let asked = api.create_token_request(&wanted.service_account, &parameters, &request);
        let answer = timeout(PATIENCE, asked).await.map_err(|_| timed_out(KIND, &name))?;
        let answer = answer.map_err(|error| problem_of(KIND, &name, &error))?;
        let refused =
            |message: &str| ObjectError::Refused { kind: KIND, name: name.clone(), message: message.to_owned() };
        let status = answer.status.ok_or_else(|| refused("the API server's answer has no token"))?;
        let is_token =
            |it: &String| !it.is_empty() && it.len() <= MAX_TOKEN && it.bytes().all(|byte| byte.is_ascii_graphic());
        let token = status.token.filter(is_token).ok_or_else(|| refused("the API server's answer is no token"))?;
        let given = answer.spec.and_then(|spec| spec.expiration_seconds).filter(|it| *it > 0);
        let life_s = given.unwrap_or(wanted.expiration_s.max(1));
        let expires_s =
            status.expiration_timestamp.map_or_else(|| self.now_s().saturating_add(life_s), |it| it.0.as_second());
        let issued_s = expires_s.saturating_sub(life_s);
        let jitter_s = jitter();
        Ok(Kept { wanted: wanted.clone(), token: Hidden::new(token), issued_s, expires_s, jitter_s })
    }

    fn now_s(&self) -> i64 {
        self.clock.stamp().wall_us.div_euclid(1_000_000)
    }
}

impl TokenWanted {
    /// For a projected volume: its audience where it has one, its seconds where it says them.
    pub fn projected(pod: &k8s_openapi::api::core::v1::Pod, audience: Option<&str>, expiration_s: Option<i64>) -> Self {
        let text = |it: &Option<String>| it.clone().unwrap_or_default();
        let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone());
        Self {
            namespace: text(&pod.metadata.namespace),
            service_account: account.filter(|it| !it.is_empty()).unwrap_or_else(|| "default".to_owned()),
            audiences: audience.filter(|it| !it.is_empty()).map(str::to_owned).into_iter().collect(),
            expiration_s: expiration_s.unwrap_or(USUAL_S),
            pod: text(&pod.metadata.name),
            uid: text(&pod.metadata.uid),
        }
    }
}

/// Of bounded length, whatever is in the request.
fn key_of(wanted: &TokenWanted) -> String {
    let json = serde_json::to_vec(wanted).unwrap_or_default();
    let digest = ring::digest::digest(&ring::digest::SHA256, &json);
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let uid: String = wanted.uid.chars().take(64).collect();
    format!("{uid}/{hex}")
}

fn jitter() -> i64 {
    let mut random = [0; 2];
    // Without random bytes the jitter is missing, nothing else.
    let _ = ring::rand::SystemRandom::new().fill(&mut random);
    i64::from(u16::from_le_bytes(random)) * JITTER_S / i64::from(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_a_token_is_renewed() {
        #[track_caller]
        fn check(issued_s: i64, expires_s: i64, jitter_s: i64, want: i64) {
            assert_eq!(due_at(issued_s, expires_s, jitter_s), want);
        }
        check(1000, 4600, 0, 1000 + 2880); // 80 % of an hour.
        check(1000, 4600, 7, 1000 + 2873);
        check(0, 7 * 86_400, 0, 86_400); // A day, whatever its life.
        check(100, 100, 0, 100);
        check(200, 100, 0, 100); // The server's clock is strange: at once.
        check(i64::MAX, i64::MIN, 10, i64::MIN);
        check(i64::MIN, i64::MAX, 10, i64::MIN + 86_390);
    }

    #[test]
    fn keys_differ_with_everything_that_is_wanted() {
        let first = TokenWanted {
            namespace: "ns".into(),
            service_account: "sa".into(),
            audiences: vec![],
            expiration_s: 3607,
            pod: "p".into(),
            uid: "u".into(),
        };
        let mut seen = BTreeSet::from([key_of(&first)]);
        let others = [
            TokenWanted { namespace: "ns2".into(), ..first.clone() },
            TokenWanted { service_account: "sb".into(), ..first.clone() },
            TokenWanted { audiences: vec!["vault".into()], ..first.clone() },
            TokenWanted { expiration_s: 600, ..first.clone() },
            TokenWanted { pod: "q".into(), ..first.clone() },
            TokenWanted { uid: "v".repeat(10_000), ..first.clone() },
        ];
        for other in others {
            let key = key_of(&other);
            assert!(key.len() <= 64 + 1 + 64, "{}", key.len());
            assert!(seen.insert(key), "{other:?}");
        }
        for _ in 0..100 {
            assert!((0..=JITTER_S).contains(&jitter()));
        }
    }
}
