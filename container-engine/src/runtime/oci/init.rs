//! The last steps inside the container, which libcontainer leaves to its executor: what it lacks or does otherwise than
//! runc (users, capabilities, seccomp, working directory, the mounts of [`super::mounts`]).
//!
//! libcontainer is handed a process that is root with every capability; it therefore arrives here able to do all this.
//! Order matters and is runc's: what needs privileges, then the user and the bounding set, then looking the command up
//! with the user's eyes. After `start`: the filter, then the last capabilities, then the command. A filter that was
//! asked for and cannot be installed ends the process.

use std::{
    collections::HashMap,
    ffi::{CString, OsStr},
    fmt::Display,
    io,
    os::{fd::AsFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
    rc::Rc,
};

use libcontainer::{
    container::State,
    hooks::run_hooks,
    workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError},
};
use oci_spec::runtime::{Capabilities, Hook, Process, Spec};
use rustix::{
    fs::{Access, AtFlags, CWD, Gid, Mode, Uid},
    thread::{CapabilitySet, CapabilitySets},
};

use super::{launch, mounts};
use crate::sys::{process as system, seccomp};

/// What the process inside is to become.
#[derive(Debug)]
pub(super) struct Plan {
    pub process: Process,
    /// A compiled filter and the flags to install it with.
    pub filter: Option<seccomp::Filter>,
    /// Mounts and paths; none for `exec`.
    pub mounts: Option<mounts::Late>,
    pub keyring: Option<CString>,
    /// `startContainer` and the state that they are told: libcontainer would say that the container is being created.
    pub start_hooks: Option<(Vec<Hook>, State)>,
    /// Formats of foreign programs that this kernel can run (`binfmt_misc`).
    pub foreign: bool,
    /// `exec` reports a failure to its caller, a container's first process on its own standard error.
    pub is_exec: bool,
    pub preserve_fds: u32,
}

#[derive(Debug, Clone)]
pub(super) struct Init(pub Rc<Plan>);

impl Executor for Init {
    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        self.0.prepare().map_err(ExecutorValidationError::ArgValidationError)
    }

    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        // The command gets its environment from `execve`, in its own order.
        Ok(())
    }

    fn exec(&self, _: &Spec) -> Result<(), ExecutorError> {
        let (code, message) = self.0.run();
        if self.0.is_exec {
            return Err(ExecutorError::Other(message));
        }
        let _ = rustix::io::write(io::stderr().as_fd(), format!("{message}\n").as_bytes());
        std::process::exit(code)
    }
}

fn failed<E: Display>(what: impl Display) -> impl FnOnce(E) -> String {
    move |error| format!("{what}: {error}")
}

impl Plan {
    fn prepare(&self) -> Result<(), String> {
        let process = &self.process;
        let user = process.user();
        if let Some(name) = &self.keyring {
            system::join_keyring(name).map_err(failed("cannot join a session keyring of its own"))?;
        }
        if let Some(late) = &self.mounts {
            mounts::make(late, process.cwd())?;
        }
        self.prepare_terminal()?;
        rustix::process::umask(Mode::from_raw_mode(user.umask().unwrap_or(0o022)));

        // As root first, which may pass where the user may not; else as the user.
        let entered = rustix::process::chdir(process.cwd());
        self.become_user()?;
        if entered.is_err() {
            rustix::process::chdir(process.cwd())
                .map_err(failed(format!("cannot chdir to cwd ({}) set in config.json", process.cwd().display())))?;
        }
        let here = rustix::process::getcwd(Vec::new()).map_err(failed("the working directory cannot be named"))?;
        if here.as_bytes().first() != Some(&b'/') {
            return Err("the working directory lies outside of the container's root".to_owned());
        }
        if process.no_new_privileges() == Some(true) {
            rustix::thread::set_no_new_privs(true).map_err(failed("cannot set no_new_privs"))?;
        }
        let program = self.program()?;
        self.check_architecture(&program)
    }

    /// Its terminal belongs to the user, and its streams too where they are pipes (programs open `/dev/stdout` again).
    fn prepare_terminal(&self) -> Result<(), String> {
        let uid = self.process.user().uid();
        let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
        for fd in [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()] {
            let Ok(stat) = rustix::fs::fstat(fd) else { continue };
            let null = stat.st_rdev == rustix::fs::makedev(1, 3);
            if stat.st_uid == uid || null {
                continue;
            }
            // What cannot be given away (a read-only file system, an unmapped owner) stays whose it is, as with runc.
            let _ = rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), None);
        }
        let size = self.process.console_size().filter(|_| self.process.terminal() == Some(true));
        if let Some(size) = size {
            let number = |number: u64| u16::try_from(number).map_err(|_| format!("a terminal has no {number} lines"));
            let (width, height) = (number(size.width())?, number(size.height())?);
            system::set_terminal_size(io::stdin().as_fd(), width, height)
                .map_err(failed("cannot set the terminal's size"))?;
        }
        Ok(())
    }

    fn become_user(&self) -> Result<(), String> {
        let user = self.process.user();
        let bounding = self.set(Capabilities::clone, |caps| caps.bounding());
        for bit in 0..64 {
            let capability = CapabilitySet::from_bits_retain(1 << bit);
            if !bounding.contains(capability) {
                match rustix::thread::remove_capability_from_bounding_set(capability) {
                    // Past the kernel's last one.
                    Err(rustix::io::Errno::INVAL) => break,
                    result => result.map_err(failed("cannot drop a capability of the bounding set"))?,
                }
            }
        }
        rustix::thread::set_keep_capabilities(true).map_err(failed("cannot keep capabilities"))?;
        let groups: Vec<Gid> = user.additional_gids().iter().flatten().map(|gid| Gid::from_raw(*gid)).collect();
        match rustix::thread::set_thread_groups(&groups) {
            // In a user namespace that forbids it there are no groups of the host's to lose.
            Err(rustix::io::Errno::PERM) if groups.is_empty() => {}
            result => result.map_err(failed("cannot set the additional groups"))?,
        }
        let (uid, gid) = (Uid::from_raw(user.uid()), Gid::from_raw(user.gid()));
        rustix::thread::set_thread_res_gid(gid, gid, gid)
            .map_err(failed(format!("cannot become group {}", user.gid())))?;
        rustix::thread::set_thread_res_uid(uid, uid, uid)
            .map_err(failed(format!("cannot become user {}", user.uid())))?;
        rustix::thread::set_keep_capabilities(false).map_err(failed("cannot stop keeping capabilities"))?;
        let filter_needs = match (&self.filter, self.process.no_new_privileges()) {
            (Some(_), Some(true)) | (None, _) => CapabilitySet::empty(),
            (Some(_), _) => CapabilitySet::SYS_ADMIN,
        };
        self.set_capabilities(filter_needs)
    }

    fn set(
        &self,
        _: fn(&Capabilities) -> Capabilities,
        part: impl Fn(&oci_spec::runtime::LinuxCapabilities) -> &Option<Capabilities>,
    ) -> CapabilitySet {
        use libcontainer::capabilities::CapabilityExt;
        let names = self.process.capabilities().as_ref().and_then(|caps| part(caps).as_ref());
        let bits = names.into_iter().flatten().map(|name| 1_u64 << name.to_cap().index()).fold(0, |all, bit| all | bit);
        CapabilitySet::from_bits_retain(bits)
    }

    fn set_capabilities(&self, besides: CapabilitySet) -> Result<(), String> {
        let part = |part: fn(&oci_spec::runtime::LinuxCapabilities) -> &Option<Capabilities>| {
            self.set(Capabilities::clone, part)
        };
        let sets = CapabilitySets {
            effective: part(|caps| caps.effective()) | besides,
            permitted: part(|caps| caps.permitted()) | besides,
            inheritable: part(|caps| caps.inheritable()),
        };
        rustix::thread::set_capabilities(None, sets).map_err(failed("cannot set the capabilities"))?;
        if !besides.is_empty() {
            return Ok(());
        }
        let _ = rustix::thread::clear_ambient_capability_set();
        let ambient = part(|caps| caps.ambient());
        for bit in (0..64).filter(|bit| ambient.bits() & 1 << bit != 0) {
            // One that is not permitted and inheritable cannot be ambient: runc passes over it as well.
            let _ =
                rustix::thread::configure_capability_in_ambient_set(CapabilitySet::from_bits_retain(1 << bit), true);
        }
        Ok(())
    }

    /// The file that the command names, found with the user's eyes; the words of failures are runc's.
    fn program(&self) -> Result<PathBuf, String> {
        let args = self.process.args().as_deref().unwrap_or_default();
        let name = args.first().ok_or("process.args must not be empty")?;
        let lookup = |path: &Path| -> io::Result<()> {
            let stat = rustix::fs::stat(path)?;
            if rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Directory {
                return Err(io::Error::from_raw_os_error(libc::EISDIR));
            }
            Ok(rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)?)
        };
        let told = |error: io::Error| match error.raw_os_error() {
            Some(libc::ENOENT) => format!("exec: {name:?}: stat {name}: no such file or directory"),
            Some(libc::EISDIR) => format!("exec: {name:?}: is a directory"),
            Some(libc::ENOTDIR) => format!("exec: {name:?}: stat {name}: not a directory"),
            Some(libc::EACCES | libc::EPERM) => format!("exec: {name:?}: permission denied"),
            _ => format!("exec: {name:?}: {error}"),
        };
        if name.contains('/') {
            let path = PathBuf::from(name);
            return lookup(&path).map(|()| path).map_err(told);
        }
        let environment = self.process.env().as_deref().unwrap_or_default();
        let path = environment.iter().rev().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or_default();
        let folders = path.split(':').map(|folder| Path::new(if folder.is_empty() { "." } else { folder }));
        let found = folders.map(|folder| folder.join(name)).find(|path| lookup(path).is_ok());
        found.filter(|_| !name.is_empty()).ok_or_else(|| format!("exec: {name:?}: executable file not found in $PATH"))
    }

    /// Refuses, before `start`, a program for another CPU that this kernel has no interpreter for.
    fn check_architecture(&self, program: &Path) -> Result<(), String> {
        let mut head = [0_u8; 20];
        let read = std::fs::File::open(program).and_then(|mut file| io::Read::read_exact(&mut file, &mut head));
        // Scripts, and files that may be executed but not read: the kernel will tell.
        if self.foreign || read.is_err() || !head.starts_with(b"\x7fELF") {
            return Ok(());
        }
        let machine = if head[5] == 2 {
            u16::from_be_bytes([head[18], head[19]])
        } else {
            u16::from_le_bytes([head[18], head[19]])
        };
        let ours: &[u16] = match std::env::consts::ARCH {
            "x86_64" => &[62, 3],
            "aarch64" => &[183, 40],
            _ => return Ok(()),
        };
        if ours.contains(&machine) {
            return Ok(());
        }
        let name = self.process.args().as_ref().and_then(|args| args.first()).cloned().unwrap_or_default();
        Err(format!(
            "exec: {name:?}: exec format error (the file is for ELF machine {machine}, this is {})",
            std::env::consts::ARCH
        ))
    }

    /// Runs the command; returns (exit code, why) only if that fails.
    fn run(&self) -> (i32, String) {
        match self.ready() {
            Err(message) => (125, message),
            Ok((path, args, environment)) => {
                system::reset_signals();
                let error = system::execute(&path, &args, &environment);
                let name = self.process.args().as_ref().and_then(|args| args.first()).cloned().unwrap_or_default();
                match error.raw_os_error() {
                    // The file was there a moment ago: what is missing is its interpreter.
                    Some(libc::ENOENT) => (127, format!("exec {name}: no such file or directory")),
                    Some(libc::ENOEXEC) => (126, format!("exec {name}: exec format error")),
                    Some(libc::EACCES | libc::EPERM) => (126, format!("exec {name}: permission denied")),
                    _ => (126, format!("exec {name}: {error}")),
                }
            }
        }
    }

    /// In the container, as its user. What they are not given of an environment is the command's.
    fn run_start_hooks(&self) -> Result<(), String> {
        let Some((hooks, state)) = &self.start_hooks else { return Ok(()) };
        let mut state = state.clone();
        state.pid = Some(rustix::process::getpid().as_raw_nonzero().get());
        let pairs = self.process.env().iter().flatten().filter_map(|entry| entry.split_once('='));
        let environment = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        run_hooks(Some(hooks), Some(&state), None, None, Some(&environment))
            .map_err(|error| format!("a startContainer hook failed: {}", super::chain(&error)))
    }

    fn ready(&self) -> Result<(CString, Vec<CString>, Vec<CString>), String> {
        self.run_start_hooks()?;
        let text = |text: &[u8]| CString::new(text).map_err(|_| "an argument or variable holds a null byte".to_owned());
        let program = self.program()?;
        let path = text(program.as_os_str().as_bytes())?;
        let args = self.process.args().iter().flatten().map(|arg| text(arg.as_bytes())).collect::<Result<_, _>>()?;
        let mut environment = self.process.env().clone().unwrap_or_default();
        if !environment.iter().any(|entry| entry.starts_with("HOME=") && entry.len() > 5) {
            environment.retain(|entry| entry != "HOME=");
            environment.push(format!("HOME={}", home(self.process.user().uid())));
        }
        if self.preserve_fds > 0 && environment.iter().any(|entry| entry.starts_with("LISTEN_FDS=")) {
            environment.retain(|entry| !entry.starts_with("LISTEN_PID="));
            environment.push("LISTEN_PID=1".to_owned());
        }
        let environment = environment.iter().map(|entry| text(entry.as_bytes())).collect::<Result<_, _>>()?;
        // Set from outside already, where that could be done: then this changes nothing.
        launch::limit(0, &self.process).map_err(|(what, error)| format!("error setting rlimits: {what}: {error}"))?;
        if let Some(filter) = &self.filter {
            filter.install().map_err(failed("cannot install the seccomp filter"))?;
            if self.process.no_new_privileges() != Some(true) {
                self.set_capabilities(CapabilitySet::empty())?;
            }
        }
        Ok((path, args, environment))
    }
}

/// The user's home in the container's `/etc/passwd`; `/` where there is none.
fn home(uid: u32) -> String {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let line = passwd.lines().find(|line| line.split(':').nth(2) == Some(&uid.to_string()));
    line.and_then(|line| line.split(':').nth(5)).filter(|home| !home.is_empty()).unwrap_or("/").to_owned()
}

/// Opens `path` below the container's root without following its last part.
pub(super) fn open_path(path: &Path) -> rustix::io::Result<rustix::fd::OwnedFd> {
    use rustix::fs::OFlags;
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

/// Puts a detached mount onto what `target` is.
pub(super) fn attach(tree: impl AsFd, target: impl AsFd) -> rustix::io::Result<()> {
    use rustix::mount::MoveMountFlags;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(tree, OsStr::new(""), target, OsStr::new(""), flags)
}
