//! The board's clock: what time it is, and how far that can be believed.
//!
//! Boards often have no battery-backed clock: they start in 1970, or where they were switched off, and jump when the
//! network tells the time. So a moment is kept as a [`Stamp`]: the wall clock as it was, and the boot and the time since
//! boot, which never lie. When the clock becomes known, the offset of that boot is kept, and every stamp of that boot can
//! be corrected, also after a restart.
//!
//! Who vouches for a wall clock counts differently. The network (NTP, an authenticated server) is believed from the build
//! of this program on, also where that takes back what was believed before. A battery-backed clock is believed only from
//! the last time known to be right on: batteries run down.
//!
//! Always true: time since boot never goes back; a clock below its floor is never trusted.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use rustix::time::{ClockId, clock_gettime};
use tokio::sync::watch;

use crate::{durable, identity::Identity, sys, tasks::Context, tls};

/// No board with this code can be earlier than this: 2026-11-01T00:00:00Z, µs.
pub(crate) const BUILT_US: i64 = 1_793_491_200_000_000;
/// Boots whose offsets are kept.
const MAX_BOOTS: usize = 64;
/// Offsets that differ by less are the same clock being disciplined, not a step.
const STEP_US: i64 = 500_000;
/// The last trusted time is saved this often at most: flash wears.
const SAVE_EVERY: Duration = Duration::from_secs(3600);
/// How often the clock's trust is looked at again.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// A moment as the board saw it. `wall_us` may be wrong; (`boot`, `uptime_us`) never is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Stamp {
    /// Wall clock when the stamp was taken, µs since 1970 UTC.
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

/// Where raw time comes from.
trait Source: Send + Sync {
    fn wall_us(&self) -> i64;
    fn uptime_us(&self) -> u64;
    /// Who vouches for the wall clock.
    fn voucher(&self) -> Voucher;
}

/// Who says that the system's wall clock is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Voucher {
    Nobody,
    /// A battery-backed clock set it at boot.
    Battery,
    /// It is synchronised over the network.
    Network,
}

impl Voucher {
    fn of(network: bool) -> Self {
        if network { Self::Network } else { Self::Nobody }
    }
}

/// What is known, and what of it is on disk.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
struct Known {
    /// Last time known to be right, µs.
    last_us: i64,
    /// The number of the newest boot.
    boot: u32,
    /// Its `boot_id`.
    boot_id: String,
    /// Offset (wall − uptime, µs) of boots in which the clock was known.
    offsets: BTreeMap<u32, i64>,
}

struct Inner {
    source: Box<dyn Source>,
    known: Mutex<Known>,
    file: Option<PathBuf>,
    trusted: watch::Sender<bool>,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Clock(Arc<Inner>);

impl Clock {
    /// The machine's clock; floor, boot number and offsets of earlier boots come from `identity`. Blocking.
    pub fn system(identity: &Identity) -> io::Result<Self> {
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self::open(Box::new(System), Some(identity.dir().join("clock")), boot_id.trim())
    }

    /// The clock as `dir` (an identity folder) last knew it, changing nothing: for commands that only look.
    pub fn peek(dir: &Path) -> Self {
        let known = load(&dir.join("clock"));
        Self::with(Box::new(System), None, known)
    }

    /// A clock that stands still and moves as told: for tests.
    pub fn manual(wall_us: i64, trusted: bool) -> (Self, ManualClock) {
        let manual = ManualClock(Arc::new(Mutex::new((wall_us, 1_000_000, Voucher::of(trusted)))));
        let known = Known { boot: 1, ..Known::default() };
        let clock = Self::with(Box::new(manual.clone()), None, known);
        clock.look();
        (clock, manual)
    }

    fn open(source: Box<dyn Source>, file: Option<PathBuf>, boot_id: &str) -> io::Result<Self> {
        let mut known = file.as_deref().map(load).unwrap_or_default();
        if known.boot == 0 || known.boot_id != boot_id {
            known.boot = known.boot.saturating_add(1);
            boot_id.clone_into(&mut known.boot_id);
            while known.offsets.len() > MAX_BOOTS {
                known.offsets.pop_first();
            }
        }
        tls::not_before(known.last_us);
        let clock = Self::with(source, file, known);
        clock.look();
        clock.save()?;
        Ok(clock)
    }

    fn with(source: Box<dyn Source>, file: Option<PathBuf>, known: Known) -> Self {
        Self(Arc::new(Inner { source, known: Mutex::new(known), file, trusted: watch::Sender::new(false) }))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Every critical section leaves `Known` whole.
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Now.
    pub fn stamp(&self) -> Stamp {
        let uptime_us = self.0.source.uptime_us();
        let known = self.known();
        let offset = known.offsets.get(&known.boot).copied();
        let wall_us = offset.map_or_else(|| self.0.source.wall_us(), |offset| at(uptime_us, offset));
        Stamp { wall_us, boot: known.boot, uptime_us, trusted: offset.is_some() }
    }

    /// Applies what became known since the stamp was taken.
    pub fn correct(&self, stamp: &Stamp) -> Corrected {
        if stamp.trusted {
            return Corrected { time_us: stamp.wall_us, trusted: true };
        }
        match self.known().offsets.get(&stamp.boot) {
            Some(&offset) => Corrected { time_us: at(stamp.uptime_us, offset), trusted: true },
            None => Corrected { time_us: stamp.wall_us, trusted: false },
        }
    }

    /// Time told by an authenticated server, µs since 1970 UTC, good to a second or so. Gives a clock that nobody
    /// vouches for its offset; never sets the system's clock, and never overrules a clock that is synchronised.
    pub fn observe(&self, remote_us: i64, source: &'static str) {
        if self.0.source.voucher() == Voucher::Network || remote_us < BUILT_US {
            return;
        }
        let offset = offset_of(remote_us, self.0.source.uptime_us());
        // A second of the header's rounding is no reason to move a known clock.
        if self.learn(offset, 3_000_000) {
            tracing::info!(source, "the time is known now, from an authenticated server");
        }
    }

    /// Looks at the system's clock again; returns whether the wall clock is known to be right.
    pub fn look(&self) -> bool {
        let (wall_us, uptime_us) = (self.0.source.wall_us(), self.0.source.uptime_us());
        let believed = match self.0.source.voucher() {
            Voucher::Nobody => false,
            // Within a boot the battery has said its word: a server's time, or NTP's, is not taken back by it.
            Voucher::Battery => !self.is_trusted() && wall_us >= self.known().last_us.max(BUILT_US),
            Voucher::Network => wall_us >= BUILT_US,
        };
        if believed {
            self.learn(offset_of(wall_us, uptime_us), 0);
        }
        self.is_trusted()
    }

    /// Takes over an offset where none is known or it differs by more than `slack_us`; `true` where that is news.
    fn learn(&self, offset: i64, slack_us: i64) -> bool {
        let mut known = self.known();
        let boot = known.boot;
        let before = known.offsets.get(&boot).copied();
        if before.is_some_and(|before| (before - offset).abs() <= slack_us) {
            return false;
        }
        known.offsets.insert(boot, offset);
        // Not the greater of both: a clock that was wrong and ahead must not hold up the right one.
        known.last_us = at(self.0.source.uptime_us(), offset);
        tls::not_before(known.last_us);
        drop(known);
        self.0.trusted.send_if_modified(|trusted| !std::mem::replace(trusted, true));
        match before {
            Some(before) if (before - offset).abs() > STEP_US => {
                tracing::warn!(step_us = offset - before, "the clock was set");
                true
            }
            Some(_) => false,
            None => true,
        }
    }

    /// Whether the wall clock is known to be right.
    pub fn is_trusted(&self) -> bool {
        self.offset().is_some()
    }

    /// The offset of this boot, once it is known.
    fn offset(&self) -> Option<i64> {
        let known = self.known();
        known.offsets.get(&known.boot).copied()
    }

    /// Changes when the clock becomes known.
    pub fn changes(&self) -> watch::Receiver<bool> {
        self.0.trusted.subscribe()
    }

    /// Watches the system's clock, and saves what is known: when it was set, at most once an hour else, and at the end.
    pub async fn run(self, context: Context) -> io::Result<()> {
        let mut saved: Option<(tokio::time::Instant, i64)> = None;
        let mut changes = self.changes();
        loop {
            let trusted = self.look();
            let offset = self.offset().unwrap_or_default();
            let is_saved = |(when, saved): (tokio::time::Instant, i64)| {
                when.elapsed() < SAVE_EVERY && (saved - offset).abs() <= STEP_US
            };
            if trusted && !saved.is_some_and(is_saved) {
                self.save_off_runtime().await?;
                saved = Some((tokio::time::Instant::now(), offset));
            }
            context.healthy(if trusted {
                "the time is known"
            } else {
                "the time is not known yet; readings are marked"
            });
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                // A server has told the time: whoever reads the store beside us wants to know it, too.
                _ = changes.changed() => {}
                () = context.stop.cancelled() => break,
            }
        }
        self.save_off_runtime().await
    }

    async fn save_off_runtime(&self) -> io::Result<()> {
        let clock = self.clone();
        tokio::task::spawn_blocking(move || clock.save()).await.map_err(io::Error::other)?
    }

    fn save(&self) -> io::Result<()> {
        let Some(file) = &self.0.file else { return Ok(()) };
        let text = {
            let mut known = self.known();
            if let Some(&offset) = known.offsets.get(&known.boot) {
                known.last_us = at(self.0.source.uptime_us(), offset);
            }
            serde_json::to_vec(&*known).map_err(io::Error::other)?
        };
        durable::write(file, &text, 0o600)
    }
}

fn at(uptime_us: u64, offset: i64) -> i64 {
    offset.saturating_add(i64::try_from(uptime_us).unwrap_or(i64::MAX))
}

fn offset_of(wall_us: i64, uptime_us: u64) -> i64 {
    wall_us.saturating_sub(i64::try_from(uptime_us).unwrap_or(i64::MAX))
}

/// A missing or damaged file is an empty one: the floor is then the build, and boots count from one above any reading's.
fn load(file: &Path) -> Known {
    match durable::read(file, 64 << 10) {
        Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
            tracing::warn!(%error, file = %file.display(), "the saved clock is damaged; starting a new one");
            // Boot numbers must not meet those of older readings: start far above them.
            Known { boot: 1 << 20, ..Known::default() }
        }),
        Err(_) => Known::default(),
    }
}

struct System;

impl Source for System {
    // By the C library rather than a call of ours, so that what changes the time for a program changes it here.
    fn wall_us(&self) -> i64 {
        let us = |span: Duration| i64::try_from(span.as_micros()).unwrap_or(i64::MAX);
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or_else(|before| -us(before.duration()), us)
    }

    fn uptime_us(&self) -> u64 {
        let now = clock_gettime(ClockId::Boottime);
        u64::try_from(now.tv_sec * 1_000_000 + now.tv_nsec / 1000).unwrap_or(0)
    }

    /// The kernel is synchronised, or systemd-timesyncd says so, or a battery-backed clock set the time at boot.
    fn voucher(&self) -> Voucher {
        if sys::clock_is_synchronised() || Path::new("/run/systemd/timesync/synchronized").exists() {
            return Voucher::Network;
        }
        let set_the_time = |n: u32| {
            std::fs::read_to_string(format!("/sys/class/rtc/rtc{n}/hctosys")).is_ok_and(|text| text.trim() == "1")
        };
        if (0..4).any(set_the_time) { Voucher::Battery } else { Voucher::Nobody }
    }
}

/// The hand of a [`Clock::manual`].
#[derive(Clone)]
pub struct ManualClock(Arc<Mutex<(i64, u64, Voucher)>>);

impl ManualClock {
    fn state(&self) -> MutexGuard<'_, (i64, u64, Voucher)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets time pass.
    pub fn advance(&self, by: Duration) {
        let us = u64::try_from(by.as_micros()).unwrap_or(u64::MAX);
        let mut state = self.state();
        state.0 += i64::try_from(us).unwrap_or(i64::MAX);
        state.1 += us;
    }

    /// Sets the wall clock, and whether the network vouches for it.
    pub fn set(&self, wall_us: i64, vouched: bool) {
        self.set_by(wall_us, Voucher::of(vouched));
    }

    fn set_by(&self, wall_us: i64, voucher: Voucher) {
        let mut state = self.state();
        (state.0, state.2) = (wall_us, voucher);
    }
}

impl Source for ManualClock {
    fn wall_us(&self) -> i64 {
        self.state().0
    }
    fn uptime_us(&self) -> u64 {
        self.state().1
    }
    fn voucher(&self) -> Voucher {
        self.state().2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = BUILT_US + 86_400_000_000;
    const YEAR: i64 = 365 * 86_400_000_000;

    #[test]
    fn stamps_of_an_unknown_clock_are_corrected_when_it_is_known() {
        let (clock, hand) = Clock::manual(1_000_000, false);
        let early = clock.stamp();
        assert_eq!((early.wall_us, early.trusted), (1_000_000, false));
        hand.advance(Duration::from_secs(10));
        hand.set(NOW, true);
        assert!(clock.look());
        assert_eq!(clock.correct(&early), Corrected { time_us: NOW - 10_000_000, trusted: true });
        assert_eq!(clock.stamp().wall_us, NOW);
    }

    #[test]
    fn a_clock_below_the_floor_is_not_trusted_even_if_vouched_for() {
        let (clock, _) = Clock::manual(1_000_000, true);
        assert!(!clock.is_trusted());
    }

    #[test]
    fn a_trusted_stamp_keeps_its_time_when_the_clock_jumps() {
        let (clock, hand) = Clock::manual(NOW, true);
        let stamp = clock.stamp();
        hand.set(NOW + 3_600_000_000, true);
        clock.look();
        assert_eq!(clock.correct(&stamp).time_us, NOW);
        assert_eq!(clock.stamp().wall_us, NOW + 3_600_000_000);
    }

    #[test]
    fn a_server_gives_the_time_to_a_clock_that_nobody_vouches_for() {
        let (clock, _) = Clock::manual(0, false);
        clock.observe(NOW, "s3");
        assert!(clock.is_trusted());
        assert_eq!(clock.stamp().wall_us, NOW);
        clock.observe(NOW + 1_000_000, "s3"); // The header's rounding.
        assert_eq!(clock.stamp().wall_us, NOW);
    }

    #[test]
    fn offsets_survive_a_restart_and_boots_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let file = Some(dir.path().join("clock"));
        let hand = ManualClock(Arc::new(Mutex::new((5, 1_000_000, Voucher::Nobody))));
        let open = |boot_id: &str| Clock::open(Box::new(hand.clone()), file.clone(), boot_id).unwrap();
        let first = open("a");
        let early = first.stamp();
        hand.set(NOW, true);
        first.look();
        first.save().unwrap();
        let again = open("a");
        assert_eq!(again.stamp().boot, 1);
        assert_eq!(again.correct(&early).time_us, NOW);
        hand.set(7, false);
        let rebooted = open("b");
        assert_eq!((rebooted.stamp().boot, rebooted.is_trusted()), (2, false));
        assert_eq!(rebooted.correct(&early).time_us, NOW);
    }

    #[test]
    fn the_network_takes_back_a_time_that_was_ahead() {
        let (clock, hand) = Clock::manual(NOW + YEAR, true);
        assert_eq!(clock.stamp().wall_us, NOW + YEAR);
        hand.set(NOW, true);
        clock.look();
        assert_eq!(clock.stamp().wall_us, NOW);
        assert_eq!(clock.known().last_us, NOW);
    }

    #[test]
    fn a_battery_is_believed_from_the_last_known_time_on() {
        let (clock, hand) = Clock::manual(NOW, true);
        let reboot = |wall_us| {
            let mut known = clock.known();
            (known.boot, known.offsets) = (known.boot + 1, BTreeMap::new());
            hand.set_by(wall_us, Voucher::Battery);
        };
        reboot(NOW - 1);
        assert!(!clock.look(), "behind the last time known to be right");
        reboot(NOW + YEAR);
        assert!(clock.look());
        // Where it was wrong after all, a server and the network say so, and it has no say any more.
        clock.observe(NOW + 5_000_000, "s3");
        assert_eq!(clock.stamp().wall_us, NOW + 5_000_000);
        clock.look();
        assert_eq!(clock.stamp().wall_us, NOW + 5_000_000);
        hand.set_by(NOW, Voucher::Network);
        clock.look();
        assert_eq!(clock.stamp().wall_us, NOW);
    }
}
