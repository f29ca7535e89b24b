//! Disks of the test's own: an ext4 on a loop device whose power can be cut, and a small tmpfs that fills up.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

/// A mounted file system; unmounted when dropped.
pub struct Disk {
    image: Option<PathBuf>,
    mount: PathBuf,
}

impl Disk {
    /// An ext4 of 256 MiB with its default options, as boards have it.
    pub fn ext4(dir: &Path) -> Result<Self> {
        let image = dir.join("disk.img");
        fs::File::create(&image)?.set_len(256 << 20)?;
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image))?;
        let it = Self { image: Some(image), mount: dir.join("disk") };
        fs::create_dir_all(&it.mount)?;
        it.mount()?;
        Ok(it)
    }

    /// A tmpfs of so many KiB.
    pub fn tmpfs(dir: &Path, kib: u32) -> Result<Self> {
        let mount = dir.join(format!("tmpfs-{kib}"));
        fs::create_dir_all(&mount)?;
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={kib}k"), "edge-agent-test"]).arg(&mount))?;
        Ok(Self { image: None, mount })
    }

    /// Gives a tmpfs another size.
    pub fn resize(&self, kib: u32) -> Result<()> {
        run(Command::new("mount").args(["-o", &format!("remount,size={kib}k")]).arg(&self.mount))
    }

    fn mount(&self) -> Result<()> {
        let image = self.image.as_ref().context("a tmpfs does not come back")?;
        run(Command::new("mount").args(["-t", "ext4", "-o", "loop"]).arg(image).arg(&self.mount))
    }

    /// Cuts the power: nothing more reaches the disk, not even what is in the journal's buffers.
    pub fn cut(&self) -> Result<()> {
        board::sys::powercut::shutdown(&self.mount).context("EXT4_IOC_SHUTDOWN: these tests need root")
    }

    /// After a cut, when nobody has files open any more: the file system as the next boot finds it.
    pub fn reboot(&self) -> Result<()> {
        run(Command::new("umount").arg(&self.mount))?;
        self.mount()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.mount
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // It may not be mounted if the test failed in between.
        let _ = run(Command::new("umount").arg("--lazy").arg(&self.mount));
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {words} (these tests need root and a loop device)");
    Ok(())
}
