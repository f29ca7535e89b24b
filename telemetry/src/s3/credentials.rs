//! Keys for S3: from the configuration, a file in AWS form, the environment, or in exchange for a web identity token.
//!
//! A file is read for each use, so a renewed one counts. What a token was exchanged for is kept until shortly before it
//! runs out; lifetimes are counted since boot, so a wrong clock does not matter.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tokio::sync::Mutex;
use url::Url;

use super::sts;

/// No credentials file is larger.
const MAX_FILE: u64 = 64 << 10;
/// How long before their end temporary keys are renewed, at most.
const MARGIN: Duration = Duration::from_secs(300);

/// Where keys come from.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// As configured.
    Static {
        /// Access key.
        key: String,
        /// Secret key.
        secret: String,
    },
    /// A file in the form of `~/.aws/credentials`, profile `default`.
    File(PathBuf),
    /// `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`.
    Environment,
    /// `AssumeRoleWithWebIdentity`.
    WebIdentity(WebIdentity),
}

/// A token of an identity provider that the S3 server trusts, and what to ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebIdentity {
    /// Holds the token; read for each exchange.
    pub token_file: PathBuf,
    /// The role to take.
    pub role_arn: String,
    /// Where the exchange is made; with Ceph the S3 endpoint itself.
    pub sts: Url,
    /// Name of the session in the server's logs.
    pub session: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Static { key, .. } => write!(f, "Static({key}, …)"),
            Self::File(path) => write!(f, "File({})", path.display()),
            Self::Environment => f.write_str("Environment"),
            Self::WebIdentity(identity) => identity.fmt(f),
        }
    }
}

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file has no keys.
    #[error("{path} has no aws_access_key_id and aws_secret_access_key in [default]")]
    Missing {
        /// Which.
        path: PathBuf,
    },
    /// Nor has the environment.
    #[error("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set")]
    NotSet,
    /// The exchange of the token failed on its way.
    #[error("{host} cannot be reached to exchange the web identity token: {problem}")]
    Unreachable {
        /// Which host.
        host: String,
        /// Why.
        problem: String,
    },
    /// The server does not take the token.
    #[error("{host} did not exchange the web identity token for role {role}: {status} {code}")]
    Refused {
        /// Which host.
        host: String,
        /// Which role.
        role: String,
        /// HTTP status.
        status: u16,
        /// The server's code.
        code: String,
    },
}

/// The keys in use.
pub(super) struct Keys {
    source: Credentials,
    /// What a token was exchanged for, and until when it is used.
    temporary: Mutex<Option<(rusty_s3::Credentials, Instant)>>,
}

impl Keys {
    pub(super) fn new(source: Credentials) -> Self {
        Self { source, temporary: Mutex::new(None) }
    }

    /// The keys as they are now.
    pub(super) async fn current(&self, http: &reqwest::Client) -> Result<rusty_s3::Credentials, CredentialsError> {
        match &self.source {
            Credentials::Static { key, secret } => Ok(rusty_s3::Credentials::new(key, secret)),
            Credentials::Environment => rusty_s3::Credentials::from_env().ok_or(CredentialsError::NotSet),
            Credentials::File(path) => {
                let text = read(path.clone()).await?;
                parse(&text).ok_or_else(|| CredentialsError::Missing { path: path.clone() })
            }
            Credentials::WebIdentity(identity) => {
                let mut temporary = self.temporary.lock().await;
                if let Some((keys, until)) = &*temporary
                    && Instant::now() < *until
                {
                    return Ok(keys.clone());
                }
                let token = read(identity.token_file.clone()).await?;
                let (keys, lifetime) = sts::exchange(http, identity, token.trim()).await?;
                let until = Instant::now() + lifetime.saturating_sub(MARGIN.min(lifetime / 5));
                *temporary = Some((keys.clone(), until));
                Ok(keys)
            }
        }
    }

    /// The server no longer knows the temporary keys: the next use exchanges the token again.
    pub(super) async fn forget(&self) {
        *self.temporary.lock().await = None;
    }
}

async fn read(path: PathBuf) -> Result<String, CredentialsError> {
    let failed = |path: &Path, source| CredentialsError::Read { path: path.to_owned(), source };
    let from = path.clone();
    let bytes = tokio::task::spawn_blocking(move || board::durable::read(&from, MAX_FILE))
        .await
        .map_err(|error| failed(&path, std::io::Error::other(error)))?
        .map_err(|source| failed(&path, source))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Profile `default` of a file in AWS form; keys before any section count too.
fn parse(text: &str) -> Option<rusty_s3::Credentials> {
    let (mut here, mut key, mut secret, mut token) = (true, None, None, None);
    for line in text.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[') {
            here = section.trim_end_matches(']').trim() == "default";
        } else if let (true, Some((name, value))) = (here, line.split_once('=')) {
            let value = Some(value.trim().to_owned());
            match name.trim() {
                "aws_access_key_id" => key = value,
                "aws_secret_access_key" => secret = value,
                "aws_session_token" => token = value,
                _ => {}
            }
        }
    }
    Some(match token {
        Some(token) => rusty_s3::Credentials::new_with_token(key?, secret?, token),
        None => rusty_s3::Credentials::new(key?, secret?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_profile_is_read() {
        let text =
            "[other]\naws_access_key_id = no\n[default]\naws_access_key_id = AK\n# x\naws_secret_access_key=S=1\n";
        let keys = parse(text).unwrap();
        assert_eq!((keys.key(), keys.secret(), keys.token()), ("AK", "S=1", None));
        assert!(parse("[default]\naws_access_key_id = AK").is_none());
        let hidden = format!("{:?}", Credentials::Static { key: "AK".into(), secret: "hush".into() });
        assert!(!hidden.contains("hush"));
    }
}
