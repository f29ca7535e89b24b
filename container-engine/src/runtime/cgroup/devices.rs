//! Device rules: what version 1 of control groups does with `devices.allow` and `devices.deny`, kept as a list, and the
//! program that does the same on version 2.
//!
//! A container starts with no device at all. Rules are taken in order; what every container may use (`/dev/null` and
//! its like, terminals, making device nodes) comes last, so that no rule takes it away. A rule that takes a part back of
//! what a wider one gave is refused: version 1 would pass over it, and the container keep what it was denied.

use std::collections::BTreeMap;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use super::CgroupError;
use crate::sys::bpf::Instruction;

/// Which devices, as rules name them: `None` is any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Device {
    /// `b` or `c`.
    pub kind: char,
    pub major: Option<u32>,
    pub minor: Option<u32>,
}

const MKNOD: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;
const ALL: u32 = MKNOD | READ | WRITE;

/// Allowed to every container.
const ALWAYS: [(char, Option<u32>, Option<u32>, u32); 10] = [
    ('c', None, None, MKNOD),
    ('b', None, None, MKNOD),
    ('c', Some(1), Some(3), ALL), // null
    ('c', Some(1), Some(5), ALL), // zero
    ('c', Some(1), Some(7), ALL), // full
    ('c', Some(1), Some(8), ALL), // random
    ('c', Some(1), Some(9), ALL), // urandom
    ('c', Some(5), Some(0), ALL), // tty
    ('c', Some(5), Some(2), ALL), // ptmx
    ('c', Some(136), None, ALL),  // pts
];

/// Where a list of rules leads.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rules {
    /// What holds for devices that are not in `exceptions`.
    pub allow: bool,
    /// Rights that are the other way round.
    pub exceptions: BTreeMap<Device, u32>,
}

impl Rules {
    pub fn new(rules: &[LinuxDeviceCgroup]) -> Result<Self, CgroupError> {
        let mut list = Self { allow: false, exceptions: BTreeMap::new() };
        for rule in rules {
            let access = rights(rule.access().as_deref().unwrap_or("rwm"));
            let number = |number: Option<i64>| number.and_then(|number| u32::try_from(number).ok());
            let kind = match rule.typ() {
                Some(LinuxDeviceType::B) => 'b',
                Some(LinuxDeviceType::C | LinuxDeviceType::U) => 'c',
                // Fifos are no devices for a control group.
                Some(LinuxDeviceType::P) => continue,
                Some(LinuxDeviceType::A) | None => {
                    list = Self { allow: rule.allow(), exceptions: BTreeMap::new() };
                    continue;
                }
            };
            let device = Device { kind, major: number(rule.major()), minor: number(rule.minor()) };
            if rule.allow() == list.allow {
                list.check_no_hole(device, access)?;
            }
            list.apply(rule.allow(), device, access);
        }
        for (kind, major, minor, access) in ALWAYS {
            list.apply(true, Device { kind, major, minor }, access);
        }
        Ok(list)
    }

    /// Exceptions have no exceptions.
    fn check_no_hole(&self, device: Device, access: u32) -> Result<(), CgroupError> {
        let wider = |other: &Device| {
            *other != device
                && other.kind == device.kind
                && other.major.is_none_or(|major| device.major == Some(major))
                && other.minor.is_none_or(|minor| device.minor == Some(minor))
        };
        match self.exceptions.iter().find(|(other, rights)| wider(other) && *rights & access != 0) {
            Some((other, rights)) => Err(CgroupError::Value(format!(
                "the device rule {:?} takes back a part of what {:?} says: it has to be written without that rule",
                line(&device, access),
                line(other, *rights)
            ))),
            None => Ok(()),
        }
    }

    fn apply(&mut self, allow: bool, device: Device, access: u32) {
        if allow == self.allow {
            // Takes an exception back; one that was never made needs nothing.
            if let Some(left) = self.exceptions.get_mut(&device) {
                *left &= !access;
                if *left == 0 {
                    self.exceptions.remove(&device);
                }
            }
        } else {
            *self.exceptions.entry(device).or_default() |= access;
        }
    }

    /// The lines for version 1: `(file, line)` in order.
    pub fn lines(&self) -> Vec<(&'static str, String)> {
        let (all, file) =
            if self.allow { ("devices.allow", "devices.deny") } else { ("devices.deny", "devices.allow") };
        let mut lines = vec![(all, "a".to_owned())];
        lines.extend(self.exceptions.iter().map(|(device, access)| (file, line(device, *access))));
        lines
    }

    /// The program for version 2: returns 1 where the access is allowed.
    pub fn program(&self) -> Vec<Instruction> {
        // Registers: 2 kind, 3 access, 4 major, 5 minor, 1 scratch (the context is not needed after the loads).
        let op = |code, to: u8, from: u8, offset, immediate| Instruction {
            code,
            registers: from << 4 | to,
            offset,
            immediate,
        };
        let mut program = vec![
            op(LOAD_WORD, 2, 1, 0, 0),
            op(MOVE, 3, 2, 0, 0),
            op(AND, 2, 0, 0, 0xffff),
            op(SHIFT_RIGHT, 3, 0, 0, 16),
            op(LOAD_WORD, 4, 1, 4, 0),
            op(LOAD_WORD, 5, 1, 8, 0),
        ];
        for (device, access) in &self.exceptions {
            let mut tests = vec![op(JUMP_UNLESS_EQUAL, 2, 0, 0, if device.kind == 'b' { 1 } else { 2 })];
            for (register, number) in [(4, device.major), (5, device.minor)] {
                if let Some(number) = number {
                    tests.push(op(JUMP_UNLESS_EQUAL, register, 0, 0, number.cast_signed()));
                }
            }
            tests.push(op(MOVE, 1, 3, 0, 0));
            // Allowed: nothing asked for beyond the rights. Denied: anything asked for among them.
            tests.push(op(AND, 1, 0, 0, if self.allow { *access } else { ALL & !access }.cast_signed()));
            tests.push(op(if self.allow { JUMP_IF_EQUAL } else { JUMP_UNLESS_EQUAL }, 1, 0, 0, 0));
            tests.push(op(MOVE_CONSTANT, 0, 0, 0, i32::from(!self.allow)));
            tests.push(op(EXIT, 0, 0, 0, 0));
            let length = tests.len();
            for (at, test) in tests.iter_mut().enumerate() {
                if matches!(test.code, JUMP_UNLESS_EQUAL | JUMP_IF_EQUAL) {
                    test.offset = i16::try_from(length - at - 1).unwrap_or(i16::MAX);
                }
            }
            program.append(&mut tests);
        }
        program.push(op(MOVE_CONSTANT, 0, 0, 0, i32::from(self.allow)));
        program.push(op(EXIT, 0, 0, 0, 0));
        program
    }
}

const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xbc;
const MOVE_CONSTANT: u8 = 0xb7;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const JUMP_IF_EQUAL: u8 = 0x15;
const JUMP_UNLESS_EQUAL: u8 = 0x55;
const EXIT: u8 = 0x95;

/// As version 1 writes it.
fn line(device: &Device, access: u32) -> String {
    let number = |number: Option<u32>| number.map_or_else(|| "*".to_owned(), |number| number.to_string());
    let letters: String = [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')]
        .iter()
        .filter(|(bit, _)| access & bit != 0)
        .map(|(_, letter)| *letter)
        .collect();
    format!("{} {}:{} {letters}", device.kind, number(device.major), number(device.minor))
}

fn rights(letters: &str) -> u32 {
    let right = |letter| match letter {
        'r' => READ,
        'w' => WRITE,
        'm' => MKNOD,
        _ => 0,
    };
    letters.chars().map(right).fold(0, |all, right| all | right)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(json: &str) -> Rules {
        Rules::new(&serde_json::from_str::<Vec<LinuxDeviceCgroup>>(json).unwrap()).unwrap()
    }

    /// Runs the program as the kernel would.
    fn allowed(program: &[Instruction], kind: u32, access: u32, major: u32, minor: u32) -> bool {
        let mut registers = [0_u64; 11];
        let context = [access << 16 | kind, major, minor];
        let mut at = 0_usize;
        for _ in 0..10_000 {
            let Instruction { code, registers: both, offset, immediate } = program[at];
            let (to, from) = (usize::from(both & 15), usize::from(both >> 4));
            at += 1;
            match code {
                LOAD_WORD => registers[to] = u64::from(context[usize::try_from(offset).unwrap() / 4]),
                MOVE => registers[to] = registers[from] & 0xffff_ffff,
                MOVE_CONSTANT => registers[to] = u64::from(immediate.cast_unsigned()),
                AND => registers[to] &= u64::from(immediate.cast_unsigned()),
                SHIFT_RIGHT => registers[to] >>= immediate,
                JUMP_IF_EQUAL | JUMP_UNLESS_EQUAL => {
                    if (registers[to] == u64::from(immediate.cast_unsigned())) == (code == JUMP_IF_EQUAL) {
                        at += usize::try_from(offset).unwrap();
                    }
                }
                EXIT => return registers[0] == 1,
                other => panic!("unknown operation {other:#x}"),
            }
        }
        panic!("endless");
    }

    #[test]
    fn programs_do_what_rules_say() {
        #[track_caller]
        fn check(json: &str, (kind, access, major, minor): (char, &str, u32, u32), want: bool) {
            let kind = if kind == 'b' { 1 } else { 2 };
            assert_eq!(allowed(&rules(json).program(), kind, rights(access), major, minor), want, "{json}");
        }
        let docker = r#"[{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "r"}]"#;
        check("[]", ('c', "rw", 1, 3), true);
        check("[]", ('c', "r", 1, 1), false);
        check("[]", ('b', "m", 8, 0), true);
        check("[]", ('b', "mr", 8, 0), false);
        check("[]", ('c', "rw", 136, 17), true);
        check(docker, ('c', "r", 10, 229), true);
        check(docker, ('c', "rw", 10, 229), false);
        check(docker, ('c', "r", 10, 200), false);
        check(r#"[{"allow": true}]"#, ('b', "rwm", 8, 0), true);
        let but = r#"[{"allow": true, "type": "a"}, {"allow": false, "type": "b", "major": 8, "access": "w"}]"#;
        check(but, ('b', "r", 8, 1), true);
        check(but, ('b', "rw", 8, 1), false);
        check(but, ('c', "rw", 8, 1), true);
    }

    #[test]
    fn version_1_gets_lines() {
        let lines = rules(r#"[{"allow": true, "type": "b", "major": 8, "access": "r"}]"#).lines();
        assert_eq!(lines[0], ("devices.deny", "a".to_owned()));
        assert!(lines.contains(&("devices.allow", "b 8:* r".to_owned())));
        assert!(lines.contains(&("devices.allow", "c 1:3 rwm".to_owned())));
    }

    #[test]
    fn exceptions_have_no_exceptions() {
        let rules = |json: &str| Rules::new(&serde_json::from_str::<Vec<LinuxDeviceCgroup>>(json).unwrap());
        let wide = r#"{"allow": true, "type": "c", "major": 1, "access": "rw"}"#;
        let part = r#"{"allow": false, "type": "c", "major": 1, "minor": 11, "access": "w"}"#;
        let error = rules(&format!("[{wide}, {part}]")).unwrap_err().to_string();
        assert!(error.contains("c 1:11 w") && error.contains("c 1:* rw"), "{error}");
        // The whole rule can be taken back, and what it never gave.
        for fine in [r#""major": 1, "access": "w""#, r#""major": 1, "minor": 11, "access": "m""#, r#""major": 2"#] {
            rules(&format!(r#"[{wide}, {{"allow": false, "type": "c", {fine}}}]"#)).unwrap();
        }
    }

    /// The kernel's own judgement of the program; on hybrid hosts too, where version 2 has no controllers. Passed over
    /// without root and without version 2.
    #[test]
    fn the_kernel_takes_the_program_and_obeys() {
        let mounts = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
        let mount =
            mounts.map(std::path::Path::new).into_iter().find(|mount| mount.join("cgroup.controllers").exists());
        let (Some(mount), true) = (mount, rustix::process::geteuid().is_root()) else {
            return;
        };
        let group = mount.join(format!("edge-devices-test-{}", std::process::id()));
        std::fs::create_dir(&group).unwrap();
        let attached = std::fs::File::open(&group)
            .and_then(|folder| crate::sys::bpf::attach_device_filter(&folder, &rules("[]").program()));
        let script =
            format!("echo $$ > {}/cgroup.procs && head -c1 /dev/zero | wc -c && head -c1 /dev/kmsg", group.display());
        let output = std::process::Command::new("sh").arg("-c").arg(script).output().unwrap();
        let _ = std::fs::remove_dir(&group);
        attached.unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "1", "{told}");
        assert!(told.contains("Operation not permitted"), "{told}");
    }
}
