//! Why a board did not join: what is wrong, and the remedy.

use std::{io, path::PathBuf};

use super::CredentialsError;
use crate::api::{ServerError, tls::TlsError};

/// Why a board did not join or leave.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// It is a node already.
    #[error(
        "this board is node {node} of the cluster at {server} already: leave that one first with `edge-agent leave`"
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
        "a node {node} is Ready in the cluster already: if that is not this board, choose another name with --node-name; if this board was flashed anew, delete it first with `kubectl delete node {node}`"
    )]
    NameTaken {
        /// Which.
        node: String,
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
            Failure::Unauthorized => Self::Refused {
                what,
                problem: "it does not take the token or certificate: it may have expired; make another token with `kubeadm token create --print-join-command`".to_owned(),
            },
            _ => Self::Refused { what, problem: crate::node::request::words(error) },
        }
    }

    /// No connection; certificates that time has to do with are told apart.
    pub(super) fn unreachable(server: &str, problem: &str) -> Self {
        let lower = problem.to_lowercase();
        let kind = if lower.contains("not valid yet") || lower.contains("notvalidyet") {
            Some("not yet valid")
        } else if lower.contains("expired") {
            Some("expired")
        } else {
            None
        };
        match kind {
            Some(problem) => {
                Self::Clock { server: server.to_owned(), problem, now: jiff::Timestamp::now().to_string() }
            }
            None => Self::Unreachable { server: server.to_owned(), problem: problem.to_owned() },
        }
    }

    pub(super) fn file(path: &std::path::Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self::File { path, problem: error.to_string() }
    }
}
