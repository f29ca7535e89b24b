//! `image login` and `image logout`.

use std::{
    io::{BufRead, IsTerminal, Read, Write},
    process::ExitCode,
};

use anyhow::{Context, bail};
use clap::Args;
use container_engine::{
    reference::DOCKER_HUB,
    registry::{Credentials, DockerConfig},
};

use crate::{
    cli::{engine::Output, out, terminal},
    engine_api::wire,
};

/// Longest password, bytes: tokens are a few thousand.
const MAX_PASSWORD: u64 = 64 << 10;

#[derive(Args)]
pub struct Login {
    /// User name
    #[arg(long, short)]
    username: Option<String>,
    /// Password; seen by everybody who lists processes, so rather use --password-stdin
    #[arg(long, short, conflicts_with = "password_stdin")]
    password: Option<String>,
    /// Read the password from standard input
    #[arg(long)]
    password_stdin: bool,
    /// Host, and port where it has one
    #[arg(default_value = DOCKER_HUB)]
    registry: String,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login").field("registry", &self.registry).finish_non_exhaustive()
    }
}

#[derive(Debug, Args)]
pub struct Logout {
    /// Host, and port where it has one
    #[arg(default_value = DOCKER_HUB)]
    registry: String,
}

impl Login {
    pub async fn run(self, to: &Output<'_>) -> anyhow::Result<ExitCode> {
        let registry = host(&self.registry)?;
        let (username, password) = self.ask()?;
        let credentials = Credentials::basic(&username, &password);
        let request = wire::Login { registry: registry.clone(), credentials: credentials.clone() };
        to.engine.post_value::<serde_json::Value>("/v1/login", &request).await?;
        let store = move || -> anyhow::Result<()> {
            let path = DockerConfig::user_path();
            Ok(DockerConfig::load(&path)?.store(&registry, &credentials)?)
        };
        tokio::task::spawn_blocking(store).await.context("writing the docker configuration panicked")??;
        out("Login Succeeded");
        Ok(ExitCode::SUCCESS)
    }

    fn ask(&self) -> anyhow::Result<(String, String)> {
        let stdin = std::io::stdin();
        if self.password_stdin {
            let Some(username) = self.username.clone() else { bail!("--password-stdin needs --username") };
            let mut text = String::new();
            stdin.lock().take(MAX_PASSWORD).read_to_string(&mut text).context("cannot read the password")?;
            let password = text.trim_end_matches(['\r', '\n']).to_owned();
            if password.is_empty() {
                bail!("standard input holds no password");
            }
            return Ok((username, password));
        }
        if !stdin.is_terminal() && (self.username.is_none() || self.password.is_none()) {
            bail!("there is no terminal to ask on: use --username and --password-stdin");
        }
        let username = if let Some(name) = &self.username {
            name.clone()
        } else {
            write!(std::io::stderr(), "Username: ")?;
            let mut line = String::new();
            stdin.lock().read_line(&mut line)?;
            line.trim().to_owned()
        };
        let password = match &self.password {
            Some(password) => password.clone(),
            None => terminal::secret("Password: ").context("cannot read the password")?,
        };
        if username.is_empty() || password.is_empty() {
            bail!("a login needs a user name and a password");
        }
        Ok((username, password))
    }
}

impl Logout {
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let registry = host(&self.registry)?;
        let name = registry.clone();
        let erase = move || anyhow::Ok(DockerConfig::load(&DockerConfig::user_path())?.erase(&name)?);
        let was = tokio::task::spawn_blocking(erase).await.context("writing the docker configuration panicked")??;
        out(if was {
            format!("Removing login credentials for {registry}")
        } else {
            format!("Not logged in to {registry}")
        });
        Ok(ExitCode::SUCCESS)
    }
}

/// The host of what people write: `https://host/`, `host:5000`, or one of Docker's own names.
fn host(text: &str) -> anyhow::Result<String> {
    let bare = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
    let bare = bare.split('/').next().unwrap_or_default();
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '[' | ']' | '_');
    match bare {
        "index.docker.io" | "registry-1.docker.io" | DOCKER_HUB => Ok(DOCKER_HUB.to_owned()),
        host if !host.is_empty() && host.chars().all(good) => Ok(host.to_owned()),
        _ => bail!("{text:?} is no registry: write its host, such as registry.example.org or localhost:5000"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_registries() {
        for (text, want) in [
            ("localhost:5000", Some("localhost:5000")),
            ("https://registry.example.org/v2/", Some("registry.example.org")),
            ("https://index.docker.io/v1/", Some("docker.io")),
            ("docker.io", Some("docker.io")),
            ("", None),
            ("a b", None),
        ] {
            assert_eq!(host(text).ok().as_deref(), want, "{text:?}");
        }
    }

    #[test]
    fn a_password_is_not_shown() {
        let login = Login {
            username: Some("ann".into()),
            password: Some("hush".into()),
            password_stdin: false,
            registry: "localhost".into(),
        };
        assert!(!format!("{login:?}").contains("hush"));
    }
}
