//! `image build --check`, `--call`: what a Dockerfile says, without building it, in the words and with the ends of `docker build`.

use std::{
    io::Read,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use container_engine::{
    build::{
        args::Options,
        dockerfile::{DockerfileError, lexer},
        graph::Bases,
        ignore::{self, Matcher},
        outline::{self, Report},
    },
    platform::Platform,
};

use crate::cli::out;

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("question").required(true))]
pub struct Build {
    /// The Dockerfile; - is standard input [default: PATH/Dockerfile]
    #[arg(long, short, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Look for mistakes; ends with 1 where there are some
    #[arg(long, group = "question")]
    check: bool,
    /// What to tell
    #[arg(long, group = "question")]
    call: Option<Call>,
    /// The stage [default: the last; for checks, all]
    #[arg(long, value_name = "STAGE")]
    target: Option<String>,
    /// A build argument: NAME=VALUE, or NAME for that of this command's environment; may be given again
    #[arg(long = "build-arg", value_name = "NAME=VALUE")]
    args: Vec<String>,
    /// What a stage or image is replaced by: NAME=SOURCE; may be given again
    #[arg(long = "build-context", value_name = "NAME=SOURCE")]
    contexts: Vec<String>,
    /// For which machines, as in linux/arm64
    #[arg(long)]
    platform: Option<Platform>,
    /// The folder of the context
    #[arg(default_value = ".")]
    path: PathBuf,
}

/// What can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Call {
    /// Mistakes
    #[value(alias = "lint")]
    Check,
    /// What the target can be given
    Outline,
    /// The stages
    Targets,
}

impl Build {
    pub async fn run(self, json: bool) -> anyhow::Result<ExitCode> {
        tokio::task::spawn_blocking(move || self.answer(json)).await.context("the command ended early")?
    }

    fn answer(&self, json: bool) -> anyhow::Result<ExitCode> {
        let file = self.file.clone().unwrap_or_else(|| self.path.join("Dockerfile"));
        let name = if file == Path::new("-") { "Dockerfile".to_owned() } else { file.display().to_string() };
        let text =
            read(&file, lexer::MAX_FILE)?.with_context(|| format!("there is no file {name}: name one with --file"))?;
        let options = self.options(&file)?;
        // Without images at hand: what they bring counts as not known.
        let bases = Bases::new();
        match self.call.unwrap_or(Call::Check) {
            Call::Check => Ok(check(&outline::check(&text, options, &bases), &name, &text, json)),
            Call::Outline => match outline::outline(&text, options, &bases) {
                Ok(found) => tell(json, || found.show(), || serde_json::to_string(&found)),
                Err(error) => Err(shown(&error, &name, &text)),
            },
            Call::Targets => match outline::targets(&text) {
                Ok(found) => tell(json, || found.show(), || serde_json::to_string(&found)),
                Err(error) => Err(shown(&error, &name, &text)),
            },
        }
    }

    fn options(&self, file: &Path) -> anyhow::Result<Options> {
        let mut options = Options::new(Platform::host());
        options.target.clone_from(&self.target);
        options.platform.clone_from(&self.platform);
        for given in &self.args {
            match given.split_once('=') {
                Some((name, value)) => _ = options.build_args.insert(name.to_owned(), value.to_owned()),
                None => options.build_args.extend(std::env::var(given).ok().map(|value| (given.clone(), value))),
            }
        }
        for given in &self.contexts {
            let Some((name, _)) = given.split_once('=') else {
                bail!("--build-context {given}: write it like NAME=SOURCE");
            };
            options.contexts.insert(name.to_owned());
        }
        options.ignore = self.ignored(file)?;
        Ok(options)
    }

    /// The patterns beside the Dockerfile, else those of the context.
    fn ignored(&self, file: &Path) -> anyhow::Result<Option<Matcher>> {
        let mut own = file.as_os_str().to_owned();
        own.push(".dockerignore");
        for path in [PathBuf::from(own), self.path.join(".dockerignore")] {
            if let Some(text) = read(&path, ignore::MAX_FILE)? {
                let matcher = ignore::read(&text).and_then(|it| Matcher::new(&it));
                return matcher.map(Some).with_context(|| path.display().to_string());
            }
        }
        Ok(None)
    }
}

/// A whole file, bytes that are no text replaced; `None` where there is none.
fn read(path: &Path, most: usize) -> anyhow::Result<Option<String>> {
    let failed = || format!("cannot read {}", path.display());
    let mut bytes = Vec::new();
    let limit = most as u64 + 1;
    if path == Path::new("-") {
        std::io::stdin().lock().take(limit).read_to_end(&mut bytes).with_context(failed)?;
    } else {
        let opened = match std::fs::File::open(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            opened => opened.with_context(failed)?,
        };
        opened.take(limit).read_to_end(&mut bytes).with_context(failed)?;
    }
    if bytes.len() > most {
        bail!("{} is larger than {most} bytes", path.display());
    }
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

fn tell(
    json: bool,
    text: impl FnOnce() -> String,
    value: impl FnOnce() -> serde_json::Result<String>,
) -> anyhow::Result<ExitCode> {
    out(if json { value()? } else { text().trim_end_matches('\n').to_owned() });
    Ok(ExitCode::SUCCESS)
}

/// With the lines in question above it.
fn shown(error: &DockerfileError, name: &str, text: &str) -> anyhow::Error {
    let shown = error.show(name, text);
    match shown.rsplit_once("ERROR: ") {
        Some((excerpt, _)) if !excerpt.is_empty() => anyhow::anyhow!("{error}\n{}", excerpt.trim_end()),
        _ => anyhow::anyhow!("{name}: {error}"),
    }
}

fn check(report: &Report, name: &str, text: &str, json: bool) -> ExitCode {
    if json {
        out(report.json(name, text));
    } else {
        if report.error.is_none() {
            out(match report.warnings.0.len() {
                0 => "Check complete, no warnings found.".to_owned(),
                1 => "Check complete, 1 warning has been found!".to_owned(),
                count => format!("Check complete, {count} warnings have been found!"),
            });
        }
        let shown = report.show(name, text);
        if !shown.is_empty() {
            out(shown.trim_end_matches('\n'));
        }
    }
    if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        build: Build,
    }

    fn ask(folder: &Path, flags: &[&str]) -> anyhow::Result<ExitCode> {
        let words = ["build"].iter().chain(flags).map(ToString::to_string).chain([folder.display().to_string()]);
        Command::try_parse_from(words)?.build.answer(true)
    }

    #[test]
    fn answers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        assert!(ask(path, &[]).is_err(), "what to tell must be said");
        assert!(ask(path, &["--check"]).unwrap_err().to_string().contains("Dockerfile: name one with --file"));
        std::fs::write(path.join("Dockerfile"), "ARG V=a\nFROM $V AS x\nCOPY out /\nRUN ${U}\n").unwrap();
        let code = |flags: &[&str]| format!("{:?}", ask(path, flags).unwrap());
        let (good, bad) = (format!("{:?}", ExitCode::SUCCESS), format!("{:?}", ExitCode::from(1)));
        assert_eq!(code(&["--check"]), good);
        std::fs::write(path.join(".dockerignore"), "out\n").unwrap();
        assert_eq!(code(&["--call=lint"]), bad);
        std::fs::write(path.join("Dockerfile.dockerignore"), "other\n").unwrap();
        assert_eq!(code(&["--check", "--build-arg", "V=b", "--platform=linux/arm/v7"]), good);
        assert_eq!(code(&["--call=outline", "--target=x"]), good);
        assert_eq!(code(&["--call=targets"]), good);
        let error = ask(path, &["--call=outline", "--target=y"]).unwrap_err().to_string();
        assert!(error.contains("target stage \"y\" could not be found"), "{error}");
        assert!(ask(path, &["--check", "--build-context=x"]).is_err());
        std::fs::write(path.join("bad"), "FROM a\nCOPY b\n").unwrap();
        let file = path.join("bad").display().to_string();
        let error = ask(path, &["--call=targets", "-f", &file]).unwrap_err().to_string();
        assert!(error.contains("bad:2\n---") && error.contains("COPY requires at least two arguments"), "{error}");
    }
}
