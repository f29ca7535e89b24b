//! What the other rooms need to know of the node, put into their words.

use std::{path::Path, sync::Arc, time::Duration};

use container_engine::network::dns::parse_resolv_conf;

use crate::{
    housekeeping::{eviction, threshold},
    join::ClusterInfo,
    node::NodeObject,
    options::Options,
    pod::{Ground, decide::admission::NodeFacts, model::Facts, runtime::Look, spec::Surroundings},
    volume,
};

/// Largest file of the host that pods get to see, bytes.
const MAX_FILE: u64 = 256 << 10;
/// How long a condition of the node holds after its cause has gone.
const TRANSITION: Duration = Duration::from_secs(300);

/// For volumes.
pub(super) fn volumes(node: &NodeObject) -> volume::Facts {
    let facts = node.facts();
    volume::Facts { node: facts.name, labels: facts.labels, allocatable: facts.allocatable }
}

/// For containers.
pub(super) fn surroundings(options: &Arc<Options>, cluster: &ClusterInfo, node: &NodeObject) -> Look {
    let (options, cluster, node) = (options.clone(), cluster.clone(), node.clone());
    Arc::new(move || {
        let facts = node.facts();
        let configuration = &cluster.configuration;
        let text = |path: &str| {
            let bytes = board::durable::read(Path::new(path), MAX_FILE).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        Surroundings {
            node: facts.name,
            host_addresses: facts.host_ips,
            allocatable: facts.allocatable,
            memory: facts.memory,
            cluster_dns: cluster.dns.clone(),
            cluster_domain: cluster.domain.clone(),
            resolv_conf: parse_resolv_conf(&text(configuration["resolvConf"].as_str().unwrap_or("/etc/resolv.conf"))),
            hosts: text("/etc/hosts"),
            seccomp_default: configuration["seccompDefault"].as_bool().unwrap_or(false),
            pids: configuration["podPidsLimit"].as_i64().filter(|limit| *limit > 0),
            kubelet_dir: options.kubelet_dir.clone(),
            log_dir: options.log_dir.clone(),
            ..Surroundings::default()
        }
    })
}

/// For decisions about pods.
pub(super) fn of(cluster: &ClusterInfo, node: &NodeObject) -> Arc<dyn Fn() -> Ground + Send + Sync> {
    let (cluster, node) = (cluster.clone(), node.clone());
    Arc::new(move || {
        let facts = node.facts();
        let configuration = &cluster.configuration;
        let longest = configuration["crashLoopBackOff"]["maxContainerRestartPeriod"].as_str();
        let longest = longest.and_then(crate::node::duration).map_or(0, |it| it.as_secs());
        let sysctls = configuration["allowedUnsafeSysctls"].as_array().into_iter().flatten();
        Ground {
            facts: Facts {
                host_addresses: facts.host_ips,
                memory: facts.memory,
                max_backoff_s: u32::try_from(longest).unwrap_or(0),
            },
            admission: NodeFacts {
                name: facts.name,
                labels: facts.labels,
                taints: facts.taints,
                allocatable: facts.allocatable,
                allowed_sysctls: sysctls.filter_map(|it| it.as_str().map(str::to_owned)).collect(),
            },
        }
    })
}

/// For eviction.
pub(super) fn eviction(options: &Options, cluster: &ClusterInfo, image_dir: &Path) -> eviction::Options {
    let map = |name: &str| -> std::collections::BTreeMap<String, String> {
        let pairs = cluster.configuration[name].as_object().into_iter().flatten();
        pairs.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
    };
    let (hard, soft, least) = (map("evictionHard"), map("evictionSoft"), map("evictionMinimumReclaim"));
    let grace = map("evictionSoftGracePeriod").into_iter();
    let grace = grace.filter_map(|(name, text)| Some((name, crate::node::duration(&text)?))).collect();
    let thresholds = if hard.is_empty() && soft.is_empty() {
        threshold::defaults()
    } else {
        threshold::configured(&hard, &soft, &grace, &least).unwrap_or_else(|error| {
            tracing::warn!(%error, "the cluster's thresholds of eviction are passed over");
            threshold::defaults()
        })
    };
    let transition = cluster.configuration["evictionPressureTransitionPeriod"].as_str();
    let max_grace = cluster.configuration["evictionMaxPodGracePeriod"].as_u64().unwrap_or(0);
    eviction::Options {
        thresholds,
        transition: transition.and_then(crate::node::duration).unwrap_or(TRANSITION),
        max_grace: Duration::from_secs(max_grace),
        node_dir: options.kubelet_dir.clone(),
        image_dir: image_dir.to_owned(),
    }
}
