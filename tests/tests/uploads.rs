//! Large files to Ceph: resumed at the last finished part after SIGKILL, whole, and out of the way of the Parquet readers.

use std::{
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use tests::{Agent, Ceph, python, wait_until};

const MIB: u64 = 1 << 20;

fn configuration(ceph: &Ceph, bandwidth: &str) -> String {
    format!(
        "[relay.s3]\nendpoint = \"{}\"\nbucket = \"sensors\"\naccess_key_id = \"{}\"\nsecret_access_key = \"{}\"\n\
         flush_interval = \"1s\"\n{bandwidth}[uploads]\npart_bytes = \"5MiB\"\n",
        ceph.setting("AWS_ENDPOINT_URL"),
        ceph.setting("AWS_ACCESS_KEY_ID"),
        ceph.setting("AWS_SECRET_ACCESS_KEY"),
    )
}

/// Bytes that tell one place from another.
fn file(dir: &Path, name: &str, bytes: u64) -> Result<PathBuf> {
    let path = dir.join(name);
    let mut file = std::io::BufWriter::new(std::fs::File::create(&path)?);
    for n in 0..bytes / 8 {
        file.write_all(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())?;
    }
    file.flush()?;
    Ok(path)
}

fn metric(agent: &Agent, name: &str) -> Result<u64> {
    let url = format!("http://127.0.0.1:{}/metrics", agent.http);
    let output = std::process::Command::new("curl").args(["-sf", &url]).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("edge_agent_{name} ")));
    line.with_context(|| format!("{name} is not in {text}"))?.parse().context("no number")
}

/// One line an object: key, sha256; then the number of unfinished uploads.
const LIST: &str = r"
import boto3, os, hashlib
s3 = boto3.client('s3', endpoint_url=os.environ['AWS_ENDPOINT_URL'])
for it in s3.list_objects_v2(Bucket='sensors', Prefix='_uploads/').get('Contents', []):
    digest = hashlib.sha256()
    for chunk in s3.get_object(Bucket='sensors', Key=it['Key'])['Body'].iter_chunks(1 << 20):
        digest.update(chunk)
    print(it['Key'], digest.hexdigest())
print('unfinished', len(s3.list_multipart_uploads(Bucket='sensors').get('Uploads', [])))
";

fn sha256(path: &Path) -> Result<String> {
    let output = std::process::Command::new("sha256sum").arg(path).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).split(' ').next().unwrap_or_default().to_owned())
}

#[test]
fn a_large_file_is_resumed_at_the_last_finished_part() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let ceph = Ceph::start(&dir.path().join("ceph"))?;
    let photo = file(dir.path(), "photo.tif", 33 * MIB + 4096)?;
    let mut agent = Agent::new(dir.path(), &configuration(&ceph, "bandwidth = \"8MiB\"\n"))?;
    agent.start()?;
    let path = photo.display().to_string();
    let queued = agent.command(&["upload", "--as", "flight/photo.tif", &path, "--json"])?;
    ensure!(queued.status.success(), "{}", String::from_utf8_lossy(&queued.stderr));
    let done = |agent: &Agent| agent.status().ok().and_then(|it| it["uploads"]["done"].as_u64()).unwrap_or(0);
    wait_until("two parts are stored", Duration::from_secs(60), || done(&agent) >= 10 * MIB)?;
    agent.kill()?;
    ceph.kill_gateway()?;
    agent.start()?;
    wait_until("it says what is wrong", Duration::from_secs(20), || {
        agent.service("uploads").is_ok_and(|it| it.contains("cannot be reached") && it.contains("degraded"))
    })?;
    ceph.revive()?;
    let spooled = agent.data().join("spool/flight/photo.tif");
    wait_until("the file is stored", Duration::from_secs(120), || !spooled.exists())?;
    let sent = metric(&agent, "uploads_bytes_total")?;
    ensure!(sent <= 24 * MIB, "{sent} bytes were sent after the restart, though two parts were stored before");
    // The same name again is another object; an empty file is one too.
    let empty = file(dir.path(), "empty.bin", 0)?;
    let other = file(dir.path(), "other.tif", 8 * 1000)?;
    for (name, path) in [("flight/photo.tif", &other), ("empty.bin", &empty)] {
        let done = agent.command(&["upload", "--as", name, "--wait", &path.display().to_string()])?;
        ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
    agent.stop(Duration::from_secs(15))?;
    let listed = python(LIST, &ceph.env)?;
    let mut lines: Vec<_> = listed.lines().collect();
    ensure!(lines.pop() == Some("unfinished 0"), "{listed}");
    let objects: Vec<(String, String)> = lines
        .iter()
        .filter_map(|line| line.split_once(' '))
        .map(|(key, digest)| (key.to_owned(), digest.to_owned()))
        .collect();
    let digest_of = |end: &str| objects.iter().find(|(key, _)| key.ends_with(end)).map(|(_, digest)| digest.clone());
    ensure!(objects.len() == 3 && objects.iter().all(|(key, _)| key.starts_with("_uploads/board-1/20")), "{listed}");
    ensure!(digest_of("/flight/photo.tif") == Some(sha256(&photo)?), "{listed}");
    ensure!(digest_of("/flight/photo-2.tif") == Some(sha256(&other)?), "{listed}");
    ensure!(digest_of("/empty.bin") == Some(sha256(&empty)?), "{listed}");
    Ok(())
}

#[test]
fn temporary_keys_are_fetched_renewed_and_used() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let ceph = Ceph::start(&dir.path().join("ceph"))?;
    let token = dir.path().join("token");
    std::fs::write(&token, "no.valid.token\n")?;
    // The gateway itself does not take a token that no provider has signed.
    let mut agent = Agent::new(dir.path(), &web_identity(&ceph, &token, ceph.setting("AWS_ENDPOINT_URL")))?;
    agent.start()?;
    ensure!(agent.command(&["telemetry", "put", "a/b", "1"])?.status.success());
    wait_until("it says that the token is refused", Duration::from_secs(30), || {
        agent.service("relay.s3").is_ok_and(|it| it.contains("did not exchange") && it.contains("role_arn"))
    })
    .with_context(|| agent.log())?;
    let log = agent.log();
    ensure!(!log.contains("no.valid.token"), "a token is in the log: {log}");
    agent.stop(Duration::from_secs(15))?;
    // No identity provider can be set up here: a stand-in exchanges the token for keys that the real gateway issues.
    let sts = TokenService::start(&ceph, &dir.path().join("exchanges"))?;
    let mut agent = Agent::new(dir.path(), &web_identity(&ceph, &token, &format!("http://127.0.0.1:{}", sts.port)))?;
    agent.start()?;
    let exchanges = || std::fs::read_to_string(dir.path().join("exchanges")).map_or(0, |text| text.lines().count());
    let mut number = 0;
    wait_until("keys are renewed, and readings go on", Duration::from_secs(60), || {
        number += 1;
        let put = agent.command(&["telemetry", "put", "a/b", &number.to_string()]);
        std::thread::sleep(Duration::from_millis(500));
        put.is_ok_and(|it| it.status.success()) && exchanges() >= 2
    })
    .with_context(|| agent.log())?;
    wait_until("all readings are in S3", Duration::from_secs(30), || {
        agent.status().is_ok_and(|it| it["outbox"]["waiting"][0]["readings"] == 0)
    })
    .with_context(|| agent.log())?;
    let script = r#"
import os, pandas
frame = pandas.read_parquet("s3://sensors/board=board-1/", storage_options={
    "key": os.environ["AWS_ACCESS_KEY_ID"], "secret": os.environ["AWS_SECRET_ACCESS_KEY"],
    "client_kwargs": {"endpoint_url": os.environ["AWS_ENDPOINT_URL"], "region_name": "us-east-1"}})
print(len(frame), frame["seq"].is_unique)
"#;
    let said = python(script, &ceph.env)?;
    ensure!(said.trim() == format!("{} True", number + 1), "{said}");
    Ok(())
}

fn web_identity(ceph: &Ceph, token: &Path, sts: &str) -> String {
    format!(
        "[relay.s3]\nendpoint = \"{}\"\nbucket = \"sensors\"\nflush_interval = \"1s\"\nsts_endpoint = \"{sts}\"\n\
         web_identity_token_file = \"{}\"\nrole_arn = \"arn:aws:iam:::role/sensors\"\n",
        ceph.setting("AWS_ENDPOINT_URL"),
        token.display()
    )
}

/// Answers `AssumeRoleWithWebIdentity` with keys from the gateway's own `GetSessionToken`, good for five seconds.
struct TokenService {
    port: u16,
    child: std::process::Child,
}

const TOKEN_SERVICE: &str = r#"
import boto3, datetime, http.server, os, sys, urllib.parse
boto3.client("iam", endpoint_url=os.environ["AWS_ENDPOINT_URL"]).put_user_policy(UserName="test", PolicyName="sts",
    PolicyDocument='{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["sts:GetSessionToken"],"Resource":["*"]}]}')
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        form = urllib.parse.parse_qs(self.rfile.read(int(self.headers["content-length"])).decode())
        assert form["Action"] == ["AssumeRoleWithWebIdentity"] and form["WebIdentityToken"] == ["no.valid.token"], form
        assert form["RoleArn"] == ["arn:aws:iam:::role/sensors"] and form["RoleSessionName"] == ["board-1"], form
        keys = boto3.client("sts", endpoint_url=os.environ["AWS_ENDPOINT_URL"]).get_session_token()["Credentials"]
        end = (datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=5)).strftime("%Y-%m-%dT%H:%M:%SZ")
        body = f"""<?xml version="1.0"?><AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
<AssumeRoleWithWebIdentityResult><SubjectFromWebIdentityToken>board</SubjectFromWebIdentityToken><Credentials>
<AccessKeyId>{keys["AccessKeyId"]}</AccessKeyId><SecretAccessKey>{keys["SecretAccessKey"]}</SecretAccessKey>
<SessionToken>{keys["SessionToken"]}</SessionToken><Expiration>{end}</Expiration></Credentials>
</AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>""".encode()
        self.send_response(200); self.send_header("content-length", str(len(body))); self.end_headers()
        self.wfile.write(body)
        open(sys.argv[2], "a").write("exchanged\n")
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"#;

impl TokenService {
    fn start(ceph: &Ceph, notes: &Path) -> Result<Self> {
        let port = tests::free_port()?;
        let child = tests::python_program(TOKEN_SERVICE, &ceph.env)
            .args([&port.to_string(), &notes.display().to_string()])
            .spawn()?;
        wait_until("the token service listens", Duration::from_secs(20), || {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        })?;
        Ok(Self { port, child })
    }
}

impl Drop for TokenService {
    fn drop(&mut self) {
        let _ = self.child.kill(); // It may be gone already.
        let _ = self.child.wait();
    }
}
