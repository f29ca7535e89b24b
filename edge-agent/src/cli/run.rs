//! `edge-agent run`.

use std::{io::IsTerminal, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context as _;
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    fmt,
    layer::SubscriberExt,
    registry,
    util::SubscriberInitExt,
};

use crate::{
    app::App,
    config::{Config, raw::LogFormat},
};

/// Sets up logging on standard error. `RUST_LOG` holds levels by target, such as `info,telemetry=debug`; without the
/// regular expressions of a full filter, which would be a twentieth of the binary.
pub fn log(format: LogFormat) {
    let wanted = std::env::var("RUST_LOG").ok().filter(|text| !text.is_empty());
    let parsed = wanted.as_deref().map(str::parse::<Targets>);
    let unclear = matches!(parsed, Some(Err(_)));
    let filter = parsed.and_then(Result::ok).unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    let lines = fmt::layer().with_writer(std::io::stderr);
    // A second set-up in one process is a no-op.
    let _ = match format {
        LogFormat::Text => registry().with(lines.with_ansi(std::io::stderr().is_terminal())).with(filter).try_init(),
        LogFormat::Json => registry().with(lines.json()).with(filter).try_init(),
    };
    if unclear {
        tracing::warn!("RUST_LOG is not understood; write it like info,telemetry=debug");
    }
}

/// Runs the agent until SIGTERM or SIGINT.
pub async fn run(config: Config, file: Option<PathBuf>) -> anyhow::Result<ExitCode> {
    log(config.log_format);
    let stop = CancellationToken::new();
    let mut side = JoinSet::new();
    side.spawn(signals(stop.clone())?);
    let app = App::build(&config).await?;
    greet(&config, &app.greeting, file.as_deref());
    side.spawn(watchdog(stop.clone()));
    notify(&[sd_notify::NotifyState::Ready]);
    app.run(stop).await;
    side.shutdown().await;
    tracing::info!("stopped; everything that was accepted is on disk");
    Ok(ExitCode::SUCCESS)
}

/// SIGTERM and SIGINT cancel this one token, here and nowhere else.
fn signals(stop: CancellationToken) -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        notify(&[sd_notify::NotifyState::Stopping]);
        stop.cancel();
    })
}

/// Tells systemd, where it started us.
fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd was not told");
    }
}

/// Feeds systemd's watchdog from the runtime itself: a runtime that hangs is restarted.
async fn watchdog(stop: CancellationToken) {
    let Some(every) = sd_notify::watchdog_enabled().map(|limit| limit / 3) else { return };
    loop {
        notify(&[sd_notify::NotifyState::Watchdog]);
        tokio::select! {
            () = tokio::time::sleep(every.max(Duration::from_millis(100))) => {}
            () = stop.cancelled() => return,
        }
    }
}

fn greet(config: &Config, greeting: &[String], file: Option<&std::path::Path>) {
    let from = file.map_or_else(|| "none; every key has a default".to_owned(), |path| path.display().to_string());
    if !std::io::stderr().is_terminal() {
        tracing::info!(name = config.name, config = from, listening = greeting.join("; "), "edge-agent is running");
        return;
    }
    let mut lines = vec![format!("edge-agent {} on {}", env!("CARGO_PKG_VERSION"), config.name)];
    lines.extend(greeting.iter().map(|line| format!("  {line}")));
    lines.push(format!("  config    {from}"));
    lines.push("  try       mosquitto_pub -q 1 -t lab/temperature -m 21.5".to_owned());
    lines.push("            edge-agent telemetry query".to_owned());
    for line in lines {
        // The greeting is a courtesy: a closed terminal is no reason to stop.
        let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("{line}\n"));
    }
}
