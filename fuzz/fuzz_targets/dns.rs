#![no_main]
//! What a container sends to its network's name server, over UDP or TCP (first byte).

use std::net::IpAddr;

use container_engine::network::dns::{Names, Reply, answer, parse_resolv_conf};
use libfuzzer_sys::fuzz_target;

struct Town(bool);

impl Names for Town {
    fn addresses(&self, name: &str) -> Option<Vec<IpAddr>> {
        let all = ["10.0.0.2", "fd00::2"].map(|text| text.parse().expect("an address"));
        (name.len() < 9).then(|| all.repeat(name.len()))
    }
    fn name(&self, address: IpAddr) -> Option<Option<String>> {
        Some(address.is_ipv4().then(|| "box".to_owned()))
    }
    fn may_ask_outside(&self) -> bool {
        self.0
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((how, packet)) = data.split_first() else { return };
    let (tcp, outside) = (how & 1 != 0, how & 2 != 0);
    if let Reply::Send(reply) = answer(packet, &Town(outside), tcp) {
        assert!(reply.len() <= if tcp { 65_535 } else { 1232 }, "{} bytes", reply.len());
        assert_eq!(reply[..2], packet[..2], "another question's id");
        assert!(reply[2] & 0x80 != 0, "no answer");
        // No answer to an answer: two servers would talk for ever.
        assert_eq!(answer(&reply, &Town(outside), tcp), Reply::Ignore);
    }
    let conf = parse_resolv_conf(&String::from_utf8_lossy(data));
    assert!(conf.servers.len() <= 3);
});
