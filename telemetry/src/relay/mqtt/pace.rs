//! A cap on bytes a second: a bucket that fills at that rate and holds a second's worth.

use std::time::Duration;

use tokio::time::Instant;

/// The cap; without one everything goes at once.
pub(super) struct Pace {
    bytes_per_second: Option<u64>,
    /// When what was taken so far is paid for. In the past: the bucket holds the difference, up to a second.
    paid: Instant,
}

impl Pace {
    pub(super) fn new(bytes_per_second: Option<u64>) -> Self {
        Self { bytes_per_second: bytes_per_second.filter(|&rate| rate > 0), paid: Instant::now() }
    }

    /// Waits until `bytes` may go.
    pub(super) async fn take(&mut self, bytes: usize) {
        let Some(rate) = self.bytes_per_second else { return };
        let full = Instant::now().checked_sub(Duration::from_secs(1)).unwrap_or(self.paid);
        let nanos = (bytes as u128 * 1_000_000_000).div_ceil(u128::from(rate));
        self.paid = self.paid.max(full) + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        tokio::time::sleep_until(self.paid).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_rate_holds_whatever_the_sizes() {
        let begun = Instant::now();
        let mut pace = Pace::new(Some(1000));
        for _ in 0..20 {
            pace.take(500).await;
        }
        assert_eq!(begun.elapsed().as_secs(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn idling_saves_up_a_second_and_no_more() {
        let mut pace = Pace::new(Some(1000));
        tokio::time::sleep(Duration::from_hours(1)).await;
        let begun = Instant::now();
        pace.take(1000).await;
        assert!(begun.elapsed() < Duration::from_millis(5));
        pace.take(1000).await;
        assert!(begun.elapsed() >= Duration::from_millis(995));
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_cap_nothing_waits() {
        let begun = Instant::now();
        Pace::new(None).take(usize::MAX).await;
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }
}
