//! Start to exit of `true`, and `exec` of `true`: latency, whole command included.

use std::{fs, path::Path, process::Command};

use anyhow::{Result, ensure};
use tests::bench::{Table, median, ms};
use tests::{images, registry::Registry};

use crate::{Plan, contenders::Contender, sample};

/// Runs it.
pub fn run(plan: &Plan, dir: &Path) -> Result<Table> {
    let registry = Registry::start(dir)?;
    let image = registry.push(&images::busybox(dir)?, "busybox:latest")?;
    let contenders: Vec<_> =
        Contender::all(dir)?.into_iter().filter(|it| it.run(&image, &["true"]).is_some()).collect();
    for contender in &contenders {
        sample::time(&mut contender.pull(&image))?;
        if let Some(mut command) = contender.detach(&image, "sleeper") {
            sample::time(&mut command)?;
        }
    }
    let bundles = [("runc alone", bundle(dir, "runc")?), ("crun alone", bundle(dir, "crun")?)];
    let mut starts = vec![Vec::new(); contenders.len() + bundles.len()];
    let mut execs = vec![Vec::new(); contenders.len()];
    for round in 0..plan.starts {
        for (n, contender) in contenders.iter().enumerate() {
            if let Some(mut command) = contender.run(&image, &["true"]) {
                starts[n].push(ms(sample::time(&mut command)?));
            }
            if let Some(mut command) = contender.exec("sleeper") {
                execs[n].push(ms(sample::time(&mut command)?));
            }
        }
        for (n, (name, bundle)) in bundles.iter().enumerate() {
            let program = name.split(' ').next().unwrap_or_default();
            let mut command = Command::new(program);
            command.arg("--root").arg(dir.join("oci-root")).arg("run").arg("--bundle").arg(bundle);
            command.arg(format!("bench-{round}"));
            // crun refuses hybrid hosts.
            if let Ok(time) = sample::time(&mut command) {
                starts[contenders.len() + n].push(ms(time));
            }
        }
    }
    for contender in &contenders {
        contender.kill("sleeper")?;
    }
    table(&contenders, &bundles.map(|(name, _)| name), starts, execs)
}

fn table(contenders: &[Contender], bare: &[&str], starts: Vec<Vec<f64>>, execs: Vec<Vec<f64>>) -> Result<Table> {
    ensure!(!starts[0].is_empty(), "nothing was measured");
    let ours = median(starts[0].clone());
    let columns = ["", "start to exit of `true`, ms", "edge-agent's time is of it", "exec of `true`, ms"];
    let mut table = Table::new("Latency, no network", &columns);
    let names = contenders.iter().map(|it| it.name).chain(bare.iter().copied());
    for (n, (name, times)) in names.zip(starts).enumerate() {
        if times.is_empty() {
            table.row(&[name.to_owned(), "does not run here".into(), String::new(), String::new()]);
            continue;
        }
        let exec = execs.get(n).map_or_else(String::new, |times| format!("{:.0}", median(times.clone())));
        let time = median(times);
        table.row(&[name.to_owned(), format!("{time:.0}"), format!("{:.2}", ours / time), exec]);
    }
    Ok(table)
}

/// A bundle with the same root file system and a configuration of the runtime's own making.
fn bundle(dir: &Path, program: &str) -> Result<std::path::PathBuf> {
    let bundle = dir.join(format!("bundle-{program}"));
    fs::create_dir_all(&bundle)?;
    let status = Command::new("cp").arg("-a").arg(dir.join("busybox-tree")).arg(bundle.join("rootfs")).status()?;
    ensure!(status.success(), "cp failed");
    let made = Command::new(program).arg("spec").current_dir(&bundle).status()?;
    ensure!(made.success(), "{program} spec failed");
    let path = bundle.join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path)?)?;
    config["process"]["terminal"] = false.into();
    config["process"]["args"] = serde_json::json!(["true"]);
    config["process"]["env"] = serde_json::json!(["PATH=/bin"]);
    fs::write(&path, config.to_string())?;
    Ok(bundle)
}
