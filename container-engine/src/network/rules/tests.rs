//! What the kernel made of our messages, in the words of Debian's `nft`: one that is not ours to fool.

use std::process::Command;

use super::{super::netlink::Netlink, *};
use crate::{owner::Owner, sys::netns};

const TABLE: &str = "edge-agent";

fn network(name: &str, device: &str, subnet: &str, ipv6: Option<&str>, internal: bool) -> Network {
    let subnet: Ipv4Net = subnet.parse().unwrap();
    Network {
        name: name.into(),
        owner: Owner::Local,
        id: String::new(),
        device: device.into(),
        gateway: subnet.hosts().next().unwrap(),
        subnet,
        ipv6: ipv6.map(|net| net.parse().unwrap()),
        gateway6: None,
        internal,
        labels: BTreeMap::new(),
        created_ns: 0,
    }
}

fn redirect(protocol: Protocol, address: Option<&str>, port: u16, to: &str, to_port: u16) -> Redirect {
    Redirect { protocol, address: address.map(|a| a.parse().unwrap()), port, to: to.parse().unwrap(), to_port }
}

fn nft(args: &[&str]) -> String {
    let output = Command::new("nft").args(args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs in a network namespace of its own.
fn apart<T: Send>(work: impl FnOnce(&mut Netlink) -> T + Send) -> T {
    netns::create(None, |_| Ok(work(&mut Netlink::netfilter()?))).unwrap().1
}

#[test]
fn nft_reads_the_rules_as_they_were_meant() {
    let listed = apart(|socket| {
        let networks = [
            network("bridge", "edge0", "10.88.0.0/16", Some("fd00:7::/64"), false),
            network("deep", "eb-000000000001", "10.89.0.0/24", None, true),
        ];
        let redirects = [
            redirect(Protocol::Tcp, None, 8080, "10.88.0.5", 80),
            redirect(Protocol::Sctp, Some("192.0.2.2"), 81, "10.88.0.5", 81),
            redirect(Protocol::Udp, None, 53, "fd00:7::5", 5353),
            redirect(Protocol::Tcp, Some("fd00::2"), 443, "fd00:7::5", 443),
        ];
        rebuild(TABLE, networks.iter(), &redirects).commit(socket).unwrap();
        // Again, in place of itself.
        rebuild(TABLE, networks.iter(), &redirects).commit(socket).unwrap();
        nft(&["list", "ruleset"])
    });
    assert_eq!(normal(&listed), normal(include_str!("ruleset.nft")));
    // And `nft` itself makes the same of that text.
    let theirs = apart(|_| {
        nft(&["-f", concat!(env!("CARGO_MANIFEST_DIR"), "/src/network/rules/ruleset.nft")]);
        nft(&["list", "ruleset"])
    });
    assert_eq!(normal(&listed), normal(&theirs));
}

/// One line a statement, elements in order: the kernel hashes them.
fn normal(text: &str) -> Vec<String> {
    let joined = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut lines = Vec::new();
    for part in joined.split_inclusive(['{', '}', ';']) {
        let mut elements: Vec<&str> = part.split(", ").map(|one| one.trim_end_matches(['}', ' ']).trim()).collect();
        elements.sort_unstable();
        lines.push(elements.join(", "));
    }
    lines
}

#[test]
fn elements_come_and_go_all_or_none() {
    apart(|socket| {
        let networks = [network("bridge", "edge0", "10.88.0.0/16", None, false)];
        rebuild(TABLE, networks.iter(), &[]).commit(socket).unwrap();
        let many: Vec<_> = (1..=1000).map(|port| redirect(Protocol::Tcp, None, port, "10.88.0.5", port)).collect();
        let change = |redirects: &[Redirect], add: bool, socket: &mut Netlink| {
            let mut batch = Batch::default();
            if add {
                super::add(&mut batch, TABLE, redirects);
            } else {
                super::delete(&mut batch, TABLE, redirects);
            }
            batch.commit(socket)
        };
        change(&many, true, socket).unwrap();
        change(&many, true, socket).unwrap(); // The same once more is no error.
        let map = || nft(&["list", "map", "inet", TABLE, "ports4"]);
        assert_eq!(map().matches("10.88.0.5").count(), 1000);
        // Another target for the same port is refused, and so is all that came with it.
        let other =
            [redirect(Protocol::Tcp, None, 2000, "10.88.0.6", 1), redirect(Protocol::Tcp, None, 7, "10.88.0.6", 1)];
        assert_eq!(change(&other, true, socket).unwrap_err().error.kind(), std::io::ErrorKind::AlreadyExists);
        assert!(!map().contains("10.88.0.6"));
        change(&many, false, socket).unwrap();
        assert!(!map().contains("10.88.0.5"));
        assert_eq!(change(&many[..1], false, socket).unwrap_err().error.kind(), std::io::ErrorKind::NotFound);
    });
}

#[test]
fn ports_lead_to_the_address_of_their_family() {
    #[track_caller]
    fn check(host: Option<&str>, want: &[&str]) {
        let host_address = host.map(|host| host.parse().unwrap());
        let port = BoundPort { host_address, host_port: 80, container_port: 8080, protocol: Protocol::Tcp };
        let all = redirects(&[port], Some([10, 0, 0, 2].into()), "fd00::2".parse().ok());
        let shown: Vec<_> =
            all.iter().map(|r| format!("{} -> {}", r.address.map_or("*".into(), |a| a.to_string()), r.to)).collect();
        assert_eq!(shown, want, "{host:?}");
    }
    check(None, &["* -> 10.0.0.2", "* -> fd00::2"]);
    check(Some("127.0.0.1"), &["127.0.0.1 -> 10.0.0.2"]);
    check(Some("0.0.0.0"), &["* -> 10.0.0.2"]);
    check(Some("::"), &["* -> fd00::2"]);
    check(Some("fd00::9"), &["fd00::9 -> fd00::2"]);
}
