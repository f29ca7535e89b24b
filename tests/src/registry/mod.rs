//! Debian's `docker-registry` in all the ways that users have one, and a proxy in front of it that misbehaves.

mod proxy;
mod scripted;
mod token;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
pub use proxy::{Fault, Proxy, Seen};
pub use scripted::{Answer, Asked, Scripted};
use token::TokenServer;

use crate::{Certificates, free_port, wait_until};

/// The user that logins know, and the password.
pub const USER: (&str, &str) = ("ada", "pass word");

/// Who may come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Login {
    /// Anybody.
    None,
    /// `USER`, by basic authentication.
    Basic,
    /// `USER`, by tokens of a server that grants what was asked for; anonymous users may pull.
    Token,
}

/// A registry, on loopback, ended when dropped.
pub struct Registry {
    child: Child,
    _tokens: Option<TokenServer>,
    /// `127.0.0.1:PORT`, or `localhost:PORT` with TLS.
    pub address: String,
}

impl Registry {
    /// Plain, open to anybody; keeps its blobs below `dir`.
    pub fn start(dir: &Path) -> Result<Self> {
        Self::start_with(dir, Login::None, None)
    }

    /// With a login, with TLS.
    pub fn start_with(dir: &Path, login: Login, tls: Option<&Certificates>) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let host = if tls.is_some() { "localhost" } else { "127.0.0.1" };
        let port = free_port()?;
        let address = format!("{host}:{port}");
        let storage = dir.join("registry");
        let mut text = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage: {{filesystem: {{rootdirectory: \
             {}}}, delete: {{enabled: true}}}}\nhttp:\n  addr: \"127.0.0.1:{port}\"\n",
            storage.display()
        );
        if let Some(tls) = tls {
            let (cert, key) = (&tls.server.0, &tls.server.1);
            text.push_str(&format!("  tls: {{certificate: {}, key: {}}}\n", cert.display(), key.display()));
        }
        let tokens = match login {
            Login::None => None,
            Login::Basic => {
                let file = password_file(dir)?;
                text.push_str(&format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", file.display()));
                None
            }
            Login::Token => {
                let server = TokenServer::start(dir)?;
                text.push_str(&server.configuration());
                Some(server)
            }
        };
        let config = dir.join("registry.yml");
        fs::write(&config, text)?;
        let log = fs::File::create(dir.join("registry.log"))?;
        let child = Command::new("docker-registry").arg("serve").arg(&config).stdout(Stdio::null()).stderr(log).spawn();
        let it = Self { child: child.context("docker-registry is missing")?, _tokens: tokens, address };
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}/v2/", it.address);
        let up = || Command::new("curl").args(["-sk", "-o", "/dev/null", &url]).status().is_ok_and(|it| it.success());
        wait_until("the registry answers", Duration::from_secs(20), up)
            .with_context(|| fs::read_to_string(dir.join("registry.log")).unwrap_or_default())?;
        Ok(it)
    }

    /// Pushes an OCI layout as `name` with skopeo; returns the whole name.
    pub fn push(&self, layout: &Path, name: &str) -> Result<String> {
        let whole = format!("{}/{name}", self.address);
        let output = Command::new("skopeo")
            .args(["copy", "--quiet", "--dest-tls-verify=false", "--insecure-policy"])
            .args(["--dest-creds", &format!("{}:{}", USER.0, USER.1)])
            .arg(format!("oci:{}:latest", layout.display()))
            .arg(format!("docker://{whole}"))
            .output()?;
        ensure!(output.status.success(), "skopeo could not push {whole}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(whole)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.address.rsplit(':').next().and_then(|it| it.parse().ok()).unwrap_or(0)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill(); // It may be gone already.
        let _ = self.child.wait();
    }
}

fn password_file(dir: &Path) -> Result<PathBuf> {
    let output = Command::new("htpasswd").args(["-Bbn", USER.0, USER.1]).output().context("htpasswd is missing")?;
    let file = dir.join("htpasswd");
    fs::write(&file, output.stdout)?;
    Ok(file)
}
