//! One run of one plugin: configuration in, result or error out, within its time.

use std::{io, path::Path, process::Stdio, time::Duration};

use serde_json::{Map, Value};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::Command,
};

use super::{CniError, result::Failure};

/// Most that is read of what a plugin prints.
const MAX_OUTPUT: u64 = 1 << 20;
/// Most of it in a message.
const MAX_SHOWN: usize = 1000;

pub(super) async fn run(
    program: &Path,
    env: &[(&'static str, String)],
    input: &Map<String, Value>,
    limit: Duration,
    network: &str,
    command: &'static str,
) -> Result<Option<Value>, CniError> {
    let plugin = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let failed = |source| CniError::Io { step: format!("run {}", program.display()), source };
    let mut started = Command::new(program);
    started.env_clear().envs(env.iter().map(|(name, value)| (*name, value)));
    // Plugins call `iptables` and the like.
    started.env("PATH", std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into()));
    started.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = started.spawn().map_err(failed)?;
    let json = serde_json::to_vec(input).map_err(|error| failed(error.into()))?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A plugin that does not read its input says why in its output.
            let _ = stdin.write_all(&json).await;
        }
    };
    let work = async {
        let ((), out, err) = tokio::join!(feed, read(stdout), read(stderr));
        Ok::<_, io::Error>((child.wait().await?, out?, err?))
    };
    let Ok(done) = tokio::time::timeout(limit, work).await else {
        return Err(CniError::TimedOut { plugin, command, seconds: limit.as_secs() });
    };
    let (status, out, err) = done.map_err(failed)?;
    if !status.success() {
        let failure: Failure = serde_json::from_slice(&out).unwrap_or_default();
        let mut message =
            [failure.msg, failure.details].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ");
        if message.is_empty() {
            let text = String::from_utf8_lossy(if out.is_empty() { &err } else { &out }).into_owned();
            message = format!("{status}: {}", text.trim());
        }
        let message = message.chars().take(MAX_SHOWN).collect();
        let network = network.to_owned();
        return Err(CniError::Refused { plugin, network, command, message, code: failure.code });
    }
    if out.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    let nonsense = |error: serde_json::Error| CniError::Nonsense { plugin, command, problem: error.to_string() };
    serde_json::from_slice(&out).map(Some).map_err(nonsense)
}

async fn read(from: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(from) = from {
        from.take(MAX_OUTPUT).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}
