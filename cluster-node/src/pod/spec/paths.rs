//! Where files of pods are on the host, as the kubelet has them.
//!
//! Always true: no name of a pod leads out of the folder it is put into.

use std::path::{Component, Path, PathBuf};

use crate::pod::model::PodKey;

/// Longest name of a file.
const MAX_NAME: usize = 255;

/// `KUBELET_DIR/pods/UID`.
pub fn pod_dir(kubelet_dir: &Path, uid: &str) -> PathBuf {
    kubelet_dir.join("pods").join(part(uid))
}

/// The `/etc/hosts` of its containers.
pub fn etc_hosts(kubelet_dir: &Path, uid: &str) -> PathBuf {
    pod_dir(kubelet_dir, uid).join("etc-hosts")
}

/// What one life of a container says at its end.
pub fn termination_log(kubelet_dir: &Path, uid: &str, container: &str, attempt: u32) -> PathBuf {
    pod_dir(kubelet_dir, uid).join("containers").join(part(container)).join(attempt.to_string())
}

/// That one life of a container was ended so that another follows.
pub fn due_mark(kubelet_dir: &Path, uid: &str, container: &str, attempt: u32) -> PathBuf {
    termination_log(kubelet_dir, uid, container, attempt).with_extension("due")
}

/// `LOG_DIR/pods/NAMESPACE_NAME_UID`.
pub fn pod_logs(log_dir: &Path, pod: &PodKey) -> PathBuf {
    let fixed = pod.namespace.len() + pod.uid.len() + 2;
    let name = cut(&pod.name, MAX_NAME.saturating_sub(fixed));
    log_dir.join("pods").join(part(&format!("{}_{name}_{}", pod.namespace, pod.uid)))
}

/// The log of one life of a container.
pub fn log(log_dir: &Path, pod: &PodKey, container: &str, attempt: u32) -> PathBuf {
    pod_logs(log_dir, pod).join(part(container)).join(format!("{attempt}.log"))
}

/// The link to it by which collectors of logs find it.
pub fn log_link(log_dir: &Path, pod: &PodKey, container: &str, id: &str) -> PathBuf {
    let name = format!("{}_{}_{container}-{id}", pod.name, pod.namespace);
    log_dir.join("containers").join(format!("{}.log", cut(&part(&name), MAX_NAME - 4)))
}

/// A profile of `KUBELET_DIR/seccomp`; `None` where it would lie elsewhere.
pub fn seccomp(kubelet_dir: &Path, profile: &str) -> Option<PathBuf> {
    let inside = Path::new(profile).components().all(|part| matches!(part, Component::Normal(_)));
    (inside && !profile.is_empty() && !profile.contains('\0')).then(|| kubelet_dir.join("seccomp").join(profile))
}

/// A name as one part of a path.
fn part(name: &str) -> String {
    match name {
        "" | "." | ".." => "_".to_owned(),
        name => cut(name, MAX_NAME).replace(['/', '\0'], "_"),
    }
}

/// At most so many bytes of it.
fn cut(text: &str, max: usize) -> &str {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(namespace: &str, name: &str, uid: &str) -> PodKey {
        PodKey { namespace: namespace.into(), name: name.into(), uid: uid.into() }
    }

    #[test]
    fn as_the_kubelet_has_them() {
        let (kubelet, logs) = (Path::new("/var/lib/kubelet"), Path::new("/var/log"));
        let pod = key("ns", "web-0", "1-2");
        assert_eq!(etc_hosts(kubelet, "1-2"), Path::new("/var/lib/kubelet/pods/1-2/etc-hosts"));
        let message = termination_log(kubelet, "1-2", "app", 3);
        assert_eq!(message, Path::new("/var/lib/kubelet/pods/1-2/containers/app/3"));
        assert_eq!(log(logs, &pod, "app", 3), Path::new("/var/log/pods/ns_web-0_1-2/app/3.log"));
        let link = log_link(logs, &pod, "app", "beef");
        assert_eq!(link, Path::new("/var/log/containers/web-0_ns_app-beef.log"));
        let profile = seccomp(kubelet, "profiles/audit.json").unwrap();
        assert_eq!(profile, Path::new("/var/lib/kubelet/seccomp/profiles/audit.json"));
    }

    #[test]
    fn hostile_names_stay_inside() {
        let evil = "../../../etc";
        let root = Path::new("/r");
        for name in [evil, "..", ".", "", "a/../../b", "a\0b", "/etc/passwd", &"ü".repeat(300)] {
            let pod = key(name, name, name);
            let all = [
                etc_hosts(root, name),
                termination_log(root, name, name, 0),
                log(root, &pod, name, 0),
                log_link(root, &pod, name, name),
            ];
            for path in all {
                let parts: Vec<_> = path.components().skip(1).collect();
                assert!(parts.iter().all(|part| matches!(part, Component::Normal(_))), "{}", path.display());
                assert!(parts.iter().all(|part| part.as_os_str().len() <= MAX_NAME), "{}", path.display());
                assert!(!path.as_os_str().as_encoded_bytes().contains(&0) && path.starts_with("/r"));
            }
            let profile = seccomp(root, name);
            assert_eq!(profile.is_some(), name.starts_with('ü'), "{name}");
        }
    }
}
