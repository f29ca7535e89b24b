//! Cold pull with unpacking: from nothing to a tree that a container can start from.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result};
use tests::bench::{Table, mb, median, ms, thousands};
use tests::{images, registry::Registry};

use crate::{Plan, contenders::Contender, sample};

const COLUMNS: &[&str] = &["", "ms", "peak memory MB", "edge-agent's time is of it"];

/// Five layers, 100 MB compressed.
pub fn run(plan: &Plan, dir: &Path) -> Result<Table> {
    let registry = Registry::start(dir)?;
    let layout = images::five_layers(dir)?;
    let image = registry.push(&layout, "five:latest")?;
    let bytes: u64 = layers(&layout)?.iter().map(|(_, size)| size).sum();
    let title = format!("Cold pull and unpack, 5 layers, {} MB compressed", bytes / 1_000_000);
    race(&title, plan.rounds, dir, &registry, &image, &layout, |_| true)
}

/// One layer of 2 GB in many files; beside `curl | tar` alone, since the others take minutes.
pub fn large(plan: &Plan, dir: &Path) -> Result<Table> {
    let registry = Registry::start(dir)?;
    let layout = images::many_files(dir, plan.files)?;
    let image = registry.push(&layout, "many:latest")?;
    let title = format!("Cold pull and unpack, 2 GB in {} files", thousands(approximate(plan.files)));
    race(&title, plan.rounds.min(2), dir, &registry, &image, &layout, Contender::is_ours)
}

#[allow(clippy::cast_precision_loss)] // For people.
fn approximate(files: u64) -> f64 {
    files as f64
}

fn race(
    title: &str,
    rounds: usize,
    dir: &Path,
    registry: &Registry,
    image: &str,
    layout: &Path,
    takes_part: impl Fn(&Contender) -> bool,
) -> Result<Table> {
    let contenders: Vec<_> = Contender::all(dir)?.into_iter().filter(takes_part).collect();
    let mut results: Vec<(String, Vec<f64>, u64)> =
        contenders.iter().map(|it| (it.name.to_owned(), Vec::new(), 0)).collect();
    results.push(("curl \\| tar, one layer after the other".to_owned(), Vec::new(), 0));
    results.push(("skopeo, without unpacking".to_owned(), Vec::new(), 0));
    for _ in 0..rounds {
        for (n, contender) in contenders.iter().enumerate() {
            let run = sample::run(&mut contender.pull(image), &contender.daemon())?;
            results[n].1.push(ms(run.time));
            results[n].2 = results[n].2.max(run.peak_kib);
            contender.remove(image)?;
        }
        for (n, mut command) in [curl_tar(dir, registry, image, layout)?, skopeo(dir, image)].into_iter().enumerate() {
            let at = contenders.len() + n;
            let run = sample::run(&mut command, &[])?;
            results[at].1.push(ms(run.time));
            results[at].2 = results[at].2.max(run.peak_kib);
            let _ = fs::remove_dir_all(dir.join("floor")); // Made by the one of the two that unpacks.
            let _ = fs::remove_dir_all(dir.join("skopeo"));
        }
    }
    let ours = median(results[0].1.clone());
    let mut table = Table::new(title, COLUMNS);
    for (name, times, peak) in results {
        let time = median(times);
        table.row(&[name, thousands(time), format!("{:.1}", mb(peak)), format!("{:.2}", ours / time)]);
    }
    Ok(table)
}

/// Digests and sizes of an image's layers.
fn layers(layout: &Path) -> Result<Vec<(String, u64)>> {
    let blob = |digest: &str| -> Result<serde_json::Value> {
        let path = layout.join("blobs/sha256").join(digest.trim_start_matches("sha256:"));
        Ok(serde_json::from_slice(&fs::read(path)?)?)
    };
    let index: serde_json::Value = serde_json::from_slice(&fs::read(layout.join("index.json"))?)?;
    let manifest = blob(index["manifests"][0]["digest"].as_str().context("no manifest")?)?;
    let layers = manifest["layers"].as_array().cloned().unwrap_or_default();
    let layer = |it: &serde_json::Value| Some((it["digest"].as_str()?.to_owned(), it["size"].as_u64()?));
    Ok(layers.iter().filter_map(layer).collect())
}

/// What any way of doing it must at least do.
fn curl_tar(dir: &Path, registry: &Registry, image: &str, layout: &Path) -> Result<Command> {
    let name = image.trim_start_matches(&registry.address).trim_start_matches('/').trim_end_matches(":latest");
    let floor = dir.join("floor");
    let mut script = format!("set -e; mkdir -p {}; ", floor.display());
    for (digest, _) in layers(layout)? {
        let url = format!("http://{}/v2/{name}/blobs/{digest}", registry.address);
        script.push_str(&format!("curl -sf {url} | tar -xz -C {}; ", floor.display()));
    }
    let mut command = Command::new("bash");
    command.args(["-o", "pipefail", "-c", &script]);
    Ok(command)
}

fn skopeo(dir: &Path, image: &str) -> Command {
    let mut command = Command::new("skopeo");
    command.args(["copy", "--quiet", "--src-tls-verify=false", "--insecure-policy", &format!("docker://{image}")]);
    command.arg(format!("dir:{}", dir.join("skopeo").display()));
    command
}
