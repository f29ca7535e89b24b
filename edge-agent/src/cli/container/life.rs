//! Commands that change a container, or ask one thing of it.

use std::process::ExitCode;

use clap::Args;
use container_engine::container::{Exit, Inspect, Process, Pruned};
use serde_json::Value;

use super::{args::ResourceArgs, shape};
use crate::cli::{
    engine::{Output, confirm, flag},
    format::{align, human},
    out, parse,
};

#[derive(Debug, Args)]
pub struct Names {
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Names {
    /// POSTs `action` of each, and prints its name.
    pub async fn each(&self, to: &Output<'_>, action: &str) -> anyhow::Result<ExitCode> {
        let one = async |name: &str| {
            to.engine.post::<Value>(&to.container(name, &format!("/{action}"), &[])).await?;
            out(name);
            Ok(())
        };
        Ok(to.each(&self.containers, one).await)
    }
}

#[derive(Debug, Args)]
pub struct Stop {
    /// Seconds before SIGKILL
    #[arg(long, short, visible_alias = "timeout", value_name = "SECONDS", value_parser = parse::seconds)]
    time: Option<u32>,
    /// Instead of its stop signal
    #[arg(long, short, value_name = "SIGNAL")]
    signal: Option<String>,
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Stop {
    pub async fn stop(&self, to: &Output<'_>) -> anyhow::Result<ExitCode> {
        let one = async |name: &str| {
            self.stop_one(to, name).await?;
            out(name);
            Ok(())
        };
        Ok(to.each(&self.containers, one).await)
    }

    pub async fn restart(&self, to: &Output<'_>) -> anyhow::Result<ExitCode> {
        let one = async |name: &str| {
            self.stop_one(to, name).await?;
            to.engine.post::<Value>(&to.container(name, "/start", &[])).await?;
            out(name);
            Ok(())
        };
        Ok(to.each(&self.containers, one).await)
    }

    async fn stop_one(&self, to: &Output<'_>, name: &str) -> anyhow::Result<()> {
        let pairs = [("timeout_s", self.time.map(|it| it.to_string())), ("signal", self.signal.clone())];
        to.engine.post::<Value>(&to.container(name, "/stop", &pairs)).await?;
        Ok(())
    }
}

#[derive(Debug, Args)]
pub struct Kill {
    /// Signal, name or number
    #[arg(long, short, default_value = "KILL")]
    signal: String,
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Kill {
    pub async fn run(&self, to: &Output<'_>) -> anyhow::Result<ExitCode> {
        let one = async |name: &str| {
            let pairs = [("signal", Some(self.signal.clone()))];
            to.engine.post::<Value>(&to.container(name, "/kill", &pairs)).await?;
            out(name);
            Ok(())
        };
        Ok(to.each(&self.containers, one).await)
    }
}

#[derive(Debug, Args)]
pub struct Wait {
    /// What to wait for: not-running, next-exit, removed
    #[arg(long, default_value = "not-running", value_parser = ["not-running", "next-exit", "removed"])]
    condition: String,
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Wait {
    pub async fn run(&self, to: &Output<'_>) -> anyhow::Result<ExitCode> {
        let one = async |name: &str| {
            let pairs = [("for", Some(self.condition.clone()))];
            let exit: Exit = to.engine.post(&to.container(name, "/wait", &pairs)).await?;
            out(if to.json { serde_json::to_string(&exit)? } else { exit.code.to_string() });
            Ok(())
        };
        Ok(to.each(&self.containers, one).await)
    }
}

#[derive(Debug, Args)]
pub struct Remove {
    /// Kill it first where it runs
    #[arg(long, short)]
    force: bool,
    /// Its anonymous volumes too
    #[arg(long, short)]
    volumes: bool,
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Remove {
    pub async fn run(&self, to: &Output<'_>) -> anyhow::Result<ExitCode> {
        let one = async |name: &str| {
            let pairs = [("force", flag(self.force)), ("volumes", flag(self.volumes))];
            match to.engine.delete::<Value>(&to.container(name, "", &pairs)).await {
                // As Docker has it: what is gone already is as good as removed.
                Err(error) if self.force && error.is_not_found() => {}
                other => {
                    other?;
                    out(name);
                }
            }
            Ok(())
        };
        Ok(to.each(&self.containers, one).await)
    }
}

#[derive(Debug, Args)]
pub struct Prune {
    /// Do not ask
    #[arg(long, short)]
    force: bool,
    /// Only those with this label: label=KEY[=VALUE]
    #[arg(long, short = 'F', value_name = "FILTER")]
    filter: Vec<String>,
}

impl Prune {
    pub async fn run(&self, to: &Output<'_>) -> anyhow::Result<ExitCode> {
        let filters = parse::filters(&self.filter, &["label"]).map_err(anyhow::Error::msg)?;
        if !confirm("This will remove all stopped containers.", self.force)? {
            return Ok(ExitCode::SUCCESS);
        }
        let labels = filters.get("label").cloned().unwrap_or_default();
        let pairs = [("labels", Some(serde_json::to_string(&labels)?))];
        let pruned: Pruned = to.engine.post(&to.url("/v1/containers/prune", &pairs)).await?;
        if to.json {
            out(serde_json::to_string(&pruned)?);
            return Ok(ExitCode::SUCCESS);
        }
        if !pruned.removed.is_empty() {
            out("Deleted Containers:");
            pruned.removed.iter().for_each(out);
            out("");
        }
        out(format!("Total reclaimed space: {}", human::size(pruned.freed_bytes)));
        Ok(ExitCode::SUCCESS)
    }
}

pub async fn rename(to: &Output<'_>, container: &str, name: &str) -> anyhow::Result<ExitCode> {
    to.engine.post::<Value>(&to.container(container, "/rename", &[("name", Some(name.to_owned()))])).await?;
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, Args)]
pub struct Top {
    /// Name or id
    container: String,
}

impl Top {
    pub async fn run(&self, to: &Output<'_>) -> anyhow::Result<ExitCode> {
        let processes: Vec<Process> = to.engine.get(&to.container(&self.container, "/top", &[])).await?;
        if to.json {
            for process in &processes {
                out(serde_json::to_string(process)?);
            }
            return Ok(ExitCode::SUCCESS);
        }
        let mut lines = vec!["UID\tPID\tPPID\tSTIME\tTIME\tRSS\tCMD".to_owned()];
        lines.extend(processes.iter().map(|it| {
            let s = it.cpu_time.as_secs();
            let time = format!("{:02}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
            let started = human::list_time(it.started_ns);
            let started = started.get(11..16).unwrap_or_default();
            let command = it.command.join(" ");
            format!("{}\t{}\t{}\t{started}\t{time}\t{}\t{command}", it.uid, it.pid, it.ppid, human::binary_size(it.rss))
        }));
        align(&lines).iter().for_each(out);
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(Debug, Args)]
pub struct Update {
    #[command(flatten)]
    limits: ResourceArgs,
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Update {
    pub async fn run(&self, to: &Output<'_>) -> anyhow::Result<ExitCode> {
        let resources = self.limits.resources()?;
        let one = async |name: &str| {
            to.engine.post_value::<Value>(&to.container(name, "/update", &[]), &resources).await?;
            out(name);
            Ok(())
        };
        Ok(to.each(&self.containers, one).await)
    }
}

#[derive(Debug, Args)]
pub struct Port {
    /// Name or id
    container: String,
    /// A port of the container, such as 80/tcp
    port: Option<String>,
}

impl Port {
    pub async fn run(&self, to: &Output<'_>) -> anyhow::Result<ExitCode> {
        let container: Inspect = to.engine.get(&to.container(&self.container, "", &[])).await?;
        let wanted = self.port.as_ref().map(|it| if it.contains('/') { it.clone() } else { format!("{it}/tcp") });
        let mut found = false;
        for port in container.network.iter().flat_map(|network| &network.ports) {
            let inner = shape::port_name(port.container_port, port.protocol);
            let outer = shape::host_side(port);
            match &wanted {
                None => out(format!("{inner} -> {outer}")),
                Some(wanted) if *wanted == inner => {
                    found = true;
                    out(outer);
                }
                Some(_) => {}
            }
        }
        if let (Some(wanted), false) = (wanted, found) {
            anyhow::bail!("container {} has no published port {wanted}", self.container);
        }
        Ok(ExitCode::SUCCESS)
    }
}
