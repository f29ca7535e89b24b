//! `cargo xtask guest`: the engine's tests on a machine with control groups v2 alone, as boards have them.
//!
//! The machine is a qemu guest with Debian's cloud kernel, without KVM. Its disk holds the test programs that cargo built,
//! the programs they call, and the libraries of all of them, copied from this machine.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::steps::{exec, root, say};

/// Test programs of the workspace, seconds each may take in the guest, and what is passed to it.
const SUITE: &[(&str, u32, &str)] =
    &[("runtime", 900, "--skip terminals"), ("shim", 600, ""), ("containers", 900, ""), ("networks", 600, "")];
/// Debian programs that tests call; what busybox has is not among them. Not crun: version 1.8.1 fails here at `exec --process` and
/// tells 126 otherwise, so the tests, which take it where it is, would judge it and not us.
const PROGRAMS: &[&str] = &[
    "/usr/sbin/runc",
    "/usr/sbin/nft",
    "/bin/ip",
    "/usr/bin/nsenter",
    "/usr/bin/unshare",
    "/usr/bin/curl",
    "/usr/bin/socat",
    "/bin/bash",
    "/bin/tar",
    "/sbin/capsh",
    "/sbin/getpcaps",
    "/usr/bin/setpriv",
    "/bin/findmnt",
    "/bin/mount",
    "/bin/umount",
    "/usr/bin/script",
];
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
];
const FIRST_MODULES: &[&str] = &["virtio_pci", "virtio_blk", "ext4"];
/// How long the guest may take from power-on to its first program.
const BOOT: Duration = Duration::from_secs(180);

/// Builds the guest and runs the suite in it, or the part called `only`.
pub fn run(only: Option<&str>) -> Result<()> {
    let suite: Vec<_> = SUITE.iter().filter(|(name, ..)| only.is_none_or(|only| *name == only)).collect();
    ensure!(
        !suite.is_empty(),
        "the suite has no part {only:?}; there are: {:?}",
        SUITE.iter().map(|it| it.0).collect::<Vec<_>>()
    );
    let programs = test_programs()?;
    let work = root().join("target/guest");
    let _ = fs::remove_dir_all(&work); // From an earlier run, if there was one.
    fs::create_dir_all(&work)?;
    let kernel = kernel(&work)?;
    initramfs(&work, &kernel)?;
    let tree = work.join("root");
    let mut lines = String::new();
    for (name, seconds, more) in &suite {
        let path = programs.iter().find(|(found, _)| found == name);
        let (_, path) = path.with_context(|| format!("cargo built no test program called {name}"))?;
        install(path, &tree.join("suite.d").join(name))?;
        lines.push_str(&format!("{name} {seconds} /suite.d/{name} --test-threads=1 {more}\n"));
    }
    disk(&work, &tree, &kernel, &lines, &programs)?;
    boot(&work, &suite.iter().map(|(name, ..)| *name).collect::<Vec<_>>(), suite.iter().map(|it| it.1).sum())
}

/// Names and paths of what cargo builds: the end-to-end tests and the agent. As the gate builds them, or all would be built anew.
fn test_programs() -> Result<Vec<(String, PathBuf)>> {
    let mut found = executables(&["test", "--no-run", "--workspace"])?;
    // The agent has tests of its own, in a program of the same name.
    found.retain(|(name, is_test, _)| *is_test && name != "edge-agent");
    let agent = executables(&["build", "--workspace", "--all-targets"])?;
    found.extend(agent.into_iter().filter(|(_, is_test, _)| !is_test));
    Ok(found.into_iter().map(|(name, _, path)| (name, path)).collect())
}

/// Name, whether it is a test, and path of what a cargo command builds.
fn executables(args: &[&str]) -> Result<Vec<(String, bool, PathBuf)>> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let output = Command::new(cargo)
        .args(args)
        .arg("--message-format=json-render-diagnostics")
        .current_dir(root())
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(output.status.success(), "`cargo {}` failed", args.join(" "));
    let messages = output.stdout.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
    let found = messages.filter_map(|message: serde_json::Value| {
        let path = message["executable"].as_str()?;
        let is_test = message["profile"]["test"].as_bool()?;
        Some((message["target"]["name"].as_str()?.to_owned(), is_test, PathBuf::from(path)))
    });
    Ok(found.collect())
}

/// An unpacked kernel package.
struct Kernel {
    dir: PathBuf,
    version: String,
}

/// The package is kept outside the tree, between clones.
fn kernel(work: &Path) -> Result<Kernel> {
    let cache = crate::setup::venv().parent().map(|dir| dir.join("guest")).context("no cache folder")?;
    fs::create_dir_all(&cache)?;
    let package = dependency("linux-image-cloud-amd64")?;
    let have = || -> Result<Option<PathBuf>> {
        let mut files = fs::read_dir(&cache)?.filter_map(|entry| Some(entry.ok()?.path()));
        Ok(files.find(|path| path.to_string_lossy().contains(&package)))
    };
    if have()?.is_none() {
        let script = format!("cd '{}' && apt-get download -qq -o APT::Sandbox::User=root {package}", cache.display());
        exec("sh", &["-c", &script], &[])?;
    }
    let deb = have()?.with_context(|| format!("{package} was not downloaded"))?;
    let dir = work.join("kernel");
    exec("dpkg-deb", &["-x", &text(&deb), &text(&dir)], &[])?;
    let version = fs::read_dir(dir.join("lib/modules"))?.next().context("a kernel without modules")??.file_name();
    let version = version.to_string_lossy().into_owned();
    exec("depmod", &["-b", &text(&dir), &version], &[])?;
    Ok(Kernel { dir, version })
}

fn dependency(package: &str) -> Result<String> {
    let output = Command::new("apt-cache").args(["depends", "--important", package]).output()?;
    let listed = String::from_utf8_lossy(&output.stdout).into_owned();
    let found = listed.lines().find_map(|line| line.trim().strip_prefix("Depends: linux-image-"));
    Ok(format!("linux-image-{}", found.with_context(|| format!("apt-cache knows no {package}: run apt-get update"))?))
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

fn initramfs(work: &Path, kernel: &Kernel) -> Result<()> {
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

/// The root file system.
fn disk(work: &Path, tree: &Path, kernel: &Kernel, suite: &str, programs: &[(String, PathBuf)]) -> Result<()> {
    for dir in ["bin", "sbin", "dev", "proc", "sys", "run", "tmp", "root", "etc", "var/lib", "var/log", "var/tmp"] {
        fs::create_dir_all(tree.join(dir))?;
    }
    copy(Path::new("/bin/busybox"), &tree.join("bin/busybox"))?;
    let applets = Command::new("/bin/busybox").arg("--list").output()?;
    for applet in String::from_utf8_lossy(&applets.stdout).lines() {
        let _ = std::os::unix::fs::symlink("/bin/busybox", tree.join("bin").join(applet)); // Itself is there.
    }
    for program in PROGRAMS.iter().map(Path::new).filter(|it| it.exists()) {
        let place = tree.join(program.strip_prefix("/")?);
        let _ = fs::remove_file(&place); // Busybox's, where it has one.
        install(program, &place)?;
    }
    let agent = programs.iter().find(|(name, _)| name == "edge-agent").context("edge-agent was not built")?;
    install(&agent.1, &tree.join("usr/local/bin/edge-agent"))?;
    // The tests make their images of it, wherever they look.
    copy(Path::new("/bin/busybox"), &tree.join("usr/bin/busybox"))?;
    copy(&root().join("tests/guest/rc"), &tree.join("sbin/init"))?;
    modules(kernel, tree, MODULES)?;
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
    exec("mkfs.ext4", &["-q", "-F", "-L", "root", "-d", &text(tree), &image], &[])
}

/// Copies a program, without its debug information, and the libraries it names.
fn install(program: &Path, place: &Path) -> Result<()> {
    let tree = place.ancestors().find(|dir| dir.ends_with("guest/root")).context("not below the guest's root")?;
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

/// Powers the guest on, follows its console, and judges.
fn boot(work: &Path, names: &[&str], seconds: u32) -> Result<()> {
    let console = work.join("console.log");
    let output = File::create(&console)?;
    let kernel = glob(&work.join("kernel/boot"), "vmlinuz")?;
    let mut qemu = Command::new("qemu-system-x86_64")
        .args(["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "2048", "-nodefaults"])
        .args(["-display", "none", "-no-reboot", "-serial", "stdio"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(work.join("initrd.img"))
        .args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on"])
        .arg("-drive")
        .arg(format!("if=virtio,format=raw,cache=unsafe,file={}", work.join("disk.img").display()))
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn()
        .context("cannot start qemu-system-x86_64")?;
    let deadline = Instant::now() + BOOT + Duration::from_secs(u64::from(seconds));
    let mut shown = 0;
    let ended = loop {
        shown = follow(&console, shown)?;
        if qemu.try_wait()?.is_some() {
            break true;
        }
        if Instant::now() > deadline {
            break false;
        }
        std::thread::sleep(Duration::from_millis(500));
    };
    if !ended {
        qemu.kill()?;
        qemu.wait()?;
    }
    follow(&console, shown)?;
    verdict(&String::from_utf8_lossy(&fs::read(&console)?), names, &console)
}

/// Shows the guest's own lines as they come.
fn follow(console: &Path, shown: usize) -> Result<usize> {
    let text = String::from_utf8_lossy(&fs::read(console)?).into_owned();
    let lines: Vec<_> = text.lines().filter(|line| line.starts_with("GUEST-")).collect();
    for line in lines.iter().skip(shown) {
        say(&format!("   {}", line.trim()));
    }
    Ok(lines.len())
}

fn verdict(text: &str, names: &[&str], console: &Path) -> Result<()> {
    let tests: usize =
        text.lines().filter(|line| line.starts_with("test ") && line.trim_end().ends_with("... ok")).count();
    let failed: Vec<_> = text.lines().filter(|line| line.starts_with("test ") && line.contains("FAILED")).collect();
    for name in names {
        let end = format!("GUEST-END {name} 0 ");
        if !text.contains(&end) {
            let tail: Vec<_> = text.lines().rev().take(60).collect();
            let tail = tail.into_iter().rev().collect::<Vec<_>>().join("\n  ");
            bail!("in the guest, {name} failed: {failed:?}\n  {tail}\n  all of it: {}", console.display());
        }
    }
    // A suite that ran nothing must not pass.
    ensure!(tests >= names.len(), "only {tests} tests ran in the guest: see {}", console.display());
    say(&format!("   {tests} tests passed in the guest"));
    Ok(())
}

fn glob(dir: &Path, begin: &str) -> Result<PathBuf> {
    let mut files = fs::read_dir(dir)?.filter_map(|entry| Some(entry.ok()?.path()));
    let found = files.find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(begin)));
    found.with_context(|| format!("{} has no {begin}", dir.display()))
}
