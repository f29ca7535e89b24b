//! The atomic writer: all files of a volume change at once, and never while somebody looks.
//!
//! The kubelet's scheme: `..data` links to a folder named by the time, which holds the files; each visible name links to
//! `..data/NAME`. An update writes a new folder and renames a new link over `..data`.
//!
//! Always true:
//! - Through `..data`, either all old or all new files are seen, at every moment and after a crash at any.
//! - Where nothing changed nothing is written; what a crash left is taken away by the next call.
//! - Blocking, like all below it. The folder is the node's own: containers have it read-only.
//!
//! Elsewhere: what the files are (`payload`), tmpfs below them (`mount`).

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs::{self, DirBuilder, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown, symlink},
    },
    path::{Path, PathBuf},
};

use super::{
    Problem,
    payload::{File, Payload},
};

const DATA: &str = "..data";
const DATA_NEW: &str = "..data_tmp";
/// Read by the group, where the pod has one for its files.
const GROUP_FILE: u32 = 0o440;
const GROUP_DIR: u32 = 0o2550;

/// Brings the files in `dir` to what `payload` says; `true` where something was written. `group` is the pod's `fsGroup`.
pub fn write(dir: &Path, payload: &Payload, group: Option<u32>) -> Result<bool, Problem> {
    payload.check()?;
    let current = current(dir)?;
    let is_same = current.as_ref().is_some_and(|name| is_same(&dir.join(name), payload));
    let kept = match current.filter(|_| is_same) {
        Some(name) => name,
        None => replace(dir, payload, group)?,
    };
    let changed = link_visible(dir, payload)?;
    sweep(dir, payload, &kept)?;
    Ok(changed || !is_same)
}

/// The folder that `..data` names: a name beside it, whatever the link says.
fn current(dir: &Path) -> Result<Option<PathBuf>, Problem> {
    let link = dir.join(DATA);
    match fs::read_link(&link) {
        Ok(to) => Ok(Some(to).filter(|to| is_stamp(to.as_os_str()) && dir.join(to).is_dir())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Problem::io("read", link)(source)),
    }
}

/// The writer's own folders: `..2006_01_02_15_04_05.NNNN`.
fn is_stamp(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    bytes.len() > 3 && bytes.starts_with(b"..") && bytes[2].is_ascii_digit() && !bytes.contains(&b'/')
}

/// Whether the folder holds exactly these files.
fn is_same(dir: &Path, payload: &Payload) -> bool {
    let same = |(path, file): (&String, &File)| {
        let path = dir.join(path);
        let length = fs::symlink_metadata(&path).ok().filter(fs::Metadata::is_file).map(|it| it.len());
        length == Some(file.data.len() as u64) && fs::read(&path).is_ok_and(|data| data == file.data)
    };
    payload.files().iter().all(same) && count(dir).is_ok_and(|files| files == payload.files().len())
}

fn count(dir: &Path) -> io::Result<usize> {
    let mut found = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        found += if entry.file_type()?.is_dir() { count(&entry.path())? } else { 1 };
    }
    Ok(found)
}

/// Writes a new folder and makes `..data` name it.
fn replace(dir: &Path, payload: &Payload, group: Option<u32>) -> Result<PathBuf, Problem> {
    let name = stamp(dir)?;
    let folder = dir.join(&name);
    let made = fill(&folder, payload, group).and_then(|()| {
        let new = dir.join(DATA_NEW);
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Problem::io("remove", &new)(error)),
            _ => {}
        }
        symlink(&name, &new).map_err(Problem::io("make", &new))?;
        fs::rename(&new, dir.join(DATA)).map_err(Problem::io("rename", &new))
    });
    if let Err(error) = made {
        // The first error is the one to report; the next call takes away what stays.
        let _ = fs::remove_dir_all(&folder);
        return Err(error);
    }
    set_group(dir, group, GROUP_DIR)?;
    Ok(name)
}

/// A folder of its own, named by the time as people who look expect it.
fn stamp(dir: &Path) -> Result<PathBuf, Problem> {
    let now = jiff::Timestamp::now().strftime("..%Y_%m_%d_%H_%M_%S").to_string();
    for _ in 0..100 {
        let mut random = [0; 4];
        let _ = ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut random);
        let name = PathBuf::from(format!("{now}.{}", u32::from_le_bytes(random)));
        let path = dir.join(&name);
        match DirBuilder::new().mode(0o755).create(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => return Err(Problem::io("make", path)(source)),
            Ok(()) => {
                // Whatever the umask says.
                let mode = fs::set_permissions(&path, Permissions::from_mode(0o755));
                return mode.map(|()| name).map_err(Problem::io("change the mode of", path));
            }
        }
    }
    Err(Problem::Invalid(format!("no name is free for a new folder in {}", dir.display())))
}

fn fill(folder: &Path, payload: &Payload, group: Option<u32>) -> Result<(), Problem> {
    for (path, file) in payload.files() {
        let path = folder.join(path);
        if let Some(parent) = path.parent().filter(|parent| *parent != folder) {
            for dir in parent.ancestors().take_while(|it| *it != folder).collect::<Vec<_>>().into_iter().rev() {
                match DirBuilder::new().mode(0o755).create(dir) {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                    other => other.map_err(Problem::io("make", dir))?,
                }
                fs::set_permissions(dir, Permissions::from_mode(0o755))
                    .map_err(Problem::io("change the mode of", dir))?;
                set_group(dir, group, GROUP_DIR)?;
            }
        }
        write_file(&path, file).map_err(Problem::io("write", &path))?;
        set_group(&path, group, GROUP_FILE)?;
    }
    set_group(folder, group, GROUP_DIR)
}

fn write_file(path: &Path, file: &File) -> io::Result<()> {
    // Nobody may read a secret before its mode is right.
    let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    out.write_all(&file.data)?;
    if let Some(owner) = file.owner {
        rustix::fs::fchown(&out, Some(rustix::fs::Uid::from_raw(owner)), None)?;
    }
    out.set_permissions(Permissions::from_mode(file.mode))
}

/// Gives it to the pod's group, which may then read it.
fn set_group(path: &Path, group: Option<u32>, more: u32) -> Result<(), Problem> {
    let Some(group) = group else { return Ok(()) };
    chown(path, None, Some(group)).map_err(Problem::io("change the group of", path))?;
    let mode = fs::symlink_metadata(path).map_err(Problem::io("look at", path))?.permissions().mode();
    let wanted = (mode & 0o7777) | more;
    fs::set_permissions(path, Permissions::from_mode(wanted)).map_err(Problem::io("change the mode of", path))
}

/// Names at the top of the volume.
fn tops(payload: &Payload) -> BTreeSet<&str> {
    payload.files().keys().filter_map(|path| path.split('/').next()).collect()
}

fn link_visible(dir: &Path, payload: &Payload) -> Result<bool, Problem> {
    let mut changed = false;
    for name in tops(payload) {
        let path = dir.join(name);
        match symlink(Path::new(DATA).join(name), &path) {
            // Also a folder that was made for a mount inside: it stays.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => {
                other.map_err(Problem::io("make", &path))?;
                changed = true;
            }
        }
    }
    Ok(changed)
}

/// Takes away links of files that are no more, and folders of earlier versions and of attempts that a crash ended.
fn sweep(dir: &Path, payload: &Payload, kept: &Path) -> Result<(), Problem> {
    let tops = tops(payload);
    for entry in fs::read_dir(dir).map_err(Problem::io("list", dir))? {
        let entry = entry.map_err(Problem::io("list", dir))?;
        let (name, path) = (entry.file_name(), entry.path());
        if name == DATA || Path::new(&name) == kept {
            continue;
        }
        let kind = entry.file_type().map_err(Problem::io("look at", &path))?;
        let is_old_link = kind.is_symlink()
            && !name.to_str().is_some_and(|name| tops.contains(name))
            && (name == DATA_NEW || fs::read_link(&path).is_ok_and(|to| to.starts_with(DATA)));
        if is_old_link {
            fs::remove_file(&path).map_err(Problem::io("remove", &path))?;
        } else if kind.is_dir() && is_stamp(&name) {
            fs::remove_dir_all(&path).map_err(Problem::io("remove", &path))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
