//! Writes to one half of the store until it is killed, and says on stdout what was acknowledged: one line each.
//!
//! A process of its own, because whoever writes when the power is cut is left with broken files.

use std::{
    io::Write,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Context, Result, bail};
use store::{
    log::{Log, Options, Record},
    state::{Batch, State},
};
use tests::written::{self, Left, Right};
use tokio::task::JoinSet;

const WRITERS: u64 = 8;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let (half, dir) = (args.next().context("store-writer log|state DIR")?, args.next().context("a folder")?);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    match half.as_str() {
        "log" => runtime.block_on(log(Path::new(&dir))),
        "state" => runtime.block_on(state(Path::new(&dir))),
        other => bail!("{other} is neither log nor state"),
    }
}

#[allow(clippy::print_stdout)]
fn acknowledged(line: &str) {
    let mut out = std::io::stdout().lock();
    // Whoever reads is gone when this fails, and so is the purpose.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Small segments, so that cuts hit their turns too.
async fn log(dir: &Path) -> Result<()> {
    let options =
        Options { segment_bytes: 256 << 10, linger: std::time::Duration::from_millis(2), ..Options::default() };
    let (log, _) = Log::open(dir, options)?;
    let id = Arc::new(AtomicU64::new(u64::from(std::process::id()) << 32));
    let mut writers = JoinSet::new();
    for _ in 0..WRITERS {
        let (log, id) = (log.clone(), id.clone());
        writers.spawn(async move {
            loop {
                let count = id.load(Ordering::Relaxed) % 7 + 1;
                let ids: Vec<_> = (0..count).map(|_| id.fetch_add(1, Ordering::Relaxed)).collect();
                let records = ids.iter().map(|id| Record { mark: 0, body: written::body(*id) }).collect();
                let range = log.append(records).await?;
                for (seq, id) in range.zip(ids) {
                    acknowledged(&format!("{seq} {id}"));
                }
            }
        });
    }
    while let Some(ended) = writers.join_next().await {
        let ended: Result<(), store::log::AppendError> = ended?;
        ended?;
    }
    Ok(())
}

async fn state(dir: &Path) -> Result<()> {
    let (state, _) = State::open(dir)?;
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let state = state.clone();
        writers.spawn(async move {
            let key = format!("writer-{writer}");
            let mut count = state.get::<Left>(&key)?.map_or(0, |it| it.count);
            loop {
                count += 1;
                let mut batch = Batch::default();
                batch.put(&key, &Left::new(count))?.put(&key, &Right { count })?;
                state.commit(batch).await?;
                acknowledged(&format!("{key} {count}"));
            }
        });
    }
    while let Some(ended) = writers.join_next().await {
        let ended: Result<(), store::state::StateError> = ended?;
        ended?;
    }
    Ok(())
}
