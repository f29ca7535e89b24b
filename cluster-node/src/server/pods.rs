//! /pods and /runningpods/: what should run, and what does.

use std::{collections::BTreeMap, sync::Arc};

use container_engine::container::Inspect;
use k8s_openapi::api::core::v1::Pod;
use serde::Serialize;

/// A `v1.PodList`.
#[derive(Serialize)]
pub struct PodList<T> {
    kind: &'static str,
    #[serde(rename = "apiVersion")]
    api_version: &'static str,
    metadata: BTreeMap<String, String>,
    items: Vec<T>,
}

fn list<T>(items: Vec<T>) -> PodList<T> {
    PodList { kind: "PodList", api_version: "v1", metadata: BTreeMap::new(), items }
}

/// Pods with their status.
pub fn all(pods: &[Arc<Pod>]) -> PodList<&Pod> {
    list(pods.iter().map(AsRef::as_ref).collect())
}

/// A pod and its running containers, by name.
pub struct Running {
    /// The pod.
    pub pod: Arc<Pod>,
    /// Name and what the engine has of it.
    pub containers: Vec<(String, Inspect)>,
}

/// Pods with running containers, as the engine has them.
pub fn running(pods: &[Running]) -> PodList<serde_json::Value> {
    let some = pods.iter().filter(|pod| !pod.containers.is_empty());
    let item = |running: &Running| {
        let meta = &running.pod.metadata;
        let container = |(name, inspect): &(String, Inspect)| serde_json::json!({"name": name, "image": inspect.image.id, "resources": {}});
        let containers: Vec<_> = running.containers.iter().map(container).collect();
        serde_json::json!({
            "metadata": {"name": meta.name, "namespace": meta.namespace, "uid": meta.uid, "creationTimestamp": null},
            "spec": {"containers": containers},
            "status": {},
        })
    };
    list(some.map(item).collect())
}

/// Names of all containers of a pod.
pub fn container_names(pod: &Pod) -> Vec<String> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let init = spec.init_containers.iter().flatten().map(|it| it.name.clone());
    let regular = spec.containers.iter().map(|it| it.name.clone());
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|it| it.name.clone());
    init.chain(regular).chain(ephemeral).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_lists_of_kubernetes() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u"},
            "spec": {
                "initContainers": [{"name": "i"}],
                "containers": [{"name": "c"}],
                "ephemeralContainers": [{"name": "e"}],
            },
        }))
        .unwrap();
        assert_eq!(container_names(&pod), ["i", "c", "e"]);
        let pod = Arc::new(pod);
        let value = serde_json::to_value(all(std::slice::from_ref(&pod))).unwrap();
        assert_eq!((value["kind"].as_str(), value["apiVersion"].as_str()), (Some("PodList"), Some("v1")));
        assert_eq!(value["items"][0]["metadata"]["name"], "p");
        let none = running(&[Running { pod, containers: vec![] }]);
        assert_eq!(serde_json::to_value(none).unwrap()["items"], serde_json::json!([]));
    }
}
