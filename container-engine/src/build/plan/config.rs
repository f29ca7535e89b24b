//! Instructions that change the configuration of the image, and ARG.

use serde_json::json;

use super::{Action, MAX_ENTRIES, Planner, expose, too_many};
use crate::build::args::ArgInfo;
use crate::build::dockerfile::instruction::{ArgDefinition, CommandLine, Healthcheck, Instruction, Step};
use crate::build::dockerfile::lint::Rule;
use crate::build::dockerfile::shell::Variables as _;
use crate::build::dockerfile::{Lines, Pair, Result, argument, duration, quote};
use crate::build::graph::Node;
use crate::build::{ignore, rules};

/// ARGs that are for the builder alone.
const NO_VARIABLES: [&str; 2] = ["BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"];

/// `["a" "b"]`: Go's `%q` of a list.
fn quoted(list: &[String]) -> String {
    format!("[{}]", list.iter().map(|it| quote(it)).collect::<Vec<_>>().join(" "))
}

/// `path` from the folder `now`.
pub(super) fn workdir(now: &str, path: &str) -> String {
    if path.starts_with('/') {
        return path.to_owned();
    }
    ignore::clean(&format!("/{now}/{path}"))
}

impl<'a> Planner<'a> {
    pub(super) fn configure(&mut self, node: &'a Node) -> Result<()> {
        let step = &node.step;
        let lines = step.lines;
        match &step.instruction {
            Instruction::Env(pairs) => return self.env(pairs, step),
            Instruction::Label(pairs) => return self.label(pairs, step),
            Instruction::Cmd(line) => self.cmd(line, step)?,
            Instruction::Entrypoint(line) => self.entrypoint(line, step)?,
            Instruction::Healthcheck(check) => self.healthcheck(check, step)?,
            Instruction::Workdir(path) => return self.workdir(path, node),
            Instruction::Expose(ports) => {
                let mut all = Vec::new();
                for port in ports {
                    let words = self.graph.shell.expand(port, &self.env)?.words;
                    for word in words {
                        all.extend(expose::ports(&word, lines, &self.lint, self.warnings)?);
                    }
                    if all.len() > 2 * expose::MAX_PORTS {
                        return Err(too_many("ports"));
                    }
                }
                self.remember(format!("EXPOSE [{}]", all.join(" ")), false)?;
                self.config.config.exposed_ports.extend(all.into_iter().map(|it| (it, json!({}))));
            }
            Instruction::Maintainer(name) => {
                self.config.author.clone_from(name);
                self.remember(format!("MAINTAINER {name}"), false)?;
            }
            Instruction::Shell(shell) => {
                self.config.config.shell.clone_from(shell);
                self.remember(format!("SHELL [{}]", shell.join(" ")), false)?;
            }
            Instruction::StopSignal(signal) => {
                let signal = self.expand(signal, lines)?;
                if !is_signal(&signal) {
                    return Err(argument(format!("invalid signal: {signal}")));
                }
                self.config.config.stop_signal.clone_from(&signal);
                self.remember(format!("STOPSIGNAL {signal}"), false)?;
            }
            Instruction::User(user) => {
                let user = self.expand(user, lines)?;
                self.config.config.user.clone_from(&user);
                self.remember(format!("USER {user}"), false)?;
            }
            Instruction::Volume(paths) => {
                let all = paths.iter().map(|it| self.expand(it, lines)).collect::<Result<Vec<_>>>()?;
                if all.iter().any(String::is_empty) {
                    return Err(argument("VOLUME specified can not be an empty string"));
                }
                self.remember(format!("VOLUME [{}]", all.join(" ")), false)?;
                self.config.config.volumes.extend(all.into_iter().map(|it| (it, json!({}))));
                if self.config.config.volumes.len() > MAX_ENTRIES {
                    return Err(too_many("volumes"));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn legacy(&mut self, pair: &Pair, step: &Step) {
        if pair.legacy {
            let name = &step.keyword;
            self.lint.tell(self.warnings, Rule::LegacyKeyValueFormat, step.lines, || {
                format!("\"{name} key=value\" should be used instead of legacy \"{name} key value\" format")
            });
        }
    }

    fn secret(&mut self, what: &str, name: &str, lines: Lines) {
        if rules::names_secret(name) {
            self.lint.tell(self.warnings, Rule::SecretsUsedInArgOrEnv, lines, || {
                format!("Do not use ARG or ENV instructions for sensitive data ({what} {})", quote(name))
            });
        }
    }

    /// All with the variables of before.
    fn pairs(&mut self, pairs: &[Pair], lines: Lines) -> Result<Vec<(String, String)>> {
        pairs.iter().map(|it| Ok((self.expand(&it.name, lines)?, self.expand(&it.value, lines)?))).collect()
    }

    fn env(&mut self, pairs: &[Pair], step: &Step) -> Result<()> {
        let all = self.pairs(pairs, step.lines)?;
        let mut message = "ENV".to_owned();
        for ((name, value), pair) in all.into_iter().zip(pairs) {
            self.legacy(pair, step);
            self.secret("ENV", &name, step.lines);
            let text = format!("{name}={value}");
            message.push(' ');
            message.push_str(&text);
            let env = &mut self.config.config.env;
            match env.iter_mut().find(|it| it.split('=').next() == Some(&name)) {
                Some(old) => *old = text,
                None => env.push(text),
            }
            if env.len() > MAX_ENTRIES {
                return Err(too_many("variables"));
            }
            self.env.set(name, value);
        }
        self.remember(message, false).map(|_| ())
    }

    fn label(&mut self, pairs: &[Pair], step: &Step) -> Result<()> {
        let all = self.pairs(pairs, step.lines)?;
        let mut message = "LABEL".to_owned();
        for ((name, value), pair) in all.into_iter().zip(pairs) {
            self.legacy(pair, step);
            message.push_str(&format!(" {name}={value}"));
            self.config.config.labels.insert(name, value);
        }
        if self.config.config.labels.len() > MAX_ENTRIES {
            return Err(too_many("labels"));
        }
        self.remember(message, false).map(|_| ())
    }

    /// The shell that a command gets.
    pub(super) fn with_shell(&self, arguments: &[String]) -> Vec<String> {
        let shell = &self.config.config.shell;
        let mut all = if shell.is_empty() { vec!["/bin/sh".to_owned(), "-c".to_owned()] } else { shell.clone() };
        all.push(arguments.join(" "));
        all
    }

    /// The command, in front of it the shell where it is in that form: then signals do not reach it.
    fn command(&mut self, line: &CommandLine, step: &Step) -> Vec<String> {
        if !line.shell {
            return line.arguments.clone();
        }
        if self.config.config.shell.is_empty() {
            let name = &step.keyword;
            self.lint.tell(self.warnings, Rule::JSONArgsRecommended, step.lines, || {
                format!("JSON arguments recommended for {name} to prevent unintended behavior related to OS signals")
            });
        }
        self.with_shell(&line.arguments)
    }

    /// Where it stood before, only the last counts.
    fn once(&mut self, before: Option<Lines>, step: &Step) -> Lines {
        if let Some(before) = before {
            let name = &step.keyword;
            self.lint.tell(self.warnings, Rule::MultipleInstructionsDisallowed, before, || {
                format!("Multiple {name} instructions should not be used in the same stage because only the last one will be used")
            });
        }
        step.lines
    }

    fn cmd(&mut self, line: &CommandLine, step: &Step) -> Result<()> {
        self.cmd = Some(self.once(self.cmd, step));
        let arguments = self.command(line, step);
        self.remember(format!("CMD {}", quoted(&arguments)), false)?;
        self.config.config.cmd = arguments;
        self.config.config.args_escaped = true;
        Ok(())
    }

    fn entrypoint(&mut self, line: &CommandLine, step: &Step) -> Result<()> {
        self.entrypoint = Some(self.once(self.entrypoint, step));
        let arguments = self.command(line, step);
        self.remember(format!("ENTRYPOINT {}", quoted(&arguments)), false)?;
        self.config.config.entrypoint = arguments;
        // The command of the base was meant for another.
        if self.cmd.is_none() {
            self.config.config.cmd.clear();
        }
        Ok(())
    }

    fn healthcheck(&mut self, check: &Healthcheck, step: &Step) -> Result<()> {
        self.healthcheck = Some(self.once(self.healthcheck, step));
        let Healthcheck { test, interval, timeout, start_period, start_interval, retries } = check;
        let [i, t, p, s] = [*interval, *timeout, *start_period, *start_interval].map(duration::show);
        let text = format!(
            "HEALTHCHECK {{Test:[{}] Interval:{i} Timeout:{t} StartPeriod:{p} StartInterval:{s} Retries:{retries}}}",
            test.join(" ")
        );
        self.remember(text, false)?;
        let mut value = serde_json::Map::new();
        value.insert("Test".to_owned(), json!(test));
        let times = [
            ("Interval", *interval),
            ("Timeout", *timeout),
            ("StartPeriod", *start_period),
            ("StartInterval", *start_interval),
            ("Retries", i64::from(*retries)),
        ];
        value.extend(times.into_iter().filter(|it| it.1 != 0).map(|(name, it)| (name.to_owned(), json!(it))));
        self.config.config.healthcheck = Some(value.into());
        Ok(())
    }

    fn workdir(&mut self, path: &str, node: &'a Node) -> Result<()> {
        let step = &node.step;
        let path = self.expand(path, step.lines)?;
        if !self.workdir_set && !path.starts_with('/') {
            self.lint.tell(self.warnings, Rule::WorkdirRelativePath, step.lines, || {
                format!("Relative workdir {} can have unexpected results if the base image changes", quote(&path))
            });
        }
        self.workdir_set = true;
        let path = workdir(&self.config.config.working_dir, &path);
        self.config.config.working_dir.clone_from(&path);
        if path == "/" {
            return self.remember(format!("WORKDIR {path}"), false).map(|_| ());
        }
        let title = self.title(&step.code, self.graph.shell, node.on_build)?;
        let history = self.remember(format!("WORKDIR {path}"), true)?;
        let user = self.config.config.user.clone();
        self.push(title, node, Action::Folder { path, user }, history);
        Ok(())
    }

    pub(super) fn arg(&mut self, args: &[ArgDefinition], step: &Step) -> Result<()> {
        let mut texts = Vec::new();
        for arg in args {
            self.secret("ARG", &arg.name, step.lines);
            let given = self.graph.options.build_args.get(&arg.name).cloned();
            let global = || self.graph.global.get(&arg.name).map(str::to_owned);
            let mut inherited = false;
            let value = match (given, &arg.value) {
                (Some(given), _) => Some(given),
                (None, Some(default)) => Some(self.expand(default, step.lines)?),
                (None, None) => {
                    let value = global();
                    inherited = value.is_some();
                    value
                }
            };
            let definition = ArgDefinition { value: value.clone(), ..arg.clone() };
            if let Some(value) = value.as_ref().filter(|_| !NO_VARIABLES.contains(&arg.name.as_str())) {
                self.env.set(&arg.name, value);
            }
            if !inherited {
                let value = value.clone().unwrap_or_default();
                let info = ArgInfo {
                    definition: definition.clone(),
                    value,
                    needs: std::collections::BTreeSet::new(),
                    lines: step.lines,
                };
                self.asks.args.insert(arg.name.clone(), info);
            }
            self.asks.used.insert(arg.name.clone());
            // The last of a name counts, in the place of the first.
            match self.args.iter_mut().find(|it| it.name == arg.name) {
                Some(old) => *old = definition,
                None => self.args.push(definition),
            }
            if self.args.len() > MAX_ENTRIES {
                return Err(too_many("arguments"));
            }
            texts.push(value.map_or_else(|| arg.name.clone(), |value| format!("{}={value}", arg.name)));
        }
        self.remember(format!("ARG {}", texts.join(" ")), false).map(|_| ())
    }
}

/// A number from 1, or a name with or without `SIG`, of Linux.
fn is_signal(text: &str) -> bool {
    const NAMES: [&str; 35] = [
        "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL", "PIPE", "POLL",
        "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP", "TTIN", "TTOU", "URG", "USR1",
        "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ", "RTMIN",
    ];
    if let Ok(number) = text.parse::<i64>() {
        return number > 0;
    }
    let upper = text.to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |prefix: &str, most: u32| {
        name.strip_prefix(prefix).and_then(|it| it.parse::<u32>().ok()).is_some_and(|it| (1..=most).contains(&it))
    };
    NAMES.contains(&name) || name == "RTMAX" || offset("RTMIN+", 15) || offset("RTMAX-", 14)
}
