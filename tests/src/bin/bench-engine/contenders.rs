//! How each contender is told to do the same thing.

use std::{path::Path, process::Command};

use anyhow::Result;

use crate::daemons::{self, Daemon};

/// Somebody who pulls, runs and pushes.
pub struct Contender {
    /// As the tables call it.
    pub name: &'static str,
    begin: Vec<String>,
    daemon: Option<Daemon>,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Agent,
    Ctr,
    Docker,
    Podman,
    Buildah,
}

/// A command's words.
fn command(begin: &[String], rest: &[&str]) -> Command {
    let mut command = Command::new(&begin[0]);
    command.args(&begin[1..]).args(rest);
    command
}

impl Contender {
    /// All that this machine has.
    pub fn all(dir: &Path) -> Result<Vec<Self>> {
        let (agent, agent_begin) = daemons::agent(dir)?;
        let (ctr, ctr_begin) = daemons::containerd(dir)?;
        let own = |name: &str| {
            let dir = dir.join(name).display().to_string();
            let run = format!("/run/bench-{name}");
            let words = [name, "--root", &dir, "--runroot", &run, "--storage-driver", "overlay"];
            // Debian's crun refuses hosts with both versions of control groups.
            let runtime: &[&str] = if name == "podman" { &["--runtime", "/usr/sbin/runc"] } else { &[] };
            words.iter().chain(runtime).map(|it| (*it).to_owned()).collect()
        };
        let it = |name, begin, daemon, kind| Self { name, begin, daemon, kind };
        let mut all = vec![
            it("edge-agent", agent_begin, Some(agent), Kind::Agent),
            it("containerd (ctr)", ctr_begin, Some(ctr), Kind::Ctr),
        ];
        if let Some((docker, begin)) = daemons::dockerd(dir)? {
            all.push(it("dockerd", begin, Some(docker), Kind::Docker));
        }
        all.push(it("podman", own("podman"), None, Kind::Podman));
        all.push(it("buildah", own("buildah"), None, Kind::Buildah));
        Ok(all)
    }

    /// Its daemon's process, if it has one.
    pub fn daemon(&self) -> Vec<u32> {
        self.daemon.iter().map(Daemon::pid).collect()
    }

    /// Whether it is the one that is measured.
    pub fn is_ours(&self) -> bool {
        self.kind == Kind::Agent
    }

    /// Fetches and unpacks.
    pub fn pull(&self, image: &str) -> Command {
        match self.kind {
            Kind::Agent => command(&self.begin, &["image", "pull", "--quiet", image]),
            Kind::Ctr => command(&self.begin, &["image", "pull", "--plain-http", image]),
            Kind::Docker => command(&self.begin, &["pull", "--quiet", image]),
            Kind::Podman | Kind::Buildah => command(&self.begin, &["pull", "--quiet", "--tls-verify=false", image]),
        }
    }

    /// Forgets it, blobs and all.
    pub fn remove(&self, image: &str) -> Result<()> {
        let commands: &[&[&str]] = match self.kind {
            Kind::Agent => &[&["image", "rm", image], &["image", "prune", "--all", "--force"]],
            Kind::Ctr => &[&["image", "rm", "--sync", image]],
            Kind::Docker | Kind::Podman => &[&["rmi", "--force", image]],
            Kind::Buildah => &[&["rmi", image]],
        };
        for words in commands {
            crate::sample::time(&mut command(&self.begin, words))?;
        }
        Ok(())
    }

    /// Runs a command in a new container without a network, to its end.
    pub fn run(&self, image: &str, words: &[&str]) -> Option<Command> {
        let name = format!("run-{}", std::process::id());
        let begin = match self.kind {
            Kind::Agent => vec!["container", "run", "--rm", "--network", "none", image],
            Kind::Ctr => vec!["run", "--rm", image, &name],
            Kind::Docker | Kind::Podman => vec!["run", "--rm", "--network=none", image],
            Kind::Buildah => return None,
        };
        Some(command(&self.begin, &[&begin[..], words].concat()))
    }

    /// Starts a container that sleeps, in the background.
    pub fn detach(&self, image: &str, name: &str) -> Option<Command> {
        let begin = match self.kind {
            Kind::Agent => vec!["container", "run", "-d", "--name", name, "--network", "none", image],
            Kind::Ctr => vec!["run", "-d", image, name],
            Kind::Docker | Kind::Podman => vec!["run", "-d", "--name", name, "--network=none", image],
            Kind::Buildah => return None,
        };
        Some(command(&self.begin, &[&begin[..], &["sleep", "3600"]].concat()))
    }

    /// Runs `true` in a container that runs.
    pub fn exec(&self, name: &str) -> Option<Command> {
        match self.kind {
            Kind::Agent => Some(command(&self.begin, &["container", "exec", name, "true"])),
            Kind::Ctr => Some(command(&self.begin, &["task", "exec", "--exec-id", "e", name, "true"])),
            Kind::Docker | Kind::Podman => Some(command(&self.begin, &["exec", name, "true"])),
            Kind::Buildah => None,
        }
    }

    /// Ends and forgets a container.
    pub fn kill(&self, name: &str) -> Result<()> {
        match self.kind {
            Kind::Agent => crate::sample::time(&mut command(&self.begin, &["container", "rm", "--force", name])),
            Kind::Ctr => {
                crate::sample::time(&mut command(&self.begin, &["task", "rm", "--force", name]))?;
                crate::sample::time(&mut command(&self.begin, &["container", "rm", name]))
            }
            _ => crate::sample::time(&mut command(&self.begin, &["rm", "--force", name])),
        }
        .map(drop)
    }

    /// Gives a present image a second name.
    pub fn tag(&self, from: &str, to: &str) -> Result<()> {
        let words: &[&str] = match self.kind {
            Kind::Agent | Kind::Ctr => &["image", "tag", from, to],
            _ => &["tag", from, to],
        };
        crate::sample::time(&mut command(&self.begin, words)).map(drop)
    }

    /// Sends a present image.
    pub fn push(&self, image: &str) -> Command {
        match self.kind {
            Kind::Agent => command(&self.begin, &["image", "push", "--quiet", image]),
            Kind::Ctr => command(&self.begin, &["image", "push", "--plain-http", image]),
            Kind::Docker => command(&self.begin, &["push", image]),
            Kind::Podman | Kind::Buildah => command(&self.begin, &["push", "--quiet", "--tls-verify=false", image]),
        }
    }
}
