//! What plugins answer: results of 0.3.0 to 1.1.0, and errors.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use super::super::types::{Attached, Interface};

/// Most entries of a list in a result.
const MAX_ENTRIES: usize = 256;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Answer {
    interfaces: Vec<Port>,
    ips: Vec<Address>,
    dns: Names,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Port {
    name: String,
    mac: String,
    /// The namespace's path; absent for devices of the host.
    sandbox: String,
}

#[derive(Debug, Deserialize)]
struct Address {
    #[serde(rename = "address")]
    net: IpNet,
    #[serde(default)]
    gateway: Option<IpAddr>,
    #[serde(default)]
    interface: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Names {
    nameservers: Vec<String>,
    domain: Option<String>,
    search: Vec<String>,
}

/// An error as plugins print it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Failure {
    pub code: u32,
    pub msg: String,
    pub details: String,
}

/// What the last plugin of a list answered, in our words.
pub fn attached(result: &Value, network: &str, ifname: &str) -> Result<Attached, String> {
    if !result.is_object() {
        return Err("it is no object".into());
    }
    let answer = Answer::deserialize(result).map_err(|error| error.to_string())?;
    if answer.interfaces.len() > MAX_ENTRIES || answer.ips.len() > MAX_ENTRIES {
        return Err("it has more interfaces or addresses than makes sense".into());
    }
    let mut attached = Attached::default();
    let inside = |at: i64| usize::try_from(at).ok().and_then(|at| answer.interfaces.get(at));
    for port in answer.interfaces.iter().filter(|port| !port.sandbox.is_empty()) {
        let (name, mac) = (port.name.clone(), port.mac.clone());
        attached.interfaces.push(Interface { name, mac, network: network.to_owned(), ..Interface::default() });
    }
    if attached.interfaces.is_empty() {
        let name = ifname.to_owned();
        attached.interfaces.push(Interface { name, network: network.to_owned(), ..Interface::default() });
    }
    for ip in &answer.ips {
        let name = match ip.interface.map(inside) {
            Some(Some(port)) if port.sandbox.is_empty() => continue, // The host's.
            Some(Some(port)) => port.name.as_str(),
            _ => ifname,
        };
        let Some(interface) = attached.interfaces.iter_mut().find(|interface| interface.name == name) else { continue };
        interface.addresses.push(ip.net);
        interface.gateways.extend(ip.gateway);
        attached.host_gateway = attached.host_gateway.or(ip.gateway);
    }
    attached.dns = answer.dns.nameservers.iter().take(3).filter_map(|server| server.parse().ok()).collect();
    attached.dns_search = answer.dns.search.into_iter().chain(answer.dns.domain).take(32).collect();
    Ok(attached)
}

/// For the fuzzer: whatever a plugin prints is a result or a reason.
pub fn parse_output(bytes: &[u8]) -> Result<Attached, String> {
    let value: Value = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    attached(&value, "net", "eth0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_all_versions() {
        #[track_caller]
        fn check(text: &str, want: Result<&str, &str>) {
            let shown = parse_output(text.as_bytes()).map(|attached| {
                let interfaces = attached.interfaces.iter().map(|interface| {
                    format!("{} {} {:?} {:?}", interface.name, interface.mac, interface.addresses, interface.gateways)
                });
                format!("{} {:?}", interfaces.collect::<Vec<_>>().join("; "), attached.dns)
            });
            match (shown, want) {
                (Ok(got), Ok(want)) => assert_eq!(got, want, "{text}"),
                (Err(got), Err(want)) => assert!(got.contains(want), "{text}: {got}"),
                (got, want) => panic!("{text}: {got:?}, not {want:?}"),
            }
        }
        check(
            r#"{"cniVersion":"1.0.0","interfaces":[{"name":"cni0"},{"name":"eth0","mac":"0a:00","sandbox":"/n"}],
            "ips":[{"address":"10.1.0.2/16","gateway":"10.1.0.1","interface":1},{"address":"10.1.0.1/16","interface":0}],
            "dns":{"nameservers":["10.1.0.53","x"]}}"#,
            Ok("eth0 0a:00 [10.1.0.2/16] [10.1.0.1] [10.1.0.53]"),
        );
        check(
            r#"{"cniVersion":"0.3.1","ips":[{"version":"4","address":"10.1.0.2/16","gateway":"10.1.0.1"}],"dns":{}}"#,
            Ok("eth0  [10.1.0.2/16] [10.1.0.1] []"),
        );
        check(r#"{"ips":[{"address":"10.1.0.2/16","interface":-7}]}"#, Ok("eth0  [10.1.0.2/16] [] []"));
        check("{}", Ok("eth0  [] [] []"));
        check(r#"{"ips":[{"address":"10.1.0.2/99"}]}"#, Err("invalid"));
        check("[]", Err("no object"));
        check("", Err("EOF"));
    }
}
