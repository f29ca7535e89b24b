//! Starting again by itself what has ended, as its policy wants it.
//!
//! Always true:
//! - What somebody stopped or killed stays down until somebody starts it; `always` comes back with the agent, as with
//!   Docker.
//! - Each end is answered by one start, after a pause that doubles from 100 ms to a minute; a life of ten seconds makes it
//!   short again. What could not be started is tried again likewise.
//! - The policy, what it has done so far and whether somebody stopped the container are in its record, so that the next
//!   agent goes on ([`Containers::resume`]).

use std::{sync::Arc, time::Duration};

use super::{
    Containers, Restart, StartError, State, Status,
    record::{Entry, lock},
    start::By,
};
/// The first pause.
const FIRST: Duration = Duration::from_millis(100);
/// The longest.
const LONGEST: Duration = Duration::from_secs(60);
/// A life so long says that all is well again.
const WELL: i64 = 10_000_000_000;

/// Whether a container that has ended is to be started again.
fn wanted(policy: Restart, state: &State) -> bool {
    let failed = state.exit_code.is_some_and(|code| code != 0);
    !state.by_hand
        && match policy {
            Restart::No => false,
            Restart::OnFailure { max } => failed && (max == 0 || state.restarts < max),
            Restart::Always | Restart::UnlessStopped => true,
        }
}

/// Whether the next agent is to start it.
fn wanted_at_start(policy: Restart, state: &State) -> bool {
    let was_started = state.starts > 0 && !state.status.is_alive() && state.status != Status::Removing;
    was_started && (wanted(policy, state) || policy == Restart::Always)
}

/// How long the last life was, ns.
fn lived(state: &State) -> i64 {
    state.finished_ns.zip(state.started_ns).map_or(0, |(end, start)| end.saturating_sub(start))
}

/// The pause after a life of so many ns, from the pause before it.
fn pause(before: Option<Duration>, lived: i64) -> Duration {
    match before {
        Some(before) if lived < WELL => (before * 2).min(LONGEST),
        _ => FIRST,
    }
}

impl Containers {
    /// Starts what its policy wants to run and what ended while no agent looked. Called once by whoever keeps the engine
    /// open; a command's own engine is not there to look after anything.
    pub fn resume(&self) {
        for entry in lock(&self.0.book).all() {
            let (policy, state) = entry.with(|record| (record.spec.restart, record.state.clone()));
            if wanted_at_start(policy, &state) {
                entry.change(|record| record.state.by_hand = false);
                self.start_after(&entry, Duration::ZERO);
            }
        }
    }

    /// A life has ended and its remains are gone: starts the next one, where the policy wants one.
    pub(super) fn again(&self, entry: &Arc<Entry>) {
        let lived = entry.with(|record| lived(&record.state));
        self.again_after(entry, lived);
    }

    fn again_after(&self, entry: &Arc<Entry>, lived: i64) {
        if entry.with(|record| wanted(record.spec.restart, &record.state)) {
            let next = pause(*lock(&entry.pause), lived);
            *lock(&entry.pause) = Some(next);
            self.start_after(entry, next);
        }
    }

    /// Somebody wants it to stay down.
    pub(super) fn stay_down(&self, entry: &Arc<Entry>) {
        let news = entry.change(|record| {
            let news = record.spec.restart != Restart::No && !record.state.by_hand;
            record.state.by_hand |= news;
            record.state.restarting = false;
            news
        });
        if news {
            self.write_soon(entry);
        }
    }

    fn start_after(&self, entry: &Arc<Entry>, after: Duration) {
        entry.change(|record| record.state.restarting = true);
        self.write_soon(entry);
        let (this, entry) = (self.clone(), entry.clone());
        self.task(async move {
            tokio::time::sleep(after).await;
            match this.start_entry(entry.clone(), By::Policy).await {
                // Started, or removed, stopped or started by somebody meanwhile.
                Ok(_) | Err(StartError::Resolve(_) | StartError::StaysDown(_)) => {}
                Err(error) => {
                    tracing::warn!(error = %board::tasks::chain(&error), container = %entry.id, "a container could not be started again");
                    entry.change(|record| {
                        record.state.restarts = record.state.restarts.saturating_add(1);
                        record.state.restarting = false;
                    });
                    this.again_after(&entry, 0);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_policies_want() {
        // Name, exit code, restarts so far, stopped by hand; wanted at once, wanted by the next agent.
        #[track_caller]
        fn check(policy: Restart, code: i32, restarts: u32, by_hand: bool, want: (bool, bool)) {
            let state = State {
                status: Status::Exited,
                exit_code: Some(code),
                starts: 1 + restarts,
                restarts,
                by_hand,
                ..State::default()
            };
            assert_eq!((wanted(policy, &state), wanted_at_start(policy, &state)), want, "{policy:?} {state:?}");
            let never = State { starts: 0, status: Status::Created, ..state };
            assert!(!wanted_at_start(policy, &never), "{policy:?}");
        }
        let twice = Restart::OnFailure { max: 2 };
        check(Restart::No, 1, 0, false, (false, false));
        check(Restart::Always, 0, 9, false, (true, true));
        check(Restart::Always, 137, 9, true, (false, true));
        check(Restart::UnlessStopped, 0, 9, false, (true, true));
        check(Restart::UnlessStopped, 0, 9, true, (false, false));
        check(Restart::OnFailure { max: 0 }, 1, 999, false, (true, true));
        check(twice, 0, 0, false, (false, false));
        check(twice, 1, 1, false, (true, true));
        check(twice, 1, 2, false, (false, false));
        check(twice, 1, 0, true, (false, false));
    }

    #[test]
    fn pauses_grow_and_a_long_life_makes_them_short() {
        let life = State { started_ns: Some(5), finished_ns: Some(5 + WELL), ..State::default() };
        assert_eq!((lived(&life), lived(&State::default())), (WELL, 0));
        let mut now = None;
        let mut all = Vec::new();
        for _ in 0..12 {
            now = Some(pause(now, WELL - 1));
            all.push(now.unwrap().as_millis());
        }
        assert_eq!(all, [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 51_200, 60_000, 60_000]);
        assert_eq!(pause(now, WELL), FIRST);
    }
}
