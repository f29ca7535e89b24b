//! Rules of `--check` that look at more than one instruction, or at what variables are.

use std::collections::{BTreeMap, BTreeSet};

use super::args::{self, Scope};
use super::dockerfile::instruction::{Dockerfile, Stage};
use super::dockerfile::lint::{Linter, Rule, Warnings};
use super::dockerfile::shell::{Expanded, Shell, Variables as _};
use super::dockerfile::{Lines, quote, suggest};
use super::graph::Graph;
use crate::platform::Platform;
use crate::reference::ImageRef;

pub(super) fn stage_names(file: &Dockerfile, lint: &Linter, warnings: &mut Warnings) {
    let mut seen = BTreeSet::new();
    for stage in &file.stages {
        let Some(name) = &stage.name else { continue };
        if ["context", "scratch"].contains(&name.as_str()) {
            lint.tell(warnings, Rule::ReservedStageName, stage.lines, || {
                format!("Stage name should not use the same name as reserved stage {}", quote(name))
            });
        }
        if !seen.insert(name) {
            lint.tell(warnings, Rule::DuplicateStageName, stage.lines, || {
                format!("Duplicate stage name {}, stage names should be unique", quote(name))
            });
        }
    }
}

pub(super) fn casing(file: &Dockerfile, lint: &Linter, warnings: &mut Warnings) {
    let steps = |it: &Stage| it.steps.iter().map(|it| (it.keyword.clone(), it.lines)).collect::<Vec<_>>();
    let all: Vec<(String, Lines)> =
        file.stages.iter().flat_map(|it| std::iter::once((it.keyword.clone(), it.lines)).chain(steps(it))).collect();
    let lower = all.iter().filter(|it| it.0 == it.0.to_lowercase()).count();
    let upper = all.iter().filter(|it| it.0 != it.0.to_lowercase() && it.0 == it.0.to_uppercase()).count();
    let (wanted, fold): (_, fn(&str) -> String) =
        if lower > upper { ("lowercase", str::to_lowercase) } else { ("uppercase", str::to_uppercase) };
    for (keyword, lines) in all {
        if keyword != fold(&keyword) {
            lint.tell(warnings, Rule::ConsistentInstructionCasing, lines, || {
                format!("Command '{keyword}' should match the case of the command majority ({wanted})")
            });
        }
    }
}

/// Bases must be names of images even where no `--build-arg` is given.
pub(super) fn default_bases(file: &Dockerfile, shell: Shell, scope: &Scope, lint: &Linter, warnings: &mut Warnings) {
    let Ok((scope, _)) = args::global(scope.clone(), shell, &file.global, &BTreeMap::new()) else { return };
    for stage in &file.stages {
        let Ok(base) = shell.expand(&stage.base, &scope) else { return };
        if base.text.parse::<ImageRef>().is_err() {
            lint.tell(warnings, Rule::InvalidDefaultArgInFrom, stage.lines, || {
                format!("Default value for ARG {} results in empty or invalid base image name", stage.base)
            });
        }
    }
}

/// `suggestion` of a name, in brackets.
pub(super) fn hint(name: &str, sign: &str, names: Vec<&str>) -> String {
    suggest::nearest(name, names.into_iter().take(1000), true)
        .map_or_else(String::new, |it| format!(" (did you mean {sign}{it}?)"))
}

pub(super) fn undeclared(
    unmatched: &BTreeSet<String>,
    graph: &Graph,
    lines: Lines,
    lint: &Linter,
    warnings: &mut Warnings,
) {
    for name in unmatched.iter().filter(|it| !graph.args.contains_key(*it)) {
        lint.tell(warnings, Rule::UndefinedArgInFrom, lines, || {
            let names = graph.args.keys().map(String::as_str).chain(graph.global.names()).collect();
            format!("FROM argument '{name}' is not declared{}", hint(name, "", names))
        });
    }
}

pub(super) fn platform(
    text: &str,
    found: &Expanded,
    from: &Stage,
    global: &Scope,
    lint: &Linter,
    warnings: &mut Warnings,
) {
    let only = found.matched.len() == 1 && found.unmatched.is_empty() && found.matched.contains("TARGETPLATFORM");
    if only && global.get("TARGETPLATFORM") == Some(&found.text) {
        lint.tell(warnings, Rule::RedundantTargetPlatform, from.lines, || {
            format!("Setting platform to predefined {text} in FROM is redundant as this is the default behavior")
        });
    }
    if !found.matched.is_empty() || !found.unmatched.is_empty() {
        return;
    }
    let Ok(parsed) = found.text.parse::<Platform>() else { return };
    let name = from.name.as_deref().unwrap_or_default();
    if !name.contains(&parsed.os) && !name.contains(&parsed.architecture) {
        lint.tell(warnings, Rule::FromPlatformFlagConstDisallowed, from.lines, || {
            format!("FROM --platform flag should not use constant value {}", quote(&found.text))
        });
    }
}

/// Whether a name looks like that of a secret: one of its words is, and none says that it is not.
pub(super) fn names_secret(name: &str) -> bool {
    const SECRET: [&str; 10] =
        ["apikey", "auth", "credential", "credentials", "key", "password", "pword", "passwd", "secret", "token"];
    const HARMLESS: [&str; 3] = ["public", "file", "version"];
    let lower = name.to_lowercase();
    let mut words = lower.split('_');
    words.clone().any(|it| SECRET.contains(&it)) && !words.any(|it| HARMLESS.contains(&it))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets() {
        for (name, expected) in [
            ("API_KEY", true),
            ("DATABASE_PASSWORD", true),
            ("GITHUB_TOKEN_X", true),
            ("AUTH", true),
            ("secret_MESSAGE", true),
            ("PUBLIC_KEY", false),
            ("TOKEN_FILE", false),
            ("MONKEY", false),
            ("KEYBOARD", false),
            ("", false),
        ] {
            assert_eq!(names_secret(name), expected, "{name}");
        }
    }
}
