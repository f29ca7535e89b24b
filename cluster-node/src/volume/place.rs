//! Where things of a pod lie below `KUBELET_DIR/pods`: the kubelet's layout, which other programs on the node rely on.
//!
//! Always true: no name from outside becomes more than one component of a path.

use std::path::{Path, PathBuf};

use super::Problem;

/// Kinds of volumes as folders.
pub const CONFIG_MAP: &str = "kubernetes.io~configmap";
/// Of secrets.
pub const SECRET: &str = "kubernetes.io~secret";
/// Of the downward API.
pub const DOWNWARD: &str = "kubernetes.io~downward-api";
/// Of projected volumes.
pub const PROJECTED: &str = "kubernetes.io~projected";
/// Of empty folders.
pub const EMPTY_DIR: &str = "kubernetes.io~empty-dir";
/// Of images.
pub const IMAGE: &str = "kubernetes.io~image";
/// Of NFS.
pub const NFS: &str = "kubernetes.io~nfs";
/// Of local persistent volumes.
pub const LOCAL: &str = "kubernetes.io~local-volume";

/// The folder of one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodDir(PathBuf);

impl PodDir {
    /// Below `pods`.
    pub fn new(pods: &Path, uid: &str) -> Result<Self, Problem> {
        Ok(Self(pods.join(component(uid)?)))
    }

    /// It.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// `volumes/KIND/NAME`.
    pub fn volume(&self, kind: &'static str, name: &str) -> Result<PathBuf, Problem> {
        Ok(self.0.join("volumes").join(kind).join(component(name)?))
    }

    /// `volume-subpaths/VOLUME/CONTAINER/INDEX`.
    pub fn sub_path(&self, volume: &str, container: &str, index: usize) -> Result<PathBuf, Problem> {
        let dir = self.0.join("volume-subpaths").join(component(volume)?).join(component(container)?);
        Ok(dir.join(index.to_string()))
    }
}

/// A name that is one component of a path and nothing else.
pub fn component(name: &str) -> Result<&str, Problem> {
    let is_plain = !name.is_empty()
        && name.len() <= 253
        && name != "."
        && name != ".."
        && !name.bytes().any(|byte| byte == b'/' || byte == 0);
    is_plain.then_some(name).ok_or_else(|| {
        let shown: String = name.chars().take(64).collect();
        Problem::Invalid(format!("{shown:?} cannot be the name of a folder"))
    })
}

/// A path inside a volume: relative, without `..`. Its components, `.` left out.
pub fn inside(path: &str) -> Result<Vec<&str>, Problem> {
    let shown = || path.chars().take(128).collect::<String>();
    if path.starts_with('/') {
        return Err(Problem::Invalid(format!("{:?} must be a relative path", shown())));
    }
    if path.len() > 4096 || path.contains('\0') {
        return Err(Problem::Invalid(format!("{:?}… is no path: it is too long, or has a NUL", shown())));
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.contains(&"..") {
        return Err(Problem::Invalid(format!("{:?} must not contain \"..\"", shown())));
    }
    if parts.iter().any(|part| part.len() > 255) {
        return Err(Problem::Invalid(format!("{:?} has a name of more than 255 characters", shown())));
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_names() {
        for bad in ["", ".", "..", "a/b", "/", "a\0b", &"n".repeat(254)] {
            assert!(component(bad).is_err(), "{bad:?}");
            assert!(PodDir::new(Path::new("/pods"), bad).is_err(), "{bad:?}");
        }
        let dir = PodDir::new(Path::new("/pods"), "uid").unwrap();
        assert_eq!(dir.volume(SECRET, "s").unwrap(), Path::new("/pods/uid/volumes/kubernetes.io~secret/s"));
        assert_eq!(dir.sub_path("v", "c", 3).unwrap(), Path::new("/pods/uid/volume-subpaths/v/c/3"));
        assert!(dir.sub_path("..", "c", 3).is_err());
    }

    #[test]
    fn paths_stay_inside() {
        #[track_caller]
        fn check(path: &str, want: Option<&[&str]>) {
            assert_eq!(inside(path).ok().as_deref(), want, "{path:?}");
        }
        check("a/b", Some(&["a", "b"]));
        check("./a//b/", Some(&["a", "b"]));
        check("", Some(&[]));
        check("..data", Some(&["..data"]));
        check("/a", None);
        check("a/../b", None);
        check("..", None);
        check("a\0b", None);
        check(&"n".repeat(256), None);
        check(&"a/".repeat(3000), None);
    }
}
