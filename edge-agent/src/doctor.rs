//! `edge-agent doctor`: what the board lacks, and how to mend it.

mod engine;

use std::{
    io,
    net::{TcpStream, ToSocketAddrs},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use board::{clock::Clock, sys, tls};
use url::Url;

use crate::{cli::out, config::Config};

/// One check.
#[derive(Debug, serde::Serialize)]
struct Check {
    name: &'static str,
    ok: bool,
    found: String,
    /// What to do, where something is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

fn check(name: &'static str, ok: bool, found: impl Into<String>, remedy: &str) -> Check {
    Check { name, ok, found: found.into(), remedy: (!ok).then(|| remedy.to_owned()) }
}

/// Runs all checks; exit 3 where one fails.
pub async fn run(config: &Config, json: bool) -> anyhow::Result<ExitCode> {
    let config = config.clone();
    let checks = tokio::task::spawn_blocking(move || checks(&config)).await?;
    for check in &checks {
        if json {
            out(serde_json::to_string(check)?);
        } else {
            out(format!("{} {:<12} {}", if check.ok { " ok " } else { "FAIL" }, check.name, check.found));
            if let Some(remedy) = &check.remedy {
                out(format!("     {:<12} {remedy}", ""));
            }
        }
    }
    let well = checks.iter().all(|check| check.ok);
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::from(3) })
}

fn checks(config: &Config) -> Vec<Check> {
    let mut all =
        vec![kernel(), cgroups(), disk(&config.data_dir), clock(&config.data_dir), data_dir(&config.data_dir)];
    if config.engine.enabled {
        all.extend(engine::checks());
    }
    let mut certificates: Vec<(&'static str, Option<&PathBuf>)> =
        config.mqtt.tls.iter().map(|files| ("mqtt.tls_cert", Some(&files.cert_file))).collect();
    if let Some(relay) = &config.relay_mqtt {
        all.push(network(&relay.url));
        certificates.push(("relay.mqtt.ca_file", relay.tls.ca_file.as_ref()));
        certificates.push(("relay.mqtt.cert_file", relay.tls.cert_file.as_ref()));
    }
    if let Some(relay) = &config.relay_s3 {
        if relay.target.endpoint.scheme() != "file" {
            all.push(network(&relay.target.endpoint));
        }
        certificates.push(("relay.s3.ca_file", relay.target.tls.ca_file.as_ref()));
    }
    all.extend(certificates.into_iter().filter_map(|(name, path)| Some(certificate(name, path?))));
    all
}

/// Whether something answers where a relay sends to. No more than a connection: keys and certificates are tried, and what
/// is wrong with them is said, by the relay itself.
fn network(url: &Url) -> Check {
    let port = url.port_or_known_default().unwrap_or(if url.scheme() == "mqtts" { 8883 } else { 1883 });
    let place = format!("{}:{port}", url.host_str().unwrap_or_default());
    let connected = place.to_socket_addrs().and_then(|mut addresses| {
        let address = addresses.next().ok_or_else(|| io::Error::other("the name has no address"))?;
        TcpStream::connect_timeout(&address, Duration::from_secs(5))
    });
    let found = match &connected {
        Ok(_) => format!("{place} can be reached"),
        Err(error) => format!("{place} cannot be reached: {error}"),
    };
    check("network", connected.is_ok(), found, "check the link, the name and the port; readings are kept meanwhile")
}

fn kernel() -> Check {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    check("kernel", version >= (5, 10), release, "use Linux 5.10 or newer")
}

fn cgroups() -> Check {
    let v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let found = if v2 { "version 2" } else { "version 1 or hybrid" };
    check("cgroups", Path::new("/sys/fs/cgroup").is_dir(), found, "mount a cgroup file system on /sys/fs/cgroup")
}

fn disk(data: &Path) -> Check {
    let existing = data.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    match sys::disk(existing) {
        Ok(disk) => {
            let found =
                format!("{} MB of {} MB free for {}", disk.free / 1_000_000, disk.total / 1_000_000, data.display());
            check("disk", disk.free > 100_000_000, found, "free at least 100 MB, or choose another --data-dir")
        }
        Err(error) => check("disk", false, error.to_string(), "choose another --data-dir"),
    }
}

fn clock(data: &Path) -> Check {
    let clock = Clock::peek(&data.join("identity"));
    let trusted = clock.look();
    let found = if trusted {
        "the time is known"
    } else {
        "nobody vouches for the time: readings are marked, and corrected later"
    };
    check("clock", trusted, found, "start an NTP client (systemd-timesyncd, chrony), or fit a battery-backed clock")
}

/// Whether the data directory can be written.
fn data_dir(data: &Path) -> Check {
    let existing = data.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let probe = existing.join(format!(".edge-agent-doctor-{}", std::process::id()));
    let written = board::durable::write(&probe, b"", 0o600);
    let _ = std::fs::remove_file(&probe); // It may not be there.
    let found = written.as_ref().map_or_else(ToString::to_string, |()| format!("{} can be written", data.display()));
    check("data", written.is_ok(), found, "run as a user who may write there, or choose another --data-dir")
}

fn certificate(name: &'static str, path: &Path) -> Check {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    match tls::expires_at(path) {
        Ok(at) => {
            let days = (at - i64::try_from(now).unwrap_or(0)) / 86_400;
            check(
                name,
                days > 7,
                format!("{} runs out in {days} days", path.display()),
                "put a renewed certificate there",
            )
        }
        Err(error) => check(name, false, error.to_string(), "put a PEM certificate there"),
    }
}
