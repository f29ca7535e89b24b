//! What each volume of a pod is to be, its objects fetched: the asynchronous half of setting up.
//!
//! Elsewhere: the files of each kind (`payload`, `downward`), doing it (`apply`).

use std::path::PathBuf;

use k8s_openapi::api::core::v1::{
    ConfigMap, Pod, ProjectedVolumeSource, Secret, ServiceAccountTokenProjection, Volume, VolumeProjection,
};

use super::{
    Facts, Problem, downward,
    empty_dir::{self, Medium},
    nfs,
    payload::{File, Payload, of_config_map, of_secret, permissions},
    persistent, place,
};
use crate::object::{ObjectError, Objects, TokenWanted, claim_of};

/// Modes of files where none is given: the API server's default.
const USUAL_MODE: u32 = 0o644;

/// What is to be set up.
#[derive(Debug, PartialEq, Eq)]
pub enum Setup {
    /// Files that the node writes.
    Files {
        /// The kind's folder.
        kind: &'static str,
        /// They.
        payload: Payload,
        /// Never on the disk.
        in_memory: bool,
    },
    /// An empty folder.
    Empty(Medium),
    /// A path of the node.
    Host {
        /// Absolute.
        path: String,
        /// The check.
        kind: String,
    },
    /// An export of a server.
    Nfs(nfs::Export),
    /// A folder or a block device of this node with a file system.
    Local {
        /// Where.
        path: PathBuf,
        /// Of a block device.
        kind: Option<String>,
        /// Of a block device.
        options: Vec<String>,
    },
    /// A block device as it is.
    Device(PathBuf),
    /// An image.
    Image(String),
}

/// A volume that is to be set up.
#[derive(Debug, PartialEq, Eq)]
pub struct Planned {
    /// Its folder's name: the persistent volume's, else that in the pod.
    pub name: String,
    /// What.
    pub setup: Setup,
    /// Whatever a container says.
    pub read_only: bool,
    /// A further group of the pod.
    pub group: Option<u32>,
}

/// What volumes are planned with.
pub struct Planner<'a> {
    pub objects: &'a Objects,
    pub facts: &'a Facts,
    pub pod: &'a Pod,
}

impl Planner<'_> {
    /// One volume.
    pub async fn plan(&self, volume: &Volume) -> Result<Planned, Problem> {
        let planned = |setup, read_only| Planned { name: volume.name.clone(), setup, read_only, group: None };
        if let Some(claim) = claim_of(volume, self.pod.metadata.name.as_deref().unwrap_or_default()) {
            return self.claimed(volume, &claim).await;
        }
        if let Some(source) = &volume.empty_dir {
            return Ok(planned(Setup::Empty(empty_dir::medium_of(source, self.pod, self.facts)?), false));
        }
        if let Some(source) = &volume.host_path {
            let kind = source.type_.clone().unwrap_or_default();
            return Ok(planned(Setup::Host { path: source.path.clone(), kind }, false));
        }
        if let Some(source) = &volume.nfs {
            let read_only = source.read_only == Some(true);
            let (server, path) = (source.server.clone(), source.path.clone());
            return Ok(planned(Setup::Nfs(nfs::Export { server, path, read_only, options: Vec::new() }), read_only));
        }
        if let Some(source) = &volume.image {
            let reference = source.reference.clone().unwrap_or_default();
            return Ok(planned(Setup::Image(reference), true));
        }
        if let Some(source) = &volume.csi {
            return Err(persistent::no_driver(&source.driver));
        }
        let (kind, payload, in_memory) = self.files(volume).await?;
        Ok(planned(Setup::Files { kind, payload, in_memory }, true))
    }

    async fn files(&self, volume: &Volume) -> Result<(&'static str, Payload, bool), Problem> {
        let mode = |mode: Option<i32>| mode.map_or(USUAL_MODE, permissions);
        if let Some(source) = &volume.config_map {
            let optional = source.optional == Some(true);
            let object = self.config_map(&source.name, optional).await?;
            let items = source.items.as_deref().unwrap_or_default();
            return Ok((place::CONFIG_MAP, of_config_map(&object, items, mode(source.default_mode), optional)?, false));
        }
        if let Some(source) = &volume.secret {
            let optional = source.optional == Some(true);
            let object = self.secret(source.secret_name.as_deref().unwrap_or_default(), optional).await?;
            let items = source.items.as_deref().unwrap_or_default();
            return Ok((place::SECRET, of_secret(&object, items, mode(source.default_mode), optional)?, true));
        }
        if let Some(source) = &volume.downward_api {
            let items = source.items.as_deref().unwrap_or_default();
            let files = downward::files(items, self.pod, &self.facts.allocatable, mode(source.default_mode))?;
            return Ok((place::DOWNWARD, files, true));
        }
        if let Some(source) = &volume.projected {
            return Ok((place::PROJECTED, self.projected(source, mode(source.default_mode)).await?, true));
        }
        Err(Problem::Unsupported("no volume plugin matched: this node does not have that kind of volume".to_owned()))
    }

    async fn projected(&self, source: &ProjectedVolumeSource, mode: u32) -> Result<Payload, Problem> {
        let mut payload = Payload::default();
        for one in source.sources.iter().flatten() {
            payload.extend(self.projection(one, mode).await?)?;
        }
        Ok(payload)
    }

    async fn projection(&self, source: &VolumeProjection, mode: u32) -> Result<Payload, Problem> {
        if let Some(source) = &source.secret {
            let optional = source.optional == Some(true);
            let object = self.secret(&source.name, optional).await?;
            return of_secret(&object, source.items.as_deref().unwrap_or_default(), mode, optional);
        }
        if let Some(source) = &source.config_map {
            let optional = source.optional == Some(true);
            let object = self.config_map(&source.name, optional).await?;
            return of_config_map(&object, source.items.as_deref().unwrap_or_default(), mode, optional);
        }
        if let Some(source) = &source.downward_api {
            let items = source.items.as_deref().unwrap_or_default();
            return downward::files(items, self.pod, &self.facts.allocatable, mode);
        }
        if let Some(source) = &source.service_account_token {
            return self.token(source, mode).await;
        }
        let kind = match (&source.cluster_trust_bundle, &source.pod_certificate) {
            (Some(_), _) => "clusterTrustBundle",
            (_, Some(_)) => "podCertificate",
            _ => return Ok(Payload::default()),
        };
        Err(Problem::Unsupported(format!("projected source {kind} is not available on this node")))
    }

    async fn token(&self, source: &ServiceAccountTokenProjection, mode: u32) -> Result<Payload, Problem> {
        let wanted = TokenWanted::projected(self.pod, source.audience.as_deref(), source.expiration_seconds);
        let token = self.objects.token(&wanted).await?;
        let owner = user_of(self.pod);
        // Nobody but the pod's user or group is to read it, where it has one.
        let mode = if owner.is_some() || group_of(self.pod).is_some() { 0o600 } else { mode };
        let mut payload = Payload::default();
        let data = token.token.reveal().as_bytes().to_vec();
        payload.add(&source.path, File { data, mode, owner })?;
        Ok(payload)
    }

    async fn config_map(&self, name: &str, optional: bool) -> Result<ConfigMap, Problem> {
        match self.objects.config_map(self.namespace(), name).await {
            Ok(object) => Ok((*object).clone()),
            Err(ObjectError::NotFound { .. }) if optional => Ok(ConfigMap::default()),
            Err(error) => Err(error.into()),
        }
    }

    async fn secret(&self, name: &str, optional: bool) -> Result<Secret, Problem> {
        match self.objects.secret(self.namespace(), name).await {
            Ok(object) => Ok((*object).clone()),
            Err(ObjectError::NotFound { .. }) if optional => Ok(Secret::default()),
            Err(error) => Err(error.into()),
        }
    }

    async fn claimed(&self, volume: &Volume, name: &str) -> Result<Planned, Problem> {
        let claim = self.objects.claim(self.namespace(), name).await?;
        let bound = persistent::volume_name(&claim, volume, self.pod)?;
        let pv = self.objects.volume(&bound).await?;
        let read_only = volume.persistent_volume_claim.as_ref().is_some_and(|it| it.read_only == Some(true));
        persistent::plan(&pv, &claim, read_only, &self.facts.labels)
    }

    fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or("default")
    }
}

/// The pod's `fsGroup`.
pub fn group_of(pod: &Pod) -> Option<u32> {
    let group = pod.spec.as_ref()?.security_context.as_ref()?.fs_group?;
    u32::try_from(group).ok()
}

/// Whether folders that are the group's already are left as they are.
pub fn on_root_mismatch(pod: &Pod) -> bool {
    let context = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    context.and_then(|it| it.fs_group_change_policy.as_deref()) == Some("OnRootMismatch")
}

/// The one user that all of the pod's containers run as, where it is said of each.
fn user_of(pod: &Pod) -> Option<u32> {
    let spec = pod.spec.as_ref()?;
    let usual = spec.security_context.as_ref().and_then(|it| it.run_as_user);
    let all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let mut users = all.map(|it| it.security_context.as_ref().and_then(|it| it.run_as_user).or(usual));
    let first = users.next()??;
    users.all(|user| user == Some(first)).then(|| u32::try_from(first).ok())?
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn whose_the_tokens_are() {
        #[track_caller]
        fn check(pod: Value, containers: &[Value], init: &[Value], want: Option<u32>) {
            let with = |all: &[Value]| -> Vec<Value> {
                all.iter().map(|it| json!({ "name": "c", "securityContext": it })).collect()
            };
            let pod = json!({ "metadata": {}, "spec": { "securityContext": pod, "containers": with(containers),
                "initContainers": with(init) } });
            assert_eq!(user_of(&serde_json::from_value(pod).unwrap()), want);
        }
        let user = |id: i64| json!({ "runAsUser": id });
        check(json!({}), &[json!({})], &[], None);
        check(user(5), &[json!({})], &[], Some(5));
        check(json!({}), &[user(5), user(5)], &[], Some(5));
        check(user(5), &[user(6), json!({})], &[], None);
        check(json!({}), &[user(5)], &[user(6)], None);
        check(json!({}), &[user(5), json!({})], &[], None);
        check(user(0), &[json!({})], &[], Some(0));
        check(user(-1), &[json!({})], &[], None);
        check(json!({}), &[], &[], None);
    }
}
