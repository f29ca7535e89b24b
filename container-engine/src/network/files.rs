//! `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf` of a container: what is in them. Pure; who writes them and where
//! is `container`'s.

use std::net::IpAddr;

use super::{
    dns::HostConf,
    types::{Attached, DEFAULT_NETWORK},
};
use crate::container::Dns;

/// Most lines of `--add-host`.
const MAX_EXTRA: usize = 1024;

/// A line for `/etc/hosts` that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no host entry: write NAME:ADDRESS or NAME:host-gateway")]
pub struct HostEntryError(pub String);

/// `/etc/hosts` for a container called `hostname` in `domain` with these interfaces.
pub fn hosts(
    hostname: &str,
    domain: Option<&str>,
    attached: &Attached,
    extra: &[String],
) -> Result<String, HostEntryError> {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\n\
        ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
    );
    for entry in extra.iter().take(MAX_EXTRA) {
        let (name, address) = host_entry(entry, attached.host_gateway)?;
        text.push_str(&format!("{address}\t{name}\n"));
    }
    let full = domain.filter(|domain| !domain.is_empty()).map(|domain| format!("{hostname}.{domain} "));
    for address in attached.interfaces.iter().flat_map(|interface| &interface.addresses) {
        text.push_str(&format!("{}\t{}{hostname}\n", address.addr(), full.as_deref().unwrap_or_default()));
    }
    Ok(text)
}

/// `NAME:ADDRESS` or `NAME=ADDRESS`, an IPv6 address with or without brackets.
fn host_entry(entry: &str, gateway: Option<IpAddr>) -> Result<(&str, IpAddr), HostEntryError> {
    let wrong = || HostEntryError(entry.chars().take(200).collect());
    let (name, address) = entry.split_once(['=', ':']).ok_or_else(wrong)?;
    let plain = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
    let address = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
    let address = if address == "host-gateway" { gateway } else { address.parse().ok() };
    address.filter(|_| plain).map(|address| (name, address)).ok_or_else(wrong)
}

/// `/etc/hostname`.
pub fn hostname(hostname: &str) -> String {
    format!("{hostname}\n")
}

/// `/etc/resolv.conf`: what is wished, else the network's, else the host's.
pub fn resolv_conf(host: &HostConf, attached: &Attached, wanted: &Dns) -> String {
    let servers = [&wanted.servers, &attached.dns, &host.servers].into_iter().find(|list| !list.is_empty());
    let search = [&wanted.search, &attached.dns_search, &host.search].into_iter().find(|list| !list.is_empty());
    let mut options = if wanted.options.is_empty() { host.options.clone() } else { wanted.options.clone() };
    // Names of containers come before what the search domains would make of them.
    let named = attached.host_gateway.is_some()
        && wanted.servers.is_empty()
        && attached.interfaces.iter().any(|interface| interface.network != DEFAULT_NETWORK);
    if named && !options.iter().any(|option| option.starts_with("ndots:")) {
        options.push("ndots:0".into());
    }
    let mut text = String::new();
    for server in servers.into_iter().flatten() {
        text.push_str(&format!("nameserver {server}\n"));
    }
    // A lone dot means none, as with Docker.
    let search: Vec<&str> =
        search.into_iter().flatten().map(|word| one_line(word)).filter(|word| *word != ".").collect();
    if !search.is_empty() {
        text.push_str(&format!("search {}\n", search.join(" ")));
    }
    let options: Vec<&str> = options.iter().map(|word| one_line(word)).filter(|word| *word != ".").collect();
    if !options.is_empty() {
        text.push_str(&format!("options {}\n", options.join(" ")));
    }
    text
}

/// A word of somebody else's that must not become a line of its own.
fn one_line(word: &str) -> &str {
    word.split(char::is_whitespace).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::{super::types::Interface, *};

    fn attached(network: &str) -> Attached {
        Attached {
            interfaces: vec![Interface {
                network: network.into(),
                addresses: vec!["10.88.0.5/16".parse().unwrap(), "fd00::5/64".parse().unwrap()],
                ..Interface::default()
            }],
            host_gateway: Some("10.88.0.1".parse().unwrap()),
            ..Attached::default()
        }
    }

    #[test]
    fn hosts_files() {
        #[track_caller]
        fn check(domain: Option<&str>, extra: &[&str], want: Option<&str>) {
            let extra: Vec<String> = extra.iter().map(|&line| line.to_owned()).collect();
            let text = hosts("box", domain, &attached("bridge"), &extra);
            let own = text.ok().map(|text| text.lines().skip(6).collect::<Vec<_>>().join("|"));
            assert_eq!(own.as_deref(), want, "{extra:?}");
        }
        check(None, &[], Some("10.88.0.5\tbox|fd00::5\tbox"));
        check(Some("lan"), &[], Some("10.88.0.5\tbox.lan box|fd00::5\tbox.lan box"));
        check(None, &["db:10.1.1.1"], Some("10.1.1.1\tdb|10.88.0.5\tbox|fd00::5\tbox"));
        check(None, &["db=[fd00::9]"], Some("fd00::9\tdb|10.88.0.5\tbox|fd00::5\tbox"));
        check(None, &["db:fd00::9"], Some("fd00::9\tdb|10.88.0.5\tbox|fd00::5\tbox"));
        check(None, &["host:host-gateway"], Some("10.88.0.1\thost|10.88.0.5\tbox|fd00::5\tbox"));
        check(None, &["db"], None);
        check(None, &["a b:10.1.1.1"], None);
        check(None, &["x\n10.0.0.1 evil:10.1.1.1"], None);
        check(None, &[":10.1.1.1"], None);
        assert_eq!(hostname("box"), "box\n");
    }

    #[test]
    fn resolv_conf_files() {
        #[track_caller]
        fn check(host: &HostConf, attached: &Attached, wanted: &Dns, want: &str) {
            assert_eq!(resolv_conf(host, attached, wanted).trim_end().replace('\n', "|"), want);
        }
        let host = HostConf {
            servers: vec!["192.0.2.53".parse().unwrap()],
            search: vec!["lan.example".into()],
            options: vec!["edns0".into()],
        };
        let plain = Dns::default();
        let host_text = "nameserver 192.0.2.53|search lan.example|options edns0";
        check(&host, &attached("bridge"), &plain, host_text);
        check(&host, &Attached::default(), &plain, host_text);
        let mut named = attached("backend");
        named.dns = vec!["10.89.0.1".parse().unwrap()];
        check(&host, &named, &plain, "nameserver 10.89.0.1|search lan.example|options edns0 ndots:0");
        let wish = Dns {
            servers: vec!["9.9.9.9".parse().unwrap()],
            search: vec![".".into()],
            options: vec!["ndots:5".into()],
        };
        check(&host, &named, &wish, "nameserver 9.9.9.9|options ndots:5");
        let none = Dns { search: vec![".".into()], options: vec![".".into()], ..Dns::default() };
        check(&host, &attached("bridge"), &none, "nameserver 192.0.2.53");
        let evil = Dns { search: vec!["a\nnameserver 6.6.6.6".into()], ..Dns::default() };
        check(&host, &attached("bridge"), &evil, "nameserver 192.0.2.53|search a|options edns0");
    }
}
