//! `edge-agent container …`, with Docker's flags and habits.

mod args;
mod commit;
mod copy;
mod events;
mod inspect;
mod life;
mod list;
pub mod logs;
pub mod run;
mod shape;
mod stats;

use std::process::ExitCode;

use clap::Subcommand;
use container_engine::owner::Owner;

use super::engine::{Connection, Output};
use crate::{config::Config, control::EngineError};

#[derive(Debug, clap::Args)]
pub struct Container {
    /// Whose containers: local, pods/UID, jobs/ID
    #[arg(long, global = true, value_name = "OWNER", default_value_t)]
    owner: Owner,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create a container and start it; ends with its exit code
    #[command(after_help = "Examples:
  edge-agent container run --rm -it busybox sh
  edge-agent container run -d --name web -p 8080:80 -v data:/usr/share/nginx/html nginx
  edge-agent container run --rm --memory 64m --cpus 0.5 -e MODE=test registry.example.org/team/tool:1.2 --check

Exit codes: the container's; 125 it could not be run, 126 its command cannot be executed, 127 there is no such command.")]
    Run(run::Run),
    /// Create a container without starting it
    Create(run::Create),
    /// Start containers
    #[command(after_help = "Examples:\n  edge-agent container start web\n  edge-agent container start -ai shell")]
    Start(run::Start),
    /// Stop containers: their stop signal, then SIGKILL
    Stop(life::Stop),
    /// Stop and start containers
    Restart(life::Stop),
    /// Send containers a signal
    #[command(after_help = "Example:\n  edge-agent container kill -s HUP web")]
    Kill(life::Kill),
    /// Freeze all processes of containers
    Pause(life::Names),
    /// Let them go on
    Unpause(life::Names),
    /// Wait for the end of containers and print their exit codes
    Wait(life::Wait),
    /// Remove containers
    #[command(visible_alias = "remove", after_help = "Example:\n  edge-agent container rm -f web")]
    Rm(life::Remove),
    /// Remove all containers that do not run
    Prune(life::Prune),
    /// Give a container another name
    Rename {
        /// Its name or id
        container: String,
        /// The new name
        name: String,
    },
    /// Containers that run, or all
    #[command(
        visible_aliases = ["list", "ps"],
        after_help = "Examples:
  edge-agent container ls -a --filter status=exited
  edge-agent container ls --format '{{.ID}} {{.Names}}'
  edge-agent container ls --format 'table {{.Names}}\\t{{.Status}}'
  edge-agent container ls --json

Filters: id, name (a regular beginning ^ or a part), label, status, ancestor, network, volume, exited."
    )]
    Ls(list::List),
    /// Everything about containers
    #[command(after_help = "Examples:
  edge-agent container inspect web
  edge-agent container inspect --format '{{.State.Pid}} {{json .NetworkSettings.Ports}}' web")]
    Inspect(inspect::Inspect),
    /// What a container has written
    #[command(
        after_help = "Examples:\n  edge-agent container logs -f --tail 100 web\n  edge-agent container logs --since 10m -t web"
    )]
    Logs(logs::Logs),
    /// Run a further command in a running container
    #[command(after_help = "Examples:
  edge-agent container exec -it web sh
  edge-agent container exec -e A=1 -w /tmp web env

Exit codes: the command's; 125 it could not be run, 126 it cannot be executed, 127 there is no such command.")]
    Exec(run::Exec),
    /// Join the input and output of a running container
    Attach(run::Attach),
    /// What containers use, live
    #[command(
        after_help = "Examples:\n  edge-agent container stats\n  edge-agent container stats --no-stream --format '{{.Name}} {{.MemUsage}}'"
    )]
    Stats(stats::Stats),
    /// Processes of a container
    Top(life::Top),
    /// Change limits of containers, running or not
    #[command(after_help = "Example:\n  edge-agent container update --memory 128m --cpus 2 web")]
    Update(life::Update),
    /// Copy files out of a container or into it; - is a tar archive on standard input or output
    #[command(after_help = "Examples:
  edge-agent container cp web:/etc/nginx/nginx.conf .
  edge-agent container cp site/. web:/usr/share/nginx/html
  edge-agent container cp web:/var/log - | tar tv")]
    Cp(copy::Copy),
    /// Make an image of what a container wrote and how it was run
    #[command(after_help = "Examples:
  edge-agent container commit -m 'with the tools' shell tools:1
  edge-agent container commit -c 'CMD [\"httpd\", \"-f\"]' -c 'EXPOSE 80' web registry.example.org/team/web:2")]
    Commit(commit::Commit),
    /// What happens to containers, images, networks and volumes
    #[command(
        after_help = "Examples:\n  edge-agent container events --filter event=exited\n  edge-agent container events --since 10m --until 0s --json"
    )]
    Events(events::Events),
    /// Published ports of a container
    Port(life::Port),
}

impl Container {
    /// Does what was asked.
    pub async fn run(self, config: &Config, json: bool) -> anyhow::Result<ExitCode> {
        let owner = self.owner;
        // Of these two every failure of the engine's has an exit code that scripts know from Docker.
        let docker_codes = matches!(self.command, Command::Run(_) | Command::Exec(_) | Command::Start(_));
        let result = Connection::within(config, async |engine| {
            let out = Output { engine, owner: owner.clone(), json };
            match self.command {
                Command::Run(it) => it.run(&out, config).await,
                Command::Create(it) => it.run(&out, config).await,
                Command::Start(it) => it.run(&out).await,
                Command::Stop(it) => it.stop(&out).await,
                Command::Restart(it) => it.restart(&out).await,
                Command::Kill(it) => it.run(&out).await,
                Command::Pause(it) => it.each(&out, "pause").await,
                Command::Unpause(it) => it.each(&out, "unpause").await,
                Command::Wait(it) => it.run(&out).await,
                Command::Rm(it) => it.run(&out).await,
                Command::Prune(it) => it.run(&out).await,
                Command::Rename { container, name } => life::rename(&out, &container, &name).await,
                Command::Ls(it) => it.run(&out).await,
                Command::Inspect(it) => it.run(&out).await,
                Command::Logs(it) => it.run(&out).await,
                Command::Exec(it) => it.run(&out).await,
                Command::Attach(it) => it.run(&out).await,
                Command::Stats(it) => it.run(&out).await,
                Command::Top(it) => it.run(&out).await,
                Command::Update(it) => it.run(&out).await,
                Command::Cp(it) => it.run(&out).await,
                Command::Commit(it) => it.run(&out).await,
                Command::Events(it) => it.run(&out).await,
                Command::Port(it) => it.run(&out).await,
            }
        })
        .await;
        match result {
            Err(error) if docker_codes => {
                let code = error.downcast_ref::<EngineError>().map_or(125, EngineError::exit_code);
                super::print_error(&error);
                Ok(ExitCode::from(code))
            }
            other => other,
        }
    }
}
