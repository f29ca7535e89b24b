//! Ports of the host: whether one is free, held so that nobody else takes it, and who has it otherwise.
//!
//! A published port is bound, not listened on: the kernel leads its packets away before they reach the socket, which
//! is there so that a server of the host is refused the port instead of never hearing a word.

use std::{
    collections::HashSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, ipproto, socket_with, sockopt},
};

use crate::container::Protocol;

/// How often, and how long apart, a port that is in use is tried again.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_millis(20);

/// A port held by bound sockets; given up when dropped.
#[derive(Debug)]
pub struct Held {
    sockets: Vec<OwnedFd>,
}

/// Binds `port` (0: a free one) on `address` (none: all); with IPv6 too where `v6`. Returns which.
pub fn hold(protocol: Protocol, address: Option<IpAddr>, port: u16, v6: bool) -> io::Result<(u16, Held)> {
    let addresses = match address {
        Some(address) => vec![address],
        None if v6 => vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
        None => vec![Ipv4Addr::UNSPECIFIED.into()],
    };
    let mut held = Held { sockets: Vec::new() };
    let mut port = port;
    for address in addresses {
        if let Some((bound, socket)) = bind_one(protocol, SocketAddr::new(address, port))? {
            port = bound;
            held.sockets.push(socket);
        } else if port == 0 {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "this kernel cannot name a free port: name one"));
        }
    }
    Ok((port, held))
}

/// Binds, again and again for a moment where the port is in use: a process that was forked while a port was held has it
/// too until it runs its program, also when the port was given up long since. Blocking.
fn bind_one(protocol: Protocol, address: SocketAddr) -> io::Result<Option<(u16, OwnedFd)>> {
    let mut tries = 0;
    loop {
        match try_bind(protocol, address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries < TRIES => {
                tries += 1;
                std::thread::sleep(PAUSE);
            }
            done => return done,
        }
    }
}

/// None where the kernel has no sockets of this protocol: then no server of the host can want the port either.
fn try_bind(protocol: Protocol, address: SocketAddr) -> io::Result<Option<(u16, OwnedFd)>> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let (kind, proto) = match protocol {
        Protocol::Tcp => (SocketType::STREAM, None),
        Protocol::Udp => (SocketType::DGRAM, None),
        Protocol::Sctp => (SocketType::STREAM, Some(ipproto::SCTP)),
    };
    let open = || match socket_with(family, kind, SocketFlags::CLOEXEC, proto) {
        Err(Errno::PROTONOSUPPORT | Errno::AFNOSUPPORT | Errno::SOCKTNOSUPPORT) => Ok(None),
        other => other.map(Some),
    };
    let Some(mut socket) = open()? else { return Ok(None) };
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    let mut bound = bind(&socket, &address);
    if bound == Err(Errno::ADDRINUSE) && protocol == Protocol::Tcp {
        // Connections that a former server left in TIME_WAIT are no reason; a listening one still is.
        let Some(again) = open()? else { return Ok(None) };
        socket = again;
        if address.is_ipv6() {
            sockopt::set_ipv6_v6only(&socket, true)?;
        }
        sockopt::set_socket_reuseaddr(&socket, true)?;
        bound = bind(&socket, &address);
    }
    bound?;
    let port = SocketAddr::try_from(getsockname(&socket)?)?.port();
    Ok(Some((port, socket)))
}

/// The process of the host that has the port, in words.
pub fn holder(protocol: Protocol, port: u16) -> Option<String> {
    let files: &[&str] = match protocol {
        Protocol::Tcp => &["/proc/net/tcp", "/proc/net/tcp6"],
        Protocol::Udp => &["/proc/net/udp", "/proc/net/udp6"],
        Protocol::Sctp => return None,
    };
    let tables = files.iter().filter_map(|file| board::durable::read(file.as_ref(), 16 << 20).ok());
    let inodes: HashSet<String> = tables.flat_map(|table| inodes(&String::from_utf8_lossy(&table), port)).collect();
    let processes = std::fs::read_dir("/proc").ok()?.filter_map(Result::ok);
    for process in processes.filter(|entry| entry.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit())) {
        let Ok(files) = std::fs::read_dir(process.path().join("fd")) else { continue };
        let has = files.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok()).any(|target| {
            let target = target.to_string_lossy().into_owned();
            let inode = target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']'));
            inode.is_some_and(|inode| inodes.contains(inode))
        });
        if has {
            let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("process {} ({})", process.file_name().to_string_lossy(), name.trim()));
        }
    }
    None
}

/// Inodes of the sockets bound to `port` in one of the kernel's tables.
fn inodes(table: &str, port: u16) -> Vec<String> {
    let end = format!(":{port:04X}");
    let rows = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row.get(1).is_some_and(|local| local.ends_with(&end)))
        .filter_map(|row| row.get(9).map(|inode| (*inode).to_owned()))
        .filter(|inode| inode != "0")
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_port_is_refused_to_others_and_free_afterwards() {
        let (port, held) = hold(Protocol::Tcp, Some(Ipv4Addr::LOCALHOST.into()), 0, false).unwrap();
        assert_ne!(port, 0);
        let refused = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
        drop(held);
        std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    }

    #[test]
    fn a_server_of_the_host_is_named() {
        let server = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = server.local_addr().unwrap().port();
        let refused = hold(Protocol::Tcp, None, port, false).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
        let holder = holder(Protocol::Tcp, port).unwrap();
        assert!(holder.contains(&format!("process {} ", std::process::id())), "{holder}");
    }

    #[test]
    fn the_tables_of_the_kernel_are_read() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 x\n\
            1: 0100007F:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4712 1 x\n\
            cut off";
        assert_eq!(inodes(table, 8080), ["4711"]);
        assert!(inodes(table, 80).is_empty());
    }
}
