//! What the tests are made of: archives by hand, a data directory, and a description of a tree to compare.

use std::{
    collections::BTreeMap,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    sync::Once,
};

use crate::snapshot::{Layer, Limits, Snapshots, Unpack, UnpackError};

/// The program with the hidden verbs, built where it is missing.
pub fn program() -> PathBuf {
    static BUILT: Once = Once::new();
    let exe = std::env::current_exe().unwrap();
    let profile = exe.ancestors().find(|path| path.ends_with("deps")).unwrap().parent().unwrap();
    let program = profile.join("examples/hidden-verbs");
    BUILT.call_once(|| {
        let target = profile.parent().unwrap();
        let status = std::process::Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()))
            .args(["build", "--quiet", "--package", "container-engine", "--example", "hidden-verbs", "--target-dir"])
            .arg(target)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status();
        assert!(status.is_ok_and(|status| status.success()), "the program for the tests does not build");
    });
    program
}

/// Snapshots in a folder of their own.
pub struct Place {
    pub dir: tempfile::TempDir,
    pub snapshots: Snapshots,
}

impl Place {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::open(dir.path(), &program()).unwrap();
        Self { dir, snapshots }
    }

    pub async fn unpack(&self, archive: &[u8]) -> Result<Layer, UnpackError> {
        self.snapshots.unpack(Unpack::default(), archive).await
    }

    pub async fn limited(&self, archive: &[u8], bytes: u64, entries: u64) -> Result<Layer, UnpackError> {
        self.snapshots.unpack(Unpack { limits: Limits { bytes, entries }, ..Unpack::default() }, archive).await
    }

    /// A mount point.
    pub fn target(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }
}

/// An archive, entry by entry.
#[derive(Default)]
pub struct Tar(pub Vec<u8>);

impl Tar {
    pub fn new() -> Self {
        Self::default()
    }

    fn header(mut self, name: &[u8], flag: u8, mode: u32, link: &[u8], size: u64) -> Self {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::new(flag));
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(size);
        header.set_mtime(1_000_000_000);
        let old = header.as_old_mut();
        old.name[..name.len()].copy_from_slice(name);
        old.linkname[..link.len()].copy_from_slice(link);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self
    }

    fn body(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn file(self, name: &str, content: &[u8]) -> Self {
        self.header(name.as_bytes(), b'0', 0o644, b"", content.len() as u64).body(content)
    }

    pub fn mode(self, name: &str, mode: u32, content: &[u8]) -> Self {
        self.header(name.as_bytes(), b'0', mode, b"", content.len() as u64).body(content)
    }

    /// Data of an entry whose header was written apart.
    pub fn file_body(self, bytes: &[u8]) -> Self {
        self.body(bytes)
    }

    pub fn folder(self, name: &str, mode: u32) -> Self {
        self.header(name.as_bytes(), b'5', mode, b"", 0)
    }

    pub fn symbolic(self, name: &str, target: &str) -> Self {
        self.header(name.as_bytes(), b'2', 0o777, target.as_bytes(), 0)
    }

    pub fn hard(self, name: &str, target: &str) -> Self {
        self.header(name.as_bytes(), b'1', 0o644, target.as_bytes(), 0)
    }

    pub fn other(self, flag: u8, name: &str, size: u64) -> Self {
        self.header(name.as_bytes(), flag, 0o644, b"", size)
    }

    pub fn device(mut self, name: &str, flag: u8, major: u32, minor: u32) -> Self {
        let at = self.0.len();
        self = self.header(name.as_bytes(), flag, 0o620, b"", 0);
        let header = &mut self.0[at..at + 512];
        header[329..337].copy_from_slice(format!("{major:07o}\0").as_bytes());
        header[337..345].copy_from_slice(format!("{minor:07o}\0").as_bytes());
        Self::seal(header);
        self
    }

    /// Changes the last header that was written and seals it again.
    pub fn patch(mut self, back: usize, at: usize, bytes: &[u8]) -> Self {
        let start = self.0.len() - back;
        let header = &mut self.0[start..start + 512];
        header[at..at + bytes.len()].copy_from_slice(bytes);
        Self::seal(header);
        self
    }

    fn seal(header: &mut [u8]) {
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }

    /// A PAX header for the next entry.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut body = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            body.extend_from_slice(format!("{length} {key}=").as_bytes());
            body.extend_from_slice(value);
            body.push(b'\n');
        }
        self.header(b"PaxHeaders/x", b'x', 0o644, b"", body.len() as u64).body(&body)
    }

    /// A GNU long name (`L`) or link (`K`) for the next entry.
    pub fn long(self, flag: u8, name: &str) -> Self {
        let body = [name.as_bytes(), b"\0"].concat();
        self.header(b"././@LongLink", flag, 0o644, b"", body.len() as u64).body(&body)
    }

    pub fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// All that is compared of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    pub kind: u32,
    pub mode: u32,
    pub owner: (u32, u32),
    /// Not of folders on a mount whose times the kernel moves.
    pub mtime: (i64, i64),
    pub device: u64,
    pub content: Vec<u8>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first name of the same file, where it has several.
    pub same_as: Option<PathBuf>,
}

/// Everything below a folder, by path.
pub fn describe(root: &Path) -> BTreeMap<PathBuf, Facts> {
    let mut all = BTreeMap::new();
    walk(root, root, &mut all);
    let mut first = BTreeMap::new();
    for (path, facts) in &mut all {
        let stat = std::fs::symlink_metadata(root.join(path)).unwrap();
        if stat.nlink() > 1 && !stat.is_dir() {
            facts.same_as = Some(first.entry(stat.ino()).or_insert_with(|| path.clone()).clone());
        }
    }
    all
}

fn walk(root: &Path, folder: &Path, all: &mut BTreeMap<PathBuf, Facts>) {
    for item in std::fs::read_dir(folder).unwrap() {
        let path = item.unwrap().path();
        let stat = std::fs::symlink_metadata(&path).unwrap();
        let content = if stat.is_symlink() {
            std::fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec()
        } else if stat.is_file() {
            std::fs::read(&path).unwrap()
        } else {
            Vec::new()
        };
        let facts = Facts {
            kind: stat.mode() & 0o170_000,
            mode: stat.mode() & 0o7777,
            owner: (stat.uid(), stat.gid()),
            mtime: (stat.mtime(), stat.mtime_nsec()),
            device: if stat.is_file() || stat.is_dir() || stat.is_symlink() { 0 } else { stat.rdev() },
            content,
            xattrs: xattrs(&path),
            same_as: None,
        };
        all.insert(path.strip_prefix(root).unwrap().to_owned(), facts);
        if stat.is_dir() {
            walk(root, &path, all);
        }
    }
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut list = vec![0; 64 << 10];
    let Ok(length) = rustix::fs::llistxattr(path, list.as_mut_slice()) else { return BTreeMap::new() };
    let mut all = BTreeMap::new();
    for name in list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 64 << 10];
        let length = rustix::fs::lgetxattr(path, name, value.as_mut_slice()).unwrap();
        all.insert(name.to_vec(), value[..length].to_vec());
    }
    all
}
