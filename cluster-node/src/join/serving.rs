//! The certificate of the kubelet's API: signed by the board itself until the cluster has approved one.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use board::tasks::Context;
use k8s_openapi::api::core::v1::NodeAddress;
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use x509_parser::{extensions::GeneralName, pem::Pem};

use super::{
    JoinError,
    credentials::{split, validity},
    csr::{self, Outcome},
    off,
};
use crate::api::{Api, tls};

/// Certificate and key that the cluster has signed.
pub(super) const FILE: &str = "serving.pem";
/// The request that waits for approval, and its key.
pub(super) const PENDING: &str = "serving-pending.json";
const MAX: u64 = 1 << 20;
const SIGNER: &str = "kubernetes.io/kubelet-serving";
/// First and longest wait between two looks at a request: people approve when they do.
const LOOKS: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(300));
/// Between two looks at a certificate that is good.
const REST: Duration = Duration::from_secs(3600);
/// After a request was refused.
const REFUSED: Duration = Duration::from_secs(3600);
/// The part of its life after which a certificate is replaced, per cent.
const REPLACE_AT: i64 = 80;

/// What is shown; replaced while the server runs.
#[derive(Debug)]
struct Shown(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Pending {
    request: String,
    key: String,
    names: BTreeSet<String>,
}

/// The service.
pub struct Serving {
    identity: PathBuf,
    node: String,
    addresses: watch::Receiver<Vec<NodeAddress>>,
    shown: Arc<Shown>,
    signed: bool,
}

impl Serving {
    /// Shows the cluster's certificate, where there is a good one on disk, else one of its own making.
    pub fn new(identity: &Path, node: &str, addresses: watch::Receiver<Vec<NodeAddress>>) -> Result<Self, JoinError> {
        let kept = kept(identity).and_then(|(chain, key)| tls::certified(&chain, &key).ok());
        let signed = kept.is_some();
        let shown = match kept {
            Some(kept) => kept,
            None => own(node)?,
        };
        let shown = Arc::new(Shown(RwLock::new(shown)));
        Ok(Self { identity: identity.to_owned(), node: node.to_owned(), addresses, shown, signed })
    }

    /// For the server.
    pub fn resolver(&self) -> Arc<dyn ResolvesServerCert> {
        self.shown.clone()
    }

    /// Asks the cluster for a certificate whenever there is none that fits the node's addresses.
    pub async fn run(mut self, api: Api, context: Context) -> Result<(), JoinError> {
        let mut wait = LOOKS.0;
        let mut waiting = None;
        loop {
            let pause = match self.step(&api).await {
                Ok(Step::Good) => {
                    context.healthy("the cluster has signed the certificate of this node's API");
                    wait = LOOKS.0;
                    REST
                }
                Ok(Step::Waits(request)) => {
                    let own = if self.signed { "" } else { "its own certificate is shown meanwhile; " };
                    context
                        .healthy(format!("{own}request {request} waits for `kubectl certificate approve {request}`"));
                    waiting = Some(request);
                    wait = (wait * 2).min(LOOKS.1);
                    wait
                }
                Ok(Step::NoAddress) => LOOKS.0,
                Err(JoinError::Request { request, problem }) => {
                    context.healthy(format!("request {request} {problem}; its own certificate is shown"));
                    REFUSED
                }
                Err(error) => {
                    tracing::debug!(error = %board::tasks::chain(&error), "no certificate for this node's API yet");
                    context.healthy("waits for the API server to sign the certificate of this node's API");
                    wait = (wait * 2).min(LOOKS.1);
                    wait
                }
            };
            let waiting = waiting.take();
            let decided = async {
                match &waiting {
                    Some(request) => csr::changed(&api, request).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = context.stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(pause) => {}
                () = decided => {}
                changed = self.addresses.changed() => if changed.is_err() {
                    context.stop.cancelled().await;
                    return Ok(());
                }
            }
        }
    }

    async fn step(&mut self, api: &Api) -> Result<Step, JoinError> {
        let names = names(&self.addresses.borrow_and_update(), &self.node);
        if !names.iter().any(|name| name.parse::<IpAddr>().is_ok()) {
            return Ok(Step::NoAddress);
        }
        if kept(&self.identity).is_some_and(|(chain, _)| fits(&chain, &names)) {
            return Ok(Step::Good);
        }
        let place = api.server().authority();
        let pending = match self.pending().filter(|pending| pending.names == names) {
            Some(pending) => pending,
            None => self.ask(api, &place, names).await?,
        };
        let done = match csr::look(api, &pending.request).await {
            Ok(Outcome::Pending) => return Ok(Step::Waits(pending.request)),
            Ok(Outcome::Issued(chain)) => self.take(chain, pending.key).await.map(|()| Step::Good),
            Ok(Outcome::Refused(problem)) => Err(JoinError::Request { request: pending.request, problem }),
            // It is cleared away after a time.
            Err(error) if crate::api::failure(&error) == crate::api::Failure::NotFound => {
                Ok(Step::Waits(pending.request))
            }
            Err(error) => return Err(JoinError::of(&place, "see what came of its request", &error)),
        };
        // Whatever came of it: the next is another.
        let _ = std::fs::remove_file(self.identity.join(PENDING));
        done
    }

    fn pending(&self) -> Option<Pending> {
        let bytes = board::durable::read(&self.identity.join(PENDING), MAX).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    async fn ask(&self, api: &Api, place: &str, names: BTreeSet<String>) -> Result<Pending, JoinError> {
        let (addresses, dns): (Vec<_>, Vec<_>) = names.iter().partition(|name| name.parse::<IpAddr>().is_ok());
        let addresses: Vec<IpAddr> = addresses.iter().filter_map(|it| it.parse().ok()).collect();
        let dns: Vec<String> = dns.into_iter().cloned().collect();
        let (key, request) = csr::request(&self.node, &dns, &addresses)?;
        let posted = csr::post(api, SIGNER, "server auth", request).await;
        let request = posted.map_err(|error| JoinError::of(place, "ask for a certificate of its API", &error))?;
        let pending = Pending { request, key, names };
        // What is made of strings has a JSON form.
        let json = serde_json::to_vec(&pending).unwrap_or_default();
        let path = self.identity.join(PENDING);
        off(move || board::durable::write(&path, &json, 0o600).map_err(JoinError::file(&path))).await??;
        Ok(pending)
    }

    async fn take(&mut self, chain: Vec<u8>, key: String) -> Result<(), JoinError> {
        let certified = tls::certified(&chain, key.as_bytes())?;
        let mut pem = chain;
        pem.push(b'\n');
        pem.extend_from_slice(key.as_bytes());
        let path = self.identity.join(FILE);
        off(move || board::durable::write(&path, &pem, 0o600).map_err(JoinError::file(&path))).await??;
        *self.shown.0.write().unwrap_or_else(PoisonError::into_inner) = certified;
        self.signed = true;
        Ok(())
    }
}

enum Step {
    Good,
    Waits(String),
    NoAddress,
}

fn kept(identity: &Path) -> Option<(Vec<u8>, Vec<u8>)> {
    split(&board::durable::read(&identity.join(FILE), MAX).ok()?)
}

/// Signed by itself.
fn own(node: &str) -> Result<Arc<CertifiedKey>, JoinError> {
    let name = if node.len() <= 63 { node } else { "node" };
    let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]);
    let made = made.map_err(|error| JoinError::Key(error.to_string()))?;
    Ok(tls::certified(made.cert.pem().as_bytes(), made.signing_key.serialize_pem().as_bytes())?)
}

/// What the certificate has to say: the node's addresses and names.
fn names(addresses: &[NodeAddress], node: &str) -> BTreeSet<String> {
    // The status has the name as an address, too.
    addresses.iter().map(|it| it.address.clone()).chain([node.to_owned()]).collect()
}

/// Whether a certificate is good for a while yet, and says all of that.
fn fits(chain: &[u8], wanted: &BTreeSet<String>) -> bool {
    let Some((from, to)) = validity(chain) else { return false };
    let now = jiff::Timestamp::now();
    let life = to.duration_since(from).as_secs();
    let is_old = now.duration_since(from).as_secs() > life / 100 * REPLACE_AT;
    !is_old && said(chain).is_some_and(|said| wanted.is_subset(&said))
}

/// The alternative names of a certificate.
fn said(chain: &[u8]) -> Option<BTreeSet<String>> {
    let pem = Pem::iter_from_buffer(chain).next()?.ok()?;
    let certificate = pem.parse_x509().ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    let text = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match *bytes {
            [a, b, c, d] => Some(IpAddr::from([*a, *b, *c, *d]).to_string()),
            bytes => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?).to_string()),
        },
        _ => None,
    };
    Some(names.value.general_names.iter().filter_map(text).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_fits_the_addresses_it_says() {
        let made =
            rcgen::generate_simple_self_signed(vec!["board".into(), "10.0.0.1".into(), "fd00::1".into()]).unwrap();
        let chain = made.cert.pem().into_bytes();
        let set = |names: &[&str]| names.iter().map(|it| (*it).to_owned()).collect::<BTreeSet<_>>();
        assert!(fits(&chain, &set(&["board", "10.0.0.1", "fd00::1"])));
        assert!(!fits(&chain, &set(&["10.0.0.2"])));
        assert!(!fits(b"", &set(&[])));
    }
}
