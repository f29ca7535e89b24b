//! The one door for readings: outbox first (durable), then local subscribers.
use std::ops::Range;
use crate::{outbox::{Outbox, PutError}, reading::NewReading, router::Router};
/// Cheap to clone.
#[derive(Clone)]
pub struct Ingest { /// Durable half.
    pub outbox: Outbox, /// Local half.
    pub router: Router }
impl Ingest {
    /// Stores and delivers; `None` where no topic of them is kept. Returns when durable.
    pub async fn submit(&self, _readings: Vec<NewReading>) -> Result<Option<Range<u64>>, PutError> { todo!() }
}
