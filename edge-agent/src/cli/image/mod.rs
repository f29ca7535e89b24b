//! `edge-agent image …`, with Docker's flags and habits.

mod archive;
mod build;
mod list;
mod login;
mod progress;
mod transfer;

use std::process::ExitCode;

use clap::Subcommand;
use container_engine::owner::Owner;

use super::engine::{Connection, Output};
use crate::config::Config;

pub use archive::{copy, stream_body};
pub use progress::short;
pub use transfer::pull;

#[derive(Debug, clap::Args)]
pub struct Image {
    /// Whose images: local, pods/UID, jobs/ID
    #[arg(long, global = true, value_name = "OWNER", default_value_t)]
    owner: Owner,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Fetch an image; goes on where a broken pull stopped
    #[command(after_help = "Examples:
  edge-agent image pull alpine
  edge-agent image pull --platform linux/arm64 registry.example.org/team/tool:1.2
  edge-agent image pull --quiet registry.example.org/team/tool@sha256:4bcf…")]
    Pull(transfer::Pull),
    /// Send an image to a registry; what is there already is not sent
    #[command(after_help = "Example:\n  edge-agent image push registry.example.org/team/tool:1.2")]
    Push(transfer::Push),
    /// Look at a Dockerfile without building it: its mistakes, its arguments, its stages
    #[command(after_help = "Examples:
  edge-agent image build --check .
  edge-agent image build --call=outline --target build -f docker/Dockerfile .")]
    Build(build::Build),
    /// Give an image a further name
    #[command(after_help = "Example:\n  edge-agent image tag alpine registry.example.org/team/alpine:3.20")]
    Tag {
        /// Name or id
        image: String,
        /// The further name
        name: String,
    },
    /// Images that are here
    #[command(
        visible_alias = "list",
        after_help = "Examples:
  edge-agent image ls --digests
  edge-agent image ls --format '{{.Repository}}:{{.Tag}} {{.Size}}'
  edge-agent image ls --json

Filters: reference, label, dangling."
    )]
    Ls(list::List),
    /// Remove names of images; an image goes with its last name
    #[command(visible_alias = "remove")]
    Rm(list::Remove),
    /// Everything about images
    #[command(
        after_help = "Example:\n  edge-agent image inspect --format '{{.Architecture}} {{json .Config.Env}}' alpine"
    )]
    Inspect(list::Inspect),
    /// The steps that an image was made in
    History(list::History),
    /// Remove images that have no name, or with --all those that no container uses
    Prune(list::Prune),
    /// Write images to a tar archive
    #[command(after_help = "Example:\n  edge-agent image save -o alpine.tar alpine")]
    Save(archive::Save),
    /// Read images from a tar archive: Docker's, or an OCI layout
    #[command(
        after_help = "Examples:\n  edge-agent image load -i alpine.tar\n  zcat alpine.tar.gz | edge-agent image load"
    )]
    Load(archive::Load),
    /// Log in to a registry; kept in ~/.docker/config.json
    #[command(
        after_help = "Example:\n  echo $TOKEN | edge-agent image login -u ann --password-stdin registry.example.org"
    )]
    Login(login::Login),
    /// Forget a login
    Logout(login::Logout),
}

impl Image {
    /// Does what was asked.
    pub async fn run(self, config: &Config, json: bool) -> anyhow::Result<ExitCode> {
        if let Command::Logout(it) = self.command {
            return it.run().await;
        }
        if let Command::Build(it) = self.command {
            return it.run(json).await;
        }
        let owner = self.owner;
        Connection::within(config, async |engine| {
            let to = Output { engine, owner: owner.clone(), json };
            match self.command {
                Command::Pull(it) => it.run(&to).await,
                Command::Push(it) => it.run(&to).await,
                Command::Build(it) => it.run(json).await,
                Command::Tag { image, name } => list::tag(&to, &image, &name).await,
                Command::Ls(it) => it.run(&to).await,
                Command::Rm(it) => it.run(&to).await,
                Command::Inspect(it) => it.run(&to).await,
                Command::History(it) => it.run(&to).await,
                Command::Prune(it) => it.run(&to).await,
                Command::Save(it) => it.run(&to).await,
                Command::Load(it) => it.run(&to).await,
                Command::Login(it) => it.run(&to).await,
                Command::Logout(it) => it.run().await,
            }
        })
        .await
    }
}
