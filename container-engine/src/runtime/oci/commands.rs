//! The verbs.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use libcontainer::{
    container::{Container, ContainerStatus},
    hooks::run_hooks,
    notify_socket::NotifySocket,
};
use oci_spec::runtime::{Capabilities, LinuxCpu, LinuxMemory, LinuxPids, LinuxResources, Process, UserBuilder};
use rustix::process::{Pid, Signal};

use super::{
    Failure,
    args::{Args, signal},
    info,
    launch::{self, Options},
    state::{Record, SOCKET, name},
};
use crate::{runtime::Status, sys::process as system};

const LAUNCH: [&str; 4] = ["pid-file", "console-socket", "preserve-fds", "bundle"];

pub(super) fn run(verb: &str, root: &Path, args: &[OsString]) -> Result<ExitCode, Failure> {
    let one = |valued: &[&str], plain: &[&str]| -> Result<(Args, String), Failure> {
        let (read, _) = Args::read(args, valued, plain, None)?;
        let id = read.words.first().cloned();
        let id = id.ok_or_else(|| {
            Failure::usage(format!("{verb}: \"{verb}\" requires a minimum of 1 argument, a container ID"))
        })?;
        Ok((read, id))
    };
    match verb {
        "create" => {
            let (read, id) = one(&LAUNCH, &["no-pivot", "no-new-keyring"])?;
            launch::create(root, &id, &bundle(&read), &options(&read)?)?;
        }
        "start" => start(root, &one(&[], &[])?.1)?,
        "run" => {
            let (read, id) = one(&LAUNCH, &["no-pivot", "no-new-keyring", "detach", "keep", "no-subreaper"])?;
            return run_container(root, &id, &read);
        }
        "state" => info::print(&Record::load(root, &one(&[], &[])?.1)?.json(root))?,
        "kill" => {
            let (read, id) = one(&[], &["all"])?;
            let number = signal(read.words.get(1).map_or("TERM", String::as_str))?;
            kill(root, &id, number, read.has("all"))?;
        }
        "delete" => {
            let (read, id) = one(&[], &["force"])?;
            delete(root, &id, read.has("force"))?;
        }
        "exec" => return exec(root, args),
        "pause" | "resume" => pause(root, &one(&[], &[])?.1, verb == "pause")?,
        "update" => update(root, args)?,
        "ps" => {
            let (read, id) = one(&["format"], &[])?;
            info::processes(&Record::load(root, &id)?, read.value("format") == Some("json"))?;
        }
        "list" => {
            let (read, _) = Args::read(args, &["format"], &["quiet"], None)?;
            info::list(root, read.value("format") == Some("json"), read.has("quiet"))?;
        }
        "events" => {
            let (read, id) = one(&["interval"], &["stats"])?;
            info::events(root, &Record::load(root, &id)?, read.has("stats"), read.value("interval"))?;
        }
        "features" => info::features()?,
        "spec" => {
            let (read, _) = Args::read(args, &["bundle"], &["rootless"], None)?;
            info::spec(&bundle(&read))?;
        }
        "checkpoint" | "restore" => return Err(Failure::usage(format!("{verb} is not supported"))),
        "help" => return info::help(),
        other => return Err(Failure::usage(format!("No help topic for '{other}'"))),
    }
    Ok(ExitCode::SUCCESS)
}

fn bundle(read: &Args) -> PathBuf {
    read.path("bundle").unwrap_or_else(|| PathBuf::from("."))
}

fn options(read: &Args) -> Result<Options, Failure> {
    Ok(Options {
        pid_file: read.path("pid-file"),
        console_socket: read.path("console-socket"),
        no_pivot: read.has("no-pivot"),
        no_new_keyring: read.has("no-new-keyring"),
        preserve_fds: read.number("preserve-fds")?.unwrap_or(0),
    })
}

fn start(root: &Path, id: &str) -> Result<(), Failure> {
    let record = Record::load(root, id)?;
    match record.status(root) {
        Status::Created => {}
        Status::Stopped => return Err(Failure::new("cannot start a container that has stopped")),
        Status::Creating => {
            return Err(Failure::new("cannot start a container that is being created: not in created state"));
        }
        Status::Running | Status::Paused => {
            return Err(Failure::new("cannot start an already running container: not in created state"));
        }
    }
    let socket = root.join(id).join(SOCKET);
    NotifySocket::new(&socket).notify_container_start().map_err(Failure::from_error)?;
    fs::remove_file(&socket).map_err(|error| Failure::at(&socket, error))?;
    hooks(root, &record, ContainerStatus::Running)
}

/// `poststart` and `poststop`. They run outside; what they say of a failure is passed on.
fn hooks(root: &Path, record: &Record, status: ContainerStatus) -> Result<(), Failure> {
    let Ok(spec) = launch::load(&record.bundle.join("config.json")) else { return Ok(()) };
    let Some(hooks) = spec.hooks() else { return Ok(()) };
    let list = if status == ContainerStatus::Running { hooks.poststart() } else { hooks.poststop() };
    let Some(list) = list.as_ref().filter(|list| !list.is_empty()) else { return Ok(()) };
    let pid = (status == ContainerStatus::Running).then_some(record.pid);
    let mut container = Container::new(&record.id, status, pid, &record.bundle, root).map_err(Failure::from_error)?;
    container.set_annotations(Some(record.annotations.clone()));
    run_hooks(Some(list), Some(&container.state), None, None, None).map_err(Failure::from_error)
}

fn kill(root: &Path, id: &str, number: i32, all: bool) -> Result<(), Failure> {
    let record = Record::load(root, id)?;
    let cgroup = record.cgroup()?;
    let signal = (number != 0).then(|| Signal::from_named_raw(number));
    if all {
        return match signal.flatten() {
            Some(signal) => cgroup.signal(signal).map_err(Failure::from_error),
            None => Err(Failure::new(format!("signal {number} cannot be sent to all processes"))),
        };
    }
    if !record.is_alive() {
        return Err(Failure::new("container not running"));
    }
    let pid = Pid::from_raw(record.pid).ok_or_else(|| Failure::new("container not running"))?;
    send(pid, number).map_err(|error| match error {
        rustix::io::Errno::SRCH => Failure::new("container not running: process already finished"),
        error => Failure::new(format!("cannot send signal {number}: {error}")),
    })?;
    // Frozen processes do not die.
    if number == libc::SIGKILL && cgroup.is_frozen() {
        cgroup.freeze(false).map_err(Failure::from_error)?;
    }
    // Without a process id namespace of its own nothing else ends with the first process.
    if number == libc::SIGKILL && shares_processes(&record) {
        cgroup.signal(Signal::KILL).map_err(Failure::from_error)?;
    }
    Ok(())
}

fn send(pid: Pid, number: i32) -> rustix::io::Result<()> {
    match Signal::from_named_raw(number) {
        Some(signal) => rustix::process::kill_process(pid, signal),
        None if number == 0 => rustix::process::test_kill_process(pid),
        None => system::kill(pid.as_raw_nonzero().get(), number),
    }
}

fn shares_processes(record: &Record) -> bool {
    use oci_spec::runtime::LinuxNamespaceType;
    let spec = launch::load(&record.bundle.join("config.json")).ok();
    let linux = spec.and_then(|spec| spec.linux().clone());
    let namespaces = linux.and_then(|linux| linux.namespaces().clone()).unwrap_or_default();
    !namespaces.iter().any(|namespace| namespace.typ() == LinuxNamespaceType::Pid && namespace.path().is_none())
}

fn delete(root: &Path, id: &str, force: bool) -> Result<(), Failure> {
    let record = match Record::load(root, id) {
        Ok(record) => record,
        Err(failure) if force => {
            // Half-made: a folder without a record that can be read.
            let folder = Record::folder(root, id)?;
            return match fs::remove_dir_all(&folder) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failure),
                _ => Ok(()),
            };
        }
        Err(failure) => return Err(failure),
    };
    match record.status(root) {
        Status::Stopped | Status::Created => {}
        _ if force => {}
        status => {
            return Err(Failure::new(format!("cannot delete container {id} that is not stopped: {}", name(status))));
        }
    }
    let cgroup = record.cgroup()?;
    if record.is_alive()
        && let Some(pid) = Pid::from_raw(record.pid)
    {
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty());
        let _ = rustix::process::kill_process(pid, Signal::KILL);
        if cgroup.is_frozen() {
            cgroup.freeze(false).map_err(Failure::from_error)?;
        }
        if let Ok(pidfd) = pidfd {
            let mut fds = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
            let limit = rustix::time::Timespec { tv_sec: 10, tv_nsec: 0 };
            let _ = rustix::event::poll(&mut fds, Some(&limit));
        }
    }
    // Kills what is left in it as well.
    cgroup.remove().map_err(Failure::from_error)?;
    let hooks = hooks(root, &record, ContainerStatus::Stopped);
    let folder = Record::folder(root, id)?;
    fs::remove_dir_all(&folder).map_err(|error| Failure::at(&folder, error))?;
    hooks
}

fn pause(root: &Path, id: &str, frozen: bool) -> Result<(), Failure> {
    let record = Record::load(root, id)?;
    match (record.status(root), frozen) {
        (Status::Running | Status::Created, true) | (Status::Paused, false) => {}
        (_, true) => return Err(Failure::new("container not running or created: cannot be paused: not running")),
        (_, false) => return Err(Failure::new("container not paused")),
    }
    record.cgroup()?.freeze(frozen).map_err(Failure::from_error)
}

fn update(root: &Path, args: &[OsString]) -> Result<(), Failure> {
    let valued = [
        "resources",
        "blkio-weight",
        "cpu-period",
        "cpu-quota",
        "cpu-burst",
        "cpu-share",
        "cpu-rt-period",
        "cpu-rt-runtime",
        "cpuset-cpus",
        "cpuset-mems",
        "cpu-idle",
        "kernel-memory",
        "kernel-memory-tcp",
        "memory",
        "memory-reservation",
        "memory-swap",
        "pids-limit",
        "l3-cache-schema",
        "mem-bw-schema",
    ];
    let (read, _) = Args::read(args, &valued, &[], None)?;
    let id = read.words.first().ok_or_else(|| Failure::usage("update requires a container ID"))?;
    let record = Record::load(root, id)?;
    if !record.is_alive() {
        return Err(Failure::new("container not running"));
    }
    let resources = match read.value("resources") {
        Some(path) => {
            let path = if path == "-" { "/proc/self/fd/0" } else { path };
            let bytes = fs::read(path).map_err(|error| Failure::at(Path::new(path), error))?;
            serde_json::from_slice(&bytes).map_err(|error| Failure::at(Path::new(path), error))?
        }
        None => resources_of(&read)?,
    };
    record.cgroup()?.apply(&resources, false).map_err(Failure::from_error)
}

fn resources_of(read: &Args) -> Result<LinuxResources, Failure> {
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(read.number("cpu-share")?)
        .set_period(read.number("cpu-period")?)
        .set_quota(read.number("cpu-quota")?);
    cpu.set_burst(read.number("cpu-burst")?).set_idle(read.number("cpu-idle")?);
    cpu.set_realtime_period(read.number("cpu-rt-period")?).set_realtime_runtime(read.number("cpu-rt-runtime")?);
    cpu.set_cpus(read.value("cpuset-cpus").map(str::to_owned)).set_mems(read.value("cpuset-mems").map(str::to_owned));
    let mut memory = LinuxMemory::default();
    memory.set_limit(bytes(read, "memory")?).set_swap(bytes(read, "memory-swap")?);
    memory.set_reservation(bytes(read, "memory-reservation")?);
    let mut resources = LinuxResources::default();
    resources.set_devices(None).set_cpu(Some(cpu)).set_memory(Some(memory));
    if let Some(limit) = read.number("pids-limit")? {
        let mut pids = LinuxPids::default();
        pids.set_limit(limit);
        resources.set_pids(Some(pids));
    }
    Ok(resources)
}

/// A number of bytes, with k, m, g or t behind it if need be; `-1` is no limit.
fn bytes(read: &Args, name: &str) -> Result<Option<i64>, Failure> {
    let Some(text) = read.value(name) else { return Ok(None) };
    let lower = text.to_ascii_lowercase();
    let digits = lower.trim_end_matches(['b', 'i']);
    let (digits, shift) = match digits.chars().last() {
        Some('k') => (&digits[..digits.len() - 1], 10),
        Some('m') => (&digits[..digits.len() - 1], 20),
        Some('g') => (&digits[..digits.len() - 1], 30),
        Some('t') => (&digits[..digits.len() - 1], 40),
        _ => (digits, 0),
    };
    let number = digits.parse::<i64>().ok().and_then(|number| number.checked_mul(1 << shift));
    number.map(Some).ok_or_else(|| Failure::usage(format!("invalid value for --{name}: {text:?}")))
}

fn exec(root: &Path, args: &[OsString]) -> Result<ExitCode, Failure> {
    let valued = [
        "console-socket",
        "cwd",
        "env",
        "user",
        "additional-gids",
        "process",
        "pid-file",
        "process-label",
        "apparmor",
        "cap",
        "preserve-fds",
        "cgroup",
    ];
    let (mut read, rest) = Args::read(args, &valued, &["tty", "detach", "no-new-privs", "ignore-paused"], Some(1))?;
    if read.words.is_empty() {
        return Err(Failure::usage("exec requires a container ID"));
    }
    read.words.extend(rest.iter().map(|word| word.to_string_lossy().into_owned()));
    let record = Record::load(root, &read.words[0])?;
    let process = match read.value("process") {
        Some(path) => {
            let path = Path::new(path);
            let bytes = fs::read(path).map_err(|error| Failure::at(path, error))?;
            serde_json::from_slice::<Process>(&bytes).map_err(|error| Failure::at(path, error))?
        }
        None => process_of(&record, &read)?,
    };
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return Err(Failure::usage("process args cannot be empty"));
    }
    let options = options(&read)?;
    let detach = read.has("detach");
    let signals = if detach { None } else { Some(system::signals_as_file().map_err(Failure::from_error)?) };
    let pid = launch::exec(root, &record, process, &options).map_err(|failure| Failure { code: 255, ..failure })?;
    match signals {
        None => Ok(ExitCode::SUCCESS),
        Some(signals) => follow(pid, &signals),
    }
}

/// What `exec`'s flags say, on top of the container's own process.
fn process_of(record: &Record, read: &Args) -> Result<Process, Failure> {
    use libcontainer::capabilities::CapabilityExt;
    let spec = launch::load(&record.bundle.join("config.json"))?;
    let mut process = spec.process().clone().unwrap_or_default();
    process.set_args(Some(read.words[1..].to_vec())).set_terminal(Some(read.has("tty")));
    if let Some(cwd) = read.path("cwd") {
        process.set_cwd(cwd);
    }
    if let Some(profile) = read.value("apparmor") {
        process.set_apparmor_profile(Some(profile.to_owned()));
    }
    if read.has("no-new-privs") {
        process.set_no_new_privileges(Some(true));
    }
    let mut env = process.env().clone().unwrap_or_default();
    env.extend(read.values("env").map(str::to_owned));
    process.set_env(Some(env));
    let number =
        |text: &str| text.parse::<u32>().map_err(|_| Failure::usage(format!("{text:?} is no user or group number")));
    if let Some(user) = read.value("user") {
        let (uid, gid) = user.split_once(':').map_or((user, None), |(uid, gid)| (uid, Some(gid)));
        process.user_mut().set_uid(number(uid)?);
        if let Some(gid) = gid {
            process.user_mut().set_gid(number(gid)?);
        }
    }
    let more = read.values("additional-gids").map(number).collect::<Result<Vec<_>, _>>()?;
    if !more.is_empty() {
        let old = process.user().clone();
        let gids: Vec<u32> = old.additional_gids().iter().flatten().copied().chain(more).collect();
        let user = UserBuilder::default().uid(old.uid()).gid(old.gid()).additional_gids(gids).build();
        process.set_user(user.map_err(Failure::from_error)?);
    }
    let mut caps = process.capabilities().clone();
    for name in read.values("cap") {
        let upper = name.to_ascii_uppercase();
        let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
        let cap: caps::Capability = full.parse().map_err(|_| Failure::usage(format!("unknown capability {name:?}")))?;
        let cap = oci_spec::runtime::Capability::from_cap(cap);
        let sets = caps.get_or_insert_default();
        let with = |set: &Option<Capabilities>| {
            let mut set = set.clone().unwrap_or_default();
            set.insert(cap);
            Some(set)
        };
        let ambient = sets.inheritable().as_ref().is_some_and(|set| set.contains(&cap));
        let (bounding, effective, permitted) = (with(sets.bounding()), with(sets.effective()), with(sets.permitted()));
        if ambient {
            let set = with(sets.ambient());
            sets.set_ambient(set);
        }
        sets.set_bounding(bounding).set_effective(effective).set_permitted(permitted);
    }
    process.set_capabilities(caps);
    Ok(process)
}

fn run_container(root: &Path, id: &str, read: &Args) -> Result<ExitCode, Failure> {
    let detach = read.has("detach");
    let signals = if detach { None } else { Some(system::signals_as_file().map_err(Failure::from_error)?) };
    if !detach && !read.has("no-subreaper") {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid())).map_err(Failure::from_error)?;
    }
    let record = launch::create(root, id, &bundle(read), &options(read)?)?;
    let result = start(root, id).and_then(|()| match &signals {
        None => Ok(ExitCode::SUCCESS),
        Some(signals) => follow(record.pid, signals),
    });
    if (!detach && !read.has("keep")) || result.is_err() {
        let deleted = delete(root, id, true);
        return result.and_then(|code| deleted.map(|()| code));
    }
    result
}

/// Passes signals on to a child until it ends; its exit code is ours.
fn follow(pid: i32, signals: &std::os::fd::OwnedFd) -> Result<ExitCode, Failure> {
    use rustix::process::{WaitOptions, wait};
    let child = Pid::from_raw(pid).ok_or_else(|| Failure::new("the process has no id"))?;
    loop {
        let end = loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) if pid == child => break Some(status),
                Ok(Some(_)) => {}
                Ok(None) => break None,
                Err(error) => return Err(Failure::new(format!("cannot wait for process {pid}: {error}"))),
            }
        };
        if let Some(status) = end {
            let code =
                status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal)).unwrap_or(255);
            return Ok(ExitCode::from(u8::try_from(code).unwrap_or(255)));
        }
        match system::next_signal(signals).map_err(Failure::from_error)? {
            libc::SIGCHLD | libc::SIGURG => {}
            number => {
                let _ = send(child, number);
            }
        }
    }
}
