//! The client certificate: another one at 40 % of its life, and the way back when it ran out while the board was offline.
//!
//! Always true: a certificate is on disk before it is used.

use std::{path::PathBuf, sync::Arc, time::Duration};

use board::{clock::Clock, tasks::Context};
use jiff::{SignedDuration, Timestamp};

use super::{
    Credentials, JoinError,
    bootstrap::Token,
    credentials::{self, renewal},
    csr,
};
use crate::{
    api::{Api, Identity, Link},
    options::Options,
};

/// The part of its life after which a certificate is replaced, per cent; the rest is for the time offline.
const ROTATE_AT: i64 = 40;
/// The part after which the board says by when it must be online.
const ALARM_AT: i64 = 75;
/// First and longest wait after a failure.
const AGAIN: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(600));
/// Longest time without a look: clocks are set.
const LOOK: Duration = Duration::from_secs(600);

/// Where a certificate is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Age {
    /// Good, for so long before the next one.
    Young(SignedDuration),
    /// To be replaced.
    Due,
    /// To be replaced soon, or the board is out.
    Urgent,
    /// It ran out.
    Expired,
}

fn age(validity: (Timestamp, Timestamp), now: Timestamp) -> Age {
    let (from, to) = validity;
    let life = to.duration_since(from).as_secs().max(1);
    let used = now.duration_since(from).as_secs();
    if now >= to {
        Age::Expired
    } else if used >= life / 100 * ALARM_AT {
        Age::Urgent
    } else if used >= life / 100 * ROTATE_AT {
        Age::Due
    } else {
        Age::Young(SignedDuration::from_secs(life / 100 * ROTATE_AT - used))
    }
}

/// The service.
pub struct Rotation {
    api: Api,
    identity: PathBuf,
    clock: Clock,
    options: Arc<Options>,
}

impl Rotation {
    /// Of the identity in this folder, which `api` uses.
    pub fn new(api: Api, identity: PathBuf, clock: Clock, options: Arc<Options>) -> Self {
        Self { api, identity, clock, options }
    }

    /// Until it is told to stop.
    pub async fn run(self, context: Context) -> Result<(), super::CredentialsError> {
        let mut tries = 0;
        let board = super::off(crate::node::facts::Machine::read).await.map(|it| it.system_uuid).unwrap_or_default();
        let mut is_moved = false;
        loop {
            let Some(known) = Credentials::load(&self.identity)? else {
                // It is being left.
                context.stop.cancelled().await;
                return Ok(());
            };
            let now = crate::pod::now(&self.clock);
            let validity = known.validity()?;
            let mut age = age(validity, now);
            if known.cluster.is_of_another(&board) {
                // Where its card was copied, the two boards must not have one key.
                is_moved = true;
                if let Age::Young(_) = age {
                    age = Age::Due;
                }
            }
            let wait = match age {
                Age::Young(left) => {
                    Self::is_good(&context, &known.cluster.node, validity.1, is_moved);
                    Duration::try_from(left).unwrap_or(LOOK).min(LOOK)
                }
                Age::Due | Age::Urgent | Age::Expired => match self.renew(&known, age, &board).await {
                    Ok(()) => {
                        tries = 0;
                        continue;
                    }
                    Err(error) => {
                        self.say(&context, age, validity.1, &error);
                        tries += 1;
                        board::tasks::backoff(tries, AGAIN.0, AGAIN.1)
                    }
                },
            };
            let mut link = self.api.link();
            tokio::select! {
                () = context.stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(wait) => {}
                // What failed for want of the link is tried when it is back.
                _ = async { link.wait_for(|link| *link == Link::Up).await.is_ok() }, if tries > 0 && *self.api.link().borrow() != Link::Up => {}
            }
        }
    }

    fn is_good(context: &Context, node: &str, until: Timestamp, is_moved: bool) {
        if is_moved {
            context.degraded(
                format!("this board's identity was made on another machine: if the card was copied, two boards are node {node} now"),
                "where it was copied: `edge-agent leave --purge` on one of them, then join under another name; where it was only moved, all is well",
            );
        } else {
            context.healthy(format!("the certificate is good until {until}"));
        }
    }

    fn say(&self, context: &Context, age: Age, until: Timestamp, error: &JoinError) {
        let problem = board::tasks::chain(error);
        let renews = renewal(&self.identity).is_some();
        match age {
            Age::Expired if renews => context.degraded(
                format!("the certificate ran out at {until}, and the board did not come back by itself: {problem}"),
                "see that its renewal token is still good in the cluster",
            ),
            Age::Expired => context.degraded(
                format!(
                    "the certificate ran out at {until}: the cluster does not know this board any more ({problem})"
                ),
                "run `edge-agent leave --purge`, then join again; a renewal token in join.toml prevents this",
            ),
            Age::Urgent if !renews => context.degraded(
                format!("the board must be online before {until}, when its certificate runs out ({problem})"),
                "connect it",
            ),
            _ => context
                .healthy(format!("the certificate is good until {until}; a new one was not to be had yet: {problem}")),
        }
    }

    async fn renew(&self, known: &Credentials, age: Age, board: &str) -> Result<(), JoinError> {
        let issued = if age == Age::Expired {
            self.by_token(known).await?
        } else {
            let place = known.server()?.authority();
            match csr::client(&self.api, &place, &known.cluster.node).await {
                // A clock that is behind, or a CA that was replaced: the cluster's word counts.
                Err(JoinError::Unauthorized { .. }) if renewal(&self.identity).is_some() => {
                    self.by_token(known).await?
                }
                other => other?,
            }
        };
        let (identity, chain, key) = (self.identity.clone(), issued.chain.clone(), issued.key.clone());
        let (cluster, board) = (known.cluster.clone(), board.to_owned());
        let stored = super::off(move || {
            credentials::store_node(&identity, &chain, &key)?;
            if cluster.is_of_another(&board) { credentials::store_board(&identity, &cluster, &board) } else { Ok(()) }
        });
        stored.await??;
        self.api.replace_certificate(&issued.chain, &issued.key).await?;
        tracing::info!(node = self.options.name, "the board has another certificate");
        Ok(())
    }

    /// As the board that it was, with its own token.
    async fn by_token(&self, known: &Credentials) -> Result<csr::Issued, JoinError> {
        let token = renewal(&self.identity).ok_or(JoinError::NotJoined)?;
        let token = Token::parse(&token)?;
        let identity = Identity::Token(token.text().to_owned());
        let (clock, wire) = (self.clock.clone(), self.api.wire().clone());
        let server = known.server()?;
        let place = server.authority();
        let api = Api::new(server, &known.ca, identity, clock, wire)?;
        csr::client(&api, &place, &known.cluster.node).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_replaced_long_before_its_end() {
        #[track_caller]
        fn check(second: i64, want: Age) {
            let at = |second| Timestamp::from_second(second).unwrap();
            assert_eq!(age((at(1000), at(2000)), at(second)), want, "{second}");
        }
        check(1000, Age::Young(SignedDuration::from_secs(400)));
        check(0, Age::Young(SignedDuration::from_secs(1400)));
        check(1399, Age::Young(SignedDuration::from_secs(1)));
        check(1400, Age::Due);
        check(1749, Age::Due);
        check(1750, Age::Urgent);
        check(1999, Age::Urgent);
        check(2000, Age::Expired);
    }
}
