//! Any tree, as an archive and unpacked again, is the same tree.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt, chown, lchown, symlink},
    path::{Path, PathBuf},
};

use proptest::{collection::vec, prelude::*};
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

use super::make::describe;
use crate::snapshot::{Limits, Marks, archive::Archive, diff, remove, tree::Tree};

#[derive(Debug, Clone)]
enum Node {
    File(Vec<u8>),
    Zeros(usize),
    Folder,
    Link(String),
    Hard(usize),
    Device(u32, u32),
    Fifo,
}

#[derive(Debug, Clone)]
struct Item {
    parent: usize,
    name: String,
    node: Node,
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    xattr: Option<(String, Vec<u8>)>,
}

fn item() -> impl Strategy<Value = Item> {
    let node = prop_oneof![
        4 => vec(any::<u8>(), 0..2000).prop_map(Node::File),
        1 => (0..300_000_usize).prop_map(Node::Zeros),
        4 => Just(Node::Folder),
        2 => "[a-z/.]{1,150}".prop_map(Node::Link),
        1 => any::<usize>().prop_map(Node::Hard),
        1 => (1..4000_u32, 0..1_000_000_u32).prop_map(|(major, minor)| Node::Device(major, minor)),
        1 => Just(Node::Fifo),
    ];
    let name = prop_oneof![4 => "[a-c]{1,2}", 1 => "[a-zäöü .-]{1,60}x", 1 => "[a-z]{100,200}"];
    let owner = prop_oneof![Just(0_u32), 0..70_000_u32, 2_097_150..2_097_160_u32, Just(4_000_000_000)];
    let mtime = (prop_oneof![0..2_000_000_000_i64, -1000..0_i64], prop_oneof![Just(0_i64), 0..1_000_000_000_i64]);
    let xattr = proptest::option::weighted(0.2, ("user[.][a-z]{1,20}", vec(any::<u8>(), 1..300)));
    (any::<usize>(), name, node, 0..0o10000_u32, (owner.clone(), owner), mtime, xattr).prop_map(
        |(parent, name, node, mode, owner, mtime, xattr)| Item { parent, name, node, mode, owner, mtime, xattr },
    )
}

/// Makes the items that can be made; those in the way of others are left out.
fn build(root: &Path, items: &[Item]) {
    let (mut folders, mut files) = (vec![root.to_owned()], Vec::new());
    let mut times: Vec<(PathBuf, (i64, i64))> = Vec::new();
    for item in items {
        let path = folders[item.parent % folders.len()].join(&item.name);
        if path.symlink_metadata().is_ok() || path.as_os_str().len() > 3000 || item.name.trim_matches('.').is_empty() {
            continue;
        }
        match &item.node {
            Node::File(content) => fs::write(&path, content).unwrap(),
            Node::Zeros(length) => fs::write(&path, vec![0; *length]).unwrap(),
            Node::Folder => fs::create_dir(&path).unwrap(),
            Node::Link(target) => symlink(target, &path).unwrap(),
            Node::Hard(which) => {
                let files: &Vec<PathBuf> = &files;
                if let Some(file) = files.get(which % files.len().max(1)) {
                    fs::hard_link(file, &path).unwrap();
                }
                continue;
            }
            Node::Device(major, minor) => {
                let device = rustix::fs::makedev(*major, *minor);
                rustix::fs::mknodat(CWD, &path, FileType::CharacterDevice, Mode::empty(), device).unwrap();
            }
            Node::Fifo => rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::empty(), 0).unwrap(),
        }
        lchown(&path, Some(item.owner.0), Some(item.owner.1)).unwrap();
        let plain = matches!(item.node, Node::File(_) | Node::Zeros(_) | Node::Folder);
        if let Some((name, value)) = item.xattr.as_ref().filter(|_| plain) {
            rustix::fs::lsetxattr(&path, name.as_str(), value, XattrFlags::empty()).unwrap();
        }
        if !matches!(item.node, Node::Link(_)) {
            fs::set_permissions(&path, fs::Permissions::from_mode(item.mode)).unwrap();
        }
        match item.node {
            Node::Folder => folders.push(path.clone()),
            Node::File(_) | Node::Zeros(_) => files.push(path.clone()),
            _ => {}
        }
        times.push((path, item.mtime));
    }
    for (path, (tv_sec, tv_nsec)) in times.iter().rev() {
        let time = Timespec { tv_sec: *tv_sec, tv_nsec: *tv_nsec };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

fn archive(folder: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    let source =
        diff::Source { folder: folder.to_owned(), index: None, marks: Marks::User, map: None, root: (0o755, 0, 0) };
    diff::write(&source, &mut bytes).unwrap();
    bytes
}

fn unpack(bytes: &[u8], folder: &Path) {
    let root = fs::File::open(folder).unwrap();
    let mut tree = Tree::new(root.into(), Marks::User, Limits::default(), Vec::new()).unwrap();
    tree.write_all(&mut Archive::new(bytes)).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn a_tree_survives_the_way_through_an_archive(items in vec(item(), 0..60)) {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        fs::create_dir(&one).unwrap();
        fs::create_dir(&two).unwrap();
        for root in [&one, &two] {
            chown(root, Some(0), Some(0)).unwrap();
            fs::set_permissions(root, fs::Permissions::from_mode(0o755)).unwrap();
        }
        build(&one, &items);
        let bytes = archive(&one);
        unpack(&bytes, &two);
        let (want, found): (BTreeMap<_, _>, BTreeMap<_, _>) = (describe(&one), describe(&two));
        for (path, facts) in &want {
            prop_assert_eq!(found.get(path), Some(facts), "{}", path.display());
        }
        prop_assert_eq!(want.len(), found.len());
        // And what is unpacked gives the same bytes.
        prop_assert!(archive(&two) == bytes, "the second archive differs");
        remove::tree(&two).unwrap();
        prop_assert!(!two.exists());
    }

    /// Any bytes are refused or read, and the reader ends.
    #[test]
    fn any_bytes_end(mut bytes in vec(any::<u8>(), 0..4000), seal in any::<bool>()) {
        if seal {
            for header in bytes.chunks_exact_mut(512) {
                header[257..262].copy_from_slice(b"ustar");
                header[148..156].fill(b' ');
                let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
                header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
        let mut archive = Archive::new(bytes.as_slice());
        let mut entries = 0;
        while let Ok(Some(_)) = archive.next() {
            entries += 1;
        }
        prop_assert!(entries <= bytes.len() / 512);
    }
}
