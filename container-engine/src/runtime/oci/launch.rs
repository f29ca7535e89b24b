//! `create` and `exec`: from a configuration to what libcontainer's process machinery runs.
//!
//! Its builders are passed by: they refuse what we can do (id-mapped mounts, several mappings without `newuidmap`) and
//! do what we do otherwise. What they hand on, [`ContainerArgs`], is filled here.

use std::{
    ffi::CString,
    fs,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    rc::Rc,
};

use libcgroups::common::CgroupConfig;
use libcontainer::{
    container::{Container, ContainerStatus, State},
    notify_socket::{NotifyListener, NotifySocket},
    process::{
        args::{ContainerArgs, ContainerType},
        container_main_process::container_main_process,
    },
    syscall::syscall::SyscallType,
    validator::Validator,
};
use oci_spec::runtime::{LinuxBuilder, LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType, Process, Spec, User};
use rustix::thread::LinkNameSpaceType;

use super::{
    Failure,
    init::{Init, Plan},
    mounts,
    state::{Record, SOCKET, process_start},
};
use crate::{
    runtime::{Status, seccomp},
    sys::process as system,
};

/// What `create`, `run` and `exec` have in common.
#[derive(Debug, Default)]
pub(super) struct Options {
    pub pid_file: Option<PathBuf>,
    pub console_socket: Option<PathBuf>,
    pub no_pivot: bool,
    pub no_new_keyring: bool,
    pub preserve_fds: u32,
}

pub(super) fn load(path: &Path) -> Result<Spec, Failure> {
    let bytes = fs::read(path).map_err(|error| Failure::at(path, error))?;
    serde_json::from_slice(&bytes).map_err(|error| Failure::at(path, error))
}

/// Makes a container, up to waiting for `start`.
pub(super) fn create(root: &Path, id: &str, bundle: &Path, options: &Options) -> Result<Record, Failure> {
    let bundle = bundle.canonicalize().map_err(|error| Failure::at(bundle, error))?;
    let spec = load(&bundle.join("config.json"))?;
    check(&spec)?;
    let folder = Record::folder(root, id)?;
    fs::create_dir_all(root).map_err(|error| Failure::at(root, error))?;
    match fs::create_dir(&folder) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(Failure::new("container with given ID already exists"));
        }
        result => result.map_err(|error| Failure::at(&folder, error))?,
    }
    let mut record = Record {
        id: id.to_owned(),
        pid: 0,
        started: 0,
        rootfs: root_of(&spec, &bundle)?,
        bundle,
        cgroup: cgroup_path(&spec, id),
        created: jiff::Timestamp::now().to_string(),
        owner: rustix::process::geteuid().as_raw(),
        annotations: spec.annotations().clone().unwrap_or_default(),
    };
    let made = record.save(root).and_then(|()| make(root, &mut record, spec, options));
    match made {
        Ok(()) => Ok(record),
        Err(failure) => {
            // Nothing half-made is left: what is not in the record yet is in the control group.
            if let Ok(cgroup) = record.cgroup() {
                let _ = cgroup.signal(rustix::process::Signal::KILL);
                reap();
                let _ = cgroup.remove();
            }
            let _ = fs::remove_dir_all(&folder);
            Err(failure)
        }
    }
}

fn make(root: &Path, record: &mut Record, original: Spec, options: &Options) -> Result<(), Failure> {
    let process = original.process().clone().ok_or_else(|| Failure::new("config.json has no process"))?;
    let cgroup = record.cgroup()?;
    if cgroup.is_populated() {
        return Err(Failure::new(format!("the control group {} is not empty", record.cgroup.display())));
    }
    let mut spec = original.clone();
    if let Some(mut linux) = spec.linux().clone() {
        let others = join_foreign(linux.namespaces().clone().unwrap_or_default(), None)?;
        linux.set_namespaces(Some(others));
        spec.set_linux(Some(linux));
    }
    let user_namespace = new_user_namespace(&mut spec)?;
    let late = mounts::plan(&mut spec, user_namespace.as_ref())?;
    let linux = spec.linux().clone().unwrap_or_default();
    let filter = linux.seccomp().as_ref().map(seccomp::compile).transpose().map_err(Failure::from_error)?;
    let resources = linux.resources().clone().unwrap_or_default();
    strip(&mut spec, &process);
    let folder = Record::folder(root, &record.id)?;
    let mut container = Container::new(&record.id, ContainerStatus::Creating, None, &record.bundle, &folder)
        .map_err(Failure::from_error)?;
    container.set_annotations(Some(record.annotations.clone()));
    let start_hooks = spec.hooks_mut().as_mut().and_then(|hooks| hooks.start_container_mut().take());
    let created = State { status: ContainerStatus::Created, ..container.state.clone() };
    let plan = Plan {
        filter,
        mounts: Some(late),
        keyring: keyring(&record.id, options)?,
        start_hooks: start_hooks.map(|hooks| (hooks, created)),
        foreign: runs_foreign_programs(),
        is_exec: false,
        preserve_fds: options.preserve_fds,
        process,
    };
    let pid = start_process(&folder.join(SOCKET), record, spec, plan, options, Some(container), None)?;
    record.pid = pid;
    record.started = process_start(pid).ok_or_else(|| Failure::new("the container's process has ended already"))?;
    record.save(root)?;
    cgroup.apply(&resources, true).map_err(Failure::from_error)?;
    set_limits(pid, original.process().as_ref())?;
    write_pid(options, pid)
}

/// Runs one more process in a container and returns its id.
pub(super) fn exec(root: &Path, record: &Record, process: Process, options: &Options) -> Result<i32, Failure> {
    match record.status(root) {
        Status::Running => {}
        Status::Paused => return Err(Failure::new("cannot exec in a paused container")),
        status => {
            return Err(Failure::new(format!(
                "cannot exec in a container that is not running ({})",
                super::state::name(status)
            )));
        }
    }
    let original = load(&record.bundle.join("config.json"))?;
    let linux = original.linux().clone().unwrap_or_default();
    let filter = linux.seccomp().as_ref().map(seccomp::compile).transpose().map_err(Failure::from_error)?;
    let others = join_foreign(linux.namespaces().clone().unwrap_or_default(), Some(record.pid))?;
    let (namespaces, held) = namespaces_of(record.pid, &others)?;
    let mut spec = Spec::default();
    let mut inner = LinuxBuilder::default().namespaces(namespaces).build().map_err(Failure::from_error)?;
    inner.set_resources(None).set_devices(None).set_personality(linux.personality().clone());
    inner.set_masked_paths(None).set_readonly_paths(None).set_seccomp(None);
    spec.set_linux(Some(inner)).set_root(original.root().clone()).set_mounts(None).set_hostname(None).set_hooks(None);
    strip(&mut spec, &process);
    let plan = Plan {
        filter,
        mounts: None,
        keyring: keyring(&record.id, options)?,
        start_hooks: None,
        foreign: runs_foreign_programs(),
        is_exec: true,
        preserve_fds: options.preserve_fds,
        process: process.clone(),
    };
    let folder = Record::folder(root, &record.id)?;
    let socket = folder.join(format!("exec-{}.sock", std::process::id()));
    let (read, write) = std::io::pipe().map_err(Failure::from_error)?;
    let write = OwnedFd::from(write);
    let result = start_process(&socket, record, spec, plan, options, None, Some(write.as_raw_fd()));
    drop(held);
    let pid = match result {
        Ok(pid) => pid,
        Err(failure) => {
            let _ = fs::remove_file(&socket);
            return Err(failure);
        }
    };
    let ready = set_limits(pid, Some(&process))
        .and_then(|()| write_pid(options, pid))
        .and_then(|()| NotifySocket::new(&socket).notify_container_start().map_err(Failure::from_error));
    let _ = fs::remove_file(&socket);
    if let Err(failure) = ready {
        kill(pid);
        return Err(failure);
    }
    drop(write);
    // Closed by the command's start; whatever arrives before is why it did not start.
    let mut message = Vec::new();
    std::io::Read::read_to_end(&mut std::io::Read::take(read, 64 << 10), &mut message).map_err(Failure::from_error)?;
    if message.is_empty() {
        Ok(pid)
    } else {
        kill(pid);
        Err(Failure::new(format!(
            "exec failed: unable to start container process: {}",
            String::from_utf8_lossy(&message)
        )))
    }
}

fn kill(pid: i32) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
    }
}

fn start_process(
    socket: &Path,
    record: &Record,
    spec: Spec,
    plan: Plan,
    options: &Options,
    container: Option<Container>,
    exec_notify: Option<i32>,
) -> Result<i32, Failure> {
    let terminal = plan.process.terminal() == Some(true);
    let console = match (&options.console_socket, terminal) {
        (Some(path), true) => Some(connect(path)?),
        (None, true) => {
            return Err(Failure::new("cannot allocate tty if runc will detach without setting console socket"));
        }
        (Some(_), false) => {
            return Err(Failure::new("cannot use console socket if runc will not detach or allocate tty"));
        }
        (None, false) => None,
    };
    if let Some(adjust) = plan.process.oom_score_adj() {
        // Inherited by all that follows; this process ends soon.
        fs::write("/proc/self/oom_score_adj", adjust.to_string())
            .map_err(|error| Failure::new(format!("cannot set oom_score_adj to {adjust}: {error}")))?;
    }
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(Failure::from_error)?;
    let args = ContainerArgs {
        container_type: exec_notify
            .map_or(ContainerType::InitContainer, |exec_notify_fd| ContainerType::TenantContainer { exec_notify_fd }),
        syscall: SyscallType::default(),
        spec: Rc::new(spec),
        rootfs: record.rootfs.clone(),
        console_socket: console.as_ref().map(AsRawFd::as_raw_fd),
        notify_listener: NotifyListener::new(socket).map_err(Failure::from_error)?,
        preserve_fds: i32::try_from(options.preserve_fds).map_err(Failure::from_error)?,
        container,
        user_ns_config: None,
        cgroup_config: CgroupConfig {
            cgroup_path: group_to_join(record, exec_notify.is_some()),
            systemd_cgroup: false,
            container_name: record.id.clone(),
        },
        detached: true,
        executor: Box::new(Init(Rc::new(plan))),
        no_pivot: options.no_pivot,
        stdin: None,
        stdout: None,
        stderr: None,
        as_sibling: false,
        pid_file: None,
    };
    let verb = if exec_notify.is_some() { "exec failed: " } else { "" };
    match container_main_process(&args) {
        Ok(pid) => Ok(pid.as_raw()),
        Err(error) => {
            reap();
            let words = super::chain(&error);
            // libcontainer's frame around what `Plan` has said.
            let said = words.rsplit_once("error in executing process : ").map_or(words.as_str(), |(_, said)| said);
            Err(Failure::new(format!("{verb}unable to start container process: {said}")))
        }
    }
}

/// Waits a moment for children that have failed: as zombies in the container's namespace they would keep its first
/// process from ending until somebody else reaps them.
fn reap() {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(1);
    loop {
        match rustix::process::wait(rustix::process::WaitOptions::NOHANG) {
            Ok(Some(_)) => {}
            Ok(None) if std::time::Instant::now() < end => std::thread::sleep(std::time::Duration::from_millis(1)),
            _ => return,
        }
    }
}

/// On version 2 a group with groups below it takes no processes: then where the first process is.
fn group_to_join(record: &Record, is_exec: bool) -> PathBuf {
    let unified = record.cgroup().is_ok_and(|cgroup| cgroup.is_unified());
    if is_exec && unified {
        let own = fs::read_to_string(format!("/proc/{}/cgroup", record.pid)).unwrap_or_default();
        let path = own.lines().find_map(|line| line.strip_prefix("0::")).map(PathBuf::from);
        if let Some(path) = path.filter(|path| path.starts_with(Path::new("/").join(&record.cgroup))) {
            return path;
        }
    }
    record.cgroup.clone()
}

fn connect(path: &Path) -> Result<OwnedFd, Failure> {
    // A path longer than an address holds is reached through its folder.
    let told = |error: std::io::Error| Failure::at(path, error);
    let name = path.file_name().ok_or_else(|| Failure::new("the console socket has no name"))?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = fs::File::open(parent).map_err(told)?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name);
    Ok(std::os::unix::net::UnixStream::connect(short).map_err(told)?.into())
}

/// What libcontainer is told of the process: root, with everything, in `/`. The rest is [`Plan`]'s.
fn strip(spec: &mut Spec, process: &Process) {
    let mut stripped = process.clone();
    stripped.set_user(User::default());
    stripped.set_capabilities(None);
    stripped.set_rlimits(None);
    stripped.set_no_new_privileges(None);
    stripped.set_oom_score_adj(None);
    stripped.set_cwd(PathBuf::from("/"));
    stripped.set_env(None);
    spec.set_process(Some(stripped));
    if let Some(linux) = spec.linux_mut() {
        linux.set_resources(None).set_seccomp(None);
    }
}

fn check(spec: &Spec) -> Result<(), Failure> {
    if !spec.version().starts_with("1.") {
        return Err(Failure::new(format!(
            "config.json is for version {} of the specification; this runtime knows 1.x",
            spec.version()
        )));
    }
    Validator::validate_spec(spec).map_err(Failure::from_error)?;
    let linux = spec.linux().as_ref().ok_or_else(|| Failure::new("config.json has no linux section"))?;
    let process = spec.process().as_ref().ok_or_else(|| Failure::new("config.json has no process"))?;
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return Err(Failure::new("process.args must not be empty"));
    }
    if !process.cwd().is_absolute() {
        return Err(Failure::new("Cwd must be an absolute path"));
    }
    if linux
        .personality()
        .as_ref()
        .and_then(|personality| personality.flags().as_ref())
        .is_some_and(|flags| !flags.is_empty())
    {
        return Err(Failure::new("linux.personality.flags are not supported"));
    }
    let label = process.selinux_label().as_ref().is_some_and(|label| !label.is_empty());
    if label && !Path::new("/sys/fs/selinux/enforce").exists() {
        return Err(Failure::new("process.selinuxLabel is set, but SELinux is not enabled"));
    }
    let profile = process.apparmor_profile().as_ref().is_some_and(|profile| !profile.is_empty());
    if profile && !libcontainer::apparmor::is_enabled().unwrap_or(false) {
        return Err(Failure::new("process.apparmorProfile is set, but AppArmor is not enabled"));
    }
    if linux.namespaces().iter().flatten().all(|namespace| namespace.typ() != LinuxNamespaceType::Mount) {
        return Err(Failure::new("a container without a mount namespace of its own is not supported"));
    }
    Ok(())
}

fn root_of(spec: &Spec, bundle: &Path) -> Result<PathBuf, Failure> {
    let root = spec.root().as_ref().ok_or_else(|| Failure::new("config.json has no root"))?;
    let path = bundle.join(root.path());
    path.canonicalize().map_err(|error| Failure::at(&path, error))
}

fn cgroup_path(spec: &Spec, id: &str) -> PathBuf {
    let path = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().clone());
    match path.filter(|path| !path.as_os_str().is_empty()) {
        Some(path) => Path::new("/").join(path),
        None => Path::new("/").join(id),
    }
}

/// Namespaces of others are joined by this process, which its children share them with: libcontainer would enter the
/// user namespace first, where nobody has a right to what was made outside of it. Returns the others. With `of` the
/// namespaces are those that process is in.
fn join_foreign(configured: Vec<LinuxNamespace>, of: Option<i32>) -> Result<Vec<LinuxNamespace>, Failure> {
    let user = configured.iter().find(|it| it.typ() == LinuxNamespaceType::User);
    // Whoever joins a user namespace by its path joins what belongs to it.
    if user.is_none_or(|user| user.path().is_some()) {
        return Ok(configured);
    }
    let mut others = Vec::new();
    for namespace in configured {
        let (kind, name) = match namespace.typ() {
            LinuxNamespaceType::Network => (LinkNameSpaceType::Network, "net"),
            LinuxNamespaceType::Ipc => (LinkNameSpaceType::InterProcessCommunication, "ipc"),
            LinuxNamespaceType::Uts => (LinkNameSpaceType::HostNameAndNISDomainName, "uts"),
            _ => {
                others.push(namespace);
                continue;
            }
        };
        let Some(path) = namespace.path() else {
            others.push(namespace);
            continue;
        };
        let path = of.map_or_else(|| path.clone(), |pid| PathBuf::from(format!("/proc/{pid}/ns/{name}")));
        let joined = fs::File::open(&path)
            .and_then(|file| Ok(rustix::thread::move_into_link_name_space(file.as_fd(), Some(kind))?));
        joined.map_err(|error| Failure::new(format!("cannot join the namespace {}: {error}", path.display())))?;
    }
    Ok(others)
}

/// A user namespace with mappings is made here and joined by path: libcontainer would need `newuidmap` on the host.
fn new_user_namespace(spec: &mut Spec) -> Result<Option<OwnedFd>, Failure> {
    let Some(linux) = spec.linux_mut() else { return Ok(None) };
    let (uids, gids) =
        (linux.uid_mappings().clone().unwrap_or_default(), linux.gid_mappings().clone().unwrap_or_default());
    let Some(namespaces) = linux.namespaces().clone() else { return Ok(None) };
    let Some(user) = namespaces.iter().find(|namespace| namespace.typ() == LinuxNamespaceType::User) else {
        return Ok(None);
    };
    let namespace: OwnedFd = if let Some(path) = user.path() {
        fs::File::open(path).map_err(|error| Failure::at(path, error))?.into()
    } else {
        if uids.is_empty() || gids.is_empty() {
            return Err(Failure::new("User namespaces enabled, but no uid and gid mappings found"));
        }
        system::user_namespace(&mounts::lines(&uids), &mounts::lines(&gids))
            .map_err(|error| Failure::new(format!("cannot make the user namespace: {error}")))?
    };
    let path = PathBuf::from(format!("/proc/self/fd/{}", namespace.as_raw_fd()));
    let namespaces = namespaces
        .into_iter()
        .map(|mut namespace| {
            if namespace.typ() == LinuxNamespaceType::User {
                namespace.set_path(Some(path.clone()));
            }
            namespace
        })
        .collect();
    linux.set_namespaces(Some(namespaces)).set_uid_mappings(None).set_gid_mappings(None);
    Ok(Some(namespace))
}

/// The namespaces of the first process, opened before any of them is entered.
fn namespaces_of(pid: i32, configured: &[LinuxNamespace]) -> Result<(Vec<LinuxNamespace>, Vec<OwnedFd>), Failure> {
    let (mut namespaces, mut held) = (Vec::new(), Vec::new());
    for namespace in configured {
        let kind = match namespace.typ() {
            LinuxNamespaceType::Mount => "mnt",
            LinuxNamespaceType::Cgroup => "cgroup",
            LinuxNamespaceType::Uts => "uts",
            LinuxNamespaceType::Ipc => "ipc",
            LinuxNamespaceType::User => "user",
            LinuxNamespaceType::Pid => "pid",
            LinuxNamespaceType::Network => "net",
            LinuxNamespaceType::Time => "time",
        };
        let path = PathBuf::from(format!("/proc/{pid}/ns/{kind}"));
        let file = fs::File::open(&path).map_err(|error| Failure::at(&path, error))?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        held.push(file.into());
        let entered = LinuxNamespaceBuilder::default().typ(namespace.typ()).path(path).build();
        namespaces.push(entered.map_err(Failure::from_error)?);
    }
    Ok((namespaces, held))
}

fn keyring(id: &str, options: &Options) -> Result<Option<CString>, Failure> {
    if options.no_new_keyring {
        return Ok(None);
    }
    CString::new(format!("_ses.{id}")).map(Some).map_err(Failure::from_error)
}

/// Whether the kernel has been taught formats besides its own.
fn runs_foreign_programs() -> bool {
    let Ok(entries) = fs::read_dir("/proc/sys/fs/binfmt_misc") else { return false };
    entries.flatten().any(|entry| {
        !matches!(entry.file_name().to_str(), Some("status" | "register"))
            && fs::read_to_string(entry.path()).is_ok_and(|entry| entry.starts_with("enabled"))
    })
}

/// From outside: raising a limit takes rights that the process inside may not have. Without `CAP_SYS_RESOURCE` nobody
/// may limit a process of another user: then what is to be lowered the process lowers itself, before its command.
fn set_limits(pid: i32, process: Option<&Process>) -> Result<(), Failure> {
    let Some(process) = process else { return Ok(()) };
    match limit(pid, process) {
        Err((_, error)) if error.kind() == std::io::ErrorKind::PermissionDenied => Ok(()),
        other => other.map_err(|(what, error)| Failure::new(format!("error setting rlimits: {what}: {error}"))),
    }
}

/// Sets the limits of a process; 0 is this one. An error names the limit.
pub(super) fn limit(pid: i32, process: &Process) -> Result<(), (String, std::io::Error)> {
    use oci_spec::runtime::PosixRlimitType as Kind;
    for limit in process.rlimits().iter().flatten() {
        let resource = match limit.typ() {
            Kind::RlimitCpu => libc::RLIMIT_CPU,
            Kind::RlimitFsize => libc::RLIMIT_FSIZE,
            Kind::RlimitData => libc::RLIMIT_DATA,
            Kind::RlimitStack => libc::RLIMIT_STACK,
            Kind::RlimitCore => libc::RLIMIT_CORE,
            Kind::RlimitRss => libc::RLIMIT_RSS,
            Kind::RlimitNproc => libc::RLIMIT_NPROC,
            Kind::RlimitNofile => libc::RLIMIT_NOFILE,
            Kind::RlimitMemlock => libc::RLIMIT_MEMLOCK,
            Kind::RlimitAs => libc::RLIMIT_AS,
            Kind::RlimitLocks => libc::RLIMIT_LOCKS,
            Kind::RlimitSigpending => libc::RLIMIT_SIGPENDING,
            Kind::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
            Kind::RlimitNice => libc::RLIMIT_NICE,
            Kind::RlimitRtprio => libc::RLIMIT_RTPRIO,
            Kind::RlimitRttime => libc::RLIMIT_RTTIME,
        };
        let number = u32::try_from(i64::from(resource)).unwrap_or(u32::MAX);
        system::set_limit(pid, number, limit.soft(), limit.hard())
            .map_err(|error| (format!("{:?}", limit.typ()), error))?;
    }
    Ok(())
}

fn write_pid(options: &Options, pid: i32) -> Result<(), Failure> {
    let Some(path) = &options.pid_file else { return Ok(()) };
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    fs::write(&new, pid.to_string()).and_then(|()| fs::rename(&new, path)).map_err(|error| Failure::at(path, error))
}
