//! Variables by which containers learn of services: `NAME_SERVICE_HOST` and Docker's links.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use k8s_openapi::api::core::v1::{Pod, Service};

/// The variables of the services that a pod is told of: those of its namespace where it wants links, and always
/// `default/kubernetes`.
pub fn variables(pod: &Pod, services: &[Service]) -> BTreeMap<String, String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let links = pod.spec.as_ref().and_then(|spec| spec.enable_service_links) != Some(false);
    let mut chosen: BTreeMap<&str, &Service> = BTreeMap::new();
    for service in services {
        let name = service.metadata.name.as_deref().unwrap_or_default();
        let space = service.metadata.namespace.as_deref().unwrap_or("default");
        let is_master = (space, name) == ("default", "kubernetes");
        if name.is_empty() || !(is_master || (links && space == namespace)) {
            continue;
        }
        // A service of the pod's own namespace comes before the API server's, if it takes its name.
        if !is_master || namespace == "default" || !chosen.contains_key(name) {
            chosen.insert(name, service);
        }
    }
    let mut out = BTreeMap::new();
    for (name, service) in chosen {
        add(&name.replace('-', "_").to_uppercase(), service, &mut out);
    }
    out
}

fn add(name: &str, service: &Service, out: &mut BTreeMap<String, String>) {
    let Some(spec) = &service.spec else { return };
    let external = spec.type_.as_deref() == Some("ExternalName");
    let address = spec.cluster_ip.as_deref().filter(|_| !external).and_then(|it| it.parse::<IpAddr>().ok());
    let ports = spec.ports.as_deref().unwrap_or_default();
    let (Some(address), Some(first)) = (address, ports.first()) else { return };
    let mut set = |suffix: &str, value: String| drop(out.insert(format!("{name}{suffix}"), value));
    set("_SERVICE_HOST", address.to_string());
    set("_SERVICE_PORT", first.port.to_string());
    for (n, port) in ports.iter().enumerate() {
        let number = port.port;
        let protocol = port.protocol.as_deref().filter(|it| !it.is_empty()).unwrap_or("TCP");
        let (upper, lower) = (protocol.to_uppercase(), protocol.to_lowercase());
        let at = u16::try_from(number).map_or_else(|_| String::new(), |it| SocketAddr::new(address, it).to_string());
        if let Some(label) = port.name.as_deref().filter(|it| !it.is_empty()) {
            set(&format!("_SERVICE_PORT_{}", label.replace('-', "_").to_uppercase()), number.to_string());
        }
        if n == 0 {
            set("_PORT", format!("{lower}://{at}"));
        }
        let prefix = format!("_PORT_{number}_{upper}");
        set(&prefix, format!("{lower}://{at}"));
        set(&format!("{prefix}_PROTO"), lower);
        set(&format!("{prefix}_PORT"), number.to_string());
        set(&format!("{prefix}_ADDR"), address.to_string());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(namespace: &str, name: &str, address: &str, ports: serde_json::Value) -> Service {
        serde_json::from_value(json!({ "metadata": { "name": name, "namespace": namespace },
            "spec": { "clusterIP": address, "ports": ports } }))
        .unwrap()
    }

    #[track_caller]
    fn names(namespace: &str, links: Option<bool>, services: &[Service]) -> Vec<String> {
        let pod = serde_json::from_value(json!({ "metadata": { "namespace": namespace },
            "spec": { "containers": [], "enableServiceLinks": links } }));
        let vars = variables(&pod.unwrap(), services);
        vars.iter().filter(|(name, _)| name.ends_with("_SERVICE_HOST")).map(|(n, v)| format!("{n}={v}")).collect()
    }

    #[test]
    fn all_variables_of_one() {
        let ports = json!([{ "name": "web-ui", "port": 80, "protocol": "TCP" }, { "name": "dns", "port": 53, "protocol": "UDP" }]);
        let pod = serde_json::from_value(json!({ "metadata": { "namespace": "ns" }, "spec": { "containers": [] } }));
        let vars = variables(&pod.unwrap(), &[service("ns", "my-svc", "10.96.0.7", ports)]);
        let shown: Vec<String> = vars.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let want = [
            "MY_SVC_PORT=tcp://10.96.0.7:80",
            "MY_SVC_PORT_53_UDP=udp://10.96.0.7:53",
            "MY_SVC_PORT_53_UDP_ADDR=10.96.0.7",
            "MY_SVC_PORT_53_UDP_PORT=53",
            "MY_SVC_PORT_53_UDP_PROTO=udp",
            "MY_SVC_PORT_80_TCP=tcp://10.96.0.7:80",
            "MY_SVC_PORT_80_TCP_ADDR=10.96.0.7",
            "MY_SVC_PORT_80_TCP_PORT=80",
            "MY_SVC_PORT_80_TCP_PROTO=tcp",
            "MY_SVC_SERVICE_HOST=10.96.0.7",
            "MY_SVC_SERVICE_PORT=80",
            "MY_SVC_SERVICE_PORT_DNS=53",
            "MY_SVC_SERVICE_PORT_WEB_UI=80",
        ];
        assert_eq!(shown, want);
        let six = service("ns", "six", "fd00::7", json!([{ "port": 443 }]));
        let pod = serde_json::from_value(json!({ "metadata": { "namespace": "ns" }, "spec": { "containers": [] } }));
        assert_eq!(variables(&pod.unwrap(), &[six])["SIX_PORT"], "tcp://[fd00::7]:443");
    }

    #[test]
    fn which_services() {
        let port = || json!([{ "port": 1 }]);
        let all = [
            service("default", "kubernetes", "10.96.0.1", port()),
            service("default", "other", "10.96.0.2", port()),
            service("ns", "mine", "10.96.0.3", port()),
            service("ns", "headless", "None", port()),
            service("ns", "empty", "", port()),
            service("ns", "portless", "10.96.0.4", json!([])),
        ];
        let kubernetes = "KUBERNETES_SERVICE_HOST=10.96.0.1".to_owned();
        let mine = "MINE_SERVICE_HOST=10.96.0.3".to_owned();
        let other = "OTHER_SERVICE_HOST=10.96.0.2".to_owned();
        assert_eq!(names("ns", Some(true), &all), [kubernetes.clone(), mine.clone()]);
        assert_eq!(names("ns", None, &all), [kubernetes.clone(), mine]);
        assert_eq!(names("ns", Some(false), &all), std::slice::from_ref(&kubernetes));
        assert_eq!(names("default", Some(true), &all), [kubernetes.clone(), other]);
        assert_eq!(names("default", Some(false), &all), [kubernetes]);
        // Its own counts, in whichever order they come.
        let own = service("ns", "kubernetes", "10.96.0.9", port());
        let mut two = vec![all[0].clone(), own];
        for _ in 0..2 {
            assert_eq!(names("ns", Some(true), &two), ["KUBERNETES_SERVICE_HOST=10.96.0.9"]);
            two.reverse();
        }
        // An external name has no address of the cluster.
        let mut external = service("ns", "ext", "10.96.0.8", port());
        external.spec.as_mut().unwrap().type_ = Some("ExternalName".to_owned());
        assert_eq!(names("ns", None, &[external]), [""; 0]);
    }
}
