//! Stages, and what they need of each other: bases, `COPY --from`, mounts, ONBUILD triggers of bases.
//!
//! Invariants: a base is an earlier stage; the target and all that it needs can be planned in the order of the file; every index
//! in a source is one of `stages`.

use std::collections::BTreeMap;

use super::args::{self, ArgInfo, Options, Scope};
use super::dockerfile::instruction::{Instruction, Stage, Step};
use super::dockerfile::lint::{Linter, Rule, Warnings};
use super::dockerfile::shell::{Empty, Shell};
use super::dockerfile::{DockerfileError, Kind, Lines, Result, directive, lexer, mount, parse, quote};
use super::rules;
use crate::image::ImageConfig;
use crate::platform::Platform;
use crate::reference::ImageRef;

/// What a stage stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Base {
    /// Nothing.
    Scratch,
    /// A stage before it.
    Stage(usize),
    /// An image, by its whole name.
    Image(ImageRef),
    /// What `--build-context` gives by this name.
    Context(String),
}

/// Where files come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The build context.
    Context,
    /// Another stage.
    Stage(usize),
    /// An image.
    Image(ImageRef),
    /// What `--build-context` gives by this name.
    Named(String),
    /// An empty folder.
    Scratch,
}

/// An instruction, and what it takes files from: one for COPY and ADD, one for each mount of RUN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// The instruction.
    pub step: Step,
    /// From where.
    pub sources: Vec<Source>,
    /// A trigger of the base.
    pub on_build: bool,
}

/// A stage.
#[derive(Debug, Clone, PartialEq)]
pub struct StageNode {
    /// Its FROM.
    pub from: Stage,
    /// What it is called in messages: its name, or `stage-N`; empty where it is the only one.
    pub title: String,
    /// What it stands on.
    pub base: Base,
    /// `--platform`.
    pub platform: Option<Platform>,
    /// Triggers of the base, then its own.
    pub steps: Vec<Node>,
    /// Global ARGs that its FROM has.
    pub(super) used: Vec<String>,
    triggered: bool,
}

/// An image that is needed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Needed {
    /// Its whole name.
    pub image: String,
    /// For this platform.
    pub platform: String,
}

/// Configurations of images that are known.
pub type Bases = BTreeMap<Needed, ImageConfig>;

/// A stage, what it takes, and how much of that was looked at.
type Walked = (usize, Vec<(usize, Lines)>, usize);

/// A file with its stages.
#[derive(Debug, Clone)]
pub struct Graph {
    pub(super) options: Options,
    pub(super) shell: Shell,
    pub(super) global: Scope,
    pub(super) args: BTreeMap<String, ArgInfo>,
    pub(super) linter: Linter,
    pub(super) warnings: Warnings,
    pub(super) stages: Vec<StageNode>,
    pub(super) target: usize,
}

impl Graph {
    /// Of this Dockerfile. `warnings` gets what the rules find until an error ends it.
    pub fn new(text: &str, options: Options, warnings: &mut Warnings) -> Result<Self> {
        if text.is_empty() {
            return Err(DockerfileError::new(Kind::Syntax, "the Dockerfile cannot be empty"));
        }
        let check = match &options.check {
            Some(check) => check.clone(),
            None => directive::find("check", text).map(|it| it.value).unwrap_or_default(),
        };
        let linter = Linter::parse(check.split(' ').next().unwrap_or_default())
            .map_err(|it| it.prefixed("failed to parse check options"))?;
        let parsed = lexer::parse(text)?;
        for lines in &parsed.empty_continuations {
            linter.tell(warnings, Rule::NoEmptyContinuation, *lines, || "Empty continuation line".to_owned());
        }
        let file = parse::instructions(parsed, &linter, warnings)?;
        rules::stage_names(&file, &linter, warnings);
        rules::casing(&file, &linter, warnings);
        let last = file.stages.last().and_then(|it| it.name.clone());
        let named = options.target.as_deref().or(last.as_deref());
        let predefined = args::predefined(&options, named);
        let shell = Shell::new(file.escape);
        rules::default_bases(&file, shell, &predefined, &linter, warnings);
        let (global, args) = args::global(predefined, shell, &file.global, &options.build_args)?;
        let mut graph =
            Self { options, shell, global, args, linter, warnings: Warnings::default(), stages: Vec::new(), target: 0 };
        for stage in file.stages {
            graph.add(stage, warnings)?;
        }
        graph.target = graph.find_target()?;
        graph.connect()?;
        graph.refuse_circles()?;
        if let [only] = &mut graph.stages[..] {
            only.title.clear();
        }
        graph.warnings = std::mem::take(warnings);
        Ok(graph)
    }

    fn add(&mut self, from: Stage, warnings: &mut Warnings) -> Result<()> {
        let at = |it: DockerfileError| it.at(from.lines);
        let lint = self.linter.with_comments(&from.comments);
        let mut base = self.shell.expand(&from.base, &self.global).map_err(at)?;
        rules::undeclared(&base.unmatched, self, from.lines, &lint, warnings);
        if base.text.is_empty() {
            let what = format!("base name ({}) should not be blank", from.base);
            return Err(at(DockerfileError::new(Kind::Argument, what)));
        }
        let mut platform = None;
        if let Some(text) = &from.platform {
            let found = self.shell.expand(text, &self.global);
            let found = found.map_err(|it| at(it.prefixed("failed to process arguments for platform ")))?;
            rules::undeclared(&found.unmatched, self, from.lines, &lint, warnings);
            rules::platform(text, &found, &from, &self.global, &lint, warnings);
            let near = |error: DockerfileError| {
                let nearest = found.unmatched.iter().next().cloned().unwrap_or_default();
                at(error.near(&nearest, self.global.names(), true))
            };
            if found.text.is_empty() {
                let what = format!("empty platform value from expression {text}");
                return Err(near(DockerfileError::new(Kind::Argument, what)));
            }
            let parsed = read_platform(&found.text);
            let wrong = |why: String| {
                near(DockerfileError::new(Kind::Argument, format!("failed to parse platform {text}: {why}")))
            };
            platform = Some(parsed.map_err(wrong)?);
            base.matched.extend(found.matched);
        }
        let named = from.name.as_deref().and_then(|it| self.context(it, platform.as_ref()));
        let earlier = self.stages.iter().rposition(|it| it.from.name.as_deref() == Some(&*base.text));
        let on = match (named, earlier) {
            (Some(named), _) => Base::Context(named),
            (None, Some(index)) => Base::Stage(index),
            (None, None) if base.text == "scratch" => Base::Scratch,
            (None, None) => match self.image(&base.text, platform.as_ref()).map_err(at)? {
                Source::Named(name) => Base::Context(name),
                Source::Image(image) => Base::Image(image),
                _ => Base::Scratch,
            },
        };
        let title = from.name.clone().unwrap_or_else(|| format!("stage-{}", self.stages.len()));
        let used = base.matched.into_iter().collect();
        self.stages.push(StageNode { from, title, base: on, platform, steps: Vec::new(), used, triggered: false });
        Ok(())
    }

    /// The name of the `--build-context` that replaces this.
    fn context(&self, name: &str, platform: Option<&Platform>) -> Option<String> {
        if self.options.contexts.is_empty() || ["scratch", "context"].iter().any(|it| name.eq_ignore_ascii_case(it)) {
            return None;
        }
        let familiar = name.parse::<ImageRef>().map(|it| it.familiar()).unwrap_or_default();
        let short = familiar.strip_suffix(":latest").unwrap_or(&familiar);
        let platform = platform.unwrap_or_else(|| self.options.target_platform());
        let names = [format!("{short}::{platform}"), short.to_owned(), name.to_owned()];
        names.into_iter().find(|it| self.options.contexts.contains(it))
    }

    fn image(&self, name: &str, platform: Option<&Platform>) -> Result<Source> {
        let parsed = name.parse::<ImageRef>();
        if let Some(context) = self.context(name, platform) {
            return Ok(Source::Named(context));
        }
        let wrong =
            |why| DockerfileError::new(Kind::Argument, format!("failed to parse stage name {}: {why}", quote(name)));
        parsed.map(Source::Image).map_err(wrong)
    }

    fn find_target(&self) -> Result<usize> {
        let Some(target) = &self.options.target else { return Ok(self.stages.len() - 1) };
        self.by_name(target).ok_or_else(|| {
            let what = format!("target stage {} could not be found", quote(target));
            DockerfileError::new(Kind::Stage, what).near(target, self.stages.iter().map(|it| it.title.as_str()), true)
        })
    }

    fn by_name(&self, name: &str) -> Option<usize> {
        let name = name.to_lowercase();
        self.stages.iter().rposition(|it| it.from.name.as_ref() == Some(&name))
    }

    fn connect(&mut self) -> Result<()> {
        for index in 0..self.stages.len() {
            let steps = std::mem::take(&mut self.stages[index].from.steps);
            // What a context replaces has no steps.
            let replaced = matches!(self.stages[index].base, Base::Context(_)) && self.is_replaced(index);
            let steps = if replaced { Vec::new() } else { steps };
            let nodes: Result<Vec<Node>> = steps.into_iter().map(|step| self.node(step, false)).collect();
            self.stages[index].steps = nodes?;
        }
        Ok(())
    }

    fn is_replaced(&self, index: usize) -> bool {
        let stage = &self.stages[index];
        stage.from.name.as_deref().is_some_and(|it| self.context(it, stage.platform.as_ref()).is_some())
    }

    fn node(&self, step: Step, on_build: bool) -> Result<Node> {
        let at = |it: DockerfileError| it.at(step.lines);
        let sources = match &step.instruction {
            Instruction::Copy(copy) if !copy.from.is_empty() => {
                let plain = self.shell.expand(&copy.from, &Empty).map_err(at)?.text;
                if plain != copy.from {
                    let what = "variable expansion is not supported for --from, define a new stage with FROM using ARG \
                                from global scope as a workaround";
                    return Err(at(DockerfileError::new(Kind::Argument, what)));
                }
                vec![self.source(&copy.from).map_err(at)?]
            }
            Instruction::Copy(_) | Instruction::Add(_) => vec![Source::Context],
            Instruction::Run(run) => {
                let one = |text: &String| match mount::from(text)? {
                    from if from.is_empty() => Ok(Source::Context),
                    from => match self.by_name(&from) {
                        Some(index) => Ok(Source::Stage(index)),
                        None if from == "scratch" => Ok(Source::Scratch),
                        None => self.image(&from, None),
                    },
                };
                run.mounts.iter().map(one).collect::<Result<_>>().map_err(at)?
            }
            _ => Vec::new(),
        };
        Ok(Node { step, sources, on_build })
    }

    fn source(&self, from: &str) -> Result<Source> {
        if let Ok(index) = from.parse::<i64>() {
            let known = usize::try_from(index).ok().filter(|it| *it < self.stages.len());
            let wrong = || DockerfileError::new(Kind::Stage, format!("invalid stage index {index}"));
            return known.map(Source::Stage).ok_or_else(wrong);
        }
        match self.by_name(from) {
            Some(index) => Ok(Source::Stage(index)),
            None if from == "scratch" => Ok(Source::Scratch),
            None => self.image(from, None),
        }
    }

    /// Stages that the steps of one take files from.
    fn taken(&self, index: usize) -> impl Iterator<Item = (usize, Lines)> {
        let stage = |it: &Source| if let Source::Stage(index) = it { Some(*index) } else { None };
        self.stages[index].steps.iter().flat_map(move |node| {
            node.sources.iter().filter_map(stage).map(|it| (it, node.step.lines)).collect::<Vec<_>>()
        })
    }

    fn refuse_circles(&self) -> Result<()> {
        #[derive(Clone, Copy, PartialEq)]
        enum Mark {
            New,
            Open,
            Done,
        }
        let mut marks = vec![Mark::New; self.stages.len()];
        for start in 0..self.stages.len() {
            let mut path: Vec<Walked> = Vec::new();
            if marks[start] == Mark::New {
                marks[start] = Mark::Open;
                path.push((start, self.taken(start).collect(), 0));
            }
            while let Some((index, taken, next)) = path.last_mut() {
                let Some(&(other, _)) = taken.get(*next) else {
                    marks[*index] = Mark::Done;
                    path.pop();
                    continue;
                };
                *next += 1;
                match marks[other] {
                    Mark::Done => {}
                    Mark::New => {
                        marks[other] = Mark::Open;
                        path.push((other, self.taken(other).collect(), 0));
                    }
                    Mark::Open => {
                        let what = format!("circular dependency detected on stage: {}", self.stages[start].title);
                        let error = DockerfileError::new(Kind::Circular, what);
                        let lines = path.iter().filter_map(|(_, taken, next)| taken.get(next - 1).map(|it| it.1));
                        return Err(lines.fold(error, DockerfileError::at));
                    }
                }
            }
        }
        Ok(())
    }

    /// Which stages the target needs, itself included; all of them where all are asked for.
    pub fn reachable(&self) -> Vec<bool> {
        let mut needed = vec![self.options.all_stages; self.stages.len()];
        let mut open = vec![self.target];
        let mut seen = vec![false; self.stages.len()];
        while let Some(index) = open.pop() {
            if std::mem::replace(&mut seen[index], true) {
                continue;
            }
            needed[index] = true;
            if let Base::Stage(base) = self.stages[index].base {
                open.push(base);
            }
            open.extend(self.taken(index).map(|it| it.0));
        }
        needed
    }

    /// Adds the triggers of the bases that are known, and says which images are needed and not known yet. To be called until
    /// that is none, or nothing more can be found out.
    pub fn resolve(&mut self, bases: &Bases) -> Result<Vec<Needed>> {
        loop {
            let reachable = self.reachable();
            let mut changed = false;
            for index in (0..self.stages.len()).filter(|it| reachable[*it]) {
                changed |= self.trigger(index, bases).map_err(|it| it.only_at(self.stages[index].from.lines))?;
            }
            if !changed {
                break;
            }
            self.refuse_circles()?;
        }
        let reachable = self.reachable();
        let mut missing = Vec::new();
        for (index, stage) in self.stages.iter().enumerate().filter(|it| reachable[it.0]) {
            let sources = stage.steps.iter().flat_map(|it| &it.sources);
            let images = sources.filter_map(|it| if let Source::Image(image) = it { Some(image) } else { None });
            let base = self.needed_base(index);
            let others =
                images.map(|it| Needed { image: it.to_string(), platform: self.options.target_platform().to_string() });
            missing.extend(base.into_iter().chain(others).filter(|it| !bases.contains_key(it)));
        }
        missing.sort();
        missing.dedup();
        Ok(missing)
    }

    /// The image that a stage stands on.
    pub fn needed_base(&self, index: usize) -> Option<Needed> {
        let stage = self.stages.get(index)?;
        let Base::Image(image) = &stage.base else { return None };
        let platform = stage.platform.as_ref().unwrap_or_else(|| self.options.target_platform());
        Some(Needed { image: image.to_string(), platform: platform.to_string() })
    }

    fn trigger(&mut self, index: usize, bases: &Bases) -> Result<bool> {
        if self.stages[index].triggered {
            return Ok(false);
        }
        let texts: Vec<String> = match &self.stages[index].base {
            Base::Stage(base) => {
                let kept = |it: &Node| {
                    if let Instruction::Onbuild(text) = &it.step.instruction { Some(text.clone()) } else { None }
                };
                self.stages[*base].steps.iter().filter_map(kept).collect()
            }
            Base::Image(_) => match self.needed_base(index).and_then(|it| bases.get(&it)) {
                Some(config) => config.config.on_build.clone(),
                None => return Ok(false),
            },
            Base::Scratch | Base::Context(_) => Vec::new(),
        };
        self.stages[index].triggered = true;
        if texts.len() > lexer::MAX_INSTRUCTIONS {
            return Err(DockerfileError::new(Kind::TooLarge, "the base image has too many ONBUILD triggers"));
        }
        let mut nodes = Vec::new();
        for text in texts {
            let mut step = parse::trigger(&text)?;
            step.lines = self.stages[index].from.lines;
            nodes.push(self.node(step, true)?);
        }
        let changed = !nodes.is_empty();
        self.stages[index].steps.splice(0..0, nodes);
        Ok(changed)
    }

    /// The stages.
    pub fn stages(&self) -> &[StageNode] {
        &self.stages
    }

    /// Which of them is wanted.
    pub fn target(&self) -> usize {
        self.target
    }
}

/// As containerd reads platforms, where only an architecture is given too.
fn read_platform(text: &str) -> std::result::Result<Platform, String> {
    const ALONE: [&str; 12] = [
        "amd64", "arm64", "arm", "386", "riscv64", "ppc64le", "s390x", "mips64le", "x86_64", "aarch64", "armhf",
        "armel",
    ];
    if ALONE.contains(&text.to_lowercase().as_str()) {
        return Ok(Platform::new("linux", text, None));
    }
    text.parse::<Platform>().map_err(|it| it.to_string())
}

#[cfg(test)]
#[path = "graph_tests.rs"]
mod tests;
