//! Keys for S3: from the configuration, a file in AWS form, or the environment. Read for each use, so a renewed file counts.

use std::{fmt, path::PathBuf};

/// No credentials file is larger.
const MAX_FILE: u64 = 64 << 10;

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
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Static { key, .. } => write!(f, "Static({key}, …)"),
            Self::File(path) => write!(f, "File({})", path.display()),
            Self::Environment => f.write_str("Environment"),
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
}

impl Credentials {
    /// The keys as they are now. Blocking, short.
    pub fn load(&self) -> Result<rusty_s3::Credentials, CredentialsError> {
        match self {
            Self::Static { key, secret } => Ok(rusty_s3::Credentials::new(key, secret)),
            Self::Environment => rusty_s3::Credentials::from_env().ok_or(CredentialsError::NotSet),
            Self::File(path) => {
                let text = board::durable::read(path, MAX_FILE)
                    .map_err(|source| CredentialsError::Read { path: path.clone(), source })?;
                parse(&String::from_utf8_lossy(&text)).ok_or_else(|| CredentialsError::Missing { path: path.clone() })
            }
        }
    }
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
