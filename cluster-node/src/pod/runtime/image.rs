//! Images of containers: pulled as their policy says, with the pod's secrets; the verified local one where the registry
//! cannot be reached.

use std::{str::FromStr, time::Instant};

use container_engine::{
    image::{Image, PullPolicy, PullRequest, Pulled},
    owner::Owner,
    reference::ImageRef,
    registry::Credentials,
};
use k8s_openapi::api::core::v1::{Container, Pod};
use tokio::sync::mpsc;

use super::{Runtime, problem};
use crate::{
    event::Type,
    pod::{model::Problem, probe::field_path},
};

/// An image that is here.
pub(super) struct Ready {
    pub image: Image,
    /// Under which the engine has it.
    pub name: String,
    /// `NAME@DIGEST`, for the status.
    pub id: String,
}

/// What the policy says, or what Kubernetes makes of none.
fn policy(container: &Container, name: &ImageRef) -> PullPolicy {
    match container.image_pull_policy.as_deref() {
        Some("Always") => PullPolicy::Always,
        Some("Never") => PullPolicy::Never,
        Some("IfNotPresent") => PullPolicy::Missing,
        _ if name.digest().is_none() && name.tag() == Some("latest") => PullPolicy::Always,
        _ => PullPolicy::Missing,
    }
}

impl Runtime {
    /// Sees to it that a container's image is here.
    pub(super) async fn image(&self, pod: &Pod, container: &Container) -> Result<Ready, Problem> {
        let asked = container.image.as_deref().unwrap_or_default().trim();
        let told = |kind: Type, reason: &str, message: String| {
            self.0.recorder.pod(pod, kind, reason, message, Some(field_path(pod, &container.name)));
        };
        let name = ImageRef::from_str(asked).map_err(|error| {
            let message = format!("Failed to apply default image tag {asked:?}: couldn't parse image name: {error}");
            told(Type::Warning, "InspectFailed", message.clone());
            problem("InvalidImageName", message)
        })?;
        let policy = policy(container, &name);
        let images = self.0.engine.images();
        let here = match images.get(&Owner::Local, &name.name()).await {
            Ok(image) if images.is_whole(&image.record).await => Some(image),
            _ => None,
        };
        match (policy, here) {
            (PullPolicy::Never, None) => {
                let message = format!("Container image {asked:?} is not present with pull policy of Never");
                told(Type::Warning, "ErrImageNeverPull", message.clone());
                Err(problem("ErrImageNeverPull", message))
            }
            (PullPolicy::Never | PullPolicy::Missing, Some(image)) => {
                told(Type::Normal, "Pulled", format!("Container image {asked:?} already present on machine"));
                // It may be collected otherwise before the container is made.
                let _ = images.touch(&image).await;
                Ok(ready(image, &name))
            }
            _ => self.pull(pod, container, asked, name).await,
        }
    }

    async fn pull(&self, pod: &Pod, container: &Container, asked: &str, name: ImageRef) -> Result<Ready, Problem> {
        let told = |kind: Type, reason: &str, message: String| {
            self.0.recorder.pod(pod, kind, reason, message, Some(field_path(pod, &container.name)));
        };
        told(Type::Normal, "Pulling", format!("Pulling image {asked:?}"));
        let waits = Instant::now();
        let Ok(_turn) = self.0.pulls.acquire().await else {
            return Err(problem("ErrImagePull", "the agent is stopping"));
        };
        let begun = Instant::now();
        match self.try_pull(pod, &name).await {
            Ok(pulled) => {
                let (took, waited) = (go(begun.elapsed()), go(waits.elapsed()));
                let size = pulled.image.record.size;
                told(
                    Type::Normal,
                    "Pulled",
                    match pulled.offline {
                        Some(_) => format!("Container image {asked:?} already present on machine"),
                        None => format!(
                            "Successfully pulled image {asked:?} in {took} ({waited} including waiting). Image size: {size} bytes."
                        ),
                    },
                );
                if let Some(problem) = pulled.offline {
                    tracing::info!(image = asked, problem, "the registry cannot be reached; the image on disk is used");
                }
                Ok(ready(pulled.image, &name))
            }
            Err(message) => {
                told(Type::Warning, "Failed", format!("Failed to pull image {asked:?}: {message}"));
                told(Type::Warning, "Failed", "Error: ErrImagePull".to_owned());
                Err(problem("ErrImagePull", message))
            }
        }
    }

    /// With each of the pod's logins that fit, until one works.
    async fn try_pull(&self, pod: &Pod, name: &ImageRef) -> Result<Pulled, String> {
        let keyring = self.0.objects.keyring(pod).await;
        let mut all = keyring.credentials(&format!("{}/{}", name.registry(), name.repository()));
        if all.is_empty() {
            all.push(Credentials::Anonymous);
        }
        let mut last = String::new();
        for credentials in all {
            let request = PullRequest {
                name: name.clone(),
                owner: Owner::Local,
                platform: None,
                policy: PullPolicy::Always,
                credentials,
            };
            let (events, mut heard) = mpsc::channel(1);
            // Nobody watches: what happens meanwhile is in the events of the pod.
            heard.close();
            match self.0.engine.images().pull(&request, &events).await {
                Ok(pulled) => return Ok(pulled),
                Err(error) => last = board::tasks::chain(&error),
            }
        }
        Err(last)
    }
}

fn ready(image: Image, name: &ImageRef) -> Ready {
    let id = format!("{}/{}@{}", name.registry(), name.repository(), image.record.target);
    Ready { name: name.name(), id, image }
}

/// As Go prints a duration of less than some minutes.
fn go(took: std::time::Duration) -> String {
    if took.as_secs() == 0 {
        return format!("{}ms", took.as_millis());
    }
    let (minutes, seconds) = (took.as_secs() / 60, took.as_secs() % 60);
    let fraction = format!("{seconds}.{:03}s", took.subsec_millis());
    if minutes == 0 { fraction } else { format!("{minutes}m{fraction}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_and_defaults() {
        #[track_caller]
        fn check(image: &str, policy_text: Option<&str>, want: PullPolicy) {
            let container = Container { image_pull_policy: policy_text.map(str::to_owned), ..Container::default() };
            assert_eq!(policy(&container, &image.parse().unwrap()), want, "{image}");
        }
        check("busybox", None, PullPolicy::Always);
        check("busybox:latest", None, PullPolicy::Always);
        check("busybox:1", None, PullPolicy::Missing);
        check("busybox", Some("Never"), PullPolicy::Never);
        check("busybox", Some("IfNotPresent"), PullPolicy::Missing);
        check("busybox:1", Some("Always"), PullPolicy::Always);
    }

    #[test]
    fn durations() {
        assert_eq!(go(std::time::Duration::from_millis(250)), "250ms");
        assert_eq!(go(std::time::Duration::from_millis(61_500)), "1m1.500s");
    }
}
