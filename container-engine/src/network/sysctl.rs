//! Kernel settings of the network namespace of the calling thread.

use std::{io, path::Path};

/// Set in each new namespace, before any device is in it: as Docker and containerd do by default.
const FRESH: &[(&str, &str)] = &[
    // Any process in a container may listen on port 80 and may ping without a capability.
    ("ipv4/ip_unprivileged_port_start", "0"),
    ("ipv4/ping_group_range", "0 2147483647"),
    // Addresses and routes are ours to set: nobody on the network may announce others.
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/default/autoconf", "0"),
    ("ipv6/conf/lo/disable_ipv6", "0"),
    // A new place of an address is told to the neighbours.
    ("ipv4/conf/default/arp_notify", "1"),
    ("ipv6/conf/default/ndisc_notify", "1"),
];

/// Sets one; one that this kernel lacks (no IPv6) is left out.
pub fn set(name: &str, value: &str) -> io::Result<()> {
    let path = Path::new("/proc/sys/net").join(name);
    match std::fs::read_to_string(&path) {
        // Read first: `/proc/sys` may be read-only where the value is right already.
        Ok(now) if now.split_whitespace().eq(value.split_whitespace()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        _ => std::fs::write(&path, value)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
    }
}

/// Prepares a new namespace.
pub fn prepare_namespace() -> io::Result<()> {
    FRESH.iter().try_for_each(|(name, value)| set(name, value))
}

/// Without an address of its own a device would still make up a link-local one.
pub fn ipv6_for_new_devices(wanted: bool) -> io::Result<()> {
    set("ipv6/conf/default/disable_ipv6", if wanted { "0" } else { "1" })
}

/// Makes the host forward IPv4.
pub fn forward_ipv4() -> io::Result<()> {
    set("ipv4/ip_forward", "1")
}

/// Makes the host forward IPv6, and go on learning its own routes: forwarding would turn that off.
pub fn forward_ipv6() -> io::Result<()> {
    let now = std::fs::read_to_string("/proc/sys/net/ipv6/conf/all/forwarding").unwrap_or_default();
    if now.trim() != "0" {
        return Ok(()); // On already, or no IPv6.
    }
    for entry in std::fs::read_dir("/proc/sys/net/ipv6/conf")? {
        let path = entry?.path().join("accept_ra");
        if std::fs::read_to_string(&path).is_ok_and(|value| value.trim() == "1") {
            std::fs::write(&path, "2")?;
        }
    }
    set("ipv6/conf/all/forwarding", "1")
}

/// Settings of a bridge.
pub fn prepare_bridge(device: &str, ipv6: bool) -> io::Result<()> {
    // Connections of the host to a published port on 127.0.0.1 leave through the bridge; `rules` guards the way back.
    set(&format!("ipv4/conf/{device}/route_localnet"), "1")?;
    set(&format!("ipv6/conf/{device}/accept_ra"), "0")?;
    set(&format!("ipv6/conf/{device}/accept_dad"), "0")?;
    set(&format!("ipv6/conf/{device}/disable_ipv6"), if ipv6 { "0" } else { "1" })
}
