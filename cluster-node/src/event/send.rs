//! Sending events: one after the other, no faster than a board's link likes, as long as the API server answers.

use std::time::Duration;

use board::tasks::{Context, backoff};
use tokio::time::{Instant, sleep, timeout};

use super::{Recorder, record::Record};
use crate::{
    api::{Failure, Link, failure},
    node::request::{self, Body},
};

/// Events sent at once, and how long each more takes.
const BURST: u32 = 25;
const PACE: Duration = Duration::from_millis(200);
/// First and longest wait after a failure.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);
/// How long events are collected before they are written down while the link is down.
const COLLECT: Duration = Duration::from_secs(1);
/// Longest wait for the time, once the API server answers.
const CLOCK: Duration = Duration::from_secs(5);

impl Recorder {
    /// Without end.
    pub(super) async fn send_all(&self, context: &Context) {
        let mut link = self.0.api.link();
        let (mut tries, mut tokens, mut filled) = (0, BURST, Instant::now());
        loop {
            let first = self.desk().outbox.first();
            let Some((number, record)) = first else {
                self.tidy().await;
                context.healthy("all events are sent");
                self.0.news.notified().await;
                continue;
            };
            self.know_the_time().await;
            (tokens, filled) = refilled(tokens, filled);
            if tokens == 0 {
                sleep(PACE).await;
                continue;
            }
            tokens -= 1;
            match self.send(&record).await {
                Ok(()) => {
                    tries = 0;
                    self.desk().outbox.is_sent(number, &record);
                }
                Err(error) if self.settle(number, &record, &error) => {}
                Err(_) => {
                    tries += 1;
                    let waiting = self.desk().outbox.waiting();
                    context.healthy(format!("{waiting} events wait for the API server"));
                    self.wait(&mut link, backoff(tries, FIRST, LONGEST)).await;
                }
            }
        }
    }

    /// Events carry times: while the clock is not known, the first answer of the API server, to whoever asks, may tell it.
    async fn know_the_time(&self) {
        let mut changes = self.0.clock.changes();
        if !self.0.clock.is_trusted() {
            // Where it does not: better a wrong time than no event.
            let _ = timeout(CLOCK, changes.wait_for(|known| *known)).await;
        }
    }

    async fn send(&self, record: &Record) -> Result<(), kube::Error> {
        let namespace = record.namespace();
        let (method, path, body) = if record.known {
            let path = format!("/api/v1/namespaces/{namespace}/events/{}", record.name);
            ("PATCH", path, Body::Merge(record.patch(&self.0.clock)))
        } else {
            let event = record.event(&self.0.node, &self.0.clock);
            let event = serde_json::to_value(event).map_err(kube::Error::SerdeError)?;
            ("POST", format!("/api/v1/namespaces/{namespace}/events"), Body::Json(event))
        };
        request::quietly(&self.0.api, method, &path, body).await.map(drop)
    }

    /// Whether the failure says what becomes of the event; else it is tried again.
    fn settle(&self, number: u64, record: &Record, error: &kube::Error) -> bool {
        let outbox = &mut self.desk().outbox;
        match failure(error) {
            Failure::NotFound if record.known => outbox.is_gone(number),
            Failure::Conflict if !record.known => outbox.is_known(number),
            // A namespace that is being removed takes no events, and one that is gone neither.
            Failure::NotFound | Failure::Forbidden | Failure::Invalid | Failure::Conflict | Failure::Gone => {
                tracing::debug!(event = record.name, reason = record.reason, %error, "the API server refuses an event");
                outbox.is_refused(number);
            }
            Failure::Unreachable | Failure::Unauthorized | Failure::Busy | Failure::Other => return false,
        }
        true
    }

    /// Until the link comes up again, or the time is over; writes down what comes meanwhile.
    async fn wait(&self, link: &mut tokio::sync::watch::Receiver<Link>, time: Duration) {
        let until = Instant::now() + time;
        // Where it answers and is busy, only the time helps.
        let is_down = *link.borrow() != Link::Up;
        self.keep().await;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => return,
                () = is_up(link), if is_down => return,
                () = self.0.news.notified() => {
                    sleep(COLLECT).await;
                    self.keep().await;
                }
            }
        }
    }

    /// Removes from the store what was sent.
    async fn tidy(&self) {
        let stale = self.desk().outbox.stale();
        if stale.is_empty() {
            return;
        }
        match super::outbox::keep(&self.0.state, &stale).await {
            Ok(()) => self.desk().outbox.are_kept(&stale),
            Err(error) => tracing::warn!(%error, "events that were sent cannot be removed from the store"),
        }
    }
}

async fn is_up(link: &mut tokio::sync::watch::Receiver<Link>) {
    let _ = link.wait_for(|link| *link == Link::Up).await;
}

/// One more for each [`PACE`].
fn refilled(tokens: u32, since: Instant) -> (u32, Instant) {
    let more = u32::try_from(since.elapsed().as_millis() / PACE.as_millis()).unwrap_or(u32::MAX);
    if more == 0 {
        return (tokens, since);
    }
    (tokens.saturating_add(more).min(BURST), Instant::now())
}
