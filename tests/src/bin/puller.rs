//! Pulls one image as the agent does and ends: what the tests kill in the midst of it, and what is measured alone.
//!
//! `puller DATA IMAGE` writes the image's id, what changed, and its own peak memory as one line of JSON.

use std::{io::Write, path::Path, process::ExitCode};

use anyhow::{Context, Result};
use container_engine::{
    image::{Images, Options, PullPolicy, PullRequest},
    lease::Leases,
    owner::Owner,
    registry::{self, Credentials, Registry},
    snapshot::Snapshots,
};
use store::state::State;

#[global_allocator]
static ALLOCATOR: board::sys::allocator::Allocator = board::sys::allocator::Allocator;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    if let Some(code) = container_engine::verb::dispatch(&args) {
        return code;
    }
    board::sys::allocator::give_back_at_once();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let result = runtime.context("no runtime").and_then(|runtime| runtime.block_on(pull(&args)));
    match result {
        Ok(line) => {
            let _ = writeln!(std::io::stdout(), "{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn pull(args: &[std::ffi::OsString]) -> Result<serde_json::Value> {
    let [data, image] = args else { anyhow::bail!("usage: puller DATA IMAGE") };
    let data = Path::new(data);
    let state = State::open(&data.join("state"))?.0;
    let snapshots = Snapshots::open(data, &std::env::current_exe()?)?;
    let registry = Registry::new(registry::Options::default())?;
    let options = Options::new(data);
    let images = Images::open(options, state.clone(), Leases::new(state.clone()), registry, snapshots).await?;
    let request = PullRequest {
        name: image.to_string_lossy().parse()?,
        owner: Owner::Local,
        platform: None,
        policy: PullPolicy::Always,
        credentials: Credentials::Anonymous,
    };
    let (events, mut told) = tokio::sync::mpsc::channel(16);
    let drain = async { while told.recv().await.is_some() {} };
    let pull = async {
        let result = images.pull(&request, &events).await;
        drop(events);
        result
    };
    let (pulled, ()) = tokio::join!(pull, drain);
    let pulled = pulled?;
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default().trim();
    Ok(
        serde_json::json!({"id": pulled.image.id(), "changed": pulled.changed, "peak": peak, "pss": board::sys::memory().pss}),
    )
}
