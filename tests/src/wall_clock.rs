//! A wall clock that one agent sees, and that jumps as told: `wall_clock.c`, loaded before the C library.
//!
//! For the binary that cargo builds: one that is linked statically asks nobody for the time.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};

use crate::Agent;

/// The hand of the clock.
pub struct WallClock {
    library: PathBuf,
    setting: PathBuf,
}

impl WallClock {
    /// Builds it in `dir`; it begins in 1970, and nobody vouches for it.
    pub fn make(dir: &Path) -> Result<Self> {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/wall_clock.c");
        let it = Self { library: dir.join("wall_clock.so"), setting: dir.join("wall_clock") };
        let built = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&it.library).arg(source).output();
        let built = built.context("cc is missing: install gcc")?;
        ensure!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        it.set(1000, false)?;
        Ok(it)
    }

    /// Makes the agent see it.
    pub fn show_to(&self, agent: Agent) -> Agent {
        let agent = agent.env("LD_PRELOAD", &self.library.display().to_string());
        agent.env("EDGE_AGENT_TEST_CLOCK", &self.setting.display().to_string())
    }

    /// Sets it to `seconds` since 1970, and says whether the network vouches for it.
    pub fn set(&self, seconds: i64, synchronised: bool) -> Result<()> {
        // The agent must not see half of it.
        let beside = self.setting.with_extension("new");
        fs::write(&beside, format!("{} {}\n", seconds - now()?, i32::from(synchronised)))?;
        fs::rename(beside, &self.setting).map_err(Into::into)
    }
}

/// Seconds since 1970 by this machine's clock.
pub fn now() -> Result<i64> {
    Ok(i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?)
}
