//! Mounts of the host below the pods' folders: tmpfs, binds, and what there is. Blocking.
//!
//! Always true: nothing is mounted over or unmounted through a symbolic link at the end of a path.
//!
//! Elsewhere: mounts inside containers (`container_engine::runtime`).

use std::{
    ffi::{CString, OsString},
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStringExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, StatxAttributes, StatxFlags},
    io::Errno,
    mount::{MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags},
};

use super::Problem;

/// Rounds in which mounts below a folder are taken away: mounts on mounts come to light one after the other.
const ROUNDS: usize = 64;
/// Largest list of mounts that is read.
const MAX_LIST: u64 = 64 << 20;

/// One line of `mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// Where.
    pub target: PathBuf,
    /// Its file system's type.
    pub kind: String,
    /// What the file system calls its source.
    pub source: OsString,
    /// Its options.
    pub options: String,
}

/// All mounts of this mount namespace, in the order in which they were made.
pub fn list() -> Result<Vec<Mounted>, Problem> {
    const PATH: &str = "/proc/self/mountinfo";
    let bytes = board::durable::read(Path::new(PATH), MAX_LIST).map_err(Problem::io("read", PATH))?;
    Ok(bytes.split(|byte| *byte == b'\n').filter_map(parse).collect())
}

/// `36 35 98:0 /root /target rw,noatime shared:1 - ext3 /dev/root rw`.
fn parse(line: &[u8]) -> Option<Mounted> {
    let mut words = line.split(|byte| *byte == b' ');
    let target = unescape(words.nth(4)?);
    let mut rest = words.skip_while(|word| *word != b"-").skip(1);
    let kind = String::from_utf8_lossy(rest.next()?).into_owned();
    let source = OsString::from_vec(unescape(rest.next()?));
    let options = String::from_utf8_lossy(rest.next().unwrap_or_default()).into_owned();
    Some(Mounted { target: OsString::from_vec(target).into(), kind, source, options })
}

/// `\040` is a space: three octal digits.
fn unescape(word: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(word.len());
    let mut at = 0;
    while let Some(&byte) = word.get(at) {
        let digits =
            word.get(at + 1..at + 4).filter(|it| byte == b'\\' && it.iter().all(|d| (b'0'..=b'7').contains(d)));
        if let Some(digits) = digits {
            out.push(digits.iter().fold(0u8, |value, digit| value.wrapping_mul(8).wrapping_add(digit - b'0')));
            at += 4;
        } else {
            out.push(byte);
            at += 1;
        }
    }
    out
}

/// Whether something is mounted right there. A path that does not exist is no mount point.
pub fn is_mounted(path: &Path) -> Result<bool, Problem> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    match rustix::fs::statx(CWD, path, flags, StatxFlags::empty()) {
        Ok(stat) if stat.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) => {
            Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
        }
        Err(Errno::NOENT) => Ok(false),
        // A mount whose server or process has gone is one all the same.
        _ => Ok(list()?.iter().any(|mount| mount.target == path)),
    }
}

/// Memory at `target`, a folder that is there; `size` in bytes, what the kernel allows where absent. Not swapped out where
/// the kernel can promise that.
pub fn tmpfs(target: &Path, size: Option<u64>, more: &str) -> Result<(), Problem> {
    let size = size.map_or_else(String::new, |size| format!(",size={size}"));
    match mount("tmpfs", target, "tmpfs", MountFlags::empty(), &format!("{more}{size},noswap")) {
        // Before Linux 6.4.
        Err(Problem::Io { source, .. }) if source.kind() == io::ErrorKind::InvalidInput => {
            mount("tmpfs", target, "tmpfs", MountFlags::empty(), &format!("{more}{size}"))
        }
        other => other,
    }
}

/// Options of a file system of its own whose root everybody, or a group, may write to.
pub fn root_options(group: Option<u32>) -> String {
    group.map_or_else(|| "mode=777".to_owned(), |group| format!("mode=2777,gid={group}"))
}

/// Any file system.
pub fn mount(source: &str, target: &Path, kind: &str, flags: MountFlags, data: &str) -> Result<(), Problem> {
    let no_text = |_| Problem::Invalid(format!("the options of a {kind} mount have a NUL"));
    let data = CString::new(data).map_err(no_text)?;
    let made = rustix::mount::mount(source, target, kind, flags, Some(data.as_c_str()));
    made.map_err(|errno| match errno {
        Errno::NODEV => Problem::Unsupported(format!("this node's kernel has no file system {kind:?}")),
        errno => Problem::io("mount", target)(errno.into()),
    })
}

/// What `what` refers to, at `target`, a folder or file that is there.
pub fn bind(what: &impl AsFd, target: &Path, recursive: bool) -> Result<(), Problem> {
    let failed = |errno: Errno| Problem::io("bind", target)(errno.into());
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let tree = rustix::mount::open_tree(what, "", flags).map_err(failed)?;
    let here = rustix::fs::open(target, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
    let here = here.map_err(failed)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(&tree, "", &here, "", flags).map_err(failed)
}

/// A handle on what is at a path, followed to its end: for `bind`.
pub fn open(path: &Path) -> Result<OwnedFd, Problem> {
    let opened = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    opened.map_err(|errno| Problem::io("open", path)(errno.into()))
}

/// Unmounts what is at `target`; a busy one goes away with its last user.
pub fn unmount(target: &Path) -> Result<(), Problem> {
    match rustix::mount::unmount(target, UnmountFlags::NOFOLLOW) {
        Err(Errno::BUSY) => rustix::mount::unmount(target, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH),
        other => other,
    }
    .or_else(|errno| if matches!(errno, Errno::INVAL | Errno::NOENT) { Ok(()) } else { Err(errno) })
    .map_err(|errno| Problem::io("unmount", target)(errno.into()))
}

/// Unmounts everything at and below `root`, the last made first.
pub fn unmount_below(root: &Path) -> Result<(), Problem> {
    for _ in 0..ROUNDS {
        let mut below: Vec<PathBuf> =
            list()?.into_iter().map(|it| it.target).filter(|it| it.starts_with(root)).collect();
        if below.is_empty() {
            return Ok(());
        }
        below.reverse();
        below.dedup();
        for target in &below {
            unmount(target)?;
        }
    }
    Err(Problem::Missing(format!("mounts below {} come again as fast as they are taken away", root.display())))
}

/// The path with every link in it resolved, as the list of mounts has it; the path itself where it is not there.
pub fn real(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_mountinfo() {
        let line =
            b"36 35 98:0 /mnt1 /a\\040b/\\134x rw,noatime master:1 shared:2 - ext3 /dev/ro\\040ot rw,errors=continue";
        let mount = parse(line).unwrap();
        assert_eq!(mount.target, Path::new("/a b/\\x"));
        assert_eq!((mount.kind.as_str(), mount.source.to_str().unwrap()), ("ext3", "/dev/ro ot"));
        assert_eq!(mount.options, "rw,errors=continue");
        for bad in [&b""[..], b"36 35", b"1 2 3 4 5 6 7 8", b"1 2 3 4 5 6 -", b"1 2 3 4 5 6 - ext3"] {
            assert_eq!(parse(bad), None);
        }
        assert_eq!(unescape(b"\\04\\\\777"), b"\\04\\\xff");
    }

    #[test]
    fn what_is_a_mount_point() {
        assert!(is_mounted(Path::new("/proc")).unwrap());
        assert!(!is_mounted(Path::new("/proc/self")).unwrap());
        assert!(!is_mounted(Path::new("/no/such")).unwrap());
    }
}
