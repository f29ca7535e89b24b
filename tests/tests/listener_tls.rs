//! Who is let in by the MQTT listener, and what for: users, their filters, client certificates, other machines.

use std::{
    collections::BTreeMap,
    net::TcpStream,
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use tests::{
    Agent, Certificates, Raw, free_port, python,
    raw::{frame, string},
    wait_until,
};

/// CONNECT with a name and a password; answers with the code of the CONNACK.
fn login(port: u16, level: u8, client: &str, login: Option<(&str, &str)>) -> Result<(Raw, u8)> {
    let mut raw = Raw::open(port)?;
    raw.send(&hello(level, client, login))?;
    let code = raw.expect(0x20)?[1];
    Ok((raw, code))
}

fn hello(level: u8, client: &str, login: Option<(&str, &str)>) -> Vec<u8> {
    let flags = if login.is_some() { 0xc2 } else { 2 };
    let login = login.map(|(name, password)| [string(name), string(password)].concat()).unwrap_or_default();
    let properties: &[u8] = if level == 5 { &[0] } else { &[] };
    frame(0x10, &[b"\0\x04MQTT", &[level, flags, 0, 0][..], properties, &string(client), &login].concat())
}

const USERS: &str = r#"
[mqtt.users.ann]
password = "plain"
publish = ["lab/#", "own/+/x"]
subscribe = ["cmd/#"]
[mqtt.users.bob]
password = "pbkdf2-sha256$1000$c2FsdA==$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
[mqtt.users.reader]
password = "r"
publish = []
[mqtt.users.board-1]
publish = ["from/board-1/#"]
subscribe = []
"#;

#[test]
fn users_come_in_by_password_and_keep_to_their_filters() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut agent = Agent::new(dir.path(), USERS)?;
    agent.start()?;
    // Name and password, and the codes of 3.1.1 and 5.
    let logins = [
        (Some(("ann", "plain")), 0, 0),
        (Some(("ann", "Plain")), 4, 0x86),
        (Some(("bob", "wrong")), 4, 0x86),
        (Some(("board-1", "")), 4, 0x86), // Only by certificate.
        (Some(("nobody", "plain")), 4, 0x86),
        (None, 5, 0x87),
    ];
    for (who, old, new) in logins {
        for (level, want) in [(4, old), (5, new)] {
            let (mut raw, got) = login(agent.mqtt, level, "c", who)?;
            ensure!(got == want, "{who:?}, level {level}: {got:02x} instead of {want:02x}");
            ensure!(got == 0 || raw.packet()?.is_none(), "{who:?}, level {level}: not closed");
        }
    }
    ensure!(agent.metric("edge_agent_mqtt_refused_total{reason=\"login\"}")? == 10);
    let topics = [("lab", true), ("lab/a/b", true), ("own/1/x", true), ("own/1/y", false), ("cmd/x", false)];
    for (topic, allowed) in topics {
        for (level, qos) in [(4, 1), (4, 2), (5, 1), (5, 2)] {
            let (mut ann, _) = login(agent.mqtt, level, "ann", Some(("ann", "plain")))?;
            let properties: &[u8] = if level == 5 { &[0] } else { &[] };
            let body = [&string(topic)[..], &[0, 9], properties, if allowed { b"1" } else { b"0" }].concat();
            ann.send(&frame(0x30 | qos << 1, &body))?;
            let answer = ann.expect(if qos == 1 { 0x40 } else { 0x50 })?;
            // 3.1.1 cannot refuse a message: it is acknowledged, and nobody hears it.
            let want: &[u8] = if allowed || level == 4 { &[0, 9] } else { &[0, 9, 0x87] };
            ensure!(answer == want, "{topic}, level {level}, QoS {qos}: {answer:02x?}");
        }
    }
    let rows = agent.query()?;
    ensure!(rows.len() == 12 && rows.iter().all(|row| row["value"] == 1.0), "{rows:#?}");
    let filters = [("cmd/#", true), ("cmd/+/x", true), ("cmd", true), ("#", false), ("+/x", false), ("lab/#", false)];
    for (filter, allowed) in filters {
        for (level, refusal) in [(4, 0x80), (5, 0x87)] {
            let (mut ann, _) = login(agent.mqtt, level, "ann", Some(("ann", "plain")))?;
            let properties: &[u8] = if level == 5 { &[0] } else { &[] };
            ann.send(&frame(0x82, &[&[0, 1], properties, &string(filter), &[1]].concat()))?;
            let code = ann.expect(0x90)?.pop().context("empty")?;
            ensure!(code == if allowed { 1 } else { refusal }, "{filter}, level {level}: {code:02x}");
        }
    }
    // A will is a message like any other.
    let mut reader = Raw::open(agent.mqtt)?;
    let will = [&b"\0\x04MQTT\x04\xc6\0\0"[..], &string("w"), &string("lab/x"), &string(""), &string("reader")];
    reader.send(&frame(0x10, &[&will.concat()[..], &string("r")].concat()))?;
    ensure!(reader.expect(0x20)?[1] == 5);
    Ok(())
}

#[test]
fn guessing_passwords_is_slow_and_hits_only_the_user_it_is_about() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut agent = Agent::new(dir.path(), USERS)?;
    agent.start()?;
    for _ in 0..5 {
        ensure!(login(agent.mqtt, 5, "c", Some(("reader", "guess")))?.1 == 0x86);
        ensure!(login(agent.mqtt, 5, "c", Some(("nobody", "guess")))?.1 == 0x86);
    }
    for who in ["reader", "nobody", "somebody"] {
        ensure!(login(agent.mqtt, 5, "c", Some((who, "r")))?.1 == 0x89, "{who} may go on");
    }
    ensure!(login(agent.mqtt, 5, "c", Some(("ann", "plain")))?.1 == 0);
    let again = || login(agent.mqtt, 5, "c", Some(("reader", "r"))).is_ok_and(|(_, code)| code == 0);
    wait_until("the reader may try again", Duration::from_secs(20), again)
}

struct Tls {
    agent: Agent,
    port: u16,
    ours: Certificates,
    strangers: Certificates,
}

fn with_tls(dir: &Path, options: &str, more: &str) -> Result<Tls> {
    let (ours, strangers) = (Certificates::make(&dir.join("ours"))?, Certificates::make(&dir.join("strangers"))?);
    let port = free_port()?;
    let lines = format!(
        "listen_tls = [\"127.0.0.1:{port}\"]\ntls_cert = \"{}\"\ntls_key = \"{}\"\n{}",
        ours.server.0.display(),
        ours.server.1.display(),
        options.replace("OUR_CA", &ours.ca.display().to_string())
    );
    let mut agent = Agent::new(dir, more)?.mqtt_options(&lines)?;
    agent.start()?;
    Ok(Tls { agent, port, ours, strangers })
}

impl Tls {
    fn publish(&self, args: &[&str], pair: Option<&Certificates>, ca: &Certificates) -> Result<Output> {
        let port = self.port.to_string();
        let mut command = Command::new("mosquitto_pub");
        command.args(["-h", "localhost", "-p", &port, "-q", "1", "-V", "5", "-m", "1", "--cafile"]).arg(&ca.ca);
        if let Some(pair) = pair {
            command.arg("--cert").arg(&pair.client.0).arg("--key").arg(&pair.client.1);
        }
        command.args(args).output().context("mosquitto_pub is missing: install mosquitto-clients")
    }
}

#[test]
fn certificates_are_wanted_and_give_a_name() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let tls = with_tls(dir.path(), "client_ca = \"OUR_CA\"", "")?;
    let stored = |topics: &[&str]| -> Result<()> {
        let rows = tls.agent.query()?;
        ensure!(
            rows.iter().map(|row| row["topic"].as_str().unwrap_or_default()).eq(topics.iter().copied()),
            "{rows:?}"
        );
        Ok(())
    };
    ensure!(tls.publish(&["-t", "with"], Some(&tls.ours), &tls.ours)?.status.success());
    stored(&["with"])?;
    let refused = || tls.agent.metric("edge_agent_mqtt_refused_total{reason=\"tls\"}");
    let table = [
        ("no certificate", None, &tls.ours),
        ("one of an unknown CA", Some(&tls.strangers), &tls.ours),
        ("a client that does not know our CA", Some(&tls.ours), &tls.strangers),
    ];
    for (n, (what, pair, ca)) in table.into_iter().enumerate() {
        ensure!(!tls.publish(&["-t", "without"], pair, ca)?.status.success(), "{what} was let in");
        let counted = u64::try_from(n)? + 1;
        wait_until(what, Duration::from_secs(20), || refused().is_ok_and(|it| it == counted))?;
    }
    // Plain bytes at the TLS port, and nothing at all.
    let mut plain = Raw::open(tls.port)?;
    plain.send(&hello(4, "plain", None))?;
    while let Some((first, _)) = plain.packet().unwrap_or_default() {
        ensure!(first != 0x20, "let in without TLS");
    }
    TcpStream::connect(("127.0.0.1", tls.port))?;
    stored(&["with"])
}

#[test]
fn over_tls_passwords_do_as_well_and_certificates_obey_their_filters() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let tls = with_tls(dir.path(), "client_ca = \"OUR_CA\"", USERS)?;
    let ann = ["-u", "ann", "-P", "plain"];
    let table: [(&str, &[&str], Option<&Certificates>, bool); 7] = [
        ("lab/1", &ann, None, true),
        ("other", &ann, None, false),
        ("lab/2", &["-u", "ann", "-P", "wrong"], None, false),
        ("lab/3", &[], None, false),
        ("from/board-1/x", &[], Some(&tls.ours), true),
        ("from/board-2/x", &[], Some(&tls.ours), false),
        // The name of the certificate counts, not the one that is given with it.
        ("lab/4", &ann, Some(&tls.ours), false),
    ];
    for (topic, args, pair, allowed) in table {
        tls.publish(&[&["-t", topic], args].concat(), pair, &tls.ours)?;
        let rows = tls.agent.query()?;
        ensure!(rows.iter().any(|row| row["topic"] == topic) == allowed, "{topic}: {rows:?}");
    }
    // Users' certificates are not needed, but wrong ones are wrong.
    ensure!(!tls.publish(&[&["-t", "lab/5"], &ann[..]].concat(), Some(&tls.strangers), &tls.ours)?.status.success());
    Ok(())
}

#[test]
fn a_lot_comes_through_tls_whole() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let tls = with_tls(dir.path(), "", USERS)?;
    let script = r#"
import os, ssl, threading, paho.mqtt.client as paho
context = ssl.create_default_context(cafile=os.environ["CA"])
def client(name, password):
    it = paho.Client(paho.CallbackAPIVersion.VERSION2, name)
    it.tls_set_context(context)
    it.username_pw_set(name, password)
    it.connect("localhost", int(os.environ["PORT"]))
    it.loop_start()
    return it
done, heard = threading.Event(), []
def on_message(_client, _data, message):
    heard.append((message.topic, len(message.payload)))
    if len(heard) == 20:
        done.set()
ann, reader = client("ann", "plain"), client("reader", "r")
for n in range(20):
    ann.publish(f"lab/{n}", bytes(100_000), 1, True).wait_for_publish(20)
reader.on_message = on_message
reader.subscribe("lab/#", 0)
assert done.wait(20), len(heard)
assert sorted(heard) == sorted((f"lab/{n}", 100_000) for n in range(20))
"#;
    let env = [("CA", tls.ours.ca.display().to_string()), ("PORT", tls.port.to_string())];
    python(script, &env.map(|(key, value)| (key.to_owned(), value)).into_iter().collect::<BTreeMap<_, _>>()).map(drop)
}

#[test]
fn nobody_comes_in_unnamed_from_another_machine() -> Result<()> {
    let dir = tempfile::tempdir()?;
    // Without users such an address is refused at the start.
    let port = free_port()?;
    let options = format!("listen = [\"0.0.0.0:{port}\"]");
    let open = |dir: &Path, more: &str| -> Result<Agent> {
        let agent = Agent::new(dir, more)?;
        let config = dir.join("config.toml");
        let text =
            std::fs::read_to_string(&config)?.replace(&format!("listen = [\"127.0.0.1:{}\"]", agent.mqtt), &options);
        std::fs::write(&config, text)?;
        Ok(agent)
    };
    let output = open(dir.path(), "")?.command(&["run"])?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && words.contains("reachable from other machines"), "{words}");
    // With users a name is wanted there as everywhere.
    let mut agent = open(dir.path(), USERS)?;
    agent.start()?;
    ensure!(login(port, 5, "c", None)?.1 == 0x87);
    ensure!(login(port, 5, "c", Some(("ann", "plain")))?.1 == 0);
    Ok(())
}
