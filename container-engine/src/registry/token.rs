//! Logging in: basic, and tokens of an authorisation server (Docker's token specification), kept until they expire.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use reqwest::{
    Body, Client, RequestBuilder, StatusCode,
    header::{self, HeaderValue},
};
use ring::digest;
use serde::Deserialize;

use super::{
    Credentials, Registry, RegistryError, Secret,
    client::{Ask, broken, retry_after},
    endpoint::Endpoint,
};

/// What a token lives where its server does not say: the specification's minimum.
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
/// Tokens kept; the oldest goes first.
const MAX_TOKENS: usize = 256;
/// Longest challenge that is read, bytes.
const MAX_CHALLENGE: usize = 8192;

/// A login that was accepted, by place, scopes and user.
#[derive(Default)]
pub(super) struct Tokens(Mutex<BTreeMap<String, (HeaderValue, Instant)>>);

#[derive(Deserialize)]
struct Answer {
    token: Option<Secret>,
    access_token: Option<Secret>,
    expires_in: Option<u64>,
}

/// How a registry wants to be told who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    /// By user and password.
    Basic,
    /// By a token.
    Bearer {
        /// URL where tokens are given.
        realm: String,
        /// For which service.
        service: Option<String>,
        /// For what, if it says so.
        scope: Option<String>,
    },
}

/// Of a challenge: where tokens are given, for which service.
struct Bearer<'a> {
    realm: &'a str,
    service: Option<&'a str>,
    scope: Option<&'a str>,
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

    fn keep(&self, key: String, value: HeaderValue, life: Duration) {
        let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        tokens.retain(|_, (_, until)| *until > now);
        if tokens.len() >= MAX_TOKENS {
            // The one that ends first.
            let first = tokens.iter().min_by_key(|(_, (_, until))| *until).map(|(key, _)| key.clone());
            first.map(|key| tokens.remove(&key));
        }
        tokens.insert(key, (value, now + life));
    }
}

impl Registry {
    /// Answers a challenge.
    pub(super) async fn obtain(
        &self,
        endpoint: &Endpoint,
        ask: &Ask<'_>,
        credentials: &Credentials,
        challenges: &[String],
    ) -> Result<HeaderValue, RegistryError> {
        let challenges: Vec<_> = challenges.iter().flat_map(|text| read_challenges(text)).collect();
        let bearer = challenges.iter().find_map(|challenge| match challenge {
            Challenge::Bearer { realm, service, scope } => {
                Some(Bearer { realm, service: service.as_deref(), scope: scope.as_deref() })
            }
            Challenge::Basic => None,
        });
        let unauthorized =
            || RegistryError::Unauthorized { registry: endpoint.host.clone(), image: ask.image.familiar() };
        let (text, life) = if let Some(bearer) = bearer {
            let answer = self.fetch_token(endpoint, ask, credentials, &bearer).await?;
            let given = [answer.token, answer.access_token].into_iter().flatten().find(|it| !it.reveal().is_empty());
            let token = given.ok_or_else(|| protocol(endpoint, "no token in its answer"))?;
            let life = answer.expires_in.map_or(DEFAULT_LIFE, |it| Duration::from_secs(it.clamp(10, 86_400)));
            // Used up a little earlier than it ends.
            (format!("Bearer {}", token.reveal()), life.mul_f32(0.9))
        } else if let (true, Credentials::Basic { username, password }) =
            (challenges.contains(&Challenge::Basic), credentials)
        {
            let pair = STANDARD.encode(format!("{username}:{}", password.reveal()));
            (format!("Basic {pair}"), Duration::from_secs(3600))
        } else {
            return Err(unauthorized());
        };
        let mut value = HeaderValue::from_str(&text).map_err(|_| unauthorized())?;
        value.set_sensitive(true);
        self.0.tokens.keep(key(endpoint, ask.scopes, credentials), value.clone(), life);
        Ok(value)
    }

    async fn fetch_token(
        &self,
        endpoint: &Endpoint,
        ask: &Ask<'_>,
        credentials: &Credentials,
        bearer: &Bearer<'_>,
    ) -> Result<Answer, RegistryError> {
        let url: url::Url = bearer.realm.parse().map_err(|_| protocol(endpoint, "its challenge names no URL"))?;
        // A password never leaves TLS because of what a challenge says.
        let to_plain = url.scheme() != "https" && !endpoint.insecure;
        if to_plain || !matches!(url.scheme(), "https" | "http") {
            return Err(protocol(endpoint, "its challenge asks for a login without TLS"));
        }
        let client = self.0.places.token_client(endpoint, &url)?;
        let request = token_request(&client, url.clone(), ask, credentials, bearer);
        let answer = tokio::time::timeout(self.0.silence, request.send()).await;
        let answer = answer.map_err(|_| RegistryError::Silent { registry: endpoint.host.clone() })?;
        let answer = answer.map_err(|error| broken(endpoint, &error))?;
        let (registry, image) = (endpoint.host.clone(), ask.image.familiar());
        match answer.status() {
            status if status.is_success() => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => {
                return Err(match credentials {
                    Credentials::Anonymous => RegistryError::Unauthorized { registry, image },
                    _ => RegistryError::Denied { registry, image },
                });
            }
            status if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() => {
                let (what, retry_after) = ("a token".to_owned(), retry_after(answer.headers()));
                return Err(RegistryError::Unavailable { registry, what, status: status.as_u16(), retry_after });
            }
            status => return Err(protocol(endpoint, &format!("HTTP {}", status.as_u16()))),
        }
        let body = self.whole(endpoint, answer, "a token").await?;
        serde_json::from_slice(&body).map_err(|_| protocol(endpoint, "its answer is no JSON with a token"))
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

/// What a `WWW-Authenticate` header offers; what cannot be read offers nothing.
pub fn read_challenges(text: &str) -> Vec<Challenge> {
    if text.len() > MAX_CHALLENGE {
        return Vec::new();
    }
    let read = |challenge: http_auth::ChallengeRef<'_>| {
        if challenge.scheme.eq_ignore_ascii_case("basic") {
            return Some(Challenge::Basic);
        }
        let param = |name: &str| {
            let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.to_unescaped()).filter(|it| !it.is_empty())
        };
        let realm = challenge.scheme.eq_ignore_ascii_case("bearer").then(|| param("realm")).flatten()?;
        Some(Challenge::Bearer { realm, service: param("service"), scope: param("scope") })
    };
    http_auth::parse_challenges(text).unwrap_or_default().into_iter().filter_map(read).collect()
}

/// With a password by GET, as Docker's token specification has it; with an identity token by POST, as `OAuth2` has it.
fn token_request(
    client: &Client,
    mut url: url::Url,
    ask: &Ask<'_>,
    credentials: &Credentials,
    bearer: &Bearer<'_>,
) -> RequestBuilder {
    let mut scopes: Vec<&str> = ask.scopes.iter().map(String::as_str).collect();
    if let Some(scope) = bearer.scope.filter(|_| scopes.is_empty()) {
        scopes.push(scope);
    }
    if let Credentials::IdentityToken { token } = credentials {
        let form = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("grant_type", "refresh_token")
            .append_pair("client_id", "edge-agent")
            .append_pair("service", bearer.service.unwrap_or_default())
            .append_pair("scope", &scopes.join(" "))
            .append_pair("refresh_token", token.reveal())
            .finish();
        // A stream, which is not sent again: a redirect does not carry the token to another host.
        let request = client
            .post(url)
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(header::CONTENT_LENGTH, form.len());
        let once = futures_util::stream::once(async { Ok::<_, std::io::Error>(form.into_bytes()) });
        return request.body(Body::wrap_stream(once));
    }
    {
        let mut query = url.query_pairs_mut();
        if let Some(service) = bearer.service {
            query.append_pair("service", service);
        }
        query.extend_pairs(scopes.iter().map(|scope| ("scope", scope)));
    }
    let request = client.get(url);
    match credentials {
        Credentials::Basic { username, password } => request.basic_auth(username, Some(password.reveal())),
        _ => request,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        #[track_caller]
        fn check(text: &str, realm: Option<&str>, basic: bool) {
            let all = read_challenges(text);
            let got = all.iter().find_map(|it| match it {
                Challenge::Bearer { realm, .. } => Some(realm.as_str()),
                Challenge::Basic => None,
            });
            assert_eq!((got, all.contains(&Challenge::Basic)), (realm, basic), "{text}");
        }
        let whole = r#"Bearer realm="https://auth.x/token",service="x",scope="repository:a:pull,push""#;
        check(whole, Some("https://auth.x/token"), false);
        let (realm, service) = ("https://auth.x/token".to_owned(), Some("x".to_owned()));
        let scope = Some("repository:a:pull,push".to_owned());
        assert_eq!(read_challenges(whole), [Challenge::Bearer { realm, service, scope }]);
        check(r#"bearer realm="https://a",error="insufficient_scope""#, Some("https://a"), false);
        check(r#"BEARER Realm="https://a/\"b""#, Some("https://a/\"b"), false);
        check(r#"Basic realm="Registry""#, None, true);
        check(r#"Basic realm="x", Bearer realm="https://a""#, Some("https://a"), true);
        check("Bearer realm=https", Some("https"), false);
        check(r#"Bearer realm="""#, None, false);
        check("Bearer", None, false);
        check("Negotiate", None, false);
        check("\u{7f}", None, false);
        check("", None, false);
        check(&format!("Basic realm=\"{}\"", "x".repeat(MAX_CHALLENGE)), None, false);
    }
}
