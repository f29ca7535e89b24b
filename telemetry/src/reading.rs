//! A reading: what was said on which topic, when. Its form on disk is here and nowhere else.
use board::clock::Stamp;
use bytes::Bytes;

/// A reading on its way in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewReading {
    /// A valid MQTT topic name (no wildcards), checked by `topic::check_name`.
    pub topic: String,
    /// Anything.
    pub payload: Bytes,
}

/// A reading in the outbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// Its number in this store.
    pub seq: u64,
    /// When the board received it, as the clock then said. Bring it to the best knowledge with `Clock::correct`.
    pub stamp: Stamp,
    /// Topic name.
    pub topic: String,
    /// As sent.
    pub payload: Bytes,
}
