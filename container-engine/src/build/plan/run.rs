//! RUN: the command with its shell and heredocs, what it is mounted, what it may reach.

use super::{Action, Planner};
use crate::build::args::is_proxy;
use crate::build::dockerfile::instruction::{Network, Run};
use crate::build::dockerfile::mount::{self, Device, Mount, MountKind, Sharing};
use crate::build::dockerfile::shell::{Shell, Variables as _};
use crate::build::dockerfile::{DockerfileError, Kind, Lines, Result, argument, heredoc, quote};
use crate::build::graph::{Node, Source};
use crate::build::ignore;

/// A command of a build.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedRun {
    /// With the shell.
    pub arguments: Vec<String>,
    /// By name: those of the image and ARGs.
    pub env: Vec<(String, String)>,
    /// Proxies: they are given, and count neither for the cache nor in the history.
    pub proxies: Vec<(String, String)>,
    /// Where it starts.
    pub dir: String,
    /// As whom; empty for root.
    pub user: String,
    /// What it finds besides its files.
    pub mounts: Vec<PlannedMount>,
    /// What it reaches.
    pub network: Network,
    /// Without a sandbox.
    pub insecure: bool,
    /// Devices.
    pub devices: Vec<Device>,
    /// A heredoc with `#!`: the file that is run.
    pub script: Option<Script>,
}

/// A file that is there for one command, mode 0755.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    /// Its folder, read-only.
    pub folder: String,
    /// Its name.
    pub name: String,
    /// What is in it.
    pub data: String,
}

/// What a mount shows.
#[derive(Debug, Clone, PartialEq)]
pub enum MountFrom {
    /// Files; what is written to them is thrown away.
    Bind(Source),
    /// A folder that stays.
    Cache {
        /// Which.
        id: String,
        /// Who else may use it at the same time.
        sharing: Sharing,
        /// What is in it at first.
        first: Source,
    },
    /// Memory of at most this many bytes.
    Tmpfs(Option<i64>),
    /// A secret, as a file, a variable or both.
    Secret {
        /// Which.
        id: String,
        /// The variable.
        env: Option<String>,
        /// It must be there.
        required: bool,
    },
    /// The socket of an agent.
    Ssh {
        /// Which.
        id: String,
        /// It must be there.
        required: bool,
    },
}

/// A mount of a command.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedMount {
    /// Of what.
    pub from: MountFrom,
    /// The path in that.
    pub source: String,
    /// To where; `None` for a secret that is only a variable, and an agent whose place is the engine's to choose.
    pub target: Option<String>,
    /// Not writable.
    pub read_only: bool,
    /// Owner, group, permissions, where given.
    pub owner: (Option<u32>, Option<u32>, Option<u32>),
}

impl<'a> Planner<'a> {
    pub(super) fn run(&mut self, run: &'a Run, node: &'a Node) -> Result<()> {
        let lines = node.step.lines;
        let mut parsed = Vec::new();
        for text in &run.mounts {
            parsed.push(mount::parse(text, &mut |value| self.expand(value, lines))?);
        }
        let (arguments, script, note) = command(run)?;
        let arguments = if run.command.shell { self.with_shell(&arguments) } else { arguments };
        let mut mounts = Vec::new();
        for (mount, source) in parsed.iter().zip(&node.sources) {
            mounts.push(self.mount(mount, source, lines)?);
        }
        let raw = Shell { raw_quotes: true, raw_escapes: true, keep_unset: true, ..self.graph.shell };
        let title = self.title(&format!("{}{note}", node.step.code), raw, node.on_build)?;
        let history = self.remember(format!("RUN {} # buildkit", self.with_args(&arguments)), true)?;
        let proxies = self.graph.options.build_args.iter().filter(|it| is_proxy(it.0));
        let env: Vec<_> = self.env.pairs().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        self.spend(env.iter().map(|it| it.0.len() + it.1.len()).sum())?;
        let planned = PlannedRun {
            arguments,
            env,
            proxies: proxies.map(|(name, value)| (name.clone(), value.clone())).collect(),
            dir: self.config.config.working_dir.clone(),
            user: self.config.config.user.clone(),
            mounts,
            network: run.network,
            insecure: run.insecure,
            devices: run.devices.clone(),
            script,
        };
        self.push(title, node, Action::Run(Box::new(planned)), history);
        Ok(())
    }

    /// The command with the ARGs in front that it can see: so the history tells them.
    fn with_args(&self, arguments: &[String]) -> String {
        let value = |name: &str| self.env.get(name).map(str::to_owned);
        let pair = |it: &crate::build::dockerfile::instruction::ArgDefinition| {
            let value = value(&it.name).or_else(|| it.value.clone()).unwrap_or_default();
            format!("{}={value}", it.name)
        };
        let mut all: Vec<String> = self.args.iter().map(pair).collect();
        if !all.is_empty() {
            all.insert(0, format!("|{}", all.len()));
        }
        all.extend(arguments.iter().cloned());
        all.join(" ")
    }

    fn mount(&mut self, mount: &Mount, source: &Source, lines: Lines) -> Result<PlannedMount> {
        if let Source::Stage(index) = source
            && self.place(*index).is_none()
        {
            let (from, target) = (quote(&mount.from), quote(&mount.target));
            let what =
                format!("cannot mount from stage {from} to {target}, stage needs to be defined before current command");
            return Err(DockerfileError::new(Kind::Stage, what));
        }
        let owner = (mount.uid, mount.gid, mount.mode);
        let (from, target) = match mount.kind {
            MountKind::Secret => self.secret_mount(mount, lines)?,
            MountKind::Ssh => {
                if !mount.source.is_empty() {
                    return Err(argument("ssh does not support source"));
                }
                let id = if mount.id.is_empty() { "default".to_owned() } else { mount.id.clone() };
                self.asks.ssh.entry(id.clone()).or_insert((mount.required, lines));
                let target = (!mount.target.is_empty()).then(|| mount.target.clone());
                (MountFrom::Ssh { id, required: mount.required }, target)
            }
            MountKind::Tmpfs => (MountFrom::Tmpfs(mount.size), Some(self.target(mount)?)),
            MountKind::Bind => (MountFrom::Bind(source.clone()), Some(self.target(mount)?)),
            MountKind::Cache => {
                let id = if mount.id.is_empty() { ignore::clean(&mount.target) } else { mount.id.clone() };
                let first = if mount.from.is_empty() { Source::Scratch } else { source.clone() };
                let sharing = mount.sharing.unwrap_or(Sharing::Shared);
                (MountFrom::Cache { id, sharing, first }, Some(self.target(mount)?))
            }
        };
        let source = ignore::clean(&format!("/{}", mount.source));
        Ok(PlannedMount { from, source, target, read_only: mount.read_only, owner })
    }

    fn secret_mount(&mut self, mount: &Mount, lines: Lines) -> Result<(MountFrom, Option<String>)> {
        let base = |path: &str| path.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned();
        let mut id = if mount.source.is_empty() { mount.id.clone() } else { mount.source.clone() };
        if id.is_empty() {
            if mount.target.is_empty() {
                return Err(argument("one of source, target required"));
            }
            id = base(&mount.target);
        }
        let target = match (&*mount.target, &mount.env) {
            ("", None) => Some(format!("/run/secrets/{}", base(&id))),
            ("", Some(_)) => None,
            (target, _) => Some(target.to_owned()),
        };
        self.asks.secrets.entry(id.clone()).or_insert((mount.required, lines));
        let env = mount.env.as_ref().map(|it| if it.is_empty() { id.clone() } else { it.clone() });
        Ok((MountFrom::Secret { id, env, required: mount.required }, target))
    }

    /// Where a mount goes: never over everything.
    fn target(&self, mount: &Mount) -> Result<String> {
        let target = if mount.target.starts_with('/') {
            ignore::clean(&mount.target)
        } else {
            ignore::clean(&format!("/{}/{}", self.config.config.working_dir, mount.target))
        };
        if target == "/" {
            return Err(argument(format!("invalid mount target {}", quote(&target))));
        }
        Ok(target)
    }
}

/// What is run, the file for it, and what progress shows besides.
fn command(run: &Run) -> Result<(Vec<String>, Option<Script>, String)> {
    let line = &run.command;
    let Some(first) = line.files.first() else { return Ok((line.arguments.clone(), None, String::new())) };
    let [text] = &line.arguments[..] else {
        return Err(argument(format!("parsing produced an invalid run command: [{}]", line.arguments.join(" "))));
    };
    if heredoc::parse(text).ok().flatten().is_none() {
        // The shell reads them: they are put back behind the line.
        let files = line.files.iter().map(|it| format!("\n{}{}", it.data, it.name));
        return Ok((vec![text.clone() + &files.collect::<String>()], None, String::new()));
    }
    let data = if first.chomp { heredoc::chomp(&first.data) } else { first.data.clone() };
    let note = format!(" ({})", heredoc::summary(&first.data));
    if !data.starts_with("#!") {
        return Ok((vec![data], None, note));
    }
    let folder = "/dev/pipes".to_owned();
    let path = ignore::clean(&format!("{folder}/{}", first.name));
    Ok((vec![path], Some(Script { folder, name: first.name.clone(), data }), note))
}
