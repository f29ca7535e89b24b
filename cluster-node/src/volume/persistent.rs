//! Persistent volumes through claims: which volume is behind a claim, and whether this node may use it; pure.
//!
//! Elsewhere: the requests (`object`), the mounts (`apply`).

use std::{collections::BTreeMap, path::Path};

use k8s_openapi::api::core::v1::{
    NodeSelectorRequirement, NodeSelectorTerm, PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec, Pod,
    Volume,
};

use super::{
    Problem,
    collect::{Planned, Setup},
    host_path, nfs,
};

/// The name of the volume that a claim is bound to.
pub fn volume_name(claim: &PersistentVolumeClaim, volume: &Volume, pod: &Pod) -> Result<String, Problem> {
    let text = |it: &Option<String>| it.clone().unwrap_or_default();
    let (namespace, name) = (text(&claim.metadata.namespace), text(&claim.metadata.name));
    if volume.ephemeral.is_some() {
        let owners = claim.metadata.owner_references.iter().flatten();
        let uid = text(&pod.metadata.uid);
        if !owners.into_iter().any(|owner| owner.controller == Some(true) && owner.uid == uid) {
            let pod = text(&pod.metadata.name);
            return Err(Problem::Invalid(format!(
                "PVC {namespace}/{name} was not created for pod {namespace}/{pod} (pod is not owner)"
            )));
        }
    }
    if claim.metadata.deletion_timestamp.is_some() && claim.metadata.finalizers.as_ref().is_none_or(Vec::is_empty) {
        return Err(Problem::Missing("PVC is being deleted".to_owned()));
    }
    let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
    let bound = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()).filter(|name| !name.is_empty());
    match (phase, bound) {
        (Some("Bound"), Some(name)) => Ok(name),
        _ => Err(Problem::Missing(format!("persistentvolumeclaim {name:?} is not bound to a volume yet"))),
    }
}

/// What is to be set up for a volume that a claim is bound to.
pub fn plan(
    pv: &PersistentVolume,
    claim: &PersistentVolumeClaim,
    read_only: bool,
    labels: &BTreeMap<String, String>,
) -> Result<Planned, Problem> {
    let name = pv.metadata.name.clone().unwrap_or_default();
    let none = PersistentVolumeSpec::default();
    let spec = pv.spec.as_ref().unwrap_or(&none);
    let holder = spec.claim_ref.as_ref().and_then(|it| it.uid.clone()).unwrap_or_default();
    if holder.is_empty() || Some(&holder) != claim.metadata.uid.as_ref() {
        let claim = claim.metadata.name.clone().unwrap_or_default();
        return Err(Problem::Missing(format!(
            "persistentvolume {name:?} is not bound to claim {claim:?}: its claimRef has another uid"
        )));
    }
    let terms = spec.node_affinity.as_ref().and_then(|it| it.required.as_ref()).map(|it| &it.node_selector_terms);
    if terms.is_some_and(|terms| !terms.iter().any(|term| is_term_met(term, labels))) {
        return Err(Problem::Invalid(
            "MountVolume.NodeAffinity check failed: no matching NodeSelectorTerms".to_owned(),
        ));
    }
    let is_block = spec.volume_mode.as_deref() == Some("Block");
    let options = spec.mount_options.clone().unwrap_or_default();
    let setup = if let Some(local) = &spec.local {
        check_path(&local.path)?;
        if is_block {
            Setup::Device(host_path::check(&local.path, "BlockDevice")?)
        } else {
            Setup::Local { path: local.path.clone().into(), kind: local.fs_type.clone(), options }
        }
    } else if let Some(host) = &spec.host_path {
        let kind = host.type_.as_deref().unwrap_or_default();
        if is_block {
            Setup::Device(host_path::check(&host.path, "BlockDevice")?)
        } else {
            Setup::Host { path: host.path.clone(), kind: kind.to_owned() }
        }
    } else if let Some(source) = &spec.nfs {
        let read_only = read_only || source.read_only == Some(true);
        let (server, path) = (source.server.clone(), source.path.clone());
        Setup::Nfs(nfs::Export { server, path, read_only, options })
    } else if let Some(csi) = &spec.csi {
        return Err(no_driver(&csi.driver));
    } else {
        let message =
            format!("no volume plugin matched: persistentvolume {name:?} is of a kind that this node does not have");
        return Err(Problem::Unsupported(message));
    };
    let groups = pv.metadata.annotations.as_ref().and_then(|it| it.get("pv.beta.kubernetes.io/gid"));
    let group = groups.and_then(|it| it.parse().ok());
    Ok(Planned { name, setup, read_only, group })
}

/// A CSI driver is needed.
pub fn no_driver(driver: &str) -> Problem {
    let shown: String = driver.chars().take(128).collect();
    Problem::Unsupported(format!("driver name {shown} not found in the list of registered CSI drivers"))
}

fn check_path(path: &str) -> Result<(), Problem> {
    let is_good = path.starts_with('/') && !path.contains('\0');
    let is_good = is_good && !Path::new(path).components().any(|it| it.as_os_str() == "..");
    is_good
        .then_some(())
        .ok_or_else(|| Problem::Invalid("the path of a local volume must be absolute and without \"..\"".to_owned()))
}

/// All requirements of a term; fields of the node are not known here but for its name, which is also a label.
fn is_term_met(term: &NodeSelectorTerm, labels: &BTreeMap<String, String>) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let name = |it: &NodeSelectorRequirement| it.key == "metadata.name" && is_met(it, labels.get("metadata.name"));
    expressions.iter().all(|it| is_met(it, labels.get(&it.key))) && fields.iter().all(name)
}

fn is_met(requirement: &NodeSelectorRequirement, value: Option<&String>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let compare = |test: fn(&i64, &i64) -> bool| {
        let wanted = values.first().and_then(|it| it.parse::<i64>().ok());
        let value = value.and_then(|it| it.parse::<i64>().ok());
        values.len() == 1 && value.zip(wanted).is_some_and(|(value, wanted)| test(&value, &wanted))
    };
    match requirement.operator.as_str() {
        "In" => value.is_some_and(|value| values.contains(value)),
        "NotIn" => value.is_none_or(|value| !values.contains(value)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(i64::gt),
        "Lt" => compare(i64::lt),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn claim(more: Value) -> PersistentVolumeClaim {
        let mut claim = json!({ "metadata": { "name": "c", "namespace": "ns", "uid": "cu" },
            "spec": { "volumeName": "pv" }, "status": { "phase": "Bound" } });
        for (key, value) in more.as_object().unwrap() {
            claim[key] = value.clone();
        }
        serde_json::from_value(claim).unwrap()
    }

    #[test]
    fn what_a_claim_is_bound_to() {
        let pod = serde_json::from_value(json!({ "metadata": { "name": "p", "uid": "pu" } })).unwrap();
        let plain: Volume = serde_json::from_value(json!({ "name": "v" })).unwrap();
        let made: Volume = serde_json::from_value(json!({ "name": "v", "ephemeral": {} })).unwrap();
        assert_eq!(volume_name(&claim(json!({})), &plain, &pod).unwrap(), "pv");
        for unready in [json!({ "status": { "phase": "Pending" } }), json!({ "spec": {} }), json!({ "status": {} })] {
            assert!(volume_name(&claim(unready), &plain, &pod).unwrap_err().to_string().contains("not bound"));
        }
        let error = volume_name(&claim(json!({})), &made, &pod).unwrap_err();
        assert!(error.to_string().contains("was not created for pod"), "{error}");
        let owner = |uid: &str, controller: bool| {
            json!({ "metadata": { "name": "c", "ownerReferences":
                [{ "apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid, "controller": controller }] } })
        };
        volume_name(&claim(owner("pu", true)), &made, &pod).unwrap();
        volume_name(&claim(owner("other", true)), &made, &pod).unwrap_err();
        volume_name(&claim(owner("pu", false)), &made, &pod).unwrap_err();
    }

    fn plan_of(spec: Value) -> Result<Planned, Problem> {
        let mut pv = json!({ "metadata": { "name": "pv", "annotations": { "pv.beta.kubernetes.io/gid": "77" } },
            "spec": { "claimRef": { "uid": "cu" } } });
        for (key, value) in spec.as_object().unwrap() {
            pv["spec"][key] = value.clone();
        }
        let labels = [("zone".to_owned(), "a".to_owned()), ("n".to_owned(), "5".to_owned())].into();
        plan(&serde_json::from_value(pv).unwrap(), &claim(json!({})), false, &labels)
    }

    #[test]
    fn kinds_of_volumes() {
        let planned = plan_of(json!({ "local": { "path": "/data" } })).unwrap();
        assert_eq!(planned.group, Some(77));
        assert!(matches!(planned.setup, Setup::Local { .. }));
        assert!(matches!(plan_of(json!({ "hostPath": { "path": "/data" } })).unwrap().setup, Setup::Host { .. }));
        let nfs = plan_of(json!({ "nfs": { "server": "s", "path": "/x", "readOnly": true } })).unwrap();
        assert!(matches!(nfs.setup, Setup::Nfs(export) if export.read_only));
        for (spec, want) in [
            (json!({ "csi": { "driver": "d.io", "volumeHandle": "h" } }), "d.io not found"),
            (json!({ "rbd": { "image": "i", "monitors": [] } }), "no volume plugin matched"),
            (json!({ "local": { "path": "/a/../b" } }), "without"),
            (json!({ "local": { "path": "/x" }, "claimRef": { "uid": "other" } }), "another uid"),
            (json!({ "local": { "path": "/x" }, "claimRef": null }), "another uid"),
            (json!({ "local": { "path": "/etc" }, "volumeMode": "Block" }), "not a block device"),
        ] {
            let error = plan_of(spec).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
    }

    #[test]
    fn where_a_volume_may_be_used() {
        #[track_caller]
        fn check(expression: Value, want: bool) {
            let terms = json!([{ "matchExpressions": [{ "key": "none", "operator": "Exists" }] },
                { "matchExpressions": [expression] }]);
            let spec =
                json!({ "local": { "path": "/x" }, "nodeAffinity": { "required": { "nodeSelectorTerms": terms } } });
            assert_eq!(plan_of(spec).is_ok(), want);
        }
        check(json!({ "key": "zone", "operator": "In", "values": ["a", "b"] }), true);
        check(json!({ "key": "zone", "operator": "In", "values": ["b"] }), false);
        check(json!({ "key": "zone", "operator": "NotIn", "values": ["b"] }), true);
        check(json!({ "key": "rack", "operator": "NotIn", "values": ["b"] }), true);
        check(json!({ "key": "zone", "operator": "Exists" }), true);
        check(json!({ "key": "zone", "operator": "DoesNotExist" }), false);
        check(json!({ "key": "n", "operator": "Gt", "values": ["4"] }), true);
        check(json!({ "key": "n", "operator": "Lt", "values": ["5"] }), false);
        check(json!({ "key": "zone", "operator": "Near", "values": ["a"] }), false);
    }
}
