//! Joining a cluster as `kubeadm join` does, and everything that keeps the board a member of it: its identity on disk, the
//! rotation of its certificates, the way back after a long time offline, and leaving.
//!
//! Always true:
//! - The identity on disk is whole or not there: `node.pem` (certificate and key) is written last, each file in one step.
//! - Nothing is believed that the token has not signed, and, with pins, that the pinned CA has not shown.
//! - Secrets are in files of mode 0600, and in no message.
//!
//! Elsewhere: the connection (`api`), the Node object (`node`), who calls this (`service`).

mod bootstrap;
mod credentials;
mod csr;
mod discovery;
mod error;
mod leave;
mod rotation;
mod secret;
mod serving;
pub mod toml;

use std::path::Path;

use board::clock::Clock;
use serde::{Deserialize, Serialize};

pub use credentials::{ClusterInfo, Credentials, CredentialsError, forget, renews};
pub(crate) use discovery::anybody;
pub use error::JoinError;
pub use leave::leave;
pub use rotation::Rotation;
pub use secret::Secret;
pub use serving::Serving;

use crate::{
    api::{Server, Wire},
    options::Options,
};

/// How to join: the flags of `kubeadm join`, the keys of `join.toml`, the body of `POST /v1/node/join`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JoinOptions {
    /// `HOST:PORT` of the API server.
    pub server: String,
    /// The bootstrap token: for discovery and for the first certificate.
    pub token: Secret,
    /// `sha256:HEX` of the public key of the cluster's CA; one of them has to fit.
    pub ca_cert_hashes: Vec<String>,
    /// Without pins: whoever knows the token is believed to be the cluster.
    pub unsafe_skip_ca_verification: bool,
    /// Instead of the configured name.
    pub node_name: Option<String>,
    /// A bootstrap token of the board's own, without expiry: with it the board comes back by itself when its certificate ran
    /// out while it was offline.
    pub renewal_token: Option<Secret>,
}

/// Joins: on return the identity is on disk.
///
/// Errors: what is wrong, and the remedy; nothing of the attempt remains on the board.
pub async fn join(
    options: &Options,
    how: &JoinOptions,
    identity: &Path,
    clock: &Clock,
    wire: &Wire,
    said: &(dyn Fn(String) + Send + Sync),
) -> Result<Credentials, JoinError> {
    if let Some(known) = Credentials::load(identity)? {
        return Err(JoinError::AlreadyJoined { server: known.cluster.server, node: known.cluster.node });
    }
    let server: Server = how.server.parse()?;
    let token = bootstrap::Token::parse(how.token.expose())?;
    let renewal = how.renewal_token.as_ref().map(|it| bootstrap::Token::parse(it.expose())).transpose()?;
    let pins = discovery::pins(&how.ca_cert_hashes)?;
    if pins.is_empty() && !how.unsafe_skip_ca_verification {
        return Err(JoinError::NoPin);
    }
    let name = how.node_name.clone().unwrap_or_else(|| options.name.clone());
    if !is_name(&name) {
        return Err(JoinError::NodeName(name.chars().take(256).collect()));
    }
    said(format!("asking {server} who the cluster is"));
    let found = discovery::discover(&server, &token, &pins, clock, wire, said).await?;
    said(format!("the cluster's API server is {}; asking for a certificate as node {name}", found.server));
    let credentials = bootstrap::bootstrap(&found, &token, &name, clock, wire, said).await?;
    let (place, it) = (identity.to_owned(), credentials.clone());
    let renewal = renewal.map(|it| it.text().to_owned());
    off(move || credentials::store(&place, &it, renewal.as_deref())).await??;
    said(format!("joined as node {name}; its certificate is good until {}", credentials.not_after()?));
    Ok(credentials)
}

/// Does what blocks beside the runtime: flash takes its time.
async fn off<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| JoinError::Key(error.to_string()))
}

/// RFC 1123: what the API server takes as the name of a Node, found out before there is a certificate for it.
fn is_name(name: &str) -> bool {
    let is_inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let is_label = |label: &str| {
        !label.is_empty() && label.bytes().all(is_inner) && !label.starts_with('-') && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_objects() {
        for good in ["a", "board-7", "board.site-2.example.org", "0"] {
            assert!(is_name(good), "{good}");
        }
        for wrong in ["", "Board", "a_b", "-a", "a-", "a..b", ".a", "é", "a/b", &"x".repeat(254)] {
            assert!(!is_name(wrong), "{wrong}");
        }
    }

    #[tokio::test]
    async fn mistakes_are_told_before_anybody_is_asked() {
        let dir = tempfile::tempdir().unwrap();
        let good = JoinOptions {
            server: "127.0.0.1:1".into(),
            token: Secret::new("abcdef.0123456789abcdef"),
            unsafe_skip_ca_verification: true,
            ..JoinOptions::default()
        };
        let (clock, _) = Clock::manual(0, false);
        for (how, want) in [
            (JoinOptions { server: "http://h".into(), ..good.clone() }, "no API server"),
            (JoinOptions { token: Secret::new("abcdef.0123456789abcde"), ..good.clone() }, "wrong form"),
            (JoinOptions { renewal_token: Some(Secret::new("x")), ..good.clone() }, "wrong form"),
            (JoinOptions { ca_cert_hashes: vec!["sha256:0".into()], ..good.clone() }, "no pin"),
            (JoinOptions { unsafe_skip_ca_verification: false, ..good.clone() }, "not pinned"),
            (JoinOptions { node_name: Some("Board".into()), ..good.clone() }, "no name of a node"),
        ] {
            let said = |_| panic!("nothing is begun");
            let joined = join(&Options::default(), &how, dir.path(), &clock, &Wire::default(), &said).await;
            let words = joined.err().unwrap().to_string();
            assert!(words.contains(want) && !words.contains("0123456789abcde"), "{words}");
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
