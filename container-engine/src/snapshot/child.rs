//! The hidden verb `unpack`: one layer from standard input to a tree, by a process that can do nothing else.
//!
//! Before it reads a byte: its own mount namespace whose root is the target folder, mounted without devices, setuid and
//! programs; the capabilities that writing owners, devices and file capabilities needs; no new privileges; a list of
//! system calls that ends with files and memory; limits. It has no network, no other file, and dies with the agent. Only
//! the list is done without where the kernel has no filters (`doctor` names that), and the agent logs it.
//!
//! Its answer is one line of JSON on standard output: `{"Ok": Report}` or `{"Err": Fault}`, exit code 0 or 1.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::Write,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    process::ExitCode,
};

use rustix::{
    fs::{CWD, Mode, OFlags},
    mount::{MountFlags, MountPropagationFlags, OpenTreeFlags, UnmountFlags},
    process::{Resource, Rlimit, Signal},
    thread::{CapabilitySet, CapabilitySets, UnshareFlags},
};
use serde::{Deserialize, Serialize};

use super::{
    Compression, Limits, Marks,
    archive::Archive,
    error::{Fault, FaultKind},
    stream::Stream,
    tree::Tree,
};
use crate::{
    content::Digest,
    sys::{attr, confine},
};

/// Descriptors: one a level of the tree, one a lower layer.
const MAX_FILES: u64 = 1536;
/// Bytes of headers that an entry may have in the stream, on average.
const HEADERS: u64 = 2048;

/// What the child is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arguments {
    /// Where the tree is written.
    pub root: PathBuf,
    /// Limits.
    pub limits: Limits,
    /// Form of the marks.
    pub marks: Marks,
    /// Lower layers, the uppermost first.
    pub parents: Vec<PathBuf>,
}

/// What the child found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Digest of the uncompressed archive.
    pub diff_id: Digest,
    /// As it was compressed.
    pub compression: Compression,
    /// Of its files, in blocks.
    pub bytes: u64,
    /// Its entries.
    pub inodes: u64,
    /// Whether files of lower layers were copied into it.
    pub copied_from_parents: bool,
    /// Whether its system calls were filtered.
    pub filtered: bool,
}

impl Arguments {
    /// The command line, after the verb.
    pub fn to_words(&self) -> Vec<OsString> {
        let mut words: Vec<OsString> = vec![
            self.root.clone().into(),
            self.marks.word().into(),
            self.limits.bytes.to_string().into(),
            self.limits.entries.to_string().into(),
        ];
        words.extend(self.parents.iter().map(|parent| parent.clone().into()));
        words
    }

    /// Reads it back.
    pub fn of_words(words: &[OsString]) -> Option<Self> {
        let [root, marks, bytes, entries, parents @ ..] = words else { return None };
        let number = |word: &OsStr| word.to_str()?.parse().ok();
        let marks = match marks.to_str()? {
            "user" => Marks::User,
            "trusted" => Marks::Trusted,
            _ => return None,
        };
        let limits = Limits { bytes: number(bytes)?, entries: number(entries)? };
        Some(Self { root: root.into(), limits, marks, parents: parents.iter().map(PathBuf::from).collect() })
    }
}

/// The verb.
pub fn run(words: &[OsString]) -> ExitCode {
    let result = match Arguments::of_words(words) {
        Some(arguments) => unpack(&arguments),
        None => Err(Fault {
            kind: FaultKind::Confinement,
            entry: String::new(),
            message: "unpack is called by the agent alone: ROOT user|trusted BYTES ENTRIES [LOWER…]".into(),
        }),
    };
    let code = ExitCode::from(u8::from(result.is_err()));
    let mut line = serde_json::to_vec(&result).unwrap_or_default();
    line.push(b'\n');
    // The agent is gone if this fails, and nobody is left to tell.
    let _ = std::io::stdout().write_all(&line);
    code
}

fn unpack(arguments: &Arguments) -> Result<Report, Fault> {
    let (root, parents, filtered) = confine_self(arguments)?;
    let io = |error: std::io::Error| Fault {
        kind: FaultKind::Io,
        entry: String::new(),
        message: format!("cannot read the layer: {error}"),
    };
    let input = File::from(std::io::stdin().as_fd().try_clone_to_owned().map_err(io)?);
    let max = arguments.limits.bytes.saturating_add(arguments.limits.entries.saturating_mul(HEADERS));
    let mut archive = Archive::new(Stream::start(input, max).map_err(io)?);
    let written = Tree::new(root, arguments.marks, arguments.limits, parents)?.write_all(&mut archive)?;
    archive.drain(max)?;
    let whole = archive.into_inner().whole().ok_or_else(|| Fault {
        kind: FaultKind::Corrupt,
        entry: String::new(),
        message: "what follows the archive does not end".into(),
    })?;
    Ok(Report {
        diff_id: whole.diff_id,
        compression: whole.compression,
        bytes: written.bytes,
        inodes: written.inodes,
        copied_from_parents: written.copied,
        filtered,
    })
}

/// Leaves this process with the root folder, the lower layers, standard input and output, and nothing else. The last
/// value: whether its system calls are filtered.
fn confine_self(arguments: &Arguments) -> Result<(OwnedFd, Vec<OwnedFd>, bool), Fault> {
    let failed = |step: &'static str| {
        let root = arguments.root.display().to_string();
        move |error: rustix::io::Errno| Fault {
            kind: FaultKind::Confinement,
            entry: String::new(),
            message: format!("the process that unpacks cannot {step} in {root} ({error}); it needs to be root"),
        }
    };
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(failed("bind its life to the agent's"))?;
    rustix::process::umask(Mode::empty());
    confine::unshare(UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWIPC)
        .map_err(failed("make a mount namespace"))?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).map_err(failed("make its mounts private"))?;
    let mut parents = Vec::new();
    for parent in &arguments.parents {
        parents.push(read_only(parent).map_err(|error| {
            failed("open a lower layer")(
                error.raw_os_error().map_or(rustix::io::Errno::IO, rustix::io::Errno::from_raw_os_error),
            )
        })?);
    }
    change_root(&arguments.root).map_err(failed("change its root"))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open("/", flags, Mode::empty()).map_err(failed("open its root"))?;
    let limit =
        |resource, value| rustix::process::setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) });
    limit(Resource::Nofile, MAX_FILES).map_err(failed("limit its files"))?;
    limit(Resource::Core, 0).map_err(failed("go without core dumps"))?;
    limit(Resource::Memlock, 0).map_err(failed("limit its memory"))?;
    let cap = CapabilitySet::CHOWN
        | CapabilitySet::DAC_OVERRIDE
        | CapabilitySet::FOWNER
        | CapabilitySet::FSETID
        | CapabilitySet::MKNOD
        | CapabilitySet::SETFCAP;
    let keep = match arguments.marks {
        Marks::User => cap,
        Marks::Trusted => cap | CapabilitySet::SYS_ADMIN, // No other way to `trusted.` attributes.
    };
    for one in CapabilitySet::all().difference(keep).iter() {
        let _ = rustix::thread::remove_capability_from_bounding_set(one); // Newer than this kernel.
    }
    let sets = CapabilitySets { effective: keep, permitted: keep, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets).map_err(failed("give up capabilities"))?;
    rustix::thread::set_no_new_privs(true).map_err(failed("give up new privileges"))?;
    let filtered = match confine::files_and_memory_only() {
        Ok(()) => true,
        // A kernel that has no filters at all: what was done above holds all the same.
        Err(rustix::io::Errno::NOSYS) => false,
        Err(error) => return Err(failed("filter its system calls")(error)),
    };
    Ok((root, parents, filtered))
}

/// A clone of the mount that nobody can write through.
fn read_only(path: &std::path::Path) -> std::io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(CWD, path, flags)?;
    let set = attr::MOUNT_ATTR_RDONLY | attr::MOUNT_ATTR_NODEV | attr::MOUNT_ATTR_NOSUID;
    attr::set(&tree, attr::Attributes { set, ..Default::default() }, false)?;
    Ok(rustix::fs::openat(&tree, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

fn change_root(root: &std::path::Path) -> rustix::io::Result<()> {
    rustix::mount::mount_bind(root, root)?;
    let flags = MountFlags::BIND | MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
    rustix::mount::mount_remount(root, flags, c"")?;
    rustix::process::chdir(root)?;
    match rustix::process::pivot_root(".", ".") {
        Ok(()) => rustix::mount::unmount(".", UnmountFlags::DETACH)?,
        // The root is an initramfs, which cannot be left: it is covered.
        Err(rustix::io::Errno::INVAL) => {
            rustix::mount::mount_move(".", "/")?;
            rustix::process::chroot(".")?;
        }
        Err(error) => return Err(error),
    }
    rustix::process::chdir("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_read_back() {
        let arguments = Arguments {
            root: "/a b/fs".into(),
            limits: Limits { bytes: 7, entries: 8 },
            marks: Marks::Trusted,
            parents: vec!["/l/1/fs".into(), "/l/0/fs".into()],
        };
        assert_eq!(Arguments::of_words(&arguments.to_words()), Some(arguments.clone()));
        assert_eq!(Arguments::of_words(&arguments.to_words()[..3]), None);
    }
}
