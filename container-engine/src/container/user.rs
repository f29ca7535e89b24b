//! Who a process is: names looked up in the `/etc/passwd` and `/etc/group` of the container's own root file system.
//!
//! The image is not trusted: files are opened inside its root (`RESOLVE_IN_ROOT`), must be regular, and are read up to
//! a size; lines that make no sense are passed over.

use std::{fs::File, io, io::Read, os::fd::AsFd, path::Path};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};

use super::UserLookup;

/// Largest file that is read.
const MAX_FILE: u64 = 4 << 20;
/// The kernel takes no more (`NGROUPS_MAX`).
const MAX_GROUPS: usize = 65_536;

/// Who a process is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Further groups, the first included, as a login gives them.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: String,
}

impl User {
    /// The superuser.
    pub fn root() -> Self {
        Self { uid: 0, gid: 0, groups: vec![0], home: "/root".to_owned() }
    }
}

/// Why a user is not known.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// No such user.
    #[error("user {0:?} is not in the image's /etc/passwd: name one that is, or a number")]
    NoUser(String),
    /// No such group.
    #[error("group {0:?} is not in the image's /etc/group: name one that is, or a number")]
    NoGroup(String),
    /// A file that cannot be used.
    #[error("cannot read the image's {file}")]
    File {
        /// Which.
        file: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// Looks up `user` (`name|uid[:group|gid]`; empty: root) and the further `groups` in `rootfs`. Blocking.
pub fn lookup(rootfs: &Path, user: &str, groups: &[String], how: UserLookup) -> Result<User, UserError> {
    let passwd = read(rootfs, "/etc/passwd")?;
    let group = read(rootfs, "/etc/group")?;
    resolve(&passwd, &group, user, groups, how)
}

/// A small regular file of the container; empty where there is none.
fn read(rootfs: &Path, file: &'static str) -> Result<String, UserError> {
    let failed = |source| UserError::File { file, source };
    let opened = open_in_root(rootfs, Path::new(file), OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY);
    let file = match opened {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(String::new());
        }
        Err(error) => return Err(failed(error)),
    };
    let stat = rustix::fs::fstat(&file).map_err(|error| failed(error.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file")));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidData, "it is over 4 MiB")));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Opens `path` as a process whose root is `rootfs` would see it: symbolic links and `..` never leave it.
pub(super) fn open_in_root(rootfs: &Path, path: &Path, flags: OFlags) -> io::Result<File> {
    let root = rustix::fs::open(rootfs, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    open_beneath(&root, path, flags)
}

/// The same, for a root that is open.
pub(super) fn open_beneath(root: impl AsFd, path: &Path, flags: OFlags) -> io::Result<File> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    // The kernel asks for another try when something was renamed meanwhile.
    for _ in 0..16 {
        match rustix::fs::openat2(root.as_fd(), path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(rustix::io::Errno::AGAIN) => {}
            other => return Ok(File::from(other?)),
        }
    }
    Err(rustix::io::Errno::AGAIN.into())
}

struct Passwd<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

fn users(passwd: &str) -> impl Iterator<Item = Passwd<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let home = fields.nth(1).unwrap_or_default();
        Some(Passwd { name, uid, gid, home })
    })
}

fn groups_of(group: &str) -> impl Iterator<Item = Group<'_>> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        Some(Group { name, gid: fields.next()?.parse().ok()?, members: fields.next().unwrap_or_default() })
    })
}

/// Where Docker's way is wanted, names are looked for first, also those that read as numbers.
fn resolve(passwd: &str, group: &str, user: &str, more: &[String], how: UserLookup) -> Result<User, UserError> {
    let (user, primary) = match user.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (user, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number = user.parse::<u32>().ok();
    let is_name = number.is_none() || how == UserLookup::Docker;
    let known = users(passwd).find(|entry| is_name && entry.name == user);
    let known = known.or_else(|| users(passwd).find(|entry| Some(entry.uid) == number));
    let (uid, mut gid) = match (&known, number) {
        (Some(entry), _) => (entry.uid, entry.gid),
        (None, Some(uid)) => (uid, 0),
        (None, None) => return Err(UserError::NoUser(user.to_owned())),
    };
    let mut groups = Vec::new();
    if let Some(primary) = primary {
        gid = gid_of(group, primary, how)?;
    }
    let with_members = match how {
        UserLookup::Docker => primary.is_none(),
        UserLookup::Merge => true,
        UserLookup::Strict => false,
    };
    if let Some(entry) = known.as_ref().filter(|_| with_members) {
        let member = |group: &Group| group.members.split(',').any(|name| name == entry.name);
        groups.extend(groups_of(group).filter(member).map(|group| group.gid));
    }
    // The first group stands among the others as well, or a process could shed it to get past a group's denial.
    groups.insert(0, gid);
    for name in more {
        groups.push(gid_of(group, name, how)?);
    }
    let mut seen = std::collections::BTreeSet::new();
    groups.retain(|gid| seen.insert(*gid));
    groups.truncate(MAX_GROUPS);
    let home = known.map(|entry| entry.home.to_owned()).filter(|home| home.starts_with('/'));
    let home = home.unwrap_or_else(|| if uid == 0 { "/root".to_owned() } else { "/".to_owned() });
    Ok(User { uid, gid, groups, home })
}

fn gid_of(group: &str, name: &str, how: UserLookup) -> Result<u32, UserError> {
    let number = name.parse().ok().filter(|_| how != UserLookup::Docker);
    if let Some(number) = number {
        return Ok(number);
    }
    let known = groups_of(group).find(|entry| entry.name == name).map(|entry| entry.gid);
    known.or_else(|| name.parse().ok()).ok_or_else(|| UserError::NoGroup(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# note\nbad:x:y:1::/:\napp:x:1000:1001::/home/app:/bin/sh\n77:x:5:5::/seven:\nhalf:x:9\n";
    const GROUP: &str = "root:x:0:\nwheel:x:10:root,app\ndata:x:20:app\napp:x:1001:\nbroken:x:\n";

    #[test]
    fn users_and_groups() {
        #[track_caller]
        fn check(user: &str, more: &[&str], want: Option<(u32, u32, &[u32], &str)>) {
            let more: Vec<String> = more.iter().map(|name| (*name).to_owned()).collect();
            let got = resolve(PASSWD, GROUP, user, &more, UserLookup::Docker).ok();
            let want =
                want.map(|(uid, gid, groups, home)| User { uid, gid, groups: groups.to_vec(), home: home.to_owned() });
            assert_eq!(got, want, "{user} {more:?}");
        }
        check("", &[], Some((0, 0, &[0, 10], "/root")));
        check("app", &[], Some((1000, 1001, &[1001, 10, 20], "/home/app")));
        check("1000", &[], Some((1000, 1001, &[1001, 10, 20], "/home/app")));
        check("app:data", &[], Some((1000, 20, &[20], "/home/app")));
        check("app:", &[], Some((1000, 1001, &[1001, 10, 20], "/home/app")));
        check(":data", &[], Some((0, 20, &[20], "/root")));
        check("4242", &[], Some((4242, 0, &[0], "/")));
        check("4242:4343", &["data", "99", "data"], Some((4242, 4343, &[4343, 20, 99], "/")));
        check("77", &[], Some((5, 5, &[5], "/seven")));
        check("nobody", &[], None);
        check("app:nogroup", &[], None);
        check("app", &["nogroup"], None);
        check("-1", &[], None);
        check("4294967296", &[], None);
        check("bad", &[], None);
    }

    #[test]
    fn users_of_pods() {
        #[track_caller]
        fn check(user: &str, more: &[&str], merged: Option<(u32, u32, &[u32])>, strict: Option<(u32, u32, &[u32])>) {
            let more: Vec<String> = more.iter().map(|name| (*name).to_owned()).collect();
            for (how, want) in [(UserLookup::Merge, merged), (UserLookup::Strict, strict)] {
                let got = resolve(PASSWD, GROUP, user, &more, how).ok();
                let got = got.as_ref().map(|user| (user.uid, user.gid, user.groups.as_slice()));
                assert_eq!(got, want, "{user} {more:?} {how:?}");
            }
        }
        check("1000", &[], Some((1000, 1001, &[1001, 10, 20])), Some((1000, 1001, &[1001])));
        check("app", &["7"], Some((1000, 1001, &[1001, 10, 20, 7])), Some((1000, 1001, &[1001, 7])));
        check("1000:5", &[], Some((1000, 5, &[5, 10, 20])), Some((1000, 5, &[5])));
        check("4242", &["9"], Some((4242, 0, &[0, 9])), Some((4242, 0, &[0, 9])));
        // What reads as a number is one, whatever the image calls so.
        check("77", &[], Some((77, 0, &[0])), Some((77, 0, &[0])));
        check("nobody", &[], None, None);
        let group = "3000:x:0:\n";
        let user = resolve("", group, "1:3000", &["3000".to_owned()], UserLookup::Merge).unwrap();
        assert_eq!((user.gid, user.groups), (3000, vec![3000]));
    }

    #[test]
    fn hostile_files_do_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("etc")).unwrap();
        let etc = |name: &str| root.join("etc").join(name);
        // Nothing there: numbers go, names do not.
        assert_eq!(lookup(&root, "7", &[], UserLookup::Docker).unwrap().uid, 7);
        assert!(matches!(lookup(&root, "app", &[], UserLookup::Docker), Err(UserError::NoUser(_))));
        // A link out of the root ends inside it.
        std::fs::write(dir.path().join("secret"), "host:x:1:1::/:\n").unwrap();
        std::os::unix::fs::symlink("../../../../../../secret", etc("passwd")).unwrap();
        assert!(matches!(lookup(&root, "host", &[], UserLookup::Docker), Err(UserError::NoUser(_))));
        std::fs::remove_file(etc("passwd")).unwrap();
        // A pipe that nobody writes to.
        rustix::fs::mknodat(rustix::fs::CWD, etc("passwd"), FileType::Fifo, Mode::from_raw_mode(0o644), 0).unwrap();
        assert!(matches!(lookup(&root, "0", &[], UserLookup::Docker), Err(UserError::File { .. })));
        std::fs::remove_file(etc("passwd")).unwrap();
        // A folder, a loop, a file without end.
        std::fs::create_dir(etc("passwd")).unwrap();
        assert!(matches!(lookup(&root, "0", &[], UserLookup::Docker), Err(UserError::File { .. })));
        std::fs::remove_dir(etc("passwd")).unwrap();
        std::os::unix::fs::symlink("passwd", etc("passwd")).unwrap();
        assert!(matches!(lookup(&root, "0", &[], UserLookup::Docker), Err(UserError::File { .. })));
        std::fs::remove_file(etc("passwd")).unwrap();
        File::create(etc("passwd")).unwrap().set_len(MAX_FILE + 1).unwrap();
        assert!(matches!(lookup(&root, "0", &[], UserLookup::Docker), Err(UserError::File { .. })));
        // No text at all.
        std::fs::write(etc("passwd"), [0xff, b'\n', b':', b':', b'\n', 0]).unwrap();
        assert_eq!(lookup(&root, "0", &[], UserLookup::Docker).unwrap().uid, 0);
    }
}
