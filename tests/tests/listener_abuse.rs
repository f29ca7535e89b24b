//! The MQTT listener before bytes that no client sends, and before too much of everything: it says what it has to,
//! closes, counts, stays small, and nobody else notices.

use std::{io::Write, net::TcpStream, time::Duration};

use anyhow::{Context, Result, ensure};
use tests::{
    Agent, Raw,
    raw::{connect, frame, string},
    wait_until,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// A PUBLISH in version 3.1.1.
fn publish(first: u8, topic: &str, id: u16, payload: &[u8]) -> Vec<u8> {
    let id = if first & 6 == 0 { Vec::new() } else { id.to_be_bytes().to_vec() };
    frame(first, &[&string(topic)[..], &id, payload].concat())
}

fn refused(agent: &Agent, reason: &str) -> Result<u64> {
    agent.metric(&format!("edge_agent_mqtt_refused_total{{reason=\"{reason}\"}}"))
}

/// Bytes instead of a CONNECT, and the code of the CONNACK; `None` where there is nothing to say.
fn wrong_greetings() -> Vec<(&'static str, Vec<u8>, Option<u8>)> {
    let patched = |level, at: usize, byte: u8| {
        let mut bytes = connect(level, "c", 2, 9, &[]);
        bytes[at] = byte;
        bytes
    };
    let with = |properties: &[u8]| connect(5, "c", 2, 9, properties);
    let will = |topic: &str| {
        let body = [&[0, 4][..], b"MQTT\x04\x06\0\x09", &string("c"), &string(topic), &string("x")].concat();
        frame(0x10, &body)
    };
    vec![
        ("PUBLISH before CONNECT", publish(0x30, "a", 0, b"x"), None),
        ("PINGREQ before CONNECT", vec![0xc0, 0], None),
        ("a request of another protocol", b"GET / HTTP/1.1\r\n\r\n".to_vec(), None),
        ("level 3", patched(4, 8, 3), Some(1)),
        ("level 6", patched(4, 8, 6), Some(1)),
        ("MQTT 3.1", frame(0x10, b"\0\x06MQIsdp\x03\x02\0\x09\0\x01c"), Some(1)),
        ("another name, 3.1.1", patched(4, 4, b'X'), Some(1)),
        ("flags of the fixed header, 3.1.1", patched(4, 0, 0x11), None),
        ("flags of the fixed header, 5", patched(5, 0, 0x11), Some(0x81)),
        ("the reserved flag, 3.1.1", patched(4, 9, 3), None),
        ("the reserved flag, 5", patched(5, 9, 3), Some(0x81)),
        ("will QoS without a will, 5", patched(5, 9, 0x0a), Some(0x81)),
        ("a password without a user, 3.1.1", patched(4, 9, 0x42), None),
        ("an identifier that is not UTF-8, 5", patched(5, 15, 0xff), Some(0x81)),
        ("an identifier with a NUL, 3.1.1", patched(4, 14, 0), None),
        ("an identifier over 256 bytes, 3.1.1", connect(4, &"c".repeat(300), 2, 9, &[]), Some(2)),
        ("an identifier over 256 bytes, 5", connect(5, &"c".repeat(300), 2, 9, &[]), Some(0x85)),
        ("no identifier and a lasting session", connect(4, "", 0, 9, &[]), Some(2)),
        ("a property twice", with(&[33, 0, 9, 33, 0, 9]), Some(0x82)),
        ("a property of another packet", with(&[35, 0, 9]), Some(0x81)),
        ("a property that is cut off", with(&[33, 0]), Some(0x81)),
        ("receive maximum 0", with(&[33, 0, 0]), Some(0x82)),
        ("maximum packet size 0", with(&[39, 0, 0, 0, 0]), Some(0x82)),
        ("enhanced authentication", with(&[21, 0, 1, b'x']), Some(0x8c)),
        ("a will on a wildcard", will("a/#"), Some(5)),
        ("a will on $SYS", will("$SYS/x"), Some(5)),
        (
            "larger than the limit, 5",
            [&[0x10, 0xff, 0xff, 0x7f][..], &connect(5, "c", 2, 9, &[])[2..]].concat(),
            Some(0x95),
        ),
        ("a length of five bytes", vec![0x10, 0xff, 0xff, 0xff, 0xff, 1], None),
    ]
}

/// A length of one byte.
fn short(bytes: &[u8]) -> u8 {
    u8::try_from(bytes.len()).expect("under 128 bytes")
}

/// Bytes after CONNECT, and the reason of the DISCONNECT in version 5.
fn wrong_packets(level: u8) -> Vec<(&'static str, Vec<u8>, u8)> {
    let v5 = level == 5;
    // Empty properties where version 5 has them.
    let props: &[u8] = if v5 { &[0] } else { &[] };
    let topic = |bytes: &[u8]| frame(0x30, &[&[0, short(bytes)], bytes, props].concat());
    let subscribe =
        |id: u8, filter: &str, options: u8| frame(0x82, &[&[0, id][..], props, &string(filter), &[options]].concat());
    let mut table = vec![
        ("a second CONNECT", connect(level, "c", 2, 9, &[]), 0x82),
        ("PINGREQ with flags", vec![0xc1, 0], 0x81),
        ("PINGREQ with a payload", vec![0xc0, 1, 0], 0x81),
        ("SUBSCRIBE with flags 0", [&[0x80], &subscribe(1, "a", 0)[1..]].concat(), 0x81),
        ("PUBREL with flags 0", vec![0x60, 2, 0, 1], 0x81),
        ("DISCONNECT with flags", vec![0xe1, 0], 0x81),
        ("packet type 0", vec![0, 0], 0x81),
        ("CONNACK from a client", vec![0x20, 2, 0, 0], 0x82),
        ("PINGRESP from a client", vec![0xd0, 0], 0x82),
        ("QoS 3", frame(0x36, &[&string("a")[..], &[0, 1], props].concat()), 0x81),
        ("DUP at QoS 0", frame(0x38, &[&string("a")[..], props].concat()), 0x81),
        ("packet identifier 0 of PUBLISH", frame(0x32, &[&string("a")[..], &[0, 0], props].concat()), 0x82),
        ("packet identifier 0 of SUBSCRIBE", subscribe(0, "a", 0), 0x82),
        ("a topic with #", topic(b"a/#"), 0x81),
        ("a topic with +", topic(b"a/+"), 0x81),
        ("a topic that is not UTF-8", topic(&[b'a', 0xc3, 0x28]), 0x81),
        ("a topic with a surrogate", topic(&[0xed, 0xa0, 0x80]), 0x81),
        ("a topic with a NUL", topic(b"a\0"), 0x81),
        ("no topic", topic(b""), 0x82),
        ("a topic longer than the packet", vec![0x30, 3, 0, 9, b'a'], 0x81),
        ("a topic of 40 levels", topic("/".repeat(40).as_bytes()), 0x90),
        ("SUBSCRIBE without a filter", frame(0x82, &[&[0, 1], props].concat()), 0x82),
        ("SUBSCRIBE at QoS 3", subscribe(1, "a", 3), 0x81),
        ("SUBSCRIBE with reserved bits", subscribe(1, "a", 0xc0), 0x81),
        ("UNSUBSCRIBE without a filter", frame(0xa2, &[&[0, 1], props].concat()), 0x82),
        ("a length of five bytes", vec![0x30, 0xff, 0xff, 0xff, 0xff, 1], 0x81),
        ("a length that is longer than it needs to be", vec![0xc0, 0x80, 0], 0x81),
        ("larger than the limit", vec![0x30, 0xff, 0xff, 0x7f], 0x95),
    ];
    let v5_publish = |properties: &[u8]| frame(0x30, &[&string("a")[..], &[short(properties)], properties].concat());
    if v5 {
        table.extend([
            ("AUTH", vec![0xf0, 0], 0x82),
            ("alias 0", v5_publish(&[35, 0, 0]), 0x94),
            ("alias 33 of 32", v5_publish(&[35, 0, 33]), 0x94),
            ("an alias that is not known", frame(0x30, &[0, 0, 3, 35, 0, 5]), 0x82),
            ("a property twice", v5_publish(&[1, 0, 1, 0]), 0x82),
            ("a property of another packet", v5_publish(&[17, 0, 0, 0, 1]), 0x81),
            ("a property that runs into the payload", frame(0x30, &[0, 1, b'a', 2, 2, 0, 0, 0, 1]), 0x81),
            ("a payload format that is none", v5_publish(&[1, 2]), 0x82),
            ("a subscription identifier from a client", v5_publish(&[11, 1]), 0x82),
            ("a response topic with a wildcard", v5_publish(&[8, 0, 1, b'#']), 0x82),
            ("subscription identifier 0", frame(0x82, &[0, 1, 2, 11, 0, 0, 1, b'a', 0]), 0x82),
            ("SUBSCRIBE with retain handling 3", subscribe(1, "a", 0x30), 0x81),
        ]);
    } else {
        table.push(("packet type 15", vec![0xf0, 0], 0x81));
        table.push(("DISCONNECT with a payload", vec![0xe0, 1, 0], 0x81));
    }
    table
}

#[test]
fn wrong_bytes_are_answered_closed_and_counted_and_nobody_else_notices() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut agent = Agent::new(dir.path(), "")?;
    agent.start()?;
    let mut other = Raw::connect(agent.mqtt, 4, "other", 2, 0, &[])?;
    let mut sent = 0;
    let mut publish_beside = || -> Result<()> {
        sent += 1;
        other.send(&publish(0x32, "beside", sent, b"1"))?;
        ensure!(other.expect(0x40)? == sent.to_be_bytes());
        Ok(())
    };
    for (what, bytes, code) in wrong_greetings() {
        let mut client = Raw::open(agent.mqtt)?;
        client.send(&bytes)?;
        let answer = client.packet().context(what)?;
        let got = answer.as_ref().map(|(first, body)| (*first, body.get(1).copied()));
        ensure!(got == code.map(|code| (0x20, Some(code))), "{what}: {answer:02x?} instead of {code:02x?}");
        ensure!(answer.is_none() || client.packet()?.is_none(), "{what}: not closed");
        publish_beside().context(what)?;
    }
    let reasons = ["connect", "will", "client id"];
    let mut counted = 0;
    for reason in reasons {
        counted += refused(&agent, reason)?;
    }
    ensure!(counted == u64::try_from(wrong_greetings().len())?, "{counted} refused");
    for level in [4, 5] {
        for (what, bytes, reason) in wrong_packets(level) {
            let what = format!("{what}, level {level}");
            let before = refused(&agent, "packet")?;
            let mut client = Raw::connect(agent.mqtt, level, "c", 2, 0, &[]).context(what.clone())?;
            client.send(&bytes)?;
            let answer = client.packet().context(what.clone())?;
            let wanted = (level == 5).then(|| (0xe0, vec![reason, 0]));
            ensure!(answer == wanted, "{what}: {answer:02x?} instead of {wanted:02x?}");
            ensure!(client.packet()?.is_none(), "{what}: not closed");
            ensure!(refused(&agent, "packet")? == before + 1, "{what}: not counted");
            publish_beside().context(what)?;
        }
    }
    // Bytes that are cut off say nothing yet, and are nothing when they end.
    for cut in 1..20 {
        let mut client = Raw::open(agent.mqtt)?;
        client.send(&[connect(5, "cut", 2, 0, &[]), publish(0x30, "cut", 0, b"\0x")].concat()[..cut])?;
        client.cut()?;
    }
    publish_beside()?;
    let rows = agent.query()?;
    ensure!(rows.len() == usize::from(sent) && rows.iter().all(|row| row["topic"] == "beside"), "{}", rows.len());
    wait_until("they are gone", PATIENCE, || agent.metric("edge_agent_mqtt_clients").is_ok_and(|it| it == 1))
}

#[test]
fn more_open_messages_than_the_receive_maximum_end_the_connection() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut agent = Agent::new(dir.path(), "")?;
    agent.start()?;
    let mut client = Raw::open(agent.mqtt)?;
    client.send(&connect(5, "c", 2, 0, &[]))?;
    let welcome = client.expect(0x20)?;
    // Property 33; it is announced before the others that have it as a byte of their value.
    let at = welcome.iter().position(|byte| *byte == 33).context("no receive maximum")?;
    let allowed = u16::from_be_bytes([welcome[at + 1], welcome[at + 2]]);
    for id in 1..=allowed + 1 {
        client.send(&frame(0x34, &[&string("a")[..], &id.to_be_bytes(), &[0]].concat()))?;
    }
    for _ in 0..allowed {
        client.expect(0x50)?;
    }
    ensure!(client.expect(0xe0)? == [0x93, 0]);
    ensure!(client.packet()?.is_none());
    Ok(())
}

#[test]
fn two_hundred_at_once_and_then_no_more() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut agent = Agent::new(dir.path(), "")?.mqtt_options("max_connections = 200")?;
    agent.start()?;
    let mut clients = Vec::new();
    for n in 0..200 {
        let mut client = Raw::open(agent.mqtt)?;
        client.send(&connect(4 + n % 2, &format!("client-{n}"), 2, 0, &[]))?;
        clients.push(client);
    }
    for (n, client) in clients.iter_mut().enumerate() {
        client.expect(0x20)?;
        let props: &[u8] = if n % 2 == 1 { &[0] } else { &[] };
        client.send(&frame(0x32, &[&string("load")[..], &[0, 1], props, b"1"].concat()))?;
    }
    for client in &mut clients {
        client.expect(0x40)?;
    }
    ensure!(agent.query()?.len() == 200);
    ensure!(agent.metric("edge_agent_mqtt_clients")? == 200);
    let mut one_more = Raw::open(agent.mqtt)?;
    ensure!(one_more.packet()?.is_none());
    ensure!(refused(&agent, "too many connections")? == 1);
    clients.pop().context("none")?.cut()?;
    wait_until("there is room again", PATIENCE, || Raw::connect(agent.mqtt, 4, "late", 2, 0, &[]).is_ok())?;
    agent.stop(PATIENCE)
}

/// Memory that the agent may take for a client that does not read: its channel, its output, the sockets' buffers.
const ROOM: usize = 12 << 20;

#[test]
fn who_does_not_read_costs_little_and_holds_nobody_up() -> Result<()> {
    let (dir, big) = (tempfile::tempdir()?, vec![b'x'; 200_000]);
    // What is heard here is not kept: the disk has no part in it.
    let mut agent = Agent::new(dir.path(), "[outbox]\ntopics = [\"kept/#\"]\n")?;
    agent.start()?;
    let mut sender = Raw::connect(agent.mqtt, 4, "sender", 2, 0, &[])?;
    // Retained messages to be sent again for each of many subscriptions.
    for n in 0..200_u16 {
        sender.send(&publish(0x33, &format!("retained/{n}"), n + 1, &[b'x'; 8000]))?;
        sender.expect(0x40)?;
    }
    sender.send(&publish(0x32, "big", 1, &big))?;
    sender.expect(0x40)?;
    let before = agent.resident()?;
    let mut idle = Raw::connect(agent.mqtt, 4, "idle", 0, 0, &[])?;
    let subscribe = |filter: &str| frame(0x82, &[&[0, 1][..], &string(filter), &[0]].concat());
    idle.send(&[subscribe("big"), subscribe("retained/#").repeat(300)].concat())?;
    idle.expect(0x90)?;
    for id in 1..=300 {
        sender.send(&publish(0x32, "big", id, &big))?;
        sender.expect(0x40)?;
    }
    let after = agent.resident()?;
    ensure!(after < before + ROOM, "{} KiB for one that does not read", (after - before) >> 10);
    ensure!(agent.metric("edge_agent_router_dropped_total")? > 0);
    // It was held back, not cut off: when it reads it goes on, and is answered.
    for _ in 0..400 {
        idle.packet()?.context("cut off")?;
    }
    // One that never reads again delays neither its own next connection nor a stop.
    for _ in 0..100 {
        sender.send(&publish(0x30, "big", 0, &big))?;
    }
    sender.send(&publish(0x32, "big", 1, b"last"))?;
    sender.expect(0x40)?;
    let second = Raw::connect(agent.mqtt, 4, "idle", 0, 0, &[]).context("its next connection")?;
    drop((idle, second));
    let mut third = Raw::connect(agent.mqtt, 4, "third", 0, 0, &[])?;
    third.send(&subscribe("big"))?;
    third.expect(0x90)?;
    for _ in 0..100 {
        sender.send(&publish(0x30, "big", 0, &big))?;
    }
    sender.send(&publish(0x32, "big", 1, b"last"))?;
    sender.expect(0x40)?;
    agent.stop(Duration::from_secs(20))
}

#[test]
fn a_packet_at_the_limit_is_taken_whole_and_in_crumbs() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut agent = Agent::new(dir.path(), "")?.mqtt_options("max_packet = \"1KiB\"")?;
    agent.start()?;
    // 3 bytes of fixed header, 3 of topic, 2 of identifier.
    for (payload, fits) in [(1024 - 8, true), (1024 - 7, false)] {
        let mut client = Raw::connect(agent.mqtt, 5, "c", 2, 0, &[])?;
        let body = [&string("t")[..], &[0, 1, 0], &vec![b'1'; payload - 1]].concat();
        for crumb in frame(0x32, &body).chunks(100) {
            if client.send(crumb).is_err() {
                break; // It was refused by its length, before it was whole.
            }
        }
        match client.packet()?.context("closed")? {
            (0x40, _) => ensure!(fits),
            (0xe0, body) => ensure!(!fits && body == [0x95, 0], "{body:02x?}"),
            other => anyhow::bail!("{other:02x?}"),
        }
    }
    ensure!(agent.query()?.len() == 1);
    // Slowly, byte by byte.
    let mut stream = TcpStream::connect(("127.0.0.1", agent.mqtt))?;
    stream.set_nodelay(true)?;
    for byte in [connect(4, "slow", 2, 0, &[]), publish(0x30, "slow", 0, b"1")].concat() {
        stream.write_all(&[byte])?;
    }
    wait_until("it is stored", PATIENCE, || agent.query().is_ok_and(|rows| rows.len() == 2))
}
