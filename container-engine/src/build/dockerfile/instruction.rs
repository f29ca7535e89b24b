//! The instructions of a Dockerfile as values: every one, with every flag that the current reference has.
//!
//! Variables are not expanded here: what they are is known only when a stage is planned.

use super::line::Pair;
use super::mount::Device;
use super::source::Lines;

/// A Dockerfile: what stands before the first FROM, and its stages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dockerfile {
    /// ARGs before the first FROM.
    pub global: Vec<Step>,
    /// In order.
    pub stages: Vec<Stage>,
    /// `\`, or what `# escape=` says.
    pub escape: char,
}

/// From one FROM to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// Behind AS, in lower case.
    pub name: Option<String>,
    /// Image or stage, as written.
    pub base: String,
    /// `--platform`.
    pub platform: Option<String>,
    /// Its instructions.
    pub steps: Vec<Step>,
    /// `FROM` as written.
    pub keyword: String,
    /// The whole FROM line.
    pub code: String,
    /// Of the FROM.
    pub lines: Lines,
    /// Above the FROM.
    pub comments: Vec<String>,
    /// From a comment that begins with the name.
    pub description: String,
}

/// An instruction, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What it does.
    pub instruction: Instruction,
    /// Its name, as written.
    pub keyword: String,
    /// The whole line, as written.
    pub code: String,
    /// Where.
    pub lines: Lines,
    /// Above it.
    pub comments: Vec<String>,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Instruction {
    /// `ADD`
    Add(Add),
    /// `ARG`
    Arg(Vec<ArgDefinition>),
    /// `CMD`
    Cmd(CommandLine),
    /// `COPY`
    Copy(Copy),
    /// `ENTRYPOINT`
    Entrypoint(CommandLine),
    /// `ENV`
    Env(Vec<Pair>),
    /// `EXPOSE`, sorted
    Expose(Vec<String>),
    /// `HEALTHCHECK`
    Healthcheck(Healthcheck),
    /// `LABEL`
    Label(Vec<Pair>),
    /// `MAINTAINER`
    Maintainer(String),
    /// `ONBUILD`: the instruction that it keeps, heredocs included
    Onbuild(String),
    /// `RUN`
    Run(Run),
    /// `SHELL`
    Shell(Vec<String>),
    /// `STOPSIGNAL`
    StopSignal(String),
    /// `USER`
    User(String),
    /// `VOLUME`
    Volume(Vec<String>),
    /// `WORKDIR`
    Workdir(String),
}

/// One name of an ARG.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArgDefinition {
    /// Its name.
    pub name: String,
    /// The default.
    pub value: Option<String>,
    /// From a comment that begins with the name.
    pub description: String,
}

/// What ADD and COPY have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// Paths, for ADD also URLs and git repositories.
    pub sources: Vec<String>,
    /// Heredocs.
    pub contents: Vec<Content>,
    /// Where they go.
    pub destination: String,
    /// `--chown`
    pub chown: String,
    /// `--chmod`
    pub chmod: String,
    /// `--link`
    pub link: bool,
    /// `--exclude`
    pub exclude: Vec<String>,
}

/// A file that stands in the Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// Its name.
    pub name: String,
    /// What is in it.
    pub data: String,
    /// Variables in it are expanded.
    pub expand: bool,
}

/// `ADD`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Add {
    /// What, and to where.
    pub files: Files,
    /// `--checksum`
    pub checksum: String,
    /// `--keep-git-dir`
    pub keep_git_dir: Option<bool>,
    /// `--unpack`
    pub unpack: Option<bool>,
}

/// `COPY`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// What, and to where.
    pub files: Files,
    /// `--from`: stage, its number, image or named context; empty for the context.
    pub from: String,
    /// `--parents`
    pub parents: bool,
}

/// What CMD, ENTRYPOINT and RUN run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLine {
    /// Arguments, or the one that the shell gets.
    pub arguments: Vec<String>,
    /// Not the JSON form: the shell comes before it.
    pub shell: bool,
    /// Heredocs.
    pub files: Vec<InlineFile>,
}

/// A heredoc of RUN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InlineFile {
    /// What ends it.
    pub name: String,
    /// Its lines, tabs included.
    pub data: String,
    /// Leading tabs go.
    pub chomp: bool,
}

/// `RUN`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// What runs.
    pub command: CommandLine,
    /// `--mount`, as written: see [`super::mount::parse`].
    pub mounts: Vec<String>,
    /// `--network`
    pub network: Network,
    /// `--security=insecure`
    pub insecure: bool,
    /// `--device`
    pub devices: Vec<Device>,
}

/// What a RUN reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// What the build has.
    Default,
    /// Nothing.
    None,
    /// The host's.
    Host,
}

/// `HEALTHCHECK`; durations in nanoseconds, 0 where not given.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Healthcheck {
    /// `NONE`, or `CMD` or `CMD-SHELL` with arguments.
    pub test: Vec<String>,
    /// `--interval`
    pub interval: i64,
    /// `--timeout`
    pub timeout: i64,
    /// `--start-period`
    pub start_period: i64,
    /// `--start-interval`
    pub start_interval: i64,
    /// `--retries`
    pub retries: u32,
}

/// Names of all instructions.
pub const NAMES: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];
