//! Keys made on the board, and requests for their certificates.
//!
//! Source: `certificates.k8s.io/v1`, signers `kubernetes.io/kube-apiserver-client-kubelet` and `kubernetes.io/kubelet-serving`.

use std::{net::IpAddr, time::Duration};

use futures_util::StreamExt;
use k8s_openapi::{
    ByteString,
    api::certificates::v1::{
        CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestSpec,
    },
};
use kube::{
    Api as Typed,
    api::{PostParams, WatchEvent, WatchParams},
};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use tokio::time::Instant;

use super::JoinError;
use crate::api::{Api, Failure, failure, tls};

/// How long an automatic approval may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// First and longest wait between two looks.
const LOOKS: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));

/// A watch ends by itself after this time, s.
const WATCH: u32 = 290;

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

/// Whether what was signed is for this key and this node: nothing else replaces what the board has.
fn usable(chain: &[u8], key: &[u8], name: &str) -> Result<(), JoinError> {
    tls::certified(chain, key)?;
    let first = tls::certificates("the certificate", chain)?;
    let wanted = format!("system:node:{name}");
    let problem = match first.first().and_then(board::tls::common_name) {
        Some(found) if found == wanted => return Ok(()),
        Some(found) => format!("it is for {found:?} instead of {wanted:?}"),
        None => format!("it is not for {wanted:?}"),
    };
    Err(JoinError::Understood { what: "the certificate", problem })
}

/// Returns when something has come of a request, as far as the server tells; never returns where it does not.
pub(super) async fn changed(api: &Api, name: &str) {
    let params = WatchParams::default().fields(&format!("metadata.name={name}")).timeout(WATCH);
    let requests = Typed::<CertificateSigningRequest>::all(api.client());
    if let Ok(events) = requests.watch(&params, "0").await {
        let mut events = std::pin::pin!(events);
        while let Some(Ok(event)) = events.next().await {
            match event {
                // As it is now; it may have been signed since the last look.
                WatchEvent::Added(it) if !is_decided(&it) => {}
                WatchEvent::Bookmark(_) => {}
                WatchEvent::Error(_) => break,
                _ => return,
            }
        }
    }
    std::future::pending::<()>().await;
}

fn is_decided(request: &CertificateSigningRequest) -> bool {
    let Some(status) = &request.status else { return false };
    let refused = |it: &CertificateSigningRequestCondition| matches!(it.type_.as_str(), "Denied" | "Failed");
    status.certificate.is_some() || status.conditions.iter().flatten().any(refused)
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
            Ok(Outcome::Issued(chain)) => {
                usable(&chain, key.as_bytes(), name)?;
                return Ok(Issued { chain, key: key.into_bytes() });
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_what_the_signers_want() {
        let (key, pem) = request("board-7", &["board-7".into()], &["10.0.0.1".parse().unwrap()]).unwrap();
        assert!(key.contains("PRIVATE KEY") && pem.contains("CERTIFICATE REQUEST"));
        let (_, der) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        let (_, it) =
            <x509_parser::certification_request::X509CertificationRequest<'_> as x509_parser::prelude::FromDer<_>>::from_der(&der.contents)
                .unwrap();
        let subject = it.certification_request_info.subject.to_string();
        assert!(subject.contains("O=system:nodes") && subject.contains("CN=system:node:board-7"), "{subject}");
    }

    #[test]
    fn what_is_signed_for_others_is_not_taken() {
        let made = |name: &str| {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::default();
            params.distinguished_name = DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, name);
            (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
        };
        let (chain, key) = made("system:node:a");
        assert!(usable(chain.as_bytes(), key.as_bytes(), "a").is_ok());
        assert!(usable(chain.as_bytes(), key.as_bytes(), "b").is_err());
        assert!(usable(chain.as_bytes(), made("x").1.as_bytes(), "a").is_err());
        assert!(usable(b"", key.as_bytes(), "a").is_err());
    }
}
