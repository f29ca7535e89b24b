//! Why an operation on a container failed.

use std::{io, path::PathBuf};

use store::state::StateError;

use super::{
    ContainerId, Status, archive::ArchiveError, oci::ConfigError, roots::RootError, signal::SignalError,
    user::UserError,
};
use crate::{
    cgroup::CgroupError,
    ledger::AdmitError,
    network::{AttachError as NetworkAttachError, files::HostEntryError},
    owner::Owner,
    shim::{ProblemCode, ShimError, SpawnError},
};

/// No container, or more than one, answers to a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// None.
    #[error("no container {0:?}: `container ls --all` shows those there are")]
    NotFound(String),
    /// Several.
    #[error("{prefix:?} is the beginning of several container ids ({}): write more of it", matches.join(", "))]
    Ambiguous {
        /// What was written.
        prefix: String,
        /// Short ids of some of them.
        matches: Vec<String>,
    },
}

/// Why a container was not created.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The name is no name.
    #[error("{0:?} is no container name: two or more letters, digits, '_', '.' or '-', the first a letter or digit")]
    Name(String),
    /// The name is another's.
    #[error("the name {name:?} is in use by container {}: remove or rename that one, or choose another name", holder.short())]
    NameTaken {
        /// Which.
        name: String,
        /// By whom.
        holder: ContainerId,
    },
    /// For another kind of processor.
    #[error("image {image} is for {platform}, and this board is {host}: pull it for {host}, or choose another image")]
    Platform {
        /// Which.
        image: String,
        /// The image's.
        platform: String,
        /// The board's.
        host: String,
    },
    /// The specification.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A signal of the specification.
    #[error(transparent)]
    Signal(#[from] SignalError),
    /// A container that it refers to.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// The image, its snapshot or a volume.
    #[error("{0}")]
    Root(#[source] RootError),
    /// No range of user ids is free.
    #[error("all ranges of user ids are taken: remove containers that have a user namespace of their own")]
    NoIds,
    /// The engine's limit of containers.
    #[error("there are {0} containers, the most that this engine keeps: remove some")]
    TooMany(usize),
    /// The record.
    #[error("cannot record the container")]
    State(#[from] StateError),
    /// A file.
    #[error("cannot {what} {path}")]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Why a container was not started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No such container.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// It is being removed, or stands still.
    #[error("container {id} is {}: it cannot be started now", status.name())]
    State {
        /// Which.
        id: ContainerId,
        /// How it is.
        status: Status,
    },
    /// Somebody stopped or started it while its policy was about to start it.
    #[error("container {0} is not to be started again by itself any more")]
    StaysDown(ContainerId),
    /// No program of that name (exit code 127).
    #[error("{message}")]
    CommandNotFound {
        /// Which.
        id: ContainerId,
        /// The runtime's words.
        message: String,
    },
    /// The program may not be executed (exit code 126).
    #[error("{message}")]
    CommandNotExecutable {
        /// Which.
        id: ContainerId,
        /// The runtime's words.
        message: String,
    },
    /// The board is too full.
    #[error(transparent)]
    Admit(#[from] AdmitError),
    /// The specification.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The user.
    #[error(transparent)]
    User(#[from] UserError),
    /// A line for `/etc/hosts`.
    #[error(transparent)]
    HostEntry(#[from] HostEntryError),
    /// A container whose namespaces it joins does not run.
    #[error("container {0} does not run, and a namespace of it is to be joined: start it first")]
    NotJoinable(String),
    /// The mount's source is missing.
    #[error("{0} does not exist on this board: make it, or have it made with the mount")]
    NoSource(PathBuf),
    /// The path is no device.
    #[error("{0} is no device of this board")]
    NoDevice(PathBuf),
    /// The network.
    #[error("the network of container {id}: {source}")]
    Network {
        /// Which.
        id: ContainerId,
        /// Why.
        source: NetworkAttachError,
    },
    /// Snapshot or volume.
    #[error("{0}")]
    Root(#[source] RootError),
    /// Control groups.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The runtime or the shim said no.
    #[error("container {id} cannot be set up: {message}")]
    Setup {
        /// Which.
        id: ContainerId,
        /// The words of the shim or the runtime.
        message: String,
    },
    /// The shim.
    #[error(transparent)]
    Shim(#[from] ShimError),
    /// The record.
    #[error("cannot record the container")]
    Record(#[from] StateError),
    /// A file.
    #[error("cannot {what} {path}")]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Why anything else about a container failed.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// No such container.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// Not in a state for this.
    #[error("container {id} is {}: {need}", status.name())]
    State {
        /// Which.
        id: ContainerId,
        /// How it is.
        status: Status,
        /// What it would have to be, or what to do.
        need: &'static str,
    },
    /// The new name is no name.
    #[error("{0:?} is no container name: two or more letters, digits, '_', '.' or '-', the first a letter or digit")]
    Name(String),
    /// The new name is another's.
    #[error("the name {name:?} is in use by container {}: choose another", holder.short())]
    NameTaken {
        /// Which.
        name: String,
        /// By whom.
        holder: ContainerId,
    },
    /// It has no terminal.
    #[error("container {0} has no terminal")]
    NoTerminal(ContainerId),
    /// Another owner's.
    #[error("container {id} belongs to {owner}")]
    Owner {
        /// Which.
        id: ContainerId,
        /// Whose.
        owner: Owner,
    },
    /// Limits or a process that make no sense.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A signal.
    #[error(transparent)]
    Signal(#[from] SignalError),
    /// The user of an execution.
    #[error(transparent)]
    User(#[from] UserError),
    /// No such execution.
    #[error("no execution {0:?}: it was never made, or has ended and is forgotten")]
    NoExec(String),
    /// The execution was started already.
    #[error("execution {0} was started already: make another")]
    ExecStarted(String),
    /// No program of that name (exit code 127).
    #[error("{0}")]
    CommandNotFound(String),
    /// The program may not be executed (exit code 126).
    #[error("{0}")]
    CommandNotExecutable(String),
    /// Too many executions.
    #[error("{0} executions wait or run in this container, the most it may have: end some")]
    TooManyExecs(usize),
    /// The shim.
    #[error(transparent)]
    Shim(ShimError),
    /// The container ended, and its shim with it, while it was asked.
    #[error("container {0} has just ended")]
    Ended(ContainerId),
    /// It does not die.
    #[error("container {0} has not ended 30 s after SIGKILL: a process of it waits for a device or file system")]
    Immortal(ContainerId),
    /// Control groups.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Snapshot or volume.
    #[error("{0}")]
    Root(#[source] RootError),
    /// The network.
    #[error("{0}")]
    Network(#[from] NetworkAttachError),
    /// Files in or out.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The log.
    #[error(transparent)]
    Log(#[from] crate::logs::ReadError),
    /// The record.
    #[error("cannot record the container")]
    Record(#[from] StateError),
    /// A file.
    #[error("cannot {what} {path}")]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl ResolveError {
    /// The code told over the control socket.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotFound(_) => "not_found",
            Self::Ambiguous { .. } => "invalid",
        }
    }
}

impl CreateError {
    /// The code told over the control socket.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Name(_) | Self::Config(_) | Self::Signal(_) => "invalid",
            Self::NameTaken { .. } => "conflict",
            Self::Platform { .. } => "platform",
            Self::Resolve(error) => error.code(),
            Self::Root(error) => error.code,
            Self::NoIds | Self::TooMany(_) => "unavailable",
            Self::State(_) | Self::Io { .. } => "internal",
        }
    }

    /// Whether the same call, unchanged, may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::NoIds | Self::TooMany(_) | Self::NameTaken { .. } => true,
            Self::Root(error) => error.transient,
            _ => false,
        }
    }
}

impl StartError {
    /// The code told over the control socket.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Resolve(error) => error.code(),
            Self::State { .. } | Self::StaysDown(_) | Self::NotJoinable(_) => "conflict",
            Self::CommandNotFound { .. }
            | Self::CommandNotExecutable { .. }
            | Self::Config(_)
            | Self::User(_)
            | Self::HostEntry(_)
            | Self::NoSource(_)
            | Self::NoDevice(_) => "invalid",
            Self::Admit(_) => "unavailable",
            Self::Network { source, .. } => source.code(),
            Self::Root(error) => error.code,
            Self::Cgroup(_) | Self::Setup { .. } | Self::Shim(_) | Self::Record(_) | Self::Io { .. } => "internal",
        }
    }

    /// Docker's exit code for it: 125, 126 or 127.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::CommandNotFound { .. } => 127,
            Self::CommandNotExecutable { .. } => 126,
            _ => 125,
        }
    }

    /// Whether the same call, unchanged, may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Admit(error) => error.is_transient(),
            Self::Network { source, .. } => source.is_transient(),
            Self::Root(error) => error.transient,
            Self::NotJoinable(_) => true,
            _ => false,
        }
    }

    /// Of a shim that did not come to be.
    pub(super) fn spawn(id: &ContainerId, error: SpawnError) -> Self {
        match error {
            SpawnError::Create(problem) => Self::told(id, problem.code, problem.message),
            other => Self::Setup { id: id.clone(), message: board::tasks::chain(&other) },
        }
    }

    /// Of a shim that refused.
    pub(super) fn shim(id: &ContainerId, error: ShimError) -> Self {
        match error {
            ShimError::Refused(problem) => Self::told(id, problem.code, problem.message),
            other => Self::Shim(other),
        }
    }

    fn told(id: &ContainerId, code: ProblemCode, message: String) -> Self {
        let id = id.clone();
        match code {
            ProblemCode::CommandNotFound => Self::CommandNotFound { id, message },
            ProblemCode::CommandNotExecutable => Self::CommandNotExecutable { id, message },
            _ => Self::Setup { id, message },
        }
    }
}

impl ContainerError {
    /// The code told over the control socket.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Resolve(error) => error.code(),
            Self::State { .. } | Self::NameTaken { .. } | Self::ExecStarted(_) | Self::Ended(_) => "conflict",
            Self::Name(_)
            | Self::NoTerminal(_)
            | Self::Config(_)
            | Self::Signal(_)
            | Self::User(_)
            | Self::CommandNotFound(_)
            | Self::CommandNotExecutable(_) => "invalid",
            Self::Owner { .. } => "denied",
            Self::NoExec(_) => "not_found",
            Self::TooManyExecs(_) | Self::Immortal(_) => "unavailable",
            Self::Shim(error) => match error.code() {
                Some(ProblemCode::NotFound) => "not_found",
                Some(ProblemCode::Conflict) => "conflict",
                Some(ProblemCode::Invalid) => "invalid",
                _ => "internal",
            },
            Self::Root(error) => error.code,
            Self::Network(error) => error.code(),
            Self::Archive(error) => error.code(),
            Self::Log(_) | Self::Cgroup(_) | Self::Record(_) | Self::Io { .. } => "internal",
        }
    }

    /// Docker's exit code where it is that of `exec`: 125, 126 or 127.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::CommandNotFound(_) => 127,
            Self::CommandNotExecutable(_) => 126,
            _ => 125,
        }
    }

    /// Whether the same call, unchanged, may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Immortal(_) | Self::TooManyExecs(_) | Self::Shim(ShimError::Silent { .. }) => true,
            Self::Root(error) => error.transient,
            Self::Network(error) => error.is_transient(),
            _ => false,
        }
    }

    /// Of a shim: one that is gone means that the container has just ended.
    pub(super) fn shim(id: &ContainerId, error: ShimError) -> Self {
        match error {
            error if error.is_gone() => Self::Ended(id.clone()),
            ShimError::Refused(problem) if problem.code == ProblemCode::CommandNotFound => {
                Self::CommandNotFound(problem.message)
            }
            ShimError::Refused(problem) if problem.code == ProblemCode::CommandNotExecutable => {
                Self::CommandNotExecutable(problem.message)
            }
            other => Self::Shim(other),
        }
    }
}
