//! From a node of the file to an instruction: flags, counts of arguments, forms.

use super::duration;
use super::error::{DockerfileError, Kind, Result, argument};
use super::flags::{self, Flags, Takes};
use super::heredoc;
use super::instruction::{
    Add, ArgDefinition, CommandLine, Content, Copy, Dockerfile, Files, Healthcheck, InlineFile, Instruction, NAMES,
    Network, Run, Stage, Step,
};
use super::lexer::{self, Arguments, Node, Parsed};
use super::line::Pair;
use super::lint::{Linter, Rule, Warnings};
use super::mount;
use super::source::quote;

use Takes::{Bool, Value, Values};

/// Most stages.
pub const MAX_STAGES: usize = 1000;

/// A stage begins, or a step.
enum Parts {
    Stage(Stage),
    Step(Step),
}

/// Reads a Dockerfile.
pub fn dockerfile(text: &str) -> Result<Dockerfile> {
    instructions(lexer::parse(text)?, &Linter::silent(), &mut Warnings::default())
}

/// Instructions of a file that was taken apart; tells `lint` of what it can see.
pub fn instructions(parsed: Parsed, lint: &Linter, warnings: &mut Warnings) -> Result<Dockerfile> {
    let mut file = Dockerfile { global: Vec::new(), stages: Vec::new(), escape: parsed.escape };
    for node in parsed.nodes {
        let lint = lint.with_comments(&node.comments);
        let first = node.lines.first;
        let place = node.lines;
        let one = instruction(node, &lint, warnings)
            .map_err(|it| it.at(place).prefixed(format_args!("dockerfile parse error on line {first}")))?;
        let full = file.stages.len() >= MAX_STAGES;
        match (one, file.stages.last_mut()) {
            (Parts::Stage(stage), _) if full => {
                let what = format!("the Dockerfile has more than {MAX_STAGES} stages");
                return Err(DockerfileError::new(Kind::TooLarge, what).at(stage.lines));
            }
            (Parts::Stage(stage), _) => file.stages.push(stage),
            (Parts::Step(step), Some(stage)) => stage.steps.push(step),
            (Parts::Step(step), None) if matches!(step.instruction, Instruction::Arg(_)) => file.global.push(step),
            (Parts::Step(step), None) => {
                return Err(DockerfileError::new(Kind::Stage, "no build stage in current context").at(step.lines));
            }
        }
    }
    if file.stages.is_empty() {
        return Err(DockerfileError::new(Kind::Stage, "dockerfile contains no stages to build"));
    }
    Ok(file)
}

/// The instruction that an ONBUILD kept.
pub fn trigger(text: &str) -> Result<Step> {
    let parsed = lexer::parse(text)?;
    let Ok([node]) = <[Node; 1]>::try_from(parsed.nodes) else {
        return Err(argument("onbuild trigger should be a single expression"));
    };
    match instruction(node, &Linter::silent(), &mut Warnings::default())? {
        Parts::Step(step) => Ok(step),
        Parts::Stage(_) => Err(argument("FROM isn't allowed as an ONBUILD trigger")),
    }
}

fn instruction(node: Node, lint: &Linter, warnings: &mut Warnings) -> Result<Parts> {
    let keyword = node.name.to_uppercase();
    let instruction = match &*keyword {
        "FROM" => return from(node, lint, warnings).map(Parts::Stage),
        "ADD" => add(&node)?,
        "ARG" => {
            let all = args(&node)?;
            describe("ARG", &all.iter().map(|it| it.name.as_str()).collect::<Vec<_>>(), &node, lint, warnings);
            Instruction::Arg(all)
        }
        "CMD" => Instruction::Cmd(command_without_flags(&node)?),
        "COPY" => copy(&node)?,
        "ENTRYPOINT" => Instruction::Entrypoint(command_without_flags(&node)?),
        "ENV" => Instruction::Env(pairs(&node, "ENV")?),
        "EXPOSE" => {
            let mut ports = at_least_one(&node, "EXPOSE")?;
            flags::parse(&node.flags, &[])?;
            ports.sort();
            Instruction::Expose(ports)
        }
        "HEALTHCHECK" => Instruction::Healthcheck(healthcheck(&node)?),
        "LABEL" => Instruction::Label(pairs(&node, "LABEL")?),
        "MAINTAINER" => {
            lint.tell(warnings, Rule::MaintainerDeprecated, node.lines, || {
                "Maintainer instruction is deprecated in favor of using label".to_owned()
            });
            Instruction::Maintainer(exactly_one(&node, "MAINTAINER")?)
        }
        "ONBUILD" => Instruction::Onbuild(onbuild(&node)?),
        "RUN" => Instruction::Run(run(&node)?),
        "SHELL" => Instruction::Shell(shell(&node)?),
        "STOPSIGNAL" => {
            let [signal] = words(&node) else { return Err(argument("STOPSIGNAL requires exactly one argument")) };
            Instruction::StopSignal(signal.clone())
        }
        "USER" => Instruction::User(exactly_one(&node, "USER")?),
        "VOLUME" => Instruction::Volume(volumes(&node)?),
        "WORKDIR" => Instruction::Workdir(exactly_one(&node, "WORKDIR")?),
        _ => {
            let wrong = DockerfileError::new(Kind::UnknownInstruction, format!("unknown instruction: {}", node.name));
            return Err(wrong.near(&node.name, NAMES, false));
        }
    };
    let code = node.original.trim().to_owned();
    Ok(Parts::Step(Step { instruction, keyword: node.name, code, lines: node.lines, comments: node.comments }))
}

fn words(node: &Node) -> &[String] {
    match &node.arguments {
        Arguments::Words(words) | Arguments::Json(words) => words,
        Arguments::Pairs(_) | Arguments::Trigger(_) => &[],
    }
}

fn at_least_one(node: &Node, name: &str) -> Result<Vec<String>> {
    let words = words(node);
    if words.is_empty() {
        return Err(argument(format!("{name} requires at least one argument")));
    }
    Ok(words.to_vec())
}

fn exactly_one(node: &Node, name: &str) -> Result<String> {
    let [word] = words(node) else { return Err(argument(format!("{name} requires exactly one argument"))) };
    flags::parse(&node.flags, &[])?;
    Ok(word.clone())
}

fn from(node: Node, lint: &Linter, warnings: &mut Warnings) -> Result<Stage> {
    if let [_, keyword, name] = words(&node) {
        if *name != name.to_lowercase() {
            lint.tell(warnings, Rule::StageNameCasing, node.lines, || {
                format!("Stage name '{name}' should be lowercase")
            });
        }
        let lower = node.name == node.name.to_lowercase();
        let upper = node.name == node.name.to_uppercase();
        let wanted = if lower { keyword.to_lowercase() } else { keyword.to_uppercase() };
        if (lower || upper) && *keyword != wanted {
            lint.tell(warnings, Rule::FromAsCasing, node.lines, || {
                format!("'{keyword}' and '{}' keywords' casing do not match", node.name)
            });
        }
    }
    let (base, name) = match words(&node) {
        [base] => (base.clone(), None),
        [base, keyword, name] if keyword.eq_ignore_ascii_case("as") => {
            let lower = name.to_lowercase();
            let mut chars = lower.chars();
            let plain = chars.next().is_some_and(|it| it.is_ascii_lowercase())
                && chars.all(|it| it.is_ascii_lowercase() || it.is_ascii_digit() || "-_.".contains(it));
            if !plain {
                let name = quote(name);
                return Err(argument(format!(
                    "invalid name for build stage: {name}, name can't start with a number or contain symbols"
                )));
            }
            (base.clone(), Some(lower))
        }
        _ => return Err(argument("FROM requires either one or three arguments")),
    };
    let flags = flags::parse(&node.flags, &[("platform", Value)])?;
    if let Some(name) = &name {
        describe("FROM", &[name], &node, lint, warnings);
    }
    Ok(Stage {
        description: name.as_deref().map_or_else(String::new, |it| description(&node.comments, it)),
        name,
        base,
        platform: Some(flags.value("platform")).filter(|it| !it.is_empty()),
        steps: Vec::new(),
        code: node.original.trim().to_owned(),
        keyword: node.name,
        lines: node.lines,
        comments: node.comments,
    })
}

/// What a comment says of `name`, which it begins with.
fn description(comments: &[String], name: &str) -> String {
    let behind = |it: &String| it.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned);
    comments.iter().find_map(behind).unwrap_or_default()
}

fn describe(what: &str, names: &[&str], node: &Node, lint: &Linter, warnings: &mut Warnings) {
    let (Some(comment), Some(first)) = (node.comments.last(), names.first()) else { return };
    if names.contains(&comment.split(' ').next().unwrap_or_default()) {
        return;
    }
    let example = if names.len() > 1 { "<arg_key>" } else { first };
    lint.tell(warnings, Rule::InvalidDefinitionDescription, node.lines, || {
        format!("Comment for {what} should follow the format: `# {example} <description>`")
    });
}

fn pairs(node: &Node, name: &str) -> Result<Vec<Pair>> {
    flags::parse(&node.flags, &[])?;
    let pairs = match &node.arguments {
        Arguments::Pairs(pairs) if !pairs.is_empty() => pairs.clone(),
        _ => return Err(argument(format!("{name} requires at least one argument"))),
    };
    if pairs.iter().any(|it| it.name.is_empty()) {
        return Err(argument(format!("{name} names can not be blank")));
    }
    Ok(pairs)
}

fn args(node: &Node) -> Result<Vec<ArgDefinition>> {
    let one = |word: &String| {
        let (name, value) = match word.split_once('=') {
            Some(("", _)) => return Err(argument("ARG names can not be blank")),
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (word.clone(), None),
        };
        Ok(ArgDefinition { description: description(&node.comments, &name), name, value })
    };
    at_least_one(node, "ARG")?.iter().map(one).collect()
}

const FILES: [(&str, Takes); 4] = [("chown", Value), ("chmod", Value), ("link", Bool), ("exclude", Values)];

fn files(node: &Node, name: &str, flags: &Flags) -> Result<Files> {
    let Some((destination, sources)) = words(node).split_last() else { return Err(argument(name)) };
    if heredoc::parse(destination).ok().flatten().is_some() {
        return Err(argument(format!("{name} cannot accept a heredoc as a destination")));
    }
    let mut files = Files {
        sources: Vec::new(),
        contents: Vec::new(),
        destination: destination.clone(),
        chown: flags.value("chown"),
        chmod: flags.value("chmod"),
        link: flags.is_set("link"),
        exclude: flags.values("exclude"),
    };
    for source in sources {
        let Some(found) = heredoc::parse(source).ok().flatten() else {
            files.sources.push(source.clone());
            continue;
        };
        let content = node.heredocs.iter().rfind(|it| it.name == found.name).map_or("", |it| &it.content);
        let data = if found.chomp { heredoc::chomp(content) } else { content.to_owned() };
        files.contents.push(Content { name: found.name, data, expand: found.expand });
    }
    Ok(files)
}

fn two_arguments(node: &Node, name: &str) -> Result<()> {
    if words(node).len() < 2 {
        return Err(argument(format!(
            "{name} requires at least two arguments, but only one was provided. Destination could not be determined"
        )));
    }
    Ok(())
}

fn add(node: &Node) -> Result<Instruction> {
    two_arguments(node, "ADD")?;
    let known = [&FILES[..], &[("keep-git-dir", Bool), ("checksum", Value), ("unpack", Bool)]].concat();
    let flags = flags::parse(&node.flags, &known)?;
    Ok(Instruction::Add(Add {
        files: files(node, "ADD", &flags)?,
        checksum: flags.value("checksum"),
        keep_git_dir: flags.choice("keep-git-dir"),
        unpack: flags.choice("unpack"),
    }))
}

fn copy(node: &Node) -> Result<Instruction> {
    two_arguments(node, "COPY")?;
    let flags = flags::parse(&node.flags, &[&FILES[..], &[("from", Value), ("parents", Bool)]].concat())?;
    Ok(Instruction::Copy(Copy {
        files: files(node, "COPY", &flags)?,
        from: flags.value("from"),
        parents: flags.is_set("parents"),
    }))
}

fn command(node: &Node) -> CommandLine {
    let file = |it: &heredoc::Heredoc| InlineFile { name: it.name.clone(), data: it.content.clone(), chomp: it.chomp };
    CommandLine {
        arguments: words(node).to_vec(),
        shell: !matches!(node.arguments, Arguments::Json(_)),
        files: node.heredocs.iter().map(file).collect(),
    }
}

fn command_without_flags(node: &Node) -> Result<CommandLine> {
    flags::parse(&node.flags, &[])?;
    Ok(command(node))
}

fn run(node: &Node) -> Result<Run> {
    let known = [("mount", Values), ("network", Value), ("security", Value), ("device", Values)];
    let flags = flags::parse(&node.flags, &known)?;
    let mounts = flags.values("mount");
    for it in &mounts {
        mount::from(it)?;
    }
    let given = |name: &str| (!flags.values(name).is_empty()).then(|| flags.value(name));
    let network = match given("network").as_deref() {
        None | Some("default") => Network::Default,
        Some("none") => Network::None,
        Some("host") => Network::Host,
        Some(other) => return Err(argument(format!("invalid network mode {}", quote(other)))),
    };
    let insecure = match given("security").as_deref() {
        None | Some("sandbox") => false,
        Some("insecure") => true,
        Some(other) => return Err(argument(format!("security {} is not valid", quote(other)))),
    };
    let devices = flags.values("device").iter().map(|it| mount::device(it)).collect::<Result<_>>()?;
    Ok(Run { command: command(node), mounts, network, insecure, devices })
}

fn onbuild(node: &Node) -> Result<String> {
    let Arguments::Trigger(Some(inner)) = &node.arguments else {
        return Err(argument("ONBUILD requires at least one argument"));
    };
    flags::parse(&node.flags, &[])?;
    match &*inner.name.to_uppercase() {
        "ONBUILD" => return Err(argument("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")),
        name @ ("MAINTAINER" | "FROM") => return Err(argument(format!("{name} isn't allowed as an ONBUILD trigger"))),
        _ => {}
    }
    let rest = node.original.trim_start().get("ONBUILD".len()..).unwrap_or_default();
    let mut kept = rest.trim_start().to_owned();
    for it in &node.heredocs {
        kept.push('\n');
        kept.push_str(&it.content);
        kept.push_str(&it.name);
    }
    Ok(kept)
}

fn healthcheck(node: &Node) -> Result<Healthcheck> {
    let Some(kind) = &node.kind else { return Err(argument("HEALTHCHECK requires at least one argument")) };
    let command = words(node);
    let kind = kind.to_uppercase();
    if kind == "NONE" {
        if !command.is_empty() {
            return Err(argument("HEALTHCHECK NONE takes no arguments"));
        }
        return Ok(Healthcheck { test: vec![kind], ..Healthcheck::default() });
    }
    let known = ["interval", "timeout", "start-period", "start-interval", "retries"].map(|it| (it, Value));
    let flags = flags::parse(&node.flags, &known)?;
    if kind != "CMD" {
        return Err(argument(format!("Unknown type {} in HEALTHCHECK (try CMD)", quote(&kind))));
    }
    if command.is_empty() {
        return Err(argument("Missing command after HEALTHCHECK CMD"));
    }
    let form = if matches!(node.arguments, Arguments::Json(_)) { "CMD" } else { "CMD-SHELL" };
    let retries = match &*flags.value("retries") {
        "" => 0,
        text => {
            let number = text
                .parse::<i32>()
                .map_err(|_| argument(format!("strconv.ParseInt: parsing {}: invalid syntax", quote(text))))?;
            u32::try_from(number).map_err(|_| argument(format!("--retries cannot be negative ({number})")))?
        }
    };
    Ok(Healthcheck {
        test: std::iter::once(form.to_owned()).chain(command.iter().cloned()).collect(),
        interval: interval(&flags, "interval")?,
        timeout: interval(&flags, "timeout")?,
        start_period: interval(&flags, "start-period")?,
        start_interval: interval(&flags, "start-interval")?,
        retries,
    })
}

fn interval(flags: &Flags, name: &str) -> Result<i64> {
    let text = flags.value(name);
    if text.is_empty() {
        return Ok(0);
    }
    match duration::parse(&text)? {
        0 => Ok(0),
        short if short < 1_000_000 => Err(argument(format!("Interval {} cannot be less than 1ms", quote(name)))),
        long => Ok(long),
    }
}

fn shell(node: &Node) -> Result<Vec<String>> {
    flags::parse(&node.flags, &[])?;
    let words = at_least_one(node, "SHELL")?;
    if !matches!(node.arguments, Arguments::Json(_)) {
        return Err(argument("SHELL requires the arguments to be in JSON form"));
    }
    Ok(words)
}

fn volumes(node: &Node) -> Result<Vec<String>> {
    let words = at_least_one(node, "VOLUME")?;
    flags::parse(&node.flags, &[])?;
    let trimmed: Vec<String> = words.iter().map(|it| it.trim().to_owned()).collect();
    if trimmed.iter().any(String::is_empty) {
        return Err(argument("VOLUME specified can not be an empty string"));
    }
    Ok(trimmed)
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
