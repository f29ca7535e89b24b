//! Empty folders: on the disk, in memory, in huge pages. Blocking but for the pure parts.

use std::{
    collections::BTreeSet,
    fs::{self, Permissions},
    io,
    os::unix::fs::{PermissionsExt, chown},
    path::Path,
};

use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Pod};
use rustix::mount::MountFlags;

use super::{Facts, Problem, mount, quantity::Amount};

/// What an empty folder lies on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Medium {
    /// The node's disk.
    Disk,
    /// Memory.
    Memory {
        /// Bytes it may take; what the kernel allows where absent.
        size: Option<u64>,
    },
    /// Huge pages of so many bytes.
    HugePages {
        /// Of one page.
        page: u64,
    },
}

/// What the source asks for.
pub fn medium_of(source: &EmptyDirVolumeSource, pod: &Pod, facts: &Facts) -> Result<Medium, Problem> {
    match source.medium.as_deref().unwrap_or_default() {
        "" => Ok(Medium::Disk),
        "Memory" => Ok(Medium::Memory { size: memory_size(limit_of(source)?, pod, facts) }),
        medium => {
            let shown: String = medium.chars().take(64).collect();
            let unknown = || Problem::Invalid(format!("unknown storage medium {shown:?}"));
            let size = medium.strip_prefix("HugePages").ok_or_else(unknown)?;
            Ok(Medium::HugePages { page: page_of(size, pod)? })
        }
    }
}

/// `sizeLimit`, where there is one above nothing.
pub fn limit_of(source: &EmptyDirVolumeSource) -> Result<Option<u64>, Problem> {
    let Some(limit) = &source.size_limit else { return Ok(None) };
    let shown: String = limit.0.chars().take(64).collect();
    let amount = Amount::parse(&limit.0).ok_or_else(|| Problem::Invalid(format!("sizeLimit {shown:?} is no size")))?;
    Ok(Some(amount.bytes()).filter(|bytes| *bytes > 0))
}

/// The least of the limit, of what the pod's containers may use together, and of what the node has.
fn memory_size(limit: Option<u64>, pod: &Pod, facts: &Facts) -> Option<u64> {
    let bytes = |text: &str| Amount::parse(text).map(Amount::bytes);
    let node = facts.allocatable.get("memory").and_then(|it| bytes(&it.0));
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    // Without a limit on one of them there is none on all.
    let mut together = containers.map(|container| {
        let limits = container.resources.as_ref()?.limits.as_ref()?;
        bytes(&limits.get("memory")?.0)
    });
    let together = together.try_fold(0u64, |sum, it| it.map(|it| sum.saturating_add(it))).filter(|it| *it > 0);
    [limit, together, node].into_iter().flatten().min()
}

/// Of `HugePages-2Mi` the size it says; of `HugePages` the one size that the pod's containers ask for.
fn page_of(suffix: &str, pod: &Pod) -> Result<u64, Problem> {
    let spec = pod.spec.as_ref();
    let all = spec.into_iter().flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
    let requests = all.flat_map(|it| it.resources.iter().flat_map(|it| it.requests.iter().flatten()));
    let asked = requests.filter_map(|(name, _)| Amount::parse(name.strip_prefix("hugepages-")?).map(Amount::bytes));
    let asked: BTreeSet<u64> = asked.collect();
    if suffix.is_empty() {
        let mut sizes = asked.iter();
        return match (sizes.next(), sizes.next()) {
            (Some(size), None) => Ok(*size),
            (None, _) => Err(Problem::Invalid(
                "hugePages storage requested, but there is no resource request for huge pages".to_owned(),
            )),
            (Some(_), Some(_)) => Err(Problem::Invalid(
                "medium HugePages can't be used if container(s) request multiple huge page sizes".to_owned(),
            )),
        };
    }
    let size = suffix.strip_prefix('-').and_then(Amount::parse).map(Amount::bytes).filter(|size| *size > 0);
    let shown: String = suffix.chars().take(64).collect();
    let size = size.ok_or_else(|| Problem::Invalid(format!("unknown storage medium \"HugePages{shown}\"")))?;
    if !asked.contains(&size) {
        return Err(Problem::Invalid(format!(
            "medium \"HugePages{shown}\" is used, but no container requests huge pages of that size"
        )));
    }
    Ok(size)
}

/// Makes it at `path`, or leaves it as it is. It is whole from its first moment, the pod's group included: what a crash ends
/// is begun again, and what containers change later stays.
pub fn set_up(path: &Path, medium: &Medium, group: Option<u32>) -> Result<(), Problem> {
    match medium {
        Medium::Disk => on_disk(path, group),
        Medium::Memory { size } => on_its_own(path, |path| mount::tmpfs(path, *size, &mount::root_options(group))),
        Medium::HugePages { page } => on_its_own(path, |path| {
            let options = format!("{},pagesize={page}", mount::root_options(group));
            mount::mount("nodev", path, "hugetlbfs", MountFlags::empty(), &options)?;
            // That file system takes no set-group bit from its options.
            let mode = if group.is_some() { 0o2777 } else { 0o777 };
            let changed = fs::set_permissions(path, Permissions::from_mode(mode));
            changed.map_err(Problem::io("change the mode of", path))
        }),
    }
}

fn on_its_own(path: &Path, mount: impl Fn(&Path) -> Result<(), Problem>) -> Result<(), Problem> {
    if mount::is_mounted(path)? {
        return Ok(());
    }
    board::durable::create_dir_all(path, 0o755).map_err(Problem::io("make", path))?;
    mount(path)
}

fn on_disk(path: &Path, group: Option<u32>) -> Result<(), Problem> {
    if path.is_dir() {
        return Ok(());
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Problem::Invalid(format!("{} is no folder of a volume", path.display())));
    };
    board::durable::create_dir_all(parent, 0o755).map_err(Problem::io("make", parent))?;
    // No volume is named so: names have no capitals.
    let new = parent.join(format!("NEW-{}", name.to_string_lossy()));
    match fs::create_dir(&new) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(Problem::io("make", new)(error)),
        _ => {}
    }
    if let Some(group) = group {
        chown(&new, None, Some(group)).map_err(Problem::io("change the group of", &new))?;
    }
    let mode = if group.is_some() { 0o2777 } else { 0o777 };
    fs::set_permissions(&new, Permissions::from_mode(mode)).map_err(Problem::io("change the mode of", &new))?;
    fs::rename(&new, path).map_err(Problem::io("make", path))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(source: serde_json::Value, resources: serde_json::Value, want: Result<Medium, &str>) {
        let containers = resources.as_array().unwrap().iter();
        let containers: Vec<_> = containers.map(|it| json!({ "name": "c", "resources": it })).collect();
        let pod = serde_json::from_value(json!({ "metadata": {}, "spec": { "containers": containers } })).unwrap();
        let mut facts = Facts::default();
        facts
            .allocatable
            .insert("memory".into(), k8s_openapi::apimachinery::pkg::api::resource::Quantity("1Gi".into()));
        let got = medium_of(&serde_json::from_value(source).unwrap(), &pod, &facts);
        match (got, want) {
            (Ok(got), Ok(want)) => assert_eq!(got, want),
            (Err(error), Err(want)) => assert!(error.to_string().contains(want), "{error}"),
            (got, want) => panic!("{got:?} is not {want:?}"),
        }
    }

    #[test]
    fn media() {
        let memory = |size: u64| Ok(Medium::Memory { size: Some(size) });
        let limited = |text: &str| json!({ "limits": { "memory": text } });
        check(json!({}), json!([]), Ok(Medium::Disk));
        check(json!({ "sizeLimit": "1Mi" }), json!([]), Ok(Medium::Disk));
        check(json!({ "medium": "Memory" }), json!([{}]), memory(1 << 30));
        check(json!({ "medium": "Memory", "sizeLimit": "1Mi" }), json!([{}]), memory(1 << 20));
        check(json!({ "medium": "Memory", "sizeLimit": "0" }), json!([{}]), memory(1 << 30));
        check(json!({ "medium": "Memory" }), json!([limited("1Mi"), limited("2Mi")]), memory(3 << 20));
        check(json!({ "medium": "Memory" }), json!([limited("1Mi"), {}]), memory(1 << 30));
        check(json!({ "medium": "Memory", "sizeLimit": "8Ei" }), json!([limited("1Mi")]), memory(1 << 20));
        check(json!({ "medium": "Memory", "sizeLimit": "much" }), json!([]), Err("is no size"));
        let huge = json!([{ "requests": { "hugepages-2Mi": "4Mi" } }]);
        let both = json!([{ "requests": { "hugepages-2Mi": "4Mi", "hugepages-1Gi": "1Gi" } }]);
        check(json!({ "medium": "HugePages" }), huge.clone(), Ok(Medium::HugePages { page: 2 << 20 }));
        check(json!({ "medium": "HugePages" }), both.clone(), Err("multiple huge page sizes"));
        check(json!({ "medium": "HugePages" }), json!([{}]), Err("no resource request"));
        check(json!({ "medium": "HugePages-1Gi" }), both, Ok(Medium::HugePages { page: 1 << 30 }));
        check(json!({ "medium": "HugePages-1Gi" }), huge, Err("no container requests"));
        check(json!({ "medium": "HugePages-x" }), json!([]), Err("unknown storage medium"));
        check(json!({ "medium": "Floppy" }), json!([]), Err("unknown storage medium"));
    }
}
