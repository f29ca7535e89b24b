//! `/etc/resolv.conf` of a pod: its DNS policy, its own configuration, and the limits of resolvers.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

use container_engine::container::Dns;
use k8s_openapi::api::core::v1::{Pod, PodDNSConfig};

use super::{Surroundings, is_host_network};
use crate::pod::model::PodKey;

/// Most name servers that resolvers ask.
const MAX_SERVERS: usize = 3;
/// Most search domains.
const MAX_SEARCH: usize = 32;
/// Most bytes of the line of search domains.
const MAX_LINE: usize = 2048;
/// Longest domain.
const MAX_DOMAIN: usize = 253;

/// What people are to hear of as an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// Of the event.
    pub reason: &'static str,
    /// Of the event.
    pub message: String,
}

/// What the pod's containers get, and what had to be left out. `network` are the resolvers that its network offers where the
/// host's are out of reach; empty: the host's.
pub fn dns(pod: &Pod, node: &Surroundings, network: &[IpAddr]) -> (Dns, Vec<Warning>) {
    let mut warnings = Vec::new();
    let mut found = by_policy(pod, node, network, &mut warnings);
    if let Some(own) = pod.spec.as_ref().and_then(|spec| spec.dns_config.as_ref()) {
        append(&mut found, own);
    }
    fit(&mut found, &mut warnings);
    // An empty list would mean the host's to the engine.
    for list in [&mut found.search, &mut found.options] {
        if list.is_empty() {
            list.push(".".to_owned());
        }
    }
    if found.servers.is_empty() {
        // As a resolver takes a file that names none.
        found.servers.push(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    (found, warnings)
}

fn by_policy(pod: &Pod, node: &Surroundings, network: &[IpAddr], warnings: &mut Vec<Warning>) -> Dns {
    let host = &node.resolv_conf;
    let search = host.search.iter().filter(|domain| *domain != ".");
    let search = unique(search.map(|domain| domain.strip_suffix('.').unwrap_or(domain).to_owned()));
    let servers = if network.is_empty() || is_host_network(pod) { &host.servers } else { network };
    let default = Dns { servers: servers.to_vec(), search: search.clone(), options: host.options.clone() };
    let policy = pod.spec.as_ref().and_then(|spec| spec.dns_policy.as_deref()).unwrap_or("ClusterFirst");
    match policy {
        "None" => return Dns::default(),
        "Default" => return default,
        "ClusterFirst" if is_host_network(pod) => return default,
        // Also what is no policy at all.
        _ => {}
    }
    if node.cluster_dns.is_empty() {
        let message = format!(
            "pod: \"{}\". kubelet does not have ClusterDNS IP configured and cannot create Pod using \"ClusterFirst\" policy. \
             Falling back to \"Default\" policy.",
            PodKey::of(pod)
        );
        warnings.push(Warning { reason: "MissingClusterDNS", message });
        return default;
    }
    let domain = node.cluster_domain.trim_matches('.');
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let cluster = [format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()];
    let search = if domain.is_empty() { search } else { unique(cluster.into_iter().chain(search)) };
    Dns { servers: node.cluster_dns.clone(), search, options: vec!["ndots:5".to_owned()] }
}

/// Adds what the pod says for itself.
fn append(dns: &mut Dns, own: &PodDNSConfig) {
    dns.servers.extend(own.nameservers.iter().flatten().filter_map(|it| it.parse::<IpAddr>().ok()));
    let mut seen = BTreeSet::new();
    dns.servers.retain(|server| seen.insert(*server));
    let searches = own.searches.iter().flatten().filter(|it| is_word(it)).cloned();
    dns.search = unique(std::mem::take(&mut dns.search).into_iter().chain(searches));
    for option in own.options.iter().flatten() {
        let Some(name) = option.name.as_deref().filter(|it| is_word(it)) else { continue };
        let value = option.value.as_deref().filter(|it| is_word(it));
        let text = value.map_or_else(|| name.to_owned(), |value| format!("{name}:{value}"));
        let same = |it: &&mut String| it.split(':').next() == Some(name);
        match dns.options.iter_mut().find(same) {
            Some(known) => *known = text,
            None => dns.options.push(text),
        }
    }
}

/// One word of a line; anything else could make lines of its own.
fn is_word(text: &str) -> bool {
    !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || c.is_control())
}

fn unique(words: impl Iterator<Item = String>) -> Vec<String> {
    let mut seen = BTreeSet::new();
    words.filter(|word| seen.insert(word.clone())).collect()
}

fn fit(dns: &mut Dns, warnings: &mut Vec<Warning>) {
    let mut warn = |message| warnings.push(Warning { reason: "DNSConfigForming", message });
    if dns.servers.len() > MAX_SERVERS {
        dns.servers.truncate(MAX_SERVERS);
        let line = dns.servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        warn(format!(
            "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {line}"
        ));
    }
    let before = dns.search.len();
    dns.search.truncate(MAX_SEARCH);
    dns.search.retain(|domain| domain.len() <= MAX_DOMAIN);
    while dns.search.iter().map(|domain| domain.len() + 1).sum::<usize>() > MAX_LINE + 1 {
        dns.search.pop();
    }
    if dns.search.len() < before {
        warn(format!(
            "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {}",
            dns.search.join(" ")
        ));
    }
}

#[cfg(test)]
mod tests {
    use container_engine::network::dns::HostConf;
    use serde_json::{Value, json};

    use super::*;

    fn node() -> Surroundings {
        Surroundings {
            cluster_dns: vec!["10.96.0.10".parse().unwrap()],
            cluster_domain: "cluster.local".into(),
            resolv_conf: HostConf {
                servers: vec!["192.0.2.53".parse().unwrap()],
                search: vec!["lan.example.".into(), ".".into()],
                options: vec!["edns0".into()],
            },
            ..Surroundings::default()
        }
    }

    fn of(spec: Value, node: &Surroundings, network: &[IpAddr]) -> (String, Vec<&'static str>) {
        let mut spec = spec;
        spec["containers"] = json!([]);
        let pod = json!({ "metadata": { "name": "p", "namespace": "ns", "uid": "u" }, "spec": spec });
        let (dns, warnings) = dns(&serde_json::from_value(pod).unwrap(), node, network);
        let servers: Vec<String> = dns.servers.iter().map(ToString::to_string).collect();
        let shown = format!("{}|{}|{}", servers.join(" "), dns.search.join(" "), dns.options.join(" "));
        (shown, warnings.iter().map(|it| it.reason).collect())
    }

    #[track_caller]
    fn check(spec: Value, want: &str) {
        assert_eq!(of(spec.clone(), &node(), &[]), (want.to_owned(), Vec::new()), "{spec}");
    }

    #[test]
    fn policies() {
        let cluster = "10.96.0.10|ns.svc.cluster.local svc.cluster.local cluster.local lan.example|ndots:5";
        let host = "192.0.2.53|lan.example|edns0";
        check(json!({}), cluster);
        check(json!({ "dnsPolicy": "ClusterFirst" }), cluster);
        check(json!({ "dnsPolicy": "ClusterFirst", "hostNetwork": true }), host);
        check(json!({ "dnsPolicy": "ClusterFirstWithHostNet", "hostNetwork": true }), cluster);
        check(json!({ "dnsPolicy": "Default" }), host);
        check(json!({ "dnsPolicy": "Odd" }), cluster);
        check(json!({ "dnsPolicy": "None" }), "127.0.0.1|.|.");
    }

    #[test]
    fn own_configuration() {
        let own = json!({ "nameservers": ["1.1.1.1", "::1", "evil\nx"], "searches": ["my.example", "a b"],
            "options": [{ "name": "ndots", "value": "2" }, { "name": "edns0" }, { "name": "x y" }, {}] });
        check(json!({ "dnsPolicy": "None", "dnsConfig": own }), "1.1.1.1 ::1|my.example|ndots:2 edns0");
        let want = "192.0.2.53 1.1.1.1 ::1|lan.example my.example|edns0 ndots:2";
        check(json!({ "dnsPolicy": "Default", "dnsConfig": own }), want);
        let want = "10.96.0.10 1.1.1.1 ::1|ns.svc.cluster.local svc.cluster.local cluster.local lan.example my.example|ndots:2 edns0";
        check(json!({ "dnsConfig": own }), want);
        check(json!({ "dnsConfig": {} }), &of(json!({}), &node(), &[]).0);
        let again = json!({ "nameservers": ["192.0.2.53"], "searches": ["lan.example"] });
        check(json!({ "dnsPolicy": "Default", "dnsConfig": again }), "192.0.2.53|lan.example|edns0");
    }

    #[test]
    fn without_a_resolver_of_the_cluster() {
        let node = Surroundings { cluster_dns: Vec::new(), ..node() };
        let (shown, warnings) = of(json!({}), &node, &[]);
        assert_eq!((shown.as_str(), warnings.as_slice()), ("192.0.2.53|lan.example|edns0", &["MissingClusterDNS"][..]));
    }

    #[test]
    fn resolvers_of_the_network_stand_in_for_the_hosts() {
        let network: [IpAddr; 1] = ["10.88.0.1".parse().unwrap()];
        let of = |spec: Value| of(spec, &node(), &network).0;
        assert_eq!(of(json!({ "dnsPolicy": "Default" })), "10.88.0.1|lan.example|edns0");
        assert_eq!(of(json!({ "dnsPolicy": "Default", "hostNetwork": true })), "192.0.2.53|lan.example|edns0");
        assert!(of(json!({})).starts_with("10.96.0.10|"));
    }

    #[test]
    fn limits() {
        let many = |n: usize, len: usize| (0..n).map(|n| format!("{n:0>len$}")).collect::<Vec<_>>();
        let own = json!({ "nameservers": ["1.1.1.1", "1.1.1.2", "1.1.1.3", "1.1.1.4"] });
        let (shown, warnings) = of(json!({ "dnsPolicy": "None", "dnsConfig": own }), &node(), &[]);
        assert_eq!((shown.as_str(), warnings.len()), ("1.1.1.1 1.1.1.2 1.1.1.3|.|.", 1));
        let search = |domains: Vec<String>| {
            let (shown, warnings) =
                of(json!({ "dnsPolicy": "None", "dnsConfig": { "searches": domains } }), &node(), &[]);
            (shown.split('|').nth(1).unwrap().split(' ').count(), warnings)
        };
        assert_eq!(search(many(32, 63)), (32, Vec::new())); // 32 * 64 - 1 = 2047 bytes.
        assert_eq!(search(many(33, 8)), (32, vec!["DNSConfigForming"]));
        assert_eq!(search(many(32, 65)), (31, vec!["DNSConfigForming"]));
        assert_eq!(search(vec!["a".into(), "x".repeat(254)]), (1, vec!["DNSConfigForming"]));
    }
}
