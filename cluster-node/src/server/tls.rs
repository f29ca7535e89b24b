//! The server's side of TLS: what it shows, and whose certificates it believes.

use std::sync::Arc;

use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    server::{NoServerSessionStorage, ResolvesServerCert, VerifierBuilderError, WebPkiClientVerifier},
};
use rustls_pki_types::CertificateDer;

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The cluster's CA.
    #[error("the cluster's CA cannot be used to verify clients")]
    Authority(#[source] rustls::Error),
    /// The same, all of it.
    #[error("the cluster's CA cannot be used to verify clients: is the ca.crt in identity/ empty?")]
    Verifier(#[from] VerifierBuilderError),
    /// Versions of the protocol.
    #[error("no version of TLS can be used")]
    Versions(#[source] rustls::Error),
}

/// A configuration that shows what `serving` has at each connection, so that a renewed certificate is used at once. Clients
/// may show a certificate of `client_ca`, or none.
pub fn config(
    serving: Arc<dyn ResolvesServerCert>,
    client_ca: &[CertificateDer<'static>],
) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let mut roots = RootCertStore::empty();
    for certificate in client_ca {
        roots.add(certificate.clone()).map_err(TlsError::Authority)?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let verifier = verifier.allow_unauthenticated().build()?;
    let mut config = ServerConfig::builder_with_details(provider, board::tls::time())
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Versions)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(serving);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Who comes keeps its connection; remembering those who come once takes memory.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}
