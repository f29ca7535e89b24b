//! A cap on bytes a second, shared by all that use one link.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// A token bucket that holds one second's worth. Clones share it.
#[derive(Debug, Clone)]
pub struct Throttle(Option<Arc<Mutex<Bucket>>>);

#[derive(Debug)]
struct Bucket {
    bytes_per_s: f64,
    /// Negative while more was sent than is allowed.
    credit: f64,
    since: Instant,
}

impl Throttle {
    /// `None`: no cap.
    pub fn new(bytes_per_s: Option<u64>) -> Self {
        // A link's speed is far below 2^53.
        #[allow(clippy::cast_precision_loss)]
        let bucket = |bytes_per_s: u64| {
            let bytes_per_s = bytes_per_s.max(1) as f64;
            Arc::new(Mutex::new(Bucket { bytes_per_s, credit: bytes_per_s, since: Instant::now() }))
        };
        Self(bytes_per_s.map(bucket))
    }

    /// Counts `bytes` as sent; returns how long to wait before more may be.
    pub fn sent(&self, bytes: usize) -> Duration {
        self.0.as_ref().map_or(Duration::ZERO, |bucket| {
            bucket.lock().unwrap_or_else(PoisonError::into_inner).sent_at(bytes, Instant::now())
        })
    }
}

impl Bucket {
    fn sent_at(&mut self, bytes: usize, now: Instant) -> Duration {
        let elapsed = now.saturating_duration_since(self.since).as_secs_f64();
        self.since = now;
        #[allow(clippy::cast_precision_loss)]
        let bytes = bytes as f64;
        self.credit = (self.credit + elapsed * self.bytes_per_s).min(self.bytes_per_s) - bytes;
        if self.credit >= 0.0 { Duration::ZERO } else { Duration::from_secs_f64(-self.credit / self.bytes_per_s) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cap_holds_over_time() {
        let begin = Instant::now();
        let mut bucket = Bucket { bytes_per_s: 1000.0, credit: 1000.0, since: begin };
        let mut now = begin;
        let mut sent = 0;
        while now < begin + Duration::from_secs(100) {
            now += bucket.sent_at(300, now);
            sent += 300;
        }
        assert!((99_000..=102_000).contains(&sent), "{sent} bytes in 100 s");
        assert_eq!(Throttle::new(None).sent(1 << 30), Duration::ZERO);
    }
}
