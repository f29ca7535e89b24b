//! Logging in: basic, and tokens of an authorisation server (Docker's token specification), kept until they expire.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use reqwest::{Client, StatusCode, header::HeaderValue};
use ring::digest;
use serde::Deserialize;

use super::{
    Credentials, RegistryError, Secret,
    client::{Ask, Endpoint, broken},
};

/// What a token lives where its server does not say: the specification's minimum.
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
/// Tokens kept; the oldest goes first.
const MAX_TOKENS: usize = 256;
/// Largest answer of an authorisation server, bytes.
const MAX_ANSWER: usize = 256 << 10;

/// A login that was accepted, by place, scopes and user.
#[derive(Default)]
pub(super) struct Tokens(Mutex<BTreeMap<String, (HeaderValue, Instant)>>);

#[derive(Deserialize)]
struct Answer {
    token: Option<Secret>,
    access_token: Option<Secret>,
    expires_in: Option<u64>,
}

/// Of a challenge: where tokens are given, for which service.
#[derive(Debug, PartialEq, Eq)]
struct Bearer {
    realm: String,
    service: Option<String>,
    scope: Option<String>,
}

impl Tokens {
    /// The header of an earlier login.
    pub(super) fn known(
        &self,
        endpoint: &Endpoint,
        scopes: &[String],
        credentials: &Credentials,
    ) -> Option<HeaderValue> {
        let tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (value, until) = tokens.get(&key(endpoint, scopes, credentials))?;
        (*until > Instant::now()).then(|| value.clone())
    }

    /// Drops one that is no longer accepted.
    pub(super) fn forget(&self, endpoint: &Endpoint, scopes: &[String], credentials: &Credentials) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&key(endpoint, scopes, credentials));
    }

    /// Answers a challenge.
    pub(super) async fn obtain(
        &self,
        client: &Client,
        endpoint: &Endpoint,
        ask: &Ask<'_>,
        credentials: &Credentials,
        challenges: &[String],
    ) -> Result<HeaderValue, RegistryError> {
        let (bearer, basic) = read(challenges);
        let unauthorized =
            || RegistryError::Unauthorized { registry: endpoint.host.clone(), image: ask.image.familiar() };
        let (text, life) = if let Some(bearer) = bearer {
            let answer = fetch(client, endpoint, ask, credentials, &bearer).await?;
            let token =
                answer.token.or(answer.access_token).ok_or_else(|| protocol(endpoint, "no token in its answer"))?;
            let life = answer.expires_in.map_or(DEFAULT_LIFE, |it| Duration::from_secs(it.clamp(10, 86_400)));
            // Used up a little earlier than it ends.
            (format!("Bearer {}", token.reveal()), life.mul_f32(0.9))
        } else if let (true, Credentials::Basic { username, password }) = (basic, credentials) {
            let pair = STANDARD.encode(format!("{username}:{}", password.reveal()));
            (format!("Basic {pair}"), Duration::from_secs(3600))
        } else {
            return Err(unauthorized());
        };
        let mut value = HeaderValue::from_str(&text).map_err(|_| unauthorized())?;
        value.set_sensitive(true);
        let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        tokens.retain(|_, (_, until)| *until > now);
        if tokens.len() >= MAX_TOKENS {
            tokens.pop_first();
        }
        tokens.insert(key(endpoint, ask.scopes, credentials), (value.clone(), now + life));
        Ok(value)
    }
}

/// Without the secret itself, of which only a hash is kept.
fn key(endpoint: &Endpoint, scopes: &[String], credentials: &Credentials) -> String {
    let who = match credentials {
        Credentials::Anonymous => String::new(),
        Credentials::Basic { username, password } => format!("{username}\0{}", password.reveal()),
        Credentials::IdentityToken { token } => format!("\0{}", token.reveal()),
    };
    let who = digest::digest(&digest::SHA256, who.as_bytes());
    format!("{} {} {}", endpoint.base, scopes.join(" "), STANDARD.encode(who))
}

fn protocol(endpoint: &Endpoint, problem: &str) -> RegistryError {
    let (registry, what) = (endpoint.host.clone(), "a token".to_owned());
    RegistryError::Protocol { registry, what, problem: problem.to_owned() }
}

/// What the challenges offer: tokens, basic.
fn read(challenges: &[String]) -> (Option<Bearer>, bool) {
    let (mut bearer, mut basic) = (None, false);
    for text in challenges.iter().filter(|it| it.len() < 8192) {
        for challenge in http_auth::parse_challenges(text).unwrap_or_default() {
            basic |= challenge.scheme.eq_ignore_ascii_case("basic");
            if !challenge.scheme.eq_ignore_ascii_case("bearer") {
                continue;
            }
            let param = |name: &str| {
                let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.to_unescaped())
            };
            if let Some(realm) = param("realm") {
                bearer = Some(Bearer { realm, service: param("service"), scope: param("scope") });
            }
        }
    }
    (bearer, basic)
}

async fn fetch(
    client: &Client,
    endpoint: &Endpoint,
    ask: &Ask<'_>,
    credentials: &Credentials,
    bearer: &Bearer,
) -> Result<Answer, RegistryError> {
    let mut url: url::Url = bearer.realm.parse().map_err(|_| protocol(endpoint, "its challenge names no URL"))?;
    // A password never leaves TLS because of what a challenge says.
    let to_plain = url.scheme() != "https" && !endpoint.insecure;
    if to_plain || !matches!(url.scheme(), "https" | "http") {
        return Err(protocol(endpoint, "its challenge asks for a login without TLS"));
    }
    let mut scopes: Vec<&str> = ask.scopes.iter().map(String::as_str).collect();
    if let Some(scope) = bearer.scope.as_deref().filter(|scope| !scope.is_empty() && scopes.is_empty()) {
        scopes.push(scope);
    }
    let request = if let Credentials::IdentityToken { token } = credentials {
        let service = bearer.service.clone().unwrap_or_default();
        let form = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("grant_type", "refresh_token")
            .append_pair("client_id", "edge-agent")
            .append_pair("service", &service)
            .append_pair("scope", &scopes.join(" "))
            .append_pair("refresh_token", token.reveal())
            .finish();
        client.post(url).header("content-type", "application/x-www-form-urlencoded").body(form)
    } else {
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = &bearer.service {
                query.append_pair("service", service);
            }
            for scope in &scopes {
                query.append_pair("scope", scope);
            }
        }
        let request = client.get(url);
        match credentials {
            Credentials::Basic { username, password } => request.basic_auth(username, Some(password.reveal())),
            _ => request,
        }
    };
    let mut answer = request.send().await.map_err(|error| broken(endpoint, &error))?;
    let (registry, image) = (endpoint.host.clone(), ask.image.familiar());
    match answer.status() {
        status if status.is_success() => {}
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => {
            return Err(match credentials {
                Credentials::Anonymous => RegistryError::Unauthorized { registry, image },
                _ => RegistryError::Denied { registry, image },
            });
        }
        status => {
            let (what, retry_after) = ("a token".to_owned(), None);
            return Err(RegistryError::Unavailable { registry, what, status: status.as_u16(), retry_after });
        }
    }
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|error| broken(endpoint, &error))? {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_ANSWER {
            return Err(protocol(endpoint, "its answer is too long"));
        }
    }
    serde_json::from_slice(&body).map_err(|_| protocol(endpoint, "its answer is no JSON"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        #[track_caller]
        fn check(text: &str, realm: Option<&str>, basic: bool) {
            let (bearer, got) = read(&[text.to_owned()]);
            assert_eq!((bearer.map(|it| it.realm).as_deref(), got), (realm, basic), "{text}");
        }
        check(
            r#"Bearer realm="https://auth.x/token",service="x",scope="repository:a:pull""#,
            Some("https://auth.x/token"),
            false,
        );
        check(r#"bearer realm="https://a",error="insufficient_scope""#, Some("https://a"), false);
        check(r#"Basic realm="Registry""#, None, true);
        check(r#"Basic realm="x", Bearer realm="https://a""#, Some("https://a"), true);
        check("Bearer", None, false);
        check("\u{7f}", None, false);
        check("", None, false);
    }
}
