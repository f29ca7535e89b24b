//! What a new user does first: run it with nothing, publish, kill it, look.

use std::{collections::BTreeMap, process::Command, time::Duration};

use anyhow::{Result, ensure};
use tests::{Agent, python, wait_until};

fn publish(agent: &Agent, args: &[&str]) -> Result<()> {
    let port = agent.mqtt.to_string();
    let status = Command::new("mosquitto_pub").args(["-p", &port, "-q", "1"]).args(args).status()?;
    ensure!(status.success(), "mosquitto_pub {args:?} failed");
    Ok(())
}

#[test]
fn a_reading_survives_sigkill_right_after_its_puback() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut agent = Agent::new(dir.path(), "")?;
    agent.start()?;
    publish(&agent, &["-t", "lab/temperature", "-m", "21.5"])?;
    agent.kill()?;
    let check = |rows: Vec<serde_json::Value>| {
        ensure!(rows.len() == 1, "{rows:?}");
        ensure!(
            rows[0]["topic"] == "lab/temperature" && rows[0]["payload"] == "21.5" && rows[0]["seq"] == 1,
            "{rows:?}"
        );
        ensure!(rows[0]["value"] == 21.5, "{rows:?}");
        Ok(())
    };
    check(agent.query()?)?; // With no agent running …
    agent.start()?;
    check(agent.query()?)?; // … and with one.
    agent.stop(Duration::from_secs(10))
}

#[test]
fn every_way_in_is_one_numbered_stream() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut agent = Agent::new(dir.path(), "")?;
    agent.start()?;
    publish(&agent, &["-t", "a/mqtt", "-m", "{\"t\": 1.5}"])?;
    publish(&agent, &["-V", "5", "-q", "2", "-t", "a/mqtt5", "-m", "2"])?;
    let url = format!("http://127.0.0.1:{}/v1/telemetry/a/http", agent.http);
    let post = |kind: &str, body: &str| -> Result<String> {
        let header = format!("content-type: {kind}");
        let output =
            Command::new("curl").args(["-s", "-w", "%{http_code}", "-H", &header, "-d", body, &url]).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    ensure!(post("application/json", "{\"t\": 3}")? == "204");
    ensure!(post("application/x-ndjson", "{\"t\": 4}\n{\"t\": 5}\n")? == "204");
    ensure!(post("application/senml+json", r#"[{"n":"probe","u":"Cel","v":6}]"#)? == "204");
    ensure!(agent.command(&["telemetry", "put", "a/cli", "7"])?.status.success());
    let rows = agent.query()?;
    let seqs: Vec<_> = rows.iter().filter_map(|row| row["seq"].as_u64()).collect();
    ensure!(seqs == (1..=7).collect::<Vec<_>>(), "{rows:#?}");
    let values: Vec<_> = rows.iter().filter_map(|row| row["value"].as_f64()).collect();
    ensure!(values == [1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], "{values:?}");
    ensure!(rows[5]["unit"] == "Cel" && rows[5]["name"] == "probe", "{rows:#?}");
    let only = agent.command(&["telemetry", "query", "--topic", "a/+", "--since", "1h", "--json"])?;
    ensure!(String::from_utf8_lossy(&only.stdout).lines().count() == 7);
    let file = dir.path().join("all.parquet").display().to_string();
    let exported = agent.command(&["telemetry", "export", "--format", "parquet", "--output", &file])?;
    ensure!(exported.status.success(), "{}", String::from_utf8_lossy(&exported.stderr));
    let script = format!(
        "import pandas\nframe = pandas.read_parquet('{file}').sort_values('seq')\n\
         print(list(frame['seq']), list(frame['value']), str(frame['time'].dtype))"
    );
    let said = python(&script, &BTreeMap::new())?;
    let want = "[1, 2, 3, 4, 5, 6, 7] [1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0] datetime64[us, UTC]";
    ensure!(said.trim() == want, "{said}");
    Ok(())
}

#[test]
fn a_second_agent_on_the_same_data_says_who_holds_it() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut agent = Agent::new(dir.path(), "")?;
    agent.start()?;
    let second = agent.command(&["--run-dir", "/tmp/edge-agent-none", "run"])?;
    let words = String::from_utf8_lossy(&second.stderr);
    ensure!(second.status.code() == Some(1) && words.contains("process"), "{:?} {words}", second.status);
    Ok(())
}

#[test]
fn programs_on_the_board_hear_each_other() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut agent = Agent::new(dir.path(), "")?;
    agent.start()?;
    let port = agent.mqtt.to_string();
    publish(&agent, &["-t", "room/1/state", "-m", "kept", "-r"])?;
    let listener = Command::new("mosquitto_sub")
        .args([
            "-p",
            &port,
            "-i",
            "listener",
            "-c",
            "-q",
            "1",
            "-t",
            "room/+/state",
            "-t",
            "will/#",
            "-C",
            "3",
            "-W",
            "20",
        ])
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    let subscribed = || {
        let url = format!("http://127.0.0.1:{}/metrics", agent.http);
        let output = Command::new("curl").args(["-s", &url]).output();
        output.is_ok_and(|it| String::from_utf8_lossy(&it.stdout).contains("edge_agent_mqtt_clients 1"))
    };
    wait_until("the listener is there", Duration::from_secs(10), subscribed)?;
    publish(&agent, &["-t", "room/2/state", "-m", "fresh"])?;
    // A client that is killed leaves its will.
    let mut dying = Command::new("mosquitto_sub")
        .args(["-p", &port, "-t", "x", "--will-topic", "will/a", "--will-payload", "gone", "-i", "dying"])
        .spawn()?;
    std::thread::sleep(Duration::from_millis(500));
    dying.kill()?;
    dying.wait()?;
    let output = listener.wait_with_output()?;
    let heard = String::from_utf8_lossy(&output.stdout);
    let mut heard: Vec<_> = heard.lines().collect();
    heard.sort_unstable();
    ensure!(heard == ["fresh", "gone", "kept"], "{heard:?}");
    // Its session lives on, also while the agent is off.
    publish(&agent, &["-t", "room/3/state", "-m", "while you were out"])?;
    agent.stop(Duration::from_secs(10))?;
    agent.start()?;
    let listener = Command::new("mosquitto_sub")
        .args(["-p", &port, "-i", "listener", "-c", "-q", "1", "-t", "room/+/state", "-C", "4", "-W", "3"])
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    let output = listener.wait_with_output()?;
    let heard = String::from_utf8_lossy(&output.stdout);
    ensure!(heard.contains("kept") && heard.contains("while you were out"), "{heard}");
    Ok(())
}
