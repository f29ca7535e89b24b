//! Configuration files, right and wrong.

use std::path::Path;

use telemetry::s3;

use super::{checked::USUAL_DATA_DIR, *};

fn load(text: &str) -> Result<Loaded, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    std::fs::write(&file, text).unwrap();
    Sources { file: Some(file), ..Sources::default() }.load()
}

#[track_caller]
fn refused(text: &str, words: &[&str]) {
    let error = load(text).err().expect("this configuration is wrong").to_string();
    for word in words {
        assert!(error.contains(word), "{error:?} does not say {word:?}");
    }
}

#[test]
fn an_empty_file_is_valid() {
    let config = load("").unwrap().config;
    assert_eq!(config.mqtt.listen, ["127.0.0.1:1883".parse().unwrap()]);
    assert_eq!(config.http_listen, Some("127.0.0.1:9250".parse().unwrap()));
}

#[test]
fn mistakes_name_the_line_the_key_and_the_remedy() {
    refused("[mqtt]\n\nlisten_tsl = []", &["config.toml:3", "mqtt.listen_tsl", "did you mean `listen_tls`"]);
    refused("[outbocks]\nx = 1", &["outbocks", "did you mean `outbox`"]);
    refused("[outbox]\nlinger = \"5 weeks\"", &["config.toml:2", "outbox.linger", "20ms"]);
    refused("[outbox]\nmax_bytes = \"1MiB\"", &["config.toml:2", "outbox.max_bytes", "32MiB"]);
    refused("[outbox]\non_full = \"explode\"", &["config.toml:2", "outbox.on_full", "drop-oldest"]);
    refused("[outbox]\non_full = \"Refuse\"", &["\"refuse\" or \"drop-oldest\""]);
    refused("mqtt = 5", &["config.toml:1", "[mqtt]"]);
    refused("[relay.s3]\nbucket = \"b\"", &["config.toml:2", "relay.s3.bucket", "relay.s3.endpoint"]);
    refused("[relay.mqtt]\nusername = \"b\"", &["config.toml:2", "relay.mqtt.username", "relay.mqtt.url"]);
    refused("[mqtt]\nlisten = [\"0.0.0.0:1883\"]", &["config.toml:2", "mqtt.users"]);
    refused("[mqtt]\nlisten = [\"here\"]", &["mqtt.listen", "127.0.0.1:1883"]);
    refused("[http]\nlisten = \"0.0.0.0:80\"", &["http.tokens"]);
    refused("[mqtt\n", &["config.toml:1"]);
    refused("[outbox]\ntopics = [\"a/#/b\"]", &["outbox.topics"]);
    refused("[mqtt.users.ann]\npassword = \"pbkdf2-sha256$x\"", &["mqtt.users.ann.password"]);
    refused("[agent]\nname = \"two words\"", &["agent.name"]);
}

#[test]
fn every_key_shows_its_origin_and_no_secret() {
    let loaded = load("[outbox]\nlinger = \"1s\"\n[mqtt.users.ann]\npassword = \"hush\"").unwrap();
    let all = entries(&loaded.figment);
    let entry = |key: &str| all.iter().find(|entry| entry.key == key).unwrap_or_else(|| panic!("{key} in {all:#?}"));
    assert!(entry("outbox.linger").from.ends_with("config.toml"));
    assert_eq!(entry("outbox.max_bytes").from, "default");
    assert_eq!(entry("mqtt.users.ann.password").value, "***");
}

#[test]
fn no_message_shows_a_secret() {
    for (section, line) in [
        ("mqtt.users.ann", "password = 918273"),
        ("http", "tokens = \"918273\""),
        ("http", "tokens = [918273]"),
        ("relay.s3", "secret_access_key = 918273"),
        ("relay.mqtt", "password = 918273"),
        ("relay.mqtt", "url = \"mqtt://ann:918273@host\""),
        ("relay.s3", "endpoint = \"https://ann:918273@host\""),
    ] {
        let error = load(&format!("[{section}]\n{line}")).err().expect(line).to_string();
        assert!(error.contains("config.toml:2") && !error.contains("918273"), "{error}");
    }
}

#[test]
fn the_example_is_valid_and_so_are_its_commented_keys() {
    let text = include_str!("../../../images/config.example.toml");
    // Two ways to the keys of S3 exclude each other.
    let other = ["web_identity_token_file", "role_arn", "sts_endpoint"];
    let uncommented: String = text
        .lines()
        .filter(|line| !other.iter().any(|key| line.contains(key)))
        .map(|line| format!("{}\n", line.strip_prefix("#: ").unwrap_or(line)))
        .collect();
    for text in [text, &uncommented] {
        if let Err(error) = load(text) {
            // The files that the example names are not on this machine.
            assert!(error.to_string().contains("does not exist"), "{error}");
        }
    }
}

#[test]
fn ways_to_the_keys_of_s3() {
    let with = |keys: &str| format!("[relay.s3]\nendpoint = \"http://localhost\"\nbucket = \"b\"\n{keys}");
    let options = |keys: &str| load(&with(keys)).map(|it| it.config.relay_s3.unwrap().target.credentials);
    assert!(matches!(options("").unwrap(), s3::Credentials::Environment));
    assert!(matches!(options("credentials_file = \"/x\"").unwrap(), s3::Credentials::File(_)));
    let token = "web_identity_token_file = \"/t\"\nrole_arn = \"arn\"";
    let s3::Credentials::WebIdentity(identity) = options(token).unwrap() else { panic!("{token}") };
    assert_eq!(identity.sts.as_str(), "http://localhost/");
    refused(&with("access_key_id = \"a\""), &["relay.s3.access_key_id", "secret_access_key"]);
    refused(&with(&format!("prefix = \"{}\"", "p".repeat(600))), &["relay.s3.prefix", "512"]);
    refused(&with("role_arn = \"a\""), &["relay.s3.role_arn", "web_identity_token_file"]);
    refused(&with(&format!("credentials_file = \"/x\"\n{token}")), &["relay.s3.credentials_file", "excludes"]);
    refused(&with("flush_bytes = \"1GiB\""), &["relay.s3.flush_bytes", "8MiB"]);
    refused("[uploads]\npart_bytes = \"1MiB\"", &["uploads.part_bytes", "5MiB"]);
    refused("[board_metrics]\ntopic = \"a/#\"", &["board_metrics.topic"]);
}

#[test]
fn the_engine() {
    let engine = |keys: &str| load(&format!("[engine]\n{keys}")).map(|it| it.config.engine);
    let it = engine("").unwrap();
    assert!(it.enabled && it.runtime == "embedded" && it.quota.is_none());
    // Engines on other data leave each other's groups, rules and devices alone.
    let options = |data: &str, keys: &str| engine(keys).unwrap().options(Path::new(data), Path::new("/run/x"));
    let usual = options(USUAL_DATA_DIR, "");
    assert_eq!((usual.cgroup_parent.as_str(), usual.network.instance.as_str()), ("", ""));
    assert_eq!(usual.network.device, "edge0");
    let (one, other) = (options("/srv/one", ""), options("/srv/other", ""));
    assert_eq!(one.cgroup_parent, format!("edge-{}", one.network.instance));
    assert!(one.network.instance != other.network.instance && one.network.device != other.network.device);
    let named = options("/srv/one", "cgroup_parent = \"machine.slice\"\nbridge = \"br7\"");
    assert_eq!((named.cgroup_parent.as_str(), named.network.device.as_str()), ("machine.slice", "br7"));
    assert_eq!(named.network.instance, one.network.instance);
    let keys = "runtime = \"crun\"\nquota = \"2GiB\"\ninsecure = [\"127.0.0.1:5000\"]\n\
                mirrors = { \"docker.io\" = [\"http://127.0.0.1:5000\"] }\nsubnet = \"10.9.0.0/24\"\nlog_max_files = 2";
    let it = engine(keys).unwrap();
    assert_eq!((it.runtime.as_str(), it.quota, it.log_max_files), ("crun", Some(2 << 30), 2));
    assert_eq!(it.registry.mirrors["docker.io"], ["http://127.0.0.1:5000"]);
    for (keys, words) in [
        ("runtme = \"runc\"", &["config.toml:2", "engine.runtme", "did you mean `runtime`"][..]),
        ("runtime = \"podman\"", &["engine.runtime", "embedded"]),
        ("runtime = \"/nonexistent/runc\"", &["engine.runtime", "/nonexistent/runc"]),
        ("cgroup_parent = \"a/../b\"", &["engine.cgroup_parent"]),
        ("bridge = \"a-name-that-is-too-long\"", &["engine.bridge", "edge0"]),
        ("parallel_downloads = 0", &["engine.parallel_downloads", "from 1 to 32"]),
        ("docker_socket = true", &["engine.docker_socket", "not available yet"]),
        ("high_water = 70\nlow_water = 80", &["engine.low_water", "below"]),
        ("quota = \"1MiB\"", &["engine.quota", "64MiB"]),
        ("subnet = \"10.9.0.0\"", &["engine.subnet", "10.88.0.0/16"]),
        ("subnet = \"10.9.0.0/31\"", &["engine.subnet"]),
        ("log_max_size = \"1kB\"", &["engine.log_max_size"]),
        ("log_max_files = 0", &["engine.log_max_files"]),
        ("seccomp_profile = \"/nonexistent.json\"", &["engine.seccomp_profile", "/nonexistent.json"]),
        ("insecure = [\"http://x\"]", &["engine.insecure", "HOST"]),
        ("mirrors = { \"docker.io\" = [\"\"] }", &["engine.mirrors"]),
    ] {
        refused(&format!("[engine]\n{keys}"), words);
    }
}
