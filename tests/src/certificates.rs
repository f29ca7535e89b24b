//! A CA of the test's own, a server certificate for 127.0.0.1, and a client certificate.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};

/// PEM files in one folder.
pub struct Certificates {
    /// The CA.
    pub ca: PathBuf,
    /// Server certificate and key.
    pub server: (PathBuf, PathBuf),
    /// Server certificate that has run out, and key.
    pub expired: (PathBuf, PathBuf),
    /// Client certificate and key.
    pub client: (PathBuf, PathBuf),
}

impl Certificates {
    /// Makes them in `dir`.
    pub fn make(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(rcgen::DnType::CommonName, "edge-agent test CA");
        let key = KeyPair::generate()?;
        let ca = dir.join("ca.pem");
        fs::write(&ca, params.self_signed(&key)?.pem())?;
        let issuer = Issuer::new(params, key);
        let leaf = |name: &str, names: Vec<String>, purpose| -> Result<(PathBuf, PathBuf)> {
            let mut params = CertificateParams::new(names)?;
            if name == "expired" {
                params.not_after = rcgen::date_time_ymd(2026, 1, 1);
            }
            params.distinguished_name.push(rcgen::DnType::CommonName, name);
            params.extended_key_usages = vec![purpose];
            let key = KeyPair::generate()?;
            let (cert_file, key_file) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
            fs::write(&cert_file, params.signed_by(&key, &issuer)?.pem())?;
            fs::write(&key_file, key.serialize_pem())?;
            Ok((cert_file, key_file))
        };
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let server = leaf("server", names.clone(), ExtendedKeyUsagePurpose::ServerAuth)?;
        let expired = leaf("expired", names, ExtendedKeyUsagePurpose::ServerAuth)?;
        let client = leaf("board-1", Vec::new(), ExtendedKeyUsagePurpose::ClientAuth)?;
        Ok(Self { ca, server, expired, client })
    }
}
