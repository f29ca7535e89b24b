//! `edge-agent join` and `leave`.

use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use cluster_node::{
    api::Wire,
    join::{self, JoinOptions, Secret},
};
use serde_json::Value;

use super::out;
use crate::{
    config::Config,
    control::{Engine, EngineError},
    node_api::Step,
};

/// As `kubeadm join` has them.
#[derive(Debug, Args)]
pub struct Join {
    /// API server, HOST:PORT
    #[arg(value_name = "ENDPOINT")]
    endpoint: Option<String>,
    /// Bootstrap token, ID.SECRET; also for what --discovery-token and --tls-bootstrap-token say. Better in the environment
    /// or in --config-file than on the command line, where others on the board can read it
    #[arg(
        long,
        env = "EDGE_AGENT_JOIN_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN",
        alias = "discovery-token"
    )]
    token: Option<String>,
    /// Pin of the cluster's CA: sha256:HEX; one of several has to fit
    #[arg(long, value_name = "sha256:HEX")]
    discovery_token_ca_cert_hash: Vec<String>,
    /// Believe whoever knows the token
    #[arg(long)]
    discovery_token_unsafe_skip_ca_verification: bool,
    /// Name of the node, instead of node.name
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    /// A token of the board's own, without expiry, by which it comes back when its certificate ran out while it was offline
    #[arg(long, env = "EDGE_AGENT_JOIN_RENEWAL_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    renewal_token: Option<String>,
    /// Read all of that from a join.toml; flags come before it
    #[arg(long, value_name = "FILE")]
    from: Option<std::path::PathBuf>,
}

pub const JOIN_EXAMPLES: &str = "Examples:
  edge-agent join 10.0.0.1:6443 --token abcdef.0123456789abcdef --discovery-token-ca-cert-hash sha256:…
      what `kubeadm token create --print-join-command` prints, with edge-agent for kubeadm
  edge-agent join --from join.toml

It returns when the node is Ready. With no agent running it prepares the next `edge-agent run`. A join.toml in
/boot/firmware, /boot or /etc/edge-agent is taken at the agent's start.";

impl Join {
    fn options(self) -> anyhow::Result<JoinOptions> {
        let mut options = match &self.from {
            Some(path) => join::toml::read(path)?,
            None => JoinOptions::default(),
        };
        if let Some(endpoint) = self.endpoint {
            options.server = endpoint;
        }
        if let Some(token) = self.token {
            options.token = Secret::new(token);
        }
        if !self.discovery_token_ca_cert_hash.is_empty() {
            options.ca_cert_hashes = self.discovery_token_ca_cert_hash;
        }
        options.unsafe_skip_ca_verification |= self.discovery_token_unsafe_skip_ca_verification;
        options.node_name = self.node_name.or(options.node_name);
        options.renewal_token = self.renewal_token.map(Secret::new).or(options.renewal_token);
        if options.server.is_empty() {
            bail!("name the API server: edge-agent join HOST:PORT --token …");
        }
        if options.token.is_empty() {
            bail!("give the token: --token ID.SECRET, as `kubeadm token create --print-join-command` prints it");
        }
        Ok(options)
    }

    /// Does it.
    pub async fn run(self, config: &Config, json: bool) -> anyhow::Result<ExitCode> {
        let options = self.options()?;
        match Engine::connect(config.socket()).await {
            Ok(agent) => follow(&agent, "/v1/node/join", Some(&options), json).await,
            Err(EngineError::NotRunning { .. }) => prepare(config, &options, json).await,
            Err(error) => Err(error.into()),
        }
    }
}

/// With no agent: the identity is put on disk for the next one.
async fn prepare(config: &Config, options: &JoinOptions, json: bool) -> anyhow::Result<ExitCode> {
    let Some(node) = &config.node else { bail!("the board is not to be a node: node.enabled is false") };
    let data = config.data_dir.clone();
    let opened = tokio::task::spawn_blocking(move || {
        board::durable::create_dir_all(&data, 0o700)
            .with_context(|| format!("cannot create the data directory {}", data.display()))?;
        let lock = store::lock::Lock::take(&data, std::time::Duration::ZERO)?;
        let identity = board::identity::Identity::open(&data.join("identity"))?;
        let clock = board::clock::Clock::system(&identity)?;
        anyhow::Ok((lock, identity, clock))
    });
    let (lock, identity, clock) = opened.await??;
    let said = |words: String| tell(&Step::Said(words), json);
    join::join(node, options, identity.dir(), &clock, &Wire::default(), &said).await?;
    said("no agent is running: the board is a node as soon as `edge-agent run` starts".to_owned());
    drop(lock);
    Ok(ExitCode::SUCCESS)
}

fn tell(step: &Step, json: bool) {
    match step {
        // What is made of strings and numbers has a JSON form.
        step if json => out(serde_json::to_string(step).unwrap_or_default()),
        Step::Said(words) => out(words),
        Step::Done(_) => {}
    }
}

async fn follow(agent: &Engine, url: &str, body: Option<&JoinOptions>, json: bool) -> anyhow::Result<ExitCode> {
    let response = agent.send("POST", url, body).await?;
    let mut lines = agent.lines(response);
    let mut done = None;
    while let Some(step) = lines.next::<Step>().await? {
        tell(&step, json);
        if let Step::Done(standing) = step {
            done = Some(standing);
        }
    }
    match done {
        Some(_) => Ok(ExitCode::SUCCESS),
        None => bail!("the agent broke off: see its log"),
    }
}

#[derive(Debug, Args)]
pub struct Leave {
    /// Forget the identity without asking the cluster: for one that is gone
    #[arg(long)]
    purge: bool,
    /// Delete the Node object too, with this administrator's kubeconfig and the kubectl on this machine
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<std::path::PathBuf>,
}

pub const LEAVE_EXAMPLES: &str = "Examples:
  edge-agent leave
  edge-agent leave --kubeconfig admin.conf   the Node object goes too
  edge-agent leave --purge                   the cluster is gone, or does not know the board any more";

impl Leave {
    /// Does it.
    pub async fn run(self, config: &Config, json: bool) -> anyhow::Result<ExitCode> {
        let name = match Engine::connect(config.socket()).await {
            Ok(agent) => {
                let standing: Value = agent.get("/v1/node").await?;
                // A damaged identity is none to the agent, and it can be forgotten all the same.
                if standing["server"].is_null() && !self.purge {
                    bail!("this board is in no cluster");
                }
                let url = if self.purge { "/v1/node/leave?purge=true" } else { "/v1/node/leave" };
                follow(&agent, url, None, json).await?;
                standing["name"].as_str().unwrap_or_default().to_owned()
            }
            Err(EngineError::NotRunning { .. }) => {
                let identity = config.data_dir.join("identity");
                let known = match join::Credentials::load(&identity) {
                    Ok(None) => bail!("this board is in no cluster"),
                    Ok(Some(known)) => known.cluster.node,
                    // What is damaged is forgotten all the same.
                    Err(_) if self.purge => "NAME".to_owned(),
                    Err(error) => return Err(error.into()),
                };
                if !self.purge {
                    bail!("no agent is running, and its pods would stay: start it, or leave with --purge");
                }
                let _lock = store::lock::Lock::take(&config.data_dir, std::time::Duration::ZERO)?;
                join::forget(&identity)?;
                known
            }
            Err(error) => return Err(error.into()),
        };
        self.delete(&name, json)
    }

    fn delete(&self, name: &str, json: bool) -> anyhow::Result<ExitCode> {
        let Some(kubeconfig) = &self.kubeconfig else {
            tell(
                &Step::Said(format!("left; an administrator removes what is left of it: kubectl delete node {name}")),
                json,
            );
            return Ok(ExitCode::SUCCESS);
        };
        let status = std::process::Command::new("kubectl")
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .args(["delete", "node", name])
            .status()
            .context("cannot run kubectl to delete the Node object")?;
        Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
