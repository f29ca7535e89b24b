//! One request about a pod's status, and what its answer means.
//!
//! Elsewhere: what is asked for, and when again (`book`).

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, Patch, PatchParams};

use super::book::{Task, Work};
use crate::{
    api::{Failure, failure},
    pod::source::at_once,
};

/// One request.
const PATIENCE: Duration = Duration::from_secs(20);

/// What came of it.
#[derive(Debug)]
pub(super) enum Answer {
    /// The pod with its status, as the API server has it now.
    Taken(Box<Pod>),
    /// The pod is no more, or another has its name.
    Gone,
    /// Perhaps the next time.
    Later(String),
    /// Not as it is.
    Refused(String),
}

/// Sends, and gives the work back with the answer.
pub(super) async fn send(client: &kube::Client, work: Work) -> (Work, Answer) {
    let pods = Api::<Pod>::namespaced(client.clone(), &work.target.namespace);
    let answer = match tokio::time::timeout(PATIENCE, ask(&pods, &work)).await {
        Ok(answer) => answer,
        Err(_) => Answer::Later("the API server does not answer".to_owned()),
    };
    (work, answer)
}

async fn ask(pods: &Api<Pod>, work: &Work) -> Answer {
    let name = &work.target.name;
    let error = match &work.task {
        Task::Patch(patch) => match pods.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await {
            Ok(pod) => return Answer::Taken(Box::new(pod)),
            Err(error) => error,
        },
        Task::Delete => match pods.delete(name, &at_once(&work.target.uid)).await {
            Ok(_) => return Answer::Gone,
            Err(error) => error,
        },
    };
    let problem: String = board::tasks::chain(&error).chars().take(512).collect();
    match failure(&error) {
        Failure::NotFound => Answer::Gone,
        kind @ (Failure::Conflict | Failure::Invalid) => match is_there(pods, work).await {
            Ok(false) => Answer::Gone,
            Ok(true) if kind == Failure::Invalid => Answer::Refused(problem),
            _ => Answer::Later(problem),
        },
        kind if kind.is_transient() => Answer::Later(problem),
        _ => Answer::Refused(problem),
    }
}

/// Whether the pod of this name is still the one that is meant.
async fn is_there(pods: &Api<Pod>, work: &Work) -> Result<bool, kube::Error> {
    let pod = pods.get_opt(&work.target.name).await?;
    Ok(pod.is_some_and(|pod| pod.metadata.uid.as_deref() == Some(work.target.uid.as_str())))
}
