//! Overlay mounts: of many layers, under names short enough for the one page of options that old kernels read, and of
//! id-mapped layers, which have to be mounted somewhere for as long as it takes.
//!
//! Always true:
//! - Every overlay mount has a source that names data directory and snapshot, so it is found again from `mountinfo`.
//! - Helper mounts are made in a mount namespace of one thread, which ends with it: a crash leaves none.

use std::{
    fs, io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, Mode, OFlags, XattrFlags},
    mount::{MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags},
    thread::UnshareFlags,
};

use super::{IdMap, Marks, idmap::Mapping};
use crate::sys::confine;

/// Options have to fit a page; the rest of them needs little.
const MAX_LOWER: usize = 3400;

/// One mount to make.
#[derive(Debug, Clone)]
pub struct Overlay {
    /// Shown as the mount's source.
    pub source: String,
    /// `layers/`.
    pub layers: PathBuf,
    /// Names in it of the trees, the uppermost first.
    pub lower: Vec<String>,
    /// Folder with `upper`, `work` and `empty`.
    pub folder: PathBuf,
    /// Nothing can be written.
    pub read_only: bool,
    /// Nothing is synced: for work that is thrown away with the machine's crash.
    pub volatile: bool,
    /// Form of the marks.
    pub marks: Marks,
}

/// Which attributes overlayfs can use on this file system.
pub fn marks_of(folder: &Path) -> Marks {
    let probe = rustix::fs::open(folder, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let works = probe.and_then(|fd| {
        rustix::fs::fsetxattr(&fd, "user.overlay.probe", b"y", XattrFlags::empty())?;
        rustix::fs::fremovexattr(&fd, "user.overlay.probe")
    });
    if works.is_ok() { Marks::User } else { Marks::Trusted }
}

impl Overlay {
    /// Mounts it at `target`.
    pub fn mount(&self, target: &Path, map: Option<IdMap>) -> io::Result<()> {
        match map {
            None => match self.short() {
                Some((lower, folder)) => self.call(&lower, folder, target),
                None => apart(UnshareFlags::FS, || self.plain(target)),
            },
            Some(map) => {
                let mapping = Mapping::new(map)?;
                let mount = apart(UnshareFlags::NEWNS, || self.mapped(&mapping))?;
                rustix::mount::move_mount(&mount, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
                Ok(())
            }
        }
    }

    /// Whole paths, where they fit and need no escapes: then no other thread is needed.
    fn short(&self) -> Option<(Vec<String>, &str)> {
        let (layers, folder) = (plain_path(&self.layers)?, plain_path(&self.folder)?);
        let length = self.lower.iter().map(|name| layers.len() + name.len() + 2).sum::<usize>() + 2 * folder.len();
        let lower = || self.lower.iter().map(|name| format!("{layers}/{name}")).collect();
        (length <= MAX_LOWER).then(|| (lower(), folder))
    }

    fn plain(&self, target: &Path) -> io::Result<()> {
        let mut open = Vec::new();
        let lower = if self.lower.iter().map(|name| name.len() + 1).sum::<usize>() <= MAX_LOWER {
            rustix::process::chdir(&self.layers)?;
            self.lower.clone()
        } else {
            // Numbers of descriptors: three or four bytes a layer, whatever their folders are called.
            for name in &self.lower {
                open.push(rustix::fs::open(
                    self.layers.join(name),
                    OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
                    Mode::empty(),
                )?);
            }
            rustix::process::chdir("/proc/self/fd")?;
            open.iter().map(|fd: &OwnedFd| fd.as_raw_fd().to_string()).collect()
        };
        let folder = rustix::fs::open(&self.folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let folder = format!("/proc/self/fd/{}", folder.as_raw_fd());
        // Names with ':' or ',' in them would need escapes; the snapshot's folder may lie anywhere.
        self.call(&lower, plain_path(&self.folder).unwrap_or(&folder), target)
    }

    fn mapped(&self, mapping: &Mapping) -> io::Result<OwnedFd> {
        rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        let folder = rustix::fs::open(&self.folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        // Hidden by it is a folder that is not needed here, and in this namespace alone.
        let room = self.folder.join("empty");
        rustix::mount::mount("tmpfs", &room, "tmpfs", MountFlags::empty(), Some(c"size=1m,mode=700"))?;
        let mut lower = Vec::new();
        for (at, name) in self.lower.iter().enumerate() {
            let to = room.join(at.to_string());
            fs::create_dir(&to)?;
            mapping.mount(&self.layers.join(name), &to)?;
            lower.push(at.to_string());
        }
        let merged = room.join("merged");
        fs::create_dir(&merged)?;
        if lower.is_empty() {
            fs::create_dir(room.join("none"))?;
            lower.push("none".into());
        }
        rustix::process::chdir(&room)?;
        self.call(&lower, &format!("/proc/self/fd/{}", folder.as_raw_fd()), &merged)?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        Ok(rustix::mount::open_tree(CWD, &merged, flags)?)
    }

    fn call(&self, lower: &[String], folder: &str, target: &Path) -> io::Result<()> {
        let mut lower = lower.join(":");
        if self.read_only {
            // Two are the fewest; an empty one on top changes nothing.
            lower = if lower.is_empty() {
                format!("{folder}/upper:{folder}/empty")
            } else {
                format!("{folder}/upper:{lower}")
            };
        } else if lower.is_empty() {
            lower = format!("{folder}/empty");
        }
        let mut options = format!("lowerdir={lower}");
        if !self.read_only {
            options += &format!(",upperdir={folder}/upper,workdir={folder}/work");
        }
        options += match self.marks {
            Marks::User => ",userxattr",
            Marks::Trusted => ",redirect_dir=off,metacopy=off",
        };
        options += if self.read_only { "" } else { ",index=off" };
        if self.volatile && !self.read_only {
            options += ",volatile";
        }
        let options = std::ffi::CString::new(options).map_err(io::Error::other)?;
        let flags = if self.read_only { MountFlags::RDONLY } else { MountFlags::empty() };
        rustix::mount::mount(self.source.as_str(), target, "overlay", flags, Some(options.as_c_str()))?;
        Ok(())
    }
}

fn plain_path(path: &Path) -> Option<&str> {
    path.to_str().filter(|path| path.len() < 300 && !path.contains([':', ',', '\\']))
}

/// Runs on a thread that has its own working folder or mount namespace.
fn apart<T: Send>(what: UnshareFlags, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("mount".into()).stack_size(256 << 10);
        let running = thread.spawn_scoped(scope, || {
            confine::unshare(what)?;
            work()
        })?;
        running.join().unwrap_or_else(|_| Err(io::Error::other("the thread that mounts ended early")))
    })
}

/// One line of `/proc/self/mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// Where.
    pub target: PathBuf,
    /// Of which type.
    pub kind: String,
    /// What it says it is.
    pub source: String,
}

/// What is mounted, in the order it was.
pub fn mounted() -> io::Result<Vec<Mounted>> {
    Ok(fs::read("/proc/self/mountinfo")?.split(|byte| *byte == b'\n').filter_map(parse).collect())
}

fn parse(line: &[u8]) -> Option<Mounted> {
    use std::os::unix::ffi::OsStringExt;
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let dash = fields.iter().position(|field| *field == b"-")?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(&unescape(bytes)).into_owned();
    Some(Mounted {
        target: std::ffi::OsString::from_vec(unescape(fields.get(4)?)).into(),
        kind: text(fields.get(dash + 1)?),
        source: text(fields.get(dash + 2)?),
    })
}

/// `\040` and the like.
fn unescape(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|_| *first == b'\\').and_then(|digits| {
            digits
                .iter()
                .try_fold(0_u32, |sum, digit| (b'0'..=b'7').contains(digit).then(|| sum * 8 + u32::from(digit - b'0')))
        });
        match octal.and_then(|value| u8::try_from(value).ok()) {
            Some(byte) => (out.push(byte), rest = &tail[3..]).1,
            None => (out.push(*first), rest = tail).1,
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_is_read_with_its_escapes() {
        let line =
            br"36 35 98:0 / /mnt/a\040b\134c rw,noatime shared:1 master:2 - overlay edge-agent:ab:id rw,lowerdir=x";
        let want = Mounted { target: "/mnt/a b\\c".into(), kind: "overlay".into(), source: "edge-agent:ab:id".into() };
        assert_eq!(parse(line), Some(want));
        assert_eq!(parse(b"36 35 98:0 / /mnt"), None);
        assert!(mounted().unwrap().iter().any(|mount| mount.target == Path::new("/")));
    }
}
