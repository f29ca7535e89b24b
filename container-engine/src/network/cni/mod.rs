//! Host CNI plugins: configuration lists, plugin programs in a chain, results kept for CHECK and DEL.
//!
//! Always true:
//! - What is needed for DEL (the list as it was, arguments, folders) is on disk before the first plugin runs; it goes
//!   after DEL succeeded. So a crash, a reboot or a changed configuration leaves nothing that cannot be deleted.
//! - A plugin runs at most as long as is configured, and what it prints is read up to a limit.
//! - `type` names a program in one of the folders, never a path.
//!
//! Source: the CNI specification, 0.3.1 to 1.1.0.

pub mod conf;
mod error;
pub mod result;
mod run;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

pub use error::CniError;

use self::conf::ConfList;
use super::types::{Attached, Bandwidth, BoundPort, CniOptions};
use crate::container::Protocol;

/// The interface in the sandbox.
const IFNAME: &str = "eth0";
/// Largest file of a kept result.
const MAX_KEPT: u64 = 4 << 20;

/// What is kept of an attachment.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Kept {
    sandbox: String,
    /// The configuration as it was.
    conf: String,
    /// Whether it was a list.
    list: bool,
    version: String,
    netns: PathBuf,
    args: String,
    /// By capability.
    runtime: Map<String, Value>,
    bin_dirs: Vec<PathBuf>,
    result: Option<Value>,
}

/// What is asked of the plugins.
#[derive(Debug, Clone, Default)]
pub(super) struct Wish {
    pub sandbox: String,
    pub netns: PathBuf,
    pub ports: Vec<BoundPort>,
    pub args: BTreeMap<String, String>,
    pub bandwidth: Option<Bandwidth>,
}

/// The plugins of this board.
pub(super) struct Cni {
    /// Where to look; the usual places serve to delete what a former configuration made.
    options: CniOptions,
    dir: PathBuf,
}

impl Cni {
    pub fn new(options: Option<CniOptions>, data_dir: &std::path::Path) -> Self {
        Self { options: options.unwrap_or_default(), dir: data_dir.join("cni") }
    }

    fn path(&self, sandbox: &str) -> PathBuf {
        self.dir.join(format!("{sandbox}.json"))
    }

    /// Sandboxes of which something is kept.
    pub fn kept(&self) -> BTreeSet<String> {
        let entries = std::fs::read_dir(&self.dir).into_iter().flatten();
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.filter_map(|name| name.strip_suffix(".json").map(str::to_owned)).collect()
    }

    /// ADD of every plugin in order; on a failure what was added is deleted again.
    pub async fn add(&self, wish: &Wish) -> Result<Attached, CniError> {
        let (path, bytes, conf) = conf::load(&self.options.conf_dir)?;
        let version = self.version(&conf).await?;
        let mut kept = Kept {
            sandbox: wish.sandbox.clone(),
            conf: String::from_utf8_lossy(&bytes).into_owned(),
            list: path.extension().is_some_and(|end| end == "conflist"),
            version: version.to_owned(),
            netns: wish.netns.clone(),
            args: arguments(&wish.args),
            runtime: runtime(wish),
            bin_dirs: self.options.bin_dirs.clone(),
            result: None,
        };
        self.keep(&kept)?;
        for plugin in &conf.plugins {
            let input = Self::input(&kept, &conf, plugin, kept.result.as_ref());
            match self.call(&kept, &conf, plugin, "ADD", &input).await {
                Ok(result) => kept.result = result.or(kept.result),
                Err(error) => {
                    if let Err(again) = self.delete(&wish.sandbox).await {
                        tracing::error!(error = %again, sandbox = wish.sandbox, "a failed attachment cannot be undone yet");
                    }
                    return Err(error);
                }
            }
        }
        self.keep(&kept)?;
        let result = kept.result.unwrap_or(Value::Null);
        let problem = |problem| CniError::Nonsense { plugin: conf.name.clone(), command: "ADD", problem };
        let mut attached = result::attached(&result, &conf.name, IFNAME).map_err(problem)?;
        attached.netns = Some(wish.netns.clone());
        attached.ports.clone_from(&wish.ports);
        Ok(attached)
    }

    /// DEL of every plugin, the last first; nothing kept is nothing to do.
    pub async fn delete(&self, sandbox: &str) -> Result<(), CniError> {
        let Some((mut kept, conf)) = self.read(sandbox)? else { return Ok(()) };
        if !crate::sys::netns::is_held(&kept.netns) {
            kept.netns = PathBuf::new(); // The specification: empty where it is gone.
        }
        let previous = kept.result.clone().filter(|_| !kept.version.starts_with("0.3."));
        for plugin in conf.plugins.iter().rev() {
            let input = Self::input(&kept, &conf, plugin, previous.as_ref());
            self.call(&kept, &conf, plugin, "DEL", &input).await?;
        }
        let path = self.path(sandbox);
        std::fs::remove_file(&path)
            .and_then(|()| board::durable::sync_dir(&self.dir))
            .map_err(|source| CniError::Io { step: format!("remove {}", path.display()), source })
    }

    /// CHECK of every plugin: whether what ADD made is still there.
    pub async fn check(&self, sandbox: &str) -> Result<(), CniError> {
        let Some((kept, conf)) = self.read(sandbox)? else { return Ok(()) };
        if conf.disable_check || kept.version.starts_with("0.3.") || kept.result.is_none() {
            return Ok(());
        }
        for plugin in &conf.plugins {
            let input = Self::input(&kept, &conf, plugin, kept.result.as_ref());
            self.call(&kept, &conf, plugin, "CHECK", &input).await?;
        }
        Ok(())
    }

    /// STATUS of every plugin, from 1.1.0 on; before, whether there is a configuration and the programs.
    pub async fn status(&self) -> Result<(), CniError> {
        let (_, _, conf) = conf::load(&self.options.conf_dir)?;
        let version = self.version(&conf).await?;
        for plugin in &conf.plugins {
            let program = Self::find(plugin, &self.options.bin_dirs)?;
            if version == "1.1.0" {
                let kept = self.nobody(version);
                let input = Self::input(&kept, &conf, plugin, None);
                run::run(&program, &Self::env(&kept, "STATUS"), &input, self.options.timeout, &conf.name, "STATUS")
                    .await?;
            }
        }
        Ok(())
    }

    /// GC of every plugin, from 1.1.0 on: what belongs to none of `valid` goes.
    pub async fn collect(&self, valid: &BTreeSet<String>) -> Result<(), CniError> {
        let (_, _, conf) = conf::load(&self.options.conf_dir)?;
        let version = self.version(&conf).await?;
        if version != "1.1.0" || conf.disable_gc {
            return Ok(());
        }
        let valid: Vec<_> = valid.iter().map(|id| json!({"containerID": id, "ifname": IFNAME})).collect();
        for plugin in &conf.plugins {
            let kept = self.nobody(version);
            let mut input = Self::input(&kept, &conf, plugin, None);
            input.insert("cni.dev/valid-attachments".into(), valid.clone().into());
            self.call(&kept, &conf, plugin, "GC", &input).await?;
        }
        Ok(())
    }

    fn nobody(&self, version: &str) -> Kept {
        Kept {
            sandbox: String::new(),
            conf: String::new(),
            list: true,
            version: version.to_owned(),
            netns: PathBuf::new(),
            args: String::new(),
            runtime: Map::new(),
            bin_dirs: self.options.bin_dirs.clone(),
            result: None,
        }
    }

    /// The newest version of the list that all its plugins speak.
    async fn version(&self, conf: &ConfList) -> Result<&'static str, CniError> {
        let mut versions = conf.versions.clone();
        // Where the list leaves no choice the plugin itself says what is wrong with it.
        for plugin in conf.plugins.iter().filter(|_| conf.versions.len() > 1) {
            let program = Self::find(plugin, &self.options.bin_dirs)?;
            let kept = self.nobody(conf.versions[0]);
            let input = Map::from_iter([("cniVersion".to_owned(), Value::from(conf.versions[0]))]);
            let env = Self::env(&kept, "VERSION");
            let answer = run::run(&program, &env, &input, self.options.timeout, &conf.name, "VERSION").await?;
            let spoken = answer.and_then(|answer| answer.get("supportedVersions").cloned()).unwrap_or_default();
            let spoken = spoken.as_array().cloned().unwrap_or_default();
            versions.retain(|version| spoken.iter().any(|one| one == version));
        }
        versions.first().copied().ok_or_else(|| CniError::Nonsense {
            plugin: conf.name.clone(),
            command: "VERSION",
            problem: format!("its plugins have no version of {} in common", conf.versions.join(", ")),
        })
    }

    /// The configuration as one plugin gets it (specification, section 4).
    fn input(
        kept: &Kept,
        conf: &ConfList,
        plugin: &Map<String, Value>,
        previous: Option<&Value>,
    ) -> Map<String, Value> {
        let mut input = plugin.clone();
        input.insert("name".into(), conf.name.clone().into());
        input.insert("cniVersion".into(), kept.version.clone().into());
        if let Some(previous) = previous {
            input.insert("prevResult".into(), previous.clone());
        }
        let has = |capability: &String| {
            plugin.get("capabilities").and_then(|all| all.get(capability)) == Some(&Value::Bool(true))
        };
        let runtime: Map<_, _> = kept
            .runtime
            .iter()
            .filter(|(name, _)| has(name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        if !runtime.is_empty() {
            input.insert("runtimeConfig".into(), runtime.into());
        }
        input
    }

    async fn call(
        &self,
        kept: &Kept,
        conf: &ConfList,
        plugin: &Map<String, Value>,
        command: &'static str,
        input: &Map<String, Value>,
    ) -> Result<Option<Value>, CniError> {
        let program = Self::find(plugin, &kept.bin_dirs)?;
        run::run(&program, &Self::env(kept, command), input, self.options.timeout, &conf.name, command).await
    }

    fn find(plugin: &Map<String, Value>, dirs: &[PathBuf]) -> Result<PathBuf, CniError> {
        let name = plugin.get("type").and_then(Value::as_str).unwrap_or_default();
        let found = dirs.iter().map(|dir| dir.join(name)).find(|path| path.is_file());
        found.ok_or_else(|| CniError::NoPlugin {
            plugin: name.to_owned(),
            dirs: dirs.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(", "),
        })
    }

    fn env(kept: &Kept, command: &str) -> Vec<(&'static str, String)> {
        let dirs: Vec<_> = kept.bin_dirs.iter().map(|dir| dir.display().to_string()).collect();
        vec![
            ("CNI_COMMAND", command.to_owned()),
            ("CNI_CONTAINERID", kept.sandbox.clone()),
            ("CNI_NETNS", kept.netns.display().to_string()),
            ("CNI_IFNAME", IFNAME.to_owned()),
            ("CNI_ARGS", kept.args.clone()),
            ("CNI_PATH", dirs.join(":")),
        ]
    }

    fn keep(&self, kept: &Kept) -> Result<(), CniError> {
        let path = self.path(&kept.sandbox);
        let write = || {
            board::durable::create_dir_all(&self.dir, 0o700)?;
            board::durable::write(&path, &serde_json::to_vec(kept)?, 0o600)
        };
        write().map_err(|source| CniError::Io { step: format!("write {}", path.display()), source })
    }

    /// What is kept; a file that cannot be understood is set aside, since it would stop every DEL for ever.
    fn read(&self, sandbox: &str) -> Result<Option<(Kept, ConfList)>, CniError> {
        let path = self.path(sandbox);
        let failed = |source| CniError::Io { step: format!("read {}", path.display()), source };
        let bytes = match board::durable::read(&path, MAX_KEPT) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(failed)?,
        };
        let parsed = serde_json::from_slice::<Kept>(&bytes).map_err(|error| error.to_string());
        match parsed.and_then(|kept| conf::parse(kept.conf.as_bytes(), kept.list).map(|conf| (kept, conf))) {
            Ok(found) => Ok(Some(found)),
            Err(problem) => {
                let aside = path.with_extension("damaged");
                tracing::error!(problem, aside = %aside.display(), "a kept CNI result is damaged; its DEL is left out");
                std::fs::rename(&path, &aside).map_err(failed)?;
                Ok(None)
            }
        }
    }
}

/// `CNI_ARGS`; unknown ones are no error to any plugin.
fn arguments(args: &BTreeMap<String, String>) -> String {
    let mut text = "IgnoreUnknown=1".to_owned();
    let plain = |text: &str| !text.contains([';', '=', '\0', '\n']);
    for (name, value) in args.iter().filter(|(name, value)| plain(name) && plain(value)) {
        text.push_str(&format!(";{name}={value}"));
    }
    text
}

/// What plugins with the capability get, by capability (CNI's CONVENTIONS.md).
fn runtime(wish: &Wish) -> Map<String, Value> {
    let mut runtime = Map::new();
    if !wish.ports.is_empty() {
        let mapping = |port: &BoundPort| {
            let protocol = match port.protocol {
                Protocol::Tcp => "tcp",
                Protocol::Udp => "udp",
                Protocol::Sctp => "sctp",
            };
            let host = port.host_address.map(|address| address.to_string()).unwrap_or_default();
            json!({"hostPort": port.host_port, "containerPort": port.container_port, "protocol": protocol, "hostIP": host})
        };
        runtime.insert("portMappings".into(), wish.ports.iter().map(mapping).collect());
    }
    if let Some(limits) = wish.bandwidth {
        let mut value = Map::new();
        for (way, rate) in [("ingress", limits.ingress), ("egress", limits.egress)] {
            if let Some(rate) = rate {
                value.insert(format!("{way}Rate"), rate.into());
                // As kubelets do: no limit to the burst but the field's.
                value.insert(format!("{way}Burst"), i32::MAX.into());
            }
        }
        runtime.insert("bandwidth".into(), value.into());
    }
    runtime
}

#[cfg(test)]
mod tests;
