//! What the API server fills in of a pod, for static pods, which it never sees before they run.
//!
//! Elsewhere: what is the kubelet's own to add (`manifest`).

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{
        Container, EmptyDirVolumeSource, HTTPGetAction, Lifecycle, ObjectFieldSelector, Pod, Probe,
        ResourceRequirements, Volume,
    },
    apimachinery::pkg::api::resource::Quantity,
};

/// Fills in.
pub(super) fn fill(pod: &mut Pod) {
    let Some(spec) = &mut pod.spec else { return };
    spec.dns_policy.get_or_insert_with(|| "ClusterFirst".to_owned());
    spec.restart_policy.get_or_insert_with(|| "Always".to_owned());
    spec.scheduler_name.get_or_insert_with(|| "default-scheduler".to_owned());
    spec.security_context.get_or_insert_default();
    spec.termination_grace_period_seconds.get_or_insert(30);
    spec.enable_service_links.get_or_insert(true);
    let is_host = spec.host_network == Some(true);
    for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
        fill_container(container, is_host);
    }
    for volume in spec.volumes.iter_mut().flatten() {
        fill_volume(volume);
    }
    // The admission that resolves classes does not see a static pod; these two are there in every cluster.
    let priority = match spec.priority_class_name.as_deref() {
        Some("system-node-critical") => Some(2_000_001_000),
        Some("system-cluster-critical") => Some(2_000_000_000),
        _ => None,
    };
    spec.priority = spec.priority.or(priority);
}

fn fill_container(container: &mut Container, is_host: bool) {
    container.image_pull_policy.get_or_insert_with(|| pull_policy(container.image.as_deref().unwrap_or_default()));
    container.termination_message_path.get_or_insert_with(|| "/dev/termination-log".to_owned());
    container.termination_message_policy.get_or_insert_with(|| "File".to_owned());
    for port in container.ports.iter_mut().flatten() {
        port.protocol.get_or_insert_with(|| "TCP".to_owned());
        if is_host {
            port.host_port.get_or_insert(port.container_port);
        }
    }
    let probes = [&mut container.liveness_probe, &mut container.readiness_probe, &mut container.startup_probe];
    probes.into_iter().flatten().for_each(fill_probe);
    if let Some(lifecycle) = &mut container.lifecycle {
        fill_hooks(lifecycle);
    }
    for variable in container.env.iter_mut().flatten() {
        let field = variable.value_from.as_mut().and_then(|it| it.field_ref.as_mut());
        field.into_iter().for_each(fill_field);
    }
    if let Some(resources) = &mut container.resources {
        fill_requests(resources);
    }
}

/// Limits are requests, where nothing else is requested.
fn fill_requests(resources: &mut ResourceRequirements) {
    let Some(limits) = &resources.limits else { return };
    let requests: &mut BTreeMap<String, Quantity> = resources.requests.get_or_insert_default();
    for (name, amount) in limits {
        requests.entry(name.clone()).or_insert_with(|| amount.clone());
    }
}

/// `latest`, or nothing, is pulled again.
fn pull_policy(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or_default();
    let (named, digest) = last.split_once('@').map_or((last, None), |(named, digest)| (named, Some(digest)));
    let tag = named.split_once(':').map(|(_, tag)| tag);
    let is_latest = tag.map_or(digest.is_none(), |tag| tag == "latest");
    if is_latest { "Always" } else { "IfNotPresent" }.to_owned()
}

fn fill_probe(probe: &mut Probe) {
    probe.timeout_seconds = probe.timeout_seconds.filter(|it| *it != 0).or(Some(1));
    probe.period_seconds = probe.period_seconds.filter(|it| *it != 0).or(Some(10));
    probe.success_threshold = probe.success_threshold.filter(|it| *it != 0).or(Some(1));
    probe.failure_threshold = probe.failure_threshold.filter(|it| *it != 0).or(Some(3));
    probe.http_get.iter_mut().for_each(fill_http);
    if let Some(grpc) = &mut probe.grpc {
        grpc.service.get_or_insert_default();
    }
}

fn fill_hooks(lifecycle: &mut Lifecycle) {
    let hooks = [&mut lifecycle.post_start, &mut lifecycle.pre_stop];
    hooks.into_iter().flatten().filter_map(|it| it.http_get.as_mut()).for_each(fill_http);
}

fn fill_http(action: &mut HTTPGetAction) {
    action.path = action.path.take().filter(|it| !it.is_empty()).or_else(|| Some("/".to_owned()));
    action.scheme.get_or_insert_with(|| "HTTP".to_owned());
}

fn fill_field(field: &mut ObjectFieldSelector) {
    field.api_version.get_or_insert_with(|| "v1".to_owned());
}

fn fill_volume(volume: &mut Volume) {
    const MODE: i32 = 0o644;
    if is_sourceless(volume) {
        volume.empty_dir = Some(EmptyDirVolumeSource::default());
    }
    if let Some(host_path) = &mut volume.host_path {
        host_path.type_.get_or_insert_default();
    }
    if let Some(image) = &mut volume.image {
        let reference = image.reference.clone().unwrap_or_default();
        image.pull_policy.get_or_insert_with(|| pull_policy(&reference));
    }
    if let Some(downward) = &mut volume.downward_api {
        downward.default_mode.get_or_insert(MODE);
        let fields = downward.items.iter_mut().flatten().filter_map(|it| it.field_ref.as_mut());
        fields.for_each(fill_field);
    }
    if let Some(projected) = &mut volume.projected {
        projected.default_mode.get_or_insert(MODE);
        let downward = projected.sources.iter_mut().flatten().filter_map(|it| it.downward_api.as_mut());
        let items = downward.flat_map(|it| it.items.iter_mut().flatten());
        items.filter_map(|it| it.field_ref.as_mut()).for_each(fill_field);
    }
}

fn is_sourceless(volume: &Volume) -> bool {
    *volume == Volume { name: volume.name.clone(), ..Volume::default() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pull_policies_follow_the_tag() {
        for (image, want) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("host:5000/nginx", "Always"),
            ("nginx:1", "IfNotPresent"),
            ("host:5000/nginx:1", "IfNotPresent"),
            ("nginx@sha256:00", "IfNotPresent"),
            ("nginx:1@sha256:00", "IfNotPresent"),
            ("nginx:latest@sha256:00", "Always"),
        ] {
            assert_eq!(pull_policy(image), want, "{image}");
        }
    }

    #[test]
    fn what_is_missing_is_filled_in_and_nothing_else() {
        let mut pod: Pod = serde_json::from_value(json!({"spec": {"hostNetwork": true, "dnsPolicy": "Default",
            "priorityClassName": "system-node-critical",
            "containers": [{"name": "c", "image": "i:1", "ports": [{"containerPort": 80}],
                "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "100m"}},
                "livenessProbe": {"httpGet": {"port": 80}, "periodSeconds": 3},
                "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}],
            "volumes": [{"name": "v"}, {"name": "h", "hostPath": {"path": "/x"}}]}}))
        .unwrap();
        fill(&mut pod);
        let first = serde_json::to_value(&pod).unwrap();
        assert_eq!(
            first["spec"],
            json!({"hostNetwork": true, "dnsPolicy": "Default", "restartPolicy": "Always",
            "schedulerName": "default-scheduler", "securityContext": {}, "terminationGracePeriodSeconds": 30,
            "enableServiceLinks": true, "priorityClassName": "system-node-critical", "priority": 2_000_001_000,
            "containers": [{"name": "c", "image": "i:1", "imagePullPolicy": "IfNotPresent",
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                "ports": [{"containerPort": 80, "hostPort": 80, "protocol": "TCP"}],
                "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "100m", "memory": "1Gi"}},
                "livenessProbe": {"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "periodSeconds": 3,
                    "timeoutSeconds": 1, "successThreshold": 1, "failureThreshold": 3},
                "env": [{"name": "A", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}}]}],
            "volumes": [{"name": "v", "emptyDir": {}}, {"name": "h", "hostPath": {"path": "/x", "type": ""}}]})
        );
        fill(&mut pod);
        assert_eq!(serde_json::to_value(&pod).unwrap(), first);
    }
}
