//! Requests to answers: who asks, whether he may, and who answers.

use std::{sync::Arc, time::SystemTime};

use container_engine::shim::{Attach, Output};
use futures_util::future::BoxFuture;
use hyper::{
    Request, StatusCode,
    body::Incoming,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue},
};
use k8s_openapi::api::core::v1::{Container, Pod};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    answer::{self, Answer},
    auth::{self, Judge, User, Verdict},
    directory::Directory,
    forward, health, logs, pods,
    query::Query,
    remote::{self, Streams, Work},
    route::{Page, Route, Target, clean, route},
    runtime::{Command, Process, Runtime},
    stats::{self, Observer},
};

/// Sessions at a time: exec, attach, port-forward, and logs that are read.
const MAX_SESSIONS: usize = 256;
/// Most output of a process that is run without streams.
const MAX_OUTPUT: usize = 1 << 20;
/// Most words of a command.
const MAX_WORDS: usize = 4096;

/// What answers are made of.
pub struct Sources {
    /// Pods.
    pub directory: Arc<dyn Directory>,
    /// Containers.
    pub runtime: Arc<dyn Runtime>,
    /// What they use.
    pub observer: Arc<Observer>,
    /// `/configz`.
    pub configuration: serde_json::Value,
}

/// Answers requests.
pub struct Service {
    judge: Judge,
    sources: Sources,
    sessions: Arc<Semaphore>,
    /// What goes on behind an answer: awaited, and told to stop.
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Service {
    /// A service for one run of the server; its sessions end with `stop`.
    pub fn new(judge: Judge, sources: Sources, stop: CancellationToken) -> Self {
        Self { judge, sources, sessions: Arc::new(Semaphore::new(MAX_SESSIONS)), tasks: TaskTracker::new(), stop }
    }

    /// Cancelled when the server stops.
    pub fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// Waits until every session has ended. They are told by `stop`.
    pub async fn ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// The health page.
    pub fn health(&self, check: Option<&str>, query: Option<&str>) -> Answer {
        let verbose = Query::parse(query.unwrap_or_default()).get("verbose").is_some();
        health::answer(check, verbose, self.sources.directory.problem().as_deref())
    }

    /// Answers one request, of the user of a certificate where there is one.
    pub async fn answer(&self, request: Request<Incoming>, certified: Option<User>) -> Answer {
        let path = clean(request.uri().path());
        match self.admit(&request, &path, certified).await {
            Ok(()) => self.dispatch(request, &path).await.unwrap_or_else(|refusal| refusal),
            Err(refusal) => refusal,
        }
    }

    async fn admit(&self, request: &Request<Incoming>, path: &str, certified: Option<User>) -> Result<(), Answer> {
        let user = if let Some(user) = certified {
            user
        } else {
            let header = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
            let nobody = || answer::text(StatusCode::UNAUTHORIZED, "Unauthorized");
            self.judge.bearer(header).await.ok_or_else(nobody)?
        };
        let subresources = auth::subresources(path);
        let verb = auth::verb(request.method());
        if let Some(verb) = verb
            && self.judge.access(&user, verb, subresources).await == Verdict::Allowed
        {
            return Ok(());
        }
        tracing::info!(user = user.name, path, "a request to the node's API was forbidden");
        let text = format!(
            "Forbidden (user={}, verb={}, resource=nodes, subresource(s)=[{}])\n",
            user.name,
            verb.unwrap_or_default(),
            subresources.join(" ")
        );
        Err(answer::text(StatusCode::FORBIDDEN, text))
    }

    async fn dispatch(&self, request: Request<Incoming>, path: &str) -> Result<Answer, Answer> {
        let query = Query::parse(request.uri().query().unwrap_or_default());
        let sources = &self.sources;
        match route(request.method(), path) {
            Route::Healthz(check) => Ok(self.health(check.as_deref(), request.uri().query())),
            Route::Pods => Ok(answer::json(&pods::all(&sources.directory.pods()))),
            Route::RunningPods => Ok(answer::json(&pods::running(&self.running()))),
            Route::Summary => Ok(answer::json(&sources.observer.summary(query.is_true("only_cpu_and_memory")).await)),
            Route::Metrics(page) => Ok(self.metrics(page).await),
            Route::Configz => Ok(answer::json(&serde_json::json!({"kubeletconfig": sources.configuration}))),
            Route::ContainerLogs(target) => self.container_logs(&target, &query).await,
            Route::Exec(target) => self.exec(request, &target, &query),
            Route::Attach(target) => self.attach(request, &target, &query),
            Route::PortForward(target) => self.port_forward(request, &target, &query),
            Route::Run(target) => self.run(&target, &query).await,
            Route::Checkpoint(target) => self.checkpoint(&target),
            Route::Disabled(why) => Err(answer::text(StatusCode::METHOD_NOT_ALLOWED, format!("{why}\n"))),
            Route::NotAllowed => Err(answer::text(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed")),
            Route::NotFound => Err(answer::text(StatusCode::NOT_FOUND, "404 page not found\n")),
        }
    }

    async fn metrics(&self, page: Page) -> Answer {
        let observer = &self.sources.observer;
        let text = match page {
            Page::Agent => observer.agent_metrics(),
            Page::Cadvisor => observer.cadvisor_metrics().await,
            Page::Resource => observer.resource_metrics().await,
            Page::Probes => observer.probe_metrics(),
            Page::Slis => stats::sli_metrics(&health::gauges(self.sources.directory.problem().as_deref())),
        };
        let mut answer = answer::text(StatusCode::OK, text);
        let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        answer.headers_mut().insert(CONTENT_TYPE, kind);
        answer
    }

    fn running(&self) -> Vec<pods::Running> {
        let directory = &self.sources.directory;
        let running = |pod: Arc<Pod>| {
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            let container = |name: String| {
                let last = directory.instances(&uid, &name).last.filter(|last| last.running)?;
                Some((name, self.sources.runtime.inspect(&last.id)?))
            };
            pods::Running { containers: pods::container_names(&pod).into_iter().filter_map(container).collect(), pod }
        };
        directory.pods().into_iter().map(running).collect()
    }

    async fn container_logs(&self, target: &Target, query: &Query) -> Result<Answer, Answer> {
        let options = logs::Options::of(query)?;
        let missing = |text: String| answer::text(StatusCode::NOT_FOUND, text);
        let pod = self.sources.directory.pod(&target.namespace, &target.pod);
        let pod = pod.ok_or_else(|| missing(format!("pod {:?} does not exist", target.pod)))?;
        let name = &target.container;
        if !logs::has_container(&pod, name) {
            return Err(missing(format!("container {name:?} not found in pod {:?}", target.pod)));
        }
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let instances = self.sources.directory.instances(uid, name);
        let status = logs::status_of(&pod, name);
        let bad = |text: String| answer::text(StatusCode::BAD_REQUEST, text);
        let instance = logs::choose(&target.pod, name, status, instances, options.previous).map_err(bad)?;
        let permit = self.room()?;
        let reader = self.sources.runtime.log(instance.id, options.read(SystemTime::now())).await.map_err(bad)?;
        let (to, from) = mpsc::channel(logs::QUEUE);
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = logs::send(reader, options, to) => {}
                () = stop.cancelled() => {}
            }
            drop(permit);
        });
        Ok(answer::stream(from))
    }

    fn exec(&self, request: Request<Incoming>, target: &Target, query: &Query) -> Result<Answer, Answer> {
        let streams = Streams::of(query)?;
        let words: Vec<String> = query.all("command").take(MAX_WORDS).map(str::to_owned).collect();
        let pod = self.pod(target)?;
        let id = self.running_container(&pod, target).ok_or_else(|| no_container(&target.container))?;
        let runtime = self.sources.runtime.clone();
        let command = Command { words, stdin: streams.stdin, tty: streams.tty };
        let start = async move {
            let started = runtime.exec(id, command).await;
            started.map_err(|problem| format!("error executing command in container: {problem}"))
        };
        self.remote(request, streams, Work { start: Box::pin(start), close_stdin: true, tell_code: true })
    }

    fn attach(&self, request: Request<Incoming>, target: &Target, query: &Query) -> Result<Answer, Answer> {
        let mut streams = Streams::of(query)?;
        let pod = self.pod(target)?;
        let full = format!("{}_{}", target.pod, target.namespace);
        let gone = || format!("container {} not found in pod {full}", target.container);
        let refuse = |text| answer::text(StatusCode::INTERNAL_SERVER_ERROR, text);
        let id = self.running_container(&pod, target).ok_or_else(|| refuse(gone()))?;
        let (tty, stdin_once) = terminal_of(&pod, &target.container).ok_or_else(|| refuse(gone()))?;
        // Whether there is a terminal was settled when the container was made.
        (streams.tty, streams.stderr) = (tty, streams.stderr && !tty);
        let runtime = self.sources.runtime.clone();
        let how = Attach { stdin: streams.stdin, stdout: streams.stdout, stderr: streams.stderr, wait: false };
        let start = async move {
            let started = runtime.attach(id, how).await;
            started.map_err(|problem| format!("error attaching to container: {problem}"))
        };
        self.remote(request, streams, Work { start: Box::pin(start), close_stdin: stdin_once, tell_code: false })
    }

    fn remote(&self, mut request: Request<Incoming>, streams: Streams, work: Work) -> Result<Answer, Answer> {
        let upgrade = hyper::upgrade::on(&mut request);
        let (answer, session) = remote::begin(request.headers(), upgrade, streams, work)?;
        self.session(session)?;
        Ok(answer)
    }

    fn port_forward(&self, mut request: Request<Incoming>, target: &Target, query: &Query) -> Result<Answer, Answer> {
        let pod = self.pod(target)?;
        let full = format!("{}_{}", target.pod, target.namespace);
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let refuse = |_| {
            answer::text(StatusCode::INTERNAL_SERVER_ERROR, format!("pod not found ({full:?}): it has no network now"))
        };
        let netns = self.sources.directory.network(&uid).map_err(refuse)?;
        let to = forward::Pod { name: full.clone(), uid, netns, runtime: self.sources.runtime.clone() };
        let upgrade = hyper::upgrade::on(&mut request);
        let (answer, session) = forward::begin(request.headers(), query, upgrade, to)?;
        self.session(session)?;
        Ok(answer)
    }

    async fn run(&self, target: &Target, query: &Query) -> Result<Answer, Answer> {
        let pod = self.pod(target)?;
        let id = self.running_container(&pod, target).ok_or_else(|| no_container(&target.container))?;
        let words = query.get("cmd").unwrap_or_default().split(' ').take(MAX_WORDS).map(str::to_owned).collect();
        let _permit = self.room()?;
        let command = Command { words, stdin: false, tty: false };
        let failed = |text| answer::text(StatusCode::INTERNAL_SERVER_ERROR, text);
        let process = self.sources.runtime.exec(id, command).await.map_err(failed)?;
        let run = collect(process);
        tokio::select! {
            output = run => output.map(|bytes| answer::of(StatusCode::OK, "application/json", bytes)).map_err(failed),
            () = self.stop.cancelled() => Err(answer::text(StatusCode::SERVICE_UNAVAILABLE, "the agent stops")),
        }
    }

    fn checkpoint(&self, target: &Target) -> Result<Answer, Answer> {
        let pod = self.pod(target)?;
        if !logs::has_container(&pod, &target.container) {
            let text = format!("container {} does not exist", target.container);
            return Err(answer::text(StatusCode::NOT_FOUND, text));
        }
        let text = "checkpoints of containers are not made on this node: its kernel and engine have no CRIU";
        Err(answer::text(StatusCode::NOT_IMPLEMENTED, text))
    }

    fn pod(&self, target: &Target) -> Result<Arc<Pod>, Answer> {
        let missing = |text| answer::text(StatusCode::NOT_FOUND, text);
        let pod = self.sources.directory.pod(&target.namespace, &target.pod);
        let pod = pod.ok_or_else(|| missing("pod does not exist"))?;
        let other = |uid: &String| !self.sources.directory.is_uid_of(&pod, uid);
        // Another of the same name: who asked means one that is gone.
        if target.uid.as_ref().is_some_and(other) { Err(missing("pod not found")) } else { Ok(pod) }
    }

    fn running_container(&self, pod: &Pod, target: &Target) -> Option<container_engine::container::ContainerId> {
        let uid = pod.metadata.uid.as_deref()?;
        let last = self.sources.directory.instances(uid, &target.container).last?;
        last.running.then_some(last.id)
    }

    fn room(&self) -> Result<tokio::sync::OwnedSemaphorePermit, Answer> {
        let full = format!("{MAX_SESSIONS} sessions are open on this node, the most there may be: end some");
        let permit = self.sessions.clone().try_acquire_owned();
        permit.map_err(|_| answer::text(StatusCode::SERVICE_UNAVAILABLE, full))
    }

    fn session(&self, session: BoxFuture<'static, ()>) -> Result<(), Answer> {
        let permit = self.room()?;
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = session => {}
                () = stop.cancelled() => {}
            }
            drop(permit);
        });
        Ok(())
    }
}

fn no_container(name: &str) -> Answer {
    answer::text(StatusCode::INTERNAL_SERVER_ERROR, format!("container not found ({name:?})"))
}

/// Whether the container has a terminal, and whether its input ends with the first who attached.
fn terminal_of(pod: &Pod, name: &str) -> Option<(bool, bool)> {
    let spec = pod.spec.as_ref()?;
    let of = |it: &Container| (it.tty.unwrap_or(false), it.stdin_once.unwrap_or(false));
    let plain = spec.containers.iter().chain(spec.init_containers.iter().flatten()).find(|it| it.name == name).map(of);
    plain.or_else(|| {
        let it = spec.ephemeral_containers.iter().flatten().find(|it| it.name == name)?;
        Some((it.tty.unwrap_or(false), it.stdin_once.unwrap_or(false)))
    })
}

/// All output of a process; an error where it fails.
async fn collect(process: Process) -> Result<Vec<u8>, String> {
    let Process { mut input, mut output, hang_up: _ } = process;
    let _ = input.close().await;
    let mut all = Vec::new();
    loop {
        match output.next().await? {
            Some(Output::Stdout(bytes) | Output::Stderr(bytes)) => {
                let room = MAX_OUTPUT.saturating_sub(all.len());
                all.extend_from_slice(&bytes[..bytes.len().min(room)]);
            }
            Some(Output::Exit(status)) if status.code != 0 => {
                let text = String::from_utf8_lossy(&all);
                return Err(format!("command terminated with exit code {}: {text}", status.code));
            }
            Some(Output::Exit(_)) | None => return Ok(all),
        }
    }
}
