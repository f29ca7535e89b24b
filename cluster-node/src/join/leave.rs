//! Leaving: no new pods, and an end for those that are here, as `kubectl drain` does.

use std::{collections::BTreeSet, time::Duration};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api as Typed,
    api::{EvictParams, ListParams, Patch, PatchParams},
};
use tokio::time::Instant;

use super::JoinError;
use crate::api::{Api, Failure, failure};

/// How long pods have to end, and disruption budgets to allow it.
const PATIENCE: Duration = Duration::from_secs(180);
/// Between two looks.
const LOOK: Duration = Duration::from_secs(2);

/// Cordons the node and evicts its pods, but those of daemon sets and of manifests; returns when they have gone, or time is
/// over, which `said` hears.
pub async fn leave(api: &Api, node: &str, said: &(dyn Fn(String) + Send + Sync)) -> Result<(), JoinError> {
    let place = api.server().authority();
    let cordon = Patch::Merge(serde_json::json!({ "spec": { "unschedulable": true } }));
    let cordoned = Typed::<Node>::all(api.client()).patch(node, &PatchParams::default(), &cordon).await;
    match cordoned {
        Ok(_) => said(format!("node {node} takes no new pods")),
        Err(error) if failure(&error) == Failure::NotFound => {}
        Err(error) if failure(&error) == Failure::Unreachable => {
            return Err(JoinError::Offline { server: place, problem: board::tasks::chain(&error) });
        }
        Err(error) => return Err(JoinError::of(&place, "cordon its node", &error)),
    }
    let mut told = BTreeSet::new();
    let end = Instant::now() + PATIENCE;
    loop {
        let left = pods(api, &place, node).await?;
        if left.is_empty() {
            said("all pods have gone".to_owned());
            return Ok(());
        }
        if Instant::now() > end {
            said(format!(
                "{} pods have not gone within {} s: they are ended with the board's membership",
                left.len(),
                PATIENCE.as_secs()
            ));
            return Ok(());
        }
        for pod in left.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
            if let Some(words) = evict(api, pod).await.filter(|words| told.insert(words.clone())) {
                said(words);
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What there is to say of it.
async fn evict(api: &Api, pod: &Pod) -> Option<String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let evicted = Typed::<Pod>::namespaced(api.client(), namespace).evict(name, &EvictParams::default()).await;
    match evicted {
        Ok(_) => Some(format!("pod {namespace}/{name} is evicted")),
        Err(error) => match failure(&error) {
            Failure::NotFound => None,
            // A budget does not allow it now.
            Failure::Busy => Some(format!("pod {namespace}/{name} waits for its disruption budget")),
            _ => Some(format!("pod {namespace}/{name} is not evicted: {}", crate::node::request::words(&error))),
        },
    }
}

/// Pods that somebody would miss.
async fn pods(api: &Api, place: &str, node: &str) -> Result<Vec<Pod>, JoinError> {
    let params = ListParams::default().fields(&format!("spec.nodeName={node}"));
    let all = Typed::<Pod>::all(api.client()).list(&params).await;
    let mut all = all.map_err(|error| JoinError::of(place, "list its pods", &error))?.items;
    all.retain(is_drained);
    Ok(all)
}

fn is_drained(pod: &Pod) -> bool {
    let meta = &pod.metadata;
    let is_mirror = meta.annotations.as_ref().is_some_and(|it| it.contains_key("kubernetes.io/config.mirror"));
    let is_daemon =
        meta.owner_references.iter().flatten().any(|it| it.kind == "DaemonSet" && it.controller == Some(true));
    let phase = pod.status.as_ref().and_then(|it| it.phase.as_deref());
    !is_mirror && !is_daemon && !matches!(phase, Some("Succeeded" | "Failed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn daemons_and_static_pods_stay() {
        #[track_caller]
        fn check(pod: serde_json::Value, want: bool) {
            assert_eq!(is_drained(&serde_json::from_value(pod.clone()).unwrap()), want, "{pod}");
        }
        let owner = |kind: &str| serde_json::json!({ "metadata": { "ownerReferences": [{ "apiVersion": "apps/v1", "kind": kind, "name": "x", "uid": "u", "controller": true }] } });
        check(serde_json::json!({ "metadata": {} }), true);
        check(owner("ReplicaSet"), true);
        check(owner("DaemonSet"), false);
        check(serde_json::json!({ "metadata": { "annotations": { "kubernetes.io/config.mirror": "h" } } }), false);
        check(serde_json::json!({ "metadata": {}, "status": { "phase": "Succeeded" } }), false);
    }
}
