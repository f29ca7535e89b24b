//! Sub-paths of volumes: found or made without leaving the volume, and held by a bind mount. Blocking.
//!
//! Always true:
//! - The kernel resolves the path below the volume (`openat2` with `RESOLVE_BENEATH`): links that lead out are refused, and
//!   what a container exchanges meanwhile cannot change that.
//! - What is mounted is the very file or folder that was resolved, never a path that is resolved again.
//!
//! Elsewhere: `$(VAR)` in `subPathExpr` (`expand`).

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags},
    io::Errno,
};

use super::{Problem, mount, place};

/// Binds `sub_path` of the volume at `volume` to `target`, both made where they are missing; `target` is returned. Twice is
/// as once; where the sub-path means another file by now it is bound anew.
pub fn bind(volume: &Path, sub_path: &str, target: &Path) -> Result<PathBuf, Problem> {
    let parts = place::inside(sub_path)?;
    let found = resolve(volume, &parts, sub_path)?;
    let stat = rustix::fs::fstat(&found).map_err(|errno| Problem::io("look at", volume)(errno.into()))?;
    if mount::is_mounted(target)? {
        let there = rustix::fs::statat(rustix::fs::CWD, target, AtFlags::SYMLINK_NOFOLLOW);
        if there.is_ok_and(|there| (there.st_dev, there.st_ino) == (stat.st_dev, stat.st_ino)) {
            return Ok(target.to_owned());
        }
        mount::unmount(target)?;
    }
    let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    make_target(target, is_dir)?;
    mount::bind(&found, target, true)?;
    Ok(target.to_owned())
}

fn make_target(target: &Path, is_dir: bool) -> Result<(), Problem> {
    if let Some(parent) = target.parent() {
        board::durable::create_dir_all(parent, 0o750).map_err(Problem::io("make", parent))?;
    }
    // Of the other kind from an earlier time; nothing is mounted there any more.
    match std::fs::symlink_metadata(target) {
        Ok(there) if there.is_dir() != is_dir => {
            let removed = if there.is_dir() { std::fs::remove_dir(target) } else { std::fs::remove_file(target) };
            removed.map_err(Problem::io("remove", target))?;
        }
        Ok(_) => return Ok(()),
        Err(_) => {}
    }
    let made = if is_dir {
        std::fs::create_dir(target)
    } else {
        std::fs::OpenOptions::new().write(true).create_new(true).open(target).map(drop)
    };
    made.map_err(Problem::io("make", target))
}

/// What the path means, its missing folders made with the volume's own permissions.
fn resolve(volume: &Path, parts: &[&str], shown: &str) -> Result<OwnedFd, Problem> {
    let root = mount::open(volume)?;
    let stat = rustix::fs::fstat(&root).map_err(|errno| Problem::io("look at", volume)(errno.into()))?;
    if parts.is_empty() {
        return Ok(root);
    }
    let problem = |errno: Errno| problem(volume, shown, errno);
    match below(&root, &parts.join("/")) {
        Err(Errno::NOENT) => {}
        other => return other.map_err(problem),
    }
    let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
    let mut at: Option<OwnedFd> = None;
    let mut is_new = false;
    for (n, part) in parts.iter().enumerate() {
        // Links are followed in what was there, within the volume; in what is made here there are none.
        let found = match (&at, is_new) {
            (Some(at), true) => below(at, part),
            _ => below(&root, &parts[..=n].join("/")),
        };
        at = Some(match found {
            Err(Errno::NOENT) => {
                let parent = at.as_ref().unwrap_or(&root);
                match rustix::fs::mkdirat(parent, *part, mode) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(problem(errno)),
                }
                is_new = true;
                let made = made(parent, part).map_err(problem)?;
                set_mode(&made, mode).map_err(problem)?;
                made
            }
            other => other.map_err(problem)?,
        });
    }
    at.ok_or_else(|| problem(Errno::NOENT))
}

/// Opens below `root`: links may be followed as long as they stay there. Mounts are entered, such as a volume's.
fn below(root: &OwnedFd, path: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    // EAGAIN: something was renamed meanwhile, and the kernel could not be sure.
    for _ in 0..32 {
        match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

/// The folder that was just made, and no link that took its place.
fn made(parent: &OwnedFd, name: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat2(parent, name, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)
}

/// Whatever the umask says; the group bit of the parent stays.
fn set_mode(dir: &OwnedFd, mode: Mode) -> rustix::io::Result<()> {
    let stat = rustix::fs::fstat(dir)?;
    rustix::fs::fchmod(dir, mode | Mode::from_raw_mode(stat.st_mode & 0o2000))
}

fn problem(volume: &Path, shown: &str, errno: Errno) -> Problem {
    let shown: String = shown.chars().take(256).collect();
    match errno {
        Errno::XDEV | Errno::LOOP => {
            Problem::Invalid(format!("subpath {shown:?} not within volume path {:?}", volume.display()))
        }
        Errno::NOTDIR => Problem::Invalid(format!("subpath {shown:?} goes through something that is no folder")),
        errno => Problem::io("use a sub-path of", volume)(errno.into()),
    }
}

#[cfg(test)]
mod tests;
