//! What goes wrong with S3, and what to do about it.

use std::path::PathBuf;

use board::tls;

use super::CredentialsError;

/// Why an object was not stored.
#[derive(Debug, thiserror::Error)]
pub enum S3Error {
    /// The endpoint or bucket cannot be one.
    #[error("{endpoint} is no S3 endpoint: {problem}")]
    Endpoint {
        /// As configured.
        endpoint: String,
        /// Why.
        problem: String,
    },
    /// TLS files.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    /// No keys.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// No connection, or a broken one.
    #[error("{host} cannot be reached: {problem}")]
    Unreachable {
        /// Which host.
        host: String,
        /// Why.
        problem: String,
    },
    /// The server said no.
    #[error("{host} answered {status} {code} for bucket {bucket}")]
    Refused {
        /// Which host.
        host: String,
        /// Which bucket.
        bucket: String,
        /// HTTP status.
        status: u16,
        /// S3's code.
        code: String,
    },
    /// What was stored is not what was sent.
    #[error("{host} stored something else than was sent (ETag {etag})")]
    Damaged {
        /// Which host.
        host: String,
        /// What it says it has.
        etag: String,
    },
    /// The folder that stands in for a bucket.
    #[error("cannot write {path}")]
    Folder {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl S3Error {
    /// What to do, in one line.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Endpoint { .. } => "check relay.s3.endpoint and bucket",
            Self::Credentials(CredentialsError::Refused { .. }) => {
                "check relay.s3.role_arn, the token, and that the server trusts its issuer"
            }
            Self::Credentials(CredentialsError::Unreachable { .. }) => "readings are kept; it will be tried again",
            Self::Credentials(CredentialsError::NotSet) => {
                "set relay.s3.access_key_id and secret_access_key, or credentials_file"
            }
            Self::Credentials(_) => "readings are kept; put the keys there, they are looked for again by and by",
            Self::Tls(_) => "put a PEM file there, it is looked for again by and by",
            Self::Unreachable { problem, .. } => {
                let problem = problem.to_lowercase();
                match () {
                    // A CA that was made anew under its old name gives a bad signature.
                    () if problem.contains("unknownissuer") || problem.contains("badsignature") => {
                        "the server's certificate is of an unknown CA: put that CA into relay.s3.ca_file"
                    }
                    () if problem.contains("expired") || problem.contains("not valid yet") => {
                        "renew the server's certificate, or set the board's clock: see `edge-agent doctor`"
                    }
                    () if problem.contains("certificate") => "check relay.s3.endpoint and ca_file",
                    () => "readings are kept; it will be tried again",
                }
            }
            Self::Refused { code, .. } => match code.as_str() {
                "InvalidAccessKeyId" => "check relay.s3.access_key_id",
                "SignatureDoesNotMatch" => "check relay.s3.secret_access_key",
                "RequestTimeTooSkewed" => "the board's clock is wrong: see `edge-agent doctor`",
                "NoSuchBucket" => "create the bucket, or correct relay.s3.bucket",
                // Ceph with temporary keys switched on says this of wrong keys, too.
                "AccessDenied" => "check the keys of relay.s3, and that they may write to this bucket",
                "ExpiredToken" => "the temporary credentials have run out: renew them",
                _ => "readings are kept; it will be tried again",
            },
            Self::Damaged { .. } => "it will be sent again",
            Self::Folder { .. } => "check the folder of relay.s3.endpoint",
        }
    }

    /// Whether the server does not know what was asked for, such as an upload that it has given up.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status: 404, code, .. } if code != "NoSuchBucket")
    }
}
