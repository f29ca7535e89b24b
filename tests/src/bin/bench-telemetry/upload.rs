//! A large file to Ceph: the agent's upload beside one `curl` PUT, interleaved.

use std::{
    fs::File,
    io::Write,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use tests::{Agent, Ceph, python, wait_until};

use super::{
    Plan, Table,
    ingest::Watch,
    measure::{mb, median},
};

pub fn run(plan: &Plan, dir: &Path) -> Result<Table> {
    let ceph = Ceph::start_with(&dir.join("ceph"), 20_000)?;
    let file = dir.join("large.bin");
    make(&file, plan.upload_mib)?;
    #[allow(clippy::cast_precision_loss)] // Far below 2^53.
    let megabytes = plan.upload_mib as f64 * 1.048_576;
    let (mut ours, mut curls, mut memory) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..plan.rounds.min(3) {
        curls.push(megabytes / curl(&ceph, &file, round)?.as_secs_f64());
        let (time, used) = upload(&ceph, &dir.join(format!("agent{round}")), &file)?;
        ours.push(megabytes / time.as_secs_f64());
        memory.push(used);
    }
    let (anonymous, resident) = memory.into_iter().max().unwrap_or_default();
    let mut table =
        Table::new(&format!("A file of {} MiB to Ceph", plan.upload_mib), &["", "MB/s", "anonymous MB", "file MB"]);
    let (ours, curls) = (median(ours), median(curls));
    table.row(&[
        "edge-agent upload".into(),
        format!("{ours:.0}"),
        format!("{:.1}", mb(anonymous)),
        format!("{:.1}", mb(resident)),
    ]);
    table.row(&["one curl PUT".into(), format!("{curls:.0}"), String::new(), String::new()]);
    table.note(format!("{:.0} % of curl.", 100.0 * ours / curls));
    Ok(table)
}

/// Bytes that do not compress.
fn make(path: &Path, mib: u64) -> Result<()> {
    let mut file = File::create(path)?;
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut block = vec![0u8; 1 << 20];
    for _ in 0..mib {
        for word in block.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        file.write_all(&block)?;
    }
    file.sync_all()?;
    Ok(())
}

fn curl(ceph: &Ceph, file: &Path, round: usize) -> Result<Duration> {
    let script = format!(
        "import boto3, os; print(boto3.client('s3', endpoint_url=os.environ['AWS_ENDPOINT_URL']).generate_presigned_url(\
         'put_object', Params={{'Bucket': 'sensors', 'Key': 'curl{round}'}}))"
    );
    let url = python(&script, &ceph.env)?;
    let begun = Instant::now();
    let done = Command::new("curl").args(["-sfS", "-T"]).arg(file).arg(url.trim()).status()?;
    ensure!(done.success(), "curl failed");
    Ok(begun.elapsed())
}

fn upload(ceph: &Ceph, dir: &Path, file: &Path) -> Result<(Duration, (u64, u64))> {
    std::fs::create_dir_all(dir)?;
    let config = format!(
        "[relay.s3]\nendpoint = \"{}\"\nbucket = \"sensors\"\naccess_key_id = \"{}\"\nsecret_access_key = \"{}\"\n",
        ceph.setting("AWS_ENDPOINT_URL"),
        ceph.setting("AWS_ACCESS_KEY_ID"),
        ceph.setting("AWS_SECRET_ACCESS_KEY"),
    );
    let mut agent = Agent::new(dir, &config)?;
    agent.start()?;
    // Linked, not copied: what is timed is the way to S3.
    std::fs::create_dir_all(agent.data().join("spool"))?;
    std::fs::hard_link(file, agent.data().join("spool/large.bin"))?;
    let sending = || agent.status().is_ok_and(|it| it["uploads"]["current"].is_string());
    wait_until("the upload begins", Duration::from_secs(30), sending)?;
    let (begun, watch) = (Instant::now(), Watch::start(agent.pid()));
    wait_until("the file is stored", Duration::from_secs(600), || !agent.data().join("spool/large.bin").exists())?;
    Ok((begun.elapsed(), watch.stop()))
}
