//! What volumes take, for eviction and statistics. Where each lies is pure; the measuring blocks.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Volume;

use super::{
    Problem, VolumeUsage, empty_dir, mount,
    place::{self, PodDir},
    tree,
};

/// One volume that is to be measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    path: PathBuf,
    limit: Option<u64>,
    /// It counts as the pod's ephemeral storage, unless it is a file system of its own.
    is_ephemeral: bool,
    claim: Option<String>,
}

impl Place {
    /// Where it lies, and the claim that it comes from.
    pub fn told(self) -> (PathBuf, Option<String>) {
        (self.path, self.claim)
    }
}

/// Where a volume lies; `None` for what is not the pod's own, such as paths of the host. `pv` is the persistent volume that
/// the claim is bound to.
pub fn place_of(dir: &PodDir, volume: &Volume, claim: Option<String>, pv: Option<String>) -> Option<Place> {
    let at = |kind, name: &str| dir.volume(kind, name).ok();
    if claim.is_some() {
        let pv = pv?;
        let path = [place::LOCAL, place::NFS].iter().filter_map(|kind| at(kind, &pv)).find(|path| path.is_dir())?;
        return Some(Place { path, limit: None, is_ephemeral: false, claim });
    }
    let name = &volume.name;
    if let Some(source) = &volume.empty_dir {
        let limit = empty_dir::limit_of(source).ok().flatten();
        return Some(Place { path: at(place::EMPTY_DIR, name)?, limit, is_ephemeral: true, claim });
    }
    let kind = if volume.config_map.is_some() {
        place::CONFIG_MAP
    } else if volume.secret.is_some() {
        place::SECRET
    } else if volume.downward_api.is_some() {
        place::DOWNWARD
    } else if volume.projected.is_some() {
        place::PROJECTED
    } else if volume.nfs.is_some() {
        place::NFS
    } else {
        return None;
    };
    Some(Place { path: at(kind, name)?, limit: None, is_ephemeral: kind != place::NFS, claim })
}

/// Measures; `None` where it is not there.
pub fn measure(place: &Place) -> Result<Option<VolumeUsage>, Problem> {
    if !place.path.is_dir() {
        return Ok(None);
    }
    let is_own = mount::is_mounted(&place.path)?;
    let all = statfs(&place.path)?;
    // A file system of its own says at once what a walk would find, as the kubelet reports it.
    let mut usage = if is_own {
        VolumeUsage {
            bytes: all.capacity.saturating_sub(all.free),
            inodes: all.inodes_total.saturating_sub(all.inodes_free),
            ..VolumeUsage::default()
        }
    } else {
        tree::measure(&place.path)?
    };
    usage.capacity = all.capacity;
    usage.available = all.available;
    usage.inodes_total = all.inodes_total;
    usage.inodes_free = all.inodes_free;
    usage.limit = place.limit;
    usage.is_ephemeral = place.is_ephemeral && !is_own;
    usage.claim.clone_from(&place.claim);
    Ok(Some(usage))
}

struct Whole {
    capacity: u64,
    free: u64,
    available: u64,
    inodes_total: u64,
    inodes_free: u64,
}

fn statfs(path: &Path) -> Result<Whole, Problem> {
    let found = rustix::fs::statvfs(path).map_err(|errno| Problem::io("measure", path)(errno.into()))?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    Ok(Whole {
        capacity: bytes(found.f_blocks),
        free: bytes(found.f_bfree),
        available: bytes(found.f_bavail),
        inodes_total: found.f_files,
        inodes_free: found.f_ffree,
    })
}
