//! Addresses and default routes of this network namespace, and a wait for their changes. Of netlink no more than that.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::OwnedFd,
    time::Duration,
};

use container_engine::sys::asynchronous;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, netlink::SocketAddrNetlink, recv, send,
    socket_with, sockopt,
};
use tokio::io::unix::AsyncFd;

use super::address::{Assigned, DefaultRoute, Network};

/// `NLM_F_REQUEST | NLM_F_DUMP`.
const DUMP: u16 = 0x301;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const NEW_ADDRESS: u16 = 20;
const GET_ADDRESS: u16 = 22;
const NEW_ROUTE: u16 = 24;
const GET_ROUTE: u16 = 26;
/// Multicast groups of addresses and routes, IPv4 and IPv6.
const GROUPS: u32 = 0x10 | 0x40 | 0x100 | 0x400;
/// `IFA_F_TEMPORARY`, `DADFAILED`, `DEPRECATED`, `TENTATIVE`.
const PASSING: u32 = 0x01 | 0x08 | 0x20 | 0x40;
/// A kernel's answer is never larger.
const BUFFER: usize = 64 << 10;
/// The kernel answers at once: this only keeps a fault from becoming a hang.
const PATIENCE: Duration = Duration::from_secs(5);

/// The network as it is. Blocking, and quick.
pub fn look() -> io::Result<Network> {
    let socket = open(SocketFlags::CLOEXEC, 0)?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE))?;
    let mut network = Network::default();
    dump(&socket, GET_ADDRESS, &mut |kind, body| {
        network.addresses.extend((kind == NEW_ADDRESS).then(|| address(body)).flatten());
    })?;
    dump(&socket, GET_ROUTE, &mut |kind, body| {
        network.routes.extend((kind == NEW_ROUTE).then(|| default_route(body)).flatten());
    })?;
    network.routes.sort();
    Ok(network)
}

/// Tells when addresses or routes change.
pub struct Monitor(AsyncFd<OwnedFd>);

impl Monitor {
    /// From now on.
    pub fn open() -> io::Result<Self> {
        let socket = open(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, GROUPS)?;
        Ok(Self(asynchronous::register(socket)?))
    }

    /// Until something has changed. Many changes at once are one.
    pub async fn changed(&mut self) -> io::Result<()> {
        let mut guard = self.0.readable().await?;
        let mut buffer = [0u8; 4096];
        // What changed is asked for anew: the messages, and how many of them were lost, do not matter.
        loop {
            match recv(guard.get_inner(), &mut buffer, RecvFlags::TRUNC) {
                Ok(_) | Err(rustix::io::Errno::NOBUFS | rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        guard.clear_ready();
        Ok(())
    }
}

fn open(flags: SocketFlags, groups: u32) -> io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    bind(&socket, &SocketAddrNetlink::new(0, groups))?;
    Ok(socket)
}

fn dump(socket: &OwnedFd, kind: u16, each: &mut dyn FnMut(u16, &[u8])) -> io::Result<()> {
    let mut request = Vec::with_capacity(28);
    request.extend_from_slice(&28u32.to_ne_bytes());
    request.extend_from_slice(&kind.to_ne_bytes());
    request.extend_from_slice(&DUMP.to_ne_bytes());
    // A sequence number and our port, which one answer at a time makes needless; then a body of zeros: all families.
    request.resize(28, 0);
    send(socket, &request, SendFlags::empty())?;
    let mut buffer = vec![0u8; BUFFER];
    loop {
        let (length, _) = match recv(socket, buffer.as_mut_slice(), RecvFlags::empty()) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if messages(buffer.get(..length).unwrap_or_default(), each)? {
            return Ok(());
        }
    }
}

/// Whether the last one was among them.
fn messages(bytes: &[u8], each: &mut dyn FnMut(u16, &[u8])) -> io::Result<bool> {
    let mut rest = bytes;
    while let (Some(length), Some(kind)) = (u32_at(rest, 0), u16_at(rest, 4)) {
        let length = length as usize;
        let Some(body) = rest.get(16..length) else { return Err(io::ErrorKind::InvalidData.into()) };
        match kind {
            DONE => return Ok(true),
            ERROR => {
                let code = u32_at(body, 0).map_or(0, u32::cast_signed);
                return Err(io::Error::from_raw_os_error(code.saturating_neg()));
            }
            kind => each(kind, body),
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// `ifaddrmsg` and its attributes.
fn address(body: &[u8]) -> Option<Assigned> {
    let (mut local, mut address, mut flags) = (None, None, u32::from(*body.get(2)?));
    attributes(body.get(8..)?, &mut |kind, value| match kind {
        1 => address = ip(value),
        2 => local = ip(value),
        8 => flags = u32_at(value, 0).unwrap_or(flags),
        _ => {}
    });
    let address = local.or(address)?;
    // Of IPv4, the first flag is that of a further address, which is as good.
    let passing = if address.is_ipv4() { PASSING & !1 } else { PASSING };
    let is_lasting = *body.get(3)? == 0 && flags & passing == 0;
    Some(Assigned { device: u32_at(body, 4)?, address, is_lasting })
}

/// `rtmsg` and its attributes, where it is a default route of the main table.
fn default_route(body: &[u8]) -> Option<DefaultRoute> {
    let (family, length, kind) = (*body.first()?, *body.get(1)?, *body.get(7)?);
    let (mut table, mut device, mut metric, mut source) = (u32::from(*body.get(4)?), None, 0, None);
    attributes(body.get(12..)?, &mut |kind, value| match kind {
        4 => device = u32_at(value, 0),
        6 => metric = u32_at(value, 0).unwrap_or(0),
        7 => source = ip(value),
        // Of several ways the first: after its length, flags and weight comes its interface.
        9 => device = device.or_else(|| u32_at(value, 4)),
        15 => table = u32_at(value, 0).unwrap_or(table),
        _ => {}
    });
    let is_default = length == 0 && kind == 1 && table == 254 && matches!(family, 2 | 10);
    Some(DefaultRoute { is_v6: family == 10, metric, device: device?, source }).filter(|_| is_default)
}

fn attributes(bytes: &[u8], each: &mut dyn FnMut(u16, &[u8])) {
    let mut rest = bytes;
    while let (Some(length), Some(kind)) = (u16_at(rest, 0), u16_at(rest, 2)) {
        let length = usize::from(length);
        let Some(value) = rest.get(4..length) else { return };
        each(kind & 0x3fff, value);
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(|it| IpAddr::V4(Ipv4Addr::from(it))),
        16 => <[u8; 16]>::try_from(bytes).ok().map(|it| IpAddr::V6(Ipv6Addr::from(it))),
        _ => None,
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_has_a_loopback() {
        let network = look().unwrap();
        assert!(network.addresses.iter().any(|it| it.address.is_loopback()), "{network:?}");
    }

    #[tokio::test]
    async fn the_kernel_takes_a_listener() {
        let mut monitor = Monitor::open().unwrap();
        // Other tests may change the network; an error is what must not come.
        if let Ok(outcome) = tokio::time::timeout(Duration::from_millis(20), monitor.changed()).await {
            outcome.unwrap();
        }
    }

    #[test]
    fn routes_of_the_kernel() {
        let attribute = |kind: u16, value: &[u8]| {
            let mut bytes = u16::try_from(value.len() + 4).unwrap().to_ne_bytes().to_vec();
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(value);
            bytes
        };
        let route = |length: u8, table: u8, kind: u8, attributes: &[Vec<u8>]| {
            let mut bytes = vec![2, length, 0, 0, table, 3, 0, kind, 0, 0, 0, 0];
            bytes.extend(attributes.concat());
            bytes
        };
        let device = attribute(4, &7u32.to_ne_bytes());
        let metric = attribute(6, &100u32.to_ne_bytes());
        let source = attribute(7, &[10, 0, 0, 1]);
        let want = DefaultRoute { is_v6: false, metric: 100, device: 7, source: Some("10.0.0.1".parse().unwrap()) };
        let all = [device.clone(), metric, source];
        assert_eq!(default_route(&route(0, 254, 1, &all)), Some(want));
        assert_eq!(default_route(&route(24, 254, 1, &all)), None);
        assert_eq!(default_route(&route(0, 255, 1, &all)), None);
        assert_eq!(default_route(&route(0, 254, 6, &all)), None);
        assert_eq!(default_route(&route(0, 254, 1, &[])), None);
        let many = attribute(9, &[&[16, 0, 0, 0][..], &5u32.to_ne_bytes(), &[0; 8]].concat());
        assert_eq!(default_route(&route(0, 254, 1, &[many])).unwrap().device, 5);
        for cut in 0..12 {
            assert_eq!(default_route(&route(0, 254, 1, std::slice::from_ref(&device))[..cut]), None);
        }
    }
}
