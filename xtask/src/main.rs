//! The developer's commands: `cargo xtask demo|test|fuzz|guest|dist|bench|tidy|setup`.

mod bench;
mod dist;
mod fuzz;
mod guest;
mod setup;
mod steps;
mod tidy;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The developer's commands")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The whole path of a reading in a temporary folder, with sample sensors
    Demo,
    /// Everything the project promises, against real servers; what CI runs
    Test {
        /// Only the tests whose name contains this
        #[arg(long)]
        only: Option<String>,
        /// Rounds of the crash and power-cut tests
        #[arg(long)]
        rounds: Option<u32>,
    },
    /// Run the fuzz targets, each from its seeds
    Fuzz {
        /// Seconds for each target
        #[arg(long, default_value_t = 10)]
        seconds: u32,
        /// Only this one
        target: Option<String>,
    },
    /// The engine's tests in a qemu guest with control groups v2 alone
    Guest {
        /// Everything, not only what the gate runs
        #[arg(long, conflicts_with = "only")]
        long: bool,
        /// Only the parts whose name begins so, such as `shim` or `shim-runc`, and those whole
        only: Option<String>,
    },
    /// Static binaries in `target/dist`
    Dist {
        /// `aarch64`, `x86_64` or `all`
        #[arg(long, default_value = "all")]
        target: String,
    },
    /// Measure beside the peers
    #[command(subcommand)]
    Bench(Bench),
    /// Check the map in ARCHITECTURE.md and the rules of the tree
    Tidy,
    /// Install what the tests need
    Setup,
}

#[derive(Subcommand)]
enum Bench {
    /// The agent beside mosquitto as an edge bridge; an hour
    Telemetry {
        /// For the measuring program: `--rounds N --readings N --backlog N --upload-mib N --only PART`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// The container engine beside containerd, Docker, podman, buildah, skopeo, runc and crun
    Engine {
        /// For the measuring program: `--rounds N --starts N --files N --only pull|large|start|many|push`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Demo => steps::cargo(&["run", "--package", "edge-agent", "--", "demo"], &[]),
        Command::Test { only, rounds } => steps::test(only.as_deref(), rounds),
        Command::Fuzz { seconds, target } => fuzz::run(seconds, target.as_deref()),
        Command::Guest { long: true, .. } => guest::run_long(),
        Command::Guest { only, .. } => guest::run(only.as_deref()),
        Command::Dist { target } => dist::run(&target),
        Command::Bench(Bench::Telemetry { arguments }) => bench::run(&bench::TELEMETRY, &arguments),
        Command::Bench(Bench::Engine { arguments }) => bench::run(&bench::ENGINE, &arguments),
        Command::Tidy => tidy::run(),
        Command::Setup => setup::run().map(drop),
    }
}
