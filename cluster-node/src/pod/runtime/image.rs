//! Images of containers and of image volumes: pulled as their policy says, with the pod's secrets; the verified local one
//! where the registry cannot be reached.
//!
//! Always true: an image that is here is waited for only as long as its registry takes to answer, and no time at all while the
//! registry is known not to: without a network, pods start at once.

use std::{future::Future, str::FromStr, time::Duration};

use container_engine::{
    image::{Image, PullError, PullEvent, PullPolicy, PullRequest, Pulled},
    owner::Owner,
    reference::ImageRef,
    registry::Credentials,
};
use k8s_openapi::api::core::v1::{Container, Pod};
use tokio::{sync::mpsc, time::Instant};

use super::{Runtime, lock, problem};
use crate::{
    event::Type,
    pod::{model::Problem, probe::field_path},
};

/// How long a registry may take to say what a name means, where the image is here: with the cluster in reach, and without.
const ANSWER: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(4));
/// How long one that did not answer is not asked for what is here.
const SILENCE: Duration = Duration::from_secs(60);
/// Registries that are remembered.
const MAX_SILENT: usize = 64;
/// The longest time for one pull; what came is kept, and the next try goes on there. Nobody waits behind it for ever.
const MAX_PULL: Duration = Duration::from_secs(3600);

/// An image that is here.
pub(super) struct Ready {
    pub image: Image,
    /// Under which the engine has it.
    pub name: String,
    /// `NAME@DIGEST`, for the status.
    pub id: String,
}

/// An image that is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Asked {
    /// Of the container that it is wanted for.
    container: String,
    image: String,
    policy: Option<String>,
}

impl Asked {
    /// A container's own.
    pub fn of(container: &Container) -> Self {
        Self {
            container: container.name.clone(),
            image: container.image.as_deref().unwrap_or_default().trim().to_owned(),
            policy: container.image_pull_policy.clone(),
        }
    }

    /// Those of the image volumes that it mounts.
    pub fn volumes(pod: &Pod, container: &Container) -> Vec<Self> {
        let volumes = || pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        let mounted = |name: &str| container.volume_mounts.iter().flatten().any(|mount| mount.name == name);
        let images = volumes().filter(|volume| mounted(&volume.name)).filter_map(|volume| volume.image.as_ref());
        let asked = images.map(|image| Self {
            container: container.name.clone(),
            image: image.reference.as_deref().unwrap_or_default().trim().to_owned(),
            policy: image.pull_policy.clone(),
        });
        asked.collect()
    }

    /// What the policy says, or what Kubernetes makes of none.
    fn policy(&self, name: &ImageRef) -> PullPolicy {
        match self.policy.as_deref() {
            Some("Always") => PullPolicy::Always,
            Some("Never") => PullPolicy::Never,
            Some("IfNotPresent") => PullPolicy::Missing,
            _ if name.digest().is_none() && name.tag() == Some("latest") => PullPolicy::Always,
            _ => PullPolicy::Missing,
        }
    }
}

/// What came of asking a registry.
enum Answer {
    Pulled(Box<Pulled>),
    /// It did not answer in time, and the image is here.
    Silent,
    Failed(String),
}

impl Runtime {
    /// Sees to it that an image is here.
    pub(super) async fn image(&self, pod: &Pod, asked: &Asked) -> Result<Ready, Problem> {
        let text = &asked.image;
        let name = ImageRef::from_str(text).map_err(|error| {
            let message = format!("Failed to apply default image tag {text:?}: couldn't parse image name: {error}");
            self.tell(pod, asked, Type::Warning, "InspectFailed", message.clone());
            problem("InvalidImageName", message)
        })?;
        let images = self.0.engine.images();
        let here = match images.get(&Owner::Local, &name.to_string()).await {
            // It may be collected otherwise before the container is made.
            Ok(image) if images.is_whole(&image.record).await && images.touch(&image).await.is_ok() => Some(image),
            _ => None,
        };
        let present = || format!("Container image {text:?} already present on machine");
        match (asked.policy(&name), here) {
            (PullPolicy::Never, None) => {
                let message = format!("Container image {text:?} is not present with pull policy of Never");
                self.tell(pod, asked, Type::Warning, "ErrImageNeverPull", message.clone());
                Err(problem("ErrImageNeverPull", message))
            }
            (PullPolicy::Never | PullPolicy::Missing, Some(image)) => {
                self.tell(pod, asked, Type::Normal, "Pulled", present());
                Ok(ready(image, &name))
            }
            (PullPolicy::Always, Some(image)) if self.is_silent(&name) => {
                self.tell(pod, asked, Type::Normal, "Pulled", present());
                Ok(ready(image, &name))
            }
            (_, here) => self.pull(pod, asked, &name, here).await,
        }
    }

    async fn pull(&self, pod: &Pod, asked: &Asked, name: &ImageRef, here: Option<Image>) -> Result<Ready, Problem> {
        let text = &asked.image;
        self.tell(pod, asked, Type::Normal, "Pulling", format!("Pulling image {text:?}"));
        let waits = Instant::now();
        let Ok(_turn) = self.0.pulls.acquire().await else {
            return Err(problem("ErrImagePull", "the agent is stopping"));
        };
        let begun = Instant::now();
        // Somebody before may have waited for the same registry in vain.
        let answer = match &here {
            Some(_) if self.is_silent(name) => Answer::Silent,
            _ => self.ask(pod, name, here.is_some()).await,
        };
        let present = format!("Container image {text:?} already present on machine");
        match (answer, here) {
            (Answer::Pulled(pulled), _) => {
                let (took, waited) = (go(begun.elapsed()), go(waits.elapsed()));
                let size = pulled.image.record.size;
                let message = match &pulled.offline {
                    Some(_) => present,
                    None => format!(
                        "Successfully pulled image {text:?} in {took} ({waited} including waiting). Image size: {size} bytes."
                    ),
                };
                self.tell(pod, asked, Type::Normal, "Pulled", message);
                self.heard(name, pulled.offline.as_deref());
                Ok(ready(pulled.image, name))
            }
            (Answer::Silent, Some(image)) => {
                self.tell(pod, asked, Type::Normal, "Pulled", present);
                self.heard(name, Some("it does not answer in time"));
                Ok(ready(image, name))
            }
            (Answer::Failed(message), _) => Err(self.refused(pod, asked, message)),
            (Answer::Silent, None) => Err(self.refused(pod, asked, "the registry does not answer".to_owned())),
        }
    }

    fn refused(&self, pod: &Pod, asked: &Asked, message: String) -> Problem {
        self.tell(pod, asked, Type::Warning, "Failed", format!("Failed to pull image {:?}: {message}", asked.image));
        self.tell(pod, asked, Type::Warning, "Failed", "Error: ErrImagePull".to_owned());
        problem("ErrImagePull", message)
    }

    /// With each of the pod's logins that fit, until one works. Where the image is here, the registry has to answer soon.
    async fn ask(&self, pod: &Pod, name: &ImageRef, is_here: bool) -> Answer {
        let keyring = self.0.objects.keyring(pod).await;
        let mut all = keyring.credentials(&format!("{}/{}", name.registry(), name.repository()));
        if all.is_empty() {
            all.push(Credentials::Anonymous);
        }
        let patience = if self.0.objects.is_offline() { ANSWER.1 } else { ANSWER.0 };
        let mut last = String::new();
        for credentials in all {
            let request = PullRequest {
                name: name.clone(),
                owner: Owner::Local,
                platform: None,
                policy: PullPolicy::Always,
                credentials,
            };
            let (events, heard) = mpsc::channel(16);
            let pull = self.0.engine.images().pull(&request, &events);
            match within(pull, heard, is_here.then_some(patience)).await {
                Ok(Some(Ok(pulled))) => return Answer::Pulled(Box::new(pulled)),
                // Another login may do.
                Ok(Some(Err(error))) if error.code() == "denied" => last = board::tasks::chain(&error),
                Ok(Some(Err(error))) => return Answer::Failed(board::tasks::chain(&error)),
                Ok(None) => return Answer::Silent,
                Err(late) => return Answer::Failed(late),
            }
        }
        Answer::Failed(last)
    }

    fn is_silent(&self, name: &ImageRef) -> bool {
        lock(&self.0.silent).get(name.registry()).is_some_and(|until| *until > Instant::now())
    }

    /// Notes whether a registry answered.
    fn heard(&self, name: &ImageRef, problem: Option<&str>) {
        let mut silent = lock(&self.0.silent);
        silent.remove(name.registry());
        let Some(problem) = problem else { return };
        tracing::info!(image = %name, problem, "the registry cannot be asked; the image that is here is used");
        let now = Instant::now();
        silent.retain(|_, until| *until > now);
        if silent.len() < MAX_SILENT {
            silent.insert(name.registry().to_owned(), now + SILENCE);
        }
    }

    fn tell(&self, pod: &Pod, asked: &Asked, kind: Type, reason: &str, message: String) {
        self.0.recorder.pod(pod, kind, reason, message, Some(field_path(pod, &asked.container)));
    }
}

/// A pull to its end. `None`: the registry did not say within `patience` what the name means.
async fn within(
    pull: impl Future<Output = Result<Pulled, PullError>>,
    mut heard: mpsc::Receiver<PullEvent>,
    patience: Option<Duration>,
) -> Result<Option<Result<Pulled, PullError>>, String> {
    let mut pull = std::pin::pin!(tokio::time::timeout(MAX_PULL, pull));
    let late = |_| format!("it takes longer than {} s; what came is kept", MAX_PULL.as_secs());
    if let Some(patience) = patience {
        let answered = async {
            while let Some(event) = heard.recv().await {
                if matches!(event, PullEvent::Resolved { .. }) {
                    return;
                }
            }
            // It is over without an answer, which the pull tells.
            std::future::pending::<()>().await;
        };
        tokio::select! {
            done = &mut pull => return done.map(Some).map_err(late),
            () = answered => {}
            () = tokio::time::sleep(patience) => return Ok(None),
        }
    }
    // Nobody watches the rest: what happens meanwhile is in the events of the pod.
    drop(heard);
    pull.await.map(Some).map_err(late)
}

fn ready(image: Image, name: &ImageRef) -> Ready {
    let id = format!("{}/{}@{}", name.registry(), name.repository(), image.record.target);
    Ready { name: name.to_string(), id, image }
}

/// As Go prints a duration, to the millisecond.
fn go(took: Duration) -> String {
    if took.as_secs() == 0 {
        return format!("{}ms", took.as_millis());
    }
    let (minutes, seconds) = (took.as_secs() / 60, took.as_secs() % 60);
    let fraction = match took.subsec_millis() {
        0 => format!("{seconds}s"),
        millis => format!("{seconds}.{}s", format!("{millis:03}").trim_end_matches('0')),
    };
    match (minutes / 60, minutes % 60) {
        (0, 0) => fraction,
        (0, minutes) => format!("{minutes}m{fraction}"),
        (hours, minutes) => format!("{hours}h{minutes}m{fraction}"),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{ImageVolumeSource, PodSpec, Volume, VolumeMount};

    use super::*;

    #[test]
    fn policies_and_defaults() {
        #[track_caller]
        fn check(image: &str, policy: Option<&str>, want: PullPolicy) {
            let asked = Asked { policy: policy.map(str::to_owned), ..Asked::default() };
            assert_eq!(asked.policy(&image.parse().unwrap()), want, "{image}");
        }
        check("busybox", None, PullPolicy::Always);
        check("busybox:latest", None, PullPolicy::Always);
        check("busybox:1", None, PullPolicy::Missing);
        check("busybox:latest@sha256:".to_owned().as_str().trim_end_matches("@sha256:"), Some(""), PullPolicy::Always);
        check(&format!("busybox@sha256:{}", "0".repeat(64)), None, PullPolicy::Missing);
        check("busybox", Some("Never"), PullPolicy::Never);
        check("busybox", Some("IfNotPresent"), PullPolicy::Missing);
        check("busybox:1", Some("Always"), PullPolicy::Always);
    }

    #[test]
    fn images_of_the_volumes_that_are_mounted() {
        let volume = |name: &str, image: Option<&str>| Volume {
            name: name.into(),
            image: image.map(|reference| ImageVolumeSource {
                reference: Some(reference.into()),
                pull_policy: Some("Never".into()),
            }),
            ..Volume::default()
        };
        let volumes = vec![volume("a", Some("models:1")), volume("b", Some("other:1")), volume("c", None)];
        let pod = Pod { spec: Some(PodSpec { volumes: Some(volumes), ..PodSpec::default() }), ..Pod::default() };
        let mount = |name: &str| VolumeMount { name: name.into(), ..VolumeMount::default() };
        let mounts = Some(vec![mount("a"), mount("c"), mount("missing")]);
        let container = Container { name: "app".into(), volume_mounts: mounts, ..Container::default() };
        let want = Asked { container: "app".into(), image: "models:1".into(), policy: Some("Never".into()) };
        assert_eq!(Asked::volumes(&pod, &container), [want]);
        assert!(Asked::volumes(&Pod::default(), &container).is_empty());
    }

    #[test]
    fn durations() {
        let check = |millis: u64, want: &str| assert_eq!(go(Duration::from_millis(millis)), want);
        check(0, "0ms");
        check(250, "250ms");
        check(2000, "2s");
        check(2_050, "2.05s");
        check(61_500, "1m1.5s");
        check(3_600_001, "1h0m0.001s");
    }

    fn failed() -> Result<Pulled, PullError> {
        Err(PullError::Absent { image: "x".into() })
    }

    fn resolved() -> PullEvent {
        let digest = format!("sha256:{}", "0".repeat(64)).parse().unwrap();
        PullEvent::Resolved { digest, layers: Vec::new() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_registry_that_does_not_answer_is_not_waited_for() {
        let patience = Some(Duration::from_secs(4));
        let begun = Instant::now();
        // It hangs.
        let (_events, heard) = mpsc::channel(1);
        let hangs = std::future::pending::<Result<Pulled, PullError>>();
        assert!(matches!(within(hangs, heard, patience).await, Ok(None)));
        assert_eq!(begun.elapsed().as_secs(), 4);
        // It answers, and the layers take their time.
        let (events, heard) = mpsc::channel(1);
        let slow = async move {
            events.send(resolved()).await.unwrap();
            tokio::time::sleep(Duration::from_secs(600)).await;
            failed()
        };
        assert!(matches!(within(slow, heard, patience).await, Ok(Some(Err(PullError::Absent { .. })))));
        // It fails at once, and the channel is gone with it.
        let (events, heard) = mpsc::channel(1);
        let fails = async move {
            drop(events);
            tokio::time::sleep(Duration::from_secs(1)).await;
            failed()
        };
        assert!(matches!(within(fails, heard, patience).await, Ok(Some(Err(_)))));
        // Nothing is here to be used instead: it may take long, and not for ever.
        let (_events, heard) = mpsc::channel(1);
        let hangs = std::future::pending::<Result<Pulled, PullError>>();
        assert!(within(hangs, heard, None).await.is_err_and(|late| late.contains("longer than 3600 s")));
    }
}
