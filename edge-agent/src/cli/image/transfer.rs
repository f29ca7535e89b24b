//! `image pull` and `image push`.

use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use container_engine::{
    reference::ImageRef,
    registry::{Credentials, DockerConfig},
};

use super::progress::Progress;
use crate::{
    cli::{engine::Output, out},
    engine_api::wire::{Line, Transfer},
};

#[derive(Debug, Args)]
pub struct Pull {
    /// Such as linux/arm64; this machine's where absent
    #[arg(long)]
    platform: Option<String>,
    /// Also what is for other platforms, kept compressed to be pushed
    #[arg(long)]
    all_platforms: bool,
    /// The name alone, when it is done
    #[arg(long, short)]
    quiet: bool,
    /// Images
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Push {
    /// What is for all platforms, which has to be here; else only what is for this board
    #[arg(long)]
    all_platforms: bool,
    /// The name alone, when it is done
    #[arg(long, short)]
    quiet: bool,
    /// Images
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

/// How a transfer ended.
struct Done {
    image: String,
    digest: String,
    changed: bool,
    offline: Option<String>,
}

impl Pull {
    pub async fn run(&self, to: &Output<'_>) -> anyhow::Result<ExitCode> {
        let one = async |image: &str| {
            let mut progress = Progress::new(self.quiet || to.json, false);
            let done =
                transfer(to, "pull", image, (self.platform.as_deref(), self.all_platforms), &mut progress).await?;
            drop(progress);
            if self.quiet && !to.json {
                out(done.image);
            } else if !to.json {
                out(format!("Digest: {}", done.digest));
                out(status(&done));
                out(done.image);
            }
            Ok(())
        };
        Ok(to.each(&self.images, one).await)
    }
}

impl Push {
    pub async fn run(&self, to: &Output<'_>) -> anyhow::Result<ExitCode> {
        let one = async |image: &str| {
            let mut progress = Progress::new(self.quiet || to.json, false);
            if let Ok(name) = image.parse::<ImageRef>() {
                progress.say(&format!("The push refers to repository [{}]", name.name()));
            }
            let done = transfer(to, "push", image, (None, self.all_platforms), &mut progress).await?;
            drop(progress);
            if self.quiet && !to.json {
                out(done.image);
            } else if !to.json {
                let tag = done.image.parse::<ImageRef>().ok().and_then(|it| it.tag().map(str::to_owned));
                out(format!("{}: digest: {}", tag.unwrap_or_else(|| "latest".to_owned()), done.digest));
            }
            Ok(())
        };
        Ok(to.each(&self.images, one).await)
    }
}

/// Pulls for `container run`: progress goes to standard error, as standard output is the container's.
pub async fn pull(to: &Output<'_>, image: &str, platform: Option<&str>, quiet: bool) -> anyhow::Result<()> {
    let mut progress = Progress::new(quiet, true);
    progress.say(&format!("Unable to find image '{image}' locally"));
    let quiet_json = Output { engine: to.engine, owner: to.owner.clone(), json: false };
    let done = transfer(&quiet_json, "pull", image, (platform, false), &mut progress).await?;
    progress.say(&format!("Digest: {}", done.digest));
    progress.say(&status(&done));
    Ok(())
}

fn status(done: &Done) -> String {
    let name = done.image.parse::<ImageRef>().map_or_else(|_| done.image.clone(), |it| it.familiar());
    match (&done.offline, done.changed) {
        (Some(problem), _) => format!("Status: The registry cannot be asked ({problem}); using the local image {name}"),
        (None, true) => format!("Status: Downloaded newer image for {name}"),
        (None, false) => format!("Status: Image is up to date for {name}"),
    }
}

async fn transfer(
    to: &Output<'_>,
    verb: &str,
    image: &str,
    (platform, all_platforms): (Option<&str>, bool),
    progress: &mut Progress,
) -> anyhow::Result<Done> {
    let name: ImageRef = image.parse()?;
    let request = Transfer {
        image: image.to_owned(),
        owner: to.owner.clone(),
        platform: platform.map(str::to_owned),
        all_platforms,
        credentials: credentials(name.registry()).await?,
    };
    let response = to.engine.send("POST", &format!("/v1/images/{verb}"), Some(&request)).await?;
    let mut lines = to.engine.lines(response);
    while let Some(line) = lines.next::<Line>().await? {
        if to.json {
            out(serde_json::to_string(&line)?);
        }
        progress.show(&line);
        if let Line::Done { image, digest, changed, offline } = line {
            return Ok(Done { image, digest, changed, offline });
        }
    }
    anyhow::bail!("the agent broke off the {verb} of {image}; what was fetched is kept: run the command again")
}

/// What the user's own docker configuration says of a registry.
async fn credentials(registry: &str) -> anyhow::Result<Credentials> {
    let registry = registry.to_owned();
    let read = move || anyhow::Ok(DockerConfig::load(&DockerConfig::user_path())?.credentials(&registry)?);
    tokio::task::spawn_blocking(read).await.context("reading the docker configuration panicked")?
}
