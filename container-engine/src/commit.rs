//! `commit`: an image of what a container wrote and of how it was run.

use serde::{Deserialize, Serialize};

use crate::{
    container::{self, ContainerError, ContainerId, ResolveError, Status},
    engine::Engine,
    event::{Action, Kind},
    image::{AssembleError, History, Image, ImageError, RunConfig, Wanted, apply_change, set_variable},
    owner::Owner,
    reference::ImageRef,
};

/// How the image is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CommitRequest {
    /// Its name; none: only an id.
    pub image: Option<String>,
    /// By whom.
    pub author: String,
    /// What for.
    pub message: String,
    /// Lines of a Dockerfile: `CMD`, `ENTRYPOINT`, `ENV`, `EXPOSE`, `LABEL`, `ONBUILD`, `STOPSIGNAL`, `USER`, `VOLUME`, `WORKDIR`.
    pub changes: Vec<String>,
    /// Whether its processes stand still meanwhile, so that all files are of one moment.
    pub pause: bool,
}

impl Default for CommitRequest {
    fn default() -> Self {
        let (author, message) = Default::default();
        Self { image: None, author, message, changes: Vec::new(), pause: true }
    }
}

/// Why no image was made of a container.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// No such container.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// It would not stand still, or not go on.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// A change is none.
    #[error("the change {change:?}: {problem}")]
    Change {
        /// Which.
        change: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The image.
    #[error("container {id}: {source}")]
    Image {
        /// Which container.
        id: ContainerId,
        /// Why.
        source: Box<AssembleError>,
    },
    /// The name.
    #[error(transparent)]
    Name(#[from] crate::reference::ReferenceError),
    /// The engine closed meanwhile.
    #[error("the engine is stopping: try again when it runs")]
    Closed,
}

impl CommitError {
    /// For the control socket.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Resolve(error) => error.code(),
            Self::Container(error) => error.code(),
            Self::Change { .. } | Self::Name(_) => "invalid",
            Self::Image { source, .. } => source.code(),
            Self::Closed => "unavailable",
        }
    }

    /// Whether the same call may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Container(error) => error.is_transient(),
            Self::Image { source, .. } => source.is_transient(),
            Self::Closed => true,
            Self::Resolve(_) | Self::Change { .. } | Self::Name(_) => false,
        }
    }
}

impl Engine {
    /// Makes an image of a container, running or not, for `owner`: its image's layers, one of what was written since, and
    /// what it was told to run. Volumes and mounts are not in it.
    ///
    /// * Cancelled: carried to its end, so that a container that was paused for it goes on.
    /// * Source: Docker's `commit`.
    pub async fn commit(&self, id: &ContainerId, owner: Owner, request: CommitRequest) -> Result<Image, CommitError> {
        let (engine, id) = (self.clone(), id.clone());
        self.whole(async move { engine.commit_whole(&id, owner, request).await }).await.ok_or(CommitError::Closed)?
    }

    async fn commit_whole(&self, id: &ContainerId, owner: Owner, request: CommitRequest) -> Result<Image, CommitError> {
        let entry = self.containers().entry(id)?;
        let record = entry.record();
        let name = request.image.as_deref().map(str::parse::<ImageRef>).transpose()?;
        let failed = |source: AssembleError| CommitError::Image { id: id.clone(), source: source.into() };
        let base = record.image.id.parse().map_err(|_| ImageError::NotFound(record.image.id.clone()));
        let base = base.map_err(|error| failed(error.into()))?;
        let image = self.images().get(&record.owner, &record.image.id).await.map_err(|error| failed(error.into()))?;
        let mut config = as_run(&record, &image.config.config);
        for change in &request.changes {
            apply_change(&mut config, change)
                .map_err(|problem| CommitError::Change { change: change.clone(), problem })?;
        }
        let step = History {
            created: Some(jiff::Timestamp::now().to_string()),
            created_by: record.args().join(" "),
            author: request.author,
            comment: request.message,
            empty_layer: false,
        };
        let paused = request.pause && record.state.status == Status::Running;
        if paused {
            self.containers().pause(id).await?;
        }
        let wanted = Wanted { snapshot: id.as_str(), base, base_owner: &record.owner, owner, name, config, step };
        let made = self.images().assemble(self.snapshots(), wanted).await;
        if paused {
            // It may have been killed, or thawed by somebody else, meanwhile.
            match self.containers().unpause(id).await {
                Err(error) if entry.with(|record| record.state.status) == Status::Paused => return Err(error.into()),
                _ => {}
            }
        }
        let image = made.map_err(failed)?;
        let action = Action::Committed { image: image.id().to_string() };
        self.events().publish(&record.owner, Kind::Container, id.as_str(), action, record.attributes());
        Ok(image)
    }
}

/// What the container was told, over what its image says.
fn as_run(record: &container::Record, image: &RunConfig) -> RunConfig {
    let spec = &record.spec;
    let mut config = image.clone();
    match (&spec.entrypoint, &spec.command) {
        (Some(entrypoint), command) => {
            config.entrypoint = entrypoint.iter().filter(|word| !word.is_empty()).cloned().collect();
            config.cmd = command.clone().unwrap_or_default();
        }
        (None, Some(command)) if !command.is_empty() => config.cmd.clone_from(command),
        (None, _) => {}
    }
    for pair in spec.env.iter().filter(|pair| pair.contains('=')) {
        set_variable(&mut config.env, pair);
    }
    let given = |text: &Option<String>, place: &mut String| {
        if let Some(text) = text {
            text.clone_into(place);
        }
    };
    given(&spec.working_dir, &mut config.working_dir);
    given(&spec.user, &mut config.user);
    given(&spec.stop_signal, &mut config.stop_signal);
    config.labels = record.labels();
    for port in &spec.ports {
        let protocol = format!("{:?}", port.protocol).to_ascii_lowercase();
        config.exposed_ports.insert(format!("{}/{protocol}", port.container_port), serde_json::json!({}));
    }
    config
}
