//! From a token to the first certificate, and what the cluster asks of its nodes.

use std::net::IpAddr;

use board::clock::Clock;
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::Api as Typed;
use serde_json::Value;

use super::{ClusterInfo, Credentials, JoinError, csr, discovery::Discovered, off};
use crate::api::{Api, Failure, Identity, Wire, failure};

/// A bootstrap token, `ID.SECRET`.
#[derive(Clone)]
pub(super) struct Token {
    text: String,
    id: String,
    secret: String,
}

impl Token {
    /// Reads one.
    pub fn parse(text: &str) -> Result<Self, JoinError> {
        let (id, secret) = text.trim().split_once('.').ok_or(JoinError::TokenForm)?;
        let plain = |part: &str| part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if id.len() != 6 || secret.len() != 16 || !plain(id) || !plain(secret) {
            return Err(JoinError::TokenForm);
        }
        Ok(Self { text: format!("{id}.{secret}"), id: id.to_owned(), secret: secret.to_owned() })
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn secret(&self) -> &str {
        &self.secret
    }

    #[cfg(test)]
    pub fn with_secret(&self, secret: &str) -> Self {
        Self { secret: secret.to_owned(), ..self.clone() }
    }
}

/// Asks for the first certificate.
pub(super) async fn bootstrap(
    found: &Discovered,
    token: &Token,
    name: &str,
    clock: &Clock,
    wire: &Wire,
    said: &(dyn Fn(String) + Send + Sync),
) -> Result<Credentials, JoinError> {
    let place = found.server.authority();
    let identity = Identity::Token(token.text().to_owned());
    let api = Api::new(found.server.clone(), &found.ca, identity, clock.clone(), wire.clone())?;
    let board = off(crate::node::facts::Machine::read).await?.system_uuid;
    is_free(&api, &place, name, &board).await?;
    let configuration = configuration(&api, &place).await?;
    said("waiting for the certificate".to_owned());
    let issued = csr::client(&api, &place, name).await?;
    let dns = configuration["clusterDNS"].as_array().into_iter().flatten();
    let dns = dns.filter_map(|it| it.as_str()?.parse::<IpAddr>().ok()).collect();
    let domain = configuration["clusterDomain"].as_str().filter(|it| !it.is_empty()).unwrap_or("cluster.local");
    let cluster = ClusterInfo {
        server: found.server.to_string(),
        node: name.to_owned(),
        dns,
        domain: domain.to_owned(),
        configuration,
        board,
    };
    Ok(Credentials { cluster, ca: found.ca.clone(), chain: issued.chain, key: issued.key })
}

/// Nobody else is Ready under this name.
async fn is_free(api: &Api, place: &str, name: &str, board: &str) -> Result<(), JoinError> {
    match Typed::<Node>::all(api.client()).get(name).await {
        Ok(node) => judge(&node, name, board),
        Err(error) => match failure(&error) {
            // A cluster need not let tokens look: then the name is not known to be taken.
            Failure::NotFound | Failure::Forbidden => Ok(()),
            _ => Err(JoinError::of(place, "see whether its name is free", &error)),
        },
    }
}

/// A node that is not Ready may be this board before it was flashed: it is taken over.
fn judge(node: &Node, name: &str, board: &str) -> Result<(), JoinError> {
    let status = node.status.as_ref();
    let mut conditions = status.and_then(|it| it.conditions.as_ref()).into_iter().flatten();
    if !conditions.any(|it| it.type_ == "Ready" && it.status == "True") {
        return Ok(());
    }
    let other = status.and_then(|it| it.node_info.as_ref()).map_or("", |it| it.system_uuid.as_str());
    if !board.is_empty() && other.eq_ignore_ascii_case(board) {
        return Err(JoinError::Flashed { node: name.to_owned() });
    }
    let shown = |id: &str| if id.is_empty() { "unknown".to_owned() } else { id.chars().take(64).collect() };
    Err(JoinError::NameTaken { node: name.to_owned(), other: shown(other), own: shown(board) })
}

/// The cluster's `KubeletConfiguration`; one that has none, or does not show it, leaves everything at its default.
async fn configuration(api: &Api, place: &str) -> Result<Value, JoinError> {
    let map = match Typed::<ConfigMap>::namespaced(api.client(), "kube-system").get("kubelet-config").await {
        Ok(map) => map,
        Err(error) => {
            return match failure(&error) {
                Failure::NotFound | Failure::Forbidden => Ok(Value::Object(serde_json::Map::new())),
                _ => Err(JoinError::of(place, "read kube-system/kubelet-config", &error)),
            };
        }
    };
    let text = map.data.unwrap_or_default().remove("kubelet").unwrap_or_default();
    let wrong = |problem: String| JoinError::Understood { what: "the KubeletConfiguration", problem };
    crate::pod::source::yaml(&text).map_err(|error| wrong(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_read_strictly() {
        assert_eq!(Token::parse(" abcdef.0123456789abcdef\n").unwrap().text(), "abcdef.0123456789abcdef");
        for wrong in ["", "abcdef", "abcdef.0123", "ABCDEF.0123456789abcdef", "abcdef.0123456789abcdeé", "a.b.c"] {
            assert!(matches!(Token::parse(wrong), Err(JoinError::TokenForm)), "{wrong}");
        }
    }

    #[test]
    fn a_board_flashed_anew_is_told_from_another() {
        let node = |uuid: &str, ready: &str| -> Node {
            let info = serde_json::json!({ "systemUUID": uuid, "machineID": "", "bootID": "", "kernelVersion": "",
                "osImage": "", "containerRuntimeVersion": "", "kubeletVersion": "", "kubeProxyVersion": "",
                "operatingSystem": "", "architecture": "" });
            let condition = serde_json::json!({ "type": "Ready", "status": ready });
            serde_json::from_value(serde_json::json!({ "status": { "nodeInfo": info, "conditions": [condition] } }))
                .unwrap()
        };
        assert!(judge(&node("a", "Unknown"), "n", "b").is_ok());
        assert!(judge(&Node::default(), "n", "b").is_ok());
        assert!(matches!(judge(&node("A", "True"), "n", "a"), Err(JoinError::Flashed { .. })));
        let taken = judge(&node("a", "True"), "n", "b").unwrap_err().to_string();
        assert!(taken.contains("UUID a") && taken.contains("is b") && taken.contains("--node-name"), "{taken}");
        assert!(matches!(judge(&node("", "True"), "n", ""), Err(JoinError::NameTaken { .. })));
    }
}
