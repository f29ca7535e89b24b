//! `status`, `config`, `--version`.

use std::{path::Path, process::ExitCode, time::Duration};

use clap::Subcommand;
use figment::Figment;

use super::out;
use crate::{
    config::{self, Config},
    control::Client,
    status::{self, Status},
};

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Every key in force, and where its value came from
    Show,
    /// Check the configuration; exit 2 names the key and line of a mistake
    Check,
}

pub fn version(json: bool) -> ExitCode {
    let version = env!("CARGO_PKG_VERSION");
    if json {
        let target = format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS);
        out(serde_json::json!({ "name": "edge-agent", "version": version, "target": target }));
    } else {
        out(format!("edge-agent {version}"));
    }
    ExitCode::SUCCESS
}

/// Prints the configuration. It was checked when it was loaded.
pub fn config(command: &ConfigCommand, figment: &Figment, file: Option<&Path>, json: bool) -> anyhow::Result<ExitCode> {
    match command {
        ConfigCommand::Check => {
            let file = file.map_or_else(|| "(no file)".to_owned(), |file| file.display().to_string());
            if json {
                out(serde_json::json!({ "file": file, "ok": true }));
            } else {
                out(format!("{file}: ok"));
            }
        }
        ConfigCommand::Show => {
            for entry in config::entries(figment) {
                if json {
                    out(serde_json::to_string(&entry)?);
                } else {
                    out(format!("{:<28} = {:<28} # {}", entry.key, entry.value, entry.from));
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub async fn status(config: &Config, json: bool, watch: bool) -> anyhow::Result<ExitCode> {
    loop {
        let mut client = Client::connect(&config.socket()).await?;
        let status: Status = serde_json::from_slice(&client.get("/v1/status").await?)?;
        if watch && !json {
            out("\x1b[H\x1b[2J");
        }
        out(if json { serde_json::to_string(&status)? } else { status::text(&status).trim_end().to_owned() });
        if !watch {
            return Ok(if status.healthy { ExitCode::SUCCESS } else { ExitCode::from(3) });
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}
