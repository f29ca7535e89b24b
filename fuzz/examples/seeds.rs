//! Writes the seeds in `corpus/`, with the encoders that clients and this program use. To do it again, in `fuzz/`:
//! `RUSTFLAGS="--cfg fuzzing" cargo run --example seeds`.

use std::{fs, path::Path, time::Duration};

use board::clock::Stamp;
use bytes::{Bytes, BytesMut};
use rumqttc::{
    mqttbytes::{QoS, v4},
    v5::mqttbytes::{QoS as Qos5, v5},
};
use store::log::{Log, Options, Record, fuzzing as log};
use telemetry::{decode::cbor, reading};

fn main() {
    topics();
    lines();
    readings();
    payloads();
    mqtt4();
    mqtt5();
    blocks();
    segments();
    values();
    networks();
    containers();
    registries();
    layers();
    archives();
    dockerfiles();
}

fn save(target: &str, name: &str, parts: &[&[u8]]) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&dir).expect("a folder for seeds");
    fs::write(dir.join(name), parts.concat()).expect("a seed");
}

fn lines() {
    save("socket_line", "plain", &[b"lab/room1/temperature 21.5"]);
    save("socket_line", "json", &[br#"{"topic": "lab/room 1", "payload": {"t": 21.5}}"#]);
    save("socket_line", "bytes", &[br#"{"topic": "lab/scope", "payload_b64": "/wEC"}"#]);
    save("socket_line", "bad", &[b"lab/+ 1"]);
}

fn networks() {
    // `web A`, recursion desired, with EDNS; `2.0.0.10.in-addr.arpa PTR`.
    let head = |extra: u8| [0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, extra];
    let opt = [0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0];
    save("dns", "name", &[&[0], &head(1), b"\x03web\0\0\x01\0\x01", &opt]);
    save("dns", "pointer", &[&[3], &head(0), b"\x012\x010\x010\x0210\x07in-addr\x04arpa\0\0\x0c\0\x01"]);
    let result = br#"{"cniVersion":"1.0.0","interfaces":[{"name":"cni0"},{"name":"eth0","mac":"0a:00","sandbox":"/n"}],
        "ips":[{"address":"10.1.0.2/16","gateway":"10.1.0.1","interface":1}],"dns":{"nameservers":["10.1.0.53"]}}"#;
    save("cni", "result", &[result]);
    let list = br#"{"cniVersion":"0.4.0","cniVersions":["0.4.0","1.1.0"],"name":"n","disableCheck":true,
        "plugins":[{"type":"bridge"},{"type":"portmap","capabilities":{"portMappings":true}}]}"#;
    save("cni", "list", &[list]);
    save("cni", "single", &[br#"{"cniVersion":"0.3.1","name":"n","type":"ptp"}"#]);
}

fn containers() {
    let lines = b"2026-11-25T16:20:13.000000001Z stdout F out\n2026-11-25T16:20:13.1+01:00 stderr P err\n";
    save("cri_log", "lines", &[lines]);
    save("cri_log", "torn", &[lines, b"{\"log\":\"x\"}\n2026-11-"]);
    save("shim_frame", "request", &[&[9, 3, 0, 0, 0, 0, 0, 0, 20], br#"{"v":1,"op":"state"}"#]);
    save("shim_frame", "input", &[&[3, 0, 0, 0, 0, 0, 0, 0, 2], b"ab", &[4, 0, 0, 0, 0, 0, 0, 0]]);
}

fn registries() {
    let digest = format!("sha256:{}", "a".repeat(64));
    let entry = |more: &str| format!(r#"{{"mediaType":"m","digest":"{digest}","size":3{more}}}"#);
    let image = format!(r#"{{"schemaVersion":2,"config":{0},"layers":[{0}],"annotations":{{"a":"b"}}}}"#, entry(""));
    save("manifest", "image", &[image.as_bytes()]);
    let platform = r#","platform":{"os":"linux","architecture":"arm","variant":"v6"},"artifactType":"x""#;
    let kind = "application/vnd.oci.image.index.v1+json";
    let index = format!(r#"{{"schemaVersion":2,"mediaType":"{kind}","manifests":[{}]}}"#, entry(platform));
    save("manifest", "index", &[index.as_bytes()]);
    save("manifest", "schema1", &[br#"{"schemaVersion":1,"fsLayers":[]}"#]);
    save("manifest", "bearer", &[&[1], br#"Bearer realm="https://a.x/t",service="x",scope="repository:a:pull""#]);
    save("manifest", "basic", &[&[1], br#"Basic realm="x", Bearer realm="https://a\"b""#]);
    save("reference", "short", &[b"alpine"]);
    save("reference", "whole", &[format!("localhost:5000/a__b/c-d.e:v1.0@{digest}").as_bytes()]);
    save("reference", "ipv6", &[b"[::1]:5000/a"]);
    save("reference", "platform", &[b"linux/arm/v7"]);
}

/// One entry of a layer: a header, and its bytes filled up to whole blocks.
fn entry(name: &str, kind: u8, link: &str, data: &[u8]) -> Vec<u8> {
    let mut header = [0; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..108].copy_from_slice(b"0000755\0");
    header[108..116].copy_from_slice(b"0000000\0");
    header[116..124].copy_from_slice(b"0000000\0");
    header[124..136].copy_from_slice(format!("{:011o}\0", data.len()).as_bytes());
    header[136..148].copy_from_slice(b"14646112000\0");
    header[156] = kind;
    header[157..157 + link.len()].copy_from_slice(link.as_bytes());
    header[257..265].copy_from_slice(b"ustar\x0000");
    let mut all = header.to_vec();
    all.extend_from_slice(data);
    all.resize(all.len().next_multiple_of(512), 0);
    all
}

fn layers() {
    let end = vec![0; 1024];
    let whole = |entries: &[Vec<u8>]| {
        let mut archive = [&entries.concat(), &end[..]].concat();
        container_engine::snapshot::fuzzing::seal(&mut archive);
        archive
    };
    let tree = [
        entry("etc/", b'5', "", b""),
        entry("etc/hosts", b'0', "", b"127.0.0.1 localhost\n"),
        entry("etc/link", b'2', "/etc/hosts", b""),
        entry("etc/hard", b'1', "etc/hosts", b""),
    ];
    save("layer_tar", "tree", &[&[0], &whole(&tree)]);
    let removed = [entry("etc/.wh.hosts", b'0', "", b""), entry("var/.wh..wh..opq", b'0', "", b"")];
    save("layer_tar", "whiteouts", &[&[0], &whole(&removed)]);
    // The first target of an attacker: a way out over a link.
    let out = [entry("a", b'2', "../outside", b""), entry("a/victim", b'0', "", b"gone")];
    save("layer_tar", "way-out", &[&[1], &whole(&out)]);
    let record = b"30 mtime=1700000000.123456789\n23 SCHILY.xattr.user.a=b\n";
    save("layer_tar", "extended", &[&[0], &whole(&[entry("pax", b'x', "", record), entry("x", b'6', "", b"")])]);
    let long = [entry("long", b'L', "", &[b'n'; 300]), entry("n", b'0', "", b"1")];
    save("layer_tar", "long-name", &[&[0], &whole(&long)]);
}

fn archives() {
    let digest = format!("sha256:{}", "a".repeat(64));
    let docker = format!(r#"[{{"Config":"{}.json","RepoTags":["busybox:1"],"Layers":["l/layer.tar"]}}]"#, &digest[7..]);
    save("image_archive", "docker", &[docker.as_bytes()]);
    let names = r#"{"io.containerd.image.name":"docker.io/library/busybox:1","org.opencontainers.image.ref.name":"1"}"#;
    let entry = format!(r#"{{"mediaType":"m","digest":"{digest}","size":3,"annotations":{names}}}"#);
    save("image_archive", "layout", &[format!(r#"{{"schemaVersion":2,"manifests":[{entry}]}}"#).as_bytes()]);
    save("image_archive", "old", &[br#"{"busybox":{"1":"0123"},"other/name":{}}"#]);
    save("image_archive", "old-layer", &[br#"{"id":"0123","parent":"4567","config":{"Cmd":["sh"]},"os":"linux"}"#]);
}

fn dockerfiles() {
    let stages = b"# syntax=docker/dockerfile:1\nARG V=1\nFROM --platform=$BUILDPLATFORM alpine:${V#v} AS build\n# V of it\nARG V\n\
        RUN --mount=type=cache,target=/c,sharing=locked --network=none [\"a\", \"b\"]\nRUN <<-E cat \\\n && x\n\ty\n\tE\n\
        FROM scratch\nCOPY --from=build --chown=1:2 --parents /a/./b ${V:-c} /d/\nADD --checksum=sha256:a https://x/y.git#r:s /\n\
        HEALTHCHECK --interval=1m30s CMD x\nONBUILD COPY <<'A' /x\n$V\nA\n";
    save("dockerfile", "stages", &[&[0], stages]);
    let metadata = b"# escape=`\n# check=skip=JSONArgsRecommended;error=true\nfrom a as B\nENV A b c\nLABEL \"x y\"='z' w=${A//b/c}\nEXPOSE 80-82/UDP\n\
        VOLUME [\"/v\"]\nUSER u`\n\n:g\nWORKDIR w\nSHELL [\"s\"]\nCMD x\nENTRYPOINT y\nSTOPSIGNAL 9\nMAINTAINER m\n";
    save("dockerfile", "metadata", &[&[0], metadata]);
    save("dockerfile", "ignore", &[&[1], b"# x\n**/*.o\n!keep/[a-c]?.o\ndocs/**\n\nkeep/b1.o"]);
}

fn topics() {
    save("topic", "plain", &[b"sport/tennis/+\nsport/tennis/player1"]);
    save("topic", "below", &[b"sport/#\nsport"]);
    save("topic", "hidden", &[b"+/monitor/#\n$SYS/monitor/x"]);
    save("topic", "bad", &[b"a/#/b+\n/"]);
}

fn readings() {
    let stamp = Stamp { wall_us: 1_795_000_000_000_000, boot: 300, uptime_us: 77_000_000, trusted: true };
    save("reading", "plain", &[&reading::encode(&stamp, "room/temp", b"21.5")]);
    let early = Stamp { wall_us: -5, boot: 0, uptime_us: 0, trusted: false };
    save("reading", "untrusted", &[&reading::encode(&early, "\u{e4}", b"")]);
}

fn payloads() {
    save("measurements", "number", &[b" -21.5e1\n"]);
    save("measurements", "truth", &[b"true"]);
    save("measurements", "flat", &[br#"{"t":1,"ok":false,"s":"x","n":null,"a":[1],"in":{"d":2.5}}"#]);
    save("measurements", "long", &[b"*\xff\xff"]);
    let json = br#"[{"bn":"dev:","bt":1.276020076001e9,"bu":"A","bver":5,"n":"voltage","u":"V","v":120.1},
{"n":"label","t":-5,"vs":"Machine Room"},{"n":"open","vb":false},{"n":"nfc","vd":"aGkgCg"},{"bv":2,"s":1}]"#;
    save("measurements", "pack", &[json]);
    save("senml", "pack", &[json]);
    save("senml", "recipe", &[br#"*@@@{"n":"a","v":1,"u":"V"}"#]);
    let record = std::collections::BTreeMap::from([(-3i64, 1.276e9), (-5, 1.0), (2, 20.5), (6, 3.0)]);
    let names = std::collections::BTreeMap::from([(-2i64, "dev:"), (0, "t"), (1, "Cel"), (3, "x")]);
    save("senml", "cbor", &[&cbor::to_vec(&(names.clone(), record.clone())).expect("CBOR")]);
    save("measurements", "cbor", &[&cbor::to_vec(&(names, record)).expect("CBOR")]);
}

fn mqtt4() {
    let mut connect = BytesMut::new();
    let mut it = v4::Connect::new("client");
    it.last_will = Some(v4::LastWill::new("gone", "bye", QoS::AtLeastOnce, true));
    it.login = Some(v4::Login::new("user", "password"));
    it.write(&mut connect).expect("CONNECT");
    let mut rest = BytesMut::new();
    let mut publish = v4::Publish::new("room/temp", QoS::AtLeastOnce, "21.5");
    publish.pkid = 7;
    publish.write(&mut rest).expect("PUBLISH");
    v4::PubRel::new(7).write(&mut rest).expect("PUBREL");
    let mut subscribe = v4::Subscribe::new("room/#", QoS::ExactlyOnce);
    subscribe.pkid = 8;
    subscribe.write(&mut rest).expect("SUBSCRIBE");
    let unsubscribe = v4::Unsubscribe { pkid: 9, topics: vec!["room/#".into()] };
    unsubscribe.write(&mut rest).expect("UNSUBSCRIBE");
    rest.extend_from_slice(&[0x40, 2, 0, 7, 0xc0, 0, 0xe0, 0]);
    save("mqtt", "v4-connect", &[&[0x30], &connect, &rest]);
    save("mqtt", "v4", &[&[0x12], &rest]);
}

fn mqtt5() {
    let mut connect = BytesMut::new();
    let will = v5::LastWill::new("gone", "bye", Qos5::ExactlyOnce, false, None);
    let properties = v5::ConnectProperties { session_expiry_interval: Some(60), ..v5::ConnectProperties::new() };
    let it = v5::Connect { keep_alive: 9, client_id: "c".into(), clean_start: true, properties: Some(properties) };
    it.write(&Some(will), &Some(v5::Login::new("user", "password")), &mut connect).expect("CONNECT");
    let mut rest = BytesMut::new();
    let properties = v5::PublishProperties {
        payload_format_indicator: Some(1),
        message_expiry_interval: Some(30),
        topic_alias: Some(2),
        response_topic: Some("answer".into()),
        correlation_data: Some(Bytes::from_static(b"id")),
        user_properties: vec![("key".into(), "value".into())],
        content_type: Some("text/plain".into()),
        ..v5::PublishProperties::default()
    };
    let mut publish = v5::Publish::new("room/temp", Qos5::ExactlyOnce, "21.5", Some(properties));
    publish.pkid = 7;
    publish.write(&mut rest).expect("PUBLISH");
    let filter = v5::Filter::new("room/+", Qos5::AtLeastOnce);
    let properties = v5::SubscribeProperties { id: Some(3), user_properties: Vec::new() };
    v5::Subscribe { pkid: 8, filters: vec![filter], properties: Some(properties) }.write(&mut rest).expect("SUBSCRIBE");
    let unsubscribe = v5::Unsubscribe { pkid: 9, filters: vec!["room/+".into()], properties: None };
    unsubscribe.write(&mut rest).expect("UNSUBSCRIBE");
    v5::PubRec::new(7, None).write(&mut rest).expect("PUBREC");
    rest.extend_from_slice(&[0xe0, 2, 4, 0]);
    save("mqtt", "v5-connect", &[&[0x50], &connect, &rest]);
    save("mqtt", "v5", &[&[0x13], &rest]);
}

fn blocks() {
    let records = [b"21.5".to_vec(), Vec::new(), b"reading ".repeat(90)].map(|body| Record { mark: 2, body });
    for (name, records) in [("one", &records[..1]), ("packed", &records[..])] {
        let block = log::encode(2, 42, records);
        save("log_block", &format!("bytes-{name}"), &[&[0], &block]);
        save("log_block", &format!("sealed-{name}"), &[&[1], &block]);
    }
    save("log_block", "records", &[&[3, 2, 9, 77], b"21.521.621.7 and something longer"]);
}

/// What a real log writes: two commits, a checkpoint, another commit.
fn segments() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path().join("log");
    let options = Options { segment_bytes: 64 << 10, linger: Duration::ZERO, max_bytes: 64 << 20 };
    let (log, _) = Log::open(&dir, options).expect("a log");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    for n in 0..3u8 {
        let bodies = [vec![b'a' + n; 10], b"reading ".repeat(70 * usize::from(n))];
        let records = bodies.map(|body| Record { mark: n & 1, body }).to_vec();
        runtime.block_on(log.append(records)).expect("appended");
        if n == 1 {
            log.checkpoint("relay", b"progress".to_vec());
            runtime.block_on(log.sync_checkpoints()).expect("kept");
        }
    }
    log.close();
    // The name that the target gives its first segment.
    let bytes = fs::read(dir.join("0000000000000001-00000002.seg")).expect("the first segment");
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let used = &bytes[usize::try_from(log::DATA_START).expect("small")..end];
    save("log_open", "whole", &[&[0], used]);
    save("log_open", "sealed", &[&[1], used]);
    save("log_open", "torn", &[&[0], &used[..used.len() - 5]]);
    let second = log::encode(3, 7, &[Record { mark: 0, body: b"another".to_vec() }]);
    let second = [&second[..], &vec![0; used.len() - second.len()]].concat();
    save("log_open", "two", &[&[2 | 5 << 2], used, &second]);
}

fn values() {
    let json: &[u8] = br#"{"name":"a","numbers":[1,-2],"inner":{"name":"b","numbers":[],"inner":null}}"#;
    let whole = |version: u8, json: &[u8]| {
        let mut head = [&[0, version, 0, 0, 0, 0, 0], json].concat();
        store::state::fuzzing::seal(&mut head);
        head
    };
    save("state_value", "whole", &[&[0], &whole(2, json)]);
    save("state_value", "sealed", &[&[1], &whole(2, json)]);
    save("state_value", "grown", &[&[4], &whole(2, json)]);
    save("state_value", "old", &[&[1], &whole(1, b"\"name\"")]);
    let framed = &whole(2, json)[1..];
    let parts = u8::try_from(framed.len().div_ceil(32)).expect("few");
    let head = [&[1, parts, 0, 0, 0][..], &vec![0; framed.len() - 5]].concat();
    save("state_value", "parts", &[&[2 | 31 << 3], &head, framed]);
}
