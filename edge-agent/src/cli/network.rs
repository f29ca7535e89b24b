//! `edge-agent network …`.

use std::{collections::BTreeMap, net::Ipv4Addr, process::ExitCode};

use clap::{Args, Subcommand};
use container_engine::{container::Attachment, event::has_label, network::NetworkSpec, owner::Owner};
use serde_json::{Value, json};

use super::{
    engine::{self, Connection, Output},
    format::{Columns, Listing, human},
    image::short,
    out, parse,
};
use crate::{config::Config, control::encode};

const COLUMNS: Columns = Columns {
    all: &[
        ("ID", "NETWORK ID"),
        ("Name", "NAME"),
        ("Driver", "DRIVER"),
        ("Subnet", "SUBNET"),
        ("Scope", "SCOPE"),
        ("Internal", "INTERNAL"),
        ("Labels", "LABELS"),
        ("CreatedAt", "CREATED AT"),
    ],
    usual: 4,
};

#[derive(Debug, Args)]
pub struct Network {
    /// Whose networks: local, pods/UID, jobs/ID
    #[arg(long, global = true, value_name = "OWNER", default_value_t)]
    owner: Owner,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a network; containers on it find each other by name
    #[command(after_help = "Examples:
  edge-agent network create lab
  edge-agent network create --subnet 10.99.0.0/24 --internal lab")]
    Create(Create),
    /// Networks
    #[command(visible_alias = "list")]
    Ls(List),
    /// Remove networks that nothing is on
    #[command(visible_alias = "remove")]
    Rm {
        /// Names
        #[arg(required = true, value_name = "NETWORK")]
        networks: Vec<String>,
    },
    /// Everything about networks
    Inspect {
        /// json, or a Go template
        #[arg(long, short, value_name = "TEMPLATE")]
        format: Option<String>,
        /// Names
        #[arg(required = true, value_name = "NETWORK")]
        networks: Vec<String>,
    },
    /// Put a running container on a further network
    Connect {
        /// A certain address
        #[arg(long, value_name = "ADDRESS")]
        ip: Option<std::net::IpAddr>,
        /// Further name there
        #[arg(long, value_name = "NAME")]
        alias: Vec<String>,
        /// Name
        network: String,
        /// Name or id
        container: String,
    },
    /// Take a running container off a network
    Disconnect {
        /// Name
        network: String,
        /// Name or id
        container: String,
    },
}

#[derive(Debug, Args)]
struct Create {
    /// Where addresses come from; a free one where absent
    #[arg(long, value_name = "ADDRESS/LENGTH")]
    subnet: Option<ipnet::Ipv4Net>,
    /// The host's address; the first where absent
    #[arg(long, value_name = "ADDRESS")]
    gateway: Option<Ipv4Addr>,
    /// IPv6 subnet, such as a /64 of a ULA
    #[arg(long, value_name = "ADDRESS/LENGTH")]
    ipv6_subnet: Option<ipnet::Ipv6Net>,
    /// No way out of it
    #[arg(long)]
    internal: bool,
    /// KEY=VALUE
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse::label)]
    label: Vec<(String, String)>,
    /// Only bridge
    #[arg(long, short, default_value = "bridge", value_parser = ["bridge"])]
    driver: String,
    /// Its name
    name: String,
}

#[derive(Debug, Args)]
struct List {
    /// Ids alone
    #[arg(long, short)]
    quiet: bool,
    /// Ids in full
    #[arg(long)]
    no_trunc: bool,
    /// table, json, or a Go template
    #[arg(long, value_name = "TEMPLATE")]
    format: Option<String>,
    /// name, id, label
    #[arg(long, short, value_name = "FILTER")]
    filter: Vec<String>,
}

impl Network {
    /// Does what was asked.
    pub async fn run(self, config: &Config, json: bool) -> anyhow::Result<ExitCode> {
        let owner = self.owner;
        Connection::within(config, async |engine| {
            let to = Output { engine, owner: owner.clone(), json };
            match self.command {
                Command::Create(it) => it.run(&to).await,
                Command::Ls(it) => it.run(&to).await,
                Command::Rm { networks } => {
                    let one = async |name: &str| {
                        to.engine.delete::<Value>(&path(&to, name, "")).await?;
                        out(name);
                        Ok(())
                    };
                    Ok(to.each(&networks, one).await)
                }
                Command::Inspect { format, networks } => {
                    engine::inspect(&to, &networks, format.as_deref(), async |name: &str| {
                        Ok(shape(&to.engine.get::<Value>(&path(&to, name, "")).await?))
                    })
                    .await
                }
                Command::Connect { ip, alias, network, container } => {
                    let place = Attachment { network: network.clone(), aliases: alias, address: ip };
                    let url = to.container(&container, "/connect", &[]);
                    to.engine.post_value::<Value>(&url, &place).await?;
                    Ok(ExitCode::SUCCESS)
                }
                Command::Disconnect { network, container } => {
                    let url = to.container(&container, "/disconnect", &[("network", Some(network))]);
                    to.engine.post::<Value>(&url).await?;
                    Ok(ExitCode::SUCCESS)
                }
            }
        })
        .await
    }
}

fn path(to: &Output<'_>, name: &str, action: &str) -> String {
    to.url(&format!("/v1/networks/{}{action}", encode(name)), &[])
}

impl Create {
    async fn run(self, to: &Output<'_>) -> anyhow::Result<ExitCode> {
        let spec = NetworkSpec {
            name: self.name,
            subnet: self.subnet,
            gateway: self.gateway,
            ipv6: self.ipv6_subnet,
            internal: self.internal,
            labels: self.label.into_iter().collect(),
        };
        let network: Value = to.engine.post_value(&to.url("/v1/networks", &[]), &spec).await?;
        out(if to.json { network.to_string() } else { network["id"].as_str().unwrap_or_default().to_owned() });
        Ok(ExitCode::SUCCESS)
    }
}

impl List {
    async fn run(self, to: &Output<'_>) -> anyhow::Result<ExitCode> {
        let listing = Listing::new(self.format.as_deref(), false, self.quiet, COLUMNS)?;
        let filters = parse::filters(&self.filter, &["name", "id", "label"]).map_err(anyhow::Error::msg)?;
        let mut list: Vec<Value> = to.engine.get(&to.url("/v1/networks", &[])).await?;
        list.retain(|it| is_wanted(it, &filters));
        if to.json {
            list.iter().for_each(out);
            return Ok(ExitCode::SUCCESS);
        }
        let row = |it: &Value| {
            let id = it["id"].as_str().unwrap_or_default();
            let labels = it["labels"].as_object().into_iter().flatten();
            let labels = labels.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()));
            json!({
                "ID": if self.no_trunc { id } else { short(id) },
                "Name": it["name"],
                "Driver": "bridge",
                "Subnet": it["subnet"],
                "Scope": "local",
                "Internal": it["internal"],
                "Labels": labels.collect::<Vec<_>>().join(","),
                "CreatedAt": human::list_time(it["created_ns"].as_i64().unwrap_or(0)),
            })
        };
        let rows: Vec<_> = list.iter().map(row).collect();
        listing.print(COLUMNS, &rows, "ID")?;
        Ok(ExitCode::SUCCESS)
    }
}

fn is_wanted(it: &Value, filters: &BTreeMap<String, Vec<String>>) -> bool {
    let labels: BTreeMap<String, String> = serde_json::from_value(it["labels"].clone()).unwrap_or_default();
    let text = |key: &str| it[key].as_str().unwrap_or_default().to_owned();
    filters.iter().all(|(key, wanted)| match key.as_str() {
        "label" => wanted.iter().all(|label| has_label(&labels, label)),
        "id" => wanted.iter().any(|id| text("id").starts_with(id.as_str())),
        _ => wanted.iter().any(|name| text("name").contains(name.as_str())),
    })
}

/// In the shape of Docker's JSON.
fn shape(it: &Value) -> Value {
    let endpoint = |it: &Value| {
        let value = json!({
            "Name": it["name"],
            "MacAddress": it["interface"]["mac"],
            "IPv4Address": it["interface"]["addresses"][0],
        });
        (it["sandbox"].as_str().unwrap_or_default().to_owned(), value)
    };
    json!({
        "Name": it["name"],
        "Id": it["id"],
        "Created": human::rfc3339(it["created_ns"].as_i64()),
        "Scope": "local",
        "Driver": "bridge",
        "EnableIPv6": !it["ipv6"].is_null(),
        "IPAM": { "Driver": "default", "Config": [{ "Subnet": it["subnet"], "Gateway": it["gateway"] }] },
        "Internal": it["internal"],
        "Containers": it["endpoints"].as_array().into_iter().flatten().map(endpoint).collect::<serde_json::Map<_, _>>(),
        "Options": { "com.docker.network.bridge.name": it["device"] },
        "Labels": it["labels"],
        "Owner": it["owner"],
    })
}
