//! A CA of the test's own, a server certificate for 127.0.0.1, and a client certificate.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};

/// PEM files in one folder.
pub struct Certificates {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
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
        let mut it = Self {
            dir: dir.to_owned(),
            issuer,
            ca,
            server: Default::default(),
            expired: Default::default(),
            client: Default::default(),
        };
        it.server = it.issue_server("server", &["localhost", "127.0.0.1"], false)?;
        it.expired = it.issue_server("expired", &["localhost", "127.0.0.1"], true)?;
        it.client = it.issue_client("board-1", false)?;
        Ok(it)
    }

    /// Another server certificate and key: `NAME.pem` and `NAME.key`; written over if they are there.
    pub fn issue_server(&self, name: &str, hosts: &[&str], expired: bool) -> Result<(PathBuf, PathBuf)> {
        self.issue(name, hosts, ExtendedKeyUsagePurpose::ServerAuth, expired)
    }

    /// Another client certificate and key.
    pub fn issue_client(&self, name: &str, expired: bool) -> Result<(PathBuf, PathBuf)> {
        self.issue(name, &[], ExtendedKeyUsagePurpose::ClientAuth, expired)
    }

    fn issue(
        &self,
        name: &str,
        hosts: &[&str],
        purpose: ExtendedKeyUsagePurpose,
        expired: bool,
    ) -> Result<(PathBuf, PathBuf)> {
        let mut params = CertificateParams::new(hosts.iter().map(|host| (*host).to_owned()).collect::<Vec<_>>())?;
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.extended_key_usages = vec![purpose];
        if expired {
            params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        }
        let key = KeyPair::generate()?;
        let (cert_file, key_file) = (self.dir.join(format!("{name}.pem")), self.dir.join(format!("{name}.key")));
        fs::write(&cert_file, params.signed_by(&key, &self.issuer)?.pem())?;
        fs::write(&key_file, key.serialize_pem())?;
        Ok((cert_file, key_file))
    }
}
