//! The one door for readings: outbox first (durable), then local subscribers.

use std::ops::Range;

use crate::{
    outbox::{Outbox, PutError},
    reading::NewReading,
    router::{Message, Router},
};

/// Cheap to clone.
#[derive(Clone)]
pub struct Ingest {
    /// Durable half.
    pub outbox: Outbox,
    /// Local half.
    pub router: Router,
}

impl Ingest {
    /// Stores those whose topic is kept, all or none; then local subscribers hear all. Returns when durable; `None`
    /// where none of the topics is kept.
    pub async fn submit(&self, readings: Vec<NewReading>) -> Result<Option<Range<u64>>, PutError> {
        let range = self.store(&readings).await?;
        for reading in readings {
            self.router.publish(&Message::plain(reading.topic, reading.payload));
        }
        Ok(range)
    }

    /// The durable half alone, for a source that tells local subscribers itself.
    pub async fn store(&self, readings: &[NewReading]) -> Result<Option<Range<u64>>, PutError> {
        if readings.iter().all(|reading| self.outbox.keeps(&reading.topic)) {
            return if readings.is_empty() { Ok(None) } else { self.outbox.put(readings).await.map(Some) };
        }
        let kept: Vec<_> = readings.iter().filter(|reading| self.outbox.keeps(&reading.topic)).cloned().collect();
        if kept.is_empty() { Ok(None) } else { self.outbox.put(&kept).await.map(Some) }
    }
}
