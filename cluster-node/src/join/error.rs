//! Why a board did not join: what is wrong, and the remedy.

use std::{io, path::PathBuf};

use super::CredentialsError;
use crate::api::{ServerError, tls::TlsError};

/// Why a board did not join or leave.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// It is a node already.
    #[error(
        "this board is node {node} of the cluster at {server} already: leave that one first with `edge-agent leave` (`--purge` where it is gone, or does not know this board any more)"
    )]
    AlreadyJoined {
        /// Of which cluster.
        server: String,
        /// As which node.
        node: String,
    },
    /// It is no node.
    #[error("this board is in no cluster")]
    NotJoined,
    /// The address.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// A name that no Node object can have.
    #[error(
        "{0:?} is no name of a node: use lower-case letters, digits, '-' and '.', beginning and ending with a letter or digit, in --node-name or node.name"
    )]
    NodeName(String),
    /// The token's form.
    #[error(
        "the token has the wrong form: it is ID.SECRET with 6 and 16 lower-case letters or digits, as `kubeadm token create` prints it"
    )]
    TokenForm,
    /// A pin's form.
    #[error(
        "{0:?} is no pin: write sha256: and the 64 hexadecimal digits that `kubeadm token create --print-join-command` prints"
    )]
    PinForm(String),
    /// Neither pins nor the word that they are not wanted.
    #[error(
        "the cluster's CA is not pinned: give --discovery-token-ca-cert-hash sha256:…, or accept the risk with --discovery-token-unsafe-skip-ca-verification"
    )]
    NoPin,
    /// No answer.
    #[error("the API server at {server} cannot be reached: {problem}: check the address, the network and firewalls")]
    Unreachable {
        /// Where.
        server: String,
        /// Why.
        problem: String,
    },
    /// Certificates are not yet valid, or not any more.
    #[error(
        "the certificate of {server} is {problem} by this board's clock, which says {now}: set the clock, or renew the certificate of the API server"
    )]
    Clock {
        /// Where.
        server: String,
        /// How it is.
        problem: &'static str,
        /// The board's time.
        now: String,
    },
    /// Its certificate is of another CA.
    #[error(
        "the certificate of {server} is not signed by the cluster's CA ({problem}): something else answers there, such as a proxy, or the cluster's CA was replaced"
    )]
    Untrusted {
        /// Where.
        server: String,
        /// In TLS's words.
        problem: String,
    },
    /// Its certificate is for other names.
    #[error(
        "the certificate of {server} is not for that address ({problem}): use one that it names, or add this one to apiServer.certSANs of the cluster"
    )]
    OtherName {
        /// Where.
        server: String,
        /// In TLS's words.
        problem: String,
    },
    /// It is no cluster that kubeadm made, or something else answers there.
    #[error("{server} answers, but not as a cluster that boards can join: {problem}")]
    NoCluster {
        /// Where.
        server: String,
        /// What is missing.
        problem: String,
    },
    /// The token has signed nothing.
    #[error(
        "the cluster at {server} does not know the token {id}.…: it is mistyped or expired; make another with `kubeadm token create --print-join-command`"
    )]
    UnknownToken {
        /// Where.
        server: String,
        /// The public part.
        id: String,
    },
    /// The signature does not fit.
    #[error(
        "the secret part of the token {id}.… is wrong, or somebody between the board and {server} changes what it says"
    )]
    Signature {
        /// Where.
        server: String,
        /// The public part.
        id: String,
    },
    /// The pin does not fit.
    #[error(
        "the CA of the cluster at {server} is not the pinned one: its pin is {found}; check the pin, or who answers there"
    )]
    Pin {
        /// Where.
        server: String,
        /// What it would have been.
        found: String,
    },
    /// What it said over a verified connection is something else.
    #[error("the cluster at {server} says something else once its certificate is verified: somebody is in between")]
    Changed {
        /// Where.
        server: String,
    },
    /// The name is another's.
    #[error(
        "another machine (system UUID {other}; this board's is {own}) is node {node}, and Ready: choose another name with --node-name, or, where that machine is gone, delete it with `kubectl delete node {node}`"
    )]
    NameTaken {
        /// Which.
        node: String,
        /// Of which machine.
        other: String,
        /// This one.
        own: String,
    },
    /// The name is its own, from before it was flashed.
    #[error(
        "this very board is node {node}, and Ready: it was flashed anew a moment ago, or a kubelet runs on it as well. Stop that one and wait a minute, or delete the node with `kubectl delete node {node}`"
    )]
    Flashed {
        /// Which.
        node: String,
    },
    /// The pods cannot be moved elsewhere.
    #[error(
        "the API server at {server} cannot be reached ({problem}), and without it no pod can be moved elsewhere: connect the board, or forget the cluster with `edge-agent leave --purge`"
    )]
    Offline {
        /// Where.
        server: String,
        /// Why.
        problem: String,
    },
    /// 401.
    #[error(
        "the API server does not take the token or certificate with which the board wants to {what}: it has expired, or is of another cluster; make another token with `kubeadm token create --print-join-command`"
    )]
    Unauthorized {
        /// What was asked.
        what: &'static str,
    },
    /// The server said no.
    #[error("the API server does not let the board {what}: {problem}")]
    Refused {
        /// What was asked.
        what: &'static str,
        /// Its words.
        problem: String,
    },
    /// Nobody approved the request, or somebody denied it.
    #[error("the certificate request {request} {problem}: look at it with `kubectl describe csr {request}`")]
    Request {
        /// Its name.
        request: String,
        /// What became of it.
        problem: String,
    },
    /// Something the cluster sent cannot be understood.
    #[error("{what} of the cluster cannot be understood: {problem}")]
    Understood {
        /// What.
        what: &'static str,
        /// Why.
        problem: String,
    },
    /// Keys and certificates.
    #[error("the board cannot make a key or a request for a certificate: {0}")]
    Key(String),
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The identity on disk.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// `join.toml`.
    #[error("{path}: {problem}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        problem: String,
    },
}

impl JoinError {
    /// A request failed.
    pub(super) fn of(server: &str, what: &'static str, error: &kube::Error) -> Self {
        use crate::api::{Failure, failure};
        match failure(error) {
            Failure::Unreachable => Self::unreachable(server, &board::tasks::chain(error)),
            Failure::Unauthorized => Self::Unauthorized { what },
            _ => Self::Refused { what, problem: crate::node::request::words(error) },
        }
    }

    /// No connection; certificates that time has to do with are told apart.
    pub(super) fn unreachable(server: &str, problem: &str) -> Self {
        let lower = problem.to_lowercase();
        let (place, words) = (server.to_owned(), problem.to_owned());
        if lower.contains("unknownissuer") || lower.contains("badsignature") {
            return Self::Untrusted { server: place, problem: words };
        }
        if lower.contains("not valid for name") || lower.contains("notvalidforname") {
            return Self::OtherName { server: place, problem: words };
        }
        let kind = if lower.contains("not valid yet") || lower.contains("notvalidyet") {
            Some("not yet valid")
        } else if lower.contains("expired") {
            Some("expired")
        } else {
            None
        };
        match kind {
            Some(problem) => Self::Clock { server: place, problem, now: jiff::Timestamp::now().to_string() },
            None => Self::Unreachable { server: place, problem: words },
        }
    }

    pub(super) fn file(path: &std::path::Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self::File { path, problem: error.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_connection_is_told_apart() {
        #[track_caller]
        fn check(tls: rustls::CertificateError, want: &str) {
            let problem = board::tasks::chain(&rustls::Error::InvalidCertificate(tls));
            let words = JoinError::unreachable("core:6443", &problem).to_string();
            assert!(words.contains("core:6443") && words.contains(want), "{words}");
        }
        use rustls::{CertificateError as E, pki_types::UnixTime};
        let at = |seconds| UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
        check(E::NotValidYetContext { time: at(1), not_before: at(2) }, "not yet valid");
        check(E::ExpiredContext { time: at(2), not_after: at(1) }, "is expired by this board's clock");
        check(E::UnknownIssuer, "not signed by the cluster's CA");
        check(E::BadSignature, "not signed by the cluster's CA");
        let name = rustls::pki_types::ServerName::try_from("core").unwrap();
        check(E::NotValidForNameContext { expected: name, presented: Vec::new() }, "apiServer.certSANs");
        let refused = JoinError::unreachable("core:6443", "Connection refused (os error 111)").to_string();
        assert!(refused.contains("check the address"), "{refused}");
    }
}
