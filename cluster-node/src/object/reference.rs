//! Which config maps and secrets a pod refers to, so that they can be watched; pure.
//!
//! Elsewhere: what it does with them (`pod::spec`, `volume`).

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{EnvFromSource, EnvVar, Pod, PodSpec, Volume};

/// Most objects of one pod that are watched: a pod's specification holds far less.
const MOST: usize = 1024;

/// Names in the pod's namespace.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct References {
    /// Config maps.
    pub config_maps: BTreeSet<String>,
    /// Secrets.
    pub secrets: BTreeSet<String>,
    /// Claims, those made for ephemeral volumes included.
    pub claims: BTreeSet<String>,
}

/// What a pod refers to.
pub fn of(pod: &Pod) -> References {
    let mut found = References::default();
    let Some(spec) = &pod.spec else { return found };
    for secret in spec.image_pull_secrets.iter().flatten() {
        found.secret(Some(&secret.name));
    }
    for (env, from) in environments(spec) {
        for variable in env {
            found.variable(variable);
        }
        for source in from {
            found.variables(source);
        }
    }
    let pod_name = pod.metadata.name.as_deref().unwrap_or_default();
    for volume in spec.volumes.iter().flatten() {
        found.volume(volume, pod_name);
    }
    found
}

fn environments(spec: &PodSpec) -> impl Iterator<Item = (&[EnvVar], &[EnvFromSource])> {
    fn slices<'a>(
        env: Option<&'a Vec<EnvVar>>,
        from: Option<&'a Vec<EnvFromSource>>,
    ) -> (&'a [EnvVar], &'a [EnvFromSource]) {
        (env.map_or(&[], Vec::as_slice), from.map_or(&[], Vec::as_slice))
    }
    let all = spec.init_containers.iter().flatten().chain(&spec.containers);
    let all = all.map(|it| slices(it.env.as_ref(), it.env_from.as_ref()));
    let ephemeral = spec.ephemeral_containers.iter().flatten();
    all.chain(ephemeral.map(|it| slices(it.env.as_ref(), it.env_from.as_ref())))
}

impl References {
    fn secret(&mut self, name: Option<&String>) {
        add(&mut self.secrets, name);
    }

    fn config_map(&mut self, name: Option<&String>) {
        add(&mut self.config_maps, name);
    }

    fn variable(&mut self, variable: &EnvVar) {
        let Some(source) = &variable.value_from else { return };
        self.secret(source.secret_key_ref.as_ref().map(|it| &it.name));
        self.config_map(source.config_map_key_ref.as_ref().map(|it| &it.name));
    }

    fn variables(&mut self, from: &EnvFromSource) {
        self.secret(from.secret_ref.as_ref().map(|it| &it.name));
        self.config_map(from.config_map_ref.as_ref().map(|it| &it.name));
    }

    fn volume(&mut self, volume: &Volume, pod: &str) {
        self.secret(volume.secret.as_ref().and_then(|it| it.secret_name.as_ref()));
        self.config_map(volume.config_map.as_ref().map(|it| &it.name));
        for source in volume.projected.iter().flat_map(|it| it.sources.iter().flatten()) {
            self.secret(source.secret.as_ref().map(|it| &it.name));
            self.config_map(source.config_map.as_ref().map(|it| &it.name));
        }
        let csi = volume.csi.as_ref().and_then(|it| it.node_publish_secret_ref.as_ref());
        self.secret(csi.map(|it| &it.name));
        add(&mut self.claims, claim_of(volume, pod).as_ref());
    }
}

/// The claim behind a volume: the one named, or the one that is made for an ephemeral volume.
pub fn claim_of(volume: &Volume, pod: &str) -> Option<String> {
    let named = volume.persistent_volume_claim.as_ref().map(|it| it.claim_name.clone());
    named.or_else(|| volume.ephemeral.as_ref().map(|_| format!("{pod}-{}", volume.name)))
}

fn add(to: &mut BTreeSet<String>, name: Option<&String>) {
    // The API server has checked names; a static pod's or a damaged record's may be anything.
    let plain = |name: &&String| {
        let chars = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
        !name.is_empty() && name.len() <= 253 && name.bytes().all(chars)
    };
    if let Some(name) = name.filter(plain)
        && to.len() < MOST
    {
        to.insert(name.clone());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(spec: serde_json::Value, config_maps: &[&str], secrets: &[&str], claims: &[&str]) {
        let pod = json!({ "metadata": { "name": "p", "namespace": "ns" }, "spec": spec });
        let found = of(&serde_json::from_value(pod).unwrap());
        let set = |names: &[&str]| names.iter().map(|it| (*it).to_owned()).collect::<BTreeSet<_>>();
        let want = References { config_maps: set(config_maps), secrets: set(secrets), claims: set(claims) };
        assert_eq!(found, want);
    }

    #[test]
    fn everything_that_a_pod_names() {
        check(json!({ "containers": [] }), &[], &[], &[]);
        check(json!({ "containers": [], "imagePullSecrets": [{ "name": "pull" }, {}] }), &[], &["pull"], &[]);
        let env = json!([{ "name": "A", "valueFrom": { "secretKeyRef": { "name": "s1", "key": "k" } } },
            { "name": "B", "valueFrom": { "configMapKeyRef": { "name": "c1", "key": "k" } } },
            { "name": "C", "value": "v" }]);
        let from = json!([{ "secretRef": { "name": "s2" } }, { "configMapRef": { "name": "c2" } }]);
        for place in ["containers", "initContainers", "ephemeralContainers"] {
            let mut spec = json!({ "containers": [] });
            spec[place] = json!([{ "name": "x", "env": env, "envFrom": from }]);
            check(spec, &["c1", "c2"], &["s1", "s2"], &[]);
        }
        let volumes = json!([
            { "name": "a", "secret": { "secretName": "s" } },
            { "name": "b", "configMap": { "name": "c" } },
            { "name": "d", "projected": { "sources": [{ "secret": { "name": "ps" } }, { "configMap": { "name": "pc" } },
                { "serviceAccountToken": { "path": "token" } }] } },
            { "name": "e", "csi": { "driver": "d", "nodePublishSecretRef": { "name": "cs" } } },
            { "name": "f", "persistentVolumeClaim": { "claimName": "claim" } },
            { "name": "g", "ephemeral": {} },
            { "name": "h", "emptyDir": {} },
        ]);
        check(json!({ "containers": [], "volumes": volumes }), &["c", "pc"], &["cs", "ps", "s"], &["claim", "p-g"]);
    }

    #[test]
    fn hostile_names_are_not_asked_for() {
        for name in ["", "a/../b", "A", "x?watch=true", &"n".repeat(254), "ü"] {
            check(json!({ "containers": [], "imagePullSecrets": [{ "name": name }] }), &[], &[], &[]);
        }
    }
}
