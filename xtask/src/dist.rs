//! `cargo xtask dist`: static binaries, by the first way that the machine offers.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    setup,
    steps::{exec, need, on_path, root, say},
};

/// Largest binaries, bytes: a growth that nobody meant is seen. The goal is 12 MiB for aarch64; the container engine took it to
/// 14, and the node, with Kubernetes' types, further.
const MAX_BYTES: [(&str, u64); 2] = [("aarch64", 30 << 20), ("x86_64", 34 << 20)];

/// Builds for `aarch64`, `x86_64` or `all`.
pub fn run(target: &str) -> Result<()> {
    match target {
        "all" => ["aarch64", "x86_64"].into_iter().try_for_each(build),
        "aarch64" | "x86_64" => build(target),
        other => bail!("unknown target {other:?}: aarch64, x86_64 or all"),
    }
}

fn output(arch: &str) -> PathBuf {
    root().join(format!("target/dist/edge-agent-{arch}"))
}

fn build(arch: &str) -> Result<()> {
    let triple = format!("{arch}-unknown-linux-musl");
    let dir = root().join("target/dist-build");
    let dir = dir.display().to_string();
    if on_path("cross") && on_path("docker") && docker_works() {
        say("   building with cross");
        let env = [("CROSS_CONFIG", "cross.toml"), ("CARGO_TARGET_DIR", &dir)];
        exec("cross", &["build", "--release", "--package", "edge-agent", "--target", &triple], &env)?;
    } else if rustup_has(&triple) {
        say("   building with cargo-zigbuild and rustup's target");
        zigbuild(&triple, &dir, None)?;
    } else {
        say("   building with cargo-zigbuild and Debian's Rust");
        need("/usr/bin/cargo", "cargo-web")?;
        zigbuild(&triple, &dir, Some("/usr/bin"))?;
    }
    let built = root().join(format!("target/dist-build/{triple}/release/edge-agent"));
    std::fs::create_dir_all(root().join("target/dist"))?;
    std::fs::copy(&built, output(arch)).with_context(|| format!("{} was not built", built.display()))?;
    check(arch)
}

fn docker_works() -> bool {
    Command::new("docker").arg("info").output().is_ok_and(|output| output.status.success())
}

fn rustup_has(triple: &str) -> bool {
    let listed = Command::new("rustup").args(["target", "list", "--installed"]).output();
    listed.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).lines().any(|line| line == triple))
}

/// With `debian`, that directory's Rust comes first, and the standard library is built along.
fn zigbuild(triple: &str, dir: &str, debian: Option<&str>) -> Result<()> {
    setup::run()?;
    let bin = setup::venv().join("bin");
    let path = std::env::var("PATH").unwrap_or_default();
    let path = match debian {
        Some(first) => format!("{first}:{}:{path}", bin.display()),
        None => format!("{}:{path}", bin.display()),
    };
    let zig = glob_zig()?;
    // C code never unwinds.
    let mut env = vec![
        ("CFLAGS", "-fno-asynchronous-unwind-tables -fno-unwind-tables"),
        ("CARGO_TARGET_DIR", dir),
        ("PATH", &path),
        ("CARGO_ZIGBUILD_ZIG_PATH", &zig),
    ];
    let mut args = vec!["zigbuild", "--release", "--package", "edge-agent", "--target", triple];
    if debian.is_some() {
        // What rustup sets for its own toolchain must not reach Debian's.
        env.extend([
            ("RUSTC_BOOTSTRAP", "1"),
            ("RUSTFLAGS", "-C link-self-contained=no"),
            ("CARGO", "/usr/bin/cargo"),
            ("RUSTUP_TOOLCHAIN", ""),
        ]);
        // Without the reader of debug information: the binary has none.
        args.extend(["-Zbuild-std=std,panic_unwind", "-Zbuild-std-features=panic-unwind,optimize_for_size"]);
    }
    exec(&bin.join("cargo-zigbuild").display().to_string(), &args, &env)
}

/// zig itself, inside the Python environment: `python3 -m ziglang` would look in the wrong one.
fn glob_zig() -> Result<String> {
    let lib = setup::venv().join("lib");
    for entry in std::fs::read_dir(&lib)? {
        let zig = entry?.path().join("site-packages/ziglang/zig");
        if zig.exists() {
            return Ok(zig.display().to_string());
        }
    }
    bail!("zig is not in {}", lib.display())
}

/// Static, and small enough.
fn check(arch: &str) -> Result<()> {
    let path = output(arch);
    let bytes = std::fs::read(&path)?;
    ensure!(!has_interpreter(&bytes), "{} is not static: it names an interpreter", path.display());
    say(&format!("   {}: {} KiB, static", path.display(), bytes.len() >> 10));
    let most = MAX_BYTES.iter().find(|(name, _)| *name == arch).map_or(u64::MAX, |(_, most)| *most);
    ensure!(bytes.len() as u64 <= most, "{} has {} bytes, over the limit of {most}", path.display(), bytes.len());
    Ok(())
}

/// Whether a 64-bit little-endian ELF file has a `PT_INTERP` segment.
fn has_interpreter(elf: &[u8]) -> bool {
    let u16_at = |at: usize| elf.get(at..at + 2).map_or(0, |b| usize::from(u16::from_le_bytes([b[0], b[1]])));
    let table = elf.get(32..40).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
    let (size, count) = (u16_at(54), u16_at(56));
    let table = usize::try_from(table).unwrap_or(0);
    (0..count).any(|n| elf.get(table + n * size..table + n * size + 4) == Some(&[3, 0, 0, 0]))
}

/// Runs the binary under qemu-user: it starts, stores a reading, and shows it again; then what its engine can do there
/// (`tests/src/bin/smoke.rs`).
pub fn smoke(arch: &str) -> Result<()> {
    let qemu = format!("/usr/bin/qemu-{arch}-static");
    let binary = output(arch).display().to_string();
    let dir = std::env::temp_dir().join(format!("edge-agent-smoke-{}", std::process::id()));
    let data = dir.display().to_string();
    let result = (|| {
        let version = capture(&qemu, &[&binary, "--version"])?;
        ensure!(version.starts_with("edge-agent "), "--version printed {version:?}");
        capture(&qemu, &[&binary, "--data-dir", &data, "telemetry", "put", "qemu/test", "42"])?;
        let rows = capture(&qemu, &[&binary, "--data-dir", &data, "telemetry", "query", "--json"])?;
        ensure!(rows.contains("\"topic\":\"qemu/test\"") && rows.contains("\"value\":42"), "query printed {rows:?}");
        say(&format!("   {version} runs under {qemu}"));
        engine(arch, &qemu, &binary)
    })();
    let _ = std::fs::remove_dir_all(&dir); // It is in the temporary folder anyway.
    result
}

fn engine(arch: &str, qemu: &str, binary: &str) -> Result<()> {
    let program = root().join("target/dist").join(format!("foreign-{arch}"));
    let (source, out) = (root().join("tests/src/foreign.c"), program.display().to_string());
    let args = ["cc", "-target", &format!("{arch}-linux-musl"), "-static", "-o", &out, &source.display().to_string()];
    exec(&glob_zig()?, &args, &[])?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), Into::into);
    exec(&target.join("debug/smoke").display().to_string(), &[qemu, binary, &out], &[])
}

fn capture(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program).args(args).output().with_context(|| format!("cannot start {program}"))?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    ensure!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(text)
}
