//! TLS to the API server: the cluster's CA, and a client certificate that can be replaced while it is in use.

use std::sync::{Arc, PoisonError, RwLock};

use rustls::{
    ClientConfig, RootCertStore, SignatureScheme,
    client::ResolvesClientCert,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};

/// What is wrong with certificates or a key.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Not PEM, or not of this kind.
    #[error("{what} cannot be read: {problem}")]
    Pem {
        /// Which.
        what: &'static str,
        /// Why.
        problem: String,
    },
    /// rustls does not take them.
    #[error("{what} cannot be used: {source}")]
    Unusable {
        /// Which.
        what: &'static str,
        /// Why.
        source: rustls::Error,
    },
}

/// The client certificate in force; none before the board has one.
#[derive(Debug, Default)]
pub struct ClientCertificate(RwLock<Option<Arc<CertifiedKey>>>);

impl ClientCertificate {
    /// From a PEM chain and its PEM key.
    pub fn new(chain: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        Ok(Self(RwLock::new(Some(certified(chain, key)?))))
    }

    /// Uses this one for connections made from now on.
    pub fn replace(&self, chain: &[u8], key: &[u8]) -> Result<(), TlsError> {
        let certified = certified(chain, key)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(certified);
        Ok(())
    }
}

impl ResolvesClientCert for ClientCertificate {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn has_certs(&self) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}

/// A chain and its key for rustls, from PEM.
pub fn certified(chain: &[u8], key: &[u8]) -> Result<Arc<CertifiedKey>, TlsError> {
    let chain = certificates("the certificate", chain)?;
    let key = PrivateKeyDer::from_pem_slice(key)
        .map_err(|error| TlsError::Pem { what: "the private key", problem: error.to_string() })?;
    let certified = CertifiedKey::from_der(chain, key, &ring::default_provider())
        .map_err(|source| TlsError::Unusable { what: "the certificate with its key", source })?;
    Ok(Arc::new(certified))
}

/// The certificates in a PEM text; at least one.
pub fn certificates(what: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let all = all.map_err(|error| TlsError::Pem { what, problem: error.to_string() })?;
    if all.is_empty() {
        return Err(TlsError::Pem { what, problem: "no certificate is in it".to_owned() });
    }
    Ok(all)
}

/// Trusts `ca` alone, shows `certificate`, speaks HTTP/2.
pub fn config(ca: &[u8], certificate: Arc<ClientCertificate>) -> Result<Arc<ClientConfig>, TlsError> {
    let mut roots = RootCertStore::empty();
    for one in certificates("the cluster's CA", ca)? {
        roots.add(one).map_err(|source| TlsError::Unusable { what: "the cluster's CA", source })?;
    }
    let builder = ClientConfig::builder_with_details(Arc::new(ring::default_provider()), board::tls::time())
        .with_safe_default_protocol_versions()
        .map_err(|source| TlsError::Unusable { what: "TLS", source })?;
    let mut config = builder.with_root_certificates(roots).with_client_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A resumed session would keep the identity of a certificate that was replaced.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}
