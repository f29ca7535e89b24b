//! What is refused, and how it is told: readings by HTTP, the configuration, wrong usage; and the words of `status`,
//! `doctor`, `/metrics` and their like.
//!
//! Elsewhere: 503 of a full outbox (`outbox.rs`); MQTT (`listener_abuse.rs`).

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use tests::{Agent, free_port, python, wait_until};

const PATIENCE: Duration = Duration::from_secs(30);

/// A request by curl: status and body.
fn request(agent: &Agent, path: &str, args: &[&str]) -> Result<(u16, String)> {
    let url = format!("http://127.0.0.1:{}{path}", agent.http);
    let output =
        Command::new("curl").args(["-s", "--path-as-is", "-w", "%{http_code}"]).args(args).arg(&url).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = text.split_at(text.len().saturating_sub(3));
    Ok((status.parse()?, body.to_owned()))
}

/// It is refused with this status, in JSON, with words for people.
fn refused(agent: &Agent, path: &str, args: &[&str], status: u16, word: &str) -> Result<()> {
    let (got, body) = request(agent, path, args)?;
    ensure!(got == status, "{path} {args:?}: {got} instead of {status}: {body}");
    let json: serde_json::Value = serde_json::from_str(&body).with_context(|| format!("{path} {args:?}: {body}"))?;
    let told = |key: &str| json[key].as_str().is_some_and(|text| !text.is_empty());
    ensure!(told("error") && told("hint") && body.contains(word), "{path} {args:?}: {word} is not in {body}");
    Ok(())
}

#[test]
fn what_http_refuses_is_json_and_counted_and_stores_nothing() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut agent = Agent::new(dir.path(), "")?;
    agent.reconfigure(|text| text.replace("[http]\n", "[http]\nmax_body = \"64KiB\"\n"))?;
    agent.start()?;
    let (status, body) = request(&agent, "/v1/telemetry/lab/t", &["-d", "21.5"])?;
    ensure!(status == 204 && body.is_empty(), "{status} {body}");
    let large = dir.path().join("large");
    std::fs::write(&large, vec![b'1'; 70_000])?;
    let large = format!("@{}", large.display());
    let senml = "content-type: application/senml+json";
    let ndjson = "content-type: application/x-ndjson; charset=utf-8";
    let cases: &[(&str, &[&str], u16, &str)] = &[
        ("/v1/telemetry/a/%2B", &["-d", "1"], 400, "wildcard"),
        ("/v1/telemetry/a/%23", &["-d", "1"], 400, "wildcard"),
        ("/v1/telemetry/$SYS/x", &["-d", "1"], 400, "reserved"),
        ("/v1/telemetry/a%00", &["-d", "1"], 400, "NUL"),
        ("/v1/telemetry/%ff%fe", &["-d", "1"], 400, "UTF-8"),
        ("/v1/telemetry/", &["-d", "1"], 400, "empty"),
        ("/v1/telemetry", &["-d", "1"], 400, "empty"),
        ("/v1/telemetry/a", &["-H", senml, "-d", "{\"n\":1}"], 400, "SenML"),
        ("/v1/telemetry/a", &["-H", senml, "-d", "[{\"v\":1}]"], 400, "SenML"),
        ("/v1/telemetry/a", &["-H", "content-type: application/senml+cbor", "-d", "xyz"], 400, "SenML"),
        ("/v1/telemetry/a", &["-H", ndjson, "-d", ""], 400, "no line"),
        ("/v1/telemetry/a", &["-H", ndjson, "--data-binary", " \n\n"], 400, "no line"),
        ("/v1/telemetry/a", &["-H", "content-encoding: gzip", "-d", "1"], 415, "content-encoding"),
        ("/v1/telemetry/a", &["--data-binary", &large], 413, "http.max_body"),
        ("/v1/telemetry/a", &["-H", "transfer-encoding: chunked", "--data-binary", &large], 413, "http.max_body"),
        ("/v1/telemetry/a", &[], 405, "POST"),
        ("/v1/telemetry/a", &["-X", "PUT", "-d", "1"], 405, "POST"),
        ("/v2/telemetry/a", &["-d", "1"], 404, "/v1/telemetry/TOPIC"),
        ("/metrics", &["-X", "POST", "-d", "1"], 405, "GET"),
    ];
    for (path, args, status, word) in cases {
        refused(&agent, path, args, *status, word)?;
    }
    let (status, _) = request(&agent, "/v1/telemetry/a%2Fb%20c", &["-H", senml, "-d", " [{\"n\":\"x\",\"v\":1}]"])?;
    ensure!(status == 204, "SenML after white space: {status}");
    let counted = |status: u16| agent.metric(&format!("edge_agent_http_refused_total{{status=\"{status}\"}}"));
    for status in [400, 413, 415, 405] {
        let want = cases.iter().filter(|case| case.2 == status && case.0 != "/metrics").count() as u64;
        ensure!(counted(status)? == want, "{} of {want} answers {status} are counted", counted(status)?);
    }
    let rows = agent.query()?;
    let topics: Vec<_> = rows.iter().filter_map(|row| row["topic"].as_str()).collect();
    ensure!(topics == ["lab/t", "a/b c"], "what was refused is stored, or what was accepted is not: {rows:?}");
    Ok(())
}

#[test]
fn tokens_come_before_everything_else() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut agent = Agent::new(dir.path(), "")?;
    agent.reconfigure(|text| text.replace("[http]\n", "[http]\ntokens = [\"one-token\", \"two-token\"]\n"))?;
    agent.start()?;
    for args in [
        &["-d", "1"][..],
        &["-H", "authorization: Bearer no-token", "-d", "1"],
        &["-H", "authorization: Basic one-token", "-d", "1"],
    ] {
        refused(&agent, "/v1/telemetry/lab/t", args, 401, "bearer token")?;
    }
    let (_, headers) = request(&agent, "/v1/telemetry/lab/t", &["-i", "-d", "1"])?;
    ensure!(headers.to_lowercase().contains("www-authenticate: bearer"), "{headers}");
    // Who has none is told so though the body never comes.
    let mut stream = TcpStream::connect(("127.0.0.1", agent.http))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"POST /v1/telemetry/a HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\n")?;
    let mut begin = [0; 12];
    stream.read_exact(&mut begin)?;
    ensure!(begin == *b"HTTP/1.1 401", "{}", String::from_utf8_lossy(&begin));
    let (status, _) = request(&agent, "/v1/telemetry/lab/t", &["-H", "authorization: Bearer two-token", "-d", "1"])?;
    ensure!(status == 204 && agent.query()?.len() == 1);
    ensure!(!agent.whole_log().contains("-token"), "{}", agent.whole_log());
    Ok(())
}

#[test]
fn slow_and_many_connections_do_not_stop_the_others_for_long() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut agent = Agent::new(dir.path(), "")?;
    agent.start()?;
    ensure!(request(&agent, "/v1/telemetry/lab/t", &["-d", "before"])?.0 == 204);
    // Bodies that do not come take the turns there are; one more is told to come again.
    let mut slow = Vec::new();
    for _ in 0..8 {
        let mut stream = TcpStream::connect(("127.0.0.1", agent.http))?;
        stream.write_all(b"POST /v1/telemetry/slow HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\n12345")?;
        slow.push(stream);
    }
    let busy = || request(&agent, "/v1/telemetry/lab/t", &["-i", "-d", "busy"]).unwrap_or_default();
    let mut answer = (0, String::new());
    wait_until("there are no turns left", PATIENCE, || {
        answer = busy();
        answer.0 == 429
    })?;
    ensure!(answer.1.to_lowercase().contains("retry-after:") && answer.1.contains("\"hint\""), "{answer:?}");
    ensure!(request(&agent, "/healthz", &[])?.0 == 200, "slow bodies take all connections");
    // A hundred that say half a line and no more, while the slow ones are still there.
    let mut idle = Vec::new();
    for _ in 0..100 {
        let mut stream = TcpStream::connect(("127.0.0.1", agent.http))?;
        stream.write_all(b"GET /healthz HT")?;
        idle.push(stream);
    }
    wait_until("it answers again", PATIENCE, || {
        request(&agent, "/healthz", &["-m", "2"]).is_ok_and(|(status, _)| status == 200)
    })?;
    wait_until("there are turns again", PATIENCE, || busy().0 == 204)?;
    let mut told = String::new();
    slow[0].set_read_timeout(Some(PATIENCE))?;
    slow[0].read_to_string(&mut told)?;
    ensure!(told.starts_with("HTTP/1.1 408") && told.contains("\"hint\""), "{told}");
    let rows = agent.query()?;
    let stays = rows.iter().any(|row| row["payload"] == "before") && !rows.iter().any(|row| row["topic"] == "slow");
    ensure!(stays, "{rows:?}");
    Ok(())
}

/// `config check` of this text.
fn check(dir: &Path, text: &str, env: &[(&str, &str)]) -> Result<Output> {
    let mut agent = Agent::new(dir, "")?;
    for (name, value) in env {
        agent = agent.env(name, value);
    }
    agent.reconfigure(|_| text.to_owned())?;
    agent.command(&["config", "check"])
}

#[test]
fn mistakes_in_the_configuration_name_key_line_and_remedy() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let wrong = |text: &str, env: &[(&str, &str)], words: &[&str]| -> Result<()> {
        let output = check(dir.path(), text, env)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(2), "{text:?} {env:?}: {:?} {said}", output.status);
        ensure!(said.lines().count() == 1, "{text:?}: more than one line: {said}");
        ensure!(words.iter().all(|word| said.contains(word)), "{text:?} {env:?}: {words:?} are not in {said}");
        Ok(())
    };
    let s3 = "[relay.s3]\nendpoint = \"http://h\"\nbucket = \"b\"\n";
    wrong("[outbox]\n\nmax_byte = 1", &[], &["config.toml:3", "outbox.max_byte", "did you mean `max_bytes`"])?;
    wrong("[outbx]\n", &[], &["config.toml:1", "did you mean `outbox`"])?;
    wrong("[outbox]\nmax_bytes = \"1MiB\"", &[], &["config.toml:2: outbox.max_bytes", "32MiB"])?;
    wrong("[outbox]\nlinger = \"soon\"", &[], &["config.toml:2: outbox.linger", "20ms"])?;
    wrong("[outbox]\non_full = \"explode\"", &[], &["outbox.on_full", "drop-oldest"])?;
    wrong("[outbox]\ntopics = [\"a/#/b\"]", &[], &["config.toml:2: outbox.topics"])?;
    wrong("[mqtt]\nlisten = [\"0.0.0.0:1883\"]", &[], &["config.toml:2: mqtt.listen", "mqtt.users"])?;
    wrong("[mqtt]\nlisten_tls = [\"127.0.0.1:8883\"]", &[], &["mqtt.listen_tls", "mqtt.tls_cert"])?;
    wrong("[http]\nlisten = \"0.0.0.0:80\"", &[], &["http.listen", "http.tokens"])?;
    wrong("[http]\nlisten = 80", &[], &["config.toml:2: http.listen", "a string"])?;
    wrong("[relay.s3]\nbucket = \"b\"", &[], &["relay.s3.bucket", "relay.s3.endpoint"])?;
    wrong("[relay.s3]\nendpoint = \"h\"", &[], &["config.toml:2: relay.s3.endpoint"])?;
    wrong(&format!("{s3}access_key_id = \"a\""), &[], &["config.toml:4: relay.s3.access_key_id", "secret_access_key"])?;
    wrong(&format!("{s3}ca_file = \"/none\""), &[], &["relay.s3.ca_file", "/none does not exist"])?;
    wrong("[agent\n", &[], &["config.toml:1"])?;
    wrong("", &[("EDGE_AGENT_OUTBOX__MAX_BYTES", "5")], &["EDGE_AGENT_OUTBOX__MAX_BYTES", "32MiB"])?;
    wrong("", &[("EDGE_AGENT_OUTBOX__LINGR", "5")], &["EDGE_AGENT_OUTBOX__LINGR", "did you mean `linger`"])?;
    let right =
        check(dir.path(), s3, &[("EDGE_AGENT_RELAY__S3__BUCKET", "2026"), ("EDGE_AGENT_OUTBOX__LINGER", "5ms")])?;
    ensure!(right.status.code() == Some(0), "{}", String::from_utf8_lossy(&right.stderr));
    Ok(())
}

#[test]
fn values_show_where_they_come_from_and_secrets_do_not_show() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let agent = Agent::new(dir.path(), "[relay.s3]\nendpoint = \"http://h\"\nbucket = \"b\"\naccess_key_id = \"a\"\n")?;
    let agent =
        agent.env("EDGE_AGENT_RELAY__S3__SECRET_ACCESS_KEY", "918273645").env("EDGE_AGENT_RELAY__S3__BUCKET", "2026");
    let shown = agent.command(&["config", "show", "--json"])?;
    let text = String::from_utf8_lossy(&shown.stdout).into_owned();
    ensure!(shown.status.success() && !text.contains("918273645"), "{text}");
    let entry = |key: &str| -> Result<serde_json::Value> {
        let entries = text.lines().map(serde_json::from_str).collect::<Result<Vec<serde_json::Value>, _>>()?;
        entries.into_iter().find(|it| it["key"] == key).with_context(|| format!("{key} is not in {text}"))
    };
    ensure!(
        entry("relay.s3.bucket")?["value"] == "\"2026\""
            && entry("relay.s3.bucket")?["from"] == "EDGE_AGENT_RELAY__S3__BUCKET"
    );
    ensure!(entry("board_metrics.enabled")?["from"].as_str().is_some_and(|from| from.ends_with("config.toml")));
    ensure!(entry("outbox.on_full")?["from"] == "default");
    Ok(())
}

#[test]
fn usage_versions_completions_and_exit_codes() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let agent = Agent::new(dir.path(), "")?;
    for args in
        [&["frobnicate"][..], &["run", "--frob"], &["telemetry"], &["telemetry", "put"], &["completions", "tcsh"], &[]]
    {
        let output = agent.command(args)?;
        ensure!(output.status.code() == Some(2), "{args:?}: {:?}", output.status);
    }
    for shell in ["bash", "zsh", "fish"] {
        let output = agent.command(&["completions", shell])?;
        let script = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success() && ["telemetry", "doctor", "upload"].iter().all(|it| script.contains(it)),
            "{shell}"
        );
    }
    let version: serde_json::Value = serde_json::from_slice(&agent.command(&["--version", "--json"])?.stdout)?;
    ensure!(
        version["name"] == "edge-agent" && version["version"].as_str().is_some_and(|it| it.contains('.')),
        "{version}"
    );
    let status = agent.command(&["status"])?;
    let said = String::from_utf8_lossy(&status.stderr).into_owned();
    ensure!(status.status.code() == Some(1) && said.contains("agent.sock"), "{:?} {said}", status.status);
    Ok(())
}

#[test]
fn doctor_looks_at_the_network_and_says_how_to_mend() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let closed = free_port()?;
    let relay = format!("[relay.s3]\nendpoint = \"http://127.0.0.1:{closed}\"\nbucket = \"b\"\n");
    let agent = Agent::new(dir.path(), &relay)?;
    let output = agent.command(&["doctor", "--json"])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let checks = text.lines().map(serde_json::from_str).collect::<Result<Vec<serde_json::Value>, _>>()?;
    let of = |name: &str| checks.iter().find(|it| it["name"] == name).with_context(|| format!("no {name} in {text}"));
    for name in ["kernel", "cgroups", "disk", "clock", "data"] {
        of(name)?;
    }
    let network = of("network")?;
    ensure!(
        network["ok"] == false && network["found"].as_str().is_some_and(|it| it.contains(&closed.to_string())),
        "{network}"
    );
    for check in &checks {
        ensure!((check["ok"] == true) == check["remedy"].is_null(), "a remedy where one is needed: {check}");
    }
    ensure!(output.status.code() == Some(3), "{:?}", output.status);
    let _open = std::net::TcpListener::bind(("127.0.0.1", closed))?;
    let output = agent.command(&["doctor"])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(text.lines().any(|line| line.starts_with(" ok  network")), "{text}");
    // Who vouches for this machine's clock is not the test's to say.
    let want = if text.lines().any(|line| line.starts_with("FAIL")) { 3 } else { 0 };
    ensure!(output.status.code() == Some(want), "{:?} {text}", output.status);
    Ok(())
}

/// The reference parser reads all of it, and names the types as Prometheus will.
const METRICS: &str = r#"
import os, urllib.request
from prometheus_client.openmetrics.parser import text_string_to_metric_families
answer = urllib.request.urlopen(f'http://127.0.0.1:{os.environ["PORT"]}/metrics')
assert answer.headers['content-type'].startswith('application/openmetrics-text; version=1.0.0'), answer.headers
families = {it.name: it for it in text_string_to_metric_families(answer.read().decode())}
kinds = {'edge_agent_outbox_accepted': 'counter', 'edge_agent_outbox_dropped': 'counter', 'edge_agent_http_refused': 'counter',
         'edge_agent_mqtt_clients': 'gauge', 'edge_agent_log_disk_bytes': 'gauge', 'edge_agent_outbox_durable_seconds': 'histogram'}
for name, kind in kinds.items():
    assert families[name].type == kind and families[name].documentation, (name, families.get(name))
accepted = families['edge_agent_outbox_accepted'].samples[0]
assert accepted.name == 'edge_agent_outbox_accepted_total' and accepted.value == 1, accepted
"#;

#[test]
fn health_status_and_metrics_of_a_board_that_is_well() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut agent = Agent::new(dir.path(), "")?;
    agent.start()?;
    for path in ["/healthz", "/readyz"] {
        ensure!(request(&agent, path, &[])? == (200, "ok".to_owned()), "{path}");
    }
    let (status, page) = request(&agent, "/", &[])?;
    ensure!(status == 200 && page.contains("board-1"), "{status} {page}");
    ensure!(agent.command(&["telemetry", "put", "lab/t", "1"])?.status.success());
    refused(&agent, "/v1/telemetry/a/%2B", &["-d", "1"], 400, "wildcard")?;
    let env: BTreeMap<_, _> = [("PORT".to_owned(), agent.http.to_string())].into();
    python(METRICS, &env)?;
    let status = agent.command(&["status"])?;
    ensure!(status.status.code() == Some(0), "{}", String::from_utf8_lossy(&status.stdout));
    Ok(())
}
