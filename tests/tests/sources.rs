//! The ways in beside MQTT and HTTP: lines on telemetry.sock, and the board's own figures.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use tests::{Agent, wait_until};

#[test]
fn lines_on_the_socket_are_answered_in_order_and_survive_sigkill() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut agent = Agent::new(dir.path(), "")?;
    agent.start()?;
    let path = dir.path().join("run/telemetry.sock");
    let mode = std::fs::metadata(&path)?.permissions().mode() & 0o777;
    ensure!(mode == 0o666, "mode {mode:o}: every user of the board may write readings");
    let mut stream = UnixStream::connect(&path)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(
        b"lab/a 21.5\nno-payload\nlab/+ 1\n{\"topic\": \"lab/b c\", \"payload\": {\"t\": 1}}\n\
          {\"topic\": \"lab/d\", \"payload_b64\": \"/wEC\"}\n",
    )?;
    let mut answers = BufReader::new(stream.try_clone()?).lines();
    let mut next = || answers.next().context("no answer")?.context("no answer in ten seconds");
    let answers = [next()?, next()?, next()?, next()?, next()?];
    let kinds: Vec<_> = answers.iter().map(|it| it.split(' ').next().unwrap_or_default()).collect();
    ensure!(kinds == ["ok", "error", "error", "ok", "ok"], "{answers:?}");
    agent.kill()?;
    let rows = agent.query()?;
    let topics: Vec<_> = rows.iter().filter_map(|row| row["topic"].as_str()).collect();
    ensure!(topics == ["lab/a", "lab/b c", "lab/d"], "{rows:?}");
    ensure!(rows[0]["value"] == 21.5 && rows[1]["value"] == 1.0 && rows[2]["payload_b64"] == "/wEC", "{rows:?}");
    Ok(())
}

#[test]
fn a_line_without_end_is_cut_off_and_a_thousand_at_once_are_stored() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut agent = Agent::new(dir.path(), "")?;
    agent.start()?;
    let path = dir.path().join("run/telemetry.sock");
    let mut endless = UnixStream::connect(&path)?;
    endless.set_read_timeout(Some(Duration::from_secs(10)))?;
    let _ = endless.write_all(&vec![b'x'; 400 << 10]); // It is cut off in the middle.
    let mut answer = String::new();
    BufReader::new(endless).read_line(&mut answer)?;
    ensure!(answer.starts_with("error the line is over"), "{answer:?}");
    let mut stream = UnixStream::connect(&path)?;
    let lines: String = (0..1000).map(|n| format!("many/{} {n}\n", n % 7)).collect();
    let writer = std::thread::spawn({
        let mut stream = stream.try_clone()?;
        move || stream.write_all(lines.as_bytes())
    });
    let answers: Vec<_> = BufReader::new(&mut stream).lines().take(1000).collect::<Result<_, _>>()?;
    writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
    ensure!(answers.iter().all(|it| it == "ok"), "{answers:?}");
    let rows = agent.query()?;
    let values: Vec<_> = rows.iter().filter_map(|row| row["value"].as_f64()).collect();
    ensure!(values == (0..1000).map(f64::from).collect::<Vec<_>>(), "a thousand lines, in order");
    Ok(())
}

#[test]
fn the_boards_own_figures_are_readings_with_units() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut agent = Agent::new(dir.path(), "interval = \"1s\"\ntopic = \"own/figures\"\n")?;
    let config = dir.path().join("config.toml");
    let text = std::fs::read_to_string(&config)?;
    std::fs::write(&config, text.replace("[board_metrics]\nenabled = false", "[board_metrics]\nenabled = true"))?;
    agent.start()?;
    let figure = |name: &str| -> Option<(f64, String)> {
        let rows = agent.query().ok()?;
        let row = rows.iter().find(|row| row["name"] == name && row["topic"] == "own/figures")?;
        Some((row["value"].as_f64()?, row["unit"].as_str()?.to_owned()))
    };
    wait_until("the first figures", Duration::from_secs(20), || figure("uptime").is_some())?;
    let (cpu, unit) = figure("cpu").context("no cpu")?;
    ensure!((0.0..=1.0).contains(&cpu) && unit == "/", "{cpu} {unit}");
    let (total, unit) = figure("memory_total").context("no memory")?;
    ensure!(total > 1e8 && unit == "B", "{total} {unit}");
    let (free, _) = figure("disk_free").context("no disk")?;
    ensure!(free > 0.0, "{free}");
    Ok(())
}
