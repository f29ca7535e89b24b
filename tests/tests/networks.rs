//! Networks of containers, on a board and a LAN made of network namespaces.

use anyhow::{Result, ensure};
use container_engine::container::{NetworkMode, PortMapping, Protocol};
use tests::lan::{ASK_TCP, ASK_UDP, BOARD, Lan, on_a_board, sh};

fn port(host: u16, container: u16, protocol: Protocol) -> PortMapping {
    PortMapping { host_address: None, host_port: host, container_port: container, protocol }
}

#[test]
fn two_containers_the_host_and_the_world_reach_each_other() -> Result<()> {
    on_a_board(|lan| {
        let a = lan.attach("a", NetworkMode::Bridge, vec![])?;
        let ports = vec![port(8080, 80, Protocol::Tcp), port(5353, 53, Protocol::Udp)];
        let b = lan.attach("b", NetworkMode::Bridge, ports)?;
        let (netns, address) = (b.netns.clone().unwrap_or_default(), Lan::address(&b)?);
        let _tcp = Lan::serve(&netns, "tcp", 80, "from-b $SOCAT_PEERADDR")?;
        let _udp = Lan::serve(&netns, "udp", 53, "udp-from-b")?;
        eprintln!("{}", sh("nft list ruleset; ip a; ip r")?);
        eprintln!("{}", Lan::inside(&a, "ip a; ip r")?);
        let ask = |from: Option<&std::path::Path>, what: &str| -> Result<String> {
            Ok(match from {
                None => sh(what)?,
                Some(netns) => Lan::within(netns, what)?,
            }
            .trim()
            .to_owned())
        };
        let a_ns = a.netns.clone().unwrap_or_default();
        let far = lan.neighbour.clone();
        let check = |from: Option<&std::path::Path>, what: &str, want: &str| -> Result<()> {
            let got = ask(from, what)?;
            ensure!(got.starts_with(want), "{what} from {from:?}: {got:?}, not {want:?}");
            Ok(())
        };
        let own = Lan::address(&a)?;
        check(Some(&a_ns), &format!("{ASK_TCP}{address}:80"), &format!("from-b {own}"))?;
        check(None, &format!("{ASK_TCP}{address}:80"), "from-b")?;
        check(None, &format!("{ASK_TCP}127.0.0.1:8080"), "from-b")?;
        check(None, &format!("{ASK_TCP}{BOARD}:8080"), "from-b")?;
        check(Some(&far), &format!("{ASK_TCP}{BOARD}:8080"), "from-b 192.0.2.1")?;
        check(Some(&far), &format!("{ASK_UDP}{BOARD}:5353"), "udp-from-b")?;
        check(None, &format!("{ASK_UDP}127.0.0.1:5353"), "udp-from-b")?;
        check(Some(&a_ns), &format!("{ASK_TCP}{BOARD}:8080"), "from-b")?;
        check(Some(&netns), &format!("{ASK_TCP}{BOARD}:8080"), "from-b")?;
        check(Some(&netns), &format!("{ASK_UDP}{BOARD}:5353"), "udp-from-b")?;
        Ok(())
    })
}
