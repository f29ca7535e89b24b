//! `edge-agent upload FILE…`: puts large files into the spool, from where the agent sends them to S3.

use std::{
    io::{IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use ::telemetry::uploads;
use anyhow::{Context, bail};
use clap::Args;

use super::out;
use crate::{config::Config, control::Client, status::Status};

#[derive(Debug, Args)]
pub struct Upload {
    /// Files to queue
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Name below the upload's folder in S3, such as flight7/photo.tif; for one file
    #[arg(long = "as", value_name = "NAME")]
    name: Option<String>,
    /// Return when the files are in S3
    #[arg(long)]
    wait: bool,
}

/// Done when the files are in the spool, on disk; with `--wait`, when they are in S3.
pub async fn run(config: &Config, command: Upload, json: bool) -> anyhow::Result<ExitCode> {
    if config.uploads.is_none() {
        bail!("there is no S3 to send files to: set relay.s3.endpoint and bucket");
    }
    if command.name.is_some() && command.files.len() > 1 {
        bail!("--as names one file, and {} are given", command.files.len());
    }
    let (spool, name) = (config.spool.clone(), command.name);
    let files = command.files;
    let names = tokio::task::spawn_blocking(move || {
        files.iter().map(|file| queue(&spool, file, name.as_deref(), json)).collect::<anyhow::Result<Vec<_>>>()
    })
    .await??;
    if command.wait {
        wait(config, &names).await?;
    }
    Ok(ExitCode::SUCCESS)
}

fn queue(spool: &Path, file: &Path, name: Option<&str>, json: bool) -> anyhow::Result<String> {
    let size = std::fs::metadata(file).map_or(0, |it| it.len());
    let mut bar = Bar::new(format!("copying {}", file.display()));
    let mut copied = 0;
    let name = uploads::queue(spool, file, name, |bytes| {
        copied += bytes;
        bar.show(copied, size);
    })?;
    drop(bar);
    out(if json {
        serde_json::json!({ "file": file, "queued": name, "bytes": size }).to_string()
    } else {
        format!("{} queued as {name}; `edge-agent status` shows how it goes", file.display())
    });
    Ok(name)
}

/// Until none of the files is in the spool any more.
async fn wait(config: &Config, names: &[String]) -> anyhow::Result<()> {
    let mut bar = Bar::new("sending".into());
    loop {
        let left = names.iter().filter(|name| config.spool.join(name).exists()).count();
        if left == 0 {
            return Ok(());
        }
        let mut client =
            Client::connect(&config.socket()).await.context("the files are queued, but nobody sends them")?;
        let status: Status = serde_json::from_slice(&client.get("/v1/status").await?)?;
        if let Some(uploads) = status.uploads
            && let Some(current) = uploads.current
        {
            bar.what = format!("{current} ({left} left)");
            bar.show(uploads.done, uploads.size);
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// A line on standard error that is written over, where that is a terminal.
struct Bar {
    what: String,
    shown: Option<Instant>,
}

impl Bar {
    fn new(what: String) -> Self {
        Self { what, shown: None }
    }

    fn show(&mut self, done: u64, of: u64) {
        let recent = self.shown.is_some_and(|shown| shown.elapsed() < Duration::from_millis(200));
        if recent || !std::io::stderr().is_terminal() {
            return;
        }
        self.shown = Some(Instant::now());
        let full = usize::try_from(30 * done / of.max(1)).unwrap_or(30).min(30);
        let (bar, rest) = ("=".repeat(full), " ".repeat(30 - full));
        // Nobody is left to tell if this fails.
        let _ =
            write!(std::io::stderr(), "\r{} [{bar}{rest}] {} of {} MB ", self.what, done / 1_000_000, of / 1_000_000);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if self.shown.is_some() {
            let _ = writeln!(std::io::stderr());
        }
    }
}
