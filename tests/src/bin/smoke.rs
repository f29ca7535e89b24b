//! The shipped binary of another CPU, under qemu-user: it pulls an image from a real registry, unpacks it, and runs a
//! container of it.
//!
//! `smoke QEMU BINARY PROGRAM`: `PROGRAM` is `foreign.c`, static and for that CPU too. Called by `cargo xtask test`.
//!
//! The engine starts itself again for each layer and each container, so the kernel has to know qemu as the interpreter
//! of such files (`binfmt_misc`). It is told so in a user namespace of our own (Linux 6.7), and the machine stays as it is.
//! What the kernel or qemu cannot do is printed with their answer; anything else is an error.

use std::{
    ffi::OsStr,
    fs,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use anyhow::{Context, Result, bail, ensure};
use container_engine::sys::process::user_namespace;
use tests::{free_port, images, registry::Registry};

/// OCI's and the kernel's names of the CPU, and what its static programs begin with, as `binfmt_misc` has it.
const AARCH64: (&str, &str, &str) = (
    "arm64",
    "aarch64",
    r":M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:",
);
/// The interpreter is opened at once (a container has no file of that name), programs are handed over open, and with
/// the credentials and the name that they were called with.
const FLAGS: &str = ":FOCP";

#[allow(clippy::print_stdout)] // For whoever reads the step's output.
fn main() -> Result<()> {
    let args: Vec<_> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [qemu, binary, program] = args.as_slice() else { bail!("usage: smoke QEMU BINARY PROGRAM") };
    let dir = tempfile::tempdir()?;
    let there = match Emulated::new(qemu) {
        Ok(there) => there,
        Err(error) => {
            println!("   skipped: no containers under {}: {error:#}", qemu.display());
            return Ok(());
        }
    };
    let registry = Registry::start(&dir.path().join("registry"))?;
    let image = registry.push(&images::program(AARCH64.0, dir.path(), program)?, "foreign:latest")?;
    let engine = Engine::new(&there, binary, dir.path())?;
    engine.pull(&image, program)?;
    println!("   {} pulled and unpacked {image}", binary.display());
    let missing = text(&there.run(program, ["probe"])?)?;
    if missing.is_empty() {
        engine.container(&image)?;
        println!("   {} ran a container of {image}", binary.display());
    } else {
        let missing = missing.lines().collect::<Vec<_>>().join(", ");
        println!("   skipped: running a container, since {} lacks {missing}", qemu.display());
    }
    Ok(())
}

/// A user namespace in which programs of the other CPU start.
struct Emulated {
    namespace: OwnedFd,
    script: String,
}

impl Emulated {
    fn new(qemu: &Path) -> Result<Self> {
        let everybody = "0 0 4294967295\n";
        let namespace = user_namespace(everybody, everybody).context("the kernel makes no user namespace")?;
        let (name, rule) = (AARCH64.1, AARCH64.2);
        let place = "/proc/sys/fs/binfmt_misc";
        let script = format!(
            "mount -t binfmt_misc binfmt_misc {place} || exit 1\n\
             test -e {place}/{name} || printf '%s' ':{name}{rule}{}{FLAGS}' > {place}/register || exit 1\n\
             exec \"$@\"",
            qemu.display()
        );
        let it = Self { namespace, script };
        it.run(Path::new("true"), [""; 0]).context("binfmt_misc cannot be had in a user namespace")?;
        Ok(it)
    }

    /// Runs a program in there; its failure is an error with its words.
    fn run<S: AsRef<OsStr>>(&self, program: &Path, arguments: impl IntoIterator<Item = S>) -> Result<Output> {
        let mut command = Command::new("nsenter");
        command.arg(format!("--user=/proc/{}/fd/{}", std::process::id(), self.namespace.as_raw_fd()));
        command.args(["--setuid=0", "--setgid=0", "unshare", "--mount", "sh", "-c", &self.script, "sh"]);
        let output = command.arg(program).args(arguments).output().context("cannot start nsenter")?;
        let words = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {}\n{words}", program.display(), output.status);
        Ok(output)
    }
}

/// The engine, one command at a time.
struct Engine<'a> {
    there: &'a Emulated,
    binary: &'a Path,
    config: PathBuf,
    data: PathBuf,
}

impl<'a> Engine<'a> {
    fn new(there: &'a Emulated, binary: &'a Path, dir: &Path) -> Result<Self> {
        let (config, data) = (dir.join("config.toml"), dir.join("data"));
        let text = format!(
            "[agent]\ndata_dir = \"{0}/data\"\nrun_dir = \"{0}/run\"\n[mqtt]\nlisten = [\"127.0.0.1:{1}\"]\n[http]\nlisten = \
             \"127.0.0.1:{2}\"\n",
            dir.display(),
            free_port()?,
            free_port()?
        );
        fs::write(&config, text)?;
        Ok(Self { there, binary, config, data })
    }

    fn call(&self, words: &[&str]) -> Result<String> {
        let begin = [OsStr::new("--config"), self.config.as_os_str()];
        text(&self.there.run(self.binary, begin.into_iter().chain(words.iter().map(OsStr::new)))?)
    }

    /// Every entry of the layer is there afterwards, as it was made.
    fn pull(&self, image: &str, program: &Path) -> Result<()> {
        self.call(&["image", "pull", "--quiet", image])?;
        let listed = self.call(&["image", "ls", "--json"])?;
        ensure!(listed.contains("foreign"), "the image is not listed: {listed}");
        let layers: Vec<_> = fs::read_dir(self.data.join("layers"))?.collect::<std::io::Result<_>>()?;
        let [layer] = layers.as_slice() else { bail!("{} layers instead of one", layers.len()) };
        let bin = layer.path().join("fs/bin");
        let name = program.file_name().unwrap_or_default();
        ensure!(fs::read(bin.join(name))? == fs::read(program)?, "the program was unpacked as another");
        let node = |name: &OsStr| fs::metadata(bin.join(name)).map(|it| std::os::unix::fs::MetadataExt::ino(&it));
        ensure!(node(name)? == node("hard".as_ref())?, "a hard link was unpacked as something else");
        ensure!(fs::read_link(bin.join("link"))? == Path::new("hard"), "a link was unpacked as something else");
        Ok(())
    }

    fn container(&self, image: &str) -> Result<()> {
        let program = "/bin/hard";
        let said = self.call(&["container", "run", "--rm", "--network", "none", image, program])?;
        ensure!(said == format!("hello from {}, process 1", AARCH64.1), "the container said {said:?}");
        let left = self.call(&["container", "ls", "--all", "--quiet"])?;
        ensure!(left.is_empty(), "left after --rm: {left}");
        Ok(())
    }
}

fn text(output: &Output) -> Result<String> {
    Ok(String::from_utf8(output.stdout.clone())?.trim().to_owned())
}
