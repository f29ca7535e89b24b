//! The MQTT listener before real clients: paho in both versions (`listener.py`), mosquitto's tools, and a client that
//! looks at single packets.
//!
//! Elsewhere: who is let in (`listener_tls.rs`); bytes that no client sends, and too much of everything
//! (`listener_abuse.rs`).

use std::{
    collections::BTreeMap,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use tests::{
    Agent, Raw, python,
    raw::{frame, string},
    wait_until,
};

fn agent(dir: &tempfile::TempDir) -> Result<Agent> {
    let mut agent = Agent::new(dir.path(), "")?;
    agent.start()?;
    Ok(agent)
}

/// Runs one scenario of `listener.py`, in each of the versions.
fn paho(scenario: &str, versions: &[u8]) -> Result<()> {
    for version in versions {
        let dir = tempfile::tempdir()?;
        let agent = agent(&dir)?;
        let env = [("SCENARIO", scenario.into()), ("VERSION", version.to_string()), ("PORT", agent.mqtt.to_string())];
        let env: BTreeMap<_, _> = env.into_iter().map(|(key, value): (&str, String)| (key.to_owned(), value)).collect();
        python(include_str!("listener.py"), &env)
            .with_context(|| format!("{scenario} in version {version}\n{}", agent.log()))?;
    }
    Ok(())
}

#[test]
fn every_qos_in_and_out() -> Result<()> {
    paho("every_qos", &[4, 5])
}

#[test]
fn sessions_wait_for_their_clients_and_end() -> Result<()> {
    paho("sessions", &[4, 5])
}

#[test]
fn the_same_client_again_takes_over() -> Result<()> {
    paho("take_over", &[4, 5])
}

#[test]
fn wills_come_when_they_are_due() -> Result<()> {
    paho("wills", &[4, 5])
}

#[test]
fn retained_messages_are_set_replaced_cleared_and_sent_as_asked_for() -> Result<()> {
    paho("retained", &[4, 5])
}

#[test]
fn filters_match_what_the_specification_says() -> Result<()> {
    paho("filters", &[4, 5])
}

#[test]
fn what_version_5_says_about_a_message_travels_with_it() -> Result<()> {
    paho("said_about_a_message", &[5])
}

/// A PUBLISH in version 3.1.1.
fn publish(first: u8, topic: &str, id: u16, payload: &str) -> Vec<u8> {
    let id = if first & 6 == 0 { Vec::new() } else { id.to_be_bytes().to_vec() };
    frame(first, &[string(topic), id, payload.into()].concat())
}

fn subscribe(client: &mut Raw, filter: &str, qos: u8) -> Result<()> {
    client.send(&frame(0x82, &[&[0, 1][..], &string(filter), &[qos]].concat()))?;
    client.expect(0x90).map(drop)
}

#[test]
fn what_comes_right_before_the_end_of_a_connection_is_stored() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let agent = agent(&dir)?;
    // mosquitto_pub at QoS 0 sends CONNECT, and after the CONNACK PUBLISH and DISCONNECT together.
    for version in ["mqttv311", "mqttv5"] {
        let port = agent.mqtt.to_string();
        let args = ["-p", &port, "-V", version, "-q", "0", "-t", "last/words", "-m", version];
        ensure!(Command::new("mosquitto_pub").args(args).status()?.success());
    }
    for (n, end) in [&[0xe0, 0][..], &[], &[0xff, 0]].into_iter().enumerate() {
        let mut client = Raw::connect(agent.mqtt, 4, &format!("client-{n}"), 2, 0, &[])?;
        client.send(&[&publish(0x30, "last/words", 0, &n.to_string())[..], end].concat())?;
        client.cut()?;
    }
    let mut stored = Vec::new();
    wait_until("all are stored", Duration::from_secs(20), || {
        let rows = agent.query().unwrap_or_default();
        stored = rows.iter().map(|row| row["payload"].as_str().unwrap_or_default().to_owned()).collect();
        stored.len() == 5
    })
    .with_context(|| format!("{stored:?}"))
}

#[test]
fn mosquittos_tools_publish_and_hear() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let agent = agent(&dir)?;
    let port = agent.mqtt.to_string();
    for version in ["mqttv311", "mqttv5"] {
        for qos in ["0", "1", "2"] {
            let common = ["-p", &port, "-V", version, "-q", qos];
            let topic = format!("{version}/{qos}");
            let args = ["-r", "-t", &topic, "-m", &topic];
            ensure!(Command::new("mosquitto_pub").args(common).args(args).status()?.success(), "{topic}");
            // Retained: it is heard however late the subscription is, or early where nobody waited for the message.
            let args = ["-t", &topic, "-C", "1", "-W", "20", "-F", "%q %p"];
            let output = Command::new("mosquitto_sub").args(common).args(args).output()?;
            let heard = String::from_utf8_lossy(&output.stdout);
            ensure!(heard.trim() == format!("{qos} {topic}"), "{topic}: {heard}");
        }
    }
    Ok(())
}

#[test]
fn qos_2_goes_on_where_the_connection_broke() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let agent = agent(&dir)?;
    let mut sender = Raw::connect(agent.mqtt, 4, "sender", 0, 0, &[])?;
    let mut client = Raw::connect(agent.mqtt, 4, "client", 0, 0, &[])?;
    subscribe(&mut client, "a", 2)?;
    // In: sent again after a break it is acknowledged again and is the same message; its identifier then serves a new one.
    sender.send(&publish(0x34, "a", 7, "one"))?;
    sender.expect(0x50)?;
    sender.cut()?;
    let mut sender = Raw::connect(agent.mqtt, 4, "sender", 0, 0, &[])?;
    sender.send(&publish(0x3c, "a", 7, "one"))?;
    sender.expect(0x50)?;
    sender.send(&[0x62, 2, 0, 7])?;
    sender.expect(0x70)?;
    sender.send(&publish(0x34, "a", 7, "two"))?;
    sender.expect(0x50)?;
    // One without DUP is new, whatever the agent remembers: its release was lost with an agent that crashed.
    sender.cut()?;
    let mut sender = Raw::connect(agent.mqtt, 4, "sender", 0, 0, &[])?;
    sender.send(&publish(0x34, "b", 7, "three"))?;
    sender.expect(0x50)?;
    let rows = agent.query()?;
    ensure!(rows.iter().map(|row| row["payload"].as_str().unwrap_or_default()).eq(["one", "two", "three"]), "{rows:?}");
    // Out: the first was received and its release is lost, the second is lost itself; each keeps its identifier.
    let id = |body: &[u8]| [body[3], body[4]];
    let one = id(&client.expect(0x34)?);
    let two = id(&client.expect(0x34)?);
    client.send(&[0x50, 2, one[0], one[1]])?;
    client.expect(0x62)?;
    // Taken over while it is there, too: the former connection hands over what it had not finished.
    let former = client;
    for round in 0..2 {
        let mut client = Raw::connect(agent.mqtt, 4, "client", 0, 0, &[])?;
        ensure!(client.expect(0x62)? == one, "round {round}");
        let again = client.expect(0x3c)?;
        ensure!(id(&again) == two && again.ends_with(b"two"), "round {round}: {again:?}");
        client.cut()?;
    }
    drop(former);
    let mut client = Raw::connect(agent.mqtt, 4, "client", 0, 0, &[])?;
    client.expect(0x62)?;
    client.expect(0x3c)?;
    for (first, id) in [(0x70, one), (0x50, two)] {
        client.send(&[first, 2, id[0], id[1]])?;
    }
    ensure!(client.expect(0x62)? == two);
    client.send(&[0x70, 2, two[0], two[1]])?;
    ensure!(client.until_quiet()?.is_empty());
    Ok(())
}

#[test]
fn unacknowledged_messages_survive_a_restart_of_the_agent() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut agent = agent(&dir)?;
    let mut sender = Raw::connect(agent.mqtt, 4, "sender", 2, 0, &[])?;
    let mut client = Raw::connect(agent.mqtt, 4, "client", 0, 0, &[])?;
    subscribe(&mut client, "#", 1)?;
    sender.send(&publish(0x32, "a", 1, "open"))?;
    sender.expect(0x40)?;
    let before = client.expect(0x32)?;
    agent.stop(Duration::from_secs(15))?;
    agent.start()?;
    let mut client = Raw::connect(agent.mqtt, 4, "client", 0, 0, &[])?;
    ensure!(client.expect(0x3a)? == before);
    Ok(())
}

#[test]
fn no_more_is_on_its_way_to_a_client_than_it_allows() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let agent = agent(&dir)?;
    for (qos, receive_max) in [(1, 3), (2, 1), (2, 10)] {
        let mut sender = Raw::connect(agent.mqtt, 4, "sender", 2, 0, &[])?;
        let mut client = Raw::connect(agent.mqtt, 5, "client", 2, 0, &[33, 0, receive_max])?;
        client.send(&frame(0x82, &[&[0, 1, 0][..], &string("a"), &[qos]].concat()))?;
        client.expect(0x90)?;
        for id in 1..=20 {
            sender.send(&publish(0x30 | qos << 1, "a", id, "x"))?;
            sender.expect(if qos == 1 { 0x40 } else { 0x50 })?;
        }
        let mut open: Vec<[u8; 2]> = Vec::new();
        let mut heard = 0;
        while heard < 20 {
            for (first, body) in client.until_quiet()? {
                ensure!(first == 0x30 | qos << 1, "{first:02x}");
                open.push([body[3], body[4]]);
                heard += 1;
            }
            ensure!(open.len() <= usize::from(receive_max), "{} at once, {receive_max} allowed", open.len());
            ensure!(heard == 20 || open.len() == usize::from(receive_max), "{heard} heard, {} open", open.len());
            let id = open.remove(0);
            client.send(&[if qos == 1 { 0x40 } else { 0x50 }, 2, id[0], id[1]])?;
            if qos == 2 {
                // Received is not done: until the PUBCOMP it counts.
                let packets = client.until_quiet()?;
                ensure!(packets == [(0x62, id.to_vec())], "{packets:?}");
                client.send(&[0x70, 2, id[0], id[1]])?;
            }
        }
    }
    Ok(())
}

#[test]
fn a_silent_client_is_cut_off_also_while_it_hears_others() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let agent = agent(&dir)?;
    let mut sender = Raw::connect(agent.mqtt, 4, "sender", 2, 0, &[])?;
    let begun = Instant::now();
    let mut silent = Raw::connect(agent.mqtt, 5, "silent", 2, 1, &[])?;
    silent.send(&frame(0x82, &[&[0, 1, 0][..], &string("a"), &[0]].concat()))?;
    silent.expect(0x90)?;
    let mut alive = Raw::connect(agent.mqtt, 5, "alive", 2, 1, &[])?;
    let end = loop {
        sender.send(&publish(0x32, "a", 1, "x"))?;
        sender.expect(0x40)?;
        // Under one and a half seconds by far, whatever else this machine does.
        alive.send(&[0xc0, 0])?;
        alive.expect(0xd0)?;
        match silent.packet()?.context("closed without a DISCONNECT")? {
            (0x30, _) => ensure!(begun.elapsed() < Duration::from_secs(15), "a silent client stays"),
            end => break end,
        }
    };
    ensure!(end == (0xe0, vec![0x8d, 0]), "{end:02x?}");
    ensure!(begun.elapsed() >= Duration::from_millis(1500), "cut off after {:?}", begun.elapsed());
    ensure!(silent.packet()?.is_none());
    ensure!(agent.metric("edge_agent_mqtt_refused_total{reason=\"keep-alive\"}")? == 1);
    alive.until_quiet().map(drop)
}
