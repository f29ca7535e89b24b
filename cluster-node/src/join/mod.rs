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
    said(format!("asking {server} who the cluster is"));
    let found = discovery::discover(&server, &token, &pins, wire).await?;
    let name = how.node_name.clone().unwrap_or_else(|| options.name.clone());
    said(format!("the cluster's API server is {}; asking for a certificate as node {name}", found.server));
    let credentials = bootstrap::bootstrap(&found, &token, &name, clock, wire, said).await?;
    credentials::store(identity, &credentials, renewal.as_ref().map(bootstrap::Token::text))?;
    said(format!("joined as node {name}; its certificate is good until {}", credentials.not_after()?));
    Ok(credentials)
}
