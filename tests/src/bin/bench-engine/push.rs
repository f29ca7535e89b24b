//! Push of a present image to a repository that has none of it.

use std::path::Path;

use anyhow::Result;
use tests::bench::{Table, mb, median, ms, thousands};
use tests::{images, registry::Registry};

use crate::{Plan, contenders::Contender, sample};

/// Runs it; every push goes into a new, empty registry.
pub fn run(plan: &Plan, dir: &Path) -> Result<Table> {
    let registry = Registry::start(dir)?;
    let image = registry.push(&images::five_layers(dir)?, "five:latest")?;
    let contenders = Contender::all(dir)?;
    for contender in &contenders {
        sample::time(&mut contender.pull(&image))?;
    }
    let mut times = vec![Vec::new(); contenders.len()];
    let mut peaks = vec![0; contenders.len()];
    for round in 0..plan.rounds {
        for (n, contender) in contenders.iter().enumerate() {
            let place = dir.join(format!("push-{round}-{n}"));
            std::fs::create_dir_all(&place)?;
            let target = Registry::start(&place)?;
            let name = format!("{}/five:latest", target.address);
            contender.tag(&image, &name)?;
            let run = sample::run(&mut contender.push(&name), &contender.daemon())?;
            times[n].push(ms(run.time));
            peaks[n] = peaks[n].max(run.peak_kib);
            drop(target);
            std::fs::remove_dir_all(&place)?;
        }
    }
    let ours = median(times[0].clone());
    let mut table = Table::new("Push of the 5 layers", &["", "ms", "peak memory MB", "edge-agent's time is of it"]);
    for (n, contender) in contenders.iter().enumerate() {
        let time = median(times[n].clone());
        let ratio = format!("{:.2}", ours / time);
        table.row(&[contender.name.to_owned(), thousands(time), format!("{:.1}", mb(peaks[n])), ratio]);
    }
    Ok(table)
}
