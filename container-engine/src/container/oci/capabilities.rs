//! Capabilities, by Docker's rules.

use serde_json::{Value, json};

use super::ConfigError;
use crate::container::Security;

/// Docker's default set.
pub const DEFAULT: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// Every capability of Linux, by number; those that the kernel or our own bounding set lacks are left out.
const ALL: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// Every capability that can be given here.
pub(super) fn all() -> Vec<String> {
    let bounding = board_bounding();
    let given = ALL.iter().enumerate().filter(|(bit, _)| bounding >> bit & 1 == 1);
    given.map(|(_, name)| (*name).to_owned()).collect()
}

/// Our own bounding set: a runtime cannot give what it does not have.
fn board_bounding() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(u64::MAX)
}

/// The set that `security` asks for, in the kernel's order.
pub fn effective(security: &Security) -> Result<Vec<String>, ConfigError> {
    if security.privileged {
        return Ok(all());
    }
    let (add, drop) = (names(&security.cap_add)?, names(&security.cap_drop)?);
    let is_all = |names: &[String]| names.iter().any(|name| name == "ALL");
    let wanted = |name: &&&str| {
        let has = |names: &[String]| names.iter().any(|known| known == **name);
        let base = match (is_all(&add), is_all(&drop)) {
            // `--cap-drop ALL --cap-add X`: X alone.
            (_, true) => false,
            (true, false) => true,
            (false, false) => DEFAULT.contains(*name),
        };
        // With ALL on both sides Docker gives all: adding comes last.
        (base && !has(&drop)) || has(&add) || (is_all(&add) && is_all(&drop))
    };
    let possible = if is_all(&add) { all() } else { ALL.iter().map(|name| (*name).to_owned()).collect() };
    let names = ALL.iter().filter(wanted).filter(|name| possible.iter().any(|known| known == **name));
    Ok(names.map(|name| (*name).to_owned()).collect())
}

fn names(list: &[String]) -> Result<Vec<String>, ConfigError> {
    let one = |name: &String| {
        let upper = name.to_ascii_uppercase();
        let full = if upper == "ALL" || upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
        if full == "ALL" || ALL.contains(&full.as_str()) {
            Ok(full)
        } else {
            Err(ConfigError::invalid("security.cap", name, "is no capability: ALL, NET_ADMIN, CAP_SYS_TIME, …"))
        }
    };
    list.iter().map(one).collect()
}

/// OCI's `capabilities`. For a user other than root only the bounding set is given, as `execve` would leave it.
pub(super) fn value(names: &[String], root: bool) -> Value {
    if root {
        json!({ "bounding": names, "effective": names, "permitted": names })
    } else {
        json!({ "bounding": names })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets() {
        #[track_caller]
        fn check(add: &[&str], drop: &[&str], has: &[&str], lacks: &[&str]) {
            let owned = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
            let security = Security { cap_add: owned(add), cap_drop: owned(drop), ..Security::default() };
            let set = effective(&security).unwrap();
            for name in has {
                assert!(set.iter().any(|known| known == name), "{name} is missing: {set:?}");
            }
            for name in lacks {
                assert!(!set.iter().any(|known| known == name), "{name} is there: {set:?}");
            }
        }
        check(&[], &[], &DEFAULT, &["CAP_SYS_ADMIN", "CAP_NET_ADMIN"]);
        check(&["net_admin"], &["MKNOD"], &["CAP_NET_ADMIN", "CAP_CHOWN"], &["CAP_MKNOD"]);
        check(&["CAP_CHOWN"], &["ALL"], &["CAP_CHOWN"], &["CAP_KILL", "CAP_FOWNER"]);
        check(&["all"], &["CHOWN"], &["CAP_KILL"], &["CAP_CHOWN"]);
        let wrong = Security { cap_add: vec!["FLY".into()], ..Security::default() };
        assert!(effective(&wrong).is_err());
        let set = effective(&Security::default()).unwrap();
        assert_eq!(set.len(), DEFAULT.len());
    }
}
