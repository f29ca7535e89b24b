//! `/etc/hosts` of a pod, which the kubelet manages.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{HostAlias, Pod};

use super::{Surroundings, is_host_network, pod::Names};

const OWN: &str = "# Kubernetes-managed hosts file.\n\
    127.0.0.1\tlocalhost\n\
    ::1\tlocalhost ip6-localhost ip6-loopback\n\
    fe00::0\tip6-localnet\n\
    fe00::0\tip6-mcastprefix\n\
    fe00::1\tip6-allnodes\n\
    fe00::2\tip6-allrouters\n";
const HOST: &str = "# Kubernetes-managed hosts file (host network).\n";

/// The file; `None` while the pod has no address. On the host's network it is the host's.
pub fn hosts_file(pod: &Pod, names: &Names, addresses: &[IpAddr], node: &Surroundings) -> Option<String> {
    let mut text = if is_host_network(pod) {
        let mut text = format!("{HOST}{}", node.hosts);
        if !text.ends_with('\n') {
            text.push('\n');
        }
        text
    } else if addresses.is_empty() {
        return None;
    } else {
        let name = &names.short;
        let full = names.domain.as_ref().map(|domain| format!("{name}.{domain}\t")).unwrap_or_default();
        let lines = addresses.iter().map(|address| format!("{address}\t{full}{name}\n"));
        OWN.chars().chain(lines.collect::<String>().chars()).collect()
    };
    let aliases = pod.spec.as_ref().and_then(|spec| spec.host_aliases.as_deref()).unwrap_or_default();
    let lines: String = aliases.iter().filter_map(line).collect();
    if !lines.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
        text.push_str(&lines);
    }
    Some(text)
}

/// A line of the file; one that would be several, or none, is left out.
fn line(alias: &HostAlias) -> Option<String> {
    let address: IpAddr = alias.ip.parse().ok()?;
    let plain =
        |name: &&String| !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || c.is_control() || c == '#');
    let names: Vec<&str> = alias.hostnames.iter().flatten().filter(plain).map(String::as_str).collect();
    (!names.is_empty()).then(|| format!("{address}\t{}\n", names.join("\t")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn files() {
        #[track_caller]
        fn check(spec: serde_json::Value, addresses: &[&str], want: Option<&str>) {
            let pod: Pod =
                serde_json::from_value(json!({ "metadata": { "name": "web", "namespace": "ns" }, "spec": spec }))
                    .unwrap();
            let node = Surroundings {
                cluster_domain: "cluster.local".into(),
                hosts: "127.0.0.1 localhost board".into(),
                ..Surroundings::default()
            };
            let addresses: Vec<IpAddr> = addresses.iter().map(|it| it.parse().unwrap()).collect();
            let names = super::super::pod::hostname(&pod, &node).unwrap();
            let text = hosts_file(&pod, &names, &addresses, &node);
            let shown = text.map(|text| text.strip_prefix(OWN).map_or(text.clone(), ToOwned::to_owned));
            assert_eq!(shown.as_deref(), want, "{spec}");
        }
        let plain = json!({ "containers": [] });
        check(plain.clone(), &[], None);
        check(plain.clone(), &["10.1.0.5", "fd00::5"], Some("10.1.0.5\tweb\nfd00::5\tweb\n"));
        let named = json!({ "containers": [], "hostname": "db-0", "subdomain": "db" });
        check(named, &["10.1.0.5"], Some("10.1.0.5\tdb-0.db.ns.svc.cluster.local\tdb-0\n"));
        let aliases = json!([{ "ip": "10.9.9.9", "hostnames": ["a", "b.example"] }, { "ip": "::1", "hostnames": ["six"] },
            { "ip": "x", "hostnames": ["c"] }, { "ip": "10.9.9.8" }, { "ip": "10.9.9.7", "hostnames": ["x\n6.6.6.6 evil", ""] }]);
        let more = "\n# Entries added by HostAliases.\n10.9.9.9\ta\tb.example\n::1\tsix\n";
        check(
            json!({ "containers": [], "hostAliases": aliases }),
            &["10.1.0.5"],
            Some(&format!("10.1.0.5\tweb\n{more}")),
        );
        check(
            json!({ "containers": [], "hostNetwork": true, "hostAliases": aliases }),
            &[],
            Some(&format!("{HOST}127.0.0.1 localhost board\n{more}")),
        );
    }
}
