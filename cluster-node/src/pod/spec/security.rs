//! What a container may do: user, groups, capabilities, filters, masked paths.
//!
//! Always true: what a pod asks for is had or refused, never less strict than asked.

use std::collections::BTreeSet;

use container_engine::{
    container::{Seccomp, Security, UserLookup},
    image::ImageConfig,
};
use k8s_openapi::api::core::v1::{
    AppArmorProfile, Container, Pod, PodSecurityContext, SeccompProfile, SecurityContext,
};

use super::{SpecError, Surroundings};
use crate::pod::model::PodKey;

/// Largest id of a user or group in Kubernetes.
const MAX_ID: i64 = i32::MAX as i64;
/// Where profiles were named before there were fields.
const APPARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";

/// The contexts of the pod and of the container, which counts first.
struct Contexts<'a> {
    pod: Option<&'a PodSecurityContext>,
    own: Option<&'a SecurityContext>,
}

impl<'a> Contexts<'a> {
    fn of(pod: &'a Pod, container: &'a Container) -> Self {
        let pod = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
        Self { pod, own: container.security_context.as_ref() }
    }

    fn pick<T>(
        &self,
        own: impl Fn(&'a SecurityContext) -> Option<T>,
        pod: impl Fn(&'a PodSecurityContext) -> Option<T>,
    ) -> Option<T> {
        self.own.and_then(own).or_else(|| self.pod.and_then(pod))
    }

    fn seccomp(&self) -> Option<&'a SeccompProfile> {
        self.pick(|it| it.seccomp_profile.as_ref(), |it| it.seccomp_profile.as_ref())
    }
}

/// Whether it may do everything.
pub fn is_privileged(container: &Container) -> bool {
    container.security_context.as_ref().and_then(|it| it.privileged) == Some(true)
}

/// The profile of `KUBELET_DIR/seccomp` that a container needs, as its pod names it; see [`super::paths::seccomp`].
pub fn seccomp_profile<'a>(pod: &'a Pod, container: &'a Container) -> Option<&'a str> {
    let profile = Contexts::of(pod, container).seccomp().filter(|_| !is_privileged(container))?;
    profile.localhost_profile.as_deref().filter(|name| profile.type_ == "Localhost" && !name.is_empty())
}

/// Rights and filters.
pub(super) fn security(
    pod: &Pod,
    container: &Container,
    profile: Option<&serde_json::Value>,
    node: &Surroundings,
) -> Result<Security, SpecError> {
    let contexts = Contexts::of(pod, container);
    let own = contexts.own;
    let capabilities = own.and_then(|it| it.capabilities.as_ref());
    let unmasked = own.and_then(|it| it.proc_mount.as_deref()) == Some("Unmasked");
    Ok(Security {
        privileged: is_privileged(container),
        cap_add: capabilities.and_then(|it| it.add.clone()).unwrap_or_default(),
        cap_drop: capabilities.and_then(|it| it.drop.clone()).unwrap_or_default(),
        no_new_privileges: own.and_then(|it| it.allow_privilege_escalation) == Some(false),
        seccomp: seccomp(&contexts, profile, node)?,
        apparmor: apparmor(pod, container, &contexts)?,
        read_only_rootfs: own.and_then(|it| it.read_only_root_filesystem) == Some(true),
        masked_paths: unmasked.then(Vec::new),
        readonly_paths: unmasked.then(Vec::new),
    })
}

fn seccomp(
    contexts: &Contexts<'_>,
    profile: Option<&serde_json::Value>,
    node: &Surroundings,
) -> Result<Seccomp, SpecError> {
    let Some(wanted) = contexts.seccomp() else {
        return Ok(if node.seccomp_default { Seccomp::Default } else { Seccomp::Unconfined });
    };
    match wanted.type_.as_str() {
        "Unconfined" => Ok(Seccomp::Unconfined),
        "RuntimeDefault" => Ok(Seccomp::Default),
        "Localhost" => {
            let name = wanted.localhost_profile.as_deref().unwrap_or_default();
            if name.is_empty() {
                let message = "localhostProfile must be set if seccompProfile type is Localhost.";
                return Err(SpecError::config(message));
            }
            if contexts.own.and_then(|it| it.privileged) == Some(true) {
                return Ok(Seccomp::Unconfined);
            }
            let missing = || SpecError::config(format!("cannot load seccomp profile {name:?} of the kubelet's folder"));
            profile.cloned().map(Seccomp::Custom).ok_or_else(missing)
        }
        other => Err(SpecError::config(format!(
            "seccompProfile type {other:?} is not known: Unconfined, RuntimeDefault or Localhost"
        ))),
    }
}

/// The runtime has no profile of its own: what says nothing, or asks for the default, runs as the agent does.
fn apparmor(pod: &Pod, container: &Container, contexts: &Contexts<'_>) -> Result<Option<String>, SpecError> {
    if is_privileged(container) {
        return Ok(None);
    }
    let field: Option<&AppArmorProfile> =
        contexts.pick(|it| it.app_armor_profile.as_ref(), |it| it.app_armor_profile.as_ref());
    if let Some(profile) = field {
        return match (profile.type_.as_str(), profile.localhost_profile.as_deref().unwrap_or_default()) {
            ("Localhost", "") => {
                let message = "localhostProfile must be set if appArmorProfile type is Localhost";
                Err(SpecError::config(message))
            }
            ("Localhost", name) => Ok(Some(name.to_owned())),
            ("Unconfined" | "RuntimeDefault", _) => Ok(None),
            (other, _) => Err(SpecError::config(format!(
                "appArmorProfile type {other:?} is not known: Unconfined, RuntimeDefault or Localhost"
            ))),
        };
    }
    let key = format!("{APPARMOR}{}", container.name);
    let annotation = pod.metadata.annotations.as_ref().and_then(|it| it.get(&key));
    Ok(annotation.and_then(|it| it.strip_prefix("localhost/")).map(ToOwned::to_owned))
}

/// Who its processes are, in the engine's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Who {
    /// `user[:group]`.
    pub user: String,
    /// Further groups.
    pub groups: Vec<String>,
    /// How they are looked up.
    pub lookup: UserLookup,
}

/// Who its processes are; `more` are groups of volumes.
pub(super) fn who(
    pod: &Pod,
    container: &Container,
    image: &ImageConfig,
    more: &BTreeSet<u32>,
) -> Result<Who, SpecError> {
    let contexts = Contexts::of(pod, container);
    // As the kubelet: of what the image says, the user alone counts.
    let of_image = image.config.user.split(':').next().unwrap_or_default();
    let of_image = if of_image.is_empty() { "0" } else { of_image };
    let user = contexts.pick(|it| it.run_as_user, |it| it.run_as_user);
    let group = contexts.pick(|it| it.run_as_group, |it| it.run_as_group);
    if contexts.pick(|it| it.run_as_non_root, |it| it.run_as_non_root) == Some(true) {
        not_root(pod, container, user, of_image)?;
    }
    let user = match user {
        Some(uid) => id("runAsUser", uid)?,
        None => of_image.to_owned(),
    };
    let user = match group {
        Some(gid) => format!("{user}:{}", id("runAsGroup", gid)?),
        None => user,
    };
    let mut groups = Vec::new();
    if let Some(context) = contexts.pod {
        groups.extend(context.fs_group.map(|gid| id("fsGroup", gid)).transpose()?);
        for gid in context.supplemental_groups.iter().flatten() {
            groups.push(id("supplementalGroups", *gid)?);
        }
    }
    groups.extend(more.iter().map(ToString::to_string));
    let lookup = match contexts.pod.and_then(|it| it.supplemental_groups_policy.as_deref()) {
        Some("Strict") => UserLookup::Strict,
        Some("Merge") | None => UserLookup::Merge,
        Some(other) => {
            return Err(SpecError::config(format!("unsupported supplementalGroupsPolicy: {other}")));
        }
    };
    Ok(Who { user, groups, lookup })
}

fn id(field: &str, id: i64) -> Result<String, SpecError> {
    if (0..=MAX_ID).contains(&id) {
        return Ok(id.to_string());
    }
    Err(SpecError::config(format!("{field}: Invalid value: {id}: must be between 0 and {MAX_ID}, inclusive")))
}

fn not_root(pod: &Pod, container: &Container, user: Option<i64>, of_image: &str) -> Result<(), SpecError> {
    let place = format!("(pod: \"{}\", container: {})", PodKey::of(pod), container.name);
    match (user, of_image.parse::<i64>()) {
        (Some(0), _) => Err(SpecError::config(format!("container's runAsUser breaks non-root policy {place}"))),
        (Some(_), _) => Ok(()),
        (None, Ok(0)) => {
            Err(SpecError::config(format!("container has runAsNonRoot and image will run as root {place}")))
        }
        (None, Ok(uid)) if (1..=MAX_ID).contains(&uid) => Ok(()),
        (None, Ok(uid)) => Err(SpecError::config(format!(
            "container has runAsNonRoot and image has an invalid user id ({uid}). (Must be 1-({MAX_ID})) {place}"
        ))),
        (None, Err(_)) => Err(SpecError::config(format!(
            "container has runAsNonRoot and image has non-numeric user ({of_image}), cannot verify user is non-root {place}"
        ))),
    }
}

#[cfg(test)]
mod tests;
