//! What a build does: for each stage that is needed its steps, with every variable expanded, and the configuration that results.
//!
//! Pure: who runs the plan brings the files. Steps that only change the configuration are in the history and nowhere else.
//! What variables expand to is bounded over the whole file, since a few lines can double a value again and again.

mod config;
mod expose;
mod files;
mod run;

use std::collections::{BTreeMap, BTreeSet};

use super::args::{ArgInfo, Scope};
use super::dockerfile::instruction::{ArgDefinition, Instruction};
use super::dockerfile::lint::{Linter, Rule, Warnings};
use super::dockerfile::shell::{Shell, Variables as _};
use super::dockerfile::{DockerfileError, Kind, Lines, Result, expansion};
use super::graph::{Base, Bases, Graph, Node};
use super::rules;
use crate::image::{History, ImageConfig, RunConfig};
use crate::platform::Platform;

pub use files::{Copies, From, Inline, Mode};
pub use run::{MountFrom, PlannedMount, PlannedRun, Script};

/// What all values, commands and history of a build may come to, bytes.
const MAX_EXPANDED: usize = 64 << 20;
/// Most variables, labels or ports of an image.
const MAX_ENTRIES: usize = 10_000;
/// `PATH` where the base has none.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Who wrote a history entry.
const COMMENT: &str = "buildkit.dockerfile.v0";

/// A build.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Those that are needed, in order; bases and sources come before what needs them.
    pub stages: Vec<PlannedStage>,
    /// Which of them is wanted.
    pub target: usize,
    /// What the rules found.
    pub warnings: Warnings,
}

/// A stage.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedStage {
    /// Its place in the graph.
    pub index: usize,
    /// What it is called in messages.
    pub title: String,
    /// What it stands on.
    pub base: Base,
    /// What its commands run on.
    pub platform: Platform,
    /// What is done, in order.
    pub steps: Vec<PlannedStep>,
    /// The configuration of its image, without layers and time.
    pub config: ImageConfig,
    /// Nothing of it is taken from the cache.
    pub no_cache: bool,
    pub(super) asks: Asks,
}

/// What a stage can be given.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Asks {
    pub args: BTreeMap<String, ArgInfo>,
    pub used: BTreeSet<String>,
    pub secrets: BTreeMap<String, (bool, Lines)>,
    pub ssh: BTreeMap<String, (bool, Lines)>,
}

/// A step that makes a layer.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedStep {
    /// As progress shows it: `[build 2/5] RUN make`.
    pub title: String,
    /// Where it stands.
    pub lines: Lines,
    /// What it does.
    pub action: Action,
    /// Its entry in the history.
    pub history: usize,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// RUN.
    Run(Box<PlannedRun>),
    /// COPY and ADD.
    Copy(Box<Copies>),
    /// WORKDIR: the folder is made, with parents, mode 0755.
    Folder {
        /// Which.
        path: String,
        /// Whose; empty for root.
        user: String,
    },
}

impl Graph {
    /// Plans the stages that are needed. An image that is not in `bases` counts as one without a configuration: what
    /// [`Graph::resolve`] still misses is to be known before for a build, not for `--check`. `found` gets the warnings, errors
    /// or not.
    pub fn plan(&self, bases: &Bases, found: &mut Warnings) -> Result<Plan> {
        *found = self.warnings.clone();
        let created = self.created()?;
        let reachable = self.reachable();
        let mut stages: Vec<PlannedStage> = Vec::new();
        let mut places: BTreeMap<usize, usize> = BTreeMap::new();
        let mut inherited: BTreeMap<usize, Inherited> = BTreeMap::new();
        let mut spent = 0;
        for index in (0..self.stages.len()).filter(|it| reachable[*it]) {
            let mut planner = Planner::new(self, index, bases, &places, &stages, &inherited, created.clone(), found);
            planner.spent = spent;
            planner.spend(planner.weight()).map_err(|it| it.at(self.stages[index].from.lines))?;
            planner.check_base(bases);
            for node in &self.stages[index].steps {
                planner.step(node).map_err(|it| it.at(node.step.lines))?;
            }
            spent = planner.spent;
            let (stage, kept) = planner.finish();
            places.insert(index, stages.len());
            inherited.insert(index, kept);
            stages.push(stage);
        }
        let target = places.get(&self.target).copied().unwrap_or_default();
        if let Some(stage) = stages.get_mut(target) {
            stage.config.config.labels.extend(self.options.labels.clone());
            self.finish_platform(&mut stage.config);
        }
        self.linter.verdict(found)?;
        Ok(Plan { stages, target, warnings: found.clone() })
    }

    /// A `--platform` that was asked for is that of the image.
    fn finish_platform(&self, config: &mut ImageConfig) {
        let Some(wanted) = &self.options.platform else { return };
        let same = config.os == wanted.os && config.architecture == wanted.architecture;
        config.os.clone_from(&wanted.os);
        config.architecture.clone_from(&wanted.architecture);
        if wanted.variant.is_some() || !same {
            config.variant.clone_from(&wanted.variant);
        }
    }

    /// `SOURCE_DATE_EPOCH`, as a time.
    fn created(&self) -> Result<Option<String>> {
        let given = self.options.build_args.get("SOURCE_DATE_EPOCH").map(String::as_str);
        let Some(text) = given.or_else(|| self.global.get("SOURCE_DATE_EPOCH")).filter(|it| !it.is_empty()) else {
            return Ok(None);
        };
        let time = text.parse::<i64>().ok().and_then(|it| jiff::Timestamp::from_second(it).ok());
        let wrong = || DockerfileError::new(Kind::Argument, format!("invalid SOURCE_DATE_EPOCH: {text}"));
        time.map(|it| Some(it.to_string())).ok_or_else(wrong)
    }
}

/// What a stage gives to those that stand on it, besides its image.
#[derive(Debug, Clone, Default)]
struct Inherited {
    env: Scope,
    args: Vec<ArgDefinition>,
    workdir_set: bool,
}

/// The state of a stage as its steps are gone through.
struct Planner<'a> {
    graph: &'a Graph,
    index: usize,
    stages: &'a [PlannedStage],
    places: &'a BTreeMap<usize, usize>,
    platform: Platform,
    /// What words are expanded with, and what RUN gets: ENV and ARG.
    env: Scope,
    /// ARGs so far, those of the base first.
    args: Vec<ArgDefinition>,
    config: ImageConfig,
    steps: Vec<PlannedStep>,
    asks: Asks,
    created: Option<String>,
    workdir_set: bool,
    /// Where each of them stood before: only the last counts.
    cmd: Option<Lines>,
    entrypoint: Option<Lines>,
    healthcheck: Option<Lines>,
    numbered: usize,
    total: usize,
    spent: usize,
    warnings: &'a mut Warnings,
    lint: Linter,
}

impl<'a> Planner<'a> {
    #[allow(clippy::too_many_arguments)] // Only `plan` calls it.
    fn new(
        graph: &'a Graph,
        index: usize,
        bases: &Bases,
        places: &'a BTreeMap<usize, usize>,
        stages: &'a [PlannedStage],
        inherited: &BTreeMap<usize, Inherited>,
        created: Option<String>,
        warnings: &'a mut Warnings,
    ) -> Self {
        let stage = &graph.stages[index];
        let target = graph.options.target_platform();
        let base =
            if let Base::Stage(base) = stage.base { places.get(&base).and_then(|it| stages.get(*it)) } else { None };
        let kept = if let Base::Stage(base) = stage.base { inherited.get(&base).cloned() } else { None };
        let wanted = stage.platform.clone().unwrap_or_else(|| target.clone());
        let (mut config, platform) = match (&stage.base, base) {
            (_, Some(base)) => (base.config.clone(), base.platform.clone()),
            (Base::Scratch, _) => (empty(target), target.clone()),
            _ => match graph.needed_base(index).and_then(|it| bases.get(&it)) {
                Some(config) => (config.clone(), wanted),
                None => (empty(&wanted), wanted),
            },
        };
        config.created = None;
        config.config.on_build.clear();
        let fresh = || Asks { args: graph.args.clone(), ..Asks::default() };
        let mut asks = base.map_or_else(fresh, |it| it.asks.clone());
        asks.used.extend(stage.used.iter().cloned());
        if !config.config.env.iter().any(|it| it.starts_with("PATH=")) {
            config.config.env.push(PATH.to_owned());
        }
        let kept = kept.unwrap_or_default();
        let mut env = kept.env;
        for it in &config.config.env {
            let (name, value) = it.split_once('=').unwrap_or((it, ""));
            env.set(name, value);
        }
        let layers = |it: &&Node| {
            matches!(
                it.step.instruction,
                Instruction::Add(_) | Instruction::Copy(_) | Instruction::Run(_) | Instruction::Workdir(_)
            )
        };
        let from = usize::from(matches!(stage.base, Base::Image(_) | Base::Context(_)));
        let replaced = matches!(stage.base, Base::Context(_)) && stage.steps.is_empty();
        let total = if replaced { 0 } else { from + stage.steps.iter().filter(layers).count() };
        config.config.working_dir = config::workdir("/", &config.config.working_dir);
        Self {
            graph,
            index,
            stages,
            places,
            platform,
            env,
            args: kept.args,
            config,
            steps: Vec::new(),
            asks,
            created,
            workdir_set: kept.workdir_set,
            cmd: None,
            entrypoint: None,
            healthcheck: None,
            numbered: from,
            total,
            spent: 0,
            warnings,
            lint: graph.linter.clone(),
        }
    }

    /// Whether the base is for what was asked for.
    fn check_base(&mut self, bases: &Bases) {
        let stage = &self.graph.stages[self.index];
        let Some(config) = self.graph.needed_base(self.index).and_then(|it| bases.get(&it)) else { return };
        let (expected, actual) = (&self.platform, config.platform());
        if expected.os == actual.os && expected.architecture == actual.architecture || config.architecture.is_empty() {
            return;
        }
        self.lint.tell(self.warnings, Rule::InvalidBaseImagePlatform, stage.from.lines, || {
            let base = &stage.from.base;
            format!(
                "Base image {base} was pulled with platform \"{actual}\", expected \"{expected}\" for current build"
            )
        });
    }

    fn step(&mut self, node: &'a Node) -> Result<()> {
        let step = &node.step;
        self.lint = self.graph.linter.with_comments(&step.comments);
        match &step.instruction {
            Instruction::Add(add) => self.add(add, node),
            Instruction::Copy(copy) => self.copy(copy, node),
            Instruction::Run(run) => self.run(run, node),
            Instruction::Arg(args) => self.arg(args, step),
            // Kept for those that stand on it.
            Instruction::Onbuild(text) => {
                self.spend(text.len())?;
                self.config.config.on_build.push(text.clone());
                Ok(())
            }
            _ => self.configure(node),
        }
    }

    fn finish(self) -> (PlannedStage, Inherited) {
        let stage = &self.graph.stages[self.index];
        let planned = PlannedStage {
            index: self.index,
            title: stage.title.clone(),
            base: stage.base.clone(),
            platform: self.platform,
            steps: self.steps,
            config: self.config,
            no_cache: self.graph.options.ignores_cache(stage.from.name.as_deref()),
            asks: self.asks,
        };
        (planned, Inherited { env: self.env, args: self.args, workdir_set: self.workdir_set })
    }

    /// What it took over from its base, bytes: each stage has a copy.
    fn weight(&self) -> usize {
        let RunConfig { env, labels, on_build, exposed_ports, volumes, .. } = &self.config.config;
        let words = env.iter().chain(on_build).chain(exposed_ports.keys()).chain(volumes.keys());
        let words = words.chain(labels.iter().flat_map(|it| [it.0, it.1])).map(|it| it.len() + 48);
        let history = self.config.history.iter().map(|it| it.created_by.len() + 144);
        let variables = self.env.pairs().map(|it| it.0.len() + it.1.len() + 64);
        let args = self.asks.args.values().map(|it| it.value.len() + it.definition.description.len() + 256);
        words.chain(history).chain(variables).chain(args).sum()
    }

    fn spend(&mut self, bytes: usize) -> Result<()> {
        self.spent = self.spent.saturating_add(bytes);
        if self.spent > MAX_EXPANDED {
            let what = format!("what this file expands to is larger than {MAX_EXPANDED} bytes");
            return Err(DockerfileError::new(Kind::TooLarge, what));
        }
        Ok(())
    }

    /// A word with the variables of this moment; what is not set is told.
    fn expand(&mut self, word: &str, lines: Lines) -> Result<String> {
        self.expand_by(self.graph.shell, word, lines)
    }

    fn expand_by(&mut self, shell: Shell, word: &str, lines: Lines) -> Result<String> {
        let found = shell.expand(word, &self.env)?;
        self.spend(found.text.len())?;
        for name in found.unmatched.iter().filter(|it| !self.args.iter().any(|arg| arg.name == **it)) {
            self.lint.tell(self.warnings, Rule::UndefinedVar, lines, || {
                format!("Usage of undefined variable '${name}'{}", rules::hint(name, "$", self.env.names().collect()))
            });
        }
        Ok(found.text)
    }

    fn remember(&mut self, created_by: String, layer: bool) -> Result<usize> {
        self.spend(created_by.len())?;
        let created = self.created.clone();
        let comment = COMMENT.to_owned();
        self.config.history.push(History { created, created_by, comment, empty_layer: !layer, ..History::default() });
        Ok(self.config.history.len() - 1)
    }

    /// `[stage 2/5] RUN …`, with variables that are set.
    fn title(&mut self, code: &str, shell: Shell, on_build: bool) -> Result<String> {
        let text = shell.expand(code, &self.env).map_or_else(|_| code.to_owned(), |it| it.text);
        self.spend(text.len())?;
        let (name, rest) = text.split_once(' ').map_or((&*text, None), |(name, rest)| (name, Some(rest)));
        let text = rest.map_or_else(|| name.to_uppercase(), |rest| format!("{} {rest}", name.to_uppercase()));
        if self.total == 0 {
            return Ok(text);
        }
        self.numbered += 1;
        let stage = match &*self.graph.stages[self.index].title {
            "" => String::new(),
            title => format!("{title} "),
        };
        let width = self.total.to_string().len();
        let trigger = if on_build { "ONBUILD " } else { "" };
        Ok(format!("[{stage}{:width$}/{}] {trigger}{text}", self.numbered, self.total))
    }

    fn push(&mut self, title: String, node: &Node, action: Action, history: usize) {
        self.steps.push(PlannedStep { title, lines: node.step.lines, action, history });
    }

    /// The name of this stage, for messages.
    fn name(&self) -> &str {
        &self.graph.stages[self.index].title
    }

    /// Where a stage that files come from is in the plan; it must come before this one.
    fn place(&self, index: usize) -> Option<usize> {
        self.places.get(&index).copied().filter(|it| *it < self.stages.len())
    }
}

/// The configuration of nothing.
fn empty(platform: &Platform) -> ImageConfig {
    let mut config = ImageConfig {
        os: platform.os.clone(),
        architecture: platform.architecture.clone(),
        variant: platform.variant.clone(),
        ..ImageConfig::default()
    };
    "layers".clone_into(&mut config.rootfs.kind);
    "/".clone_into(&mut config.config.working_dir);
    config.config.env = vec![PATH.to_owned()];
    config
}

fn too_many(what: &str) -> DockerfileError {
    expansion(format!("the image would have more than {MAX_ENTRIES} {what}"))
}

#[cfg(test)]
mod tests;
