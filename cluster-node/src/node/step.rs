//! A wait for steps of the wall clock: the kernel tells when somebody sets it.

use std::{io, os::fd::OwnedFd};

use container_engine::sys::asynchronous;
use rustix::{
    io::{Errno, read},
    time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime},
};
use tokio::io::unix::AsyncFd;

/// Seconds since 1970 that no board sees: the year 2200.
const NEVER_S: i64 = 7_258_118_400;

/// A timer that never ends, but is cancelled when the clock is set.
pub struct Steps(AsyncFd<OwnedFd>);

impl Steps {
    /// From now on.
    pub fn open() -> io::Result<Self> {
        let timer = timerfd_create(TimerfdClockId::Realtime, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        arm(&timer)?;
        Ok(Self(asynchronous::register(timer)?))
    }

    /// Until the clock was set.
    pub async fn stepped(&mut self) -> io::Result<()> {
        loop {
            let mut guard = self.0.readable().await?;
            let mut ticks = [0u8; 8];
            let outcome = read(guard.get_inner(), &mut ticks);
            guard.clear_ready();
            match outcome {
                Err(Errno::CANCELED) => break,
                Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        arm(self.0.get_ref())
    }
}

fn arm(timer: &OwnedFd) -> io::Result<()> {
    let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
    let when = Itimerspec { it_interval: zero, it_value: Timespec { tv_sec: NEVER_S, tv_nsec: 0 } };
    match timerfd_settime(timer, TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET, &when) {
        // The clock was set between two settings: this one holds all the same.
        Ok(_) | Err(Errno::CANCELED) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    #[tokio::test]
    async fn a_clock_that_is_not_set_wakes_nobody() {
        let mut steps = super::Steps::open().unwrap();
        let waited = tokio::time::timeout(Duration::from_millis(30), steps.stepped()).await;
        assert!(waited.is_err(), "{waited:?}");
    }
}
