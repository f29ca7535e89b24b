//! What only tells: `state`'s printing, `ps`, `list`, `events`, `features`, `spec`, `--version`.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, ExitCode},
    thread,
    time::Duration,
};

use oci_spec::runtime::Spec;
use serde_json::{Value, json};

use super::{Failure, OCI_VERSION, state::Record};
use crate::runtime::{cgroup::Cgroup, seccomp};

fn say(text: &str) -> Result<(), Failure> {
    writeln!(std::io::stdout(), "{text}").map_err(|error| Failure::new(format!("cannot write the answer: {error}")))
}

pub(super) fn print(value: &Value) -> Result<(), Failure> {
    say(&format!("{value:#}"))
}

pub(super) fn version() -> Result<ExitCode, Failure> {
    say(&format!("edge-agent oci-runtime version {}\nspec: {OCI_VERSION}", env!("CARGO_PKG_VERSION")))?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn help() -> Result<ExitCode, Failure> {
    say("edge-agent oci-runtime [--root DIR] [--log FILE] [--log-format text|json] COMMAND\n\n\
         create start run state kill delete exec pause resume update ps list events features spec\n\n\
         The flags are runc's.")?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn processes(record: &Record, as_json: bool) -> Result<(), Failure> {
    let pids = record.cgroup()?.processes();
    if as_json {
        return say(&json!(pids).to_string());
    }
    let list = pids.iter().map(i32::to_string).collect::<Vec<_>>().join(",");
    let output = Command::new("ps").args(["-f", "-p", &list]).output();
    let output = output.map_err(|error| Failure::new(format!("cannot run ps: {error}; --format json needs none")))?;
    say(String::from_utf8_lossy(&output.stdout).trim_end())
}

pub(super) fn list(root: &Path, as_json: bool, quiet: bool) -> Result<(), Failure> {
    let mut records = Vec::new();
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        // One that is being deleted meanwhile is no error.
        if let Some(record) = entry.file_name().to_str().and_then(|id| Record::load(root, id).ok()) {
            records.push(record);
        }
    }
    records.sort_by(|a, b| a.id.cmp(&b.id));
    if as_json {
        return say(&Value::from(records.iter().map(|record| record.json(root)).collect::<Vec<_>>()).to_string());
    }
    if !quiet {
        say("ID          PID         STATUS      BUNDLE      CREATED                          OWNER")?;
    }
    for record in records {
        let value = record.json(root);
        let text = |key: &str| value[key].as_str().map_or_else(|| value[key].to_string(), str::to_owned);
        if quiet {
            say(&record.id)?;
        } else {
            let columns = ["id", "pid", "status", "bundle", "created", "owner"].map(text);
            say(&columns.map(|column| format!("{column:<11}")).join(" "))?;
        }
    }
    Ok(())
}

pub(super) fn events(root: &Path, record: &Record, once: bool, interval: Option<&str>) -> Result<(), Failure> {
    let seconds = interval.map(|text| text.trim_end_matches('s').parse::<u64>()).transpose();
    let seconds =
        seconds.map_err(|_| Failure::usage("--interval is a number of seconds, such as 5s"))?.unwrap_or(5).max(1);
    if !record.is_alive() {
        return Err(Failure::new("container not running"));
    }
    let cgroup = record.cgroup()?;
    let _ = root;
    loop {
        say(&json!({"type": "stats", "id": record.id, "data": statistics(&cgroup)}).to_string())?;
        if once || !record.is_alive() {
            return Ok(());
        }
        thread::sleep(Duration::from_secs(seconds));
    }
}

/// The part of runc's statistics that is the same on both versions of control groups.
fn statistics(cgroup: &Cgroup) -> Value {
    let read = |controller: &str, file: &str| {
        cgroup.folder(controller).and_then(|folder| fs::read_to_string(folder.join(file)).ok()).unwrap_or_default()
    };
    let number = |controller: &str, file: &str| read(controller, file).trim().parse::<u64>().unwrap_or(0);
    let keyed = |controller: &str, file: &str| -> serde_json::Map<String, Value> {
        let text = read(controller, file);
        let pairs = text.lines().filter_map(|line| line.split_once(' '));
        pairs.filter_map(|(key, value)| Some((key.to_owned(), Value::from(value.parse::<u64>().ok()?)))).collect()
    };
    if cgroup.is_unified() {
        let cpu = keyed("", "cpu.stat");
        let micros = |key: &str| cpu.get(key).and_then(Value::as_u64).unwrap_or(0).saturating_mul(1000);
        return json!({
            "cpu": {
                "usage": {"total": micros("usage_usec"), "kernel": micros("system_usec"), "user": micros("user_usec")},
                "throttling": {
                    "periods": cpu.get("nr_periods"), "throttledPeriods": cpu.get("nr_throttled"),
                    "throttledTime": micros("throttled_usec"),
                },
            },
            "memory": {
                "usage": {"usage": number("", "memory.current"), "max": number("", "memory.peak"), "limit": number("", "memory.max")},
                "raw": keyed("", "memory.stat"),
            },
            "pids": {"current": number("", "pids.current"), "limit": number("", "pids.max")},
        });
    }
    let throttling = keyed("cpu", "cpu.stat");
    json!({
        "cpu": {
            "usage": {
                "total": number("cpuacct", "cpuacct.usage"), "kernel": number("cpuacct", "cpuacct.usage_sys"),
                "user": number("cpuacct", "cpuacct.usage_user"),
            },
            "throttling": {
                "periods": throttling.get("nr_periods"), "throttledPeriods": throttling.get("nr_throttled"),
                "throttledTime": throttling.get("throttled_time"),
            },
        },
        "memory": {
            "usage": {
                "usage": number("memory", "memory.usage_in_bytes"), "max": number("memory", "memory.max_usage_in_bytes"),
                "limit": number("memory", "memory.limit_in_bytes"), "failcnt": number("memory", "memory.failcnt"),
            },
            "raw": keyed("memory", "memory.stat"),
        },
        "pids": {"current": number("pids", "pids.current"), "limit": number("pids", "pids.max")},
    })
}

pub(super) fn features() -> Result<(), Failure> {
    print(&json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": OCI_VERSION,
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        "mountOptions": [
            "async", "atime", "bind", "defaults", "dev", "diratime", "dirsync", "exec", "idmap", "noatime", "nodev",
            "nodiratime", "noexec", "norelatime", "nostrictatime", "nosuid", "private", "ratime", "rbind", "rdev",
            "rdiratime", "relatime", "rexec", "ridmap", "rnoatime", "rnodev", "rnodiratime", "rnoexec", "rnorelatime",
            "rnostrictatime", "rnosuid", "ro", "rprivate", "rrelatime", "rro", "rrw", "rshared", "rslave", "rstrictatime",
            "rsuid", "runbindable", "rw", "shared", "slave", "strictatime", "suid", "sync", "tmpcopyup", "unbindable",
        ],
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "cgroup": {"v1": true, "v2": true, "systemd": false, "systemdUser": false},
            "seccomp": {
                "enabled": true,
                "actions": seccomp::ACTIONS,
                "operators": [
                    "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT", "SCMP_CMP_MASKED_EQ",
                    "SCMP_CMP_NE",
                ],
                "archs": ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM", "SCMP_ARCH_X32", "SCMP_ARCH_X86", "SCMP_ARCH_X86_64"],
                "knownFlags": seccomp::FLAGS,
                "supportedFlags": seccomp::FLAGS,
            },
            "apparmor": {"enabled": true},
            "selinux": {"enabled": false},
            "mountExtensions": {"idmap": {"enabled": true}},
        },
    }))
}

pub(super) fn spec(bundle: &Path) -> Result<(), Failure> {
    let path = bundle.join("config.json");
    let text = serde_json::to_vec_pretty(&Spec::default()).map_err(Failure::from_error)?;
    let mut file =
        fs::OpenOptions::new().write(true).create_new(true).open(&path).map_err(|error| Failure::at(&path, error))?;
    file.write_all(&text).map_err(|error| Failure::at(&path, error))
}
