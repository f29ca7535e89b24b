//! The environment of a container.
//!
//! Always true: no message has the value of a variable; names and values are such that a process can have them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::Arc,
};

use k8s_openapi::api::core::v1::{
    ConfigMap, Container, EnvFromSource, EnvVar, EnvVarSource, FileKeySelector, Pod, Secret, Service,
};

use super::{SpecError, Surroundings, env_file, expand::expand, field, service};

/// Most bytes of an environment: the kernel takes no more at the usual size of a stack.
const MAX_BYTES: usize = 2 << 20;

/// The variables of a container, by name. Its `Debug` shows no value: they may be secrets.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Env(pub BTreeMap<String, String>);

impl Env {
    /// As the engine takes them.
    pub fn pairs(&self) -> Vec<String> {
        self.0.iter().map(|(name, value)| format!("{name}={value}")).collect()
    }
}

impl fmt::Debug for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// A file of a volume from which a variable is read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct VolumeFile {
    /// The volume's name in the pod.
    pub volume: String,
    /// Path in it.
    pub path: String,
}

/// What has to be looked up for a container's environment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Needs {
    /// Config maps of the pod's namespace; `true`: the container goes without where it is missing.
    pub config_maps: BTreeMap<String, bool>,
    /// Secrets, likewise.
    pub secrets: BTreeMap<String, bool>,
    /// Files of volumes; a file that is missing is left out of [`Sources::files`].
    pub files: BTreeSet<VolumeFile>,
}

/// What was looked up.
#[derive(Debug, Default)]
pub struct Sources<'a> {
    /// Config maps; `None`: there is none of this name.
    pub config_maps: BTreeMap<String, Option<Arc<ConfigMap>>>,
    /// Secrets, likewise.
    pub secrets: BTreeMap<String, Option<Arc<Secret>>>,
    /// Files of volumes.
    pub files: BTreeMap<VolumeFile, String>,
    /// Services of the pod's namespace, and `default/kubernetes`.
    pub services: &'a [Service],
    /// The pod's addresses; the host's on its network.
    pub addresses: &'a [IpAddr],
}

/// What a container's environment refers to.
pub fn needs(container: &Container) -> Needs {
    let mut needs = Needs::default();
    // What one reference cannot go without is needed, whatever another says.
    let note = |into: &mut BTreeMap<String, bool>, name: &str, optional: Option<bool>| {
        let known = into.entry(name.to_owned()).or_insert(true);
        *known &= optional == Some(true);
    };
    for from in container.env_from.iter().flatten() {
        match (&from.config_map_ref, &from.secret_ref) {
            (Some(it), _) => note(&mut needs.config_maps, &it.name, it.optional),
            (None, Some(it)) => note(&mut needs.secrets, &it.name, it.optional),
            (None, None) => {}
        }
    }
    for from in container.env.iter().flatten().filter_map(source_of) {
        if let Some(it) = &from.config_map_key_ref {
            note(&mut needs.config_maps, &it.name, it.optional);
        }
        if let Some(it) = &from.secret_key_ref {
            note(&mut needs.secrets, &it.name, it.optional);
        }
        needs.files.extend(from.file_key_ref.as_ref().map(file_of));
    }
    needs
}

/// Where a variable without a value of its own has it from.
fn source_of(variable: &EnvVar) -> Option<&EnvVarSource> {
    let own = variable.value.as_deref().is_some_and(|value| !value.is_empty());
    variable.value_from.as_ref().filter(|_| !own)
}

fn file_of(from: &FileKeySelector) -> VolumeFile {
    VolumeFile { volume: from.volume_name.clone(), path: from.path.clone() }
}

/// The environment of a container.
pub fn environment(
    pod: &Pod,
    container: &Container,
    sources: &Sources<'_>,
    node: &Surroundings,
) -> Result<Env, SpecError> {
    let services = service::variables(pod, sources.services);
    let mut made = Making { pod, container, sources, node, vars: BTreeMap::new(), bytes: 0 };
    for from in container.env_from.iter().flatten() {
        made.add_all(from)?;
    }
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value, source_of(variable)) {
            (_, Some(from)) => made.value_from(from)?,
            (Some(value), None) => {
                let known = |name: &str| made.vars.get(name).or_else(|| services.get(name)).map(String::as_str);
                Some(expand(value, known)?)
            }
            (None, None) => Some(String::new()),
        };
        if let Some(value) = value {
            made.set(&variable.name, value)?;
        }
    }
    for (name, value) in services {
        if !made.vars.contains_key(&name) {
            made.set(&name, value)?;
        }
    }
    Ok(Env(made.vars))
}

/// What `$(NAME)` in the command of an exec probe means: values that are written down, and nothing for those that are not.
pub fn written(container: &Container) -> BTreeMap<String, String> {
    container.env.iter().flatten().map(|it| (it.name.clone(), it.value.clone().unwrap_or_default())).collect()
}

struct Making<'a> {
    pod: &'a Pod,
    container: &'a Container,
    sources: &'a Sources<'a>,
    node: &'a Surroundings,
    vars: BTreeMap<String, String>,
    bytes: usize,
}

impl Making<'_> {
    fn set(&mut self, name: &str, value: String) -> Result<(), SpecError> {
        let shown: String = name.chars().take(128).collect();
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(SpecError::config(format!("{shown:?} can be no name of an environment variable")));
        }
        if value.contains('\0') {
            return Err(SpecError::config(format!(
                "the value of environment variable {shown:?} has a zero byte: mount it as a file instead"
            )));
        }
        self.bytes += name.len() + value.len() + 2;
        if self.bytes > MAX_BYTES {
            return Err(SpecError::config(format!(
                "the environment has more than {MAX_BYTES} bytes from variable {shown:?} on: mount files instead"
            )));
        }
        self.vars.insert(name.to_owned(), value);
        Ok(())
    }

    fn add_all(&mut self, from: &EnvFromSource) -> Result<(), SpecError> {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        if let Some(it) = &from.config_map_ref {
            let found = self.config_map(&it.name, it.optional)?;
            for (key, value) in found.iter().flat_map(|map| map.data.iter().flatten()) {
                self.set(&format!("{prefix}{key}"), value.clone())?;
            }
        } else if let Some(it) = &from.secret_ref {
            let found = self.secret(&it.name, it.optional)?;
            for (key, value) in found.iter().flat_map(|secret| secret.data.iter().flatten()) {
                self.set(&format!("{prefix}{key}"), String::from_utf8_lossy(&value.0).into_owned())?;
            }
        }
        Ok(())
    }

    /// `None`: the variable is left out.
    fn value_from(&self, from: &EnvVarSource) -> Result<Option<String>, SpecError> {
        if let Some(it) = &from.field_ref {
            return field::value(self.pod, &it.field_path, self.sources.addresses, self.node).map(Some);
        }
        if let Some(it) = &from.resource_field_ref {
            return field::resource(self.pod, self.container, it, self.node).map(Some);
        }
        if let Some(it) = &from.config_map_key_ref {
            let Some(map) = self.config_map(&it.name, it.optional)? else { return Ok(None) };
            let value = map.data.as_ref().and_then(|data| data.get(&it.key)).cloned();
            return self.or_missing(value, it.optional, "ConfigMap", &it.name, &it.key);
        }
        if let Some(it) = &from.secret_key_ref {
            let Some(secret) = self.secret(&it.name, it.optional)? else { return Ok(None) };
            let value = secret.data.as_ref().and_then(|data| data.get(&it.key));
            let value = value.map(|value| String::from_utf8_lossy(&value.0).into_owned());
            return self.or_missing(value, it.optional, "Secret", &it.name, &it.key);
        }
        if let Some(it) = &from.file_key_ref {
            return self.of_file(it);
        }
        Ok(Some(String::new()))
    }

    fn of_file(&self, from: &FileKeySelector) -> Result<Option<String>, SpecError> {
        let volumes = self.pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
        if !volumes.iter().any(|volume| volume.name == from.volume_name) {
            let message = format!("cannot find the volume {:?} referenced by FileKeyRef", from.volume_name);
            return Err(SpecError::config(message));
        }
        let optional = from.optional == Some(true);
        let parse = |text: &String| {
            env_file::value(text, &from.key)
                .map_err(|problem| SpecError::config(format!("couldn't parse env file: {:?}: {problem}", from.path)))
        };
        match self.sources.files.get(&file_of(from)).map(parse).transpose()? {
            Some(value) if !value.is_empty() => Ok(Some(value)),
            _ if optional => Ok(None),
            Some(_) => Err(SpecError::config(format!(
                "environment variable key {:?} not found in file {:?}",
                from.key, from.path
            ))),
            None => Err(SpecError::config(format!(
                "couldn't parse env file: {:?} of volume {:?} cannot be read",
                from.path, from.volume_name
            ))),
        }
    }

    fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or_default()
    }

    fn config_map(&self, name: &str, optional: Option<bool>) -> Result<Option<Arc<ConfigMap>>, SpecError> {
        match self.sources.config_maps.get(name).cloned().flatten() {
            None if optional != Some(true) => Err(SpecError::config(format!("configmap {name:?} not found"))),
            found => Ok(found),
        }
    }

    fn secret(&self, name: &str, optional: Option<bool>) -> Result<Option<Arc<Secret>>, SpecError> {
        match self.sources.secrets.get(name).cloned().flatten() {
            None if optional != Some(true) => Err(SpecError::config(format!("secret {name:?} not found"))),
            found => Ok(found),
        }
    }

    fn or_missing(
        &self,
        value: Option<String>,
        optional: Option<bool>,
        kind: &str,
        name: &str,
        key: &str,
    ) -> Result<Option<String>, SpecError> {
        if value.is_none() && optional != Some(true) {
            let message = format!("couldn't find key {key} in {kind} {}/{name}", self.namespace());
            return Err(SpecError::config(message));
        }
        Ok(value)
    }
}

#[cfg(test)]
mod tests;
