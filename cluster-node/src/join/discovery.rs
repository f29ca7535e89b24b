//! Who the cluster is: `kube-public/cluster-info`, signed with the token, its CA pinned.
//!
//! Source: kubeadm's token discovery. What is fetched first is fetched from anybody; nothing of it is used before the
//! token's signature fits, and with pins it is fetched once more over TLS that the pinned CA vouches for, and compared.

use std::{sync::Arc, time::Duration};

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use board::clock::Clock;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api as Typed;
use ring::{digest, hmac};
use serde::Deserialize;
use tokio::time::Instant;
use x509_parser::pem::Pem;

use super::{JoinError, bootstrap::Token};
use crate::api::{Api, Failure, Identity, Server, Wire, failure};

/// How long an answer and the signature are waited for.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two tries.
const AGAIN: Duration = Duration::from_secs(2);

/// The cluster as the token vouches for it.
pub(super) struct Discovered {
    pub server: Server,
    pub ca: Vec<u8>,
}

/// A pin: SHA-256 of a public key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pin([u8; 32]);

/// Reads pins.
pub(super) fn pins(texts: &[String]) -> Result<Vec<Pin>, JoinError> {
    let one = |text: &String| {
        let wrong = || JoinError::PinForm(text.chars().take(128).collect());
        let hex =
            text.trim().strip_prefix("sha256:").filter(|hex| hex.len() == 64 && hex.is_ascii()).ok_or_else(wrong)?;
        let mut pin = [0; 32];
        for (byte, at) in pin.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(&hex[at..at + 2], 16).map_err(|_| wrong())?;
        }
        Ok(Pin(pin))
    };
    texts.iter().map(one).collect()
}

/// Asks the server, and believes the token and the pins.
pub(super) async fn discover(
    server: &Server,
    token: &Token,
    pins: &[Pin],
    clock: &Clock,
    wire: &Wire,
    said: &(dyn Fn(String) + Send + Sync),
) -> Result<Discovered, JoinError> {
    let place = server.authority();
    let anybody = Api::unverified(server.clone(), wire.clone())?;
    let payload = signed(&anybody, &place, token, said).await?;
    let (inner, ca) = kubeconfig(&payload)?;
    if !pins.is_empty() {
        let found = pins_of(&ca)?;
        if !found.iter().any(|pin| pins.contains(pin)) {
            let found = found.first().map(text).unwrap_or_default();
            return Err(JoinError::Pin { server: place, found });
        }
        let verified = Api::new(server.clone(), &ca, Identity::Nobody, clock.clone(), wire.clone())?;
        let again = info(&verified).await.map_err(|error| JoinError::of(&place, "read cluster-info", &error))?;
        if again.data.unwrap_or_default().get("kubeconfig") != Some(&payload) {
            return Err(JoinError::Changed { server: place });
        }
    }
    Ok(Discovered { server: inner.parse()?, ca })
}

async fn info(api: &Api) -> Result<ConfigMap, kube::Error> {
    Typed::<ConfigMap>::namespaced(api.client(), "kube-public").get("cluster-info").await
}

/// The signed text, once there is a signature; the signer adds it some moments after the token was made.
async fn signed(
    api: &Api,
    place: &str,
    token: &Token,
    said: &(dyn Fn(String) + Send + Sync),
) -> Result<String, JoinError> {
    let mut is_told = false;
    let end = Instant::now() + PATIENCE;
    loop {
        let problem = match info(api).await {
            Ok(map) => {
                let data = map.data.unwrap_or_default();
                let payload = data.get("kubeconfig").cloned().ok_or_else(|| JoinError::NoCluster {
                    server: place.to_owned(),
                    problem: "its cluster-info has no kubeconfig".to_owned(),
                })?;
                match data.get(&format!("jws-kubeconfig-{}", token.id())) {
                    Some(signature) if is_signed(&payload, signature, token) => return Ok(payload),
                    Some(_) => {
                        return Err(JoinError::Signature { server: place.to_owned(), id: token.id().to_owned() });
                    }
                    None => JoinError::UnknownToken { server: place.to_owned(), id: token.id().to_owned() },
                }
            }
            Err(error) => match failure(&error) {
                Failure::Unreachable | Failure::Busy => JoinError::of(place, "read cluster-info", &error),
                _ => {
                    let problem =
                        format!("it does not show kube-public/cluster-info ({})", crate::node::request::words(&error));
                    return Err(JoinError::NoCluster { server: place.to_owned(), problem });
                }
            },
        };
        if Instant::now() + AGAIN > end {
            return Err(problem);
        }
        if !std::mem::replace(&mut is_told, true) {
            said(format!("not yet, and tried again for {} s: {problem}", PATIENCE.as_secs()));
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Whether a detached JWS (`header..signature`, HS256, `kid` the token's id) fits the text.
fn is_signed(payload: &str, jws: &str, token: &Token) -> bool {
    #[derive(Deserialize)]
    struct Header {
        alg: String,
        kid: String,
    }
    let parts: Vec<&str> = jws.trim().split('.').collect();
    let [header, "", signature] = parts[..] else { return false };
    let decoded = URL_SAFE_NO_PAD.decode(header).ok().and_then(|it| serde_json::from_slice::<Header>(&it).ok());
    let Some(Header { alg, kid }) = decoded else { return false };
    let Ok(signature) = URL_SAFE_NO_PAD.decode(signature) else { return false };
    let key = hmac::Key::new(hmac::HMAC_SHA256, token.secret().as_bytes());
    let text = format!("{header}.{}", URL_SAFE_NO_PAD.encode(payload));
    alg == "HS256" && kid == token.id() && hmac::verify(&key, text.as_bytes(), &signature).is_ok()
}

/// The server and CA of a kubeconfig with one cluster and no users.
fn kubeconfig(text: &str) -> Result<(String, Vec<u8>), JoinError> {
    let wrong = |problem: String| JoinError::Understood { what: "the kubeconfig in cluster-info", problem };
    let value = crate::pod::source::yaml(text).map_err(|error| wrong(error.to_string()))?;
    let cluster = &value["clusters"][0]["cluster"];
    let server = cluster["server"].as_str().ok_or_else(|| wrong("it names no server".to_owned()))?;
    let ca = cluster["certificate-authority-data"].as_str().unwrap_or_default();
    let ca = STANDARD.decode(ca).map_err(|error| wrong(error.to_string()))?;
    Ok((server.to_owned(), ca))
}

/// The pins that fit the certificates of a CA.
fn pins_of(ca: &[u8]) -> Result<Vec<Pin>, JoinError> {
    let wrong = |problem: String| JoinError::Understood { what: "the CA", problem };
    let one = |pem: Result<Pem, _>| {
        let pem = pem.map_err(|error: x509_parser::error::PEMError| wrong(error.to_string()))?;
        let certificate = pem.parse_x509().map_err(|error| wrong(error.to_string()))?;
        let hash = digest::digest(&digest::SHA256, certificate.public_key().raw);
        let mut pin = [0; 32];
        pin.copy_from_slice(hash.as_ref());
        Ok(Pin(pin))
    };
    Pem::iter_from_buffer(ca).map(one).collect()
}

fn text(pin: &Pin) -> String {
    let hex: String = pin.0.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// TLS with anybody.
pub(crate) fn anybody() -> std::io::Result<Arc<rustls::ClientConfig>> {
    let mut config = (*crate::pod::probe::anybody()?).clone();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_checked_as_kubeadm_makes_them() {
        // The vector of Kubernetes' own test of its signer.
        let content = "Hello from the other side. I must have called a thousand times.";
        let token = Token::parse("joshua.0123456789abcdef").unwrap().with_secret("my voice is my passcode");
        let jws = "eyJhbGciOiJIUzI1NiIsImtpZCI6Impvc2h1YSJ9..VShe2taLd-YTrmWuRkcL_8QTNDHYxQIEBsAYYiIj1_8";
        assert!(is_signed(content, jws, &token));
        assert!(!is_signed("Hello", jws, &token));
        assert!(!is_signed(content, jws, &token.with_secret("another")));
        assert!(!is_signed(content, &jws.replace("..", ".e30."), &token));
        for wrong in ["", "..", "a..b", "a.b", &"x".repeat(10_000)] {
            assert!(!is_signed(content, wrong, &token), "{wrong}");
        }
    }

    #[test]
    fn pins_are_read_and_made() {
        let made = rcgen::generate_simple_self_signed(vec!["ca".into()]).unwrap();
        let pin = pins_of(made.cert.pem().as_bytes()).unwrap().remove(0);
        assert_eq!(pins(&[text(&pin)]).unwrap(), [pin]);
        for wrong in ["", "sha256:", "sha1:00", "sha256:zz", &format!("sha256:{}", "é".repeat(32))] {
            assert!(matches!(pins(&[wrong.to_owned()]), Err(JoinError::PinForm(_))), "{wrong}");
        }
    }

    #[test]
    fn kubeconfigs_are_read() {
        let text = "clusters:\n- cluster:\n    certificate-authority-data: YQ==\n    server: https://h:1\n";
        assert_eq!(kubeconfig(text).unwrap(), ("https://h:1".to_owned(), b"a".to_vec()));
        assert!(kubeconfig("a: [").is_err() && kubeconfig("clusters: []").is_err());
    }
}
