//! What the node is told by the configuration.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use ipnet::IpNet;

/// Everything that is configured of the node.
#[derive(Debug, Clone)]
pub struct Options {
    /// Name of the Node object: a DNS-1123 subdomain.
    pub name: String,
    /// The agent's data; the node's own part lies in `node/` below it, its identity in `identity/`.
    pub data_dir: PathBuf,
    /// Sockets and mount points; gone after a reboot.
    pub run_dir: PathBuf,
    /// The kubelet's folder: volumes of pods, sockets of device plugins and of CSI drivers.
    pub kubelet_dir: PathBuf,
    /// `pods/` and `containers/` below it hold the logs.
    pub log_dir: PathBuf,
    /// Static pods.
    pub manifests: PathBuf,
    /// Where the kubelet's HTTPS API listens.
    pub listen: SocketAddr,
    /// Where the kubelet's plain `/healthz` listens, if it does.
    pub healthz: Option<SocketAddr>,
    /// Labels that the node registers with, beside the standard ones.
    pub labels: BTreeMap<String, String>,
    /// Taints that the node registers with.
    pub taints: Vec<Taint>,
    /// What pods do not get, as Kubernetes quantities of `cpu`, `memory`, `ephemeral-storage` and `pid`.
    pub reserved: BTreeMap<String, String>,
    /// Addresses of pods, instead of what the cluster gives to the node.
    pub pod_cidr: Option<IpNet>,
    /// Address that the cluster reaches the node by, instead of that of the default route's interface.
    pub address: Option<IpAddr>,
    /// Time between two renewals of the lease.
    pub lease_renew: Duration,
    /// Pods at the most.
    pub max_pods: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            name: "board".to_owned(),
            data_dir: "/var/lib/edge-agent".into(),
            run_dir: "/run/edge-agent".into(),
            kubelet_dir: "/var/lib/kubelet".into(),
            log_dir: "/var/log".into(),
            manifests: "/etc/edge-agent/manifests".into(),
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 10250),
            healthz: Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10248)),
            labels: BTreeMap::new(),
            taints: Vec::new(),
            reserved: BTreeMap::new(),
            pod_cidr: None,
            address: None,
            lease_renew: Duration::from_secs(10),
            max_pods: 110,
        }
    }
}

/// A taint, as `kubectl taint` writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taint {
    /// A qualified name.
    pub key: String,
    /// May be empty.
    pub value: String,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: String,
}

/// Not a taint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no taint: write KEY=VALUE:EFFECT or KEY:EFFECT, with NoSchedule, PreferNoSchedule or NoExecute")]
pub struct TaintError(pub String);

impl std::str::FromStr for Taint {
    type Err = TaintError;

    fn from_str(text: &str) -> Result<Self, TaintError> {
        let wrong = || TaintError(text.chars().take(256).collect());
        let (name, effect) = text.rsplit_once(':').ok_or_else(wrong)?;
        let (key, value) = name.split_once('=').unwrap_or((name, ""));
        let known = matches!(effect, "NoSchedule" | "PreferNoSchedule" | "NoExecute");
        if key.is_empty() || !known {
            return Err(wrong());
        }
        Ok(Self { key: key.to_owned(), value: value.to_owned(), effect: effect.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taints_are_read_as_kubectl_writes_them() {
        let taint = |key: &str, value: &str, effect: &str| Taint {
            key: key.into(),
            value: value.into(),
            effect: effect.into(),
        };
        assert_eq!("a/b=c:NoSchedule".parse(), Ok(taint("a/b", "c", "NoSchedule")));
        assert_eq!("edge:NoExecute".parse(), Ok(taint("edge", "", "NoExecute")));
        for wrong in ["", "a", "a=b", "a=b:Never", ":NoSchedule", "=b:NoExecute"] {
            assert!(wrong.parse::<Taint>().is_err(), "{wrong}");
        }
    }
}
