//! The folder of manifests: read at the start, when a file in it changes, and every 20 s.
//!
//! Always true:
//! - A file that is there but cannot be read or understood leaves its pod as it was: a slip while editing ends nothing.
//! - A folder that is not there has no manifests; one that cannot be read is as it was.
//!
//! Elsewhere: what a file means (`manifest`).

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    mem::MaybeUninit,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::Pod;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::{io::unix::AsyncFd, sync::mpsc};

use super::{
    known::full_name,
    manifest::{self, ManifestError},
};

/// Between two looks.
const EVERY: Duration = Duration::from_secs(20);
/// After a change, until what belongs to it has come too.
const SETTLE: Duration = Duration::from_millis(100);
/// Files at the most.
const MOST: usize = 512;

/// What a look has found, by file.
type Files = BTreeMap<PathBuf, Result<Pod, ManifestError>>;

/// All static pods, and what is wrong.
#[derive(Debug, Clone, Default)]
pub(super) struct Scan {
    pub pods: Vec<Arc<Pod>>,
    /// In one line each.
    pub problems: Vec<String>,
}

/// The folder as it was last.
pub(super) struct Folder {
    path: PathBuf,
    node: String,
    pods: BTreeMap<PathBuf, Arc<Pod>>,
}

impl Folder {
    pub(super) fn new(path: PathBuf, node: String) -> Self {
        Self { path, node, pods: BTreeMap::new() }
    }

    /// Looks for ever, until nobody listens.
    pub(super) async fn follow(mut self, to: mpsc::Sender<Scan>) {
        let mut told: Vec<String> = Vec::new();
        loop {
            // Watched before it is read: what changes in between is seen.
            let watch = watch(&self.path);
            let scan = self.scan().await;
            for problem in scan.problems.iter().filter(|it| !told.contains(it)) {
                tracing::warn!(problem, "a manifest of a static pod is not as it should be");
            }
            told.clone_from(&scan.problems);
            if to.send(scan).await.is_err() {
                return;
            }
            let next = tokio::time::sleep(EVERY);
            match watch {
                Ok(watch) => {
                    tokio::select! {
                        () = next => {}
                        () = changed(&watch) => tokio::time::sleep(SETTLE).await,
                    }
                }
                // Without a folder, or without a watch to be had: by the clock.
                Err(_) => next.await,
            }
        }
    }

    async fn scan(&mut self) -> Scan {
        let (path, node) = (self.path.clone(), self.node.clone());
        let read = tokio::task::spawn_blocking(move || look(&path, &node)).await;
        let folder = self.path.display();
        match read.map_err(io::Error::other).and_then(|it| it) {
            Ok(files) => {
                let (pods, problems) = merged(&self.pods, files);
                self.pods = pods;
                Scan { pods: self.pods.values().cloned().collect(), problems }
            }
            Err(error) => Scan {
                pods: self.pods.values().cloned().collect(),
                problems: vec![format!("the manifests in {folder} cannot be read: {error}")],
            },
        }
    }
}

/// What is to run after a look, and what is wrong.
fn merged(before: &BTreeMap<PathBuf, Arc<Pod>>, files: Files) -> (BTreeMap<PathBuf, Arc<Pod>>, Vec<String>) {
    let mut pods = BTreeMap::new();
    let mut problems = Vec::new();
    let mut names = BTreeMap::new();
    let mut uids = BTreeSet::new();
    for (path, outcome) in files {
        let pod = match outcome {
            Ok(pod) => Some(Arc::new(pod)),
            Err(error) => {
                problems.push(format!("{}: {error}", path.display()));
                before.get(&path).cloned()
            }
        };
        let Some(pod) = pod else { continue };
        let name = full_name(&pod);
        if let Some(other) = names.get(&name) {
            let error = ManifestError::Double(format!("{}/{}", name.0, name.1), String::clone(other));
            problems.push(format!("{}: {error}", path.display()));
            continue;
        }
        if !uids.insert(pod.metadata.uid.clone()) {
            problems.push(format!("{}: its uid is that of another manifest", path.display()));
            continue;
        }
        names.insert(name, path.display().to_string());
        pods.insert(path, pod);
    }
    (pods, problems)
}

/// Blocking.
fn look(folder: &Path, node: &str) -> io::Result<Files> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Files::new()),
        entries => entries?,
    };
    let mut files = Files::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let path = entry.path();
        if !std::fs::metadata(&path).is_ok_and(|it| it.is_file()) {
            continue;
        }
        if files.len() >= MOST {
            return Err(io::Error::other(format!("there are more than {MOST} files")));
        }
        let bytes = board::durable::read(&path, manifest::MOST);
        // Removed since the folder was read.
        if bytes.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            continue;
        }
        let outcome = bytes.map_err(|error| ManifestError::Read(error.to_string()));
        let pod = outcome.and_then(|bytes| manifest::parse(&bytes, &path.to_string_lossy(), node));
        files.insert(path, pod);
    }
    Ok(files)
}

fn watch(folder: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let flags = WatchFlags::CLOSE_WRITE | WatchFlags::DELETE | WatchFlags::MOVE | WatchFlags::DELETE_SELF;
    inotify::add_watch(&fd, folder, flags | WatchFlags::ONLYDIR)?;
    container_engine::sys::asynchronous::register(fd)
}

/// Until something has changed: what, is seen by looking.
async fn changed(watch: &AsyncFd<OwnedFd>) {
    // A watch that breaks is made anew with the next look.
    let Ok(mut guard) = watch.readable().await else { return tokio::time::sleep(EVERY).await };
    let mut buffer = [MaybeUninit::uninit(); 4096];
    while matches!(rustix::io::read(watch.get_ref(), &mut buffer), Ok((events, _)) if !events.is_empty()) {}
    guard.clear_ready();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(name: &str, image: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{containers: [{{name: c, image: '{image}'}}]}}\n"
        )
    }

    fn names(scan: &Scan) -> Vec<String> {
        scan.pods.iter().map(|pod| full_name(pod).1).collect()
    }

    #[tokio::test]
    async fn files_come_change_break_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let mut folder = Folder::new(dir.path().join("manifests"), "board".to_owned());
        assert!(folder.scan().await.pods.is_empty());
        assert!(folder.scan().await.problems.is_empty());

        folder.path = dir.path().to_owned();
        std::fs::write(path("a.yaml"), manifest("a", "i:1")).unwrap();
        std::fs::write(path("b.json"), manifest("b", "i:1")).unwrap();
        std::fs::write(path(".hidden.yaml"), manifest("h", "i:1")).unwrap();
        std::fs::create_dir(path("folder")).unwrap();
        let first = folder.scan().await;
        assert_eq!(names(&first), ["a-board", "b-board"]);
        assert!(first.problems.is_empty());

        std::fs::write(path("a.yaml"), "kind: [").unwrap();
        std::fs::write(path("c.yaml"), manifest("b", "i:1")).unwrap();
        let broken = folder.scan().await;
        assert_eq!(broken.pods, first.pods);
        assert_eq!(broken.problems.len(), 2, "{:?}", broken.problems);
        assert!(broken.problems[1].contains("default/b-board is there already"), "{:?}", broken.problems);

        std::fs::write(path("a.yaml"), manifest("a", "i:2")).unwrap();
        std::fs::remove_file(path("b.json")).unwrap();
        std::fs::remove_file(path("c.yaml")).unwrap();
        let changed = folder.scan().await;
        assert_eq!(names(&changed), ["a-board"]);
        assert_ne!(changed.pods[0].metadata.uid, first.pods[0].metadata.uid);
    }

    #[tokio::test]
    async fn a_change_is_seen_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let (to, mut scans) = mpsc::channel(1);
        let follow = Folder::new(dir.path().to_owned(), "board".to_owned()).follow(to);
        let test = async {
            assert!(scans.recv().await.unwrap().pods.is_empty());
            std::fs::write(dir.path().join("a.yaml"), manifest("a", "i:1")).unwrap();
            let scan = tokio::time::timeout(Duration::from_secs(10), scans.recv()).await.unwrap().unwrap();
            assert_eq!(names(&scan), ["a-board"]);
        };
        tokio::select! {
            () = follow => panic!("it ended"),
            () = test => {}
        }
    }
}
