//! A cap on bytes a second.

use std::time::{Duration, Instant};

/// A token bucket that holds one second's worth.
#[derive(Debug)]
pub struct Throttle {
    bytes_per_s: Option<f64>,
    /// Negative while more was sent than is allowed.
    credit: f64,
    since: Instant,
}

impl Throttle {
    /// `None`: no cap.
    pub fn new(bytes_per_s: Option<u64>) -> Self {
        // A link's speed is far below 2^53.
        #[allow(clippy::cast_precision_loss)]
        let bytes_per_s = bytes_per_s.map(|it| it.max(1) as f64);
        Self { bytes_per_s, credit: bytes_per_s.unwrap_or(0.0), since: Instant::now() }
    }

    /// Counts `bytes` as sent; returns how long to wait before more may be.
    pub fn sent(&mut self, bytes: usize) -> Duration {
        self.sent_at(bytes, Instant::now())
    }

    fn sent_at(&mut self, bytes: usize, now: Instant) -> Duration {
        let Some(rate) = self.bytes_per_s else { return Duration::ZERO };
        let elapsed = now.saturating_duration_since(self.since).as_secs_f64();
        self.since = now;
        #[allow(clippy::cast_precision_loss)]
        let bytes = bytes as f64;
        self.credit = (self.credit + elapsed * rate).min(rate) - bytes;
        if self.credit >= 0.0 { Duration::ZERO } else { Duration::from_secs_f64(-self.credit / rate) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cap_holds_over_time() {
        let mut throttle = Throttle::new(Some(1000));
        let begin = throttle.since;
        let mut now = begin;
        let mut sent = 0;
        while now < begin + Duration::from_secs(100) {
            now += throttle.sent_at(300, now);
            sent += 300;
        }
        assert!((99_000..=102_000).contains(&sent), "{sent} bytes in 100 s");
        assert_eq!(Throttle::new(None).sent(1 << 30), Duration::ZERO);
    }
}
