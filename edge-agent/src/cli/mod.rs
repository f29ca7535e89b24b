//! The command line.

mod attach;
mod container;
mod engine;
mod format;
mod image;
mod network;
mod node;
mod parse;
mod pod;
pub mod run;
mod show;
mod telemetry;
mod terminal;
mod upload;
mod volume;

use std::{io::Write, path::PathBuf, process::ExitCode};

use clap::{CommandFactory, Parser, Subcommand};

pub use format::human::now_ns;

use crate::config::{Loaded, Sources, raw::LogFormat};

/// Carries sensor data from a board to a core, never losing what it acknowledged; runs containers.
#[derive(Debug, Parser)]
#[command(name = "edge-agent", version, disable_version_flag = true, max_term_width = 100, after_help = EXAMPLES)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    /// Print the version.
    #[arg(long, short = 'V')]
    version: bool,
    /// Machine-readable output: one JSON object a line.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

const EXAMPLES: &str = "Examples:
  edge-agent run                                     start; with no configuration: everything embedded
  mosquitto_pub -q 1 -t lab/temperature -m 21.5      a reading; acknowledged means on disk
  edge-agent telemetry query --since 10m --json      what the board holds
  edge-agent container run --rm -it busybox sh       a container, as Docker users type it
  edge-agent join core:6443 --token T --discovery-token-ca-cert-hash sha256:H     a node of a cluster
  edge-agent status                                  exit 0 healthy, 3 degraded

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 degraded.";

/// May stand anywhere on the command line.
#[derive(Debug, clap::Args)]
struct Global {
    /// Configuration file [default: /etc/edge-agent/config.toml, if it exists]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where everything lasting is [default: /var/lib/edge-agent]
    #[arg(long, global = true, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where sockets are [default: /run/edge-agent]
    #[arg(long, global = true, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// How log lines look
    #[arg(long, global = true, value_enum)]
    log_format: Option<LogFormat>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start the agent; with no configuration: standalone, everything embedded
    Run,
    /// The whole path in a temporary directory, with sample sensors; a folder stands in for the S3 bucket
    Demo {
        /// How long the sensors publish [default: ten seconds]
        #[arg(long)]
        minutes: Option<f64>,
    },
    /// What is running and what waits; exit 0 healthy, 3 degraded
    #[command(
        after_help = "Examples:\n  edge-agent status\n  edge-agent status --watch\n  edge-agent status --json | jq .outbox"
    )]
    Status {
        /// Show it again every two seconds
        #[arg(long)]
        watch: bool,
    },
    /// Check kernel, disk, clock, network and certificates; says how to mend each
    Doctor,
    /// Readings: put, query, tail, export, stats
    #[command(subcommand)]
    Telemetry(telemetry::Command),
    /// Containers: run, ls, logs, exec, stop, rm, and more
    Container(Box<container::Container>),
    /// Images: pull, push, ls, rm, tag, save, load, login
    Image(image::Image),
    /// Networks of containers
    Network(network::Network),
    /// Named volumes of containers
    Volume(volume::Volume),
    /// Make the board a node of a Kubernetes cluster, with the flags of `kubeadm join`
    #[command(after_help = node::JOIN_EXAMPLES)]
    Join(Box<node::Join>),
    /// Leave the cluster: cordon, evict pods, forget the identity
    #[command(after_help = node::LEAVE_EXAMPLES)]
    Leave(node::Leave),
    /// The board's pods, with or without the cluster: ls, logs, exec, describe
    Pod(pod::Pod),
    /// Queue large files for S3: sent in parts, resumed after a restart or a power cut
    #[command(
        after_help = "Examples:\n  edge-agent upload flight7.tif\n  edge-agent upload --as flight7/scan.tif --wait scan.tif\n\nThe object is PREFIX/_uploads/BOARD/DATE/NAME. Files may also be put into the spool directory by hand."
    )]
    Upload(upload::Upload),
    /// The configuration in force
    #[command(subcommand)]
    Config(show::ConfigCommand),
    /// Print a completion script for a shell
    #[command(after_help = "Example:\n  edge-agent completions bash > /etc/bash_completion.d/edge-agent")]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

impl Cli {
    /// Does what was asked.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        if self.version {
            return Ok(show::version(self.json));
        }
        let Some(command) = self.command else {
            out(Self::command().render_help().ansi());
            return Ok(ExitCode::from(2));
        };
        let sources = Sources {
            file: self.global.config,
            data_dir: self.global.data_dir,
            run_dir: self.global.run_dir,
            log_format: self.global.log_format,
        };
        if let Command::Completions { shell } = command {
            clap_complete::generate(shell, &mut Self::command(), "edge-agent", &mut std::io::stdout());
            return Ok(ExitCode::SUCCESS);
        }
        if let Command::Demo { minutes } = command {
            return crate::demo::run(minutes).await;
        }
        let Loaded { config, figment, file } = sources.load()?;
        match command {
            Command::Run => run::run(config, file).await,
            Command::Status { watch } => show::status(&config, self.json, watch).await,
            Command::Doctor => crate::doctor::run(&config, self.json).await,
            Command::Telemetry(command) => command.run(&config, self.json).await,
            Command::Container(command) => command.run(&config, self.json).await,
            Command::Image(command) => command.run(&config, self.json).await,
            Command::Network(command) => command.run(&config, self.json).await,
            Command::Volume(command) => command.run(&config, self.json).await,
            Command::Join(command) => command.run(&config, self.json).await,
            Command::Leave(command) => command.run(&config, self.json).await,
            Command::Pod(command) => command.run(&config, self.json).await,
            Command::Upload(command) => upload::run(&config, command, self.json).await,
            Command::Config(command) => show::config(&command, &figment, file.as_deref(), self.json),
            Command::Completions { .. } | Command::Demo { .. } => Ok(ExitCode::SUCCESS),
        }
    }
}

/// What a command line that is not understood ends with; `container run` and `exec` have Docker's 125.
pub fn usage_code(is_mistake: bool, args: &[std::ffi::OsString]) -> u8 {
    let is_run = args.windows(2).any(|it| it[0] == "container" && (it[1] == "run" || it[1] == "exec"));
    match (is_mistake, is_run) {
        (false, _) => 0,
        (true, true) => 125,
        (true, false) => 2,
    }
}

/// Prints a line on standard output; a reader that went away (`| head`) ends the program quietly.
pub fn out(line: impl std::fmt::Display) {
    if writeln!(std::io::stdout(), "{line}").is_err() {
        std::process::exit(0);
    }
}

/// Prints an error with its causes, each once, on one line.
pub fn print_error(error: &anyhow::Error) {
    let text = board::tasks::chain(error.as_ref());
    // Nobody is left to tell if this fails.
    let _ = writeln!(std::io::stderr(), "edge-agent: {text}");
}
