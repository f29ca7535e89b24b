//! What can be asked of a Dockerfile without building it: which arguments and secrets a target takes, which targets there are,
//! what the rules find. As text and as JSON, in the shapes of BuildKit's subrequests `outline`, `targets` and `lint`.

use std::collections::BTreeSet;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Serialize;

use super::args::Options;
use super::dockerfile::lint::Warnings;
use super::dockerfile::{DockerfileError, Lines, Result, excerpt, parse};
use super::graph::{Base, Bases, Graph, Source};
use super::plan::{Asks, Plan};

/// Lines, as the protocol has them: one range for each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Location {
    ranges: Vec<Range>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Range {
    start: Position,
    end: Position,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Position {
    line: u32,
}

impl Location {
    fn of(all: &[Lines]) -> Self {
        // An instruction of very many lines is told by its first ones.
        let lines = all.iter().flat_map(|it| it.first..=it.last.min(it.first.saturating_add(10_000)));
        Self { ranges: lines.map(|line| Range { start: Position { line }, end: Position { line } }).collect() }
    }
}

/// Arguments, secrets and agents that a target takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Outline {
    #[serde(skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    description: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    args: Vec<Arg>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    secrets: Vec<Wanted>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ssh: Vec<Wanted>,
    sources: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Arg {
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    description: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    value: String,
    location: Location,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Wanted {
    name: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    required: bool,
    location: Location,
}

/// The outline of what `options` ask for.
pub fn outline(text: &str, options: Options, bases: &Bases) -> Result<Outline> {
    let (graph, plan) = planned(text, options, bases, &mut Warnings::default())?;
    let from = &graph.stages()[graph.target()].from;
    let (mut args, mut secrets, mut ssh) = (Vec::new(), Vec::new(), Vec::new());
    let mut seen: [BTreeSet<String>; 3] = Default::default();
    for stage in needed(&graph, &plan) {
        for name in closure(stage) {
            if let Some(info) = stage.args.get(&name)
                && seen[0].insert(name.clone())
            {
                let (value, description) = (info.value.clone(), info.definition.description.clone());
                args.push((info.lines, Arg { name, description, value, location: Location::of(&[info.lines]) }));
            }
        }
        unseen(&stage.secrets, &mut seen[1], &mut secrets);
        unseen(&stage.ssh, &mut seen[2], &mut ssh);
    }
    Ok(Outline {
        name: from.name.clone().unwrap_or_default(),
        description: from.description.clone(),
        args: sorted(args),
        secrets: sorted(secrets),
        ssh: sorted(ssh),
        sources: vec![STANDARD.encode(text)],
    })
}

fn unseen(
    all: &std::collections::BTreeMap<String, (bool, Lines)>,
    seen: &mut BTreeSet<String>,
    out: &mut Vec<(Lines, Wanted)>,
) {
    for (name, (required, lines)) in all {
        if seen.insert(name.clone()) {
            let location = Location::of(&[*lines]);
            out.push((*lines, Wanted { name: name.clone(), required: *required, location }));
        }
    }
}

fn sorted<T>(mut all: Vec<(Lines, T)>) -> Vec<T> {
    all.sort_by_key(|it| it.0);
    all.into_iter().map(|it| it.1).collect()
}

/// Names that are used, and what their defaults need.
fn closure(stage: &Asks) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    let mut open: Vec<&String> = stage.used.iter().collect();
    while let Some(name) = open.pop() {
        if all.insert(name.clone()) {
            open.extend(stage.args.get(name).into_iter().flat_map(|it| &it.needs));
        }
    }
    all
}

/// The target first, then what it stands on and takes files from.
fn needed<'a>(graph: &Graph, plan: &'a Plan) -> Vec<&'a Asks> {
    let mut open = vec![graph.target()];
    let mut seen = BTreeSet::new();
    let mut all = Vec::new();
    while let Some(index) = open.pop() {
        if !seen.insert(index) {
            continue;
        }
        all.extend(plan.stages.iter().find(|it| it.index == index).map(|it| &it.asks));
        let stage = &graph.stages()[index];
        let sources = stage.steps.iter().flat_map(|it| &it.sources);
        open.extend(sources.filter_map(|it| if let Source::Stage(index) = it { Some(*index) } else { None }));
        if let Base::Stage(base) = stage.base {
            open.push(base);
        }
    }
    all
}

fn planned(text: &str, options: Options, bases: &Bases, warnings: &mut Warnings) -> Result<(Graph, Plan)> {
    let mut graph = Graph::new(text, options, warnings)?;
    graph.resolve(bases)?;
    let plan = graph.plan(bases, warnings)?;
    Ok((graph, plan))
}

impl Outline {
    /// As `docker build --call=outline` prints it.
    pub fn show(&self) -> String {
        let mut out = String::new();
        if !self.name.is_empty() || !self.description.is_empty() {
            let name = if self.name.is_empty() { "(default)" } else { &self.name };
            let mut rows = vec![vec!["TARGET:", name]];
            if !self.description.is_empty() {
                rows.push(vec!["DESCRIPTION:", &self.description]);
            }
            out += &table(&rows, 1);
            out.push('\n');
        }
        let mut part = |rows: Vec<Vec<&str>>| {
            if rows.len() > 1 {
                out += &table(&rows, 3);
                out.push('\n');
            }
        };
        let args = self.args.iter().map(|it| vec![&*it.name, &*it.value, &*it.description]);
        part(std::iter::once(vec!["BUILD ARG", "VALUE", "DESCRIPTION"]).chain(args).collect());
        for (title, all) in [("SECRET", &self.secrets), ("SSH", &self.ssh)] {
            let rows = all.iter().map(|it| vec![&*it.name, if it.required { "true" } else { "" }]);
            part(std::iter::once(vec![title, "REQUIRED"]).chain(rows).collect());
        }
        out
    }
}

/// Columns, `gap` apart.
fn table(rows: &[Vec<&str>], gap: usize) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width =
        |column: usize| rows.iter().filter_map(|it| it.get(column)).map(|it| it.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<&str>| {
        let cells = row.iter().enumerate().map(|(at, cell)| {
            if at + 1 == row.len() { (*cell).to_owned() } else { format!("{cell:width$}", width = widths[at] + gap) }
        });
        cells.collect::<String>() + "\n"
    };
    rows.iter().map(line).collect()
}

/// The stages of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Targets {
    targets: Vec<Target>,
    sources: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Target {
    #[serde(skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    default: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    description: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    base: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    platform: String,
    location: Location,
}

/// The stages of this file.
pub fn targets(text: &str) -> Result<Targets> {
    let stages = parse::dockerfile(text)?.stages;
    let last = stages.len().saturating_sub(1);
    let one = |(at, it): (usize, super::dockerfile::instruction::Stage)| Target {
        name: it.name.unwrap_or_default(),
        default: at == last,
        description: it.description,
        base: it.base,
        platform: it.platform.unwrap_or_default(),
        location: Location::of(&[it.lines]),
    };
    Ok(Targets { targets: stages.into_iter().enumerate().map(one).collect(), sources: vec![STANDARD.encode(text)] })
}

impl Targets {
    /// As `docker build --call=targets` prints it.
    pub fn show(&self) -> String {
        let name = |it: &Target| match (&*it.name, it.default) {
            ("", true) => "(default)".to_owned(),
            (name, true) => format!("{name} (default)"),
            (name, false) => name.to_owned(),
        };
        let names: Vec<String> = self.targets.iter().map(name).collect();
        let rows = names.iter().zip(&self.targets).map(|(name, it)| vec![&**name, &*it.description]);
        table(&std::iter::once(vec!["TARGET", "DESCRIPTION"]).chain(rows).collect::<Vec<_>>(), 1)
    }
}

/// What `--check` found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// By the rules.
    pub warnings: Warnings,
    /// What would end a build.
    pub error: Option<DockerfileError>,
}

/// Checks a file; without a target all stages.
pub fn check(text: &str, mut options: Options, bases: &Bases) -> Report {
    options.all_stages |= options.target.is_none();
    let mut warnings = Warnings::default();
    let error = planned(text, options, bases, &mut warnings).err();
    Report { warnings, error }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LintWarning<'a> {
    rule_name: &'a str,
    description: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    detail: &'a str,
    location: Location,
}

#[derive(Serialize)]
struct LintSource<'a> {
    filename: &'a str,
    language: &'a str,
    data: String,
}

#[derive(Serialize)]
struct LintError {
    message: String,
    location: Location,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LintResults<'a> {
    warnings: Vec<LintWarning<'a>>,
    sources: [LintSource<'a>; 1],
    #[serde(skip_serializing_if = "Option::is_none")]
    build_error: Option<LintError>,
}

impl Report {
    /// Nothing was found.
    pub fn is_clean(&self) -> bool {
        self.warnings.0.is_empty() && self.error.is_none()
    }

    /// As `docker build --check` prints it; empty where nothing was found.
    pub fn show(&self, name: &str, text: &str) -> String {
        let mut out = self.warnings.show(name, text);
        if let Some(error) = &self.error {
            let excerpt = excerpt(name, text, error.lines()).unwrap_or_default();
            out += &format!("\nERROR: {error}\n{excerpt}");
        }
        out
    }

    /// As the subrequest `lint` answers.
    pub fn json(&self, name: &str, text: &str) -> serde_json::Value {
        let one = |it: &'_ super::dockerfile::lint::Warning| (it.rule, it.detail.clone(), it.lines);
        let all: Vec<_> = self.warnings.0.iter().map(one).collect();
        let warnings = all.iter().map(|(rule, detail, lines)| LintWarning {
            rule_name: rule.name(),
            description: rule.description(),
            url: rule.url(),
            detail,
            location: Location::of(&[*lines]),
        });
        let error = self.error.as_ref();
        let results = LintResults {
            warnings: warnings.collect(),
            sources: [LintSource { filename: name, language: "Dockerfile", data: STANDARD.encode(text) }],
            build_error: error.map(|it| LintError { message: it.to_string(), location: Location::of(it.lines()) }),
        };
        serde_json::to_value(results).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# VERSION of the base\nARG VERSION=3 OTHER=${VERSION}.1\nARG UNUSED\nFROM a:$OTHER AS base\nARG IN=x\n\
        RUN --mount=type=secret,id=s,required --mount=type=ssh y\n\n# tool makes it\nFROM base AS tool\nARG IN\nRUN --mount=type=secret,id=t z\n\
        FROM b\n";

    fn options(target: Option<&str>) -> Options {
        let mut options = Options::new("linux/arm64".parse().unwrap());
        options.target = target.map(str::to_owned);
        options
    }

    #[test]
    fn outlines() {
        let it = outline(TEXT, options(Some("tool")), &Bases::new()).unwrap();
        let expected = "TARGET:      tool\nDESCRIPTION: makes it\n\n\
            BUILD ARG   VALUE   DESCRIPTION\nOTHER       3.1     \nVERSION     3       of the base\nIN                  \n\n\
            SECRET   REQUIRED\ns        true\nt        \n\nSSH       REQUIRED\ndefault   \n\n";
        assert_eq!(it.show(), expected);
        let json = serde_json::to_value(&it).unwrap();
        assert_eq!(json["secrets"][0]["location"]["ranges"][0]["start"]["line"], 6);
        let last = outline(TEXT, options(None), &Bases::new()).unwrap();
        assert_eq!(last.show(), "");
    }

    #[test]
    fn all_targets() {
        let it = targets(TEXT).unwrap();
        assert_eq!(it.show(), "TARGET    DESCRIPTION\nbase      \ntool      makes it\n(default) \n");
        let json = serde_json::to_value(&it).unwrap();
        assert_eq!((&json["targets"][1]["base"], &json["targets"][2]["default"]), (&"base".into(), &true.into()));
    }

    #[test]
    fn reports() {
        let text = "FROM a as b\nRUN x\nCOPY y\n";
        let report = check(text, options(None), &Bases::new());
        let shown = report.show("Dockerfile", text);
        let expected = "\nWARNING: FromAsCasing - https://docs.docker.com/go/dockerfile/rule/from-as-casing/\n\
            'as' and 'FROM' keywords' casing do not match\nDockerfile:1\n";
        assert!(shown.starts_with(expected), "{shown}");
        assert!(
            shown.contains("\nERROR: dockerfile parse error on line 3: COPY requires at least two arguments"),
            "{shown}"
        );
        let json = report.json("Dockerfile", text);
        assert_eq!(json["warnings"][0]["ruleName"], "FromAsCasing");
        assert_eq!(json["buildError"]["location"]["ranges"][0]["end"]["line"], 3);
        assert!(check("FROM a\n", options(None), &Bases::new()).is_clean());
    }
}
