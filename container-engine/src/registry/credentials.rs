//! Who one is at a registry: given with the request, or kept in Docker's `config.json`, where credential helpers are named too.

use std::{
    fmt,
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::RegistryError;
use crate::reference::DOCKER_HUB;

/// Docker's name of its own registry in `config.json`.
const HUB_KEY: &str = "https://index.docker.io/v1/";
/// Largest `config.json` and answer of a helper, bytes.
const MAX_BYTES: u64 = 1 << 20;
/// How long a helper may take.
const HELPER_PATIENCE: Duration = Duration::from_secs(20);

/// Text that is never shown.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps it.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// For the one place that sends it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Who one is at a registry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Credentials {
    /// Nobody.
    #[default]
    Anonymous,
    /// A user.
    Basic {
        /// Name.
        username: String,
        /// Password or access token.
        password: Secret,
    },
    /// What a login left: exchanged for tokens at the registry's authorisation server.
    IdentityToken {
        /// It.
        token: Secret,
    },
}

impl Credentials {
    /// A user and a password.
    pub fn basic(username: &str, password: &str) -> Self {
        Self::Basic { username: username.to_owned(), password: Secret::new(password) }
    }
}

/// Docker's `config.json`. What it holds besides logins is kept as it is.
#[derive(Clone)]
pub struct DockerConfig {
    path: PathBuf,
    content: Value,
}

impl fmt::Debug for DockerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DockerConfig").field("path", &self.path).finish_non_exhaustive()
    }
}

impl DockerConfig {
    /// The user's: `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`.
    pub fn user_path() -> PathBuf {
        let dir = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
        let home = || std::env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from);
        dir.unwrap_or_else(|| home().join(".docker")).join("config.json")
    }

    /// Reads it; a missing file is an empty one. Blocking.
    pub fn load(path: &Path) -> Result<Self, RegistryError> {
        let wrong = |problem: String| RegistryError::Config { path: path.to_owned(), problem };
        let content = match board::durable::read(path, MAX_BYTES) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| wrong(format!("it is no JSON: {error}")))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => json!({}),
            Err(source) => return Err(RegistryError::File { path: path.to_owned(), source }),
        };
        if !content.is_object() {
            return Err(wrong("it is no JSON object".to_owned()));
        }
        Ok(Self { path: path.to_owned(), content })
    }

    /// Of a pull secret: the same content, from memory.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let content: Value = serde_json::from_slice(bytes).ok()?;
        content.is_object().then(|| Self { path: PathBuf::new(), content })
    }

    /// Who one is at `registry`. Runs a credential helper where one is named. Blocking.
    pub fn credentials(&self, registry: &str) -> Result<Credentials, RegistryError> {
        if let Some(helper) = self.helper(registry) {
            return self.ask(&helper, registry);
        }
        let auths = self.content["auths"].as_object();
        let entry = auths.into_iter().flatten().find(|(key, _)| host_of(key) == registry);
        let Some((_, entry)) = entry else { return Ok(Credentials::Anonymous) };
        let text = |name: &str| entry[name].as_str().filter(|it| !it.is_empty());
        if let Some(token) = text("identitytoken") {
            return Ok(Credentials::IdentityToken { token: Secret::new(token) });
        }
        if let (Some(username), Some(password)) = (text("username"), text("password")) {
            return Ok(Credentials::basic(username, password));
        }
        let Some(auth) = text("auth") else { return Ok(Credentials::Anonymous) };
        let decoded = STANDARD.decode(auth).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let pair = decoded.as_deref().and_then(|it| it.split_once(':'));
        let (username, password) = pair.ok_or_else(|| RegistryError::Config {
            path: self.path.clone(),
            problem: format!("auths.{registry}.auth is not base64 of user:password; log in again"),
        })?;
        Ok(Credentials::basic(username, password.trim_end_matches('\0')))
    }

    /// Keeps a login, in a helper where one is named. Blocking.
    pub fn store(&mut self, registry: &str, credentials: &Credentials) -> Result<(), RegistryError> {
        let Credentials::Basic { username, password } = credentials else { return Ok(()) };
        let key = if registry == DOCKER_HUB { HUB_KEY } else { registry };
        let entry = if let Some(helper) = self.helper(registry) {
            let words = json!({ "ServerURL": key, "Username": username, "Secret": password.reveal() });
            run(&helper, "store", words.to_string().as_bytes()).map_err(|problem| self.wrong(&helper, &problem))?;
            json!({})
        } else {
            json!({ "auth": STANDARD.encode(format!("{username}:{}", password.reveal())) })
        };
        if !self.content["auths"].is_object() {
            self.content["auths"] = json!({});
        }
        self.content["auths"][key] = entry;
        self.write()
    }

    /// Forgets a login; says whether there was one. Blocking.
    pub fn erase(&mut self, registry: &str) -> Result<bool, RegistryError> {
        let key = if registry == DOCKER_HUB { HUB_KEY } else { registry };
        let mut known = false;
        if let Some(helper) = self.helper(registry) {
            known = run(&helper, "erase", key.as_bytes()).is_ok();
        }
        if let Some(auths) = self.content["auths"].as_object_mut() {
            let before = auths.len();
            auths.retain(|key, _| host_of(key) != registry);
            known |= auths.len() != before;
        }
        self.write()?;
        Ok(known)
    }

    fn write(&self) -> Result<(), RegistryError> {
        let failed = |source| RegistryError::File { path: self.path.clone(), source };
        // Where it is a link to another place, as dotfiles are, it stays one.
        let path = std::fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        if let Some(dir) = path.parent() {
            board::durable::create_dir_all(dir, 0o700).map_err(failed)?;
        }
        // Values that were read as JSON can be written as JSON.
        let text = serde_json::to_vec_pretty(&self.content).unwrap_or_default();
        board::durable::write(&path, &text, 0o600).map_err(failed)
    }

    /// The helper of a registry: its own, or the one for all.
    fn helper(&self, registry: &str) -> Option<String> {
        let own = self.content["credHelpers"].as_object();
        let own =
            own.into_iter().flatten().find(|(key, _)| host_of(key) == registry).and_then(|(_, name)| name.as_str());
        let name = own.or_else(|| self.content["credsStore"].as_str())?;
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        (!name.is_empty() && name.bytes().all(plain)).then(|| name.to_owned())
    }

    fn wrong(&self, helper: &str, problem: &str) -> RegistryError {
        let problem = format!("docker-credential-{helper} {problem}; install it, or take it out of the file");
        RegistryError::Config { path: self.path.clone(), problem }
    }

    fn ask(&self, helper: &str, registry: &str) -> Result<Credentials, RegistryError> {
        let key = if registry == DOCKER_HUB { HUB_KEY } else { registry };
        let answer = match run(helper, "get", key.as_bytes()) {
            Ok(answer) => answer,
            // How helpers say that they hold nothing.
            Err(problem) if problem.contains("credentials not found") => return Ok(Credentials::Anonymous),
            Err(problem) => return Err(self.wrong(helper, &problem)),
        };
        #[derive(Deserialize)]
        struct Answer {
            #[serde(rename = "Username", default)]
            username: String,
            #[serde(rename = "Secret")]
            secret: Secret,
        }
        let answer: Answer =
            serde_json::from_slice(&answer).map_err(|_| self.wrong(helper, "gave no JSON with Username and Secret"))?;
        Ok(match answer.username.as_str() {
            "<token>" => Credentials::IdentityToken { token: answer.secret },
            _ => Credentials::Basic { username: answer.username, password: answer.secret },
        })
    }
}

/// The registry that a key of `auths` means: keys are hosts, or old URLs.
fn host_of(key: &str) -> &str {
    let rest = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    match rest.split('/').next().unwrap_or_default() {
        "index.docker.io" | "registry-1.docker.io" | "docker.io" => DOCKER_HUB,
        host => host,
    }
}

/// Runs `docker-credential-NAME VERB` with `input`; a failure is told in the helper's words, which hold no secret.
fn run(name: &str, verb: &str, input: &[u8]) -> Result<Vec<u8>, String> {
    run_program(&format!("docker-credential-{name}"), verb, input, HELPER_PATIENCE)
}

fn run_program(program: &str, verb: &str, input: &[u8], patience: Duration) -> Result<Vec<u8>, String> {
    let mut child = Command::new(program)
        .arg(verb)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("does not start ({error})"))?;
    // Inputs are far smaller than a pipe, and dropping it ends them. A helper that does not want any is told by its status.
    let _ = child.stdin.take().map(|mut stdin| stdin.write_all(input));
    let output = child.stdout.take();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let read = output.map(|it| it.take(MAX_BYTES).read_to_end(&mut bytes));
        let _ = sender.send(read.is_some_and(|it| it.is_ok()).then_some(bytes)); // Nobody waits for a hung one.
    });
    let deadline = Instant::now() + patience;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
            _ => {
                let _ = child.kill(); // It is hung: nothing else can be done about it.
                let _ = child.wait();
                return Err(format!("took over {} s", patience.as_secs()));
            }
        }
    };
    // What it started, such as a key agent, may hold its output open.
    let rest = deadline.saturating_duration_since(Instant::now());
    let bytes = receiver.recv_timeout(rest).ok().flatten().ok_or("does not close its output")?;
    if !status.success() {
        let words = String::from_utf8_lossy(&bytes);
        return Err(format!("failed: {}", words.trim().chars().take(200).collect::<String>()));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_are_found_kept_and_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".docker/config.json");
        let mut config = DockerConfig::load(&path).unwrap();
        let known = Credentials::basic("ada", "pa:ss");
        config.store("reg.example.org:5000", &known).unwrap();
        config.store(DOCKER_HUB, &Credentials::basic("hub", "x")).unwrap();
        let mut config = DockerConfig::load(&path).unwrap();
        assert_eq!(config.credentials("reg.example.org:5000").unwrap(), known);
        assert_eq!(config.credentials(DOCKER_HUB).unwrap(), Credentials::basic("hub", "x"));
        assert_eq!(config.credentials("other").unwrap(), Credentials::Anonymous);
        assert!(config.erase("reg.example.org:5000").unwrap());
        assert!(!config.erase("reg.example.org:5000").unwrap());
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        assert!(!format!("{known:?}").contains("pa:ss"));
    }

    #[test]
    fn what_else_is_in_the_file_stays_and_so_does_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real.json"), dir.path().join("config.json"));
        std::fs::write(&real, r#"{"detachKeys":"ctrl-x","auths":{"old.x":{"auth":"YTpi"}},"n":1.5}"#).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        DockerConfig::load(&link).unwrap().store("new.x", &Credentials::basic("c", "d")).unwrap();
        let text = std::fs::read_to_string(&real).unwrap();
        let written: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((written["detachKeys"].as_str(), written["n"].as_f64()), (Some("ctrl-x"), Some(1.5)));
        assert_eq!(written["auths"]["old.x"]["auth"], "YTpi");
        assert_eq!(written["auths"]["new.x"]["auth"], "Yzpk");
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
    }

    #[test]
    fn helpers_are_limited() {
        let dir = tempfile::tempdir().unwrap();
        let run = |script: &str, patience_ms| {
            let path = dir.path().join("helper");
            // By another process: a file that this one held open for writing could not be started while others fork.
            let make = "printf '%s\\n' '#!/bin/sh' \"$2\" >\"$1\" && chmod 755 \"$1\"";
            let made = Command::new("sh").args(["-c", make, "-"]).arg(&path).arg(script).status();
            assert!(made.unwrap().success());
            run_program(path.to_str().unwrap(), "get", b"reg.x", Duration::from_millis(patience_ms))
        };
        assert_eq!(run("read host; echo \"$1 $host\"", 9000).unwrap(), b"get reg.x\n");
        assert_eq!(run("exit 0", 9000).unwrap(), b"", "it wants no input");
        assert!(run("echo credentials not found; exit 1", 9000).unwrap_err().contains("credentials not found"));
        assert!(run("exec sleep 60", 200).unwrap_err().contains("took over"));
        assert!(run("sleep 3 & exit 0", 500).unwrap_err().contains("does not close"));
        assert!(run("exec head -c 2000000 /dev/zero", 9000).map_or(0, |it| it.len()) <= 1 << 20);
    }

    #[test]
    fn what_is_written_by_others_is_understood_or_told() {
        #[track_caller]
        fn check(text: &str, registry: &str, want: Option<Credentials>) {
            let config = DockerConfig::parse(text.as_bytes()).unwrap();
            assert_eq!(config.credentials(registry).ok(), want, "{text}");
        }
        let basic = Credentials::basic("a", "b");
        check(r#"{"auths":{"https://index.docker.io/v1/":{"auth":"YTpi"}}}"#, "docker.io", Some(basic.clone()));
        check(r#"{"auths":{"https://reg.x/v2/":{"username":"a","password":"b"}}}"#, "reg.x", Some(basic));
        let token = Credentials::IdentityToken { token: Secret::new("t") };
        check(r#"{"auths":{"reg.x":{"identitytoken":"t","auth":"YTpi"}}}"#, "reg.x", Some(token));
        check(r#"{"auths":{"reg.x":{"auth":"%%"}}}"#, "reg.x", None);
        check(r#"{"auths":{"reg.x":{}}}"#, "reg.x", Some(Credentials::Anonymous));
        check(r#"{"auths":[1]}"#, "reg.x", Some(Credentials::Anonymous));
        check(r#"{"credsStore":"no-such-helper"}"#, "reg.x", None);
        check(r#"{"credsStore":"../x"}"#, "reg.x", Some(Credentials::Anonymous));
    }
}
