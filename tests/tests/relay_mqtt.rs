//! The MQTT relay before a real mosquitto: what arrives at the core, in which order, and what must not.

use std::{
    collections::{BTreeMap, HashSet},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use tests::{Agent, Certificates, Heard, Mosquitto, Raw, python, wait_until};

const PATIENCE: Duration = Duration::from_secs(30);

struct Core {
    dir: tempfile::TempDir,
    certificates: Certificates,
    broker: Mosquitto,
}

impl Core {
    fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let certificates = Certificates::make(&dir.path().join("certificates"))?;
        // The subscriber needs longer than the agent to return after a restart.
        let broker = Mosquitto::start_with(&dir.path().join("core"), &certificates, "queue_qos0_messages true")?;
        Ok(Self { dir, certificates, broker })
    }

    /// An agent that speaks TLS 1.3 to it with a client certificate.
    fn agent(&self, more: &str) -> Result<Agent> {
        let relay = format!(
            "[relay.mqtt]\nurl = \"mqtts://localhost:{}\"\nca_file = \"{}\"\ncert_file = \"{}\"\nkey_file = \"{}\"\n{more}",
            self.broker.tls_port,
            self.certificates.ca.display(),
            self.certificates.client.0.display(),
            self.certificates.client.1.display()
        );
        self.any_agent(&relay)
    }

    /// One that speaks plainly.
    fn plain_agent(&self, more: &str) -> Result<Agent> {
        self.any_agent(&format!("[relay.mqtt]\nurl = \"mqtt://127.0.0.1:{}\"\n{more}", self.broker.plain_port()))
    }

    fn any_agent(&self, configuration: &str) -> Result<Agent> {
        let dir = tempfile::tempdir_in(self.dir.path())?.keep();
        let mut agent = Agent::new(&dir, configuration)?;
        agent.start()?;
        Ok(agent)
    }

    /// What the core has heard once it has heard this many different payloads.
    fn heard(&self, distinct: usize) -> Result<Vec<Heard>> {
        let count = || self.broker.heard().map_or(0, |all| all.into_iter().collect::<HashSet<_>>().len());
        let enough = wait_until("the core hears everything", PATIENCE, || count() >= distinct);
        enough.with_context(|| format!("{} of {distinct}", count()))?;
        self.broker.messages()
    }
}

/// Bytes that are all sorts of things: text, none, NUL, not UTF-8.
fn payload(n: u32) -> Vec<u8> {
    let mut bytes = format!("{n} ").into_bytes();
    bytes.extend_from_slice([&b""[..], b"text \xc3\xa4", b"\0\xff\xfe\n", b"{\"a\":1}"][n as usize % 4]);
    bytes
}

fn connected(agent: &Agent) -> Result<()> {
    let up = || agent.metric("edge_agent_relay_mqtt_connected").is_ok_and(|it| it == 1);
    wait_until("the relay is connected", PATIENCE, up).with_context(|| agent.log())
}

/// Payloads by topic, each at its first occurrence.
fn by_topic(heard: Vec<Heard>) -> BTreeMap<String, Vec<Vec<u8>>> {
    let mut seen = HashSet::new();
    let mut topics = BTreeMap::<_, Vec<_>>::new();
    for message in heard {
        if seen.insert(message.payload.clone()) {
            topics.entry(message.topic).or_default().push(message.payload);
        }
    }
    topics
}

#[test]
fn bridge_mode_at_each_qos_through_a_lost_link_and_a_restarted_broker() -> Result<()> {
    for qos in 0..3 {
        let mut core = Core::start()?;
        let agent = core.agent(&format!("prefix = \"site/a\"\nqos = {qos}\n"))?;
        connected(&agent)?;
        let topics = ["lab/t", "lab/h", "äther"];
        let readings = |range: std::ops::Range<u32>| range.map(|n| (topics[n as usize % 3], payload(n)));
        agent.put(readings(0..300))?;
        core.heard(300)?;
        core.broker.pause()?;
        wait_until("the relay notices", PATIENCE, || {
            agent.metric("edge_agent_relay_mqtt_connected").is_ok_and(|it| it == 0)
        })?;
        agent.put(readings(300..600))?;
        core.broker.resume()?;
        agent.put(readings(600..900))?;
        let heard = core.heard(900)?;
        ensure!(heard.iter().all(|message| !message.retained), "nothing is retained at the core");
        let got = by_topic(heard);
        for (n, topic) in topics.iter().enumerate() {
            let want: Vec<_> = readings(0..900).filter(|it| it.0 == *topic).map(|it| it.1).collect();
            ensure!(
                got.get(&format!("site/a/{topic}")) == Some(&want),
                "QoS {qos}: topic {n} is not whole and in order"
            );
        }
        agent.drained(PATIENCE)?;
    }
    Ok(())
}

/// A reading that was published as retained is a reading as any other: the core need not keep one for each topic.
#[test]
fn retained_readings_are_not_retained_at_the_core() -> Result<()> {
    let core = Core::start()?;
    let agent = core.plain_agent("")?;
    let said = Command::new("mosquitto_pub")
        .args(["-p", &agent.mqtt.to_string(), "-q", "1", "-r", "-t", "lab/t", "-m", "21"])
        .status()?;
    ensure!(said.success());
    core.heard(1)?;
    let port = core.broker.plain_port().to_string();
    let late = Command::new("mosquitto_sub").args(["-p", &port, "-t", "#", "-W", "1"]).output()?;
    ensure!(late.stdout.is_empty(), "kept at the core: {late:?}");
    Ok(())
}

/// Reads the messages that a test has written as hex, one a line; prints a line for each reading.
const DECODE: &str = r#"
import cbor2, os, sys, time, zstandard
for line in open(os.environ["MESSAGES"]):
    text = zstandard.ZstdDecompressor().decompressobj().decompress(bytes.fromhex(line))
    batch = cbor2.loads(text)
    assert list(batch) == ["v", "board", "epoch", "first", "last", "readings"], list(batch)
    assert batch["v"] == 1 and batch["board"] == "board-1" and batch["epoch"] > 0, batch
    rows = batch["readings"]
    numbers = [row[0] for row in rows]
    assert numbers == sorted(set(numbers)), numbers
    assert (batch["first"], batch["last"]) == (numbers[0], numbers[-1])
    for seq, time_us, topic, payload in rows:
        assert abs(time_us / 1e6 - time.time()) < 600, time_us
        assert type(topic) is str and type(payload) is bytes
        print(batch["epoch"], seq, topic, payload.hex())
"#;

/// The rows of all batches, once there are this many different ones.
fn decode(core: &Core, distinct: usize) -> Result<Vec<String>> {
    let begun = Instant::now();
    loop {
        let rows = decode_now(core)?;
        let count = rows.iter().collect::<HashSet<_>>().len();
        if count >= distinct {
            return Ok(rows);
        }
        ensure!(begun.elapsed() < PATIENCE, "{count} different rows for {distinct} readings");
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn decode_now(core: &Core) -> Result<Vec<String>> {
    let messages = core.broker.messages()?;
    ensure!(messages.iter().all(|message| message.topic == "site/board-1/batch" && !message.retained));
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let file = core.dir.path().join("messages");
    std::fs::write(&file, messages.iter().map(|message| hex(&message.payload) + "\n").collect::<String>())?;
    let rows = python(DECODE, &BTreeMap::from([("MESSAGES".into(), file.display().to_string())]))?;
    Ok(rows.lines().map(str::to_owned).collect())
}

#[test]
fn batches_hold_every_reading_once_and_after_kills_at_least_once() -> Result<()> {
    for qos in [1, 2] {
        let mut core = Core::start()?;
        let mut agent = core.agent(&format!("mode = \"batch\"\nprefix = \"site\"\nqos = {qos}\n"))?;
        connected(&agent)?;
        agent.put((0..5000).map(|n| ("lab/t", payload(n))))?;
        agent.drained(PATIENCE)?;
        agent.stop(PATIENCE)?;
        let rows = decode(&core, 5000)?;
        let distinct: HashSet<_> = rows.iter().collect();
        ensure!((rows.len(), distinct.len()) == (5000, 5000), "each once on a stable link, not {}", rows.len());
        // Killed while it relays, and once without a broker.
        for round in 1..4 {
            agent.start()?;
            agent.put((round * 5000..(round + 1) * 5000).map(|n| ("lab/t", payload(n))))?;
            agent.kill()?;
            if round == 2 {
                core.broker.pause()?;
                agent.start()?;
                agent.kill()?;
                core.broker.resume()?;
            }
        }
        agent.start()?;
        agent.drained(PATIENCE)?;
        let rows: HashSet<_> = decode(&core, 20_000)?.into_iter().collect();
        let words: Vec<Vec<&str>> = rows.iter().map(|row| row.split(' ').collect()).collect();
        ensure!(words.len() == 20_000, "{} different rows for 20000 readings", words.len());
        ensure!(words.iter().map(|row| row[0]).collect::<HashSet<_>>().len() == 1, "one epoch");
        let numbers: HashSet<u64> = words.iter().map(|row| row[1].parse()).collect::<Result<_, _>>()?;
        ensure!(numbers == (1..=20_000).collect(), "numbers without holes");
    }
    Ok(())
}

/// The core's topics reach local subscribers, and end there; one that is too large harms nobody.
#[test]
fn downlink_ends_at_the_board() -> Result<()> {
    let core = Core::start()?;
    let agent = core.agent("downlink = [\"cmd/#\"]\n")?;
    let port = agent.mqtt.to_string();
    let local = Command::new("mosquitto_sub")
        .args(["-p", &port, "-t", "cmd/#", "-q", "1", "-C", "2", "-W", "20", "-F", "%t %p"])
        .stdout(Stdio::piped())
        .spawn()?;
    connected(&agent)?;
    // As long as that: until the local subscriber is there, too.
    std::thread::sleep(Duration::from_millis(500));
    let mut operator = Raw::connect(core.broker.plain_port(), 4, "operator", 0x02, 60, &[])?;
    let huge = vec![b'x'; 1 << 20];
    operator.put([("cmd/valve", b"open".to_vec()), ("cmd/firmware", huge), ("cmd/valve", b"shut".to_vec())])?;
    let said = String::from_utf8(local.wait_with_output()?.stdout)?;
    ensure!(said == "cmd/valve open\ncmd/valve shut\n", "local subscribers heard {said:?}\n{}", agent.log());
    ensure!(agent.log().contains("too large"), "{}", agent.log());
    agent.put([("lab/t", b"after".to_vec())])?;
    agent.drained(PATIENCE)?;
    ensure!(agent.query()?.iter().all(|row| row["topic"] == "lab/t"), "nothing of the downlink is stored");
    let times = |topic: &str| core.broker.messages().map(|all| all.iter().filter(|it| it.topic == topic).count());
    ensure!(times("cmd/valve")? == 2 && times("lab/t")? == 1, "nothing goes round");
    ensure!(agent.metric("edge_agent_relay_mqtt_connections_total")? == 1, "the connection stood: {}", agent.log());
    Ok(())
}

#[test]
fn only_what_the_outbox_keeps_is_relayed() -> Result<()> {
    let core = Core::start()?;
    let everything = core.plain_agent("prefix = \"all\"\n")?;
    let some = core.plain_agent("prefix = \"some\"\n[outbox]\ntopics = [\"lab/+\", \"alarm/#\"]\n")?;
    for agent in [&everything, &some] {
        let topics = ["$SYS/x", "$other", "lab/t", "lab/deep/t", "alarm/a/b", "rest"];
        agent.put(topics.map(|topic| (topic, format!("{topic} {}", agent.mqtt).into_bytes())))?;
    }
    let mut topics: Vec<_> = core.heard(6)?.into_iter().map(|message| message.topic).collect();
    for agent in [&everything, &some] {
        agent.drained(PATIENCE)?;
    }
    topics.sort();
    let want = ["all/alarm/a/b", "all/lab/deep/t", "all/lab/t", "all/rest", "some/alarm/a/b", "some/lab/t"];
    ensure!(topics == want, "{topics:?}");
    Ok(())
}

/// A backlog at a capped link. Order is what is looked at; of time only that the cap holds.
#[test]
fn alarms_and_fresh_readings_overtake_a_backlog_and_the_cap_holds() -> Result<()> {
    const CAP: u64 = 200_000;
    let mut core = Core::start()?;
    core.broker.pause()?;
    let agent = core.plain_agent(&format!("bandwidth = {CAP}\n"))?;
    let old = |n: u32| ("lab/t", format!("old {n:060}").into_bytes());
    let alarms: Vec<_> = (0..20_000).filter(|n| n % 4000 == 3).map(|n| format!("alarm in {n}")).collect();
    agent.put(
        (0..20_000).map(|n| if n % 4000 == 3 { ("alarm/fire", format!("alarm in {n}").into()) } else { old(n) }),
    )?;
    core.broker.resume()?;
    let sent = || agent.metric("edge_agent_relay_mqtt_sent_bytes_total");
    // The first second's worth may come at once.
    wait_until("the backlog is under way", PATIENCE, || sent().is_ok_and(|it| it > 2 * CAP))?;
    let (begun, before) = (Instant::now(), sent()?);
    agent.put([("lab/t", b"fresh".to_vec()), ("alarm/fire", b"alarm now".to_vec())])?;
    std::thread::sleep(Duration::from_secs(3));
    #[allow(clippy::cast_precision_loss)] // Far below 2^53.
    let rate = (sent()? - before) as f64 / begun.elapsed().as_secs_f64() / CAP as f64;
    ensure!((0.8..1.2).contains(&rate), "{rate:.2} of the cap");
    let heard: Vec<_> =
        core.heard(20_002)?.into_iter().map(|it| String::from_utf8_lossy(&it.payload).into_owned()).collect();
    ensure!(heard[..alarms.len()] == alarms, "the alarms came first, in order: {:?}", &heard[..8]);
    for new in ["fresh", "alarm now"] {
        let at = heard.iter().position(|text| text == new).context("lost")?;
        ensure!(at < 15_000, "{new:?} came as number {at} of {}", heard.len());
    }
    ensure!(heard.len() == 20_002, "each once on a stable link, not {}", heard.len());
    Ok(())
}

/// The link stands all the time and is slower than the readings come: alarms still go first.
#[test]
fn alarms_overtake_on_a_link_that_was_never_lost() -> Result<()> {
    let core = Core::start()?;
    let agent = core.plain_agent("bandwidth = 20_000\n")?;
    connected(&agent)?;
    agent.put((0..3000).map(|n| ("lab/t", format!("old {n:060}").into_bytes())))?;
    agent.put([("alarm/fire", b"alarm".to_vec())])?;
    let heard = || core.broker.heard().unwrap_or_default();
    wait_until("the alarm arrives", PATIENCE, || heard().contains(&b"alarm".to_vec()))?;
    ensure!(heard().len() < 2500, "the alarm was number {}", heard().len());
    Ok(())
}
