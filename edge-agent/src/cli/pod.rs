//! `edge-agent pod …`: the board's pods, with no API server.

use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use container_engine::owner::Owner;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod as Object};
use serde_json::{Value, json};

use super::{
    container::{logs::LogFlags, run::Exec},
    engine::Output,
    format::{Columns, Listing, human},
    out,
};
use crate::{
    config::Config,
    control::{Engine, encode},
    node_api::{PodContainer, PodDetails},
};

const COLUMNS: Columns = Columns {
    all: &[
        ("Namespace", "NAMESPACE"),
        ("Name", "NAME"),
        ("Ready", "READY"),
        ("Status", "STATUS"),
        ("Restarts", "RESTARTS"),
        ("Age", "AGE"),
        ("IP", "IP"),
        ("UID", "UID"),
    ],
    usual: 7,
};

#[derive(Debug, Args)]
pub struct Pod {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Pods that are here
    #[command(
        visible_alias = "list",
        after_help = "Examples:\n  edge-agent pod ls\n  edge-agent pod ls --json | jq .pod.status.phase"
    )]
    Ls {
        /// Of one namespace
        #[arg(long, short)]
        namespace: Option<String>,
        /// Names alone
        #[arg(long, short)]
        quiet: bool,
        /// table, json, or a Go template
        #[arg(long, value_name = "TEMPLATE")]
        format: Option<String>,
    },
    /// The log of a container
    #[command(
        after_help = "Examples:\n  edge-agent pod logs -n lab sensor-0 -f\n  edge-agent pod logs web -c proxy --previous"
    )]
    Logs(Logs),
    /// A command in a container
    #[command(after_help = "Example:\n  edge-agent pod exec -it -n lab sensor-0 -- sh")]
    Exec(PodExec),
    /// Everything about a pod
    Describe {
        #[command(flatten)]
        which: Which,
    },
}

/// Which pod.
#[derive(Debug, Args)]
struct Which {
    /// Its namespace
    #[arg(long, short, default_value = "default")]
    namespace: String,
    /// Its name
    pod: String,
}

#[derive(Debug, Args)]
struct Logs {
    #[command(flatten)]
    which: Which,
    /// Which container; the only or first one where absent
    #[arg(long, short, value_name = "NAME")]
    container: Option<String>,
    /// Of the life before this one
    #[arg(long, short)]
    previous: bool,
    /// Go on with what comes
    #[arg(long, short)]
    follow: bool,
    /// The last N lines; all
    #[arg(long, value_name = "N", default_value = "all", allow_hyphen_values = true)]
    tail: String,
    /// From then on: 10m, or a time
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// With the time of each line
    #[arg(long)]
    timestamps: bool,
}

#[derive(Debug, Args)]
struct PodExec {
    #[command(flatten)]
    which: Which,
    /// Which container; the only or first one where absent
    #[arg(long, short, value_name = "NAME")]
    container: Option<String>,
    /// Keep standard input open
    #[arg(long, short = 'i')]
    stdin: bool,
    /// With a terminal
    #[arg(long, short)]
    tty: bool,
    /// The command with its arguments
    #[arg(required = true, last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl Pod {
    /// Does what was asked.
    pub async fn run(self, config: &Config, json: bool) -> anyhow::Result<ExitCode> {
        let agent = Engine::connect(config.socket()).await?;
        match self.command {
            Command::Ls { namespace, quiet, format } => {
                let listing = Listing::new(format.as_deref(), false, quiet, COLUMNS)?;
                let mut all: Vec<PodDetails> = agent.get("/v1/pods").await?;
                all.retain(|it| namespace.is_none() || it.pod.metadata.namespace == namespace);
                all.sort_by(|a, b| place(&a.pod).cmp(&place(&b.pod)));
                if json {
                    for one in &all {
                        out(serde_json::to_string(one)?);
                    }
                } else {
                    listing.print(COLUMNS, &all.iter().map(|it| row(&it.pod)).collect::<Vec<_>>(), "Name")?;
                }
                Ok(ExitCode::SUCCESS)
            }
            Command::Logs(it) => it.run(&agent, json).await,
            Command::Exec(it) => it.run(&agent, json).await,
            Command::Describe { which } => {
                let found = which.find(&agent).await?;
                if json {
                    out(serde_json::to_string(&found)?);
                } else {
                    describe(&found);
                }
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

impl Which {
    async fn find(&self, agent: &Engine) -> anyhow::Result<PodDetails> {
        Ok(agent.get(&format!("/v1/pods/{}/{}", encode(&self.namespace), encode(&self.pod))).await?)
    }
}

/// The life of a container that is meant.
fn choose<'a>(found: &'a PodDetails, name: Option<&str>, previous: bool) -> anyhow::Result<&'a PodContainer> {
    let spec = found.pod.spec.as_ref();
    let first = spec.and_then(|spec| spec.containers.first()).map(|it| it.name.as_str());
    let name = name.or(first).context("the pod has no container")?;
    let mut lives = found.containers.iter().filter(|it| it.name == name).rev();
    let life = if previous { lives.nth(1) } else { lives.next() };
    match life {
        Some(life) => Ok(life),
        None if previous => bail!("previous terminated container {name:?} not found"),
        None => {
            let known =
                spec.into_iter().flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
            let known: Vec<&str> = known.map(|it| it.name.as_str()).collect();
            bail!("container {name:?} has not been started, or is not the pod's: it has {}", known.join(", "))
        }
    }
}

fn output<'a>(agent: &'a Engine, found: &PodDetails, json: bool) -> Output<'a> {
    let uid = found.pod.metadata.uid.clone().unwrap_or_default();
    Output { engine: agent, owner: Owner::Pod(uid), json }
}

impl Logs {
    async fn run(self, agent: &Engine, json: bool) -> anyhow::Result<ExitCode> {
        let found = self.which.find(agent).await?;
        let life = choose(&found, self.container.as_deref(), self.previous)?;
        let flags = LogFlags {
            follow: self.follow,
            tail: self.tail,
            since: self.since,
            until: None,
            timestamps: self.timestamps,
        };
        flags.print(&output(agent, &found, json), &life.id).await
    }
}

impl PodExec {
    async fn run(self, agent: &Engine, json: bool) -> anyhow::Result<ExitCode> {
        let found = self.which.find(agent).await?;
        let life = choose(&found, self.container.as_deref(), false)?;
        if !life.running {
            bail!("container {:?} does not run", life.name);
        }
        Exec::of(&life.id, self.command, self.stdin, self.tty).run(&output(agent, &found, json)).await
    }
}

fn place(pod: &Object) -> (Option<&str>, Option<&str>) {
    (pod.metadata.namespace.as_deref(), pod.metadata.name.as_deref())
}

/// As `kubectl get pods` sums a pod up.
fn row(pod: &Object) -> Value {
    let status = pod.status.clone().unwrap_or_default();
    let containers = status.container_statuses.unwrap_or_default();
    let ready = containers.iter().filter(|it| it.ready).count();
    let total = pod.spec.as_ref().map_or(0, |spec| spec.containers.len());
    let restarts: i32 = containers.iter().map(|it| it.restart_count).sum();
    let started = status.start_time.map(|it| it.0.as_nanosecond());
    let age =
        started.and_then(|ns| i64::try_from(ns).ok()).map_or(String::new(), |ns| human::since(ns, human::now_ns()));
    let waiting = containers.iter().find_map(reason);
    let phase = status.reason.or(status.phase).unwrap_or_default();
    let is_leaving = pod.metadata.deletion_timestamp.is_some();
    json!({
        "Namespace": pod.metadata.namespace, "Name": pod.metadata.name, "UID": pod.metadata.uid,
        "Ready": format!("{ready}/{total}"), "Restarts": restarts, "Age": age, "IP": status.pod_ip,
        "Status": if is_leaving { "Terminating".to_owned() } else { waiting.unwrap_or(phase) },
    })
}

fn reason(status: &ContainerStatus) -> Option<String> {
    let state = status.state.as_ref()?;
    let waiting = state.waiting.as_ref().and_then(|it| it.reason.clone());
    waiting.or_else(|| state.terminated.as_ref().and_then(|it| it.reason.clone()))
}

fn describe(found: &PodDetails) {
    let (pod, status) = (&found.pod, found.pod.status.clone().unwrap_or_default());
    let text = |it: &Option<String>| it.clone().unwrap_or_else(|| "<none>".to_owned());
    let line = |name: &str, value: String| out(format!("{name:<14}{value}"));
    line("Name:", text(&pod.metadata.name));
    line("Namespace:", text(&pod.metadata.namespace));
    line("UID:", text(&pod.metadata.uid));
    line("Status:", text(&status.phase));
    if status.reason.is_some() {
        line("Reason:", text(&status.reason));
        line("Message:", text(&status.message));
    }
    line("IP:", text(&status.pod_ip));
    line("QoS Class:", text(&status.qos_class));
    out("Containers:");
    let lists = [status.init_container_statuses, status.container_statuses, status.ephemeral_container_statuses];
    for it in lists.into_iter().flatten().flatten() {
        out(format!("  {}:", it.name));
        out(format!("    Image:          {}", it.image));
        out(format!("    Container ID:   {}", text(&it.container_id)));
        out(format!("    State:          {}", state(it.state.as_ref())));
        out(format!("    Last State:     {}", state(it.last_state.as_ref())));
        out(format!("    Ready:          {}", it.ready));
        out(format!("    Restart Count:  {}", it.restart_count));
    }
    out("Conditions:");
    for it in status.conditions.unwrap_or_default() {
        let why = it.message.or(it.reason).map(|why| format!("  {why}")).unwrap_or_default();
        out(format!("  {:<28}{}{why}", it.type_, it.status));
    }
}

fn state(state: Option<&k8s_openapi::api::core::v1::ContainerState>) -> String {
    let Some(state) = state else { return "<none>".to_owned() };
    if let Some(running) = &state.running {
        let since = running.started_at.as_ref().map(|it| it.0.to_string()).unwrap_or_default();
        return format!("Running since {since}");
    }
    if let Some(it) = &state.terminated {
        return format!("Terminated: {} (exit code {})", it.reason.clone().unwrap_or_default(), it.exit_code);
    }
    if let Some(it) = &state.waiting {
        let message = it.message.as_ref().map(|it| format!(": {it}")).unwrap_or_default();
        return format!("Waiting: {}{message}", it.reason.clone().unwrap_or_default());
    }
    "<none>".to_owned()
}
