//! `edge-agent volume …`.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use container_engine::{event::has_label, owner::Owner};
use serde_json::{Value, json};

use super::{
    engine::{self, Connection, Output, confirm, flag},
    format::{Columns, Listing, human},
    out, parse,
};
use crate::{
    config::Config,
    control::encode,
    engine_api::wire::{Removed, VolumeInfo, VolumeSpec},
};

const COLUMNS: Columns = Columns {
    all: &[
        ("Driver", "DRIVER"),
        ("Name", "VOLUME NAME"),
        ("Mountpoint", "MOUNTPOINT"),
        ("Labels", "LABELS"),
        ("Scope", "SCOPE"),
        ("Links", "LINKS"),
    ],
    usual: 2,
};

#[derive(Debug, Args)]
pub struct Volume {
    /// Whose volumes: local, pods/UID, jobs/ID
    #[arg(long, global = true, value_name = "OWNER", default_value_t)]
    owner: Owner,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a volume
    #[command(after_help = "Example:\n  edge-agent volume create --label team=lab data")]
    Create {
        /// KEY=VALUE
        #[arg(long, value_name = "KEY=VALUE", value_parser = parse::label)]
        label: Vec<(String, String)>,
        /// Its name; made up where absent
        name: Option<String>,
    },
    /// Volumes
    #[command(visible_alias = "list")]
    Ls {
        /// Names alone
        #[arg(long, short)]
        quiet: bool,
        /// table, json, or a Go template
        #[arg(long, value_name = "TEMPLATE")]
        format: Option<String>,
        /// name, label, dangling
        #[arg(long, short, value_name = "FILTER")]
        filter: Vec<String>,
    },
    /// Remove volumes that no container has
    #[command(visible_alias = "remove")]
    Rm {
        /// What is not there is no error
        #[arg(long, short)]
        force: bool,
        /// Names
        #[arg(required = true, value_name = "VOLUME")]
        volumes: Vec<String>,
    },
    /// Everything about volumes
    Inspect {
        /// json, or a Go template
        #[arg(long, short, value_name = "TEMPLATE")]
        format: Option<String>,
        /// Names
        #[arg(required = true, value_name = "VOLUME")]
        volumes: Vec<String>,
    },
    /// Remove volumes that were made for one container which is gone, or with --all those that no container has
    Prune {
        /// Named ones too
        #[arg(long, short)]
        all: bool,
        /// Do not ask
        #[arg(long, short)]
        force: bool,
    },
}

impl Volume {
    /// Does what was asked.
    pub async fn run(self, config: &Config, json: bool) -> anyhow::Result<ExitCode> {
        let owner = self.owner;
        Connection::within(config, async |engine| {
            let to = Output { engine, owner: owner.clone(), json };
            let path = |name: &str| to.url(&format!("/v1/volumes/{}", encode(name)), &[]);
            match self.command {
                Command::Create { label, name } => {
                    let spec = VolumeSpec { name, labels: label.into_iter().collect() };
                    let made: VolumeInfo = to.engine.post_value(&to.url("/v1/volumes", &[]), &spec).await?;
                    out(if json { serde_json::to_string(&made)? } else { made.name });
                    Ok(ExitCode::SUCCESS)
                }
                Command::Ls { quiet, format, filter } => list(&to, quiet, format.as_deref(), &filter).await,
                Command::Rm { force, volumes } => {
                    let one = async |name: &str| {
                        match to.engine.delete::<Value>(&path(name)).await {
                            Err(error) if force && error.is_not_found() => {}
                            other => {
                                other?;
                                out(name);
                            }
                        }
                        Ok(())
                    };
                    Ok(to.each(&volumes, one).await)
                }
                Command::Inspect { format, volumes } => {
                    engine::inspect(&to, &volumes, format.as_deref(), async |name: &str| {
                        Ok(shape(&to.engine.get(&path(name)).await?))
                    })
                    .await
                }
                Command::Prune { all, force } => prune(&to, all, force).await,
            }
        })
        .await
    }
}

async fn list(to: &Output<'_>, quiet: bool, format: Option<&str>, filter: &[String]) -> anyhow::Result<ExitCode> {
    let listing = Listing::new(format, false, quiet, COLUMNS)?;
    let filters = parse::filters(filter, &["name", "label", "dangling"]).map_err(anyhow::Error::msg)?;
    let mut list: Vec<VolumeInfo> = to.engine.get(&to.url("/v1/volumes", &[])).await?;
    list.retain(|it| {
        filters.iter().all(|(key, wanted)| match key.as_str() {
            "label" => wanted.iter().all(|label| has_label(&it.labels, label)),
            "dangling" => wanted.iter().all(|want| (want == "true") == (it.containers == 0)),
            _ => wanted.iter().any(|name| it.name.contains(name.as_str())),
        })
    });
    if to.json {
        for volume in &list {
            out(serde_json::to_string(volume)?);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let row = |it: &VolumeInfo| {
        json!({
            "Driver": "local",
            "Name": it.name,
            "Mountpoint": it.path,
            "Labels": it.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(","),
            "Scope": "local",
            "Links": it.containers.to_string(),
        })
    };
    let rows: Vec<_> = list.iter().map(row).collect();
    listing.print(COLUMNS, &rows, "Name")?;
    Ok(ExitCode::SUCCESS)
}

async fn prune(to: &Output<'_>, all: bool, force: bool) -> anyhow::Result<ExitCode> {
    let what = if all { "volumes that no container has" } else { "anonymous volumes that no container has" };
    if !confirm(&format!("This will remove all {what}, and what is in them."), force)? {
        return Ok(ExitCode::SUCCESS);
    }
    let removed: Removed = to.engine.post(&to.url("/v1/volumes/prune", &[("all", flag(all))])).await?;
    if to.json {
        out(serde_json::to_string(&removed)?);
        return Ok(ExitCode::SUCCESS);
    }
    if !removed.removed.is_empty() {
        out("Deleted Volumes:");
        removed.removed.iter().for_each(out);
        out("");
    }
    out(format!("Total reclaimed space: {}", human::size(removed.freed_bytes)));
    Ok(ExitCode::SUCCESS)
}

/// In the shape of Docker's JSON.
fn shape(it: &VolumeInfo) -> Value {
    json!({
        "CreatedAt": human::rfc3339(Some(it.created_ns)),
        "Driver": "local",
        "Labels": it.labels,
        "Mountpoint": it.path,
        "Name": it.name,
        "Options": {},
        "Scope": "local",
        "Owner": it.owner.to_string(),
    })
}
