//! Readings to Ceph, over HTTP and HTTPS with a CA of its own: what users of the data see (`relay_s3.py`), what a board says
//! when it cannot deliver and that it goes on by itself, a crash between an object and its acknowledgement, and a board
//! that learns the time from the gateway.
//!
//! One Ceph for all: the parts run side by side, each with an agent and a bucket of its own.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use tests::{
    Agent, Ceph, Certificates, Forwarder, WallClock, free_port, python, wait_until,
    wall_clock::{self, now},
};

const PATIENCE: Duration = Duration::from_secs(60);
/// A wrong secret that must show nowhere.
const WRONG_SECRET: &str = "wr0ngSecretThatMustNotShow";

struct World {
    ceph: Ceph,
    certificates: Certificates,
    dir: tempfile::TempDir,
}

#[test]
fn readings_in_ceph() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let certificates = Certificates::make(&dir.path().join("tls"))?;
    let ceph = Ceph::start_with_tls(&dir.path().join("ceph"), &certificates)?;
    let world = World { ceph, certificates, dir };
    let parts: &[(&str, Part)] = &[
        ("what users see", users_see_each_reading_once),
        ("a crash", the_same_object_again_after_a_crash),
        ("1970", a_board_in_1970_learns_the_time),
        ("wrong bucket", |world, part| fault(world, part, &wrong_bucket)),
        ("wrong key", |world, part| fault(world, part, &wrong_key)),
        ("wrong secret", |world, part| fault(world, part, &wrong_secret)),
        ("no credentials", |world, part| fault(world, part, &no_credentials_file)),
        ("unknown CA", |world, part| fault(world, part, &unknown_ca)),
        ("expired certificate", |world, part| fault(world, part, &expired_certificate)),
        ("unreachable", |world, part| fault(world, part, &unreachable)),
    ];
    // Not all at once: a small machine would spend its time on starting programs.
    for some in parts.chunks(5) {
        std::thread::scope(|scope| {
            let world = &world;
            let running: Vec<_> = some
                .iter()
                .map(|(name, part)| (name, scope.spawn(move || part(world, &name.replace(' ', "-").to_lowercase()))))
                .collect();
            running.into_iter().try_for_each(|(name, part)| match part.join() {
                Ok(result) => result.with_context(|| (*name).to_owned()),
                Err(_) => bail!("{name} panicked"),
            })
        })?;
    }
    Ok(())
}

type Part = fn(&World, &str) -> Result<()>;

impl World {
    /// A folder for one part.
    fn folder(&self, part: &str) -> Result<PathBuf> {
        let path = self.dir.path().join(part);
        std::fs::create_dir_all(&path)?;
        Ok(path)
    }

    fn http(&self) -> &str {
        self.ceph.setting("AWS_ENDPOINT_URL")
    }

    fn https(&self) -> &str {
        self.ceph.setting("CEPH_RGW_HTTPS_URL")
    }

    fn key(&self) -> &str {
        self.ceph.setting("AWS_ACCESS_KEY_ID")
    }

    fn secret(&self) -> &str {
        self.ceph.setting("AWS_SECRET_ACCESS_KEY")
    }

    fn http_port(&self) -> Result<u16> {
        let port = self.http().rsplit(':').next().context("no port")?;
        Ok(port.parse()?)
    }

    /// `relay_s3.py`, over HTTPS.
    fn python(&self, step: &str, bucket: &str, more: &[(&str, String)]) -> Result<String> {
        let mut env = self.ceph.env.clone();
        let own = [
            ("STEP", step.to_owned()),
            ("BUCKET", bucket.to_owned()),
            ("AWS_ENDPOINT_URL", self.https().to_owned()),
            ("CA", self.certificates.ca.display().to_string()),
        ];
        env.extend(own.iter().chain(more).map(|(name, value)| ((*name).to_owned(), value.clone())));
        python(include_str!("relay_s3.py"), &env)
    }

    /// The rows in a bucket: `(object, last change, seq, µs, value)`.
    fn rows(&self, bucket: &str) -> Result<Vec<Vec<String>>> {
        let text = self.python("rows", bucket, &[])?;
        Ok(text.lines().map(|line| line.split(' ').map(str::to_owned).collect()).collect())
    }

    fn keys(&self) -> String {
        format!("access_key_id = \"{}\"\nsecret_access_key = \"{}\"\n", self.key(), self.secret())
    }

    fn ca_file(&self) -> String {
        format!("ca_file = \"{}\"\n", self.certificates.ca.display())
    }
}

fn relay(endpoint: &str, bucket: &str, more: &str) -> String {
    format!("[relay.s3]\nendpoint = \"{endpoint}\"\nbucket = \"{bucket}\"\nflush_interval = \"1s\"\n{more}")
}

fn put(agent: &Agent, value: &str) -> Result<()> {
    let put = agent.command(&["telemetry", "put", "lab/t", value])?;
    ensure!(put.status.success(), "{}", String::from_utf8_lossy(&put.stderr));
    Ok(())
}

fn wait_until_delivered(agent: &Agent) -> Result<()> {
    wait_until("all readings are in S3", PATIENCE, || {
        agent.status().is_ok_and(|it| it["outbox"]["waiting"][0]["readings"] == 0)
    })
    .with_context(|| agent.log())
}

fn users_see_each_reading_once(world: &World, part: &str) -> Result<()> {
    let bucket = "for-users";
    world.python("create", bucket, &[])?;
    let tls = format!("{}{}prefix = \"lab/raw\"\n", world.ca_file(), world.keys());
    let plain = format!("{}prefix = \"/lab/raw/\"\n", world.keys());
    for (board, version, text) in
        [("board-1", "4", relay(world.https(), bucket, &tls)), ("board-2", "5", relay(world.http(), bucket, &plain))]
    {
        let mut agent = Agent::new(&world.folder(&format!("{part}/{board}"))?, &text)?;
        agent.reconfigure(|text| text.replace("name = \"board-1\"", &format!("name = \"{board}\"")))?;
        agent.start()?;
        let env = [("VERSION", version.to_owned()), ("PORT", agent.mqtt.to_string())];
        world.python("publish", bucket, &env)?;
        wait_until_delivered(&agent)?;
        agent.stop(Duration::from_secs(15))?;
    }
    world.python("check", bucket, &[]).map(drop)
}

/// The gateway stores the object, but its answer is lost and the board dies: the same object is sent again.
fn the_same_object_again_after_a_crash(world: &World, part: &str) -> Result<()> {
    let (dir, bucket, port) = (world.folder(part)?, "after-a-crash", free_port()?);
    world.python("create", bucket, &[])?;
    let mut agent = Agent::new(&dir, &relay(&format!("http://127.0.0.1:{port}"), bucket, &world.keys()))?;
    let no_way_back = Forwarder::start(port, world.http_port()?, false, None)?;
    agent.start()?;
    put(&agent, "1")?;
    put(&agent, "2")?;
    let mut before = Vec::new();
    wait_until("the object is stored", PATIENCE, || {
        before = world.rows(bucket).unwrap_or_default();
        !before.is_empty()
    })?;
    put(&agent, "3")?;
    agent.kill()?;
    drop(no_way_back);
    // The change of an object is told in whole seconds.
    let seconds = now()?;
    wait_until("a second passes", PATIENCE, || now().is_ok_and(|it| it > seconds + 1))?;
    let _way_back = Forwarder::start(port, world.http_port()?, true, None)?;
    agent.start()?;
    wait_until_delivered(&agent)?;
    let after = world.rows(bucket)?;
    let of = |rows: &[Vec<String>], name: &str| -> Vec<Vec<String>> {
        rows.iter().filter(|row| row[0] == name).map(|row| row[2..].to_vec()).collect()
    };
    let name = &before[0][0];
    ensure!(of(&before, name) == of(&after, name), "{before:?} became {after:?}");
    let changed = |rows: &[Vec<String>]| rows.iter().find(|row| row[0] == *name).map(|row| row[1].clone());
    ensure!(changed(&before) < changed(&after), "it was not sent again: {before:?} {after:?}");
    let mut values: Vec<_> = after.iter().map(|row| row[4].as_str()).collect();
    values.sort_unstable();
    ensure!(values == ["1.0", "2.0", "3.0"], "{after:?}");
    Ok(())
}

/// No battery-backed clock and no NTP: certificates are believed all the same, the gateway's answer tells the time, and no
/// object is filed under 1970.
fn a_board_in_1970_learns_the_time(world: &World, part: &str) -> Result<()> {
    let (dir, bucket) = (world.folder(part)?, "from-1970");
    let clock = WallClock::make(&dir)?;
    let agent = Agent::new(&dir, &relay(world.https(), bucket, &format!("{}{}", world.ca_file(), world.keys())))?;
    let mut agent = clock.show_to(agent);
    world.python("create", bucket, &[])?;
    agent.start()?;
    put(&agent, "1")?;
    wait_until_delivered(&agent)?;
    put(&agent, "2")?;
    wait_until_delivered(&agent)?;
    ensure!(agent.status()?["clock_trusted"] == true, "the time was not learnt\n{}", agent.log());
    let rows = world.rows(bucket)?;
    ensure!(rows.len() == 2 && rows.iter().all(|row| !row[0].contains("date=1970")), "{rows:?}");
    for row in &rows {
        let off = row[3].parse::<i64>()? / 1_000_000 - wall_clock::now()?;
        ensure!(off.abs() < 60, "off by {off} s: {rows:?}");
    }
    wait_until("a query shows the corrected time", PATIENCE, || {
        let rows = agent.query().unwrap_or_default();
        rows.len() == 2 && rows.iter().all(|row| !row["time"].as_str().unwrap_or_default().starts_with("1970"))
    })
}

/// Something that is wrong: the configuration, what `status` has to say, and how it is mended.
struct Fault {
    relay: String,
    bucket: String,
    says: &'static [&'static str],
    mend: Box<dyn Fn() -> Result<Option<Forwarder>>>,
}

type MakeFault = dyn Fn(&World, &Path) -> Result<Fault>;

/// Readings are kept, `status` says what is wrong and what to do, nobody is told a secret, and it goes on by itself.
fn fault(world: &World, part: &str, make: &MakeFault) -> Result<()> {
    let dir = world.folder(part)?;
    let fault = make(world, &dir)?;
    let mut agent = Agent::new(&dir, &fault.relay)?;
    agent.start()?;
    put(&agent, "1")?;
    let mut told = String::new();
    wait_until("it says what is wrong", PATIENCE, || {
        told = agent.service("relay.s3").unwrap_or_default();
        told.contains("degraded") && fault.says.iter().all(|words| told.contains(words))
    })
    .with_context(|| format!("{:?} is not in {told}\n{}", fault.says, agent.log()))?;
    let status = agent.command(&["status"])?;
    let text = String::from_utf8_lossy(&status.stdout).into_owned();
    ensure!(status.status.code() == Some(3), "exit {:?}\n{text}", status.status);
    let lines: Vec<_> = text.lines().filter(|line| line.starts_with('!')).collect();
    ensure!(lines.len() == 1 && fault.says.iter().all(|words| lines[0].contains(words)), "{text}");
    ensure!(agent.query()?.len() == 1, "the reading is not kept");
    let said = format!("{told}{text}{}", agent.whole_log());
    ensure!(!said.contains(world.secret()) && !said.contains(WRONG_SECRET), "a secret shows in {said}");
    let _way = (fault.mend)()?;
    put(&agent, "2")?;
    wait_until_delivered(&agent)?;
    wait_until("it is well again", PATIENCE, || {
        agent.command(&["status"]).is_ok_and(|it| it.status.code() == Some(0))
    })?;
    let rows = world.rows(&fault.bucket)?;
    let mut values: Vec<_> = rows.iter().map(|row| row[4].as_str()).collect();
    values.sort_unstable();
    ensure!(values == ["1.0", "2.0"], "{rows:?}");
    Ok(())
}

/// A bucket is there before the fault.
fn in_bucket(
    world: &World,
    bucket: &str,
    relay: String,
    says: &'static [&'static str],
    mend: impl Fn() -> Result<Option<Forwarder>> + 'static,
) -> Result<Fault> {
    world.python("create", bucket, &[])?;
    Ok(Fault { relay, bucket: bucket.to_owned(), says, mend: Box::new(mend) })
}

fn wrong_bucket(world: &World, _: &Path) -> Result<Fault> {
    let mut env = world.ceph.env.clone();
    env.extend([("STEP".to_owned(), "create".to_owned()), ("BUCKET".to_owned(), "not-yet".to_owned())]);
    let (text, says) =
        (relay(world.http(), "not-yet", &world.keys()), &["404 NoSuchBucket", "not-yet", "create the bucket"]);
    let mend = move || python(include_str!("relay_s3.py"), &env).map(|_| None);
    Ok(Fault { bucket: "not-yet".to_owned(), ..in_bucket(world, "another", text, says, mend)? })
}

fn credentials(path: &Path, key: &str, secret: &str) -> Result<()> {
    let text = format!("[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n");
    Ok(std::fs::write(path, text)?)
}

/// Keys from a file, which is put right while the agent runs.
fn with_credentials_file(
    world: &World,
    dir: &Path,
    wrong: Option<(&str, &str)>,
    bucket: &str,
    says: &'static [&'static str],
) -> Result<Fault> {
    let path = dir.join("credentials");
    if let Some((key, secret)) = wrong {
        credentials(&path, key, secret)?;
    }
    let text = relay(world.http(), bucket, &format!("credentials_file = \"{}\"\n", path.display()));
    let (key, secret) = (world.key().to_owned(), world.secret().to_owned());
    in_bucket(world, bucket, text, says, move || credentials(&path, &key, &secret).map(|()| None))
}

fn wrong_key(world: &World, dir: &Path) -> Result<Fault> {
    let wrong = Some(("NOBODY", WRONG_SECRET));
    with_credentials_file(world, dir, wrong, "wrong-key", &["403 InvalidAccessKeyId", "check relay.s3.access_key_id"])
}

fn wrong_secret(world: &World, dir: &Path) -> Result<Fault> {
    let wrong = Some((world.key(), WRONG_SECRET));
    with_credentials_file(
        world,
        dir,
        wrong,
        "wrong-secret",
        &["403 SignatureDoesNotMatch", "check relay.s3.secret_access_key"],
    )
}

fn no_credentials_file(world: &World, dir: &Path) -> Result<Fault> {
    with_credentials_file(world, dir, None, "no-credentials", &["credentials: No such file", "put the keys there"])
}

fn unknown_ca(world: &World, dir: &Path) -> Result<Fault> {
    let (own, right) = (dir.join("ca.pem"), world.certificates.ca.clone());
    std::fs::copy(Certificates::make(&dir.join("others"))?.ca, &own)?;
    let more = format!("ca_file = \"{}\"\n{}", own.display(), world.keys());
    let says = &["localhost cannot be reached", "unknown CA", "relay.s3.ca_file"];
    in_bucket(world, "unknown-ca", relay(world.https(), "unknown-ca", &more), says, move || {
        std::fs::copy(&right, &own)?;
        Ok(None)
    })
}

fn expired_certificate(world: &World, _: &Path) -> Result<Fault> {
    let (port, target) = (free_port()?, world.http_port()?);
    let way = std::sync::Mutex::new(Some(Forwarder::start(port, target, true, Some(&world.certificates.expired))?));
    let right = world.certificates.server.clone();
    let more = format!("{}{}", world.ca_file(), world.keys());
    let text = relay(&format!("https://127.0.0.1:{port}"), "expired", &more);
    in_bucket(world, "expired", text, &["expired", "renew the server's certificate"], move || {
        way.lock().map_err(|_| anyhow::anyhow!("poisoned"))?.take();
        Forwarder::start(port, target, true, Some(&right)).map(Some)
    })
}

fn unreachable(world: &World, _: &Path) -> Result<Fault> {
    let (port, target) = (free_port()?, world.http_port()?);
    let text = relay(&format!("http://127.0.0.1:{port}"), "unreachable", &world.keys());
    let says = &["127.0.0.1 cannot be reached", "refused", "readings are kept"];
    in_bucket(world, "unreachable", text, says, move || Forwarder::start(port, target, true, None).map(Some))
}
