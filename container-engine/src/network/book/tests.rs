//! Networks and addresses as decided, without a kernel.

use super::*;
use crate::container::Protocol;

fn net(text: &str) -> Ipv4Net {
    text.parse().unwrap()
}

fn book() -> Book {
    let mut book = Book::default();
    book.default_network(&super::super::Options::default(), &[], 1).unwrap();
    book
}

fn spec(name: &str) -> NetworkSpec {
    NetworkSpec { name: name.into(), ..NetworkSpec::default() }
}

fn request(id: &str, mode: NetworkMode) -> AttachRequest {
    AttachRequest {
        sandbox: id.into(),
        owner: Owner::Local,
        mode,
        ports: Vec::new(),
        hostname: id.into(),
        names: vec![id.into()],
        cni_args: BTreeMap::new(),
        bandwidth: None,
    }
}

fn at(network: &str, address: &str) -> NetworkMode {
    let address = address.parse().ok();
    NetworkMode::Networks(vec![Attachment { network: network.into(), address, aliases: vec![] }])
}

#[test]
fn networks_are_checked() {
    #[track_caller]
    fn check(change: impl FnOnce(&mut NetworkSpec), want: Result<&str, &str>) {
        let mut book = book();
        book.add_network(&Owner::Local, spec("first"), &[], 1).unwrap();
        let mut spec = spec("second");
        change(&mut spec);
        let routes = [net("192.168.1.0/24")];
        match (book.add_network(&Owner::Local, spec, &routes, 2), want) {
            (Ok(network), Ok(want)) => assert_eq!(format!("{} {}", network.subnet, network.gateway), want),
            (Err(error), Err(want)) => assert!(error.to_string().contains(want), "{error}"),
            (got, want) => panic!("{got:?}, not {want:?}"),
        }
    }
    check(|_| {}, Ok("10.89.1.0/24 10.89.1.1"));
    check(|spec| spec.subnet = Some(net("10.50.1.7/24")), Ok("10.50.1.0/24 10.50.1.1"));
    check(|spec| spec.subnet = Some(net("10.88.9.0/24")), Err("overlaps network \"bridge\""));
    check(|spec| spec.subnet = Some(net("192.168.0.0/16")), Err("overlaps a route of this host (192.168.1.0/24)"));
    check(|spec| spec.subnet = Some(net("10.50.0.0/31")), Err("8 to 30"));
    check(|spec| spec.gateway = Some([10, 50, 0, 1].into()), Err("gateway 10.50.0.1 is not"));
    check(|spec| spec.ipv6 = "fd00::/120".parse().ok(), Err("16 to 96"));
    for name in ["first", "bridge"] {
        check(|spec| spec.name = name.into(), Err("exists already"));
    }
    for name in ["", "a b", "../x", "host", "none", "-x", &"x".repeat(129)] {
        check(|spec| spec.name = name.into(), Err("cannot be the name"));
    }
}

#[test]
fn owners_have_networks_of_their_own_and_share_the_default() {
    let mut book = book();
    let job = Owner::Job("7".into());
    book.add_network(&job, spec("backend"), &[], 1).unwrap();
    assert!(book.resolve(&job, "backend").is_ok());
    assert!(book.resolve(&Owner::Local, "backend").is_err());
    assert!(book.resolve(&job, "bridge").is_ok());
    let other = book.add_network(&Owner::Local, spec("backend"), &[], 1).unwrap();
    assert_ne!(other.device, book.networks[&book.resolve(&job, "backend").unwrap()].device);
}

#[test]
fn addresses_wished_for() {
    #[track_caller]
    fn check(mode: NetworkMode, want: Result<&str, &str>) {
        let mut book = book();
        let six = NetworkSpec { ipv6: "fd00:7::/64".parse().ok(), ..spec("six") };
        book.add_network(&Owner::Local, six, &[], 1).unwrap();
        book.reserve(&request("first", at("bridge", "10.88.0.9")), Path::new("/run"), false).unwrap();
        match (book.reserve(&request("box", mode), Path::new("/run"), false), want) {
            (Ok(sandbox), Ok(want)) => {
                let nets = sandbox.endpoints.iter().flat_map(|endpoint| &endpoint.interface.addresses);
                assert_eq!(nets.map(ToString::to_string).collect::<Vec<_>>().join(" "), want);
            }
            (Err(error), Err(want)) => {
                assert!(error.to_string().contains(want), "{error}");
                assert!(!book.sandboxes.contains_key("box"), "something is left");
            }
            (got, want) => panic!("{got:?}, not {want:?}"),
        }
    }
    check(at("bridge", "10.88.7.7"), Ok("10.88.7.7/16"));
    check(at("bridge", "10.88.0.9"), Err("in use by first"));
    check(at("bridge", "10.88.0.1"), Err("not one that network \"bridge\" can give"));
    check(at("bridge", "10.88.255.255"), Err("not one"));
    check(at("bridge", "10.99.0.1"), Err("not one"));
    check(at("bridge", "fd00::1"), Err("IPv4 alone"));
    check(at("six", "10.89.0.7"), Ok("10.89.0.7/24 fd00:7::a59:7/64"));
    check(at("six", "fd00:7::1"), Err("not one"));
    check(at("missing", ""), Err("no network \"missing\""));
    check(NetworkMode::None, Ok(""));
}

#[test]
fn the_default_network_moves_only_while_nothing_is_on_it() {
    let options = super::super::Options::default();
    let mut book = book();
    assert!(book.default_network(&options, &[], 2).is_none(), "nothing changed");
    book.reserve(&request("box", NetworkMode::Bridge), Path::new("/run"), false).unwrap();
    assert!(book.default_network(&options, &[net("10.88.0.0/24")], 2).is_none(), "in use");
    book.sandboxes.clear();
    let moved = book.default_network(&options, &[net("10.88.0.0/24"), net("10.128.0.0/9")], 2).unwrap();
    assert_eq!(moved.subnet, net("172.16.0.0/16"));
    let back = book.default_network(&options, &[], 3).unwrap();
    assert_eq!(back.subnet, net("10.88.0.0/16"));
}

#[test]
fn interfaces_are_numbered_and_one_place_on_a_network_is_enough() {
    let mut book = book();
    book.add_network(&Owner::Local, spec("front"), &[], 1).unwrap();
    let both = |names: &[&str]| {
        let attachment = |name: &&str| Attachment { network: (*name).into(), ..Attachment::default() };
        NetworkMode::Networks(names.iter().map(attachment).collect())
    };
    let sandbox = book.reserve(&request("box", both(&["bridge", "front"])), Path::new("/run"), false).unwrap();
    let names: Vec<_> = sandbox.endpoints.iter().map(|endpoint| endpoint.interface.name.as_str()).collect();
    assert_eq!(names, ["eth0", "eth1"]);
    assert_eq!(book.attached(&sandbox).dns, [IpAddr::from([10, 89, 0, 1])]);
    let error = book.reserve(&request("twice", both(&["front", "front"])), Path::new("/run"), false).unwrap_err();
    assert!(matches!(error, AttachError::AlreadyThere { .. }));
}

#[test]
fn ids_that_are_no_file_names_are_refused() {
    for id in ["", "..", "../x", ".hidden", "a/b", "a b", &"x".repeat(129)] {
        assert!(check_id(id).is_err(), "{id:?}");
    }
    assert!(check_id("0123456789abcdef").is_ok() && check_id("pod_1.x-y").is_ok());
}

#[test]
fn a_small_network_runs_out_and_says_so() {
    let mut book = book();
    let small = NetworkSpec { subnet: Some(net("10.50.0.0/29")), ..spec("small") };
    book.add_network(&Owner::Local, small, &[], 1).unwrap();
    for n in 0..5 {
        book.reserve(&request(&format!("box{n}"), at("small", "")), Path::new("/run"), false).unwrap();
    }
    let error = book.reserve(&request("last", at("small", "")), Path::new("/run"), false).unwrap_err();
    assert!(error.to_string().contains("no free address in 10.50.0.0/29"), "{error}");
    book.sandboxes.remove("box3");
    book.reserve(&request("last", at("small", "")), Path::new("/run"), false).unwrap();
}

#[test]
fn an_ipv6_address_leads_to_ipv6_alone() {
    let port =
        PortMapping { host_address: "::1".parse().ok(), host_port: 0, container_port: 80, protocol: Protocol::Tcp };
    let wanted = AttachRequest { ports: vec![port], ..request("box", NetworkMode::Bridge) };
    let error = book().reserve(&wanted, Path::new("/run"), false).unwrap_err();
    assert!(error.to_string().contains("::1 cannot be published"), "{error}");
}

#[test]
fn internal_networks_publish_nothing() {
    let mut book = book();
    let deep = NetworkSpec { internal: true, ..spec("deep") };
    book.add_network(&Owner::Local, deep, &[], 1).unwrap();
    let port = PortMapping { host_address: None, host_port: 0, container_port: 80, protocol: Protocol::Tcp };
    let wanted = AttachRequest { ports: vec![port], ..request("box", at("deep", "")) };
    let error = book.reserve(&wanted, Path::new("/run"), false).unwrap_err();
    assert!(error.to_string().contains("internal networks"), "{error}");
}

#[test]
fn a_pod_gets_the_address_it_had_and_nobody_else_meanwhile() {
    let run = Path::new("/run");
    let pod = |id: &str, address: &str| AttachRequest {
        owner: Owner::Pod(id.into()),
        ..request(id, if address.is_empty() { NetworkMode::Bridge } else { at("bridge", address) })
    };
    let first = |sandbox: &Sandbox| sandbox.endpoints[0].interface.addresses[0].addr().to_string();
    let mut book = book();
    // Not where the search for a free one would begin.
    let was = book.reserve(&pod("one", "10.88.7.7"), run, false).unwrap();
    assert_eq!(first(&was), "10.88.7.7");
    // The board restarted: the record is there, its network is not, and others ask first.
    let error = book.reserve(&request("other", at("bridge", "10.88.7.7")), run, false).unwrap_err();
    assert!(error.to_string().contains("in use by one"), "{error}");
    let back = book.reserve_again(&pod("one", ""), Some(was.clone()), run, false).unwrap();
    assert_eq!(first(&back), "10.88.7.7");
    assert_ne!(back.endpoints[0].device, "", "it has a device of its own");
    // A wish of its own counts more, and so does a network that has moved.
    let moved = book.reserve_again(&pod("one", "10.88.8.8"), Some(back), run, false).unwrap();
    assert_eq!(first(&moved), "10.88.8.8");
    let mut elsewhere = moved.clone();
    elsewhere.endpoints[0].interface.addresses = vec!["10.99.0.1/16".parse().unwrap()];
    let anew = book.reserve_again(&pod("one", ""), Some(elsewhere), run, false).unwrap();
    assert!(first(&anew).starts_with("10.88."), "{}", first(&anew));
    // What cannot be had keeps the record of a pod, and of nobody else.
    let many = |owner: Owner| {
        let networks = vec![Attachment { network: "missing".into(), ..Attachment::default() }];
        AttachRequest { owner, ..request("one", NetworkMode::Networks(networks)) }
    };
    assert!(book.reserve_again(&many(Owner::Pod("one".into())), Some(anew.clone()), run, false).is_err());
    assert!(book.sandboxes.get("one").is_some_and(|kept| !kept.complete && first(kept) == first(&anew)));
    let local = Sandbox { owner: Owner::Local, ..anew };
    assert!(book.reserve_again(&many(Owner::Local), Some(local), run, false).is_err());
    assert!(!book.sandboxes.contains_key("one"));
}
