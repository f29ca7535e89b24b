//! A static pod's manifest: a file of this node that becomes a pod with no API server; pure.
//!
//! Always true:
//! - The same file on the same node is the same pod, with the same uid; another content is another pod.
//! - A static pod refers to nothing that only an API server has.
//!
//! Elsewhere: when files are read (`folder`), how the API server is shown the pod (`mirror`).

use k8s_openapi::{
    api::core::v1::{EnvFromSource, EnvVar, Pod, PodSpec, PodStatus, Toleration, Volume, VolumeProjection},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde_json::Value;

use super::{
    check::{self, Invalid},
    defaults,
    known::{HASH, SOURCE},
    yaml,
};

/// Largest file, bytes.
pub(super) const MOST: u64 = 10 << 20;

/// Why a file is no static pod.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// It could not be read.
    #[error("it cannot be read: {0}")]
    Read(String),
    /// Bytes that are no text.
    #[error("it is not UTF-8 text from byte {0} on")]
    Text(usize),
    /// Not YAML.
    #[error("it is neither YAML nor JSON, or not one document: {0}")]
    Yaml(String),
    /// Something else than a pod.
    #[error("it must be a Pod of v1, and is {kind:?} of {version:?}")]
    NotAPod {
        /// `kind`.
        kind: String,
        /// `apiVersion`.
        version: String,
    },
    /// A field of another type than the API has.
    #[error("it is no valid Pod: {0}")]
    Shape(String),
    /// A field that may not be so.
    #[error("it is no valid Pod: {0}")]
    Invalid(#[from] Invalid),
    /// It needs the API server.
    #[error("static pods may not reference {0}")]
    Reference(&'static str),
    /// Another file has a pod of that name already.
    #[error("the pod {0} is there already, from the file {1}")]
    Double(String, String),
}

/// The static pod that a file of this path is on this node.
pub fn parse(bytes: &[u8], path: &str, node: &str) -> Result<Pod, ManifestError> {
    let mut value = yaml::read(bytes)?;
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().chars().take(80).collect();
    let (kind, version): (String, String) = (text("kind"), text("apiVersion"));
    if kind != "Pod" || version != "v1" {
        return Err(ManifestError::NotAPod { kind, version });
    }
    if let Some(object) = value.as_object_mut() {
        object.remove("status");
    }
    value.get_mut("spec").into_iter().for_each(yaml::mend_quantities);
    let uid = uid(&value, path, node);
    // What is around a wrong value may be somebody's password: serde quotes no more than the value's own scalar.
    let mut pod: Pod =
        serde_json::from_value(value).map_err(|error| ManifestError::Shape(yaml::cut(&error.to_string())))?;
    if let Some(resource) = reference(&pod) {
        return Err(ManifestError::Reference(resource));
    }
    defaults::fill(&mut pod);
    name(&mut pod, uid, node)?;
    check::names(&pod)?;
    images(&pod)?;
    Ok(pod)
}

/// Makes it this node's.
fn name(pod: &mut Pod, uid: String, node: &str) -> Result<(), Invalid> {
    let meta = &mut pod.metadata;
    let name = meta.name.take().filter(|it| !it.is_empty()).ok_or_else(|| Invalid::Missing("metadata.name".into()))?;
    let uid = meta.uid.take().filter(|it| !it.is_empty()).unwrap_or(uid);
    let mut annotations = meta.annotations.take().unwrap_or_default();
    annotations.insert(HASH.to_owned(), uid.clone());
    annotations.insert(SOURCE.to_owned(), "file".to_owned());
    let namespace = meta.namespace.take().filter(|it| !it.is_empty()).unwrap_or_else(|| "default".to_owned());
    pod.metadata = ObjectMeta {
        name: Some(format!("{name}-{}", node.to_lowercase())),
        namespace: Some(namespace),
        uid: Some(uid),
        labels: meta.labels.take(),
        annotations: Some(annotations),
        ..ObjectMeta::default()
    };
    let spec = pod.spec.as_mut().ok_or_else(|| Invalid::Missing("spec".into()))?;
    spec.node_name = Some(node.to_owned());
    let always = Toleration {
        operator: Some("Exists".to_owned()),
        effect: Some("NoExecute".to_owned()),
        ..Toleration::default()
    };
    let tolerations = spec.tolerations.get_or_insert_default();
    if !tolerations.contains(&always) {
        tolerations.push(always);
    }
    pod.status = Some(PodStatus { phase: Some("Pending".to_owned()), ..PodStatus::default() });
    Ok(())
}

fn images(pod: &Pod) -> Result<(), Invalid> {
    let all = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers));
    for container in all {
        if container.image.as_deref().is_none_or(|image| image.trim().is_empty()) {
            return Err(Invalid::Missing(format!("the image of the container {:?}", container.name)));
        }
    }
    Ok(())
}

/// Which kind of API objects a pod refers to, in the kubelet's words.
fn reference(pod: &Pod) -> Option<&'static str> {
    let spec = pod.spec.as_ref()?;
    let is_there = |text: &Option<String>| text.as_ref().is_some_and(|it| !it.is_empty());
    if is_there(&spec.service_account_name) || is_there(&spec.service_account) {
        return Some("serviceaccounts");
    }
    if spec.image_pull_secrets.iter().flatten().next().is_some() {
        return Some("secrets");
    }
    if spec.ephemeral_containers.iter().flatten().next().is_some() {
        return Some("ephemeral containers");
    }
    if spec.resource_claims.iter().flatten().next().is_some() {
        return Some("resourceclaims");
    }
    variables(spec).or_else(|| spec.volumes.iter().flatten().find_map(volume))
}

fn variables(spec: &PodSpec) -> Option<&'static str> {
    let of_variable = |it: &EnvVar| {
        let source = it.value_from.as_ref()?;
        let secret = source.secret_key_ref.as_ref().map(|_| "secrets");
        secret.or(source.config_map_key_ref.as_ref().map(|_| "configmaps"))
    };
    let of_source = |it: &EnvFromSource| {
        let secret = it.secret_ref.as_ref().map(|_| "secrets");
        secret.or(it.config_map_ref.as_ref().map(|_| "configmaps"))
    };
    spec.init_containers.iter().flatten().chain(&spec.containers).find_map(|container| {
        let variable = container.env.iter().flatten().find_map(of_variable);
        variable.or_else(|| container.env_from.iter().flatten().find_map(of_source))
    })
}

fn volume(volume: &Volume) -> Option<&'static str> {
    let found = [
        (volume.config_map.is_some(), "configmaps (via configmap volumes)"),
        (volume.secret.is_some(), "secrets (via secret volumes)"),
        (volume.csi.is_some(), "csidrivers (via CSI volumes)"),
        (volume.glusterfs.is_some(), "endpoints (via glusterFS volumes)"),
        (volume.persistent_volume_claim.is_some(), "persistentvolumeclaims"),
        (volume.ephemeral.is_some(), "persistentvolumeclaims (via ephemeral volumes)"),
        (volume.azure_file.is_some(), "secrets (via azureFile volumes)"),
    ];
    let found = found.into_iter().find(|(is_there, _)| *is_there).map(|(_, words)| words);
    found.or_else(|| volume.projected.iter().flat_map(|it| it.sources.iter().flatten()).find_map(projection))
}

fn projection(source: &VolumeProjection) -> Option<&'static str> {
    let found = [
        (source.config_map.is_some(), "configmaps (via projected volumes)"),
        (source.secret.is_some(), "secrets (via projected volumes)"),
        (source.service_account_token.is_some(), "serviceaccounts (via projected volumes)"),
        (source.cluster_trust_bundle.is_some(), "clustertrustbundles"),
        (source.pod_certificate.is_some(), "podcertificates"),
    ];
    found.into_iter().find(|(is_there, _)| *is_there).map(|(_, words)| words)
}

/// The uid of a manifest that has none: of its content, whatever the order of its keys, the node and the file.
fn uid(value: &Value, path: &str, node: &str) -> String {
    let mut hash = Fnv128::default();
    hash.value(value);
    hash.bytes(b"host:");
    hash.bytes(node.as_bytes());
    hash.bytes(b"file:");
    hash.bytes(path.as_bytes());
    format!("{:032x}", hash.0)
}

/// FNV-1a of 128 bits.
struct Fnv128(u128);

impl Default for Fnv128 {
    fn default() -> Self {
        Self(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d)
    }
}

impl Fnv128 {
    fn bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u128::from(*byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
        }
    }

    /// With its kind and length, so that no two values look alike; as deep as a document may be.
    fn value(&mut self, value: &Value) {
        match value {
            Value::Null => self.bytes(b"n"),
            Value::Bool(it) => self.bytes(if *it { b"t" } else { b"f" }),
            Value::Number(it) => self.text('#', &it.to_string()),
            Value::String(it) => self.text('"', it),
            Value::Array(items) => {
                self.text('[', &items.len().to_string());
                for it in items {
                    self.value(it);
                }
            }
            Value::Object(map) => {
                let mut fields: Vec<_> = map.iter().filter(|(_, value)| !value.is_null()).collect();
                fields.sort_by_key(|(key, _)| *key);
                self.text('{', &fields.len().to_string());
                for (key, value) in fields {
                    self.text('.', key);
                    self.value(value);
                }
            }
        }
    }

    fn text(&mut self, kind: char, text: &str) {
        self.bytes(format!("{kind}{}:", text.len()).as_bytes());
        self.bytes(text.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &str = "
apiVersion: v1
kind: Pod
metadata:
  name: web
  labels: {app: web}
  resourceVersion: '7'
spec:
  containers:
  - name: c
    image: nginx:1
    resources: {limits: {cpu: 1}}
";

    fn parsed(text: &str) -> Result<Pod, ManifestError> {
        parse(text.as_bytes(), "/m/web.yaml", "Board")
    }

    #[test]
    fn a_manifest_becomes_a_pod_of_this_node() {
        let pod = parsed(PLAIN).unwrap();
        let meta = &pod.metadata;
        let uid = meta.uid.clone().unwrap();
        assert_eq!((meta.name.as_deref(), meta.namespace.as_deref()), (Some("web-board"), Some("default")));
        assert!(uid.len() == 32 && uid.bytes().all(|b| b.is_ascii_hexdigit()), "{uid}");
        assert_eq!(meta.annotations.as_ref().unwrap()[HASH], uid);
        assert_eq!(meta.annotations.as_ref().unwrap()[SOURCE], "file");
        assert_eq!(meta.resource_version, None);
        let spec = pod.spec.unwrap();
        assert_eq!(spec.node_name.as_deref(), Some("Board"));
        assert_eq!(spec.tolerations.unwrap()[0].effect.as_deref(), Some("NoExecute"));
        assert_eq!(spec.containers[0].resources.as_ref().unwrap().requests.as_ref().unwrap()["cpu"].0, "1");
        assert_eq!(pod.status.unwrap().phase.as_deref(), Some("Pending"));
    }

    #[test]
    fn the_uid_is_the_contents_the_nodes_and_the_files() {
        let uid =
            |text: &str, path: &str, node: &str| parse(text.as_bytes(), path, node).unwrap().metadata.uid.unwrap();
        let first = uid(PLAIN, "/m/web.yaml", "board");
        assert_eq!(first, uid(PLAIN, "/m/web.yaml", "board"));
        let reordered = PLAIN.replace("apiVersion: v1\nkind: Pod", "# a remark\nkind: Pod\napiVersion: v1");
        assert_eq!(first, uid(&reordered, "/m/web.yaml", "board"));
        assert_ne!(first, uid(&PLAIN.replace("nginx:1", "nginx:2"), "/m/web.yaml", "board"));
        assert_ne!(first, uid(PLAIN, "/m/other.yaml", "board"));
        assert_ne!(first, uid(PLAIN, "/m/web.yaml", "other"));
        assert_eq!("own", uid(&PLAIN.replace("name: web", "uid: own\n  name: web"), "/m/web.yaml", "board"));
    }

    #[test]
    fn fnv_is_the_published_one() {
        let hash = |text: &str| {
            let mut hash = Fnv128::default();
            hash.bytes(text.as_bytes());
            format!("{:032x}", hash.0)
        };
        assert_eq!(hash(""), "6c62272e07bb014262b821756295c58d");
        assert_eq!(hash("a"), "d228cb696f1a8caf78912b704e4a8964");
        assert_eq!(hash("foobar"), "343e1662793c64bf6f0d3597ba446f18");
    }

    #[test]
    fn what_needs_an_api_server_is_refused() {
        #[track_caller]
        fn check(spec: &str, want: &'static str) {
            let text = format!("{PLAIN}{spec}");
            assert_eq!(parsed(&text).unwrap_err(), ManifestError::Reference(want), "{spec}");
        }
        check("  serviceAccountName: x\n", "serviceaccounts");
        check("  imagePullSecrets: [{name: x}]\n", "secrets");
        check("  resourceClaims: [{name: x}]\n", "resourceclaims");
        check("    env: [{name: A, valueFrom: {secretKeyRef: {name: x, key: k}}}]\n", "secrets");
        check("    envFrom: [{configMapRef: {name: x}}]\n", "configmaps");
        check("  volumes: [{name: v, secret: {secretName: x}}]\n", "secrets (via secret volumes)");
        check("  volumes: [{name: v, configMap: {name: x}}]\n", "configmaps (via configmap volumes)");
        check("  volumes: [{name: v, persistentVolumeClaim: {claimName: x}}]\n", "persistentvolumeclaims");
        check("  volumes: [{name: v, csi: {driver: x}}]\n", "csidrivers (via CSI volumes)");
        let token = "  volumes: [{name: v, projected: {sources: [{serviceAccountToken: {path: t}}]}}]\n";
        check(token, "serviceaccounts (via projected volumes)");
        parsed(&format!(
            "{PLAIN}  volumes: [{{name: v, hostPath: {{path: /x}}}}, {{name: w, projected: {{sources: \
            [{{downwardAPI: {{}}}}]}}}}]\n"
        ))
        .unwrap();
    }

    #[test]
    fn what_is_no_pod_is_refused_with_the_reason() {
        #[track_caller]
        fn check(text: &str, want: &str) {
            let problem = parsed(text).unwrap_err().to_string();
            assert!(problem.contains(want), "{problem}");
        }
        check("", "must be a Pod");
        check("kind: Pod", "of \"\"");
        check(&PLAIN.replace("kind: Pod", "kind: Deployment"), "\"Deployment\"");
        check(&PLAIN.replace("name: web", "nome: web"), "metadata.name is missing");
        check(&PLAIN.replace("name: web", "name: Web_1"), "metadata.name is \"Web_1-board\"");
        check(&PLAIN.replace("image: nginx:1", "image: ''"), "image of the container \"c\"");
        check(&PLAIN.replace("image: nginx:1", "image: [1]"), "no valid Pod");
        check(&PLAIN.replace("name: web", "namespace: a/b\n  name: web"), "metadata.namespace is");
        check(&PLAIN.replace("name: web", "uid: ../x\n  name: web"), "metadata.uid is");
        check("apiVersion: v1\nkind: Pod\nmetadata: {name: x}\n", "spec");
    }
}
