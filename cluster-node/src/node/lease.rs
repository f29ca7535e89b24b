//! The lease: the sign of life that costs the least.
//!
//! The cluster's node controller takes a renewal for one only where its time is later than that of the renewal before. A
//! board's clock may go back; the time of its lease never does ([`renew_time`]).
//!
//! A renewal is a patch of one field, and its answer is metadata without the book-keeping of who set which field, which is
//! given up for this object once: nobody else writes to it.

use std::{convert::Infallible, time::Duration};

use board::tasks::{Context, backoff};
use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, MicroTime, ObjectMeta, OwnerReference},
};
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

use super::{
    NodeObject,
    request::{self, Body, words},
};
use crate::api::{Failure, Link, failure};

const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
/// First wait after a failure; the longest is the time between two renewals.
const FIRST: Duration = Duration::from_millis(200);
/// A renewal that takes longer is given up; the next one is due soon.
const PATIENCE: Duration = Duration::from_secs(15);

/// The time to write into the lease, µs since 1970: never before that of the server, always after the one before.
pub fn renew_time(now_us: i64, server_us: Option<i64>, previous_us: Option<i64>) -> i64 {
    let after = previous_us.map(|it| it.saturating_add(1));
    [server_us, after].into_iter().flatten().fold(now_us, i64::max)
}

/// What is known of the lease.
#[derive(Debug, Default)]
struct Held {
    /// Of the last renewal that may have been taken.
    previous_us: Option<i64>,
    /// Whether it is as it has to be but for its time.
    is_ours: bool,
    /// Whether the API server was asked for it.
    is_known: bool,
    /// The server's clock, and when it was read.
    server: Option<(i64, Instant)>,
    /// Uid of the node that owns it.
    owner: Option<String>,
}

impl Held {
    fn server_us(&self) -> Option<i64> {
        let (at, read) = self.server?;
        Some(at.saturating_add(i64::try_from(read.elapsed().as_micros()).unwrap_or(i64::MAX)))
    }

    fn hears(&mut self, server: request::ServerTime) {
        self.server = server.map(|at| (at, Instant::now())).or(self.server);
    }
}

impl NodeObject {
    /// Renews the lease until it is told to stop.
    pub async fn lease(self, context: Context) -> Result<(), Infallible> {
        let stop = context.stop.clone();
        if !self.api().is_somewhere() {
            context.healthy("this board has joined no cluster");
            stop.cancelled().await;
            return Ok(());
        }
        tokio::select! {
            () = self.renew_always(&context) => {}
            () = stop.cancelled() => {}
        }
        Ok(())
    }

    async fn renew_always(&self, context: &Context) {
        let (mut held, mut tries) = (Held::default(), 0);
        // When it was renewed last, in µs since boot: time in which the board slept counts.
        let mut renewed: Option<u64> = None;
        let mut link = self.api().link();
        let mut uid = self.uid_changes();
        loop {
            // Without the node there is nothing that could own it.
            let Ok(owner) = uid.wait_for(Option::is_some).await.map(|it| it.clone().unwrap_or_default()) else {
                return;
            };
            if held.owner.as_ref() != Some(&owner) {
                held = Held { owner: Some(owner.clone()), server: held.server, ..Held::default() };
            }
            let every = self.options().lease_renew;
            let outcome = timeout(PATIENCE, self.renew(&mut held, &owner)).await;
            let problem = match outcome {
                Ok(Ok(())) => None,
                Ok(Err(error)) => {
                    if failure(&error) == Failure::NotFound {
                        held.is_known = false;
                        // Leases go with their nodes.
                        self.look_again();
                    }
                    Some(words(&error))
                }
                Err(_) => Some(format!("no answer within {} s", PATIENCE.as_secs())),
            };
            match problem {
                None => {
                    let now = self.uptime_us();
                    let pause = Duration::from_micros(renewed.map_or(0, |it| now.saturating_sub(it)));
                    renewed = Some(now);
                    // The cluster may have called the node lost meanwhile: then its status says so until it is told again.
                    if pause > every * 2 {
                        self.look_again();
                    }
                    tries = 0;
                    context.healthy("the lease is renewed");
                    sleep(jittered(every)).await;
                }
                Some(problem) => {
                    tries += 1;
                    context.degraded(
                        format!("the lease of node {} is not renewed: {problem}", self.options().name),
                        "the cluster takes the board for lost meanwhile; its pods go on here",
                    );
                    let wait = backoff(tries, FIRST, every);
                    let was_down = *link.borrow() != Link::Up;
                    tokio::select! {
                        () = sleep(wait) => {}
                        _ = link.wait_for(|link| *link == Link::Up), if was_down => {}
                    }
                }
            }
        }
    }

    async fn renew(&self, held: &mut Held, owner: &str) -> Result<(), kube::Error> {
        let name = &self.options().name;
        let path = format!("{LEASES}/{name}");
        if !held.is_known {
            match request::whole::<Lease>(self.api(), "GET", &path, Body::None).await {
                Ok(lease) => {
                    let time = lease.spec.and_then(|it| it.renew_time).map(|it| it.0.as_microsecond());
                    held.previous_us = held.previous_us.max(time);
                    held.is_ours = false;
                }
                Err(error) if failure(&error) == Failure::NotFound => return self.make(held, owner).await,
                Err(error) => return Err(error),
            }
            held.is_known = true;
        }
        let time = renew_time(self.now_us(), held.server_us(), held.previous_us);
        // Also where the answer is lost: it may have been taken.
        held.previous_us = Some(time);
        let patch = if held.is_ours {
            json!({ "spec": { "renewTime": micro(time) } })
        } else {
            json!({ "metadata": self.lease_metadata(owner, true), "spec": self.lease_spec(time) })
        };
        let server = request::quietly(self.api(), "PATCH", &path, Body::Merge(patch)).await?;
        held.hears(server);
        held.is_ours = true;
        Ok(())
    }

    async fn make(&self, held: &mut Held, owner: &str) -> Result<(), kube::Error> {
        let time = renew_time(self.now_us(), held.server_us(), held.previous_us);
        held.previous_us = Some(time);
        let lease = Lease { metadata: self.lease_metadata(owner, false), spec: Some(self.lease_spec(time)) };
        let lease = serde_json::to_value(lease).map_err(kube::Error::SerdeError)?;
        let server = request::quietly(self.api(), "POST", LEASES, Body::Json(lease)).await?;
        held.hears(server);
        // The book-keeping starts with the creation; the next renewal ends it.
        held.is_known = true;
        held.is_ours = false;
        Ok(())
    }

    fn lease_metadata(&self, owner: &str, drop_managers: bool) -> ObjectMeta {
        let name = &self.options().name;
        ObjectMeta {
            name: Some(name.clone()),
            namespace: Some("kube-node-lease".to_owned()),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Node".to_owned(),
                name: name.clone(),
                uid: owner.to_owned(),
                ..OwnerReference::default()
            }]),
            // One empty entry means: none from now on.
            managed_fields: drop_managers.then(|| vec![ManagedFieldsEntry::default()]),
            ..ObjectMeta::default()
        }
    }

    fn lease_spec(&self, time: i64) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(self.options().name.clone()),
            lease_duration_seconds: Some(self.configuration().lease_s),
            renew_time: Some(micro(time)),
            ..LeaseSpec::default()
        }
    }
}

fn micro(time_us: i64) -> MicroTime {
    MicroTime(Timestamp::from_microsecond(time_us).unwrap_or(Timestamp::UNIX_EPOCH))
}

/// Up to 4 % more, so that many boards do not renew at the same moment.
fn jittered(every: Duration) -> Duration {
    let mut random = [0];
    // Without randomness they do.
    let _ = SystemRandom::new().fill(&mut random);
    every + every.mul_f64(f64::from(random[0]) / 255.0 * 0.04)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_lease_never_goes_back() {
        #[track_caller]
        fn check(now: i64, server: Option<i64>, previous: Option<i64>, want: i64) {
            assert_eq!(renew_time(now, server, previous), want);
        }
        check(100, None, None, 100);
        check(100, Some(90), Some(95), 100);
        // The board's clock is behind the server's.
        check(100, Some(300), None, 300);
        check(100, Some(300), Some(299), 300);
        // It went back, or was ahead once: one step further than before.
        check(100, None, Some(200), 201);
        check(100, Some(150), Some(200), 201);
        check(200, Some(150), Some(200), 201);
        check(0, Some(i64::MIN), Some(i64::MAX), i64::MAX);
    }

    #[test]
    fn renewals_of_many_boards_differ_a_little() {
        let every = Duration::from_secs(10);
        for _ in 0..100 {
            let time = jittered(every);
            assert!(time >= every && time <= every.mul_f64(1.0401), "{time:?}");
        }
    }
}
