//! Networks of containers, on a board and a LAN made of network namespaces.

use std::{collections::BTreeSet, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use container_engine::{
    container::{Attachment, NetworkMode, PortMapping, Protocol},
    network::{AttachRequest, CniOptions, NetworkSpec, Networks, Options},
    owner::Owner,
};
use tests::lan::{ASK_TCP, BOARD, Lan, ask_udp, on_a_board, request, sh};
use tests::wait_until;

fn port(host: u16, container: u16, protocol: Protocol) -> PortMapping {
    PortMapping { host_address: None, host_port: host, container_port: container, protocol }
}

fn on(names: &[&str]) -> NetworkMode {
    let attachment = |name: &&str| Attachment { network: (*name).into(), ..Attachment::default() };
    NetworkMode::Networks(names.iter().map(attachment).collect())
}

fn create(lan: &Lan, name: &str, change: impl FnOnce(&mut NetworkSpec)) -> Result<()> {
    let mut spec = NetworkSpec { name: name.into(), ..NetworkSpec::default() };
    change(&mut spec);
    lan.runtime.block_on(lan.networks.create(&Owner::Local, spec))?;
    Ok(())
}

/// Runs a command here or in a namespace and wants its output to begin so.
fn expect(from: Option<&Path>, command: &str, want: &str) -> Result<()> {
    let got = from.map_or_else(|| sh(command), |netns| Lan::within(netns, command))?;
    let got = got.trim();
    let fits = if want.is_empty() { got.is_empty() } else { got.starts_with(want) };
    ensure!(fits, "{command} from {from:?}: {got:?}, not {want:?}");
    Ok(())
}

fn refused(from: &Path, command: &str) -> Result<()> {
    ensure!(Lan::within(from, command).is_err(), "{command} from {} worked", from.display());
    Ok(())
}

#[test]
fn two_containers_the_host_and_the_world_reach_each_other() -> Result<()> {
    on_a_board(|lan| {
        ensure!(sh("ip -br link show type bridge")?.is_empty(), "an idle board has a bridge");
        let a = lan.attach("a", NetworkMode::Bridge, vec![])?;
        let ports = vec![port(8080, 80, Protocol::Tcp), port(5353, 53, Protocol::Udp)];
        let b = lan.attach("b", NetworkMode::Bridge, ports)?;
        let (own, address) = (Lan::address(&a)?, Lan::address(&b)?);
        let (a, b) = (a.netns.context("a")?, b.netns.context("b")?);
        let far = lan.neighbour.clone();
        let _tcp = Lan::serve(&b, "tcp", 80, "from-b $SOCAT_PEERADDR")?;
        let _udp = Lan::serve(&b, "udp", 53, "udp-from-b")?;
        expect(Some(&a), &format!("{ASK_TCP}{address}:80"), &format!("from-b {own}"))?;
        expect(None, &format!("{ASK_TCP}{address}:80"), "from-b")?;
        for from in [None, Some(a.as_path()), Some(b.as_path()), Some(far.as_path())] {
            expect(from, &format!("{ASK_TCP}{BOARD}:8080"), "from-b")?;
            expect(from, &ask_udp(&format!("{BOARD}:5353")), "udp-from-b")?;
        }
        expect(None, &format!("{ASK_TCP}127.0.0.1:8080"), "from-b")?;
        expect(None, &ask_udp("127.0.0.1:5353"), "udp-from-b")?;
        // Out, behind the board's address; and not in, but through a published port.
        let _far = Lan::serve(&far, "tcp", 81, "far $SOCAT_PEERADDR")?;
        expect(Some(&a), &format!("{ASK_TCP}192.0.2.1:81"), &format!("far {BOARD}"))?;
        Lan::within(&far, &format!("ip route add 10.88.0.0/16 via {BOARD}"))?;
        refused(&far, &format!("socat -T1 - TCP:{address}:80,connect-timeout=1"))?;
        lan.runtime.block_on(lan.networks.detach("b"))?;
        ensure!(!b.exists(), "the namespace is left");
        ensure!(!sh("nft list map inet edge-agent ports4")?.contains("8080"), "a rule is left");
        let devices = || sh("ip -br link show type veth master edge0").map_or(9, |out| out.lines().count());
        wait_until("the device is gone", Duration::from_secs(5), || devices() == 1)?;
        Ok(())
    })
}

#[test]
fn a_udp_sender_that_never_pauses_finds_the_container() -> Result<()> {
    on_a_board(|lan| {
        let send = &ask_udp("192.0.2.2:5140,sourceport=5555,reuseaddr");
        // Before anybody is there: the kernel remembers a connection to the host itself.
        let _ = Lan::within(&lan.neighbour, send);
        for name in ["first", "second"] {
            let attached = lan.attach(name, NetworkMode::Bridge, vec![port(5140, 514, Protocol::Udp)])?;
            let _server = Lan::serve(&attached.netns.context("netns")?, "udp", 514, name)?;
            expect(Some(&lan.neighbour), send, name)?;
            lan.runtime.block_on(lan.networks.detach(name))?;
        }
        Ok(())
    })
}

#[test]
fn published_ports_over_ipv6() -> Result<()> {
    on_a_board(|lan| {
        sh("ip addr add fd00:1::2/64 dev eth0 nodad")?;
        Lan::within(&lan.neighbour, "ip addr add fd00:1::1/64 dev far nodad")?;
        lan.reopen(|options| options.ipv6 = "fd00:88::/64".parse().ok())?;
        let a = lan.attach("a", NetworkMode::Bridge, vec![])?;
        let b = lan.attach("b", NetworkMode::Bridge, vec![port(8080, 80, Protocol::Tcp)])?;
        let six = b.interfaces[0].addresses.iter().find(|net| net.addr().is_ipv6()).context("no IPv6 address")?.addr();
        let (a, b) = (a.netns.context("a")?, b.netns.context("b")?);
        let _server = Lan::serve(&b, "tcp6", 80, "six")?;
        expect(Some(&a), &format!("socat -T3 - TCP6:[{six}]:80"), "six")?;
        for from in [None, Some(a.as_path()), Some(b.as_path()), Some(lan.neighbour.as_path())] {
            expect(from, "socat -T3 - TCP6:[fd00:1::2]:8080", "six")?;
        }
        let _far = Lan::serve(&lan.neighbour, "tcp6", 81, "far")?;
        expect(Some(&a), "socat -T3 - TCP6:[fd00:1::1]:81", "far")
    })
}

#[test]
fn ports_are_held_and_conflicts_name_the_holder() -> Result<()> {
    on_a_board(|lan| {
        let at = |port: u16| PortMapping {
            host_address: Some([127, 0, 0, 1].into()),
            ..self::port(port, 80, Protocol::Tcp)
        };
        let any =
            lan.attach("any", NetworkMode::Bridge, vec![port(0, 80, Protocol::Tcp), port(8080, 81, Protocol::Tcp)])?;
        ensure!(any.ports[0].host_port != 0);
        let error =
            lan.attach("other", NetworkMode::Bridge, vec![port(8080, 80, Protocol::Tcp)]).unwrap_err().to_string();
        ensure!(error.contains("8080/tcp") && error.contains("container \"any\""), "{error}");
        let error = lan.attach("other", NetworkMode::Bridge, vec![at(8080)]).unwrap_err().to_string();
        ensure!(error.contains("container \"any\""), "{error}");
        ensure!(lan.networks.attached("other").is_none());
        // Another protocol is another port.
        lan.attach("udp", NetworkMode::Bridge, vec![port(8080, 80, Protocol::Udp)])?;
        lan.runtime.block_on(lan.networks.detach("any"))?;
        let local = lan.attach("local", NetworkMode::Bridge, vec![at(8080)])?;
        let _server = Lan::serve(&local.netns.context("local")?, "tcp", 80, "only-here")?;
        expect(None, &format!("{ASK_TCP}127.0.0.1:8080"), "only-here")?;
        refused(&lan.neighbour, &format!("socat -T1 - TCP:{BOARD}:8080,connect-timeout=1"))
    })
}

#[test]
fn user_networks_are_apart_and_have_names() -> Result<()> {
    on_a_board(|lan| {
        create(lan, "front", |_| {})?;
        create(lan, "back", |spec| spec.ipv6 = "fd00:7::/64".parse().ok())?;
        create(lan, "deep", |spec| spec.internal = true)?;
        let web = lan.attach("web", on(&["front", "back"]), vec![port(8080, 80, Protocol::Tcp)])?;
        let db = lan.attach("db", on(&["back"]), vec![])?;
        let guest = lan.attach("guest", on(&["front"]), vec![])?;
        let hidden = lan.attach("hidden", on(&["deep"]), vec![])?;
        let secret = lan.attach("secret", on(&["deep"]), vec![])?;
        let at = |attached: &container_engine::network::Attached| attached.netns.clone().context("netns");
        let (web_ns, db_ns, guest_ns, hidden_ns) = (at(&web)?, at(&db)?, at(&guest)?, at(&hidden)?);
        let (db_at, secret_at) = (Lan::address(&db)?, Lan::address(&secret)?);
        let _db = Lan::serve(&db_ns, "tcp", 5432, "db")?;
        let _web = Lan::serve(&web_ns, "tcp", 80, "web")?;
        let _secret = Lan::serve(&at(&secret)?, "tcp", 80, "secret")?;
        let _far = Lan::serve(&lan.neighbour, "tcp", 81, "far")?;
        expect(Some(&web_ns), &format!("{ASK_TCP}{db_at}:5432"), "db")?;
        refused(&guest_ns, &format!("socat -T1 - TCP:{db_at}:5432,connect-timeout=1"))?;
        expect(Some(&guest_ns), &format!("{ASK_TCP}{BOARD}:8080"), "web")?;
        expect(Some(&db_ns), &format!("{ASK_TCP}192.0.2.1:81"), "far")?;
        refused(&hidden_ns, "socat -T1 - TCP:192.0.2.1:81,connect-timeout=1")?;
        expect(Some(&hidden_ns), &format!("{ASK_TCP}{secret_at}:80"), "secret")?;
        // Names: of the asker's networks alone.
        let dig = |netns: &Path, server: &str, rest: &str| {
            Lan::within(netns, &format!("dig +short +time=2 +tries=1 @{server} {rest}"))
        };
        let (front, back, deep) = (web.dns[0].to_string(), db.dns[0].to_string(), hidden.dns[0].to_string());
        ensure!(dig(&web_ns, &front, "db A")?.trim() == db_at, "db from web");
        ensure!(dig(&web_ns, &front, "DB AAAA")?.trim().starts_with("fd00:7::"), "AAAA of db");
        ensure!(dig(&db_ns, &back, &format!("+tcp -x {}", Lan::address(&db)?))?.trim() == "db.", "PTR of db");
        ensure!(dig(&hidden_ns, &deep, "secret")?.trim() == secret_at, "secret");
        ensure!(Lan::within(&hidden_ns, &format!("dig +time=2 +tries=1 @{deep} example.org"))?.contains("NXDOMAIN"));
        ensure!(dig(&guest_ns, &back, "db").is_err(), "a stranger is answered");
        // The rest is asked of the host's resolver, here the neighbour.
        let _resolver = dnsmasq(lan)?;
        ensure!(dig(&guest_ns, &front, "printer.lan.example")?.trim() == "192.0.2.77", "forwarded");
        ensure!(dig(&guest_ns, &front, "+tcp printer.lan.example")?.trim() == "192.0.2.77", "forwarded over TCP");
        ensure!(dig(&guest_ns, &front, "db")?.trim().is_empty(), "a name of another network");
        // Connect and disconnect while running.
        let there = Attachment { network: "back".into(), aliases: vec!["visitor".into()], address: None };
        let interface = lan.runtime.block_on(lan.networks.connect("guest", there))?;
        ensure!(interface.name == "eth1");
        expect(Some(&guest_ns), &format!("{ASK_TCP}{db_at}:5432"), "db")?;
        ensure!(!dig(&db_ns, &back, "visitor")?.trim().is_empty(), "alias");
        let in_use = lan.runtime.block_on(lan.networks.remove(&Owner::Local, "back")).unwrap_err().to_string();
        ensure!(in_use.contains("guest") && in_use.contains("web"), "{in_use}");
        lan.runtime.block_on(lan.networks.disconnect("guest", "front"))?;
        expect(Some(&guest_ns), &format!("{ASK_TCP}192.0.2.1:81"), "far")?;
        lan.runtime.block_on(async {
            for id in ["web", "db", "guest", "hidden", "secret"] {
                lan.networks.detach(id).await?;
            }
            for name in ["front", "back", "deep"] {
                lan.networks.remove(&Owner::Local, name).await?;
            }
            anyhow::Ok(())
        })?;
        ensure!(sh("ip -br link show type bridge")?.is_empty(), "a bridge is left");
        Ok(())
    })
}

fn dnsmasq(lan: &Lan) -> Result<tests::lan::Running> {
    let args = "--keep-in-foreground --no-resolv --no-hosts --bind-interfaces --listen-address=192.0.2.1 \
        --host-record=printer.lan.example,192.0.2.77 --pid-file= --user=root";
    let running = Lan::start(&lan.neighbour, &format!("exec dnsmasq {args}"))?;
    wait_until("dnsmasq listens", Duration::from_secs(10), || {
        Lan::within(&lan.neighbour, "ss -Hlun sport = 53").is_ok_and(|out| !out.trim().is_empty())
    })?;
    Ok(running)
}

#[test]
fn fifty_at_once() -> Result<()> {
    on_a_board(|lan| {
        let attached = lan.runtime.block_on(async {
            let mut tasks = tokio::task::JoinSet::new();
            for n in 0..50u16 {
                let networks = lan.networks.clone();
                let ports = vec![port(9000 + n, 80, Protocol::Tcp)];
                tasks.spawn(
                    async move { networks.attach(request(&format!("box{n}"), NetworkMode::Bridge, ports)).await },
                );
            }
            tasks.join_all().await
        });
        let attached = attached.into_iter().collect::<Result<Vec<_>, _>>()?;
        let addresses: BTreeSet<_> = attached.iter().filter_map(|one| Lan::address(one).ok()).collect();
        ensure!(addresses.len() == 50, "{} addresses", addresses.len());
        let last = attached[49].netns.as_ref().context("netns")?;
        let _server = Lan::serve(last, "tcp", 80, "last")?;
        expect(None, &format!("{ASK_TCP}127.0.0.1:{}", attached[49].ports[0].host_port), "last")?;
        lan.runtime.block_on(async {
            let mut tasks = tokio::task::JoinSet::new();
            for n in 0..50 {
                let networks = lan.networks.clone();
                tasks.spawn(async move { networks.detach(&format!("box{n}")).await });
            }
            tasks.join_all().await.into_iter().collect::<Result<Vec<_>, _>>()
        })?;
        ensure!(std::fs::read_dir(lan.dir.join("run/netns"))?.count() == 0, "namespaces are left");
        let devices = || sh("ip -br link show type veth master edge0").map_or(9, |out| out.lines().count());
        wait_until("the devices are gone", Duration::from_secs(5), || devices() == 0)?;
        Ok(())
    })
}

#[test]
fn killed_and_found_again() -> Result<()> {
    on_a_board(|lan| {
        create(lan, "front", |_| {})?;
        let stays = lan.attach("stays", on(&["front"]), vec![port(8080, 80, Protocol::Tcp)])?;
        lan.attach("goes", NetworkMode::Bridge, vec![port(8081, 80, Protocol::Tcp)])?;
        let netns = stays.netns.clone().context("netns")?;
        let _server = Lan::serve(&netns, "tcp", 80, "still")?;
        // Leftovers that no record knows, the table gone, and the records of the state as well.
        sh("ip link add ev0123456789ab type veth peer name lost && nft delete table inet edge-agent")?;
        for lose_the_state in [false, true] {
            if lose_the_state {
                lan.lose_the_state()?;
            }
            lan.reopen(|_| {})?;
            let report = lan.runtime.block_on(lan.networks.recover(&BTreeSet::from(["stays".to_owned()])))?;
            ensure!(report.problems.is_empty() && report.kept == ["stays"] && report.lost.is_empty(), "{report:?}");
            ensure!(lose_the_state || report.released == ["goes"], "{report:?}");
            ensure!(lan.networks.attached("stays") == Some(stays.clone()), "{:?}", lan.networks.attached("stays"));
            expect(None, &format!("{ASK_TCP}127.0.0.1:8080"), "still")?;
            ensure!(
                Lan::within(&netns, &format!("dig +short @{} stays", stays.dns[0]))?.trim() == Lan::address(&stays)?
            );
        }
        ensure!(!sh("ip -br link")?.contains("ev0123456789ab"), "a lost device is left");
        // Nothing is handed out twice.
        let again = lan.attach("again", on(&["front"]), vec![])?;
        ensure!(Lan::address(&again)? != Lan::address(&stays)?);
        let error = lan.attach("third", NetworkMode::Bridge, vec![port(8080, 80, Protocol::Tcp)]).unwrap_err();
        ensure!(error.to_string().contains("\"stays\""), "{error}");
        // The board restarts: the namespaces are gone, the records are not.
        container_engine::sys::netns::release(&netns)?;
        lan.reopen(|_| {})?;
        let report = lan.runtime.block_on(lan.networks.recover(&BTreeSet::from(["stays".to_owned()])))?;
        ensure!(report.lost == ["stays"] && report.released == ["again"], "{report:?}");
        let back = lan.attach("stays", on(&["front"]), vec![port(8080, 80, Protocol::Tcp)])?;
        ensure!(Lan::address(&back)? == Lan::address(&stays)?, "another address than before");
        Ok(())
    })
}

#[test]
fn networks_of_pods_outlive_their_containers_and_the_boot() -> Result<()> {
    on_a_board(|lan| {
        let pod = |uid: &str| AttachRequest {
            owner: Owner::Pod(uid.into()),
            ..request(&format!("pod-{uid}"), NetworkMode::Bridge, vec![])
        };
        let attach = |lan: &Lan, uid: &str| lan.runtime.block_on(lan.networks.attach(pod(uid)));
        let first = attach(lan, "one")?;
        let address = Lan::address(&first)?;
        // The agent was killed, and no container of the pod runs: nothing of its network changes.
        lan.reopen(|_| {})?;
        let report = lan.runtime.block_on(lan.networks.recover(&BTreeSet::new()))?;
        ensure!(report.problems.is_empty() && report.kept == ["pod-one"], "{report:?}");
        ensure!(lan.networks.attached("pod-one") == Some(first.clone()), "{:?}", lan.networks.attached("pod-one"));
        ensure!(attach(lan, "one")? == first, "another network than before");
        // The board restarts: namespaces and what lies under RUN are gone. Others take every address but the pod's.
        for uid in ["one", "two"] {
            let attached = attach(lan, uid)?;
            container_engine::sys::netns::release(attached.netns.as_deref().context("netns")?)?;
        }
        std::fs::remove_dir_all(lan.dir.join("run"))?;
        lan.reopen(|_| {})?;
        let report = lan.runtime.block_on(lan.networks.recover(&BTreeSet::new()))?;
        ensure!(report.problems.is_empty() && report.lost == ["pod-one", "pod-two"], "{report:?}");
        ensure!(lan.networks.attached("pod-one").is_none(), "a network that is gone is said to be there");
        let wish = Attachment { network: "bridge".into(), address: Some(address.parse()?), ..Attachment::default() };
        let taken = lan.attach("other", NetworkMode::Networks(vec![wish]), vec![]).unwrap_err();
        ensure!(taken.to_string().contains("in use by"), "{taken}");
        let back = attach(lan, "one")?;
        ensure!(Lan::address(&back)? == address, "{} and not {address}", Lan::address(&back)?);
        let _server = Lan::serve(back.netns.as_deref().context("netns")?, "tcp", 80, "back")?;
        expect(None, &format!("{ASK_TCP}{address}:80"), "back")?;
        // Only the pod's end gives its address back.
        for uid in ["one", "two"] {
            lan.runtime.block_on(lan.networks.detach(&format!("pod-{uid}")))?;
        }
        ensure!(lan.networks.sandboxes().is_empty(), "{:?}", lan.networks.sandboxes());
        Ok(())
    })
}

/// What [`killed_at_any_moment`] kills: attaches and detaches without end.
#[test]
fn victim() -> Result<()> {
    let Some(dir) = std::env::var_os("EDGE_AGENT_VICTIM") else { return Ok(()) };
    let (runtime, networks) = tests::lan::open(Path::new(&dir))?;
    runtime.block_on(async {
        networks.recover(&BTreeSet::new()).await?;
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..8u16 {
            let networks = networks.clone();
            tasks.spawn(async move {
                loop {
                    let ports = vec![port(9000 + n, 80, Protocol::Tcp), port(9000 + n, 80, Protocol::Udp)];
                    networks.attach(request(&format!("box{n}"), NetworkMode::Bridge, ports)).await?;
                    networks.detach(&format!("box{n}")).await?;
                }
            });
        }
        tasks.join_next().await.context("no task")??
    })
}

#[test]
fn killed_at_any_moment_nothing_leaks() -> Result<()> {
    on_a_board(|lan| {
        let mut dice = tests::Dice::new();
        let dir = lan.dir.join("victim");
        let mut released = 0;
        for round in 0..tests::rounds(12) {
            let mut victim = std::process::Command::new(std::env::current_exe()?);
            victim.args(["--exact", "victim"]).env("EDGE_AGENT_VICTIM", &dir).stdout(std::process::Stdio::null());
            let mut victim = victim.spawn()?;
            let begun = || std::fs::read_dir(dir.join("run/netns")).is_ok_and(|held| held.count() > 0);
            wait_until("the victim has begun", Duration::from_secs(30), begun)?;
            dice.pause(Duration::from_millis(100));
            victim.kill()?;
            victim.wait()?;
            let (runtime, networks) = tests::lan::open(&dir)?;
            let report = runtime.block_on(networks.recover(&BTreeSet::new()))?;
            ensure!(report.problems.is_empty(), "round {round}: {report:?}");
            released += report.released.len();
            ensure!(networks.list(None).iter().all(|info| info.endpoints.is_empty()), "an address is left");
            let held = std::fs::read_dir(dir.join("run/netns")).map_or(0, Iterator::count);
            ensure!(held == 0, "round {round}: {held} namespaces are left");
            let devices = || sh("ip -br link show type veth").map_or(9, |out| out.matches("ev").count());
            wait_until("no device is left", Duration::from_secs(5), || devices() == 0)?;
            ensure!(!sh("nft list ruleset")?.contains("edge-agent"), "round {round}: rules are left");
        }
        ensure!(released > 0, "the victim had nothing when it was killed");
        Ok(())
    })
}

#[test]
fn rules_that_somebody_flushed_come_back() -> Result<()> {
    on_a_board(|lan| {
        let first = lan.attach("first", NetworkMode::Bridge, vec![port(8080, 80, Protocol::Tcp)])?;
        let _server = Lan::serve(&first.netns.context("netns")?, "tcp", 80, "first")?;
        sh("nft flush ruleset")?;
        lan.attach("second", NetworkMode::None, vec![])?;
        ensure!(sh("nft list ruleset")?.is_empty(), "rules for what needs none");
        lan.attach("third", NetworkMode::Bridge, vec![])?;
        expect(Some(&lan.neighbour), &format!("{ASK_TCP}{BOARD}:8080"), "first")
    })
}

#[test]
fn the_default_subnet_moves_aside() -> Result<()> {
    on_a_board(|lan| {
        sh("ip route add 10.88.4.0/24 via 192.0.2.1")?;
        lan.reopen(|_| {})?;
        let network = lan.networks.inspect(&Owner::Local, "bridge")?.network;
        ensure!(network.subnet.to_string() == "10.128.0.0/16", "{}", network.subnet);
        let error = lan
            .runtime
            .block_on(lan.networks.create(
                &Owner::Local,
                NetworkSpec { name: "x".into(), subnet: "10.88.4.128/25".parse().ok(), ..NetworkSpec::default() },
            ))
            .unwrap_err();
        ensure!(error.to_string().contains("a route of this host"), "{error}");
        let fixed = Attachment { network: "bridge".into(), address: Some([10, 128, 0, 9].into()), aliases: vec![] };
        let one = lan.attach("one", NetworkMode::Networks(vec![fixed.clone()]), vec![])?;
        ensure!(Lan::address(&one)? == "10.128.0.9");
        let error = lan.attach("two", NetworkMode::Networks(vec![fixed]), vec![]).unwrap_err();
        ensure!(error.to_string().contains("in use by one"), "{error}");
        Ok(())
    })
}

#[test]
fn a_firewall_that_drops_is_named() -> Result<()> {
    on_a_board(|lan| {
        sh("iptables-nft -P FORWARD DROP")?;
        lan.attach("a", NetworkMode::Bridge, vec![])?;
        let problem = lan.networks.problem().context("no problem is told")?;
        ensure!(problem.contains("iptables -I FORWARD -i edge0 -j ACCEPT"), "{problem}");
        Ok(())
    })
}

#[test]
fn real_cni_plugins_in_a_chain() -> Result<()> {
    on_a_board(|lan| {
        let conf_dir = lan.dir.join("net.d");
        std::fs::create_dir_all(&conf_dir)?;
        let ipam = lan.dir.join("ipam").display().to_string();
        let list = serde_json::json!({"cniVersion": "1.0.0", "name": "mynet", "plugins": [
            {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
                "ipam": {"type": "host-local", "dataDir": ipam, "routes": [{"dst": "0.0.0.0/0"}],
                    "ranges": [[{"subnet": "10.66.0.0/24"}]]}},
            {"type": "portmap", "capabilities": {"portMappings": true}}]});
        let cni =
            CniOptions { conf_dir: conf_dir.clone(), bin_dirs: vec!["/usr/lib/cni".into()], ..CniOptions::default() };
        lan.reopen(|options| options.cni = Some(cni.clone()))?;
        let error = lan.attach("early", NetworkMode::Bridge, vec![]).unwrap_err();
        ensure!(error.to_string().contains("no valid CNI configuration"), "{error}");
        std::fs::write(conf_dir.join("10-mynet.conflist"), list.to_string())?;
        let on_board = PortMapping { host_address: BOARD.parse().ok(), ..port(8080, 80, Protocol::Tcp) };
        let pod = lan.attach("pod", NetworkMode::Bridge, vec![on_board])?;
        ensure!(Lan::address(&pod)?.starts_with("10.66.0."), "{pod:?}");
        let netns = pod.netns.clone().context("netns")?;
        let _server = Lan::serve(&netns, "tcp", 80, "cni")?;
        expect(None, &format!("{ASK_TCP}{}:80", Lan::address(&pod)?), "cni")?;
        expect(Some(&lan.neighbour), &format!("{ASK_TCP}{BOARD}:8080"), "cni")?;
        // Without a port: `portmap` 1.1.1 misses IPv6 rules that its ADD did not make.
        let plain = lan.attach("plain", NetworkMode::Bridge, vec![])?;
        lan.runtime.block_on(lan.networks.check("plain"))?;
        Lan::within(&plain.netns.context("plain")?, "ip addr flush dev eth0")?;
        ensure!(lan.runtime.block_on(lan.networks.check("plain")).is_err(), "CHECK sees no missing address");
        // The agent is killed and the configuration goes: what was kept is enough to take it back.
        std::fs::remove_file(conf_dir.join("10-mynet.conflist"))?;
        lan.reopen(|options| options.cni = Some(cni.clone()))?;
        let report = lan.runtime.block_on(lan.networks.recover(&BTreeSet::new()))?;
        ensure!(report.released == ["plain", "pod"] && report.problems.is_empty(), "{report:?}");
        ensure!(!Path::new(&ipam).join("mynet/10.66.0.2").exists(), "an address is left");
        ensure!(!sh("iptables-save")?.contains("8080"), "a rule is left");
        Ok(())
    })
}

#[test]
fn what_is_just_leaving_a_network_does_not_keep_it() -> Result<()> {
    on_a_board(|lan| {
        for round in 0..5 {
            create(lan, "front", |_| {})?;
            lan.attach("one", on(&["front"]), vec![port(8080, 80, Protocol::Tcp)])?;
            let networks = lan.networks.clone();
            let (detached, removed) = lan
                .runtime
                .block_on(async { tokio::join!(networks.detach("one"), networks.remove(&Owner::Local, "front")) });
            detached?;
            removed.with_context(|| format!("round {round}"))?;
        }
        Ok(())
    })
}

#[test]
fn two_engines_on_one_host_leave_each_other_alone() -> Result<()> {
    on_a_board(|lan| {
        let dir = tempfile::tempdir()?;
        let instance = "0123456789ab";
        let (state, _) = store::state::State::open(&dir.path().join("state"))?;
        let options = Options {
            run_dir: dir.path().join("run"),
            data_dir: dir.path().join("data"),
            resolv_conf: lan.options().resolv_conf,
            ..Options::of(instance.into())
        };
        let open = |lan: &Lan| lan.runtime.block_on(Networks::open(options.clone(), state.clone()));
        let recover = |lan: &Lan, networks: &Networks, kept: &[&str]| -> Result<()> {
            let kept = kept.iter().map(|it| (*it).to_owned()).collect();
            let report = lan.runtime.block_on(networks.recover(&kept))?;
            ensure!(report.problems.is_empty() && report.removed.is_empty(), "{report:?}");
            Ok(())
        };
        let mut other = open(lan)?;
        recover(lan, &other, &[])?;
        create(lan, "front", |_| {})?;
        let spec = NetworkSpec { name: "front".into(), ..NetworkSpec::default() };
        lan.runtime.block_on(other.create(&Owner::Local, spec))?;
        let both = || on(&["bridge", "front"]);
        let one = lan.attach("one", both(), vec![port(8080, 80, Protocol::Tcp)])?;
        let two = request("two", both(), vec![port(8081, 80, Protocol::Tcp)]);
        let two = lan.runtime.block_on(other.attach(two))?;
        let _one = Lan::serve(&one.netns.context("netns")?, "tcp", 80, "one")?;
        let _two = Lan::serve(&two.netns.context("netns")?, "tcp", 80, "two")?;
        let served = || {
            expect(None, &format!("{ASK_TCP}127.0.0.1:8080"), "one")?;
            expect(None, &format!("{ASK_TCP}127.0.0.1:8081"), "two")
        };
        served()?;
        // Each is killed and finds its own again.
        lan.reopen(|_| {})?;
        recover(lan, &lan.networks, &["one"])?;
        served()?;
        other = open(lan)?;
        recover(lan, &other, &["two"])?;
        served()?;
        // The guest goes; nothing of it stays, and the other's is as it was.
        lan.runtime.block_on(other.detach("two"))?;
        lan.runtime.block_on(other.leave())?;
        expect(None, &format!("{ASK_TCP}127.0.0.1:8080"), "one")?;
        ensure!(!sh("nft list tables")?.contains(instance), "rules are left");
        let links = sh("ip -br link")?;
        ensure!(!links.contains(&instance[..5]), "devices are left: {links}");
        lan.runtime.block_on(lan.networks.detach("one"))?;
        Ok(())
    })
}
