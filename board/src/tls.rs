//! rustls set-up from files: servers, clients, and the trust they rest on. Files are read again when they change.
use std::{path::PathBuf, sync::Arc};
/// What a client trusts and shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientFiles { /// PEM; without it the system's CAs, or the built-in ones where there are none.
    pub ca_file: Option<PathBuf>, /// PEM chain.
    pub cert_file: Option<PathBuf>, /// PEM key.
    pub key_file: Option<PathBuf> }
/// What a server shows, and whom it lets in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerFiles { /// PEM chain.
    pub cert_file: PathBuf, /// PEM key.
    pub key_file: PathBuf, /// PEM; with it client certificates are verified.
    pub client_ca: Option<PathBuf> , /// With a `client_ca`: whether a client without a certificate may connect (and must then log in by password).
    pub client_optional: bool }
/// Why a file could not be used: names the file and what to do.
#[derive(Debug, thiserror::Error)]
pub enum TlsError { /// A file that cannot be read.
    #[error("cannot read {path}")] Read { /// Which.
        path: PathBuf, /// Why.
        source: std::io::Error }, /// Content that is not usable.
    #[error("{path}: {problem}")] Unusable { /// Which.
        path: PathBuf, /// Why and what to do.
        problem: String } }
/// A client configuration, TLS 1.2 and 1.3.
pub fn client(_files: &ClientFiles) -> Result<Arc<rustls::ClientConfig>, TlsError> { todo!() }
/// A server configuration.
pub fn server(_files: &ServerFiles) -> Result<Arc<rustls::ServerConfig>, TlsError> { todo!() }
