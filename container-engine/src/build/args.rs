//! What a build is asked for, and the variables that hold before the first FROM: of platforms, of `--build-arg`, of global ARGs.

use std::collections::{BTreeMap, BTreeSet};

use super::dockerfile::instruction::{ArgDefinition, Instruction, Step};
use super::dockerfile::shell::{Shell, Variables};
use super::dockerfile::{Lines, Result};
use super::ignore::Matcher;
use crate::platform::Platform;

/// How an image is to be built.
#[derive(Debug, Clone)]
pub struct Options {
    /// The stage; none: the last.
    pub target: Option<String>,
    /// `--build-arg`.
    pub build_args: BTreeMap<String, String>,
    /// `--platform`; none: that of the builder.
    pub platform: Option<Platform>,
    /// What the builder runs on.
    pub build_platform: Platform,
    /// `--label`.
    pub labels: BTreeMap<String, String>,
    /// Names of `--build-context`, which replace stages and images of that name.
    pub contexts: BTreeSet<String>,
    /// What is not in the context.
    pub ignore: Option<Matcher>,
    /// `--no-cache` (an empty list), or the stages of `--no-cache-filter`.
    pub no_cache: Option<Vec<String>>,
    /// Every stage is looked at, needed or not.
    pub all_stages: bool,
    /// The rules, where they are not those of `# check=`.
    pub check: Option<String>,
}

impl Options {
    /// The default for a builder of this platform.
    pub fn new(build_platform: Platform) -> Self {
        Self {
            target: None,
            build_args: BTreeMap::new(),
            platform: None,
            build_platform,
            labels: BTreeMap::new(),
            contexts: BTreeSet::new(),
            ignore: None,
            no_cache: None,
            all_stages: false,
            check: None,
        }
    }

    /// What the image is for.
    pub fn target_platform(&self) -> &Platform {
        self.platform.as_ref().unwrap_or(&self.build_platform)
    }

    pub(super) fn ignores_cache(&self, stage: Option<&str>) -> bool {
        let named = |it: &String| stage.is_some_and(|stage| stage.eq_ignore_ascii_case(it));
        self.no_cache.as_ref().is_some_and(|it| it.is_empty() || it.iter().any(named))
    }
}

/// Variables by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope(BTreeMap<String, String>);

impl Variables for Scope {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

impl Scope {
    /// Sets one.
    pub fn set(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.0.insert(name.into(), value.into());
    }

    /// All names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// All, by name.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

/// An ARG with the value it got: what the outline tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArgInfo {
    /// As it was defined.
    pub definition: ArgDefinition,
    /// What it is.
    pub value: String,
    /// Other ARGs that its default has.
    pub needs: BTreeSet<String>,
    /// Where.
    pub lines: Lines,
}

/// `BUILDPLATFORM`, `TARGETPLATFORM` and their parts, and `TARGETSTAGE`; a `--build-arg` of that name wins.
pub fn predefined(options: &Options, stage: Option<&str>) -> Scope {
    let (build, target) = (&options.build_platform, options.target_platform());
    let text = |it: &str| it.to_owned();
    let variant = |it: &Platform| it.variant.clone().unwrap_or_default();
    let all = [
        ("BUILDPLATFORM", build.to_string()),
        ("BUILDOS", text(&build.os)),
        ("BUILDOSVERSION", String::new()),
        ("BUILDARCH", text(&build.architecture)),
        ("BUILDVARIANT", variant(build)),
        ("TARGETPLATFORM", target.to_string()),
        ("TARGETOS", text(&target.os)),
        ("TARGETOSVERSION", String::new()),
        ("TARGETARCH", text(&target.architecture)),
        ("TARGETVARIANT", variant(target)),
        ("TARGETSTAGE", text(stage.unwrap_or("default"))),
    ];
    let mut scope = Scope::default();
    for (name, value) in all {
        scope.set(name, options.build_args.get(name).cloned().unwrap_or(value));
    }
    scope
}

/// The scope after the ARGs before the first FROM, and these ARGs.
pub fn global(
    mut scope: Scope,
    shell: Shell,
    steps: &[Step],
    build_args: &BTreeMap<String, String>,
) -> Result<(Scope, BTreeMap<String, ArgInfo>)> {
    let mut all: BTreeMap<String, ArgInfo> = BTreeMap::new();
    for step in steps {
        let Instruction::Arg(args) = &step.instruction else { continue };
        for arg in args {
            let mut needs = BTreeSet::new();
            let mut value = build_args.get(&arg.name).cloned();
            if let (None, Some(default)) = (&value, &arg.value) {
                let expanded = shell.expand(default, &scope).map_err(|it| it.at(step.lines))?;
                value = Some(expanded.text);
                needs = expanded.matched;
                if needs.remove(&arg.name) {
                    needs.extend(all.get(&arg.name).into_iter().flat_map(|it| it.needs.clone()));
                }
            }
            if let Some(value) = &value {
                scope.set(&arg.name, value);
            }
            let value = value.unwrap_or_default();
            all.insert(arg.name.clone(), ArgInfo { definition: arg.clone(), value, needs, lines: step.lines });
        }
    }
    Ok((scope, all))
}

/// Proxies are given to every RUN, and stay out of cache and history.
pub fn is_proxy(name: &str) -> bool {
    const NAMES: [&str; 5] = ["http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy"];
    NAMES.iter().any(|it| name.eq_ignore_ascii_case(it))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::dockerfile::parse;

    #[test]
    fn of_platforms() {
        let mut options = Options::new("linux/amd64".parse().unwrap());
        options.platform = Some("linux/arm/v7".parse().unwrap());
        options.build_args.insert("TARGETOS".into(), "plan9".into());
        let scope = predefined(&options, None);
        for (name, expected) in [
            ("BUILDPLATFORM", "linux/amd64"),
            ("BUILDVARIANT", ""),
            ("TARGETPLATFORM", "linux/arm/v7"),
            ("TARGETARCH", "arm"),
            ("TARGETVARIANT", "v7"),
            ("TARGETOS", "plan9"),
            ("TARGETSTAGE", "default"),
        ] {
            assert_eq!(scope.get(name), Some(expected), "{name}");
        }
    }

    #[test]
    fn before_the_first_from() {
        let file = parse::dockerfile("ARG A=1 B=${A}2\nARG C\nARG D=$C-${E:-e}\nARG A=${A}x\nFROM a").unwrap();
        let given = BTreeMap::from([("C".to_owned(), "c".to_owned())]);
        let (scope, args) = global(Scope::default(), Shell::new('\\'), &file.global, &given).unwrap();
        let values: Vec<_> = scope.pairs().collect();
        assert_eq!(values, [("A", "1x"), ("B", "12"), ("C", "c"), ("D", "c-e")]);
        assert_eq!(args["D"].needs, BTreeSet::from(["C".to_owned()]));
        let file = parse::dockerfile("ARG A=\"${B:?no b}\"\nFROM a").unwrap();
        let error = global(Scope::default(), Shell::new('\\'), &file.global, &given).unwrap_err();
        assert_eq!((error.to_string().ends_with("B: no b"), error.lines()[0].first), (true, 1));
    }
}
