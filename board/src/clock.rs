//! The board's clock: what time it is, and how far that can be believed.
use std::sync::Arc;
use crate::identity::Identity;

/// A moment as the board saw it. `wall_us` may be wrong; (`boot`, `uptime_us`) never is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Stamp {
    /// Wall clock when the stamp was taken, µs since 1970 UTC, never before the clock's floor.
    pub wall_us: i64,
    /// Number of the boot, from 1, growing by one with each boot of this board.
    pub boot: u32,
    /// `CLOCK_BOOTTIME` in µs.
    pub uptime_us: u64,
    /// Whether the wall clock was known to be right when the stamp was taken.
    pub trusted: bool,
}

/// A stamp brought to the best knowledge of now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Corrected {
    /// µs since 1970 UTC.
    pub time_us: i64,
    /// Whether it rests on a trusted clock.
    pub trusted: bool,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Clock(Arc<()>);
impl Clock {
    /// The machine's clock; floor, boot number and offsets of earlier boots come from `identity`.
    pub fn system(_identity: &Identity) -> Result<Self, std::io::Error> { todo!() }
    /// Now.
    pub fn stamp(&self) -> Stamp { todo!() }
    /// Applies what became known since: the offset of that stamp's boot.
    pub fn correct(&self, _stamp: &Stamp) -> Corrected { todo!() }
    /// Time told by an authenticated server, µs since 1970 UTC; makes an untrusted clock trusted (offset only: never sets the system's clock).
    pub fn observe(&self, _remote_us: i64, _source: &'static str) { todo!() }
    /// Whether the wall clock is known to be right.
    pub fn is_trusted(&self) -> bool { todo!() }
}
