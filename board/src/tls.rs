//! rustls set-up from files: servers, clients, and the trust they rest on.
//!
//! Files are read again when they change, so that certificates rotate without a restart: a client calls [`client`] for
//! each connection it makes, a server asks its [`Server`] for the configuration of each connection it accepts.
//!
//! Certificates are judged at the system's time, but never at an earlier one than is known to have passed: a board
//! without a battery-backed clock starts in 1970, and learns the time from servers whose certificates it could not
//! believe then.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use rustls::time_provider::TimeProvider;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, ring},
    server::WebPkiClientVerifier,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject};

use crate::{clock, durable};

/// No certificate bundle is larger.
const MAX_FILE: u64 = 4 << 20;

/// What a client trusts and shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientFiles {
    /// PEM; without it the system's CAs, or the built-in ones where there are none.
    pub ca_file: Option<PathBuf>,
    /// PEM chain.
    pub cert_file: Option<PathBuf>,
    /// PEM key.
    pub key_file: Option<PathBuf>,
}

/// What a server shows, and whom it lets in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerFiles {
    /// PEM chain.
    pub cert_file: PathBuf,
    /// PEM key.
    pub key_file: PathBuf,
    /// PEM; with it client certificates are verified.
    pub client_ca: Option<PathBuf>,
    /// With a `client_ca`: whether a client without a certificate may connect (and must then log in by password).
    pub client_optional: bool,
}

/// Why a file could not be used: names the file and what to do.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file that cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Content that is not usable.
    #[error("{path}: {problem}")]
    Unusable {
        /// Which.
        path: PathBuf,
        /// Why and what to do.
        problem: String,
    },
}

fn unusable(path: &Path, problem: impl Into<String>) -> TlsError {
    TlsError::Unusable { path: path.to_owned(), problem: problem.into() }
}

/// A time that has passed, µs since 1970; of the whole process, as the system's clock is.
static PASSED_US: AtomicI64 = AtomicI64::new(clock::BUILT_US);

/// Tells that `us` has passed: certificates that begin later than that are judged by the system's clock alone.
pub(crate) fn not_before(us: i64) {
    PASSED_US.store(us.max(clock::BUILT_US), Ordering::Relaxed);
}

/// The system's time, or the latest that is known to have passed.
#[derive(Debug)]
struct NotBeforeWhatPassed;

impl TimeProvider for NotBeforeWhatPassed {
    fn current_time(&self) -> Option<UnixTime> {
        Some(judged_at(SystemTime::now(), PASSED_US.load(Ordering::Relaxed)))
    }
}

/// The time at which certificates are judged, for those who make a configuration of their own.
pub fn time() -> Arc<dyn TimeProvider> {
    Arc::new(NotBeforeWhatPassed)
}

fn judged_at(now: SystemTime, passed_us: i64) -> UnixTime {
    let passed = Duration::from_micros(u64::try_from(passed_us).unwrap_or(0));
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    UnixTime::since_unix_epoch(now.max(passed))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// A client configuration, TLS 1.2 and 1.3.
pub fn client(files: &ClientFiles) -> Result<Arc<ClientConfig>, TlsError> {
    with_roots(files, roots(files.ca_file.as_deref())?)
}

fn with_roots(files: &ClientFiles, roots: RootCertStore) -> Result<Arc<ClientConfig>, TlsError> {
    let path = files.ca_file.clone().unwrap_or_default();
    let builder = ClientConfig::builder_with_details(provider(), Arc::new(NotBeforeWhatPassed))
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(&path, error.to_string()))?
        .with_root_certificates(roots);
    let config = match (&files.cert_file, &files.key_file) {
        (Some(cert), Some(key)) => {
            let chain = certificates(cert)?;
            not_expired(cert, &chain)?;
            builder
                .with_client_auth_cert(chain, private_key(key)?)
                .map_err(|error| unusable(cert, format!("does not go with the key {}: {error}", key.display())))?
        }
        (None, None) => builder.with_no_client_auth(),
        (Some(cert), None) => return Err(unusable(cert, "a certificate needs its key: set key_file")),
        (None, Some(key)) => return Err(unusable(key, "a key needs its certificate: set cert_file")),
    };
    Ok(Arc::new(config))
}

/// The same for somebody who trusts further CAs beside the usual ones: a registry with a CA of its own redirects to storage
/// with a public one. `files.ca_file` is not looked at.
pub fn client_trusting(more: &[PathBuf], files: &ClientFiles) -> Result<Arc<ClientConfig>, TlsError> {
    let mut all = roots(None)?;
    for path in more {
        add(&mut all, path)?;
    }
    with_roots(files, all)
}

fn add(roots: &mut RootCertStore, path: &Path) -> Result<(), TlsError> {
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| unusable(path, format!("holds no usable CA: {error}")))?;
    }
    Ok(())
}

fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = ca_file {
        add(&mut roots, path)?;
        return Ok(roots);
    }
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        // A board without ca-certificates installed.
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    Ok(roots)
}

/// A server's files, read again when they change.
pub struct Server {
    files: ServerFiles,
    current: Mutex<(Arc<ServerConfig>, Vec<Option<SystemTime>>, Instant)>,
}

impl Server {
    /// Reads the files once, so that a mistake shows at start.
    pub fn new(files: ServerFiles) -> Result<Self, TlsError> {
        let config = server(&files)?;
        let times = modified(&files);
        Ok(Self { files, current: Mutex::new((config, times, Instant::now())) })
    }

    /// The configuration for a new connection. Looks at the files at most once a second; files that are broken now leave
    /// the last good configuration in force, and are logged. Blocking, short.
    pub fn config(&self) -> Arc<ServerConfig> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.2.elapsed() >= Duration::from_secs(1) {
            current.2 = Instant::now();
            let times = modified(&self.files);
            if times != current.1 {
                current.1 = times;
                match server(&self.files) {
                    Ok(config) => current.0 = config,
                    Err(error) => {
                        tracing::error!(%error, "the changed TLS files are not usable; the former ones stay in force");
                    }
                }
            }
        }
        current.0.clone()
    }
}

fn modified(files: &ServerFiles) -> Vec<Option<SystemTime>> {
    [Some(&files.cert_file), Some(&files.key_file), files.client_ca.as_ref()]
        .into_iter()
        .flatten()
        .map(|path| path.metadata().and_then(|metadata| metadata.modified()).ok())
        .collect()
}

/// A server configuration.
pub fn server(files: &ServerFiles) -> Result<Arc<ServerConfig>, TlsError> {
    let builder = ServerConfig::builder_with_details(provider(), Arc::new(NotBeforeWhatPassed))
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(&files.cert_file, error.to_string()))?;
    let builder = match &files.client_ca {
        Some(ca) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(Some(ca))?), provider());
            let verifier = if files.client_optional { verifier.allow_unauthenticated() } else { verifier };
            let verifier = verifier.build().map_err(|error| unusable(ca, error.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
        None => builder.with_no_client_auth(),
    };
    let chain = certificates(&files.cert_file)?;
    let config = builder.with_single_cert(chain, private_key(&files.key_file)?).map_err(|error| {
        unusable(&files.cert_file, format!("does not go with the key {}: {error}", files.key_file.display()))
    })?;
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = durable::read(path, MAX_FILE).map_err(|source| TlsError::Read { path: path.to_owned(), source })?;
    let chain = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| unusable(path, format!("is not PEM: {error}")))?;
    if chain.is_empty() {
        return Err(unusable(path, "holds no certificate (expected -----BEGIN CERTIFICATE-----)"));
    }
    Ok(chain)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let pem = durable::read(path, MAX_FILE).map_err(|source| TlsError::Read { path: path.to_owned(), source })?;
    PrivateKeyDer::from_pem_slice(&pem)
        .map_err(|_| unusable(path, "holds no private key in PEM (PKCS#8, SEC1 or PKCS#1)"))
}

fn not_expired(path: &Path, chain: &[CertificateDer<'_>]) -> Result<(), TlsError> {
    let Some(Ok((_, certificate))) = chain.first().map(|der| x509_parser::parse_x509_certificate(der)) else {
        return Ok(()); // rustls says what is wrong with it.
    };
    let now = x509_parser::time::ASN1Time::now();
    let until = certificate.validity().not_after;
    // A clock before the certificate's beginning is the clock's fault: the server decides.
    if until < now {
        Err(unusable(path, format!("expired on {until}: put a renewed certificate there")))
    } else {
        Ok(())
    }
}

/// When the first certificate of a PEM file runs out, seconds since 1970.
pub fn expires_at(path: &Path) -> Result<i64, TlsError> {
    let chain = certificates(path)?;
    let parsed = chain.first().map(|der| x509_parser::parse_x509_certificate(der));
    match parsed {
        Some(Ok((_, certificate))) => Ok(certificate.validity().not_after.timestamp()),
        _ => Err(unusable(path, "holds no X.509 certificate")),
    }
}

/// The common name of a certificate's subject.
pub fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let name = certificate.subject().iter_common_name().next()?.as_str().ok()?;
    Some(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_never_judged_at_a_time_that_has_passed() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(judged_at(at(5), 9_000_000).as_secs(), 9);
        assert_eq!(judged_at(at(9), 5_000_000).as_secs(), 9);
        assert_eq!(judged_at(at(9), -1).as_secs(), 9);
    }

    fn pair(dir: &Path) -> (PathBuf, PathBuf) {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let (cert, key) = (dir.join("cert.pem"), dir.join("key.pem"));
        std::fs::write(&cert, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        (cert, key)
    }

    #[test]
    fn errors_name_the_file_and_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = pair(dir.path());
        let files = |cert: &Path, key: &Path| ClientFiles {
            ca_file: None,
            cert_file: Some(cert.to_owned()),
            key_file: Some(key.to_owned()),
        };
        assert!(client(&files(&cert, &key)).is_ok());
        let error = client(&files(&key, &key)).unwrap_err().to_string();
        assert!(error.contains("key.pem") && error.contains("no certificate"), "{error}");
        let error = client(&files(&cert, &cert)).unwrap_err().to_string();
        assert!(error.contains("cert.pem") && error.contains("no private key"), "{error}");
        let missing = dir.path().join("none");
        assert!(client(&files(&missing, &key)).unwrap_err().to_string().contains("none"));
    }

    #[test]
    fn a_server_takes_a_changed_certificate_and_survives_a_broken_one() {
        let dir = tempfile::tempdir().unwrap();
        let (cert_file, key_file) = pair(dir.path());
        let files = ServerFiles { cert_file: cert_file.clone(), key_file, client_ca: None, client_optional: false };
        let server = Server::new(files).unwrap();
        let before = server.config();
        std::fs::write(&cert_file, "broken").unwrap();
        server.current.lock().unwrap().2 = Instant::now().checked_sub(Duration::from_secs(2)).unwrap();
        assert!(Arc::ptr_eq(&before, &server.config()));
        pair(dir.path());
        let mut current = server.current.lock().unwrap();
        current.1.clear();
        current.2 = Instant::now().checked_sub(Duration::from_secs(2)).unwrap();
        drop(current);
        assert!(!Arc::ptr_eq(&before, &server.config()));
    }
}
