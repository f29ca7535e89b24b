//! Whether a pod may be taken: its names become paths and labels on this node, whoever it comes from.
//!
//! Elsewhere: whether it can run (`pod::decide`, `pod::spec`).

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Pod, PodSpec};

/// Containers or volumes of one pod at the most.
const MOST: usize = 512;

/// Why a pod is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// A field that must be there.
    #[error("{0} is missing")]
    Missing(String),
    /// A field with something else than belongs there.
    #[error("{field} is {value:?}, which is not {want}")]
    Malformed {
        /// Which.
        field: String,
        /// What is there, shortened.
        value: String,
        /// What should be.
        want: &'static str,
    },
    /// Two of one name.
    #[error("{field}: there are two of the name {name:?}")]
    Double {
        /// Of what.
        field: &'static str,
        /// The name.
        name: String,
    },
    /// Too large.
    #[error("{field}: there are more than {MOST}")]
    TooMany {
        /// Of what.
        field: &'static str,
    },
    /// Not this node's.
    #[error("it is bound to the node {0:?}")]
    Elsewhere(String),
}

/// A pod of the API server or the cache: as far as is needed to be safe. Without what nobody here reads.
pub(super) fn received(mut pod: Pod, node: &str) -> Result<Pod, Invalid> {
    names(&pod)?;
    let bound = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default();
    if bound != node {
        return Err(Invalid::Elsewhere(shortened(bound)));
    }
    pod.metadata.managed_fields = None;
    Ok(pod)
}

/// Whether all names are what they must be.
pub(super) fn names(pod: &Pod) -> Result<(), Invalid> {
    let meta = &pod.metadata;
    field("metadata.uid", meta.uid.as_deref(), is_uid, "a uid")?;
    field("metadata.namespace", meta.namespace.as_deref(), is_label, LABEL)?;
    field("metadata.name", meta.name.as_deref(), is_subdomain, SUBDOMAIN)?;
    let spec = pod.spec.as_ref().ok_or_else(|| Invalid::Missing("spec".to_owned()))?;
    containers(spec)?;
    let volumes = spec.volumes.iter().flatten().map(|it| it.name.as_str());
    distinct("spec.volumes", volumes)
}

fn containers(spec: &PodSpec) -> Result<(), Invalid> {
    if spec.containers.is_empty() {
        return Err(Invalid::Missing("spec.containers".to_owned()));
    }
    let init = spec.init_containers.iter().flatten().map(|it| it.name.as_str());
    let regular = spec.containers.iter().map(|it| it.name.as_str());
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|it| it.name.as_str());
    distinct("spec.containers", init.chain(regular).chain(ephemeral))
}

fn distinct<'a>(what: &'static str, names: impl Iterator<Item = &'a str>) -> Result<(), Invalid> {
    let mut seen = BTreeSet::new();
    for name in names {
        field(&format!("{what}[].name"), Some(name), is_label, LABEL)?;
        if !seen.insert(name) {
            return Err(Invalid::Double { field: what, name: name.to_owned() });
        }
        if seen.len() > MOST {
            return Err(Invalid::TooMany { field: what });
        }
    }
    Ok(())
}

const LABEL: &str = "a DNS label: lower case letters, digits and '-', at most 63";
const SUBDOMAIN: &str = "a DNS subdomain: lower case letters, digits, '-' and '.', at most 253";

fn field(name: &str, value: Option<&str>, is_good: fn(&str) -> bool, want: &'static str) -> Result<(), Invalid> {
    let value = value.filter(|it| !it.is_empty()).ok_or_else(|| Invalid::Missing(name.to_owned()))?;
    if is_good(value) {
        return Ok(());
    }
    Err(Invalid::Malformed { field: name.to_owned(), value: shortened(value), want })
}

/// RFC 1123's label.
pub(super) fn is_label(text: &str) -> bool {
    let chars = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    chars && !text.is_empty() && text.len() <= 63 && !text.starts_with('-') && !text.ends_with('-')
}

/// Labels with dots between them.
pub(super) fn is_subdomain(text: &str) -> bool {
    let is_part = |part: &str| {
        let chars = part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        chars && !part.is_empty() && !part.starts_with('-') && !part.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(is_part)
}

fn is_uid(text: &str) -> bool {
    let chars = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    chars && text.len() <= 128 && !text.starts_with('-')
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(changed: impl FnOnce(&mut Value)) -> Pod {
        let mut value = json!({"metadata": {"name": "a.b", "namespace": "ns", "uid": "11-22", "managedFields": [{}]},
            "spec": {"nodeName": "board", "containers": [{"name": "c", "image": "i"}]}});
        changed(&mut value);
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_pod_is_taken_without_what_nobody_reads() {
        let pod = received(pod(|_| ()), "board").unwrap();
        assert_eq!(pod.metadata.managed_fields, None);
        assert_eq!(pod.metadata.name.as_deref(), Some("a.b"));
    }

    #[test]
    fn what_would_be_a_wrong_path_is_refused() {
        #[track_caller]
        fn check(path: &str, value: Value, want: &str) {
            let pod = pod(|it| *it.pointer_mut(path).unwrap() = value);
            let problem = received(pod, "board").unwrap_err().to_string();
            assert!(problem.contains(want), "{path}: {problem}");
            assert!(problem.len() < 512);
        }
        check("/metadata/uid", json!("../../etc"), "metadata.uid is");
        check("/metadata/uid", json!(""), "metadata.uid is missing");
        check("/metadata/uid", json!("x".repeat(1000)), "metadata.uid is");
        check("/metadata/name", json!(".."), "metadata.name is");
        check("/metadata/name", json!("a/b"), "metadata.name is");
        check("/metadata/namespace", json!("a.b"), "metadata.namespace is");
        check("/metadata/namespace", json!("N"), "metadata.namespace is");
        check("/spec/containers/0/name", json!("../x"), "spec.containers[].name is");
        check("/spec/containers", json!([]), "spec.containers is missing");
        check("/spec/containers", json!([{"name": "c"}, {"name": "c"}]), "two of the name \"c\"");
        check("/spec/nodeName", json!("other"), "bound to the node \"other\"");
        let many: Vec<Value> = (0..1000).map(|n| json!({"name": format!("c{n}")})).collect();
        check("/spec/containers", json!(many), "more than 512");
    }
}
