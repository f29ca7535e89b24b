//! From an OCI profile to the kernel's filter.
//!
//! The effect is libseccomp's as runc uses it: names that a kind of program does not have are passed over; a call that
//! is named without arguments beats the same call with conditions; kinds that are not listed are killed; a call newer
//! than every one that the profile names answers `ENOSYS`, so that C libraries fall back, unless the profile allows by
//! default. Calls are found by a binary search over their numbers, neighbours with one answer being one range.

use std::collections::BTreeMap;

use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator,
};

use super::architecture::{Architecture, X32_BIT};
use crate::sys::seccomp::{Filter, Instruction};

/// For `features`.
pub(in crate::runtime) const ACTIONS: [&str; 8] = [
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_LOG",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_TRAP",
];
/// For `features`.
pub(in crate::runtime) const FLAGS: [&str; 3] =
    ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC"];

/// Why there is no filter. A container with such a profile does not start.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::runtime) enum CompileError {
    #[error("seccomp: SCMP_ACT_NOTIFY is not supported (listenerPath needs an agent that answers); use SCMP_ACT_ERRNO")]
    Notify,
    #[error("seccomp: flag {0} is not supported")]
    Flag(String),
    #[error("seccomp: system call {name} has no argument {index}; the last one is 5")]
    Argument { name: String, index: usize },
    #[error("seccomp: profiles for this kind of machine are not supported")]
    Machine,
    #[error("seccomp: the profile is too large: {0} instructions, of which the kernel takes 4096")]
    Size(usize),
}

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const IF_EQUAL: u16 = 0x15;
const IF_GREATER: u16 = 0x25;
const IF_AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;

const KILL_THREAD: u32 = 0;
const ENOSYS: u32 = 0x0005_0026;
const MAX_PROGRAM: usize = 4096;

fn op(code: u16, jump_true: u8, jump_false: u8, constant: u32) -> Instruction {
    Instruction { code, jump_true, jump_false, constant }
}

/// Compiles for this machine.
pub(in crate::runtime) fn compile(profile: &LinuxSeccomp) -> Result<Filter, CompileError> {
    compile_for(profile, Architecture::native().ok_or(CompileError::Machine)?)
}

pub(super) fn compile_for(profile: &LinuxSeccomp, native: Architecture) -> Result<Filter, CompileError> {
    let mut kinds = vec![native];
    for arch in profile.architectures().iter().flatten() {
        // What cannot be one of this machine's programs needs no rules; if it comes, it is killed.
        if let Some(kind) = Architecture::of(*arch).filter(|kind| !kinds.contains(kind)) {
            kinds.push(kind);
        }
    }
    let fallback = answer(profile.default_action(), profile.default_errno_ret())?;
    let mut program = vec![op(LOAD, 0, 0, 4)];
    // x32 is told from x86_64 by its numbers, not by its token.
    for token in kinds.iter().filter(|kind| **kind != Architecture::X32).map(|kind| kind.token()) {
        let mut section = vec![op(LOAD, 0, 0, 0)];
        let mut ranges = BTreeMap::new();
        let of_token: Vec<_> = kinds.iter().filter(|kind| kind.token() == token).copied().collect();
        for kind in &of_token {
            add_kind(profile, *kind, fallback, &mut ranges)?;
        }
        if token == Architecture::X86_64.token() && !of_token.contains(&Architecture::X32) {
            // -1 is what a tracer leaves of a call that it has taken away.
            ranges.insert(X32_BIT, Leaf::Answer(KILL_THREAD));
            ranges.insert(u32::MAX, Leaf::Answer(fallback));
        }
        section.append(&mut search(&ranges.into_iter().collect::<Vec<_>>(), fallback));
        let length = u32::try_from(section.len()).unwrap_or(u32::MAX);
        program.push(op(IF_EQUAL, 1, 0, token));
        program.push(op(JUMP, 0, 0, length));
        program.append(&mut section);
    }
    program.push(op(RETURN, 0, 0, KILL_THREAD));
    if program.len() > MAX_PROGRAM {
        return Err(CompileError::Size(program.len()));
    }
    Ok(Filter { program, flags: flags(profile)? })
}

fn flags(profile: &LinuxSeccomp) -> Result<u64, CompileError> {
    let mut flags = 0;
    for flag in profile.flags().iter().flatten() {
        flags |= match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => libc::SECCOMP_FILTER_FLAG_TSYNC,
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => {
                return Err(CompileError::Flag("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV".to_owned()));
            }
        };
    }
    Ok(flags)
}

/// What the kernel is to do.
fn answer(action: LinuxSeccompAction, errno: Option<u32>) -> Result<u32, CompileError> {
    // EPERM unless said otherwise; the kernel has 12 bits for it.
    let errno = errno.unwrap_or(1).min(4095);
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => KILL_THREAD,
        LinuxSeccompAction::ScmpActKillProcess => 0x8000_0000,
        LinuxSeccompAction::ScmpActTrap => 0x0003_0000,
        LinuxSeccompAction::ScmpActErrno => 0x0005_0000 | errno,
        LinuxSeccompAction::ScmpActTrace => 0x7ff0_0000 | errno,
        LinuxSeccompAction::ScmpActLog => 0x7ffc_0000,
        LinuxSeccompAction::ScmpActAllow => 0x7fff_0000,
        LinuxSeccompAction::ScmpActNotify => return Err(CompileError::Notify),
    })
}

/// What holds from one number up to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Leaf {
    Answer(u32),
    /// The first whose conditions all hold counts; none: the second.
    Rules(Vec<(Vec<Condition>, u32)>, u32, bool),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Condition {
    index: u32,
    operator: LinuxSeccompOperator,
    value: u64,
    /// For masks: what is to be left.
    second: u64,
}

#[derive(Debug, Default)]
struct Call {
    always: Option<u32>,
    rules: Vec<(Vec<Condition>, u32)>,
}

fn add_kind(
    profile: &LinuxSeccomp,
    kind: Architecture,
    fallback: u32,
    ranges: &mut BTreeMap<u32, Leaf>,
) -> Result<(), CompileError> {
    let mut calls: BTreeMap<u32, Call> = BTreeMap::new();
    let mut newest = None;
    for rule in profile.syscalls().iter().flatten() {
        let answer = answer(rule.action(), rule.errno_ret())?;
        for name in rule.names() {
            let number = kind.number(name);
            // The private calls of ARM are no sign of how new a profile is.
            newest = newest.max(number.filter(|number| *number & !X32_BIT < 0xf_0000));
            if answer == fallback {
                continue;
            }
            let alternatives = alternatives(name, rule.args().as_deref().unwrap_or_default())?;
            if let (Some((all, part)), [none]) = (kind.multiplexed(name), alternatives.as_slice())
                && none.is_empty()
                && let Some(number) = kind.number(all)
            {
                let condition =
                    Condition { index: 0, operator: LinuxSeccompOperator::ScmpCmpEq, value: part.into(), second: 0 };
                calls.entry(number).or_default().rules.push((vec![condition], answer));
            }
            if let Some(number) = number {
                let call = calls.entry(number).or_default();
                for conditions in alternatives {
                    if conditions.is_empty() {
                        call.always.get_or_insert(answer);
                    } else {
                        call.rules.push((conditions, answer));
                    }
                }
            }
        }
    }
    let start = if kind == Architecture::X32 { X32_BIT } else { 0 };
    ranges.insert(start, Leaf::Answer(fallback));
    for (number, call) in calls {
        let leaf = match call.always {
            Some(answer) => Leaf::Answer(answer),
            None => Leaf::Rules(call.rules, fallback, kind.is_wide()),
        };
        ranges.insert(number, leaf);
        ranges.entry(number + 1).or_insert(Leaf::Answer(fallback));
    }
    let allows = matches!(
        profile.default_action(),
        LinuxSeccompAction::ScmpActAllow | LinuxSeccompAction::ScmpActLog | LinuxSeccompAction::ScmpActTrace
    );
    if let Some(newest) = newest.filter(|_| !allows && fallback != ENOSYS) {
        // Up to where another kind's numbers, or ARM's private ones, begin.
        let end = if kind == Architecture::Arm { 0xf_0000 } else { start | (X32_BIT - 1) };
        let newer: Vec<u32> = ranges
            .range(newest + 1..end)
            .filter(|(_, leaf)| **leaf == Leaf::Answer(fallback))
            .map(|(at, _)| *at)
            .collect();
        for at in newer {
            ranges.insert(at, Leaf::Answer(ENOSYS));
        }
        if kind == Architecture::Arm {
            ranges.entry(end).or_insert(Leaf::Answer(fallback));
        } else if kind != Architecture::X86_64 {
            ranges.entry(end + 1).or_insert(Leaf::Answer(fallback));
        } else {
            ranges.entry(X32_BIT).or_insert(Leaf::Answer(fallback));
        }
    }
    Ok(())
}

/// Conditions on one argument twice are alternatives, as runc has it; all others must hold together.
fn alternatives(name: &str, args: &[LinuxSeccompArg]) -> Result<Vec<Vec<Condition>>, CompileError> {
    let mut conditions = Vec::new();
    let mut repeated = false;
    for arg in args {
        if arg.index() > 5 {
            return Err(CompileError::Argument { name: name.to_owned(), index: arg.index() });
        }
        let index = u32::try_from(arg.index()).unwrap_or(5);
        repeated |= conditions.iter().any(|earlier: &Condition| earlier.index == index);
        let second = arg.value_two().unwrap_or(0);
        conditions.push(Condition { index, operator: arg.op(), value: arg.value(), second });
    }
    Ok(if repeated { conditions.into_iter().map(|condition| vec![condition]).collect() } else { vec![conditions] })
}

/// The search tree. Forward jumps only, so that every part can be moved.
fn search(ranges: &[(u32, Leaf)], fallback: u32) -> Vec<Instruction> {
    let mut merged: Vec<&(u32, Leaf)> = Vec::new();
    for range in ranges {
        if merged.last().is_none_or(|last| last.1 != range.1) {
            merged.push(range);
        }
    }
    tree(&merged, fallback)
}

fn tree(ranges: &[&(u32, Leaf)], fallback: u32) -> Vec<Instruction> {
    match ranges {
        [] => vec![op(RETURN, 0, 0, fallback)],
        [(_, Leaf::Answer(answer))] => vec![op(RETURN, 0, 0, *answer)],
        [(_, Leaf::Rules(rules, fallback, wide))] => conditional(rules, *fallback, *wide),
        _ => {
            let (low, high) = ranges.split_at(ranges.len() / 2);
            let (mut below, mut above) = (tree(low, fallback), tree(high, fallback));
            let mut code = match u8::try_from(below.len()) {
                Ok(distance) => vec![op(IF_AT_LEAST, distance, 0, high[0].0)],
                Err(_) => vec![
                    op(IF_AT_LEAST, 0, 1, high[0].0),
                    op(JUMP, 0, 0, u32::try_from(below.len()).unwrap_or(u32::MAX)),
                ],
            };
            code.append(&mut below);
            code.append(&mut above);
            code
        }
    }
}

fn conditional(rules: &[(Vec<Condition>, u32)], fallback: u32, wide: bool) -> Vec<Instruction> {
    let mut code = Vec::new();
    for (conditions, answer) in rules {
        let tests: Vec<Vec<Test>> = conditions.iter().map(|condition| test(condition, wide)).collect();
        // Six conditions of seven steps at most: distances fit.
        let length: usize = tests.iter().map(Vec::len).sum();
        let mut at = 0;
        for steps in &tests {
            let end = at + steps.len();
            for step in steps {
                let distance = |to: To| match to {
                    To::Next => 0,
                    To::Holds => end - at - 1,
                    // Past this rule's answer.
                    To::Fails => length - at,
                };
                let narrow = |to: To| u8::try_from(distance(to)).unwrap_or(u8::MAX);
                code.push(op(step.code, narrow(step.yes), narrow(step.no), step.constant));
                at += 1;
            }
        }
        code.push(op(RETURN, 0, 0, *answer));
    }
    code.push(op(RETURN, 0, 0, fallback));
    code
}

#[derive(Debug, Clone, Copy)]
enum To {
    Next,
    Holds,
    Fails,
}

struct Test {
    code: u16,
    yes: To,
    no: To,
    constant: u32,
}

fn test(condition: &Condition, wide: bool) -> Vec<Test> {
    use LinuxSeccompOperator as Is;
    use To::{Fails, Holds, Next};
    // The kernel's structure: number, architecture, address, then six arguments of 64 bits, low half first.
    let low_at = 16 + 8 * condition.index;
    let halves = |value: u64| ((value >> 32) as u32, (value & 0xffff_ffff) as u32);
    let ((high, low), (second_high, second_low)) = (halves(condition.value), halves(condition.second));
    let step = |code, yes, no, constant| Test { code, yes, no, constant };
    let load = |at| step(LOAD, Next, Next, at);
    let mut steps = Vec::new();
    if wide {
        steps.push(load(low_at + 4));
        match condition.operator {
            Is::ScmpCmpEq => steps.push(step(IF_EQUAL, Next, Fails, high)),
            Is::ScmpCmpNe => steps.push(step(IF_EQUAL, Next, Holds, high)),
            Is::ScmpCmpGt | Is::ScmpCmpGe => {
                steps.push(step(IF_GREATER, Holds, Next, high));
                steps.push(step(IF_EQUAL, Next, Fails, high));
            }
            Is::ScmpCmpLt | Is::ScmpCmpLe => {
                steps.push(step(IF_GREATER, Fails, Next, high));
                steps.push(step(IF_EQUAL, Next, Holds, high));
            }
            Is::ScmpCmpMaskedEq => {
                steps.push(step(AND, Next, Next, high));
                steps.push(step(IF_EQUAL, Next, Fails, second_high));
            }
        }
    }
    steps.push(load(low_at));
    match condition.operator {
        Is::ScmpCmpEq => steps.push(step(IF_EQUAL, Next, Fails, low)),
        Is::ScmpCmpNe => steps.push(step(IF_EQUAL, Fails, Next, low)),
        Is::ScmpCmpGt => steps.push(step(IF_GREATER, Next, Fails, low)),
        Is::ScmpCmpGe => steps.push(step(IF_AT_LEAST, Next, Fails, low)),
        Is::ScmpCmpLt => steps.push(step(IF_AT_LEAST, Fails, Next, low)),
        Is::ScmpCmpLe => steps.push(step(IF_GREATER, Fails, Next, low)),
        Is::ScmpCmpMaskedEq => {
            steps.push(step(AND, Next, Next, low));
            steps.push(step(IF_EQUAL, Next, Fails, second_low));
        }
    }
    steps
}
