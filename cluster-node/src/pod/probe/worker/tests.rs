//! Tests of what a probe does next.

use super::*;

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn spec(kind: Kind) -> Spec {
    Spec { kind, delay: s(5), period: s(10), timeout: s(1), failures: 3, successes: 1 }
}

fn sight(id: &str) -> Sight<'_> {
    let life = Life::Running { started_ns: 0 };
    Sight { id, life, before: None, deleting: false, started: true, age: Duration::ZERO }
}

const WAS: Option<Before> = Some(Before { started: true, ready: true });

#[test]
fn first_look_at_a_container() {
    #[track_caller]
    fn check(kind: Kind, sight: Sight<'_>, verdict: Option<Verdict>, next: Next) {
        assert_eq!(Worker::new(spec(kind)).step(&sight, s(100), 0.5), Step { verdict, next });
    }
    use Kind::{Liveness, Readiness, Startup};
    let starting = Sight { started: false, ..sight("1") };
    check(Readiness, sight(""), None, Next::Idle);
    check(Readiness, sight("1"), Some(Verdict::Failure), Next::At(s(105)));
    check(Liveness, sight("1"), Some(Verdict::Success), Next::At(s(105)));
    check(Startup, starting, Some(Verdict::Unknown), Next::At(s(105)));
    check(Liveness, starting, Some(Verdict::Success), Next::Idle);
    // Running since before the agent: nothing is said of it, and a random part of the period goes by.
    check(Readiness, Sight { before: WAS, age: s(600), ..sight("1") }, None, Next::At(s(105)));
    check(Readiness, Sight { before: WAS, age: s(0), ..sight("1") }, None, Next::At(s(105)));
    check(Startup, Sight { before: WAS, age: s(600), ..sight("1") }, None, Next::Idle);
    // Ended before it was seen.
    check(Readiness, Sight { life: Life::Ended, ..sight("1") }, Some(Verdict::Failure), Next::Idle);
    check(Liveness, Sight { life: Life::Ended, ..sight("1") }, None, Next::Idle);
    // The pod is on its way out: readiness is still asked.
    check(Liveness, Sight { deleting: true, ..sight("1") }, Some(Verdict::Success), Next::End);
    check(Startup, Sight { deleting: true, ..starting }, Some(Verdict::Success), Next::End);
    check(Readiness, Sight { deleting: true, ..sight("1") }, Some(Verdict::Failure), Next::At(s(105)));
}

#[test]
fn thresholds_count_in_a_row() {
    let mut worker = Worker::new(Spec { successes: 2, ..spec(Kind::Readiness) });
    worker.step(&sight("1"), s(0), 0.0);
    let runs = [Some(true), Some(false), Some(true), None, Some(true), Some(false), Some(false), Some(false)];
    let got: Vec<_> = runs.into_iter().map(|run| worker.outcome(run)).collect();
    let (ok, bad) = (Some(Verdict::Success), Some(Verdict::Failure));
    assert_eq!(got, [None, None, None, None, ok, None, None, bad]);
}

#[test]
fn periods_are_counted_from_run_to_run() {
    let mut worker = Worker::new(spec(Kind::Readiness));
    worker.step(&sight("1"), s(0), 0.0);
    let mut look = |now| worker.step(&sight("1"), s(now), 0.0).next;
    assert_eq!(look(4), Next::At(s(5)));
    assert_eq!(look(5), Next::Run);
    assert_eq!(look(6), Next::At(s(15)));
    assert_eq!(look(17), Next::Run, "a run took long");
    assert_eq!(look(18), Next::At(s(27)));
}

#[test]
fn a_failed_container_is_left_alone_until_there_is_another() {
    let mut worker = Worker::new(Spec { failures: 1, delay: s(0), ..spec(Kind::Liveness) });
    assert_eq!(worker.step(&sight("1"), s(0), 0.0).next, Next::Run);
    assert_eq!(worker.outcome(Some(false)), Some(Verdict::Failure));
    assert_eq!(worker.step(&sight("1"), s(60), 0.0).next, Next::Idle);
    let again = worker.step(&sight("2"), s(61), 0.0);
    assert_eq!(again, Step { verdict: Some(Verdict::Success), next: Next::Run });
}

#[test]
fn a_started_container_is_not_asked_again() {
    let mut worker = Worker::new(Spec { delay: s(0), ..spec(Kind::Startup) });
    let starting = Sight { started: false, ..sight("1") };
    assert_eq!(worker.step(&starting, s(0), 0.0).next, Next::Run);
    assert_eq!(worker.outcome(Some(true)), Some(Verdict::Success));
    assert_eq!(worker.step(&sight("1"), s(10), 0.0).next, Next::Idle);
    assert_eq!(worker.step(&Sight { started: false, ..sight("2") }, s(20), 0.0).next, Next::Run);
}

#[test]
fn numbers_of_a_probe_are_made_sense_of() {
    let probe = Probe {
        period_seconds: Some(-3),
        timeout_seconds: Some(0),
        failure_threshold: Some(5),
        success_threshold: Some(4),
        initial_delay_seconds: Some(7),
        ..Probe::default()
    };
    let got = Spec::of(Kind::Readiness, &probe);
    let want = Spec { kind: Kind::Readiness, delay: s(7), period: s(10), timeout: s(1), failures: 5, successes: 4 };
    assert_eq!(got, want);
    assert_eq!(Spec::of(Kind::Liveness, &probe).successes, 1);
}
