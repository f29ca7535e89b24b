//! From a client's PUBLISH packets to the outbox: what a connection awaits before it acknowledges.

use std::sync::Arc;

use super::Shared;
use crate::{outbox::PutError, reading::NewReading, router::Message};

/// What to do for a PUBLISH once it is stored.
pub struct Pending {
    /// Of the PUBLISH.
    pub qos: u8,
    /// Packet identifier.
    pub id: u16,
    /// For local subscribers.
    pub message: Option<Message>,
}

/// Stores a batch, however long that takes: a full outbox or a failing disk is waited for. QoS 0 is dropped then.
pub async fn store(shared: Arc<Shared>, batch: Vec<(NewReading, Pending)>) -> Vec<Pending> {
    let (mut readings, mut pending): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
    let mut tries = 0;
    loop {
        match shared.ingest.store(&readings).await {
            Ok(_) => return pending,
            Err(PutError::Closed) => return Vec::new(),
            Err(PutError::TooLarge(_)) if readings.len() > 1 => return store_singly(shared, readings, pending).await,
            Err(error) => {
                tries += 1;
                if tries == 1 {
                    tracing::warn!(%error, "readings wait; their senders get no acknowledgement until there is room");
                    let dropped = pending.iter().filter(|it| it.qos == 0).count();
                    shared.metrics.dropped.inc_by(dropped as u64);
                    let keep: Vec<_> = pending.iter().map(|it| it.qos > 0).collect();
                    let mut kept = keep.iter();
                    readings.retain(|_| *kept.next().unwrap_or(&true));
                    for it in pending.iter_mut().filter(|it| it.qos == 0) {
                        it.message = None;
                    }
                }
                shared.ingest.outbox.room().await;
            }
        }
    }
}

/// A batch that is too large as one is stored one by one.
async fn store_singly(shared: Arc<Shared>, readings: Vec<NewReading>, pending: Vec<Pending>) -> Vec<Pending> {
    let mut done = Vec::with_capacity(pending.len());
    for one in readings.into_iter().zip(pending) {
        done.extend(Box::pin(store(shared.clone(), vec![one])).await);
    }
    done
}
