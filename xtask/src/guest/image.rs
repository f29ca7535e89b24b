//! What the guest boots: Debian's cloud kernel, an initramfs that finds the disk, and the disk with the test programs, what
//! they call, and the libraries of all of them, copied from this machine.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::steps::{exec, root};

/// Debian programs that tests call; what busybox has is not among them. Not crun: version 1.8.1 fails here at `exec --process` and
/// tells 126 otherwise, so the tests, which take it where it is, would judge it and not us.
const PROGRAMS: &[&str] = &[
    "/usr/sbin/runc",
    "/usr/sbin/nft",
    "/usr/sbin/iptables",
    "/usr/sbin/ip6tables",
    "/usr/sbin/iptables-nft",
    "/usr/sbin/iptables-save",
    "/usr/sbin/dnsmasq",
    "/usr/bin/dig",
    "/usr/bin/ss",
    "/usr/bin/socat",
    "/usr/bin/nsenter",
    "/bin/ip",
    "/bin/bash",
    // Busybox's would take its own programs before those of this list.
    "/bin/sh",
    "/bin/tar",
    "/bin/mount",
    "/bin/umount",
];
/// Folders that are copied as they are, with the libraries of what is in them: plugins of CNI and of iptables.
const FOLDERS: &[&str] = &["/usr/lib/cni", "/usr/lib/x86_64-linux-gnu/xtables"];
/// Modules of the kernel that the rooms need; what is built in is passed over.
const MODULES: &[&str] = &[
    "overlay",
    "veth",
    "bridge",
    "nf_tables",
    "nft_chain_nat",
    "nft_masq",
    "nft_nat",
    "nft_ct",
    "nft_fib_inet",
    "nft_redir",
    "nft_reject_inet",
    "nft_compat",
    "br_netfilter",
    "nf_conntrack",
    "nf_conntrack_netlink",
    // What CNI's plugins say in iptables' words.
    "xt_MASQUERADE",
    "xt_addrtype",
    "xt_comment",
    "xt_conntrack",
    "xt_mark",
    "xt_multiport",
    "xt_nat",
];
const FIRST_MODULES: &[&str] = &["virtio_pci", "virtio_blk", "ext4"];

/// An unpacked kernel package.
pub(super) struct Kernel {
    dir: PathBuf,
    version: String,
}

/// The package is kept outside the tree, between clones; another version is fetched only where there is none.
pub(super) fn kernel(work: &Path) -> Result<Kernel> {
    let cache = crate::setup::venv().parent().map(|dir| dir.join("guest")).context("no cache folder")?;
    fs::create_dir_all(&cache)?;
    if find(&cache, "linux-image-").is_err() {
        let name = "linux-image-cloud-amd64";
        let package = dependency(name).or_else(|_| {
            exec("apt-get", &["update", "-qq"], &[])?;
            dependency(name)
        })?;
        let script = format!("cd '{}' && apt-get download -qq -o APT::Sandbox::User=root {package}", cache.display());
        exec("sh", &["-c", &script], &[])?;
    }
    let dir = work.join("kernel");
    exec("dpkg-deb", &["-x", &text(&find(&cache, "linux-image-")?), &text(&dir)], &[])?;
    let version = fs::read_dir(dir.join("lib/modules"))?.next().context("a kernel without modules")??.file_name();
    let version = version.to_string_lossy().into_owned();
    exec("depmod", &["-b", &text(&dir), &version], &[])?;
    Ok(Kernel { dir, version })
}

impl Kernel {
    /// What qemu starts.
    pub(super) fn file(&self) -> Result<PathBuf> {
        find(&self.dir.join("boot"), "vmlinuz")
    }
}

fn dependency(package: &str) -> Result<String> {
    let output = Command::new("apt-cache").args(["depends", "--important", package]).output()?;
    let listed = String::from_utf8_lossy(&output.stdout).into_owned();
    let found = listed.lines().find_map(|line| line.trim().strip_prefix("Depends: linux-image-"));
    Ok(format!("linux-image-{}", found.with_context(|| format!("apt-cache knows no {package}"))?))
}

/// Copies the named modules, and those they need, into `tree`.
fn modules(kernel: &Kernel, tree: &Path, names: &[&str]) -> Result<()> {
    let base = text(&kernel.dir);
    let mut files = BTreeSet::new();
    for name in names {
        let args = ["-d", &base, "-S", &kernel.version, "--show-depends", name];
        let output = Command::new("modprobe").args(args).output()?;
        let listed = String::from_utf8_lossy(&output.stdout).into_owned();
        files.extend(listed.lines().filter_map(|line| line.strip_prefix("insmod ")).map(|it| it.trim().to_owned()));
    }
    for file in files {
        let path = Path::new(&file);
        copy(path, &tree.join(path.strip_prefix(&kernel.dir)?))?;
    }
    let dir = Path::new("lib/modules").join(&kernel.version);
    fs::create_dir_all(tree.join(&dir))?;
    for name in ["modules.builtin", "modules.order", "modules.builtin.modinfo"] {
        copy(&kernel.dir.join(&dir).join(name), &tree.join(&dir).join(name))?;
    }
    exec("depmod", &["-b", &text(tree), &kernel.version], &[])
}

pub(super) fn initramfs(work: &Path, kernel: &Kernel) -> Result<()> {
    let tree = work.join("initrd");
    for dir in ["bin", "dev", "proc", "sys", "root"] {
        fs::create_dir_all(tree.join(dir))?;
    }
    copy(Path::new("/bin/busybox"), &tree.join("bin/busybox"))?;
    std::os::unix::fs::symlink("busybox", tree.join("bin/sh"))?;
    copy(&root().join("tests/guest/init"), &tree.join("init"))?;
    modules(kernel, &tree, FIRST_MODULES)?;
    let script = format!("cd '{}' && find . | cpio --quiet -o -H newc -R 0:0 > ../initrd.img", tree.display());
    exec("sh", &["-c", &script], &[])
}

/// The root file system. `built` are the programs of the workspace: where they are in the guest, and here.
pub(super) fn disk(work: &Path, kernel: &Kernel, suite: &str, built: &[(PathBuf, PathBuf)]) -> Result<()> {
    let tree = work.join("root");
    for dir in ["bin", "sbin", "dev", "proc", "sys", "run", "tmp", "root", "etc", "var/lib", "var/log", "var/tmp"] {
        fs::create_dir_all(tree.join(dir))?;
    }
    copy(Path::new("/bin/busybox"), &tree.join("bin/busybox"))?;
    let applets = Command::new("/bin/busybox").arg("--list").output()?;
    for applet in String::from_utf8_lossy(&applets.stdout).lines() {
        let _ = std::os::unix::fs::symlink("/bin/busybox", tree.join("bin").join(applet)); // Itself is there.
    }
    let mut programs: Vec<(PathBuf, PathBuf)> = PROGRAMS.iter().map(|path| (path.into(), path.into())).collect();
    for folder in FOLDERS {
        let entries = fs::read_dir(folder).with_context(|| format!("{folder} is missing: run `cargo xtask setup`"))?;
        for entry in entries {
            let path = entry?.path();
            programs.push((path.clone(), path));
        }
    }
    programs.extend_from_slice(built);
    for (place, program) in &programs {
        ensure!(program.exists(), "{} is missing: run `cargo xtask setup`", program.display());
        let place = tree.join(place.strip_prefix("/")?);
        let _ = fs::remove_file(&place); // Busybox's, where it has one.
        install(&tree, program, &place)?;
    }
    // The tests make their images of it, wherever they look.
    copy(Path::new("/bin/busybox"), &tree.join("usr/bin/busybox"))?;
    copy(&root().join("tests/guest/rc"), &tree.join("sbin/init"))?;
    modules(kernel, &tree, MODULES)?;
    let write = |name: &str, text: &str| fs::write(tree.join(name), text).with_context(|| name.to_owned());
    write("modules", &MODULES.join("\n"))?;
    write("suite", suite)?;
    write("environment", "export EDGE_AGENT_BIN=/usr/local/bin/edge-agent EDGE_AGENT_GUEST=1 RUST_BACKTRACE=1\n")?;
    write("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")?;
    write("etc/group", "root:x:0:\nnogroup:x:65534:\n")?;
    write("etc/hosts", "127.0.0.1 localhost\n")?;
    write("etc/resolv.conf", "nameserver 127.0.0.1\n")?;
    write("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")?;
    let image = text(&work.join("disk.img"));
    exec("truncate", &["-s", "4G", &image], &[])?;
    exec("mkfs.ext4", &["-q", "-F", "-L", "root", "-E", "lazy_itable_init=1", "-d", &text(&tree), &image], &[])
}

/// Copies a program, without its debug information, and the libraries it names.
fn install(tree: &Path, program: &Path, place: &Path) -> Result<()> {
    fs::create_dir_all(place.parent().context("no folder")?)?;
    let stripped = Command::new("strip").args(["--strip-debug", "-o"]).arg(place).arg(program).output()?;
    if !stripped.status.success() {
        copy(program, place)?; // A script.
    }
    let output = Command::new("ldd").arg(program).output()?;
    for word in String::from_utf8_lossy(&output.stdout).split_whitespace().filter(|word| word.starts_with('/')) {
        let library = Path::new(word);
        let place = tree.join(library.strip_prefix("/")?);
        if !place.exists() {
            copy(library, &place)?;
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to.parent().context("no folder")?)?;
    fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// The entry of `dir` whose name begins so.
fn find(dir: &Path, begin: &str) -> Result<PathBuf> {
    let mut files = fs::read_dir(dir)?.filter_map(|entry| Some(entry.ok()?.path()));
    let found = files.find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(begin)));
    found.with_context(|| format!("{} has no {begin}", dir.display()))
}
