//! Docker's format of profiles: the OCI's, with conditions on capabilities, architectures and the kernel's version.

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSyscall, LinuxSyscallBuilder,
};
use serde::Deserialize;

/// Longest profile that is read, bytes.
const MAX_PROFILE: usize = 4 << 20;

/// A profile as Docker and Kubernetes take it. One in the OCI's form is one as well.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Profile {
    pub(super) default_action: LinuxSeccompAction,
    #[serde(default)]
    pub(super) default_errno_ret: Option<u32>,
    #[serde(default)]
    pub(super) architectures: Option<Vec<Arch>>,
    #[serde(default)]
    pub(super) arch_map: Option<Vec<ArchMap>>,
    #[serde(default)]
    pub(super) flags: Option<Vec<LinuxSeccompFilterFlag>>,
    #[serde(default)]
    pub(super) listener_path: Option<std::path::PathBuf>,
    #[serde(default)]
    pub(super) listener_metadata: Option<String>,
    #[serde(default)]
    pub(super) syscalls: Option<Vec<Rule>>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ArchMap {
    pub architecture: Arch,
    #[serde(default)]
    pub sub_architectures: Option<Vec<Arch>>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Rule {
    /// The old form: one name.
    #[serde(default)]
    pub name: Option<String>,
    #[serde(default)]
    pub names: Option<Vec<String>>,
    pub action: LinuxSeccompAction,
    #[serde(default)]
    pub errno_ret: Option<u32>,
    #[serde(default)]
    pub args: Option<Vec<LinuxSeccompArg>>,
    #[serde(default)]
    pub includes: Option<Condition>,
    #[serde(default)]
    pub excludes: Option<Condition>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Condition {
    #[serde(default)]
    pub caps: Option<Vec<String>>,
    #[serde(default)]
    pub arches: Option<Vec<String>>,
    #[serde(default)]
    pub min_kernel: Option<String>,
}

/// What conditions are asked about.
#[derive(Debug, Clone)]
pub struct Host {
    /// Go's name: `amd64`, `arm64`.
    pub architecture: &'static str,
    /// The kernel's version, such as (6, 1).
    pub kernel: (u32, u32),
}

/// Not a profile.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// Not of the form.
    #[error("the seccomp profile cannot be read: {0}")]
    Form(#[from] serde_json::Error),
    /// Too long.
    #[error("the seccomp profile has {0} bytes; {MAX_PROFILE} at most are read")]
    Size(usize),
    /// Contradicts itself.
    #[error("the seccomp profile {0}")]
    Content(String),
}

impl Host {
    /// This machine.
    pub fn this() -> Self {
        let release = rustix::system::uname();
        let kernel = version(&release.release().to_string_lossy()).unwrap_or((0, 0));
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self { architecture, kernel }
    }

    fn arch(&self) -> Option<Arch> {
        Some(match self.architecture {
            "amd64" => Arch::ScmpArchX86_64,
            "386" | "x86" => Arch::ScmpArchX86,
            "arm64" => Arch::ScmpArchAarch64,
            "arm" => Arch::ScmpArchArm,
            "riscv64" => Arch::ScmpArchRiscv64,
            "ppc64le" => Arch::ScmpArchPpc64le,
            "s390x" => Arch::ScmpArchS390x,
            _ => return None,
        })
    }
}

/// The first two numbers of a version.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split('.').map(|part| part.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default());
    Some((parts.next()?.parse().ok()?, parts.next().and_then(|part| part.parse().ok()).unwrap_or(0)))
}

impl Profile {
    /// Reads a profile.
    pub fn parse(json: &[u8]) -> Result<Self, ProfileError> {
        if json.len() > MAX_PROFILE {
            return Err(ProfileError::Size(json.len()));
        }
        Ok(serde_json::from_slice(json)?)
    }

    /// What it is for a container with these capabilities (`CAP_…`) on this machine.
    pub fn resolve(&self, capabilities: &[String], host: &Host) -> Result<LinuxSeccomp, ProfileError> {
        let wrong = |text: &str| ProfileError::Content(text.to_owned());
        let listed = self.architectures.as_ref().filter(|list| !list.is_empty());
        let mapped = self.arch_map.as_ref().filter(|map| !map.is_empty());
        let architectures = match (listed, mapped) {
            (Some(_), Some(_)) => return Err(wrong("has both architectures and archMap; use one")),
            (Some(list), None) => Some(list.clone()),
            (None, Some(map)) => map.iter().find(|map| Some(map.architecture) == host.arch()).map(|map| {
                [map.architecture].into_iter().chain(map.sub_architectures.iter().flatten().copied()).collect()
            }),
            (None, None) => None,
        };
        let mut rules = Vec::new();
        for rule in self.syscalls.iter().flatten() {
            if !rule.applies(capabilities, host)? {
                continue;
            }
            let names = match (&rule.name, &rule.names) {
                (Some(_), Some(names)) if !names.is_empty() => {
                    return Err(wrong("has a rule with both name and names; use one"));
                }
                (Some(name), _) => vec![name.clone()],
                (None, names) => names.clone().unwrap_or_default(),
            };
            rules.push(one_rule(names, rule)?);
        }
        let mut seccomp = LinuxSeccomp::default();
        seccomp
            .set_default_action(self.default_action)
            .set_default_errno_ret(self.default_errno_ret)
            .set_architectures(architectures)
            .set_flags(self.flags.clone())
            .set_listener_path(self.listener_path.clone())
            .set_listener_metadata(self.listener_metadata.clone())
            .set_syscalls(Some(rules));
        Ok(seccomp)
    }
}

fn one_rule(names: Vec<String>, rule: &Rule) -> Result<LinuxSyscall, ProfileError> {
    let mut built = LinuxSyscallBuilder::default()
        .names(names)
        .action(rule.action)
        .build()
        .map_err(|error| ProfileError::Content(format!("has a rule that is none: {error}")))?;
    built.set_errno_ret(rule.errno_ret).set_args(rule.args.clone().filter(|args| !args.is_empty()));
    Ok(built)
}

impl Rule {
    fn applies(&self, capabilities: &[String], host: &Host) -> Result<bool, ProfileError> {
        let has = |list: &[String], item: &str| list.iter().any(|one| one == item);
        let old = |condition: &Condition| -> Result<Option<bool>, ProfileError> {
            let Some(text) = condition.min_kernel.as_ref().filter(|text| !text.is_empty()) else { return Ok(None) };
            let needed =
                version(text).ok_or_else(|| ProfileError::Content(format!("names a kernel {text:?}; write 4.8")))?;
            Ok(Some(host.kernel < needed))
        };
        if let Some(out) = &self.excludes {
            let arches = out.arches.as_deref().unwrap_or_default();
            if has(arches, host.architecture)
                || out.caps.iter().flatten().any(|cap| has(capabilities, cap))
                || old(out)? == Some(false)
            {
                return Ok(false);
            }
        }
        if let Some(only) = &self.includes {
            let arches = only.arches.as_deref().unwrap_or_default();
            if (!arches.is_empty() && !has(arches, host.architecture))
                || only.caps.iter().flatten().any(|cap| !has(capabilities, cap))
                || old(only)? == Some(true)
            {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
