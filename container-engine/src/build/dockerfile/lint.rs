//! The rules of `--check`: BuildKit's names, texts and pages, which of them are looked at, and what they found.

use super::directive::Directives;
use super::error::{DockerfileError, Kind, Result, argument};
use super::mount::boolean;
use super::source::{Lines, excerpt, quote};

macro_rules! rules {
    ($($name:ident $page:literal $description:literal)*) => {
        /// A rule.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[allow(missing_docs)] // `description` says it.
        pub enum Rule { $($name),* }

        impl Rule {
            /// All.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// Its name.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name)),* }
            }

            /// What it asks for.
            pub fn description(self) -> &'static str {
                match self { $(Self::$name => $description),* }
            }

            fn page(self) -> &'static str {
                match self { $(Self::$name => $page),* }
            }
        }
    };
}

rules! {
    StageNameCasing "stage-name-casing" "Stage names should be lowercase"
    FromAsCasing "from-as-casing" "The 'as' keyword should match the case of the 'from' keyword"
    NoEmptyContinuation "no-empty-continuation" "Empty continuation lines will become errors in a future release"
    ConsistentInstructionCasing "consistent-instruction-casing" "All commands within the Dockerfile should use the same casing (either upper or lower)"
    DuplicateStageName "duplicate-stage-name" "Stage names should be unique"
    ReservedStageName "reserved-stage-name" "Reserved words should not be used as stage names"
    JSONArgsRecommended "json-args-recommended" "JSON arguments recommended for ENTRYPOINT/CMD to prevent unintended behavior related to OS signals"
    MaintainerDeprecated "maintainer-deprecated" "The MAINTAINER instruction is deprecated, use a label instead to define an image author"
    UndefinedArgInFrom "undefined-arg-in-from" "FROM command must use declared ARGs"
    WorkdirRelativePath "workdir-relative-path" "Relative workdir without an absolute workdir declared within the build can have unexpected results if the base image changes"
    UndefinedVar "undefined-var" "Variables should be defined before their use"
    MultipleInstructionsDisallowed "multiple-instructions-disallowed" "Multiple instructions of the same type should not be used in the same stage"
    LegacyKeyValueFormat "legacy-key-value-format" "Legacy key/value format with whitespace separator should not be used"
    InvalidBaseImagePlatform "" "Base image platform does not match expected target platform"
    RedundantTargetPlatform "redundant-target-platform" "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior"
    SecretsUsedInArgOrEnv "secrets-used-in-arg-or-env" "Sensitive data should not be used in the ARG or ENV commands"
    InvalidDefaultArgInFrom "invalid-default-arg-in-from" "Default value for global ARG results in an empty or invalid base image name"
    FromPlatformFlagConstDisallowed "from-platform-flag-const-disallowed" "FROM --platform flag should not use a constant value"
    CopyIgnoredFile "copy-ignored-file" "Attempting to Copy file that is excluded by .dockerignore"
    InvalidDefinitionDescription "invalid-definition-description" "Comment for build stage or argument should follow the format: `# <arg/stage name> <description>`. If this is not intended to be a description comment, add an empty line or comment between the instruction and the comment."
    ExposeProtoCasing "expose-proto-casing" "Protocol in EXPOSE instruction should be lowercase"
    ExposeInvalidFormat "expose-invalid-format" "IP address and host-port mapping should not be used in EXPOSE instruction. This will become an error in a future release"
}

/// Most warnings that are kept.
const MAX_WARNINGS: usize = 1000;

impl Rule {
    /// The page that explains it.
    pub fn url(self) -> Option<String> {
        (!self.page().is_empty()).then(|| format!("https://docs.docker.com/go/dockerfile/rule/{}/", self.page()))
    }

    /// Looked at only where asked for.
    pub fn is_experimental(self) -> bool {
        self == Self::InvalidDefinitionDescription
    }
}

/// What a rule found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// Which.
    pub rule: Rule,
    /// What is wrong.
    pub detail: String,
    /// Where.
    pub lines: Lines,
}

/// What the rules found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Warnings(pub Vec<Warning>);

impl Warnings {
    /// As `docker build --check` prints them, by line.
    pub fn show(&self, name: &str, text: &str) -> String {
        let mut sorted: Vec<&Warning> = self.0.iter().collect();
        sorted.sort_by_key(|it| it.lines.first);
        let one = |it: &Warning| {
            let page = it.rule.url().map_or_else(String::new, |url| format!(" - {url}"));
            let excerpt = excerpt(name, text, &[it.lines]).unwrap_or_default();
            format!("\nWARNING: {}{page}\n{}\n{excerpt}", it.rule.name(), it.detail)
        };
        sorted.into_iter().map(one).collect()
    }
}

/// Which rules are looked at.
#[allow(clippy::struct_excessive_bools)] // Each is an option of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Linter {
    silent: bool,
    skip_all: bool,
    skip: Vec<String>,
    experimental_all: bool,
    experimental: Vec<String>,
    /// A warning is an error.
    error: bool,
}

impl Linter {
    /// Looks at nothing.
    pub fn silent() -> Self {
        Self { silent: true, ..Self::default() }
    }

    /// What `# check=` or `--build-arg BUILDKIT_DOCKERFILE_CHECK=` asks for: `skip=A,B;error=true;experimental=all`.
    pub fn parse(text: &str) -> Result<Self> {
        let mut linter = Self::default();
        let text = text.trim();
        if text.is_empty() {
            return Ok(linter);
        }
        for part in text.splitn(3, ';') {
            let invalid = |what: &str| argument(format!("invalid check option {}", quote(what)));
            let (key, value) = part.split_once('=').ok_or_else(|| invalid(part))?;
            let value = value.trim();
            let names = || value.split(',').map(|it| it.trim().to_owned()).collect();
            match key.trim() {
                "skip" if value == "all" => linter.skip_all = true,
                "skip" => linter.skip = names(),
                "experimental" if value == "all" => linter.experimental_all = true,
                "experimental" => linter.experimental = names(),
                "error" => {
                    let wrong = || argument(format!("failed to parse check option {}", quote(part)));
                    linter.error = boolean(value).ok_or_else(wrong)?;
                }
                other => return Err(invalid(other)),
            }
        }
        Ok(linter)
    }

    /// With what a comment above an instruction asks for: `# check=skip=…`.
    #[must_use]
    pub fn with_comments(&self, comments: &[String]) -> Self {
        let mut merged = self.clone();
        for comment in comments {
            let Ok(Some(found)) = Directives::new("").line(comment) else { continue };
            if found.name != "check" {
                continue;
            }
            if let Ok(other) = Self::parse(found.value.split(' ').next().unwrap_or_default()) {
                merged.skip_all |= other.skip_all;
                merged.experimental_all |= other.experimental_all;
                merged.skip.extend(other.skip);
                merged.experimental.extend(other.experimental);
            }
            break;
        }
        merged
    }

    fn looks_at(&self, rule: Rule) -> bool {
        let named = |names: &[String]| names.iter().any(|it| it == rule.name());
        if self.silent {
            return false;
        }
        if rule.is_experimental() {
            return self.experimental_all || named(&self.experimental);
        }
        !self.skip_all && !named(&self.skip)
    }

    /// Keeps what a rule found, where it is looked at.
    pub fn tell(&self, warnings: &mut Warnings, rule: Rule, lines: Lines, detail: impl FnOnce() -> String) {
        if self.looks_at(rule) && warnings.0.len() < MAX_WARNINGS {
            warnings.0.push(Warning { rule, detail: detail(), lines });
        }
    }

    /// An error where there are warnings and they count as one.
    pub fn verdict(&self, warnings: &Warnings) -> Result<()> {
        if !self.error || warnings.0.is_empty() {
            return Ok(());
        }
        let mut names: Vec<&str> = warnings.0.iter().map(|it| it.rule.name()).collect();
        names.sort_unstable();
        names.dedup();
        Err(DockerfileError::new(Kind::Lint, format!("lint violation found for rules: {}", names.join(", "))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options() {
        let looked_at = |text: &str, rule| Linter::parse(text).unwrap().looks_at(rule);
        for (text, casing, description) in [
            ("", true, false),
            ("skip=FromAsCasing, UndefinedVar", false, false),
            ("skip=all", false, false),
            ("experimental=all;skip=all", false, true),
            ("experimental=InvalidDefinitionDescription", true, true),
        ] {
            assert_eq!(looked_at(text, Rule::FromAsCasing), casing, "{text}");
            assert_eq!(looked_at(text, Rule::InvalidDefinitionDescription), description, "{text}");
        }
        for (text, expected) in [
            ("skip", "invalid check option \"skip\""),
            ("foo=1", "invalid check option \"foo\""),
            ("error=maybe", "failed to parse check option \"error=maybe\""),
        ] {
            assert_eq!(Linter::parse(text).unwrap_err().to_string(), expected);
        }
        let above = Linter::default().with_comments(&["a".into(), "check=skip=FromAsCasing".into()]);
        assert!(!above.looks_at(Rule::FromAsCasing) && above.looks_at(Rule::UndefinedVar));
    }

    #[test]
    fn verdicts() {
        let linter = Linter::parse("error=true").unwrap();
        let mut warnings = Warnings::default();
        assert!(linter.verdict(&warnings).is_ok());
        for rule in [Rule::UndefinedVar, Rule::FromAsCasing, Rule::UndefinedVar] {
            linter.tell(&mut warnings, rule, Lines::new(1, 1), || "x".to_owned());
        }
        let error = linter.verdict(&warnings).unwrap_err().to_string();
        assert_eq!(error, "lint violation found for rules: FromAsCasing, UndefinedVar");
        let shown = Warnings(warnings.0[..1].to_vec()).show("Dockerfile", "FROM a");
        let expected = "\nWARNING: UndefinedVar - https://docs.docker.com/go/dockerfile/rule/undefined-var/\nx\nDockerfile:1\n\
                        --------------------\n   1 | >>> FROM a\n--------------------\n";
        assert_eq!(shown, expected);
    }

    #[test]
    fn all_have_a_page() {
        assert_eq!(Rule::ALL.len(), 22);
        let without: Vec<_> = Rule::ALL.iter().filter(|it| it.url().is_none()).collect();
        assert_eq!(without, [&Rule::InvalidBaseImagePlatform]);
    }
}
