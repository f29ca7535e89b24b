//! What goes wrong between the MQTT relay and the core: readings are kept, `status` says what to do, and once that is done
//! the relay goes on by itself.

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use tests::{Agent, Certificates, Mosquitto, free_port, wait_until};

const PATIENCE: Duration = Duration::from_secs(30);
const SECRET: &str = "correct-horse-battery";

/// A core that lets in `board-1` with its password, and an agent's settings that fit it.
struct Scene {
    dir: PathBuf,
    certificates: Certificates,
    broker: Mosquitto,
    password: String,
    host: String,
    port: u16,
}

impl Scene {
    fn new(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let certificates = Certificates::make(&dir.join("certificates"))?;
        let users = dir.join("users");
        let made =
            Command::new("mosquitto_passwd").args(["-b", "-c"]).arg(&users).args(["board-1", SECRET]).output()?;
        ensure!(made.status.success(), "{made:?}");
        let more = format!("password_file {}", users.display());
        let broker = Mosquitto::start_with(&dir.join("core"), &certificates, &more)?;
        let port = broker.tls_port;
        let (password, host) = (SECRET.to_owned(), "localhost".to_owned());
        Ok(Self { dir: dir.to_owned(), certificates, broker, password, host, port })
    }

    fn configuration(&self) -> String {
        format!(
            "[relay.mqtt]\nurl = \"mqtts://{}:{}\"\nca_file = \"{}\"\ncert_file = \"{}\"\nkey_file = \"{}\"\n\
             username = \"board-1\"\npassword = \"{}\"\n",
            self.host,
            self.port,
            self.certificates.ca.display(),
            self.certificates.client.0.display(),
            self.certificates.client.1.display(),
            self.password
        )
    }

    /// The broker with what was changed in its files.
    fn restart(&mut self) -> Result<()> {
        self.broker.pause()?;
        self.broker.resume()
    }
}

/// Degraded in these words, in one line, with exit code 3 and no secret anywhere.
fn complains(agent: &Agent, words: &[&str]) -> Result<()> {
    let line = || -> Result<String> {
        let output = agent.command(&["status"])?;
        let text = String::from_utf8(output.stdout)?;
        ensure!(output.status.code() == Some(3), "exit code {:?}: {text}", output.status.code());
        Ok(text.lines().find(|line| line.starts_with("! relay.mqtt")).context("no such line")?.to_owned())
    };
    let fits = || line().is_ok_and(|line| words.iter().all(|word| line.contains(word)));
    wait_until("status says so", Duration::from_secs(10), fits).with_context(|| format!("{words:?}: {:?}", line()))?;
    let whole = format!("{:?} {}", agent.status()?, agent.log());
    ensure!(!whole.contains(SECRET) && !whole.contains("wrong-secret"), "a secret shows in {whole}");
    Ok(())
}

/// One way to go wrong: breaks the scene before the start, names the words of `status`, mends it without a restart of the
/// agent (`true`) or with one.
fn case(
    dir: &Path,
    wrong: impl Fn(&mut Scene) -> Result<()>,
    words: &[&str],
    mend: impl Fn(&mut Scene) -> Result<()>,
    restarts: bool,
) -> Result<()> {
    let mut scene = Scene::new(dir)?;
    wrong(&mut scene)?;
    let mut agent = Agent::new(&scene.dir, &scene.configuration())?;
    agent.start()?;
    agent.put((0..100).map(|n| ("lab/t", format!("kept {n}").into_bytes())))?;
    complains(&agent, words)?;
    ensure!(agent.query()?.len() == 100, "readings are kept");
    mend(&mut scene)?;
    if restarts {
        agent.stop(PATIENCE)?;
        agent.configure_anew(&scene.configuration())?;
        agent.start()?;
    }
    agent.drained(PATIENCE)?;
    let heard = || scene.broker.heard().is_ok_and(|all| all.len() == 100);
    wait_until("all arrives, once", PATIENCE, heard)?;
    ensure!(agent.command(&["status"])?.status.code() == Some(0), "well again: {}", agent.log());
    Ok(())
}

#[test]
fn certificates_that_do_not_fit() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let dir = |name: &str| dir.path().join(name);
    let server = |hosts: &'static [&'static str], expired| {
        move |scene: &mut Scene| {
            scene.certificates.issue_server("server", hosts, expired)?;
            scene.restart()
        }
    };
    let good = server(&["localhost"], false);
    case(&dir("server-expired"), server(&["localhost"], true), &["the broker's certificate has run out"], good, false)?;
    case(&dir("name"), server(&["elsewhere.example"], false), &["another name", "relay.mqtt.url"], good, false)?;
    let client = |expired| move |scene: &mut Scene| scene.certificates.issue_client("board-1", expired).map(drop);
    case(&dir("client-expired"), client(true), &["board-1.pem", "expired on"], client(false), false)?;
    // The broker has read the right one by then: only the agent meets the other.
    let swapped = |scene: &mut Scene| {
        let other = Certificates::make(&scene.dir.join("other"))?;
        fs::rename(&scene.certificates.ca, scene.dir.join("right-ca"))?;
        Ok(fs::copy(other.ca, &scene.certificates.ca).map(drop)?)
    };
    let back = |scene: &mut Scene| Ok(fs::rename(scene.dir.join("right-ca"), &scene.certificates.ca)?);
    case(&dir("unknown-ca"), swapped, &["unknown CA", "relay.mqtt.ca_file"], back, false)
}

/// A certificate of a CA that the broker does not know: with TLS 1.3 it says so after the handshake.
#[test]
fn a_stranger_s_certificate_replaced_while_running() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let strange = |scene: &mut Scene| {
        let other = Certificates::make(&scene.dir.join("other"))?;
        let (cert, key) = &scene.certificates.client;
        fs::copy(other.client.0, cert)?;
        Ok(fs::copy(other.client.1, key).map(drop)?)
    };
    let mend = |scene: &mut Scene| scene.certificates.issue_client("board-1", false).map(drop);
    case(&dir.path().join("a"), strange, &["relay.mqtt.cert_file"], mend, false)
}

#[test]
fn passwords_hosts_and_ports_that_do_not_fit() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let dir = |name: &str| dir.path().join(name);
    let wrong = |scene: &mut Scene| {
        scene.password = "wrong-secret".into();
        Ok(())
    };
    let right = |scene: &mut Scene| {
        scene.password = SECRET.into();
        Ok(())
    };
    case(&dir("password"), wrong, &["not authorized", "relay.mqtt.username and password"], right, true)?;
    let nowhere = |scene: &mut Scene| {
        scene.host = "no-such-host.invalid".into();
        Ok(())
    };
    let here = |scene: &mut Scene| {
        scene.host = "localhost".into();
        Ok(())
    };
    case(&dir("host"), nowhere, &["no-such-host.invalid", "check the network"], here, true)?;
    let closed = |scene: &mut Scene| scene.broker.pause();
    let open = |scene: &mut Scene| scene.broker.resume();
    case(&dir("port"), closed, &["refused", "start the broker"], open, false)?;
    let plain = |scene: &mut Scene| {
        scene.port = scene.broker.plain_port();
        Ok(())
    };
    let tls = |scene: &mut Scene| {
        scene.port = scene.broker.tls_port;
        Ok(())
    };
    case(&dir("plain"), plain, &["TLS"], tls, true)
}

/// Answers CONNECT with CONNACK, and gives the connection away. A fake here and below: a real broker acknowledges, keeps
/// the connection and speaks MQTT, and none of that is wanted.
fn greeted(listener: &TcpListener) -> Result<TcpStream> {
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut connect = [0; 256];
    ensure!(stream.read(&mut connect)? > 0 && connect[0] == 0x10, "no CONNECT");
    stream.write_all(&[0x20, 2, 0, 0])?;
    Ok(stream)
}

fn agent_to(dir: &Path, port: u16, more: &str) -> Result<Agent> {
    let mut agent = Agent::new(dir, &format!("[relay.mqtt]\nurl = \"mqtt://127.0.0.1:{port}\"\n{more}"))?;
    agent.start()?;
    Ok(agent)
}

#[test]
fn no_more_than_the_window_is_on_its_way() -> Result<()> {
    for qos in [1, 2] {
        let dir = tempfile::tempdir()?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let agent = agent_to(dir.path(), listener.local_addr()?.port(), &format!("inflight = 7\nqos = {qos}\n"))?;
        let mut stream = greeted(&listener)?;
        agent.put((0..200).map(|n| ("lab/topic", format!("{n:08}").into_bytes())))?;
        let mut bytes = Vec::new();
        // Until it has said nothing for a second.
        let mut piece = [0; 4096];
        while let Ok(read @ 1..) = stream.read(&mut piece) {
            bytes.extend_from_slice(&piece[..read]);
        }
        // 23 bytes each: two of header, 11 of topic, two of identifier, eight of payload.
        ensure!(bytes.len() == 7 * 23 && bytes[0] >> 4 == 3, "{} bytes", bytes.len());
    }
    Ok(())
}

#[test]
fn rude_brokers_do_no_harm_and_are_left_alone_for_longer_and_longer() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let certificates = Certificates::make(&dir.path().join("certificates"))?;
    let listener = TcpListener::bind(("127.0.0.1", free_port()?))?;
    let port = listener.local_addr()?.port();
    let agent = agent_to(dir.path(), port, "")?;
    agent.put((0..100).map(|n| ("lab/t", format!("kept {n}").into_bytes())))?;
    let before = agent.resident()?;
    let mut came = Vec::new();
    let mut huge = vec![0x20, 0xff, 0xff, 0xff, 0x7f];
    huge.resize(8 << 20, 0);
    // Hangs up at once; answers like a web server; promises a packet of 256 MB; acknowledges what was never sent.
    for answer in [&b""[..], b"HTTP/1.1 400 Bad Request\r\n\r\n", &huge, &[0x20, 2, 0, 0, 0x40, 2, 0xff, 1, 0xf0, 0]] {
        let (mut stream, _) = listener.accept()?;
        came.push(Instant::now());
        let _ = stream.read(&mut [0; 256])?;
        let _ = stream.write_all(answer); // It need not stay to hear the end.
        drop(stream);
    }
    let gaps: Vec<_> = came.windows(2).map(|pair| pair[1] - pair[0]).collect();
    for (n, gap) in gaps.iter().enumerate() {
        // Half of it is fixed, half is chance; `accept` may be late, never early.
        ensure!(*gap >= Duration::from_millis(240 << n), "try {n} came after {gap:?}: {gaps:?}");
    }
    let grown = agent.resident()?.saturating_sub(before);
    ensure!(grown < 8 << 20, "{grown} bytes more");
    ensure!(agent.query()?.len() == 100, "readings are kept");
    complains(&agent, &["relay.mqtt"])?;
    drop(listener);
    let more = format!("listener {port} 127.0.0.1");
    let broker = Mosquitto::start_with(&dir.path().join("core"), &certificates, &more)?;
    agent.drained(PATIENCE)?;
    wait_until("all arrives", PATIENCE, || broker.heard().is_ok_and(|all| all.len() == 100))
}

/// A reading leaves the outbox when both relays have it, and a relay that is no more is not waited for.
#[test]
fn segments_go_when_both_relays_have_them() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let certificates = Certificates::make(&dir.path().join("certificates"))?;
    let bucket = dir.path().join("s3");
    let mut broker = Mosquitto::start(&dir.path().join("core"), &certificates)?;
    let mqtt = format!("[relay.mqtt]\nurl = \"mqtt://127.0.0.1:{}\"\n", broker.plain_port());
    let s3 =
        format!("[relay.s3]\nendpoint = \"file://{}\"\nbucket = \"b\"\nflush_interval = \"1s\"\n", bucket.display());
    // 8 MiB a segment, of bytes that do not compress.
    let noise = |n: u64| {
        let mut state = n * 2 + 1;
        let next = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state.to_be_bytes()[0]
        };
        (0..200_000).map(next).collect::<Vec<u8>>()
    };
    let mut agent = Agent::new(dir.path(), &format!("{mqtt}{s3}"))?;
    let waits = |agent: &Agent, relay: &str| -> Result<u64> {
        let status = agent.status()?;
        let all = status["outbox"]["waiting"].as_array().cloned().unwrap_or_default();
        Ok(all.iter().find(|it| it["relay"] == relay).and_then(|it| it["readings"].as_u64()).unwrap_or(0))
    };
    let first = |agent: &Agent| agent.status().map(|status| status["outbox"]["first"].as_u64().unwrap_or(0));
    // The broker is away: S3 has all, and nothing goes.
    broker.pause()?;
    agent.start()?;
    agent.put((0..100).map(|n| ("lab/t", noise(n))))?;
    wait_until("S3 has everything", PATIENCE, || waits(&agent, "s3").is_ok_and(|it| it == 0))?;
    ensure!(first(&agent)? == 1 && waits(&agent, "mqtt")? == 100, "{:?}", agent.status());
    broker.resume()?;
    agent.drained(PATIENCE)?;
    wait_until("segments go", PATIENCE, || first(&agent).is_ok_and(|it| it > 1))?;
    // S3 is away: the broker has all, and nothing goes.
    agent.stop(PATIENCE)?;
    fs::rename(&bucket, dir.path().join("aside"))?;
    fs::write(&bucket, "no folder")?;
    agent.start()?;
    let before = first(&agent)?;
    agent.put((100..200).map(|n| ("lab/t", noise(n))))?;
    wait_until("the broker has everything", PATIENCE, || waits(&agent, "mqtt").is_ok_and(|it| it == 0))?;
    ensure!(first(&agent)? == before && waits(&agent, "s3")? >= 100, "{:?}", agent.status());
    // And is configured no more.
    agent.stop(PATIENCE)?;
    agent.configure_anew(&mqtt)?;
    agent.start()?;
    wait_until("segments go", PATIENCE, || first(&agent).is_ok_and(|it| it > before + 50))
}
