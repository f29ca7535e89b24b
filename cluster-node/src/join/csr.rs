//! Keys made on the board, and requests for their certificates.
//!
//! Source: `certificates.k8s.io/v1`, signers `kubernetes.io/kube-apiserver-client-kubelet` and `kubernetes.io/kubelet-serving`.

use std::{net::IpAddr, time::Duration};

use k8s_openapi::{
    ByteString,
    api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec},
};
use kube::{Api as Typed, api::PostParams};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use tokio::time::Instant;

use super::JoinError;
use crate::api::{Api, Failure, failure};

/// How long an automatic approval may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// First and longest wait between two looks.
const LOOKS: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));

/// A certificate and its key, PEM.
pub(super) struct Issued {
    pub chain: Vec<u8>,
    pub key: Vec<u8>,
}

/// What came of a request so far.
pub(super) enum Outcome {
    Pending,
    Issued(Vec<u8>),
    Refused(String),
}

/// A new key, PEM, and a request for its certificate, PEM.
pub(super) fn request(name: &str, dns: &[String], addresses: &[IpAddr]) -> Result<(String, String), JoinError> {
    let failed = |error: rcgen::Error| JoinError::Key(error.to_string());
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let mut params = CertificateParams::new(dns.to_vec()).map_err(failed)?;
    params.subject_alt_names.extend(addresses.iter().map(|address| SanType::IpAddress(*address)));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(DnType::CommonName, format!("system:node:{name}"));
    let request = params.serialize_request(&key).and_then(|it| it.pem()).map_err(failed)?;
    Ok((key.serialize_pem(), request))
}

/// Posts a request; its name.
pub(super) async fn post(api: &Api, signer: &str, usage: &str, request: String) -> Result<String, kube::Error> {
    let object = CertificateSigningRequest {
        metadata: kube::core::ObjectMeta { generate_name: Some("csr-".to_owned()), ..Default::default() },
        spec: CertificateSigningRequestSpec {
            request: ByteString(request.into_bytes()),
            signer_name: signer.to_owned(),
            usages: Some(vec!["digital signature".to_owned(), usage.to_owned()]),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    };
    let made = Typed::<CertificateSigningRequest>::all(api.client()).create(&PostParams::default(), &object).await?;
    Ok(made.metadata.name.unwrap_or_default())
}

/// Looks what came of a request.
pub(super) async fn look(api: &Api, name: &str) -> Result<Outcome, kube::Error> {
    let object = Typed::<CertificateSigningRequest>::all(api.client()).get(name).await?;
    let status = object.status.unwrap_or_default();
    let refusal = status.conditions.iter().flatten().find(|it| matches!(it.type_.as_str(), "Denied" | "Failed"));
    if let Some(refusal) = refusal {
        let words = [refusal.reason.as_deref(), refusal.message.as_deref()];
        let words = words.into_iter().flatten().collect::<Vec<_>>().join(": ");
        return Ok(Outcome::Refused(format!("was {} ({words})", refusal.type_.to_lowercase())));
    }
    Ok(status.certificate.map_or(Outcome::Pending, |it| Outcome::Issued(it.0)))
}

/// Asks for a client certificate, which a cluster approves by itself, and waits for it.
pub(super) async fn client(api: &Api, place: &str, name: &str) -> Result<Issued, JoinError> {
    let (key, request) = request(name, &[], &[])?;
    let signer = "kubernetes.io/kube-apiserver-client-kubelet";
    let posted = post(api, signer, "client auth", request).await;
    let posted = posted.map_err(|error| JoinError::of(place, "ask for a certificate", &error))?;
    let end = Instant::now() + PATIENCE;
    let mut wait = LOOKS.0;
    loop {
        match look(api, &posted).await {
            Ok(Outcome::Issued(chain)) => return Ok(Issued { chain, key: key.into_bytes() }),
            Ok(Outcome::Refused(problem)) => return Err(JoinError::Request { request: posted, problem }),
            Ok(Outcome::Pending) => {}
            Err(error) if failure(&error) == Failure::Unreachable || failure(&error) == Failure::Busy => {}
            Err(error) => return Err(JoinError::of(place, "see what came of its request", &error)),
        }
        if Instant::now() > end {
            let problem = format!("was not approved within {} s", PATIENCE.as_secs());
            return Err(JoinError::Request { request: posted, problem });
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(LOOKS.1);
    }
}
