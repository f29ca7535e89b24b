//! A server in front of containers that are not there: their processes are a few lines each.

use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use container_engine::{
    cgroup::Usage,
    container::{ContainerId, ContainerSpec, ImageOf, Inspect, NetworkUsage, State, Stats},
    logs::{ReadOptions, Reader},
    owner::Owner,
    shim::{Attach, ExitStatus, Output},
};
use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{
    AccessReview, Command, Delegate, DelegateError, Directory, Input, Instance, Instances, NoNetwork, Process, Runtime,
    Said, User, VolumeDir,
};

/// What goes to a process.
#[derive(Debug)]
enum In {
    Bytes(Bytes),
    Close,
    Size(u16, u16),
}

struct Typed(mpsc::Sender<In>);

impl Typed {
    fn send(&self, event: In) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async { self.0.send(event).await.map_err(|_| io::ErrorKind::BrokenPipe.into()) })
    }
}

impl Input for Typed {
    fn write(&mut self, bytes: Bytes) -> BoxFuture<'_, io::Result<()>> {
        self.send(In::Bytes(bytes))
    }
    fn close(&mut self) -> BoxFuture<'_, io::Result<()>> {
        self.send(In::Close)
    }
    fn resize(&mut self, rows: u16, columns: u16) -> BoxFuture<'_, io::Result<()>> {
        self.send(In::Size(rows, columns))
    }
}

struct Told(mpsc::Receiver<Output>);

impl Said for Told {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Output>, String>> {
        Box::pin(async { Ok(self.0.recv().await) })
    }
}

/// Containers that are not there.
#[derive(Default)]
pub struct FakeRuntime {
    pub log_path: Mutex<Option<PathBuf>>,
    /// Cancelled: the container has ended.
    pub life: CancellationToken,
    pub hung_up: Arc<AtomicBool>,
    pub attached: Mutex<Option<Attach>>,
    pub looks: AtomicUsize,
    tasks: Mutex<JoinSet<()>>,
}

impl FakeRuntime {
    fn process(&self, words: Vec<String>) -> Process {
        let (typed, events) = mpsc::channel(4);
        let (tell, told) = mpsc::channel(4);
        self.tasks.lock().unwrap().spawn(run(words, events, tell));
        let hung_up = self.hung_up.clone();
        let hang_up = Box::pin(async move { hung_up.store(true, Ordering::SeqCst) });
        Process { input: Box::new(Typed(typed)), output: Box::new(Told(told)), hang_up: Some(hang_up) }
    }
}

async fn run(words: Vec<String>, mut events: mpsc::Receiver<In>, tell: mpsc::Sender<Output>) {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut code = 0;
    match words.as_slice() {
        ["exit", number] => code = number.parse().unwrap(),
        ["say", out, err] => {
            tell.send(Output::Stdout(Bytes::copy_from_slice(out.as_bytes()))).await.unwrap();
            tell.send(Output::Stderr(Bytes::copy_from_slice(err.as_bytes()))).await.unwrap();
        }
        ["much", size] => {
            let mut left: usize = size.parse().unwrap();
            while left > 0 {
                let now = left.min(60_000);
                if tell.send(Output::Stdout(vec![b'x'; now].into())).await.is_err() {
                    return;
                }
                left -= now;
            }
        }
        ["size"] => {
            while let Some(event) = events.recv().await {
                if let In::Size(rows, columns) = event {
                    tell.send(Output::Stdout(format!("{rows} {columns}").into())).await.unwrap();
                    break;
                }
            }
        }
        ["hang"] => {
            while events.recv().await.is_some() {}
            return;
        }
        _ => {
            code = words.get(1).map_or(0, |number| number.parse().unwrap());
            while let Some(event) = events.recv().await {
                match event {
                    In::Bytes(bytes) => {
                        if tell.send(Output::Stdout(bytes)).await.is_err() {
                            return;
                        }
                    }
                    In::Close => break,
                    In::Size(..) => {}
                }
            }
        }
    }
    let _ = tell.send(Output::Exit(ExitStatus { code, signal: None })).await;
}

impl Runtime for FakeRuntime {
    fn exec(&self, _: ContainerId, command: Command) -> BoxFuture<'_, Result<Process, String>> {
        Box::pin(async move {
            if command.words.first().is_none_or(|word| word == "missing") {
                return Err("executable file not found in $PATH".to_owned());
            }
            Ok(self.process(command.words))
        })
    }

    fn attach(&self, _: ContainerId, attach: Attach) -> BoxFuture<'_, Result<Process, String>> {
        Box::pin(async move {
            *self.attached.lock().unwrap() = Some(attach);
            Ok(self.process(vec!["cat".to_owned(), "3".to_owned()]))
        })
    }

    fn log(&self, _: ContainerId, options: ReadOptions) -> BoxFuture<'_, Result<Reader, String>> {
        Box::pin(async move {
            let path = self.log_path.lock().unwrap().clone().unwrap();
            Reader::open(&path, options, self.life.clone()).await.map_err(|error| error.to_string())
        })
    }

    fn usage(&self, _: ContainerId, disk: bool) -> BoxFuture<'_, Result<Stats, String>> {
        Box::pin(async move {
            // Each look finds a tenth of a second more of processor time.
            let looks = self.looks.fetch_add(1, Ordering::SeqCst) as u64;
            let mut cgroup = Usage::default();
            cgroup.cpu.usage_us = 5_000_000 + looks * 100_000;
            cgroup.memory.usage = 30 << 20;
            cgroup.memory.working_set = 20 << 20;
            cgroup.memory.anon = 10 << 20;
            let network = [("eth0".to_owned(), NetworkUsage { rx_bytes: 7, tx_bytes: 9, ..NetworkUsage::default() })];
            let time_ns =
                i64::try_from(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos());
            Ok(Stats { time_ns: time_ns.unwrap(), cgroup, network: network.into(), disk: disk.then_some(4096) })
        })
    }

    fn pod_usage(&self, _: String) -> BoxFuture<'_, Option<Usage>> {
        Box::pin(std::future::ready(None))
    }

    fn inspect(&self, id: &ContainerId) -> Option<Inspect> {
        Some(Inspect {
            id: id.clone(),
            name: "c".into(),
            owner: Owner::Pod("uid-1".into()),
            image: ImageOf { name: "docker.io/library/busybox:1".into(), id: "sha256:ab".into() },
            created_ns: 1_700_000_000_000_000_000,
            state: State { started_ns: Some(1_700_000_001_500_000_000), ..State::default() },
            path: String::new(),
            args: Vec::new(),
            mounts: Vec::new(),
            network: None,
            userns: None,
            log_path: PathBuf::new(),
            cgroup: "edge.slice/kubepods/uid-1/x".into(),
            execs: Vec::new(),
            spec: ContainerSpec::default(),
        })
    }

    fn image_bytes(&self) -> BoxFuture<'_, u64> {
        Box::pin(std::future::ready(12_345))
    }
}

/// Pod `ns/p` with a container `c` that runs, one `waits` that does not, and `tty` with a terminal.
pub struct FakeDirectory {
    pub pod: Arc<Pod>,
    pub id: ContainerId,
    pub netns: Mutex<Result<Option<PathBuf>, NoNetwork>>,
    pub problem: Mutex<Option<String>>,
}

impl Default for FakeDirectory {
    fn default() -> Self {
        let pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "uid-1"},
            "spec": {"containers": [
                {"name": "c", "stdinOnce": true}, {"name": "waits"}, {"name": "tty", "tty": true, "stdin": true},
            ]},
            "status": {"startTime": "2026-11-02T10:00:00Z", "containerStatuses": [
                {"name": "waits", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                 "state": {"waiting": {"reason": "ContainerCreating"}}},
            ]},
        }));
        Self {
            pod: Arc::new(pod.unwrap()),
            id: ContainerId::random().unwrap(),
            netns: Mutex::new(Ok(None)),
            problem: Mutex::default(),
        }
    }
}

impl Directory for FakeDirectory {
    fn pods(&self) -> Vec<Arc<Pod>> {
        vec![self.pod.clone()]
    }

    fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        (namespace == "ns" && name == "p").then(|| self.pod.clone())
    }

    fn instances(&self, uid: &str, container: &str) -> Instances {
        let runs = uid == "uid-1" && (container == "c" || container == "tty");
        let last = runs.then(|| Instance { id: self.id.clone(), attempt: 0, running: true });
        Instances { last, previous: None }
    }

    fn network(&self, _: &str) -> Result<Option<PathBuf>, NoNetwork> {
        self.netns.lock().unwrap().clone()
    }

    fn volumes(&self, _: &str) -> Vec<VolumeDir> {
        vec![VolumeDir { name: "data".into(), path: "/proc/none".into(), claim: None }]
    }

    fn problem(&self) -> Option<String> {
        self.problem.lock().unwrap().clone()
    }
}

/// Whose tokens are good, and what they may.
#[derive(Default)]
pub struct FakeDelegate {
    pub may: BTreeMap<String, Vec<&'static str>>,
}

impl Delegate for FakeDelegate {
    fn token(&self, token: String) -> BoxFuture<'_, Result<Option<User>, DelegateError>> {
        let name = token.strip_prefix("token-of-").map(str::to_owned);
        Box::pin(std::future::ready(Ok(name.map(|name| User { name, ..User::default() }))))
    }

    fn access(&self, user: User, review: AccessReview) -> BoxFuture<'_, Result<bool, DelegateError>> {
        let may = self.may.get(&user.name).is_some_and(|may| may.contains(&review.subresource));
        Box::pin(std::future::ready(Ok(may)))
    }
}
