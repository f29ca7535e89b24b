//! `[node]`, checked.

use std::{collections::BTreeMap, net::IpAddr, path::Path, time::Duration};

use cluster_node::options::{Options, Taint};
use ipnet::IpNet;

use super::{
    checked::{Wrong, address, wrong},
    raw,
};

/// The amounts that can be kept from pods.
const RESERVED: [&str; 4] = ["cpu", "memory", "ephemeral-storage", "pid"];
/// The lease lasts 40 s; a renewal may fail once.
const LEASE: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(19);
/// More containers than a board has memory for.
const MAX_PODS: std::ops::RangeInclusive<u32> = 1..=1000;

/// `None` where the board is to be no node.
pub(super) fn check(raw: raw::Node, board: &str, data_dir: &Path, run_dir: &Path) -> Result<Option<Options>, Wrong> {
    let name = raw.name.unwrap_or_else(|| board.to_ascii_lowercase().replace('_', "-"));
    if !is_subdomain(&name) {
        let form = "use lower-case letters, digits, '-' and '.', beginning and ending with a letter or digit";
        return wrong("node.name", format!("{name:?} is no name of a node: {form}"));
    }
    if !LEASE.contains(&raw.lease_renew.0) {
        return wrong("node.lease_renew", "from 1s to 19s: a node whose lease is not renewed for 40 s counts as lost");
    }
    if !MAX_PODS.contains(&raw.max_pods) {
        return wrong("node.max_pods", format!("{}; from 1 to 1000", raw.max_pods));
    }
    let listen = address("node.listen", &raw.listen)?;
    let healthz = (!raw.healthz.is_empty()).then(|| address("node.healthz", &raw.healthz)).transpose()?;
    for (key, path) in
        [("node.kubelet_dir", &raw.kubelet_dir), ("node.log_dir", &raw.log_dir), ("node.manifests", &raw.manifests)]
    {
        if !path.is_absolute() {
            return wrong(key, format!("{} is not absolute", path.display()));
        }
    }
    let options = Options {
        name,
        data_dir: data_dir.to_owned(),
        run_dir: run_dir.to_owned(),
        kubelet_dir: raw.kubelet_dir,
        log_dir: raw.log_dir,
        manifests: raw.manifests,
        listen,
        healthz,
        labels: labels(raw.labels)?,
        taints: raw.taints.iter().map(|text| taint(text)).collect::<Result<_, _>>()?,
        reserved: reserved(raw.reserved)?,
        pod_cidr: raw.pod_cidr.as_deref().map(pod_cidr).transpose()?,
        address: raw.address.as_deref().map(node_address).transpose()?,
        lease_renew: raw.lease_renew.0,
        max_pods: raw.max_pods,
    };
    Ok(raw.enabled.then_some(options))
}

/// RFC 1123, as names of objects are.
fn is_subdomain(name: &str) -> bool {
    let is_label = |label: &str| {
        let inner = label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        inner && !label.is_empty() && label.len() <= 63 && !label.starts_with('-') && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(is_label)
}

fn labels(labels: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, Wrong> {
    let is_plain = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    for (key, value) in &labels {
        let (prefix, name) = key.rsplit_once('/').map_or((None, key.as_str()), |(prefix, name)| (Some(prefix), name));
        let key_fits = prefix.is_none_or(is_subdomain) && (1..=63).contains(&name.len()) && is_plain(name);
        if !key_fits || value.len() > 63 || !is_plain(value) {
            return wrong(
                "node.labels",
                format!("{key} = {value:?} is no label; write it like {{ site = \"field-7\" }}"),
            );
        }
        if let Some(prefix) = prefix.filter(|prefix| is_reserved(prefix)) {
            let who = "the API server lets no node give itself such a label: have an administrator set it";
            return wrong("node.labels", format!("{key}: {who} ({prefix})"));
        }
    }
    Ok(labels)
}

/// What the admission plugin `NodeRestriction` refuses, but for the standard labels, which are not configured.
fn is_reserved(prefix: &str) -> bool {
    let of = |domain: &str| prefix == domain || prefix.ends_with(&format!(".{domain}"));
    let allowed = ["kubelet.kubernetes.io", "node.kubernetes.io", "topology.kubernetes.io"];
    let is_allowed = allowed.iter().any(|it| prefix == *it || prefix.ends_with(&format!(".{it}")));
    (of("kubernetes.io") || of("k8s.io")) && !is_allowed
}

fn taint(text: &str) -> Result<Taint, Wrong> {
    text.parse().or_else(|error: cluster_node::options::TaintError| wrong("node.taints", error.to_string()))
}

fn reserved(amounts: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, Wrong> {
    match amounts.keys().find(|key| !RESERVED.contains(&key.as_str())) {
        None => Ok(amounts),
        Some(key) => wrong("node.reserved", format!("{key:?} cannot be reserved; there are {}", RESERVED.join(", "))),
    }
}

fn pod_cidr(text: &str) -> Result<IpNet, Wrong> {
    let problem = || format!("{text:?} is no subnet; write it like \"10.244.7.0/24\"");
    text.parse().ok().map_or_else(|| wrong("node.pod_cidr", problem()), Ok)
}

fn node_address(text: &str) -> Result<IpAddr, Wrong> {
    let address: Option<IpAddr> = text.parse().ok();
    let usable = address.filter(|it| !it.is_unspecified() && !it.is_loopback() && !it.is_multicast());
    usable.map_or_else(|| wrong("node.address", format!("{text:?} is no address that a cluster could reach")), Ok)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn checked(change: impl FnOnce(&mut raw::Node)) -> Result<Option<Options>, Wrong> {
        let mut raw = raw::Node::default();
        change(&mut raw);
        check(raw, "Field_7", Path::new("/d"), Path::new("/r"))
    }

    #[test]
    fn the_boards_name_becomes_that_of_a_node() {
        let options = checked(|_| {}).unwrap().unwrap();
        assert_eq!(options.name, "field-7");
        assert_eq!(options.listen, SocketAddr::from(([0, 0, 0, 0], 10250)));
    }

    #[test]
    fn what_the_api_server_would_refuse_is_refused_here() {
        let label = |key: &str, value: &str| {
            let (key, value) = (key.to_owned(), value.to_owned());
            checked(move |raw| {
                raw.labels.insert(key, value);
            })
        };
        assert!(label("site", "field-7").is_ok());
        assert!(label("node.kubernetes.io/instance-type", "pi4").is_ok());
        for (key, value) in [("node-role.kubernetes.io/edge", ""), ("a b", "c"), ("a", "b/c"), ("/x", ""), ("", "")] {
            assert_eq!(label(key, value).map_err(|(key, _)| key).err().as_deref(), Some("node.labels"), "{key}");
        }
        let wrong = [
            checked(|raw| raw.name = Some("Board!".into())),
            checked(|raw| raw.taints = vec!["edge".into()]),
            checked(|raw| raw.address = Some("127.0.0.1".into())),
            checked(|raw| raw.pod_cidr = Some("10.0.0.0".into())),
            checked(|raw| raw.lease_renew.0 = Duration::from_secs(60)),
            checked(|raw| raw.max_pods = 0),
            checked(|raw| drop(raw.reserved.insert("gpu".into(), "1".into()))),
            checked(|raw| raw.kubelet_dir = "kubelet".into()),
        ];
        for (index, wrong) in wrong.iter().enumerate() {
            assert!(wrong.is_err(), "{index}");
        }
        assert!(checked(|raw| raw.enabled = false).unwrap().is_none());
    }
}
