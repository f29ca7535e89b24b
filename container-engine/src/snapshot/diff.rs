//! What was written to a snapshot, as an OCI layer: whiteouts and opaque folders by their `.wh.` names.
//!
//! Always true:
//! - The same tree gives the same bytes: names are sorted, headers carry nothing of the machine, PAX records stand only
//!   where the plain header cannot say it.
//! - Folders above a change are in the archive, so that unpacking it alone does not change them.
//! - Memory: the names of the folders on the way, and those of files with several names.
//!
//! Sockets are left out. So is a file whose own name begins with `.wh.`: in a layer it would remove another.

use std::{
    collections::HashMap,
    ffi::CStr,
    fs::File,
    io::{self, BufReader, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};

use super::{
    IdMap, Marks,
    copy::{self, Mark},
    tree::is_whiteout,
};

/// Deepest folder.
const MAX_DEPTH: usize = 512;
/// Files with several names that are told apart; beyond, each name is a file of its own.
const MAX_LINKED: usize = 1 << 18;
/// Ids that no container has: the kernel's overflow id.
const NOBODY: u64 = 65534;
const BLOCK: usize = 512;
const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What to read.
#[derive(Debug, Clone)]
pub struct Source {
    /// `upper` of an overlay, or a copy.
    pub folder: PathBuf,
    /// With a copy: what was in it at first.
    pub index: Option<PathBuf>,
    /// Form of the marks in `upper`.
    pub marks: Marks,
    /// Owners on disk are shifted by it.
    pub map: Option<IdMap>,
    /// Mode and owner of the root before; other ones make an entry for the root.
    pub root: (u32, u32, u32),
}

/// Writes the whole archive. Blocking.
pub fn write(source: &Source, out: impl Write) -> io::Result<()> {
    let root = rustix::fs::open(&source.folder, FOLDER, Mode::empty())?;
    let index = source.index.as_deref().map(Index::open).transpose()?;
    let mut diff = Diff { out, source, index, linked: HashMap::new(), pending: Vec::new(), gone: None };
    let stat = rustix::fs::fstat(&root)?;
    if (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid) != source.root {
        let head = diff.head(b"./", b'5', &stat);
        let xattrs = diff.xattrs(&root)?;
        diff.out.write_all(&Head { xattrs, ..head }.bytes())?;
    }
    diff.folder(&root, &mut Vec::new(), 0)?;
    diff.removed_before(None)?;
    diff.out.write_all(&[0; 2 * BLOCK])?;
    diff.out.flush()
}

struct Diff<'a, W> {
    out: W,
    source: &'a Source,
    index: Option<Index>,
    linked: HashMap<u64, Vec<u8>>,
    /// Headers of the folders on the way that are unchanged themselves, with their depth.
    pending: Vec<(usize, Vec<u8>)>,
    /// What is below it in the index went with it.
    gone: Option<Vec<u8>>,
}

impl<W: Write> Diff<'_, W> {
    fn folder(&mut self, folder: &OwnedFd, path: &mut Vec<u8>, depth: usize) -> io::Result<()> {
        if depth > MAX_DEPTH {
            return Err(io::Error::other(format!("folders are nested deeper than {MAX_DEPTH}")));
        }
        for name in copy::names(folder.as_fd())? {
            let before = path.len();
            if before > 0 {
                path.push(b'/');
            }
            path.extend_from_slice(name.to_bytes());
            let stat = rustix::fs::statat(folder, &name, AtFlags::SYMLINK_NOFOLLOW)?;
            self.entry(folder.as_fd(), &name, &stat, path, depth)?;
            path.truncate(before);
            self.pending.retain(|(at, _)| *at < depth);
        }
        Ok(())
    }

    fn entry(
        &mut self,
        folder: BorrowedFd<'_>,
        name: &CStr,
        stat: &Stat,
        path: &mut Vec<u8>,
        depth: usize,
    ) -> io::Result<()> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        self.removed_before(Some(path))?;
        let changed = self.index.as_mut().is_none_or(|index| index.is_changed(path, stat));
        if self.index.is_some() && kind != FileType::Directory {
            self.gone = Some(path.clone()); // Of a folder that was here nothing is left.
        }
        if self.index.is_none() && is_whiteout(stat) {
            return self.whiteout(path);
        }
        if name.to_bytes().starts_with(b".wh.") {
            tracing::warn!(name = %name.to_string_lossy(), "a file whose name would be a whiteout is left out of the layer");
            return Ok(());
        }
        if kind == FileType::Directory {
            let fd = rustix::fs::openat(folder, name, FOLDER, Mode::empty())?;
            let slashed = [path.as_slice(), b"/"].concat();
            let head = Head { xattrs: self.xattrs(&fd)?, ..self.head(&slashed, b'5', stat) };
            self.pending.push((depth, head.bytes()));
            if changed {
                self.flush()?;
            }
            if self.index.is_none() && is_opaque(&fd, self.source.marks) {
                let opaque = [path.as_slice(), b"/.wh..wh..opq"].concat();
                self.out.write_all(&Head::empty(&opaque).bytes())?;
            }
            return self.folder(&fd, path, depth + 1);
        }
        if !changed {
            return Ok(());
        }
        self.flush()?;
        self.leaf(folder, name, stat, path)
    }

    fn leaf(&mut self, folder: BorrowedFd<'_>, name: &CStr, stat: &Stat, path: &[u8]) -> io::Result<()> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        if stat.st_nlink > 1 && kind != FileType::Socket {
            if let Some(first) = self.linked.get(&stat.st_ino) {
                let head = Head { link: first.clone(), size: 0, ..self.head(path, b'1', stat) };
                return self.out.write_all(&head.bytes());
            }
            if self.linked.len() < MAX_LINKED {
                self.linked.insert(stat.st_ino, path.to_vec());
            }
        }
        match kind {
            FileType::RegularFile => self.file(folder, name, stat, path),
            FileType::Symlink => {
                let link = rustix::fs::readlinkat(folder, name, Vec::new())?.into_bytes();
                let head = Head { link, size: 0, ..self.head(path, b'2', stat) };
                self.out.write_all(&head.bytes())
            }
            FileType::CharacterDevice | FileType::BlockDevice => {
                let flag = if kind == FileType::BlockDevice { b'4' } else { b'3' };
                let device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
                let head = Head { device, size: 0, ..self.head(path, flag, stat) };
                self.out.write_all(&head.bytes())
            }
            FileType::Fifo => {
                let head = Head { size: 0, ..self.head(path, b'6', stat) };
                self.out.write_all(&head.bytes())
            }
            _ => Ok(()),
        }
    }

    fn file(&mut self, folder: BorrowedFd<'_>, name: &CStr, stat: &Stat, path: &[u8]) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(folder, name, flags, Mode::empty())?;
        let head = Head { xattrs: self.xattrs(&fd)?, ..self.head(path, b'0', stat) };
        self.out.write_all(&head.bytes())?;
        // Somebody may write to it meanwhile: what the header says is what follows.
        let mut left = head.size;
        let mut buffer = vec![0; 64 << 10];
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            let mut read = rustix::io::read(&fd, &mut buffer[..want])?;
            if read == 0 {
                buffer[..want].fill(0);
                read = want;
            }
            self.out.write_all(&buffer[..read])?;
            left -= read as u64;
        }
        pad(&mut self.out, head.size)
    }

    fn whiteout(&mut self, path: &[u8]) -> io::Result<()> {
        self.flush()?;
        let cut = path.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
        let name = [&path[..cut], b".wh.", &path[cut..]].concat();
        self.out.write_all(&Head::empty(&name).bytes())
    }

    /// Whiteouts of what the index has before `path` and the tree has not.
    fn removed_before(&mut self, path: Option<&[u8]>) -> io::Result<()> {
        while let Some(gone) = self.index.as_mut().and_then(|index| index.pop_before(path)) {
            let with_parent = self.gone.as_ref().is_some_and(|parent| is_below(&gone, parent));
            if !with_parent {
                // The folders on the way that are still pending may not be above this one.
                let depth = gone.split(|byte| *byte == b'/').count() - 1;
                self.pending.retain(|(at, _)| *at < depth);
                self.whiteout(&gone)?;
                self.gone = Some(gone);
            }
        }
        self.index.as_mut().map_or(Ok(()), Index::check)
    }

    fn flush(&mut self) -> io::Result<()> {
        for (_, bytes) in self.pending.drain(..) {
            self.out.write_all(&bytes)?;
        }
        Ok(())
    }

    fn head(&self, path: &[u8], flag: u8, stat: &Stat) -> Head {
        let id = |id: u32| match self.source.map {
            None => u64::from(id),
            Some(map) => id.checked_sub(map.host).filter(|id| *id < map.size).map_or(NOBODY, u64::from),
        };
        Head {
            path: path.to_vec(),
            flag,
            mode: stat.st_mode & 0o7777,
            uid: id(stat.st_uid),
            gid: id(stat.st_gid),
            size: if flag == b'0' { u64::try_from(stat.st_size).unwrap_or(0) } else { 0 },
            mtime: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)),
            ..Head::default()
        }
    }

    fn xattrs(&self, fd: &OwnedFd) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut all = Vec::new();
        for name in copy::xattr_names(fd)? {
            let wanted =
                name.starts_with(b"user.") || name.starts_with(b"system.posix_acl_") || name == b"security.capability";
            if wanted && !name.contains(&b'=') {
                let mut value = copy::xattr(fd, &name)?;
                if name == b"security.capability" && self.source.map.is_some() {
                    value = copy::plain_capability(value);
                }
                all.push((name, value));
            }
        }
        all.sort();
        Ok(all)
    }
}

fn is_opaque(fd: &OwnedFd, marks: Marks) -> bool {
    let mut value = [0; 2];
    matches!(rustix::fs::fgetxattr(fd, marks.opaque(), &mut value), Ok(1) if value[0] == b'y')
}

fn is_below(path: &[u8], parent: &[u8]) -> bool {
    path.strip_prefix(parent).is_some_and(|rest| rest.first() == Some(&b'/'))
}

fn pad(out: &mut impl Write, size: u64) -> io::Result<()> {
    let zeros = usize::try_from(size.wrapping_neg() % BLOCK as u64).unwrap_or(0);
    out.write_all(&[0; BLOCK][..zeros])
}

/// The index of a copy, read along with the walk.
struct Index {
    input: BufReader<File>,
    next: Option<(Vec<u8>, Mark)>,
    failed: Option<io::Error>,
}

impl Index {
    fn open(path: &Path) -> io::Result<Self> {
        let mut index = Self { input: BufReader::new(File::open(path)?), next: None, failed: None };
        index.advance();
        Ok(index)
    }

    fn advance(&mut self) {
        match copy::read_index(&mut self.input) {
            // Names in it begin with a slash, which keeps the root out.
            Ok(next) => self.next = next.map(|(path, mark)| (path[1.min(path.len())..].to_vec(), mark)),
            Err(error) => (self.next, self.failed) = (None, Some(error)),
        }
    }

    fn check(&mut self) -> io::Result<()> {
        self.failed.take().map_or(Ok(()), Err)
    }

    /// The next name in it, if it stands before `path` in the order of the walk.
    fn pop_before(&mut self, path: Option<&[u8]>) -> Option<Vec<u8>> {
        let (next, _) = self.next.as_ref()?;
        let order = |path: &[u8]| path.split(|byte| *byte == b'/').map(<[u8]>::to_vec).collect::<Vec<_>>();
        if path.is_some_and(|path| order(next) >= order(path)) {
            return None;
        }
        let gone = self.next.take().map(|(path, _)| path);
        self.advance();
        gone
    }

    fn is_changed(&mut self, path: &[u8], stat: &Stat) -> bool {
        let Some((_, mark)) = self.next.take_if(|(next, _)| next == path) else { return true };
        self.advance();
        mark != Mark::of(stat)
    }
}

/// One header.
#[derive(Debug, Default)]
struct Head {
    path: Vec<u8>,
    link: Vec<u8>,
    flag: u8,
    mode: u32,
    uid: u64,
    gid: u64,
    size: u64,
    mtime: (i64, u32),
    device: (u32, u32),
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Head {
    /// A whiteout.
    fn empty(path: &[u8]) -> Self {
        Self { path: path.to_vec(), flag: b'0', ..Self::default() }
    }

    /// The header, with a PAX header in front where it is needed.
    fn bytes(&self) -> Vec<u8> {
        let records = self.records();
        let mut out = Vec::new();
        if !records.is_empty() {
            let cut = self.path.iter().rposition(|byte| *byte == b'/').filter(|at| at + 1 < self.path.len());
            let name = &self.path[cut.map_or(0, |at| at + 1)..];
            let name = [b"PaxHeaders.0/", &name[..name.len().min(80)]].concat();
            let name: Vec<u8> = name.into_iter().filter(u8::is_ascii).collect();
            let pax = Self { path: name, flag: b'x', mode: 0o644, size: records.len() as u64, ..Self::default() };
            out.extend_from_slice(pax.block().as_bytes());
            out.extend_from_slice(&records);
            out.resize(out.len().next_multiple_of(BLOCK), 0);
        }
        out.extend_from_slice(self.block().as_bytes());
        out
    }

    fn block(&self) -> tar::Header {
        let mut header = tar::Header::new_ustar();
        let fit = |value: u64, max: u64| if value > max { 0 } else { value };
        header.set_entry_type(tar::EntryType::new(self.flag));
        header.set_mode(self.mode);
        header.set_uid(fit(self.uid, 0o777_7777));
        header.set_gid(fit(self.gid, 0o777_7777));
        header.set_size(fit(self.size, 0o777_7777_7777));
        header.set_mtime(fit(u64::try_from(self.mtime.0).unwrap_or(0), 0o777_7777_7777));
        if matches!(self.flag, b'3' | b'4') {
            // In ustar these always have their fields.
            let _ = header.set_device_major(self.device.0);
            let _ = header.set_device_minor(self.device.1);
        }
        let old = header.as_old_mut();
        let (path, link) = (self.path.len().min(100), self.link.len().min(100));
        old.name[..path].copy_from_slice(&self.path[..path]);
        old.linkname[..link].copy_from_slice(&self.link[..link]);
        header.set_cksum();
        header
    }

    fn records(&self) -> Vec<u8> {
        let mut records: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        let mut add = |key: &str, value: Vec<u8>| records.push((key.as_bytes().to_vec(), value));
        let long = |name: &[u8]| name.len() > 100 || (!name.is_ascii() && std::str::from_utf8(name).is_ok());
        if long(&self.path) {
            add("path", self.path.clone());
        }
        if long(&self.link) {
            add("linkpath", self.link.clone());
        }
        for (key, value, max) in
            [("uid", self.uid, 0o777_7777), ("gid", self.gid, 0o777_7777), ("size", self.size, 0o777_7777_7777)]
        {
            if value > max {
                add(key, value.to_string().into_bytes());
            }
        }
        let (seconds, nanos) = self.mtime;
        if nanos != 0 || !(0..=0o777_7777_7777).contains(&seconds) {
            add("mtime", decimal(seconds, nanos).into_bytes());
        }
        for (name, value) in &self.xattrs {
            records.push(([b"SCHILY.xattr.", name.as_slice()].concat(), value.clone()));
        }
        records.sort();
        records.iter().flat_map(|(key, value)| record(key, value)).collect()
    }
}

/// `LENGTH KEY=VALUE\n`, where the length counts itself.
fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

fn decimal(seconds: i64, nanos: u32) -> String {
    let text = match (seconds < 0, nanos) {
        (_, 0) => return seconds.to_string(),
        (false, _) => format!("{seconds}.{nanos:09}"),
        (true, _) => format!("-{}.{:09}", (seconds + 1).unsigned_abs(), 1_000_000_000 - nanos),
    };
    text.trim_end_matches('0').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_count_themselves() {
        assert_eq!(record(b"path", b"x"), b"9 path=x\n");
        assert_eq!(record(b"path", b"xy"), b"11 path=xy\n"); // The length of the length grows with it.
        for length in 0..300 {
            let bytes = record(b"k", &vec![b'v'; length]);
            let told: usize = String::from_utf8_lossy(&bytes).split(' ').next().unwrap().parse().unwrap();
            assert_eq!(told, bytes.len());
        }
    }

    #[test]
    fn times_before_1970_have_fractions_too() {
        assert_eq!(decimal(5, 0), "5");
        assert_eq!(decimal(5, 250_000_000), "5.25");
        assert_eq!(decimal(-1, 750_000_000), "-0.25");
        assert_eq!(decimal(-3, 500_000_000), "-2.5");
        assert_eq!(decimal(-3, 0), "-3");
    }
}
