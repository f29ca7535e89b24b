//! Registration, and the status: looked at every ten seconds, told when it has changed, and every five minutes anyway.
//!
//! Always true:
//! - What is told is the difference to what the API server acknowledged last. After a failure it is asked what it has.
//! - A change that the kernel or others on the board tell of is reported at once.

use std::{convert::Infallible, time::Duration};

use board::tasks::{Context, backoff};
use container_engine::event::{Filter, Kind, Subscription};
use k8s_openapi::api::core::v1::{Node, NodeCondition, NodeStatus};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::time::{Instant, sleep, timeout};

use super::{
    Amounts, NodeObject, build, image, netlink, patch,
    request::{self, Body, words},
    step::Steps,
};
use crate::{
    api::{Failure, Link, failure},
    event::Type,
};

/// Between two looks at the board.
const LOOK: Duration = Duration::from_secs(10);
/// First and longest wait after a failure.
const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(7);
/// Longest time for one report.
const PATIENCE: Duration = Duration::from_secs(30);
/// Changes of the network come in groups.
const SETTLE: Duration = Duration::from_millis(300);
/// Where the cluster gives the node no subnet within this time after its registration, it does not give subnets.
const GIVES_SUBNET: Duration = Duration::from_secs(120);

/// What a wait ended with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Woken {
    /// It is time to look.
    Time,
    /// Something was told.
    News,
    /// Addresses or routes changed.
    Network,
    /// The clock was set.
    Clock,
    /// The API server answers again.
    Link,
    /// The node may be gone.
    Doubt,
}

/// Between looks.
struct Loop {
    network: Option<netlink::Monitor>,
    steps: Option<Steps>,
    images: Subscription,
    images_changed: bool,
    /// Whether the API server is known to have the node.
    registered: bool,
    /// When this process had it so first.
    since: Option<Instant>,
    /// When a report is due where nothing changed.
    due: Instant,
    /// When a look is due.
    next: Instant,
    tries: u32,
}

impl NodeObject {
    /// Registers the node and keeps its status true until it is told to stop.
    pub async fn register_and_report(self, context: Context) -> Result<(), Infallible> {
        let stop = context.stop.clone();
        self.0.recorder.node(Type::Normal, "Starting", "Starting kubelet.".to_owned());
        tokio::select! {
            () = self.report_always(&context) => {}
            () = stop.cancelled() => {}
        }
        Ok(())
    }

    async fn report_always(&self, context: &Context) {
        let filter = Filter { kinds: vec![Kind::Image], ..Filter::default() };
        let mut state = Loop {
            network: watched("addresses and routes", netlink::Monitor::open()),
            steps: watched("steps of the clock", Steps::open()),
            images: self.0.engine.events().subscribe(filter, None),
            images_changed: true,
            registered: false,
            since: None,
            due: Instant::now(),
            next: Instant::now(),
            tries: 0,
        };
        let mut woken = Woken::News;
        loop {
            self.look(&mut state).await;
            if woken == Woken::Network && self.network_changed().await {
                tracing::info!(addresses = ?self.host_ips(), "the board has other addresses");
            }
            if self.api().is_somewhere() {
                Box::pin(self.tell(&mut state, woken, context)).await;
            } else {
                context.healthy("this board has joined no cluster");
                state.next = Instant::now() + LOOK;
            }
            woken = self.wait(&mut state).await;
        }
    }

    /// What the board has now.
    async fn look(&self, state: &mut Loop) {
        let dir = self.options().kubelet_dir.clone();
        let engine = std::mem::take(&mut state.images_changed).then(|| self.0.engine.clone());
        let most = self.configuration().max_images;
        let read = move || (Amounts::read(&dir), engine.map(|it| image::images(&it.images().list(None), most)));
        let Ok((amounts, images)) = tokio::task::spawn_blocking(read).await else { return };
        let mut seen = self.0.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        seen.amounts = amounts;
        if let Some(images) = images {
            seen.images = images;
        }
    }

    async fn network_changed(&self) -> bool {
        sleep(SETTLE).await;
        let object = self.clone();
        let changed = tokio::task::spawn_blocking(move || object.find_addresses()).await.unwrap_or(false);
        if changed {
            // The old connection may hang on an address that is gone.
            self.api().reconnect().await;
        }
        changed
    }

    /// One report where one is due, and when the next is.
    async fn tell(&self, state: &mut Loop, woken: Woken, context: &Context) {
        // Meanwhile the cluster may have called the node lost, or forgotten it.
        if matches!(woken, Woken::Doubt | Woken::Link) {
            state.registered = false;
        }
        let beat = Instant::now() >= state.due || woken == Woken::Clock;
        let outcome = timeout(PATIENCE, Box::pin(self.report(state, beat))).await;
        let problem = match outcome {
            Ok(Ok(())) => None,
            Ok(Err(error)) => {
                if failure(&error) == Failure::NotFound {
                    tracing::warn!(node = self.options().name, "the cluster has this node no more; it registers again");
                }
                Some(words(&error))
            }
            Err(_) => Some(format!("no answer within {} s", PATIENCE.as_secs())),
        };
        let Some(problem) = problem else {
            state.tries = 0;
            state.next = Instant::now() + self.pause(state);
            let is_ready = *self.0.ready.borrow();
            context.healthy(if is_ready { "the node is ready" } else { "the node is registered and not ready" });
            return;
        };
        // What the API server has is not known now.
        state.registered = false;
        state.tries += 1;
        state.next = Instant::now() + backoff(state.tries, FIRST, LONGEST);
        context.degraded(
            format!("the node's status cannot be reported: {problem}"),
            "see to the link and to the API server; pods go on here meanwhile",
        );
    }

    /// Until the next look where all is well: soon while the cluster is to give a subnet.
    fn pause(&self, state: &Loop) -> Duration {
        let young = state.since.map(|it| it.elapsed()).filter(|it| *it < GIVES_SUBNET);
        match young {
            Some(age) if self.0.pod_cidrs.borrow().is_empty() => age.clamp(FIRST, LONGEST),
            _ => LOOK,
        }
    }

    async fn report(&self, state: &mut Loop, beat: bool) -> Result<(), kube::Error> {
        if !state.registered {
            Box::pin(self.register()).await?;
            state.registered = true;
            state.since.get_or_insert_with(Instant::now);
        } else if self.0.pod_cidrs.borrow().is_empty() && state.since.is_some_and(|it| it.elapsed() < GIVES_SUBNET) {
            self.refresh().await?;
        }
        let before = self.known().status.clone().unwrap_or_default();
        let conditions = before.conditions.clone().unwrap_or_default();
        let node = build::build(&self.gather(), &conditions, self.now());
        let after = node.status.unwrap_or_default();
        if let Some(patch) = patch::status(&before, &after, beat) {
            let path = format!("{}/status", self.path());
            let answer = request::whole::<Node>(self.api(), "PATCH", &path, Body::Strategic(patch)).await?;
            self.take(answer).await;
            self.is_acknowledged(&conditions, after);
            state.due = Instant::now() + spread(self.configuration().report, state.since);
        }
        Ok(())
    }

    /// Finds the node, or makes it; then the API server's copy of its status is known.
    async fn register(&self) -> Result<(), kube::Error> {
        let node = build::build(&self.gather(), &[], self.now());
        let found = match self.uid() {
            // It was there before, so it is likely to be there.
            Some(_) => self.find().await?,
            None => None,
        };
        let found = match found {
            Some(found) => found,
            None => match self.create(&node).await? {
                Some(()) => return Ok(()),
                None => self.find().await?.unwrap_or_else(|| node.clone()),
            },
        };
        let found = match patch::metadata(&found, &node) {
            Some(patch) => request::whole(self.api(), "PATCH", &self.path(), Body::Strategic(patch)).await?,
            None => found,
        };
        self.compare_boots(&found);
        self.known().status.clone_from(&found.status);
        self.take(found).await;
        Ok(())
    }

    async fn find(&self) -> Result<Option<Node>, kube::Error> {
        match request::whole(self.api(), "GET", &self.path(), Body::None).await {
            Ok(node) => Ok(Some(node)),
            Err(error) if failure(&error) == Failure::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// `None` where it is there already.
    async fn create(&self, node: &Node) -> Result<Option<()>, kube::Error> {
        let body = serde_json::to_value(node).map_err(kube::Error::SerdeError)?;
        match request::whole::<Node>(self.api(), "POST", "/api/v1/nodes", Body::Json(body)).await {
            Ok(made) => {
                tracing::info!(node = self.options().name, "the node is registered");
                let status = made.status.clone().unwrap_or_default();
                self.take(made).await;
                self.is_acknowledged(&[], status);
                Ok(Some(()))
            }
            Err(error) if failure(&error) == Failure::Conflict => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn compare_boots(&self, found: &Node) {
        let known = found.status.as_ref().and_then(|it| it.node_info.as_ref()).map(|it| it.boot_id.as_str());
        let boot = &self.0.machine.boot_id;
        if known.is_some_and(|known| !known.is_empty() && known != boot) {
            let message = format!("Node {} has been rebooted, boot id: {boot}", self.options().name);
            self.0.recorder.node(Type::Warning, "Rebooted", message);
        }
    }

    fn is_acknowledged(&self, before: &[NodeCondition], status: NodeStatus) {
        let conditions = status.conditions.clone().unwrap_or_default();
        for now in &conditions {
            let same = before.iter().any(|it| it.type_ == now.type_ && it.status == now.status);
            let reason = build::transition(&now.type_, now.status == "True").filter(|_| !same);
            if let Some(reason) = reason {
                self.says(reason);
            }
        }
        let ready = build::is_ready(&conditions);
        self.known().status = Some(status);
        self.0.ready.send_if_modified(|it| std::mem::replace(it, ready) != ready);
    }

    async fn wait(&self, state: &mut Loop) -> Woken {
        let mut link = self.api().link();
        let is_down = matches!(*link.borrow(), Link::Down { .. });
        loop {
            let Loop { network, steps, images, images_changed, next, .. } = state;
            tokio::select! {
                () = tokio::time::sleep_until(*next) => return Woken::Time,
                () = self.0.news.notified() => return Woken::News,
                () = self.0.doubt.notified() => return Woken::Doubt,
                _ = link.wait_for(|link| *link == Link::Up), if is_down => return Woken::Link,
                () = changed(network) => return Woken::Network,
                () = stepped(steps) => return Woken::Clock,
                // Told with the next look.
                event = images.next(), if !*images_changed => *images_changed = event.is_some(),
            }
        }
    }
}

/// Without it, the looks every ten seconds have to do.
fn watched<T>(what: &str, opened: std::io::Result<T>) -> Option<T> {
    opened.map_err(|error| tracing::warn!(%error, "the kernel does not tell of changes of {what}")).ok()
}

async fn changed(monitor: &mut Option<netlink::Monitor>) {
    match monitor {
        Some(open) => {
            if let Err(error) = open.changed().await {
                tracing::warn!(%error, "the kernel tells no more of changes of the network");
                *monitor = None;
            }
        }
        None => sleep(LOOK).await,
    }
}

async fn stepped(steps: &mut Option<Steps>) {
    match steps {
        Some(open) => {
            if let Err(error) = open.stepped().await {
                tracing::warn!(%error, "the kernel tells no more of steps of the clock");
                *steps = None;
            }
        }
        None => std::future::pending().await,
    }
}

/// The first one after the registration comes at any time between half and one and a half of it: many boards may have
/// started together.
fn spread(every: Duration, since: Option<Instant>) -> Duration {
    if since.is_some_and(|it| it.elapsed() > every) {
        return every;
    }
    let mut random = [0];
    // Without randomness they report together.
    let _ = SystemRandom::new().fill(&mut random);
    every.mul_f64(0.5 + f64::from(random[0]) / 255.0)
}
