//! The board's identity in its cluster, on disk: `cluster.json`, `ca.crt`, `node.pem`, and `renewal-token` where it has one.

use std::{
    io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use x509_parser::pem::Pem;

use crate::api::{Server, ServerError};

const CLUSTER: &str = "cluster.json";
const CA: &str = "ca.crt";
const NODE: &str = "node.pem";
const RENEWAL: &str = "renewal-token";
/// No file of an identity is larger, bytes.
const MAX: u64 = 1 << 20;

/// Which cluster, and what it asks of its nodes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterInfo {
    /// `https://HOST:PORT` of the API server.
    pub server: String,
    /// The node's name there.
    pub node: String,
    /// `clusterDNS`.
    pub dns: Vec<IpAddr>,
    /// `clusterDomain`.
    pub domain: String,
    /// The cluster's `KubeletConfiguration`, as it was on joining.
    pub configuration: serde_json::Value,
    /// System UUID of the machine that this identity was made on; empty where it was not known.
    pub board: String,
}

impl ClusterInfo {
    /// Whether this identity was made on another machine than `board`: its card was moved, or copied.
    pub fn is_of_another(&self, board: &str) -> bool {
        !self.board.is_empty() && !board.is_empty() && self.board != board
    }
}

/// An identity.
#[derive(Clone)]
pub struct Credentials {
    /// Where it counts.
    pub cluster: ClusterInfo,
    /// Who is believed to be the API server, PEM.
    pub ca: Vec<u8>,
    /// The client certificate, PEM.
    pub chain: Vec<u8>,
    /// Its key, PEM.
    pub key: Vec<u8>,
}

/// What is wrong with an identity on disk.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A file.
    #[error("cannot {what} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its content.
    #[error("{path} is damaged ({problem}): leave the cluster with `edge-agent leave --purge` and join again", path = path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// How.
        problem: String,
    },
    /// The server's address in it.
    #[error(transparent)]
    Server(#[from] ServerError),
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CredentialsError {
    let path = path.to_owned();
    move |source| CredentialsError::Io { what, path, source }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, CredentialsError> {
    match board::durable::read(path, MAX) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path)(error)),
    }
}

impl Credentials {
    /// The identity in this folder; none where the board is in no cluster. Needs no network.
    pub fn load(identity: &Path) -> Result<Option<Self>, CredentialsError> {
        let node = identity.join(NODE);
        let Some(pem) = read(&node)? else { return Ok(None) };
        let damaged = |path: &Path, problem: &str| CredentialsError::Damaged {
            path: path.to_owned(),
            problem: problem.to_owned(),
        };
        let (ca, cluster) = (identity.join(CA), identity.join(CLUSTER));
        let ca_pem = read(&ca)?.ok_or_else(|| damaged(&ca, "it is missing"))?;
        let json = read(&cluster)?.ok_or_else(|| damaged(&cluster, "it is missing"))?;
        let cluster = serde_json::from_slice(&json).map_err(|error| damaged(&cluster, &error.to_string()))?;
        let (chain, key) = split(&pem).ok_or_else(|| damaged(&node, "it has no certificate and key"))?;
        Ok(Some(Self { cluster, ca: ca_pem, chain, key }))
    }

    /// Where the API server is.
    pub fn server(&self) -> Result<Server, CredentialsError> {
        Ok(self.cluster.server.parse()?)
    }

    /// When the certificate runs out.
    pub fn not_after(&self) -> Result<Timestamp, CredentialsError> {
        Ok(self.validity()?.1)
    }

    /// From when to when the certificate is good.
    pub fn validity(&self) -> Result<(Timestamp, Timestamp), CredentialsError> {
        validity(&self.chain)
            .ok_or_else(|| CredentialsError::Damaged { path: NODE.into(), problem: "no certificate".into() })
    }
}

/// From when to when the first certificate of a PEM text is good.
pub(super) fn validity(pem: &[u8]) -> Option<(Timestamp, Timestamp)> {
    let first = Pem::iter_from_buffer(pem).next()?.ok()?;
    let certificate = first.parse_x509().ok()?;
    let validity = certificate.validity();
    let time = |at: i64| Timestamp::from_second(at).ok();
    Some((time(validity.not_before.timestamp())?, time(validity.not_after.timestamp())?))
}

/// Certificates and key of one PEM text.
pub(super) fn split(pem: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let text = std::str::from_utf8(pem).ok()?;
    let at = ["-----BEGIN PRIVATE KEY-----", "-----BEGIN EC PRIVATE KEY-----"].iter().find_map(|it| text.find(it))?;
    let (chain, key) = text.split_at(at);
    (chain.contains("-----BEGIN CERTIFICATE-----")).then(|| (chain.into(), key.into()))
}

/// Writes an identity; the certificate last. Where that does not work nothing of it stays.
pub(super) fn store(identity: &Path, credentials: &Credentials, renewal: Option<&str>) -> Result<(), CredentialsError> {
    let stored = try_store(identity, credentials, renewal);
    if stored.is_err() {
        let _ = remove(identity, &FILES); // The first error is the one to report.
    }
    stored
}

fn try_store(identity: &Path, credentials: &Credentials, renewal: Option<&str>) -> Result<(), CredentialsError> {
    let write = |name: &str, bytes: &[u8], mode| {
        let path = identity.join(name);
        board::durable::write(&path, bytes, mode).map_err(failed("write", &path))
    };
    // What is made of strings and JSON has a JSON form.
    let json = serde_json::to_vec_pretty(&credentials.cluster).unwrap_or_default();
    write(CLUSTER, &json, 0o600)?;
    write(CA, &credentials.ca, 0o644)?;
    if let Some(token) = renewal {
        write(RENEWAL, token.as_bytes(), 0o600)?;
    }
    store_node(identity, &credentials.chain, &credentials.key)
}

/// Another certificate in the place of the one there is.
pub(super) fn store_node(identity: &Path, chain: &[u8], key: &[u8]) -> Result<(), CredentialsError> {
    let path = identity.join(NODE);
    let mut pem = chain.to_vec();
    if !pem.ends_with(b"\n") {
        pem.push(b'\n');
    }
    pem.extend_from_slice(key);
    board::durable::write(&path, &pem, 0o600).map_err(failed("write", &path))
}

/// The machine that the identity is on now.
pub(super) fn store_board(identity: &Path, cluster: &ClusterInfo, board: &str) -> Result<(), CredentialsError> {
    let path = identity.join(CLUSTER);
    let cluster = ClusterInfo { board: board.to_owned(), ..cluster.clone() };
    let json = serde_json::to_vec_pretty(&cluster).unwrap_or_default();
    board::durable::write(&path, &json, 0o600).map_err(failed("write", &path))
}

/// The board's own token for coming back, where it has one.
pub(super) fn renewal(identity: &Path) -> Option<String> {
    let bytes = read(&identity.join(RENEWAL)).ok().flatten()?;
    Some(String::from_utf8(bytes).ok()?.trim().to_owned())
}

/// Whether the board comes back by itself after its certificate ran out.
pub fn renews(identity: &Path) -> bool {
    identity.join(RENEWAL).is_file()
}

/// The files of an identity; the certificate first, so that half of it is none.
const FILES: [&str; 6] = [NODE, super::serving::FILE, super::serving::PENDING, RENEWAL, CLUSTER, CA];

/// Removes the identity, and with it the copy of a `join.toml`: the board does not join again by itself.
pub fn forget(identity: &Path) -> Result<(), CredentialsError> {
    remove(identity, &FILES)?;
    remove(identity, &[super::toml::COPY])
}

fn remove(identity: &Path, names: &[&str]) -> Result<(), CredentialsError> {
    // One that cannot be removed keeps no other.
    let mut first = Ok(());
    for name in names {
        let path = identity.join(name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                first = first.and(Err(failed("remove", &path)(error)));
            }
            _ => {}
        }
    }
    first?;
    board::durable::sync_dir(identity).map_err(failed("sync", identity))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made() -> Credentials {
        let made = rcgen::generate_simple_self_signed(vec!["x".into()]).unwrap();
        Credentials {
            cluster: ClusterInfo { server: "https://h:6443".into(), node: "n".into(), ..ClusterInfo::default() },
            ca: made.cert.pem().into(),
            chain: made.cert.pem().into(),
            key: made.signing_key.serialize_pem().into(),
        }
    }

    #[test]
    fn a_card_of_another_machine_is_told() {
        let of = |board: &str| ClusterInfo { board: board.into(), ..ClusterInfo::default() };
        assert!(of("a").is_of_another("b"));
        assert!(!of("a").is_of_another("a") && !of("").is_of_another("b") && !of("a").is_of_another(""));
    }

    #[test]
    fn what_cannot_be_stored_whole_is_not_stored() {
        let dir = tempfile::tempdir().unwrap();
        // The certificate, written last, has no place.
        std::fs::create_dir_all(dir.path().join("node.pem/full")).unwrap();
        assert!(store(dir.path(), &made(), Some("abcdef.0123456789abcdef")).is_err());
        std::fs::remove_dir_all(dir.path().join("node.pem")).unwrap();
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
        assert!(left.is_empty(), "{left:?}");
    }

    #[test]
    fn an_identity_is_whole_or_not_there() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Credentials::load(dir.path()).unwrap().is_none());
        let made = made();
        store(dir.path(), &made, Some("abcdef.0123456789abcdef")).unwrap();
        let read = Credentials::load(dir.path()).unwrap().unwrap();
        assert_eq!((read.cluster, read.key), (made.cluster, made.key));
        assert_eq!(renewal(dir.path()).as_deref(), Some("abcdef.0123456789abcdef"));
        let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(dir.path().join(NODE)).unwrap());
        assert_eq!(mode & 0o777, 0o600);
        std::fs::remove_file(dir.path().join(CA)).unwrap();
        assert!(matches!(Credentials::load(dir.path()), Err(CredentialsError::Damaged { .. })));
        forget(dir.path()).unwrap();
        assert!(Credentials::load(dir.path()).unwrap().is_none() && !renews(dir.path()));
        forget(dir.path()).unwrap();
    }
}
