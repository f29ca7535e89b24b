//! What the engine has of a pod.

use std::collections::BTreeMap;

use container_engine::{
    container::{Inspect, ListFilter, Status},
    owner::Owner,
};
use jiff::Timestamp;

use super::{Runtime, lock, message};
use crate::pod::{
    model::{Exited, Instance, Kind, Life, Observed, PodKey, label},
    spec::sandbox_id,
};

/// What a process that could not be started ends with.
const START_ERROR: i32 = 128;

impl Runtime {
    /// The pod as it is now.
    pub async fn observe(&self, pod: &PodKey) -> Observed {
        let containers = self.0.engine.containers();
        let filter = ListFilter { owner: Some(Owner::Pod(pod.uid.clone())), ..ListFilter::default() };
        let sandbox = self.sandbox(pod);
        let present = sandbox.as_ref().map(|it| it.id.as_str());
        let mut instances = Vec::new();
        for summary in containers.list(&filter) {
            // One that has gone since was removed.
            let Ok(inspect) = containers.inspect(&summary.id) else { continue };
            instances.extend(self.instance(pod, &inspect, present).await);
        }
        Observed { sandbox, instances }
    }

    /// Pods that the engine has anything of.
    pub fn observed_pods(&self) -> Vec<PodKey> {
        let mut found = BTreeMap::new();
        for summary in self.0.engine.containers().list(&ListFilter::default()) {
            let Owner::Pod(uid) = &summary.owner else { continue };
            let named = |key: &str| summary.labels.get(key).cloned().unwrap_or_default();
            let key = PodKey { namespace: named(label::POD_NAMESPACE), name: named(label::POD_NAME), uid: uid.clone() };
            found.entry(uid.clone()).or_insert(key);
        }
        for (id, owner) in self.0.engine.networks().sandboxes() {
            if let Owner::Pod(uid) = owner
                && id == sandbox_id(&uid)
            {
                found.entry(uid.clone()).or_insert(PodKey { uid, ..PodKey::default() });
            }
        }
        for name in self.0.engine.containers().all_shared() {
            if let Some(uid) = name.strip_prefix(&sandbox_id(""))
                && !uid.is_empty()
            {
                found.entry(uid.to_owned()).or_insert(PodKey { uid: uid.to_owned(), ..PodKey::default() });
            }
        }
        found.into_values().collect()
    }

    async fn instance(&self, pod: &PodKey, inspect: &Inspect, sandbox: Option<&str>) -> Option<Instance> {
        let labels = &inspect.spec.labels;
        let name = labels.get(label::CONTAINER_NAME)?.clone();
        let kind = labels.get(label::KIND).and_then(|text| Kind::parse(text))?;
        let attempt = labels.get(label::ATTEMPT).and_then(|text| text.parse().ok()).unwrap_or(0);
        let mut is_due = false;
        let life = match inspect.state.status {
            Status::Removing => return None,
            Status::Running | Status::Paused => Life::Running { started: time(inspect.state.started_ns) },
            Status::Created if inspect.state.error.is_none() => Life::Created,
            Status::Created => Life::Exited(Exited {
                code: START_ERROR,
                reason: "StartError".to_owned(),
                message: inspect.state.error.clone().unwrap_or_default(),
                started: None,
                finished: time(inspect.state.finished_ns.or(Some(inspect.created_ns))),
            }),
            Status::Exited => {
                let (exited, due) = self.exited(pod, inspect, &name, attempt).await;
                is_due = due;
                Life::Exited(exited)
            }
        };
        let image_id = labels.get(label::IMAGE).cloned().unwrap_or_else(|| inspect.image.id.clone());
        Some(Instance {
            id: inspect.id.to_string(),
            name,
            kind,
            attempt,
            hash: labels.get(label::HASH).cloned().unwrap_or_default(),
            image: inspect.image.name.clone(),
            image_id,
            created: time(Some(inspect.created_ns)),
            life,
            resources: inspect.spec.resources.clone(),
            before_sandbox: labels.get(label::BOOT).is_some_and(|boot| *boot != self.0.boot)
                || labels.get(label::SANDBOX).is_some_and(|made| sandbox.is_some_and(|now| made != now)),
            is_due,
        })
    }

    async fn exited(&self, pod: &PodKey, inspect: &Inspect, name: &str, attempt: u32) -> (Exited, bool) {
        let state = &inspect.state;
        let code = state.exit_code.unwrap_or(255);
        let started = state.started_ns.map(|ns| time(Some(ns)));
        let reason = match (state.oom_killed, code, started) {
            (true, ..) => "OOMKilled",
            (_, 0, _) => "Completed",
            (_, _, None) => "StartError",
            _ => "Error",
        };
        let id = inspect.id.to_string();
        let known = lock(&self.0.messages).get(&id).cloned();
        let own = if let Some(known) = known {
            known
        } else {
            let read = message::read(&(self.0.surroundings)().kubelet_dir, pod, inspect, name, attempt, code).await;
            lock(&self.0.messages).insert(id, read.clone());
            read
        };
        let is_due = own.is_due;
        let own = own.message;
        let message = match (&state.error, own.is_empty()) {
            (Some(error), true) => error.clone(),
            (Some(error), false) => format!("{error}: {own}"),
            (None, _) => own,
        };
        (Exited { code, reason: reason.to_owned(), message, started, finished: time(state.finished_ns) }, is_due)
    }
}

fn time(ns: Option<i64>) -> Timestamp {
    ns.and_then(|ns| Timestamp::from_nanosecond(ns.into()).ok()).unwrap_or(Timestamp::UNIX_EPOCH)
}
