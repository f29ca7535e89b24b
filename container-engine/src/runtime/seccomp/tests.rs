//! Filters, run by an interpreter of the kernel's machine.

use oci_spec::runtime::LinuxSeccomp;

use super::{
    architecture::Architecture,
    compile::compile_for,
    docker_default,
    profile::{Host, Profile},
};
use crate::sys::seccomp::Instruction;

const ALLOW: u32 = 0x7fff_0000;
const EPERM: u32 = 0x0005_0001;
const ENOSYS: u32 = 0x0005_0026;
const KILL: u32 = 0;

/// Runs a program as the kernel does; also counts its steps.
fn run(program: &[Instruction], token: u32, number: u32, args: [u64; 6]) -> (u32, usize) {
    let mut data = [0_u8; 64];
    data[0..4].copy_from_slice(&number.to_le_bytes());
    data[4..8].copy_from_slice(&token.to_le_bytes());
    for (at, arg) in args.iter().enumerate() {
        data[16 + 8 * at..24 + 8 * at].copy_from_slice(&arg.to_le_bytes());
    }
    let (mut accumulator, mut at, mut steps) = (0_u32, 0_usize, 0);
    loop {
        let Instruction { code, jump_true, jump_false, constant } = program[at];
        at += 1;
        steps += 1;
        let holds = match code {
            0x20 => {
                let from = usize::try_from(constant).unwrap();
                assert!(from.is_multiple_of(4) && from < 64, "load at {from}");
                accumulator = u32::from_le_bytes(data[from..from + 4].try_into().unwrap());
                continue;
            }
            0x54 => {
                accumulator &= constant;
                continue;
            }
            0x05 => {
                at += usize::try_from(constant).unwrap();
                continue;
            }
            0x06 => return (constant, steps),
            0x15 => accumulator == constant,
            0x25 => accumulator > constant,
            0x35 => accumulator >= constant,
            other => panic!("unknown operation {other:#x}"),
        };
        at += usize::from(if holds { jump_true } else { jump_false });
    }
}

fn profile(json: &str) -> LinuxSeccomp {
    serde_json::from_str(json).unwrap()
}

#[track_caller]
fn check(json: &str, kind: Architecture, call: &str, args: [u64; 6], want: u32) {
    let program = compile_for(&profile(json), Architecture::X86_64).unwrap().program;
    let number = kind.number(call).unwrap();
    assert_eq!(run(&program, kind.token(), number, args).0, want, "{call} {args:x?} of {json}");
}

/// Operator, value, second value, arguments for which it holds, and for which it does not.
type Case<'a> = (&'a str, u64, u64, &'a [u64], &'a [u64]);

#[test]
fn every_comparison_of_arguments() {
    let big = 0x1_0000_0005_u64;
    let cases: [Case<'_>; 7] = [
        ("SCMP_CMP_EQ", big, 0, &[big], &[5, big + 1, 0x2_0000_0005]),
        ("SCMP_CMP_NE", big, 0, &[5, big + 1, 0x2_0000_0005], &[big]),
        ("SCMP_CMP_GT", big, 0, &[big + 1, 0x2_0000_0000, u64::MAX], &[big, 7, 0]),
        ("SCMP_CMP_GE", big, 0, &[big, big + 1, 0x2_0000_0000], &[big - 1, 0xffff_ffff]),
        ("SCMP_CMP_LT", big, 0, &[big - 1, 0xffff_ffff, 0], &[big, big + 1, 0x2_0000_0000]),
        ("SCMP_CMP_LE", big, 0, &[big, 0xffff_ffff, 0], &[big + 1, 0x2_0000_0000]),
        ("SCMP_CMP_MASKED_EQ", 0x1_0000_000f, big, &[big, 0x7_0000_0ff5], &[5, 0x1_0000_0006]),
    ];
    for (operator, value, second, holds, fails) in cases {
        let json = format!(
            r#"{{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{{"names": ["read"], "action": "SCMP_ACT_ALLOW",
                "args": [{{"index": 2, "value": {value}, "valueTwo": {second}, "op": "{operator}"}}]}}]}}"#
        );
        for arg in holds {
            check(&json, Architecture::X86_64, "read", [0, 0, *arg, 0, 0, 0], ALLOW);
        }
        for arg in fails {
            check(&json, Architecture::X86_64, "read", [0, 0, *arg, 0, 0, 0], EPERM);
        }
    }
}

#[test]
fn all_conditions_hold_together_and_repeated_ones_are_alternatives() {
    let rule = |second: &str| {
        format!(
            r#"{{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [
                {{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}}, {second}]}}]}}"#
        )
    };
    let both = rule(r#"{"index": 1, "value": 2, "op": "SCMP_CMP_EQ"}"#);
    check(&both, Architecture::X86_64, "read", [1, 2, 0, 0, 0, 0], ALLOW);
    check(&both, Architecture::X86_64, "read", [1, 3, 0, 0, 0, 0], EPERM);
    let either = rule(r#"{"index": 0, "value": 7, "op": "SCMP_CMP_EQ"}"#);
    check(&either, Architecture::X86_64, "read", [7, 0, 0, 0, 0, 0], ALLOW);
    check(&either, Architecture::X86_64, "read", [1, 0, 0, 0, 0, 0], ALLOW);
    check(&either, Architecture::X86_64, "read", [2, 0, 0, 0, 0, 0], EPERM);
}

#[test]
fn actions_and_errnos() {
    let actions = [
        ("SCMP_ACT_KILL", 0),
        ("SCMP_ACT_KILL_THREAD", 0),
        ("SCMP_ACT_KILL_PROCESS", 0x8000_0000),
        ("SCMP_ACT_TRAP", 0x0003_0000),
        ("SCMP_ACT_ERRNO", 0x0005_000d),
        ("SCMP_ACT_TRACE", 0x7ff0_000d),
        ("SCMP_ACT_LOG", 0x7ffc_0000),
    ];
    for (action, want) in actions {
        let json = format!(
            r#"{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{{"names": ["nonsense", "read"], "action": "{action}", "errnoRet": 13}}]}}"#
        );
        check(&json, Architecture::X86_64, "read", [0; 6], want);
        check(&json, Architecture::X86_64, "write", [0; 6], ALLOW);
    }
    let json = r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "syscalls": []}"#;
    check(json, Architecture::X86_64, "write", [0; 6], ENOSYS);
    let notify = profile(r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#);
    assert!(compile_for(&notify, Architecture::X86_64).is_err());
}

#[test]
fn other_kinds_of_programs() {
    let of = |arches: &str| {
        format!(
            r#"{{"defaultAction": "SCMP_ACT_ERRNO", "architectures": [{arches}],
                "syscalls": [{{"names": ["read", "socket"], "action": "SCMP_ACT_ALLOW"}}]}}"#
        )
    };
    let all = of(r#""SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32""#);
    for kind in [Architecture::X86_64, Architecture::X86, Architecture::X32] {
        check(&all, kind, "read", [0; 6], ALLOW);
        check(&all, kind, "open", [0; 6], EPERM);
    }
    // 32-bit x86 opens sockets in two ways.
    check(&all, Architecture::X86, "socketcall", [1, 0, 0, 0, 0, 0], ALLOW);
    check(&all, Architecture::X86, "socketcall", [2, 0, 0, 0, 0, 0], EPERM);
    let own = of("");
    check(&own, Architecture::X86_64, "read", [0; 6], ALLOW);
    for kind in [Architecture::X86, Architecture::X32, Architecture::Arm] {
        check(&own, kind, "read", [0; 6], KILL);
    }
    let filter = compile_for(&profile(&of(r#""SCMP_ARCH_ARM""#)), Architecture::Aarch64).unwrap();
    for kind in [Architecture::Aarch64, Architecture::Arm] {
        assert_eq!(run(&filter.program, kind.token(), kind.number("read").unwrap(), [0; 6]).0, ALLOW);
        // ARM's number of it is above every one that the profile names.
        let unnamed = if kind == Architecture::Arm { ENOSYS } else { EPERM };
        assert_eq!(run(&filter.program, kind.token(), kind.number("openat").unwrap(), [0; 6]).0, unnamed);
    }
}

#[test]
fn a_plain_rule_beats_one_with_conditions_and_newer_calls_are_not_there() {
    let json = r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
        {"names": ["read"], "action": "SCMP_ACT_TRAP", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]},
        {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"}]}"#;
    check(json, Architecture::X86_64, "read", [1, 0, 0, 0, 0, 0], ALLOW);
    let program = compile_for(&profile(json), Architecture::X86_64).unwrap().program;
    let token = Architecture::X86_64.token();
    assert_eq!(run(&program, token, 2, [0; 6]).0, ENOSYS);
    assert_eq!(run(&program, token, 9999, [0; 6]).0, ENOSYS);
    assert_eq!(run(&program, token, 0x4000_0000, [0; 6]).0, KILL);
}

fn docker(caps: &[&str]) -> LinuxSeccomp {
    let host = Host { architecture: "amd64", kernel: (6, 1) };
    let caps: Vec<String> = caps.iter().map(|&cap| cap.to_owned()).collect();
    docker_default().resolve(&caps, &host).unwrap()
}

#[test]
fn dockers_default() {
    let token = Architecture::X86_64.token();
    let ask = |caps: &[&str], call: &str, args| {
        let program = compile_for(&docker(caps), Architecture::X86_64).unwrap().program;
        let (answer, steps) = run(&program, token, Architecture::X86_64.number(call).unwrap(), args);
        // A binary search; `personality` has five conditions behind it, `socket` thirty.
        assert!(steps < if call == "socket" { 200 } else { 40 }, "{call} takes {steps} steps");
        answer
    };
    let none = [0_u64; 6];
    assert_eq!(ask(&[], "read", none), ALLOW);
    assert_eq!(ask(&[], "mount", none), EPERM);
    assert_eq!(ask(&["CAP_SYS_ADMIN"], "mount", none), ALLOW);
    assert_eq!(ask(&[], "clone", [0x0001_0000, 0, 0, 0, 0, 0]), ALLOW);
    assert_eq!(ask(&[], "clone", [0x1000_0000, 0, 0, 0, 0, 0]), EPERM);
    assert_eq!(ask(&[], "clone3", none), ENOSYS);
    assert_eq!(ask(&[], "socket", [2, 0, 0, 0, 0, 0]), ALLOW);
    assert_eq!(ask(&[], "socket", [38, 0, 0, 0, 0, 0]), EPERM);
    assert_eq!(ask(&[], "socket", [40, 0, 0, 0, 0, 0]), EPERM);
    assert_eq!(ask(&[], "personality", [0xffff_ffff, 0, 0, 0, 0, 0]), ALLOW);
    assert_eq!(ask(&[], "personality", [0x0004_0000, 0, 0, 0, 0, 0]), EPERM);
    assert_eq!(ask(&[], "ptrace", none), ALLOW);
}

/// moby's file, if Go's module cache has it (`go mod download github.com/moby/profiles/seccomp@latest`).
#[test]
#[allow(clippy::print_stdout)] // Says that it was skipped.
fn dockers_default_is_mobys() {
    let cache = std::env::var("GOMODCACHE").unwrap_or_else(|_| "/root/go/pkg/mod".to_owned());
    let folders = std::fs::read_dir(format!("{cache}/github.com/moby/profiles")).into_iter().flatten().flatten();
    let Some(file) = folders.map(|entry| entry.path().join("default.json")).filter(|path| path.exists()).max() else {
        println!("skipped: moby's default.json is not in {cache}");
        return;
    };
    let theirs = Profile::parse(&std::fs::read(&file).unwrap()).unwrap();
    let caps: Vec<String> =
        theirs.syscalls.iter().flatten().filter_map(|rule| rule.includes.as_ref()?.caps.clone()).flatten().collect();
    let sets = caps.iter().map(|cap| vec![cap.clone()]).chain([vec![], caps.clone()]);
    for set in sets {
        for (architecture, native) in [("amd64", Architecture::X86_64), ("arm64", Architecture::Aarch64)] {
            for kernel in [(4, 4), (6, 1)] {
                let host = Host { architecture, kernel };
                let filters = [&theirs, &docker_default()]
                    .map(|profile| compile_for(&profile.resolve(&set, &host).unwrap(), native).unwrap());
                assert_eq!(filters[0], filters[1], "{set:?} on {architecture} {kernel:?}");
            }
        }
    }
}

#[test]
fn profiles_that_contradict_themselves_are_refused() {
    let host = Host { architecture: "amd64", kernel: (6, 1) };
    for json in [
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86"], "archMap": [{"architecture": "SCMP_ARCH_X86_64"}]}"#,
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"name": "a", "names": ["b"], "action": "SCMP_ACT_ALLOW"}]}"#,
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"name": "a", "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "x"}}]}"#,
    ] {
        assert!(Profile::parse(json.as_bytes()).unwrap().resolve(&[], &host).is_err(), "{json}");
    }
    assert!(Profile::parse(b"{}").is_err());
}
