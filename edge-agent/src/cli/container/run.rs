//! `container run`, `create`, `start`, `exec`, `attach`.

use std::{path::Path, process::ExitCode};

use anyhow::{Context, bail};
use clap::{ArgAction, Args};
use container_engine::container::{ContainerSpec, Created, ExecSpec, Inspect};
use serde_json::Value;

use super::args::{CreateArgs, Pull};
use crate::{
    cli::{
        attach::{Attached, Ended, Wish, check_terminal},
        engine::{Output, flag},
        image, out, parse, print_error, terminal,
    },
    config::Config,
    control::{EngineError, encode},
    engine_api::wire::ImageDetails,
};

/// Leaves a terminal unless told otherwise.
const DETACH_KEYS: &str = "ctrl-p,ctrl-q";

#[derive(Debug, Args)]
pub struct Run {
    /// In the background; prints the id
    #[arg(long, short)]
    detach: bool,
    /// Keys that leave the terminal
    #[arg(long, value_name = "KEYS", default_value = DETACH_KEYS)]
    detach_keys: String,
    /// Hand signals on to the container
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    sig_proxy: bool,
    #[command(flatten)]
    create: CreateArgs,
}

#[derive(Debug, Args)]
pub struct Create {
    #[command(flatten)]
    create: CreateArgs,
}

impl Run {
    pub async fn run(&self, to: &Output<'_>, config: &Config) -> anyhow::Result<ExitCode> {
        let (stdin, tty) = self.create.stdio();
        if !self.detach {
            check_terminal(stdin, tty)?;
        }
        let keys = parse::detach_keys(&self.detach_keys).map_err(anyhow::Error::msg)?;
        let created = create(to, &self.create, config).await?;
        let id = created.id.as_str();
        let ended = if self.detach {
            start(to, id).await.map(|()| out(id)).map(|()| Ended::Detached)
        } else {
            let signals_to = self.sig_proxy.then(|| id.to_owned());
            let wish = Wish { stdin, tty, detach_keys: keys, signals_to };
            foreground(to, id, wish, true).await
        };
        let ended = match ended {
            // One that could not be started does not end either, so nobody else removes it.
            Err(error)
                if self.create.rm && error.downcast_ref::<EngineError>().is_some_and(EngineError::is_refusal) =>
            {
                if let Err(problem) = to.engine.delete::<Value>(&to.container(id, "", &[("force", flag(true))])).await {
                    tracing::debug!(%problem, "a container that could not be started stays");
                }
                return Err(error);
            }
            other => other?,
        };
        if self.create.rm && ended != Ended::Detached {
            // Gone before this command ends: a script may use the name again. One that is gone already is what is wanted.
            let removed = to.container(id, "/wait", &[("for", Some("removed".to_owned()))]);
            if let Err(error) = to.engine.post::<Value>(&removed).await
                && !error.is_not_found()
            {
                tracing::debug!(%error, "the end of the container's removal was not seen");
            }
        }
        Ok(ended.code())
    }
}

impl Create {
    pub async fn run(&self, to: &Output<'_>, config: &Config) -> anyhow::Result<ExitCode> {
        let created = create(to, &self.create, config).await?;
        out(created.id);
        Ok(ExitCode::SUCCESS)
    }
}

/// Creates; pulls the image first where that is wanted or needed.
async fn create(to: &Output<'_>, args: &CreateArgs, config: &Config) -> anyhow::Result<Created> {
    if let Some(path) = &args.cidfile
        && path.exists()
    {
        bail!("{} is there already: remove it, or name another --cidfile", path.display());
    }
    let mut spec = args.spec(to.owner.clone())?;
    if spec.log == container_engine::container::LogOptions::default() {
        (spec.log.max_bytes, spec.log.max_files) = (config.engine.log_max_bytes, config.engine.log_max_files);
    }
    if args.pull == Pull::Always {
        image::pull(to, args.image(), args.platform.as_deref(), args.quiet).await?;
    }
    if args.publishes_all() {
        publish_all(to, args, &mut spec).await?;
    }
    let created = match to.engine.post_value::<Created>(&to.url("/v1/containers", &[]), &spec).await {
        Err(error) if error.is_not_found() && args.pull == Pull::Missing && is_absent(to, args.image()).await => {
            image::pull(to, args.image(), args.platform.as_deref(), args.quiet).await?;
            to.engine.post_value(&to.url("/v1/containers", &[]), &spec).await?
        }
        other => other?,
    };
    for warning in &created.warnings {
        print_error(&anyhow::anyhow!("{warning}"));
    }
    if let Some(path) = &args.cidfile {
        write_id(path, created.id.as_str())?;
    }
    Ok(created)
}

fn write_id(path: &Path, id: &str) -> anyhow::Result<()> {
    let write = || {
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).open(path)?;
        std::io::Write::write_all(&mut file, id.as_bytes())
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

async fn details(to: &Output<'_>, image: &str) -> Result<ImageDetails, EngineError> {
    to.engine.get(&to.url(&format!("/v1/images/{}", encode(image)), &[])).await
}

async fn is_absent(to: &Output<'_>, image: &str) -> bool {
    details(to, image).await.is_err_and(|error| error.is_not_found())
}

/// `-P`: what the image exposes and no `-p` has published.
async fn publish_all(to: &Output<'_>, args: &CreateArgs, spec: &mut ContainerSpec) -> anyhow::Result<()> {
    let image = match details(to, args.image()).await {
        Err(error) if error.is_not_found() && args.pull == Pull::Missing => {
            image::pull(to, args.image(), args.platform.as_deref(), args.quiet).await?;
            details(to, args.image()).await?
        }
        other => other?,
    };
    for text in image.config["config"]["ExposedPorts"].as_object().into_iter().flat_map(|map| map.keys()) {
        for port in parse::exposed(text).map_err(anyhow::Error::msg)? {
            let is_same = |it: &&container_engine::container::PortMapping| {
                (it.container_port, it.protocol) == (port.container_port, port.protocol)
            };
            if spec.ports.iter().find(is_same).is_none() {
                spec.ports.push(port);
            }
        }
    }
    Ok(())
}

async fn start(to: &Output<'_>, id: &str) -> anyhow::Result<()> {
    to.engine.post::<Value>(&to.container(id, "/start", &[])).await?;
    Ok(())
}

/// Attached first, then started where that is to be done: so nothing of the output is missed.
async fn foreground(to: &Output<'_>, id: &str, wish: Wish, starts: bool) -> anyhow::Result<Ended> {
    let pairs = [("stdin", flag(wish.stdin)), ("wait", flag(starts))];
    let stream = to.engine.upgrade(&to.container(id, "/attach", &pairs), None::<&()>).await?;
    let attached = Attached::new(stream, wish)?;
    if starts {
        start(to, id).await?;
    }
    attached.follow(to.engine).await
}

#[derive(Debug, Args)]
pub struct Start {
    /// Attach to its output, and end with its exit code
    #[arg(long, short)]
    attach: bool,
    /// Attach to its input too
    #[arg(long, short)]
    interactive: bool,
    /// Keys that leave the terminal
    #[arg(long, value_name = "KEYS", default_value = DETACH_KEYS)]
    detach_keys: String,
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Start {
    pub async fn run(&self, to: &Output<'_>) -> anyhow::Result<ExitCode> {
        if !self.attach && !self.interactive {
            let one = async |name: &str| {
                start(to, name).await?;
                out(name);
                Ok(())
            };
            return Ok(to.each(&self.containers, one).await);
        }
        let [name] = &self.containers[..] else { bail!("one container at a time can be attached to") };
        let container: Inspect = to.engine.get(&to.container(name, "", &[])).await?;
        let wish = Wish {
            stdin: self.interactive && container.spec.stdin,
            tty: container.spec.tty,
            detach_keys: parse::detach_keys(&self.detach_keys).map_err(anyhow::Error::msg)?,
            signals_to: Some(container.id.to_string()),
        };
        check_terminal(wish.stdin, wish.tty)?;
        Ok(foreground(to, container.id.as_str(), wish, true).await?.code())
    }
}

#[derive(Debug, Args)]
pub struct Attach {
    /// Leave its input alone
    #[arg(long)]
    no_stdin: bool,
    /// Hand signals on to the container
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    sig_proxy: bool,
    /// Keys that leave the terminal
    #[arg(long, value_name = "KEYS", default_value = DETACH_KEYS)]
    detach_keys: String,
    /// Name or id
    container: String,
}

impl Attach {
    pub async fn run(&self, to: &Output<'_>) -> anyhow::Result<ExitCode> {
        let container: Inspect = to.engine.get(&to.container(&self.container, "", &[])).await?;
        if !container.state.status.is_alive() {
            bail!("container {} does not run: start it with `container start -a`", self.container);
        }
        let wish = Wish {
            stdin: !self.no_stdin && container.spec.stdin,
            tty: container.spec.tty,
            detach_keys: parse::detach_keys(&self.detach_keys).map_err(anyhow::Error::msg)?,
            signals_to: self.sig_proxy.then(|| container.id.to_string()),
        };
        check_terminal(wish.stdin, wish.tty)?;
        Ok(foreground(to, container.id.as_str(), wish, false).await?.code())
    }
}

#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools)] // Each is a flag that people type.
pub struct Exec {
    /// Keep standard input open
    #[arg(long, short)]
    interactive: bool,
    /// With a terminal
    #[arg(long, short)]
    tty: bool,
    /// In the background
    #[arg(long, short)]
    detach: bool,
    /// Variable: NAME=VALUE
    #[arg(long, short, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// File of variables
    #[arg(long, value_name = "FILE")]
    env_file: Vec<std::path::PathBuf>,
    /// Directory in the container
    #[arg(long, short, value_name = "DIR")]
    workdir: Option<String>,
    /// User: NAME|UID[:GROUP|GID]
    #[arg(long, short, value_name = "USER")]
    user: Option<String>,
    /// All capabilities
    #[arg(long)]
    privileged: bool,
    /// Keys that leave the terminal
    #[arg(long, value_name = "KEYS", default_value = DETACH_KEYS)]
    detach_keys: String,
    /// Container, then the command with its arguments
    #[arg(required = true, num_args = 2.., trailing_var_arg = true, value_names = ["CONTAINER", "COMMAND"])]
    words: Vec<String>,
}

impl Exec {
    /// A command in a container, with nothing special about it.
    pub fn of(container: &str, command: Vec<String>, interactive: bool, tty: bool) -> Self {
        let words = std::iter::once(container.to_owned()).chain(command).collect();
        Self {
            interactive,
            tty,
            detach: false,
            env: Vec::new(),
            env_file: Vec::new(),
            workdir: None,
            user: None,
            privileged: false,
            detach_keys: DETACH_KEYS.to_owned(),
            words,
        }
    }

    pub async fn run(&self, to: &Output<'_>) -> anyhow::Result<ExitCode> {
        if !self.detach {
            check_terminal(self.interactive, self.tty)?;
        }
        let here = |name: &str| std::env::var(name).ok();
        let mut env = Vec::new();
        for file in &self.env_file {
            env.extend(parse::env_file(file, here).map_err(anyhow::Error::msg)?);
        }
        for text in &self.env {
            env.extend(parse::env_of(text, here).map_err(anyhow::Error::msg)?);
        }
        let (container, command) = self.words.split_first().context("name a container and a command")?;
        let spec = ExecSpec {
            command: command.to_vec(),
            env,
            working_dir: self.workdir.clone(),
            user: self.user.clone(),
            tty: self.tty,
            stdin: self.interactive && !self.detach,
            privileged: self.privileged,
        };
        if self.detach {
            let url = to.container(container, "/exec", &[("detach", flag(true))]);
            let exec: Value = to.engine.post_value(&url, &spec).await?;
            out(exec["id"].as_str().unwrap_or_default());
            return Ok(ExitCode::SUCCESS);
        }
        let size = if self.tty { terminal::size() } else { None };
        let pairs = [
            ("rows", size.map(|(rows, _)| rows.to_string())),
            ("columns", size.map(|(_, columns)| columns.to_string())),
        ];
        let stream = to.engine.upgrade(&to.container(container, "/exec", &pairs), Some(&spec)).await?;
        let wish = Wish {
            stdin: spec.stdin,
            tty: spec.tty,
            detach_keys: parse::detach_keys(&self.detach_keys).map_err(anyhow::Error::msg)?,
            signals_to: None,
        };
        Ok(Attached::new(stream, wish)?.follow(to.engine).await?.code())
    }
}
