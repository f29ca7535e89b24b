//! Who a pod is at registries: its image pull secrets, read as the kubelet reads them.
//!
//! Always true: no credential helper is run for what a secret says, and nothing of a secret is in a message.
//!
//! Elsewhere: pulling (`pod::runtime`), the engine's own logins (`container_engine::registry`).

use std::{collections::BTreeMap, fmt};

use base64::{Engine, engine::general_purpose::STANDARD};
use container_engine::registry::{Credentials, Secret as Hidden};
use k8s_openapi::{ByteString, api::core::v1::Secret};
use serde::Deserialize;

/// Entries of one secret that are looked at.
const MOST: usize = 1024;

/// What the pull secrets of a pod say. In the order in which they are to be tried.
#[derive(Clone, Default)]
pub struct Keyring {
    /// By place (`HOST[:PORT][/PATH]`, a `*` may stand in parts of the host).
    entries: Vec<(String, Credentials)>,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keyring({} entries)", self.entries.len())
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Config {
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    username: Option<String>,
    password: Option<String>,
    auth: Option<String>,
    identitytoken: Option<String>,
}

impl Keyring {
    /// Takes in a secret; whether it was one of the two types of pull secrets and could be read.
    pub fn add(&mut self, secret: &Secret) -> bool {
        let data = |key: &str| secret.data.as_ref().and_then(|data| data.get(key));
        let read = match secret.type_.as_deref() {
            Some("kubernetes.io/dockerconfigjson") => data(".dockerconfigjson").and_then(modern),
            Some("kubernetes.io/dockercfg") => data(".dockercfg").and_then(old),
            _ => None,
        };
        let Some(auths) = read else { return false };
        for (place, entry) in auths.into_iter().take(MOST) {
            if let (Some(place), Some(credentials)) = (place_of(&place), credentials_of(&entry)) {
                self.entries.push((place, credentials));
            }
        }
        // More specific places first, the order of the secrets within one place.
        self.entries.sort_by(|a, b| b.0.cmp(&a.0));
        true
    }

    /// What to try for an image, given as `HOST[:PORT]/REPOSITORY` with Docker Hub as `docker.io/…`: in this order, and
    /// nobody ([`Credentials::Anonymous`]) where it is empty.
    pub fn credentials(&self, image: &str) -> Vec<Credentials> {
        let (host, path) = image.split_once('/').unwrap_or((image, ""));
        let hub = matches!(host, "docker.io" | "index.docker.io" | "registry-1.docker.io");
        let mut found: Vec<Credentials> = Vec::new();
        for (place, credentials) in &self.entries {
            let matches = is_match(place, host, path)
                || (hub && ["docker.io", "index.docker.io"].iter().any(|name| is_match(place, name, path)))
                || (hub && place == "index.docker.io/v1/");
            if matches && !found.contains(credentials) {
                found.push(credentials.clone());
            }
        }
        found
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

fn modern(bytes: &ByteString) -> Option<BTreeMap<String, Entry>> {
    serde_json::from_slice::<Config>(&bytes.0).ok().map(|config| config.auths)
}

fn old(bytes: &ByteString) -> Option<BTreeMap<String, Entry>> {
    serde_json::from_slice(&bytes.0).ok()
}

/// `https://HOST/v1/PATH` and the like as `HOST/PATH`.
fn place_of(text: &str) -> Option<String> {
    let bare = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
    let (host, path) = bare.split_once('/').map_or((bare, ""), |(host, path)| (host, path));
    if host.is_empty() || text.len() > 1024 {
        return None;
    }
    // Docker Hub's own key keeps its version: it is told from a repository named `v1`.
    if host == "index.docker.io" && path == "v1/" {
        return Some(bare.to_owned());
    }
    let path = path.strip_prefix("v1/").or_else(|| path.strip_prefix("v2/")).unwrap_or(path);
    let path = path.trim_end_matches('/');
    let path = if matches!(path, "v1" | "v2") { "" } else { path };
    Some(if path.is_empty() { host.to_owned() } else { format!("{host}/{path}") })
}

fn credentials_of(entry: &Entry) -> Option<Credentials> {
    let text = |it: &Option<String>| it.clone().filter(|it| !it.is_empty());
    if let Some(token) = text(&entry.identitytoken) {
        return Some(Credentials::IdentityToken { token: Hidden::new(token) });
    }
    if let Some(auth) = text(&entry.auth) {
        let bytes = STANDARD.decode(auth.trim()).ok()?;
        let decoded = String::from_utf8(bytes).ok()?;
        let (username, password) = decoded.split_once(':')?;
        return Some(Credentials::basic(username, password.trim_end_matches('\0')));
    }
    Some(Credentials::basic(&text(&entry.username)?, &text(&entry.password).unwrap_or_default()))
}

/// Whether an entry's place covers `host/path`: as many parts in the host, each equal or matched by `*`, the same port, and
/// the entry's path a beginning of the image's.
fn is_match(place: &str, host: &str, path: &str) -> bool {
    let (glob, prefix) = place.split_once('/').unwrap_or((place, ""));
    let (glob_name, glob_port) = port_of(glob);
    let (name, port) = port_of(host);
    let (glob_parts, parts): (Vec<_>, Vec<_>) = (glob_name.split('.').collect(), name.split('.').collect());
    glob_port == port
        && glob_parts.len() == parts.len()
        && glob_parts.iter().zip(&parts).all(|(glob, part)| is_glob_match(glob, part))
        && path.starts_with(prefix)
}

fn port_of(host: &str) -> (&str, &str) {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => (name, port),
        _ => (host, ""),
    }
}

/// `*` stands for any characters; nothing else is special.
fn is_glob_match(glob: &str, text: &str) -> bool {
    let mut pieces = glob.split('*');
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let Some(last) = glob.contains('*').then(|| glob.rsplit('*').next().unwrap_or_default()) else {
        return rest.is_empty();
    };
    let middle: Vec<&str> = pieces.collect();
    for piece in middle.iter().take(middle.len().saturating_sub(1)) {
        match rest.find(piece) {
            Some(at) => rest = &rest[at + piece.len()..],
            None => return false,
        }
    }
    rest.len() >= last.len() && rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn secret(kind: &str, key: &str, content: &[u8]) -> Secret {
        Secret {
            type_: Some(kind.to_owned()),
            data: Some([(key.to_owned(), ByteString(content.to_vec()))].into()),
            ..Secret::default()
        }
    }

    fn ring(auths: serde_json::Value) -> Keyring {
        let mut ring = Keyring::default();
        let content = json!({ "auths": auths, "credsStore": "evil", "credHelpers": { "a.io": "evil" } }).to_string();
        assert!(ring.add(&secret("kubernetes.io/dockerconfigjson", ".dockerconfigjson", content.as_bytes())));
        ring
    }

    #[test]
    fn places_and_images() {
        #[track_caller]
        fn check(place: &str, image: &str, want: bool) {
            let ring = ring(json!({ place: { "username": "u", "password": "p" } }));
            assert_eq!(!ring.credentials(image).is_empty(), want, "{place} for {image}");
        }
        check("reg.io", "reg.io/a/b", true);
        check("https://reg.io", "reg.io/a", true);
        check("https://reg.io/v2/", "reg.io/a", true);
        check("reg.io/a", "reg.io/a/b", true);
        check("reg.io/a", "reg.io/b", false);
        check("reg.io:5000", "reg.io:5000/a", true);
        check("reg.io:5000", "reg.io/a", false);
        check("reg.io", "reg.io:5000/a", false);
        check("*.reg.io", "eu.reg.io/a", true);
        check("*.reg.io", "a.eu.reg.io/a", false);
        check("*.reg.io", "reg.io/a", false);
        check("e*-1.reg.io", "eu-1.reg.io/a", true);
        check("e*-1.reg.io", "eu-2.reg.io/a", false);
        check("https://index.docker.io/v1/", "docker.io/library/busybox", true);
        check("docker.io", "docker.io/library/busybox", true);
        check("index.docker.io", "docker.io/library/busybox", true);
        check("https://index.docker.io/v1/", "reg.io/a", false);
        check("", "reg.io/a", false);
    }

    #[test]
    fn the_more_specific_comes_first_and_nothing_twice() {
        let ring = ring(json!({
            "reg.io": { "username": "all", "password": "1" },
            "reg.io/team": { "auth": STANDARD.encode("team:2") },
            "https://reg.io": { "username": "all", "password": "1" },
        }));
        assert_eq!(
            ring.credentials("reg.io/team/app"),
            [Credentials::basic("team", "2"), Credentials::basic("all", "1")]
        );
        assert_eq!(ring.credentials("reg.io/other"), [Credentials::basic("all", "1")]);
        assert!(!format!("{ring:?}").contains("team"));
    }

    #[test]
    fn old_secrets_and_what_is_none() {
        let mut ring = Keyring::default();
        let content = json!({ "reg.io": { "auth": STANDARD.encode("u:p:q") } }).to_string();
        assert!(ring.add(&secret("kubernetes.io/dockercfg", ".dockercfg", content.as_bytes())));
        assert_eq!(ring.credentials("reg.io/a"), [Credentials::basic("u", "p:q")]);
        assert!(!ring.add(&secret("Opaque", ".dockercfg", content.as_bytes())));
        assert!(!ring.add(&secret("kubernetes.io/dockercfg", "other", content.as_bytes())));
        assert!(!ring.add(&secret("kubernetes.io/dockerconfigjson", ".dockerconfigjson", b"{\"auths\": [")));
        let strange = json!({ "auths": { "reg.io": { "auth": "%%%" }, "b.io": {} } }).to_string();
        assert!(ring.add(&secret("kubernetes.io/dockerconfigjson", ".dockerconfigjson", strange.as_bytes())));
        assert_eq!(ring.credentials("b.io/a"), []);
    }
}
